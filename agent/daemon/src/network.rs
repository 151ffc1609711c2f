//! The network half: Nodes in; links, routes, neighbours, FDB entries, masquerade and flannel's files out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use podway_cluster::{NodeWriter, SourceConfig};
use podway_netlink::{InterfaceChoice, Netlink};
use podway_nftables::{Network, NetworkRows, Ports};
use podway_overlay::{
    Host, LinkName, Masquerade, Mtu, Node, Observed, Op, Overlay, Peering, Problem, Settings, Vni,
};
use podway_reconcile::{Recovery, Retry};
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::message;
use crate::run::{Half, Listed, NetworkEvent, Next};

/// The longest wait between two attempts; a look at the links costs little.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long the API server may take to note this node's part; it is asked again later.
const ANNOTATE_DEADLINE: Duration = Duration::from_secs(5);

/// Turns Nodes into the pod network of this one.
pub(crate) struct NetworkHalf {
    config: Config,
    overlay: Overlay,
    netlink: Netlink,
    masquerade: Network,
    writer: Option<NodeWriter>,
    own: Option<Node>,
    /// The own Node as it was when the external interface was chosen.
    located: Option<Node>,
    listed: Listed,
    /// Annotations that were written and that the Node has not shown yet.
    told: BTreeMap<String, String>,
    /// Whether the Node was told that its network works.
    available: bool,
    /// When the API server is to be told again, after it could not be.
    tell_again: Option<Instant>,
    problems: BTreeSet<Problem>,
    retry: Retry,
    tell_retry: Retry,
}

impl NetworkHalf {
    /// A half that writes nothing before the Nodes have been listed once. `writer` tells the cluster of this node.
    pub(crate) fn new(config: &Config, masquerade: Network, writer: Option<NodeWriter>) -> Result<Self> {
        Ok(Self {
            overlay: Overlay::new(overlay_settings(config)?)?,
            netlink: Netlink::open()?,
            masquerade,
            writer: writer.filter(|_| peering(config) == Peering::Annotated),
            own: None,
            located: None,
            listed: Listed::Nothing,
            told: BTreeMap::new(),
            available: false,
            tell_again: None,
            problems: BTreeSet::new(),
            retry: Retry::new(Duration::from_millis(100), LONGEST_WAIT),
            tell_retry: Retry::new(Duration::from_secs(1), Duration::from_secs(60)),
            config: config.clone(),
        })
    }
}

/// The pod network as configured.
pub(crate) fn overlay_settings(config: &Config) -> Result<Settings> {
    let network = &config.network;
    let mut settings = Settings::new(&config.node_name, network.pod_networks.clone(), peering(config));
    settings.vni = Vni::new(network.vni).context("network.vni")?;
    settings.port = network.port;
    settings.mtu = match network.mtu {
        0 => None,
        mtu => Some(Mtu::new(mtu).context("network.mtu")?),
    };
    Ok(settings)
}

/// Nodes of an API server tell each other their part by annotations; files are written by nobody but their owner.
fn peering(config: &Config) -> Peering {
    match (&config.source, config.network.nodes.as_os_str().is_empty()) {
        (SourceConfig::Kube(_), true) => Peering::Annotated,
        _ => Peering::Derived,
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
            NetworkEvent::Node(name, node) => {
                self.overlay.apply(&name, node.as_ref());
                if *name == *self.config.node_name {
                    // A Node that is registered anew has neither annotations nor conditions.
                    self.available &= node.is_some();
                    self.own = node;
                    self.told.clear();
                }
            }
        }
    }

    async fn reconcile(&mut self) -> Result<Next> {
        if self.listed == Listed::Nothing {
            return Ok(Next::OnEvent);
        }
        let result = self.program().await;
        self.report_problems();
        match result {
            Ok(()) => {
                self.retry.succeeded();
                Ok(self.announce(true).await.map_or(Next::OnEvent, Next::Within))
            }
            Err(error) if is_fatal(&error) => Err(error),
            Err(error) => {
                self.announce(false).await;
                self.overlay.invalidate();
                self.located = None;
                let wait = self.retry.failed();
                warn!(again_in = ?wait, "the pod network is not complete: {}", message::of(&error));
                Ok(Next::After(wait))
            }
        }
    }
}

impl NetworkHalf {
    async fn program(&mut self) -> Result<()> {
        self.locate().await?;
        let started = Instant::now();
        let changes = self.overlay.changes();
        let observed = changes.is_none();
        let ops = match changes {
            Some(ops) => ops,
            None => {
                let observed = self.netlink.observe(&self.overlay.link_names()).await?;
                let mut ops = self.overlay.reconcile(&observed);
                if self.listed == Listed::Partly {
                    // What is not in the list may be in the part of it that could not be read.
                    ops.retain(|op| {
                        !matches!(op, Op::RemoveNeighbour(..) | Op::RemoveFdb(..) | Op::RemoveRoute(..))
                    });
                }
                ops
            }
        };
        // One family, or one peer, that cannot be served does not keep the others from what they need.
        let run = self.run(&ops).await;
        let written = match self.masquerade_rows() {
            Some(rows) => self.masquerade.replace(&rows).await?,
            None => 0,
        };
        self.write_subnet_file()?;
        let (steps, took) = (ops.len() + written, format!("{:.1?}", started.elapsed()));
        match (observed, steps) {
            (true, 0) => info!(took, "pod network stands as planned: nothing to change"),
            (true, steps) => info!(steps, took, "pod network programmed"),
            (false, 0) => {}
            (false, steps) => debug!(steps, took, "pod network changed"),
        }
        run
    }

