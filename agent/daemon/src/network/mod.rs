//! The network half: Nodes in; links, routes, neighbours, FDB entries, masquerade and flannel's files out.

mod announce;
mod assignment;
mod cni;
mod events;
pub(crate) mod lease;
mod locate;
mod repair;
mod settings;
pub(crate) mod subnet_file;
mod tables;
mod tell;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ipnet::IpNet;
use podway_cluster::EventReason;
use podway_netlink::{Drift, Followed, Netlink, Report, Watch};
use podway_nftables::NftProcess;
use podway_overlay::{Host, Node, Op, Overlap, Overlay, Problem, Settings, Severity};
use podway_reconcile::{Recovery, Retry};
use tracing::{debug, error, info, warn};

pub(crate) use self::announce::Announcer;
pub(crate) use self::assignment::Subnets;
use self::cni::Cni;
pub(crate) use self::events::Events;
use self::repair::Repair;
pub(crate) use self::settings::{Store, overlay_settings, peering};
use self::tables::Tables;
use crate::config::Config;
use crate::message;
use crate::run::{Half, Listed, NetworkEvent, Next};
use crate::status::{self, Board};

/// The longest wait between two attempts; a look at the links costs little.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What an operator can do about another program that fights podway.
const CONTENDED: &str = "another program changes the pod network again and again: find out which, with `ip monitor` \
                         and `nft monitor`; podway gives way and repairs more seldom";

/// Between two attempts to install the CNI plugin.
const CNI_INTERVAL: Duration = Duration::from_secs(10);

/// A routing daemon may change routes all the time; what follows from them is looked at so often.
const HOST_INTERVAL: Duration = Duration::from_secs(1);

/// Turns Nodes into the pod network of this one.
pub(crate) struct NetworkHalf {
    config: Config,
    settings: Settings,
    overlay: Overlay,
    netlink: Netlink,
    watch: Watch,
    tables: Tables,
    announcer: Announcer,
    subnets: Subnets,
    board: Board,
    events: Events,
    /// This machine's Node as the source told it.
    given: Option<Node>,
    /// The same with the subnets that this machine may use.
    own: Option<Node>,
    listed: Listed,
    /// What this machine contributed when it was last looked at.
    host: Option<Host>,
    /// When it is to be looked at again; `None` = it stands as known.
    look_again: Option<Instant>,
    /// What others do to links and what is on them, to routes and kernel settings.
    overlay_repair: Repair,
    /// What others do to our tables.
    tables_repair: Repair,
    /// When all of it is to be tried again because the kernel refused a part; the rest stands.
    try_again: Option<Instant>,
    /// Whether everything has stood as planned since the start.
    stands: bool,
    /// Whether the kernel refused something of this node's own part at the last look at all of it.
    lacking: bool,
    /// What it refused of peers.
    refused: BTreeSet<String>,
    /// Why this machine could not be looked at; what was known of it before holds.
    host_trouble: Option<String>,
    problems: BTreeSet<Problem>,
    overlaps: Vec<Overlap>,
    /// Addresses of Services, as far as they were told.
    service_ranges: Vec<IpNet>,
    cni: Cni,
    retry: Retry,
}

/// What the half works with besides the kernel.
pub(crate) struct Parts {
    /// Tells the cluster of this node.
    pub(crate) announcer: Announcer,
    /// Where this node's subnets come from.
    pub(crate) subnets: Subnets,
    /// The door to nftables, of which all clones know each other's runs.
    pub(crate) nft: NftProcess,
    /// Where it writes down how it is.
    pub(crate) board: Board,
    /// What the cluster's users are told.
    pub(crate) events: Events,
}

impl NetworkHalf {
    /// A half that writes nothing before the Nodes have been listed once.
    pub(crate) async fn new(config: &Config, parts: Parts) -> Result<Self> {
        let Parts { announcer, subnets, nft, board, events } = parts;
        let settings = overlay_settings(config)?;
        let overlay = Overlay::new(settings.clone())?;
        let netlink = Netlink::open()?;
        let followed = Followed { links: overlay.link_names(), pod_networks: settings.pod_networks.clone() };
        let now = Instant::now();
        Ok(Self {
            // Before the first look at the kernel, so that nothing happens in between.
            watch: Watch::open(&netlink, followed).await?,
            tables: Tables::adopt(config, nft).await?,
            overlay,
            settings,
            netlink,
            announcer,
            subnets,
            board,
            events,
            given: None,
            own: None,
            listed: Listed::Nothing,
            host: None,
            look_again: Some(now),
            overlay_repair: Repair::new(),
            tables_repair: Repair::new(),
            stands: false,
            lacking: false,
            refused: BTreeSet::new(),
            host_trouble: None,
            try_again: None,
            problems: BTreeSet::new(),
            overlaps: Vec::new(),
            service_ranges: Vec::new(),
            cni: Cni::begin(&config.network),
            retry: Retry::new(Duration::from_millis(100), LONGEST_WAIT),
            config: config.clone(),
        })
    }
}

