//! The shop raised: nodes and pods as network namespaces, a server in each pod, a podway on each node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podway_testkit::{Lab, Node, Pod, Probe, Process, within};

use crate::cluster::{Cluster, SourceKind};
use crate::node_state::{NodeState, Witness};
use crate::podway::{Dataplane, Podway, READY_DEADLINE};
use crate::require;
use crate::screen::Screen;
use crate::shop::Shop;

/// Everything that the steps work with.
pub(crate) struct Stage<'lab> {
    pub(crate) lab: &'lab Lab,
    pub(crate) shop: Shop,
    pub(crate) cluster: Cluster,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) podways: BTreeMap<String, Podway>,
    /// Each node before podway first ran there.
    pub(crate) untouched: BTreeMap<String, NodeState>,
    /// Counts connections to Service addresses that pods of the shopper's node begin.
    pub(crate) witness: Witness,
    /// From the start of the daemons to the first answer from every endpoint.
    pub(crate) ready_after: Duration,
    _servers: Vec<Process>,
}

impl<'lab> Stage<'lab> {
    /// Raises the shop and waits until it is open.
    pub(crate) fn raise(lab: &'lab Lab, kind: SourceKind, screen: &Screen) -> Result<Self> {
        let shop = Shop::embedded()?;
        let nodes = raise_nodes(lab, &shop)?;
        let pods = screen.wait("raising three nodes with their pods", || raise_pods(&shop, &nodes))?;
        let servers = serve(&shop, &pods)?;
        let shoppers_node = &nodes[pods["shopper"].node_name()];
        let witness = Witness::install(shoppers_node, &shop)?;
        let untouched = nodes.iter().map(|(name, node)| Ok((name.clone(), NodeState::read(node)?)));
        let untouched = untouched.collect::<Result<_>>()?;
        let cluster = Cluster::raise(lab, kind, screen)?;
        cluster.publish(&shop)?;
        let podways = nodes.iter().map(|(name, node)| (name.clone(), Podway::new(node, cluster.source())));
        let podways = podways.collect();
        let mut stage = Self {
            lab,
            shop,
            cluster,
            nodes,
            pods,
            podways,
            untouched,
            witness,
            ready_after: Duration::ZERO,
            _servers: servers,
        };
        screen.wait("starting a podway on each node", || stage.open())?;
        Ok(stage)
    }

    pub(crate) fn shopper(&self) -> &Pod {
        &self.pods["shopper"]
    }

    /// The node that the shopper is on.
    pub(crate) fn shoppers_node(&self) -> &Node {
        &self.nodes[self.shopper().node_name()]
    }

    pub(crate) fn podway(&mut self, node: &str) -> Result<&mut Podway> {
        self.podways.get_mut(node).with_context(|| format!("no node {node}"))
    }

    /// Waits until the shopper is answered by every endpoint of `web`, over both families.
    pub(crate) fn wait_until_open(&self) -> Result<()> {
        let web = self.shop.service("web")?;
        for address in [web.ipv4()?, web.ipv6()?] {
            within(READY_DEADLINE, &format!("all pods of web behind {address}"), || {
                let answers = self.shopper().send(Probe::tcp(address).count(30))?;
                require(answers.all_answered() && answers.by_name().len() == 3, || answers.to_string())
            })?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let started = Instant::now();
        for podway in self.podways.values_mut() {
            podway.start(Dataplane::Nftables)?;
        }
        self.podways.values().try_for_each(Podway::wait_until_programmed)?;
        self.wait_until_open()?;
        self.ready_after = started.elapsed();
        Ok(())
    }
}

fn raise_nodes(lab: &Lab, shop: &Shop) -> Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    for described in shop.nodes()? {
        let node = lab.node(&described.name)?;
        require(node.addresses() == described.internal_ips, || {
            format!("manifests/demo/nodes.yaml gives {} other addresses than it has here", described.name)
        })?;
        nodes.insert(described.name, node);
    }
    Ok(nodes)
}

fn raise_pods(shop: &Shop, nodes: &BTreeMap<String, Node>) -> Result<BTreeMap<String, Pod>> {
    let mut pods = BTreeMap::new();
    for described in shop.pods()? {
        let node = nodes.get(&described.node).with_context(|| format!("no node {}", described.node))?;
        let pod = node.pod(&described.name, &described.addresses)?;
        pods.insert(described.name, pod);
    }
    Ok(pods)
}

/// Starts a server in every pod that an EndpointSlice names.
fn serve(shop: &Shop, pods: &BTreeMap<String, Pod>) -> Result<Vec<Process>> {
    let ports = shop.endpoints()?.into_iter().map(|endpoint| (endpoint.pod, endpoint.address.port()));
    let ports: BTreeMap<String, u16> = ports.collect();
    let serve = |(name, port): (String, u16)| {
        pods.get(&name).with_context(|| format!("no pod {name}"))?.serve(&name, port)
    };
    ports.into_iter().map(serve).collect()
}
