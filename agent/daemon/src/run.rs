//! `podway run`: the sources feed the two halves until SIGTERM.
//!
//! Each half is a task of its own, so that one that waits for the kernel does not hold up the other.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use podway_cluster::{DirectoryConfig, EtcdStore, Event, Kind, Nodes, Source, SourceConfig, Wanted};
use podway_nftables::{Nft, NftProcess, Services};
use podway_overlay::{LeaseAttributes, NetConf, Overlay, Peering};
use podway_proxy::NodeContext;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{Config, Dataplane};
use crate::message;
use crate::net_conf;
use crate::network::{
    Announcer, Events, NetworkHalf, Parts, Store, Subnets, lease, overlay_settings, peering,
};
use crate::privilege::require_net_admin;
use crate::service_cidrs::ServiceCidrs;
use crate::services::{Bpf, ServiceHalf};
use crate::status::{self, Board};

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
    let board = Board::new(&config.node_name);
    // Before anybody can ask whether they are ready.
    let halves_on =
        [(config.network.enabled, status::Half::Network), (config.services.enabled, status::Half::Services)];
    halves_on.iter().filter(|(on, _)| *on).for_each(|(_, half)| board.expect(*half));
    let _servers = status::start(&config.status, &board)?;
    let nft = NftProcess::default();
    let (stop, stopped) = watch::channel(());
    let mut halves = tokio::task::JoinSet::new();
    let sources = sources(&config).await?;
    let writer = sources.first().and_then(|source| source.from.node_writer());
    let told = sources.first().and_then(|source| source.from.event_writer(&config.node_name));
    let told = Events::of(&config.node_name, told);

    let mut listeners = Listeners { network: None, services: None, board: board.clone() };
    let mut network = None;
    if config.network.enabled {
        let (sender, events) = mpsc::unbounded_channel();
        listeners.network = Some(sender);
        network = Some(events);
    }
    if config.services.enabled {
        let mut nft = nft.clone();
        // An nft that is not there, or may not be used, is known at once and not at the first list.
        nft.list_table("ip podway").await?;
        let watch = podway_nftables::Watch::open(&nft)?;
        let nftables = Services::new(nft, config.services.mark());
        let half = ServiceHalf::new(nftables, open_bpf(&config)?).watched(watch).telling(board.clone());
        let (sender, events) = mpsc::unbounded_channel();
        listeners.services = Some(sender);
        halves.spawn_local(run_half(half, events, stopped.clone()));
    }
    // Whoever is a pod is known from the configuration, before and without this node's object.
    listeners.change(podway_proxy::Event::Node(context(&config, None)));
    if let Some(events) = network {
        match config.network.store() {
            Store::Etcd => {
                let store = EtcdStore::open(&config.network.etcd).await.context("network.etcd")?;
                let leased =
                    Leased { store, config: config.clone(), to: listeners.clone(), nft, board, told };
                halves.spawn_local(leased.run(events, stopped));
            }
            Store::Nodes | Store::Static => {
                let writer = writer.filter(|_| peering(&config) == Peering::Annotated);
                let announcer = Announcer::new(writer, &config.node_name, config.network.node_condition);
                let subnets = match (config.network.store(), sources.first()) {
                    (Store::Nodes, Some(Feed { from, .. })) => Subnets::claimed(&config, from, told.clone())?,
                    _ => Subnets::as_given(),
                };
                let half =
                    NetworkHalf::new(&config, Parts { announcer, subnets, nft, board, events: told }).await?;
                halves.spawn_local(run_half(half, events, stopped));
            }
        }
    }
    let mut feeds = tokio::task::JoinSet::new();
    for Feed { from, of } in sources {
        let (sender, events) = mpsc::channel(QUEUE);
        feeds.spawn_local(from.run(sender));
        feeds.spawn_local(dispatch(events, config.clone(), listeners.clone(), of));
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

/// The store's net-conf.json, once it is one that a pod network can be made of.
async fn usable(store: &EtcdStore, config: &Config, problems: &mpsc::Sender<Event>) -> NetConf {
    let mut complaint = String::new();
    loop {
        let conf = store.net_conf(problems).await;
        let mut tried = config.clone();
        net_conf::apply(&mut tried.network, &conf);
        let made = tried.check().and_then(|()| Ok(Overlay::new(overlay_settings(&tried)?)?));
        let Err(error) = made else { return conf };
        let text = message::of(&error);
        if text != complaint {
            warn!("etcd's network configuration cannot be used, waiting for another: {text}");
        }
        complaint = text;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The network half where subnets are leased from etcd.
struct Leased {
    store: EtcdStore,
    config: Config,
    to: Listeners,
    nft: NftProcess,
    board: Board,
    told: Events,
}

impl Leased {
    /// The configuration of the network comes from etcd as well, so everything waits for it.
    async fn run(
        self,
        events: mpsc::UnboundedReceiver<NetworkEvent>,
        mut stop: watch::Receiver<()>,
    ) -> Result<()> {
        let Self { store, mut config, to, nft, board, told: cluster } = self;
        let (sender, told) = mpsc::channel(QUEUE);
        let net_conf = tokio::select! {
            conf = usable(&store, &config, &sender) => conf,
            () = dispatch(told, config.clone(), to.clone(), Of::Both) => bail!("nobody asks etcd any more"),
            _ = stop.changed() => return Ok(()),
        };
        net_conf::apply(&mut config.network, &net_conf);
        to.change(podway_proxy::Event::Node(context(&config, None)));
        // What is announced is known once this machine has been looked at; the first value is not used.
        let (attributes, mut announced) = watch::channel(LeaseAttributes::default());
        let parts = Parts {
            announcer: Announcer::by_lease(attributes),
            subnets: Subnets::as_given(),
            nft,
            board,
            events: cluster,
        };
        let half = NetworkHalf::new(&config, parts).await?;
        to.network(NetworkEvent::Listed(Listed::Nothing));
        let follow = async {
            // It fails only when the half has ended, and then this ends with it.
            let _ = announced.changed().await;
            let request = lease::request(&config, &net_conf, announced.clone())?;
            let (sender, told) = mpsc::channel(QUEUE);
            // Services know their own Node from elsewhere.
            let network = Listeners { services: None, ..to.clone() };
            tokio::join!(store.run(request, sender), dispatch(told, config.clone(), network, Of::Both));
            bail!("following etcd ended by itself")
        };
        tokio::select! {
            ended = run_half(half, events, stop) => ended,
            ended = follow => ended,
        }
    }
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

/// A source, and which halves listen to it.
struct Feed {
    from: Source,
    of: Of,
}

/// Whom a source tells of Nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Both halves.
    Both,
    /// The Services alone; the pod network hears of nodes elsewhere.
    Services,
}

/// The sources with what each is asked for: the one of the cluster, and one of Nodes where those come from files.
async fn sources(config: &Config) -> Result<Vec<Feed>> {
    let services = config.services.enabled;
    let service_cidrs = config.network.enabled;
    let own = || Nodes::Only(config.node_name.as_str().into());
    let of_network = if config.network.enabled { Nodes::All } else { own() };
    let cluster = async |nodes, of| -> Result<Feed> {
        let wanted = Wanted { services, nodes, service_cidrs };
        Ok(Feed { from: Source::open(&config.source, &wanted).await?, of })
    };
    match config.network.store() {
        Store::Nodes => Ok(vec![cluster(of_network, Of::Both).await?]),
        Store::Etcd if services => Ok(vec![cluster(own(), Of::Services).await?]),
        Store::Etcd => Ok(Vec::new()),
        Store::Static => {
            let files = DirectoryConfig { path: config.network.nodes.clone() };
            // The cluster's own say counts, where there is one.
            let wanted = Wanted { services: false, nodes: of_network, service_cidrs: !services };
            let from = Source::open(&SourceConfig::Directory(files), &wanted).await?;
            let nodes = Feed { from, of: Of::Both };
            Ok(match services {
                true => vec![cluster(Nodes::None, Of::Services).await?, nodes],
                false => vec![nodes],
            })
        }
    }
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
    async fn disturbed(&mut self) -> Result<()> {
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
    /// Services may get addresses of these ranges.
    ServiceCidrs(Vec<IpNet>),
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

/// The halves that are switched on, and the board for what concerns both.
#[derive(Clone)]
struct Listeners {
    board: Board,
    network: Option<mpsc::UnboundedSender<NetworkEvent>>,
    services: Option<mpsc::UnboundedSender<ServiceEvent>>,
}

impl Listeners {
    // A half that has ended does not listen any more; `run` sees that it ended.
    fn network(&self, event: NetworkEvent) {
        if let Some(half) = &self.network {
            let _ = half.send(event);
        }
    }

    fn services(&self, event: ServiceEvent) {
        if let Some(half) = &self.services {
            let _ = half.send(event);
        }
    }

    fn change(&self, event: podway_proxy::Event) {
        self.services(ServiceEvent::Change(event));
    }
}

async fn dispatch(mut events: mpsc::Receiver<Event>, config: Config, to: Listeners, of: Of) {
    let mut service_cidrs = ServiceCidrs::default();
    let network = |event| {
        if of == Of::Both {
            to.network(event);
        }
    };
    while let Some(event) = events.recv().await {
        match event {
            Event::Problem(problem) => {
                warn!(subject = problem.subject, field = problem.field, "{}", problem.message);
            }
            Event::Node(name, node) => {
                if *name == *config.node_name {
                    to.change(podway_proxy::Event::Node(context(&config, node.as_ref())));
                }
                network(NetworkEvent::Node(name, node));
            }
            Event::ServiceCidr(name, cidrs) => {
                to.network(NetworkEvent::ServiceCidrs(service_cidrs.apply(name, cidrs)));
            }
            // Nothing waits for them.
            Event::Partial(Kind::ServiceCidr) | Event::Synced(Kind::ServiceCidr) => {}
            Event::Contact { server, lost } => to.board.contact(server, lost),
            Event::Partial(Kind::Node) => network(NetworkEvent::Listed(Listed::Partly)),
            Event::Synced(Kind::Node) => network(NetworkEvent::Listed(Listed::Fully)),
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
            noted = half.disturbed() => {
                noted?;
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

pub(crate) async fn sleep_until(due: Option<Instant>) {
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