impl Half for NetworkHalf {
    type Event = NetworkEvent;

    fn apply(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Listed(listed) => {
                self.listed = listed;
                self.overlay.invalidate();
            }
            NetworkEvent::Node(name, node) if *name == *self.config.node_name => self.own_node(node),
            NetworkEvent::Node(name, node) => self.overlay.apply(&name, node.as_ref()),
            NetworkEvent::ServiceCidrs(ranges) if ranges == self.service_ranges => {}
            NetworkEvent::ServiceCidrs(ranges) => {
                self.overlay.set_service_ranges(&ranges);
                self.service_ranges = ranges;
                self.look_again = Some(Instant::now());
            }
        }
    }

    async fn disturbed(&mut self) -> Result<()> {
        tokio::select! {
            drift = self.watch.next() => self.note(drift),
            () = self.tables.damaged() => self.tables_repair.note(),
            () = self.subnets.changed() => self.own_node(self.given.clone()),
            () = self.announcer.told() => {}
        }
        Ok(())
    }

    async fn reconcile(&mut self) -> Result<Next> {
        let board = self.board.clone();
        let _busy = board.busy(status::Half::Network);
        // Where subnets are leased, a lease must tell who holds it, and so this machine is looked at before.
        let result = match (self.listed, self.config.network.store()) {
            (Listed::Nothing, Store::Etcd) => self.look_at_host().await,
            (Listed::Nothing, _) => return Ok(Next::OnEvent),
            // Nothing can be said yet of this node's subnets, and a moment later everything.
            _ if self.subnets.is_open() => return Ok(Next::OnEvent),
            _ => self.program().await,
        };
        self.report_problems();
        match result {
            Ok(()) => {
                if !self.lacking {
                    self.retry.succeeded();
                }
                let told = self.announce(!self.lacking && self.listed != Listed::Nothing);
                let due = [told, until(self.try_again), until(self.look_again)];
                let repairs = [self.overlay_repair.next(), self.tables_repair.next()];
                let next = due.into_iter().chain(repairs).flatten().min();
                Ok(next.map_or(Next::OnEvent, Next::Within))
            }
            Err(error) if is_fatal(&error) => Err(error),
            Err(error) => {
                let wait = self.failed(&error);
                self.doubt_everything();
                self.announce(false);
                Ok(Next::After(wait))
            }
        }
    }
}

impl NetworkHalf {
    /// Takes the event that this machine's Node is now `given`, with or without subnets that it may use.
    fn own_node(&mut self, given: Option<Node>) {
        let usable = match &given {
            Some(node) => Some(self.subnets.of(node)),
            None => {
                self.subnets.forget();
                None
            }
        };
        let uid = |node: &Option<Node>| node.as_ref().map(|node| node.uid.clone());
        if uid(&self.given) != uid(&given) {
            self.announcer.node_changed(false);
            self.events.know_uid(&uid(&given).unwrap_or_default());
        }
        self.given = given;
        if self.own == usable {
            return;
        }
        self.overlay.apply(&self.config.node_name.as_str().into(), usable.as_ref());
        self.announcer.node_changed(usable.is_some());
        self.own = usable;
        self.look_again = Some(Instant::now());
    }

    fn note(&mut self, Drift { overlay, interfaces, host_routes, settings }: Drift) {
        if overlay || settings {
            self.overlay_repair.note();
        }
        if interfaces {
            self.look_again = Some(Instant::now());
        } else if host_routes && self.look_again.is_none() {
            self.look_again = Some(Instant::now() + HOST_INTERVAL);
        }
    }

    /// Notes a failure, and returns how long to wait until the next attempt.
    fn failed(&mut self, error: &anyhow::Error) -> Duration {
        let text = message::of(error);
        if self.retry.failures() == 0 {
            self.events.own_trouble(EventReason::NetworkIncomplete, &text);
        }
        self.board.failed(status::Half::Network, "program", &text);
        let wait = self.retry.failed();
        warn!(again_in = ?wait, "the pod network is not complete: {text}");
        wait
    }

    /// The next attempt takes nothing for granted.
    fn doubt_everything(&mut self) {
        self.try_again = None;
        self.overlay.invalidate();
        self.tables.invalidate();
        self.look_again = Some(Instant::now());
    }