    /// `None` as long as this node's subnets are not known.
    fn masquerade_rows(&self) -> Option<NetworkRows> {
        let config = &self.config.network;
        if !config.masquerade {
            return Some(NetworkRows::default());
        }
        let Masquerade { pod_networks, own_subnets } = self.overlay.masquerade()?;
        let non_masquerade = config.non_masquerade_cidrs.clone();
        let ports = if config.masquerade_random { Ports::Random } else { Ports::Kept };
        Some(NetworkRows { pod_networks, own_subnets, non_masquerade, ports })
    }

    /// Finds out which interface reaches the other nodes, anew when the own Node changed.
    async fn locate(&mut self) -> Result<()> {
        if self.own.is_none() || self.located == self.own {
            return Ok(());
        }
        let external = self.external_interface().await?;
        let observed: Observed = self.netlink.observe(&self.overlay.link_names()).await?;
        debug!(interface = external.name.as_str(), "external interface");
        let device_macs = observed.device_macs(&overlay_settings(&self.config)?);
        self.overlay.set_host(Host { external, device_macs });
        self.located = self.own.clone();
        Ok(())
    }

    /// The configured one, else the one with an address of the own Node, else that of the default route.
    async fn external_interface(&self) -> Result<podway_overlay::ExternalInterface> {
        if let Some(name) = self.config.network.interface.first() {
            let name = LinkName::new(name).context("network.interface")?;
            return Ok(self.netlink.external_interface(&InterfaceChoice::Name(name)).await?);
        }
        let addresses: &[IpAddr] = self.own.as_ref().map_or(&[], |node| &node.addresses);
        for address in addresses {
            match self.netlink.external_interface(&InterfaceChoice::Owner(*address)).await {
                Err(podway_netlink::Error::NoOwner(_)) => {}
                found => return Ok(found?),
            }
        }
        Ok(self.netlink.external_interface(&InterfaceChoice::DefaultRoute).await?)
    }

    async fn run(&self, ops: &[Op]) -> Result<()> {
        let report = self.netlink.run(ops).await;
        let mut failures = report.failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        for failure in failures.take(10) {
            warn!("{}", failure.error);
        }
        Err(first.error.into())
    }

    /// flannel's CNI plugin reads it (contract N9). Written beside and renamed, so that nobody reads half of it.
    fn write_subnet_file(&self) -> Result<()> {
        let path = &self.config.network.subnet_file;
        let Some(content) = self.overlay.subnet_env(self.config.network.masquerade) else { return Ok(()) };
        let content = content.render();
        if path.as_os_str().is_empty() || fs::read_to_string(path).is_ok_and(|held| held == content) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder)?;
            let beside = folder.join(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
            fs::write(&beside, &content)?;
            fs::rename(&beside, path)
        };
        write().with_context(|| format!("network.subnetFile {}", path.display()))
    }

    /// Tells the cluster how this node is reached, and that its network works if all of it does. The pod network does
    /// not depend on it: after a failure returns when to try again, whatever happens meanwhile.
    async fn announce(&mut self, complete: bool) -> Option<Duration> {
        if let Some(due) = self.tell_again
            && let Some(wait) = due.checked_duration_since(Instant::now())
        {
            return Some(wait);
        }
        match self.tell(complete).await {
            Ok(()) => {
                self.tell_retry.succeeded();
                self.tell_again = None;
            }
            Err(error) => {
                let wait = self.tell_retry.failed();
                warn!(again_in = ?wait, "other nodes do not learn of this one: {}", message::of(&error));
                self.tell_again = Some(Instant::now() + wait);
            }
        }
        self.tell_again.map(|due| due.saturating_duration_since(Instant::now()))
    }

    async fn tell(&mut self, complete: bool) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let node = &self.config.node_name;
        let annotations = self.overlay.annotations().into_iter().map(|(key, value)| (key.to_owned(), value));
        let annotations: BTreeMap<String, String> = annotations.collect();
        if !annotations.is_empty() && annotations != self.told {
            let written = tokio::time::timeout(ANNOTATE_DEADLINE, writer.annotate(node, &annotations)).await;
            written.context("the API server does not answer")?.context("annotations of this Node")?;
            info!(node, "this node's part of the pod network is announced");
            self.told = annotations;
        }
        if complete && !self.available && self.located.is_some() {
            let now = SystemTime::now();
            let written = tokio::time::timeout(ANNOTATE_DEADLINE, writer.network_available(node, now)).await;
            written
                .context("the API server does not answer")?
                .context("condition NetworkUnavailable of this Node")?;
            self.available = true;
        }
        Ok(())
    }

    fn report_problems(&mut self) {
        let problems: BTreeSet<Problem> = self.overlay.problems().into_iter().collect();
        for problem in problems.difference(&self.problems) {
            warn!(node = %problem.node, "{problem}");
        }
        for problem in self.problems.difference(&problems) {
            info!(node = %problem.node, "no longer: {problem}");
        }
        self.problems = problems;
    }
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

/// Removes the file for flannel's CNI plugin, if podway's links show that it runs the pod network here; a flannel
/// beside a podway that only runs Services keeps its own (contract S22). To be called before the links go.
pub(crate) async fn remove_subnet_file(config: &Config) -> Result<()> {
    let path = &config.network.subnet_file;
    let names = Overlay::new(overlay_settings(config)?)?.link_names();
    let observed = Netlink::open()?.observe(&names).await?;
    if !observed.links.values().any(|link| link.ours) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !path.as_os_str().is_empty() => {
            bail!("{}: {error}", path.display())
        }
        _ => Ok(()),
    }
}
