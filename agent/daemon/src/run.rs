//! `podway run`: the sources feed the two halves until SIGTERM.
//!
//! Each half is a loop of its own, so that a large load of Services does not hold up a new node's route.

use std::time::Duration;

use anyhow::{Context, Result};
use podway_cluster::{DirectoryConfig, Event, Kind, Source, SourceConfig};
use podway_nftables::{Network, NftProcess, Services};
use podway_proxy::NodeContext;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::config::{Config, Dataplane};
use crate::network::NetworkHalf;
use crate::privilege::require_net_admin;
use crate::services::{Bpf, ServiceHalf};

/// Events on their way from a source; a full queue slows the source down.
const QUEUE: usize = 1024;

/// How long a stop waits for the writes under way.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the daemon for one node. Returns when it was told to stop, leaving the kernel as it is, or with what makes
/// going on pointless.
pub(crate) async fn run(config: Config) -> Result<()> {
    require_net_admin()?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        dataplane = ?config.dataplane,
        "podway starts"
    );
    let (stop, stopped) = watch::channel(());
    let mut halves = tokio::task::JoinSet::new();
    let source = Source::open(&config.source).await?;
    let writer = source.node_writer();

    let mut listeners = Listeners::default();
    if config.network.enabled {
        let masquerade = Network::adopt(NftProcess::default(), config.services.mark()).await?;
        let half = NetworkHalf::new(&config, masquerade, writer)?;
        let (sender, events) = mpsc::unbounded_channel();
        listeners.network = Some(sender);
        halves.spawn_local(run_half(half, events, stopped.clone()));
    }
    if config.services.enabled {
        let nftables = Services::adopt(NftProcess::default(), config.services.mark()).await?;
        let half = ServiceHalf::new(nftables, open_bpf(&config)?);
        let (sender, events) = mpsc::unbounded_channel();
        listeners.services = Some(sender);
        halves.spawn_local(run_half(half, events, stopped));
    }
    // Whoever is a pod is known from the configuration, before and without this node's object.
    listeners.change(podway_proxy::Event::Node(context(&config, None)));
    for (role, source) in sources(&config, source).await? {
        tokio::task::spawn_local(dispatch(role, source, config.clone(), listeners.clone()));
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = halves.join_next() => return ended?,
    }
    info!("podway stops; what it programmed stays");
    drop(stop);
    let finish = async { while halves.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_DEADLINE, finish).await.is_err() {
        warn!("a write did not end in time; the next start completes it");
    }
    Ok(())
}

fn open_bpf(config: &Config) -> Result<Bpf> {
    if config.dataplane == Dataplane::Nftables {
        return Ok(Bpf::Off(config.ebpf.pin_directory.clone()));
    }
    let cgroup = match config.ebpf.cgroup.as_os_str().is_empty() {
        true => podway_bpf::cgroup2_root()?,
        false => config.ebpf.cgroup.clone(),
    };
    let settings = podway_bpf::Settings { cgroup, pin_dir: config.ebpf.pin_directory.clone() };
    let dataplane = podway_bpf::BpfDataplane::open(&settings).context("dataplane ebpf")?;
    Ok(Bpf::On(Box::new(dataplane)))
}

/// Which kinds a source is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Everything,
    AllButNodes,
    Nodes,
}

async fn sources(config: &Config, main: Source) -> Result<Vec<(Role, Source)>> {
    if config.network.nodes.as_os_str().is_empty() {
        return Ok(vec![(Role::Everything, main)]);
    }
    let nodes = SourceConfig::Directory(DirectoryConfig { path: config.network.nodes.clone() });
    Ok(vec![(Role::AllButNodes, main), (Role::Nodes, Source::open(&nodes).await?)])
}

/// A half of the daemon: takes note of events, and brings the kernel to what follows from them.
pub(crate) trait Half {
    /// What it is told.
    type Event;
    /// Takes note of an event; events that come in a burst are all noted before anything is written.
    fn apply(&mut self, event: Self::Event);
    /// Brings the kernel to what is planned. An error is final; after a failure that may pass, returns how long to
    /// wait before the next attempt, unless an event comes first.
    async fn reconcile(&mut self) -> Result<Option<Duration>>;
}

/// What the network half is told.
pub(crate) enum NetworkEvent {
    /// A Node appeared, changed or went.
    Node(std::sync::Arc<str>, Option<podway_overlay::Node>),
    /// All Nodes that there were at the start are through.
    Synced,
}

/// What the service half is told.
pub(crate) enum ServiceEvent {
    /// Something that is planned with.
    Change(podway_proxy::Event),
    /// The first list of a kind is complete.
    Synced(Kind),
}

/// The halves that are switched on.
#[derive(Clone, Default)]
struct Listeners {
    network: Option<mpsc::UnboundedSender<NetworkEvent>>,
    services: Option<mpsc::UnboundedSender<ServiceEvent>>,
}

impl Listeners {
    // A half that has ended does not listen any more; `run` sees that it ended.
    fn network(&self, event: NetworkEvent) {
        let _ = self.network.as_ref().map(|half| half.send(event));
    }

    fn services(&self, event: ServiceEvent) {
        let _ = self.services.as_ref().map(|half| half.send(event));
    }

    fn change(&self, event: podway_proxy::Event) {
        self.services(ServiceEvent::Change(event));
    }
}

async fn dispatch(role: Role, source: Source, config: Config, to: Listeners) {
    let (sender, mut events) = mpsc::channel(QUEUE);
    tokio::task::spawn_local(source.run(sender));
    while let Some(event) = events.recv().await {
        match event {
            Event::Problem(problem) => {
                warn!(subject = problem.subject, field = problem.field, "{}", problem.message);
            }
            Event::Node(..) | Event::Synced(Kind::Node) if role == Role::AllButNodes => {}
            Event::Node(name, node) => {
                if *name == *config.node_name {
                    to.change(podway_proxy::Event::Node(context(&config, node.as_ref())));
                }
                to.network(NetworkEvent::Node(name, node));
            }
            Event::Synced(Kind::Node) => to.network(NetworkEvent::Synced),
            _ if role == Role::Nodes => {}
            Event::Synced(kind) => to.services(ServiceEvent::Synced(kind)),
            Event::Service(name, service) => to.change(podway_proxy::Event::Service(name, service)),
            Event::EndpointSlice(name, slice) => to.change(podway_proxy::Event::EndpointSlice(name, slice)),
        }
    }
}

/// This node as Services see it; its object may be missing.
fn context(config: &Config, node: Option<&podway_overlay::Node>) -> NodeContext {
    NodeContext {
        name: config.node_name.as_str().into(),
        zone: node.and_then(|node| node.zone.clone()),
        pod_networks: config.network.pod_networks.clone(),
    }
}

async fn run_half<H: Half>(
    mut half: H,
    mut events: mpsc::UnboundedReceiver<H::Event>,
    mut stop: watch::Receiver<()>,
) -> Result<()> {
    let mut again = None;
    loop {
        tokio::select! {
            _ = stop.changed() => return Ok(()),
            () = sleep(again) => {}
            Some(event) = events.recv() => {
                half.apply(event);
                while let Ok(event) = events.try_recv() {
                    half.apply(event);
                }
            }
        }
        again = half.reconcile().await?;
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