    async fn program(&mut self) -> Result<()> {
        if self.try_again.is_some() && until(self.try_again).is_none() {
            self.doubt_everything();
        }
        match self.look_at_host().await {
            Err(error) if self.host.is_none() || is_fatal(&error) => return Err(error),
            // Peers are served by what was known of this machine.
            Err(error) => self.note_host_trouble(&error),
            Ok(()) => {}
        }
        let (overlay, tables) = (self.overlay_repair.is_due(), self.tables_repair.is_due());
        // What others change before anything stands is nothing that was broken.
        let repairing = (overlay || tables) && self.stands;
        if overlay {
            self.overlay.invalidate();
        }
        if tables {
            self.tables.invalidate();
        }
        let started = Instant::now();
        let touched = self.overlay.touched();
        let (ops, observed) = self.steps().await?;
        // One family, or one peer, that cannot be served does not keep the others from what they need.
        let report = self.netlink.run(&ops).await;
        self.tell_peers(touched, &report.failures);
        let undone = report.failures.len() + report.skipped.len();
        let refused = self.note_refusals(report, observed);
        let written = self.tables.write(&self.config.network, self.overlay.masquerade()).await;
        if let (Some(error), Err(_)) = (&refused, &written) {
            warn!("{error}");
        }
        let written = written?;
        if let Some(content) = self.overlay.subnet_env(self.config.network.masquerade) {
            subnet_file::write(&self.config.network.subnet_file, &content.render())?;
        }
        let (steps, took) =
            (ops.len().saturating_sub(undone) + written, format!("{:.1?}", started.elapsed()));
        let stood = self.stands;
        match refused {
            Some(error) if is_fatal(&error) => return Err(error),
            // A peer that comes meanwhile, or a repair, does not wait for what is in the way of the rest.
            Some(error) => {
                self.lacking = true;
                let wait = self.failed(&error);
                self.try_again.get_or_insert(Instant::now() + wait);
            }
            None => self.lacking &= !observed,
        }
        if !self.lacking {
            self.stands = true;
            self.complete(started.elapsed()).await;
        }
        match (repairing, observed, steps) {
            (true, _, 0) => {}
            (true, _, steps) => {
                self.tell_repairs(&ops, written);
                info!(steps, took, "what somebody else changed is as it was");
                let overlay = if overlay && !ops.is_empty() { self.overlay_repair.repaired() } else { None };
                let tables = if tables && written > 0 { self.tables_repair.repaired() } else { None };
                self.give_way(overlay.max(tables));
            }
            (false, true, 0) if undone > 0 || stood => {}
            (false, true, 0) => info!(took, "pod network stands as planned: nothing to change"),
            (false, true, steps) => info!(steps, took, "pod network programmed"),
            (false, false, 0) => {}
            (false, false, steps) => debug!(steps, took, "pod network changed"),
        }
        Ok(())
    }

    /// Notes the peers' entries that the kernel refused, to be tried again; returns what was refused of this node's own
    /// part, without which no peer is reached.
    fn note_refusals(&mut self, report: Report, everything: bool) -> Option<anyhow::Error> {
        let (of_peers, own): (Vec<_>, Vec<_>) =
            report.failures.into_iter().partition(|failure| failure.op.is_row());
        let texts: BTreeSet<String> = of_peers.iter().map(|failure| failure.error.to_string()).collect();
        for text in texts.difference(&self.refused).take(10) {
            warn!("{text}");
        }
        match everything {
            true => self.refused = texts,
            false => self.refused.extend(texts),
        }
        if !self.refused.is_empty() {
            self.try_again.get_or_insert(Instant::now() + LONGEST_WAIT);
        }
        let mut own = own.into_iter().map(|failure| failure.error);
        let first = own.next();
        own.take(10).for_each(|error| warn!("{error}"));
        first.map(Into::into)
    }

    /// Notes that everything stands, and lets the kubelet know.
    async fn complete(&mut self, took: Duration) {
        // Without a subnet, or the interface, nothing leads anywhere yet.
        if !self.leads_somewhere() {
            return self.board.waits(status::Half::Network);
        }
        self.board.programmed(status::Half::Network, took);
        if !self.cni.install(&self.config.network).await {
            self.try_again.get_or_insert(Instant::now() + CNI_INTERVAL);
        }
    }

    /// Whether this node's subnet and interface are known.
    fn leads_somewhere(&self) -> bool {
        self.overlay.subnet_env(self.config.network.masquerade).is_some()
    }

