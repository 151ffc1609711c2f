//! `podway run`: the sources feed the two halves until SIGTERM.
//!
//! Each half is a task of its own, so that one that waits for the kernel does not hold up the other.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use podway_cluster::{DirectoryConfig, Event, Kind, Nodes, Source, SourceConfig, Wanted};
use podway_nftables::{Nft, NftProcess, Services, Watch};
use podway_proxy::NodeContext;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{Config, Dataplane};
use crate::disturbance::Disturbance;
use crate::network::{Firewall, NetworkHalf};
use crate::privilege::require_net_admin;
use crate::services::{Bpf, ServiceHalf};

/// Events between a source and the halves' own queues. Those have no bound, so that a half that waits for the kernel
/// does not hold up the other; a burst is noted as a whole before anything is written.
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
    podway_cluster::use_annotation_prefix(&config.network.annotation_prefix);
    let (stop, stopped) = watch::channel(());
    let mut halves = tokio::task::JoinSet::new();
    let sources = sources(&config).await?;
    let writer = sources.first().and_then(Source::node_writer);

    let mut listeners = Listeners::default();
    if config.network.enabled {
        let half = NetworkHalf::new(&config, Firewall::open(&config).await?, writer)?;
        let (sender, events) = mpsc::unbounded_channel();
        listeners.network = Some(sender);
        halves.spawn_local(run_half(half, events, stopped.clone()));
    }
    if config.services.enabled {
        let mut nft = NftProcess::default();
        // An nft that is not there, or may not be used, is known at once and not at the first list.
        nft.list_table("ip podway").await?;
        let disturbance = Disturbance::new(Watch::open(&nft)?);
        let nftables = Services::new(nft, config.services.mark());
        let half = ServiceHalf::new(nftables, open_bpf(&config)?, Some(disturbance));
        let (sender, events) = mpsc::unbounded_channel();
        listeners.services = Some(sender);
        halves.spawn_local(run_half(half, events, stopped));
    }
    // Whoever is a pod is known from the configuration, before and without this node's object.
    listeners.change(podway_proxy::Event::Node(context(&config, None)));
    let mut feeds = tokio::task::JoinSet::new();
    for source in sources {
        let (sender, events) = mpsc::channel(QUEUE);
        feeds.spawn_local(source.run(sender));
        feeds.spawn_local(dispatch(events, config.clone(), listeners.clone()));
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = halves.join_next() => return ended?,
        Some(ended) = feeds.join_next() => {
            ended.context("following the cluster")?;
            bail!("following the cluster ended by itself");
        }
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

/// The sources with what each is asked for: the one of the cluster, and one of Nodes where those come from files.
async fn sources(config: &Config) -> Result<Vec<Source>> {
    let services = config.services.enabled;
    let of_node = |enabled| match enabled {
        true => Nodes::All,
        false => Nodes::Only(config.node_name.as_str().into()),
    };
    if config.network.nodes.as_os_str().is_empty() {
        let wanted = Wanted { services, nodes: of_node(config.network.enabled) };
        return Ok(vec![Source::open(&config.source, &wanted).await?]);
    }
    let files = SourceConfig::Directory(DirectoryConfig { path: config.network.nodes.clone() });
    let wanted = Wanted { services: false, nodes: of_node(config.network.enabled) };
    Ok(vec![
        Source::open(&config.source, &Wanted { services, nodes: Nodes::None }).await?,
        Source::open(&files, &wanted).await?,
    ])
}

/// When a half is to be asked to reconcile again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// At the next event.
    OnEvent,
    /// At the next event, and after this long at the latest.
    Within(Duration),
    /// After this long: the kernel refused, and events do not bring the next attempt forward.
    After(Duration),
}

/// A half of the daemon: takes note of events, and brings the kernel to what follows from them.
pub(crate) trait Half {
    /// What it is told.
    type Event;
    /// Takes note of an event; events that come in a burst are all noted before anything is written.
    fn apply(&mut self, event: Self::Event);
    /// Waits until somebody else changed what is ours, and takes note of it. May be dropped and called again at any
    /// time.
    async fn disturbed(&mut self) {
        std::future::pending().await
    }
    /// Brings the kernel to what is planned. An error is final.
    async fn reconcile(&mut self) -> Result<Next>;
}

