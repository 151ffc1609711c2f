//! The network half: Nodes in; links, routes, neighbours, FDB entries, masquerade and flannel's files out.

mod announce;
mod firewall;
mod settings;
pub(crate) mod subnet_file;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podway_cluster::NodeWriter;
use podway_netlink::{InterfaceChoice, Netlink};
use podway_nftables::{NetworkRows, Ports};
use podway_overlay::{Family, Masquerade, Node, Op, Overlay, Peering, PerFamily, Problem};
use podway_reconcile::{Recovery, Retry};
use tracing::{debug, info, warn};

use self::announce::Announcer;
pub(crate) use self::firewall::Firewall;
pub(crate) use self::settings::overlay_settings;
use crate::config::Config;
use crate::message;
use crate::run::{Half, Listed, NetworkEvent, Next};

/// The longest wait between two attempts; a look at the links costs little.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Turns Nodes into the pod network of this one.
pub(crate) struct NetworkHalf {
    config: Config,
    overlay: Overlay,
    netlink: Netlink,
    firewall: Firewall,
    own: Option<Node>,
    /// The own Node as it was when the external interface was chosen.
    located: Option<Node>,
    listed: Listed,
    announcer: Announcer,
    problems: BTreeSet<Problem>,
    retry: Retry,
}

impl NetworkHalf {
    /// A half that writes nothing before the Nodes have been listed once. `writer` tells the cluster of this node.
    pub(crate) fn new(config: &Config, firewall: Firewall, writer: Option<NodeWriter>) -> Result<Self> {
        Ok(Self {
            overlay: Overlay::new(overlay_settings(config)?)?,
            netlink: Netlink::open()?,
            firewall,
            announcer: Announcer::new(
                writer.filter(|_| settings::peering(config) == Peering::Annotated),
                &config.node_name,
                config.network.node_condition,
            ),
            own: None,
            located: None,
            listed: Listed::Nothing,
            problems: BTreeSet::new(),
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
            NetworkEvent::Node(name, node) => {
                self.overlay.apply(&name, node.as_ref());
                if *name == *self.config.node_name {
                    self.announcer.node_changed(node.is_some());
                    self.own = node;
                }
            }
        }
    }

    async fn disturbed(&mut self) {
        self.firewall.disturbed().await;
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
        let written = match self.overlay.masquerade() {
            Some(masquerade) => {
                let forward = self.config.network.forward_accept;
                let passing = if forward { masquerade.pod_networks.clone() } else { Vec::new() };
                self.firewall.program(&self.masquerade_rows(masquerade), passing).await?
            }
            None => 0,
        };
        if let Some(content) = self.overlay.subnet_env(self.config.network.masquerade) {
            subnet_file::write(&self.config.network.subnet_file, &content.render())?;
        }
        let (steps, took) = (ops.len() + written, format!("{:.1?}", started.elapsed()));
        match (observed, steps) {
            (true, 0) => info!(took, "pod network stands as planned: nothing to change"),
            (true, steps) => info!(steps, took, "pod network programmed"),
            (false, 0) => {}
            (false, steps) => debug!(steps, took, "pod network changed"),
        }
        run
    }

    fn masquerade_rows(&self, of: Masquerade) -> NetworkRows {
        let config = &self.config.network;
        if !config.masquerade {
            return NetworkRows::default();
        }
        NetworkRows {
            pod_networks: of.pod_networks,
            own_subnets: of.own_subnets,
            non_masquerade: config.non_masquerade_cidrs.clone(),
            ports: if config.masquerade_random { Ports::Random } else { Ports::Kept },
        }
    }

    /// Finds out which interface reaches the other nodes, anew when the own Node changed.
    async fn locate(&mut self) -> Result<()> {
        if self.own.is_none() || self.located == self.own {
            return Ok(());
        }
        let host = self.netlink.host(&self.interface_choice()?, &overlay_settings(&self.config)?).await?;
        debug!(interface = host.external.name.as_str(), "external interface");
        self.overlay.set_host(host);
        self.located = self.own.clone();
        Ok(())
    }

    /// How the interface is chosen: as configured, but for the Node's own word (contract N8).
    fn interface_choice(&self) -> Result<InterfaceChoice> {
        let network = &self.config.network;
        let settings = overlay_settings(&self.config)?;
        let mut public =
            PerFamily { v4: network.public_ip.map(IpAddr::V4), v6: network.public_ipv6.map(IpAddr::V6) };
        for family in Family::BOTH {
            if let Some(address) = self.own.as_ref().and_then(|node| node.public_ip(family).transpose()) {
                *public.get_mut(family) = Some(address.context("annotation of this Node")?);
            }
        }
        let reach = Some(&network.interface_can_reach).filter(|text| !text.is_empty());
        Ok(InterfaceChoice {
            families: Family::BOTH.into_iter().filter(|family| settings.has(*family)).collect(),
            interfaces: network.interface.clone(),
            patterns: network.interface_regex.clone(),
            can_reach: reach.map(|text| text.parse()).transpose().context("network.interfaceCanReach")?,
            public,
            node_addresses: self.own.as_ref().map(|node| node.addresses.clone()).unwrap_or_default(),
        })
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

    /// Tells the cluster how this node is reached, and that its network works if all of it does.
    async fn announce(&mut self, complete: bool) -> Option<Duration> {
        let annotations = self.overlay.annotations().into_iter();
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value)).collect();
        self.announcer.announce(annotations, complete && self.located.is_some()).await
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