    /// What is to be done, and whether the kernel was looked at for it.
    async fn steps(&mut self) -> Result<(Vec<Op>, bool)> {
        // What stands goes on: it worked before somebody else's route came, and peers depend on it.
        let blocking = self.overlaps.iter().find(|overlap| overlap.severity() == Severity::Error);
        if let Some(blocking) = blocking.filter(|_| !self.stands) {
            bail!("{blocking}");
        }
        if let Some(ops) = self.overlay.changes() {
            return Ok((ops, false));
        }
        let observed = self.netlink.observe(&self.overlay.sought()).await?;
        let mut ops = self.overlay.reconcile(&observed);
        if self.listed == Listed::Partly {
            // What is not in the list may be in the part of it that could not be read.
            ops.retain(|op| !matches!(op, Op::RemoveNeighbour(..) | Op::RemoveFdb(..) | Op::RemoveRoute(..)));
        }
        Ok((ops, true))
    }

    /// Finds out what this machine contributes, anew when it or the own Node changed. Without a Node nothing would say
    /// which interface reaches the others, but where subnets are leased there is none.
    async fn look_at_host(&mut self) -> Result<()> {
        let is_known = self.own.is_some() || self.config.network.store() == Store::Etcd;
        if !is_known || self.look_again.is_none() || until(self.look_again).is_some() {
            return Ok(());
        }
        let choice = locate::choice(&self.config.network, &self.settings, self.own.as_ref())?;
        let host = self.netlink.host(&choice, &self.settings).await?;
        self.look_again = None;
        self.host_trouble = None;
        let overlaps = locate::host_overlaps(&self.settings, &host, self.own.as_ref(), &self.service_ranges);
        for overlap in overlaps.iter().filter(|overlap| !self.overlaps.contains(overlap)) {
            match overlap.severity() {
                Severity::Error => error!("{overlap}"),
                Severity::Warning => warn!("{overlap}"),
            }
            self.events.own_trouble(EventReason::RangeOverlap, &overlap.to_string());
        }
        self.overlaps = overlaps;
        if self.host.as_ref() == Some(&host) {
            return Ok(());
        }
        debug!(interface = host.external.name.as_str(), "external interface");
        self.announcer.lease(|| lease::attributes(&self.settings, &host));
        self.overlay.set_host(host.clone());
        if let Some(breakage) = self.overlay.offload_breakage() {
            info!("checksums of encapsulated packets are left to the kernel: {breakage}");
        }
        self.host = Some(host);
        Ok(())
    }

    fn note_host_trouble(&mut self, error: &anyhow::Error) {
        let text = message::of(error);
        if self.host_trouble.as_ref() != Some(&text) {
            warn!("{text}: what was known of this machine before holds");
            self.events.own_trouble(EventReason::InterfaceUnusable, &text);
        }
        self.host_trouble = Some(text);
        self.look_again = Some(Instant::now() + LONGEST_WAIT);
    }

    /// Says so when repairs are to be made more seldom.
    fn give_way(&self, wait: Option<Duration>) {
        if let Some(wait) = wait {
            warn!(again_in = ?wait, "{CONTENDED}");
            self.events.own_trouble(EventReason::NetworkContended, CONTENDED);
        }
    }

    /// Tells the cluster how this node is reached, and that its network works if all of it does.
    fn announce(&mut self, complete: bool) -> Option<Duration> {
        let annotations = self.overlay.annotations().into_iter();
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value)).collect();
        self.announcer.announce(annotations, complete && self.own.is_some() && self.leads_somewhere())
    }

    fn report_problems(&mut self) {
        let problems: BTreeSet<Problem> = self.overlay.problems().into_iter().collect();
        for problem in problems.difference(&self.problems) {
            warn!(node = %problem.node, "{problem}");
            self.events.problem(problem, &self.overlay);
        }
        for problem in self.problems.difference(&problems) {
            info!(node = %problem.node, "no longer: {problem}");
        }
        self.problems = problems;
        self.tell_own();
    }
}

/// How long it is until then, if that is to come.
fn until(due: Option<Instant>) -> Option<Duration> {
    due?.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
}

/// Only more rights, or an nft to run, would help.
fn is_fatal(error: &anyhow::Error) -> bool {
    let netlink = error.downcast_ref::<podway_netlink::Error>().map(podway_netlink::Error::recovery);
    let nftables = error.downcast_ref::<podway_nftables::Error>().map(podway_nftables::Error::recovery);
    netlink.or(nftables) == Some(Recovery::Fatal)
}

/// Removes links and routes with our mark (contract S22).
pub(crate) async fn remove_overlay() -> Result<()> {
    let report = Netlink::open()?.remove_all().await?;
    match report.failures.into_iter().next() {
        Some(failure) => Err(failure.error.into()),
        None => Ok(()),
    }
}