/// What the network half is told.
pub(crate) enum NetworkEvent {
    /// A Node appeared, changed or went.
    Node(std::sync::Arc<str>, Option<podway_overlay::Node>),
    /// So much of the Nodes that there were at the start is through.
    Listed(Listed),
}

/// What the service half is told.
pub(crate) enum ServiceEvent {
    /// Something that is planned with.
    Change(podway_proxy::Event),
    /// So much of what there was of a kind at the start is through.
    Listed(Kind, Listed),
}

/// How much of a list there is at the start is through (contract S32).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Listed {
    /// None of it: nothing may be written.
    Nothing,
    /// What could be read: it may be written, but what stands beside it may not be removed.
    Partly,
    /// All of it.
    Fully,
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

async fn dispatch(mut events: mpsc::Receiver<Event>, config: Config, to: Listeners) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Problem(problem) => {
                warn!(subject = problem.subject, field = problem.field, "{}", problem.message);
            }
            Event::Node(name, node) => {
                if *name == *config.node_name {
                    to.change(podway_proxy::Event::Node(context(&config, node.as_ref())));
                }
                to.network(NetworkEvent::Node(name, node));
            }
            Event::Partial(Kind::Node) => to.network(NetworkEvent::Listed(Listed::Partly)),
            Event::Synced(Kind::Node) => to.network(NetworkEvent::Listed(Listed::Fully)),
            Event::Partial(kind) => to.services(ServiceEvent::Listed(kind, Listed::Partly)),
            Event::Synced(kind) => to.services(ServiceEvent::Listed(kind, Listed::Fully)),
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
    let mut next = Next::OnEvent;
    let mut due = None;
    loop {
        tokio::select! {
            _ = stop.changed() => return Ok(()),
            () = sleep_until(due) => {}
            () = half.disturbed() => {
                if matches!(next, Next::After(_)) {
                    continue;
                }
            }
            Some(event) = events.recv() => {
                half.apply(event);
                while let Ok(event) = events.try_recv() {
                    half.apply(event);
                }
                if matches!(next, Next::After(_)) {
                    continue;
                }
            }
        }
        next = half.reconcile().await?;
        due = match next {
            Next::OnEvent => None,
            Next::Within(wait) | Next::After(wait) => Some(Instant::now() + wait),
        };
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails its first attempts and counts them all.
    struct Failing {
        failures: u32,
        then: fn(Duration) -> Next,
        attempts: mpsc::UnboundedSender<Vec<u8>>,
        seen: Vec<u8>,
    }

    impl Half for Failing {
        type Event = u8;

        fn apply(&mut self, event: u8) {
            self.seen.push(event);
        }

        async fn reconcile(&mut self) -> Result<Next> {
            self.attempts.send(self.seen.clone())?;
            self.failures = self.failures.saturating_sub(1);
            Ok(if self.failures > 0 { (self.then)(Duration::from_secs(5)) } else { Next::OnEvent })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn s30_events_during_a_back_off_are_noted_and_wait_for_the_next_attempt() {
        let (attempts, mut attempted) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(());
        let half = Failing { failures: 2, then: Next::After, attempts, seen: vec![] };
        let running = tokio::spawn(run_half(half, receiver, stopped));
        let started = Instant::now();
        events.send(1).unwrap();
        assert_eq!(attempted.recv().await.unwrap(), [1]);
        for event in 2..50 {
            events.send(event).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(attempted.recv().await.unwrap().len(), 49, "one more attempt for all of them");
        assert_eq!(started.elapsed().as_secs(), 5);
        drop(stop);
        running.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn n12_what_the_api_server_refuses_does_not_hold_up_a_node() {
        let (attempts, mut attempted) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(());
        let half = Failing { failures: 9, then: Next::Within, attempts, seen: vec![] };
        let running = tokio::spawn(run_half(half, receiver, stopped));
        let started = Instant::now();
        for event in 1..4 {
            events.send(event).unwrap();
            assert_eq!(attempted.recv().await.unwrap().len(), usize::from(event));
        }
        assert_eq!(started.elapsed().as_secs(), 0, "each event is acted upon at once");
        assert_eq!(attempted.recv().await.unwrap().len(), 3);
        assert_eq!(started.elapsed().as_secs(), 5, "and without one it is tried again in time");
        drop(stop);
        running.await.unwrap().unwrap();
    }
}
