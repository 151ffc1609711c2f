//! What the kernel should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::problem::Problem;
use crate::units::{Family, IfIndex, LinkName, Mac, Mtu, PerFamily, Vni};

/// The pod network of one node as the kernel should hold it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OverlayPlan {
    /// The VXLAN links, one for each family that works.
    pub links: BTreeMap<LinkName, VxlanLink>,
    /// Neighbours, FDB entries and routes, three for each peer and family.
    pub rows: Rows,
    /// Families that are on but cannot be planned, for want of a subnet or an address, with the links that they would
    /// have: what stands of them is left as it is (contract N20).
    pub held: PerFamily<Option<Held>>,
    /// Subnets whose unused addresses lead nowhere: routes that any other to the same subnet comes before (contract
    /// N22).
    pub blackholes: BTreeSet<IpNet>,
    /// All addresses of pods: other IPv4 addresses that a link has among them are stale.
    pub pod_networks: Vec<IpNet>,
    /// The families whose packets must be forwarded (contract N19).
    pub forwarding: BTreeSet<Family>,
    /// The external interface, once it is known: packets to pods come in by it.
    pub external: Option<LinkName>,
    /// What is wrong, in the order of the Nodes' names.
    pub problems: Vec<Problem>,
}

/// What is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The VXLAN link that the family would have.
    pub link: Option<LinkName>,
}

/// A VXLAN link. IPv4 pods go over IPv4, IPv6 pods over IPv6, so there is one link a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanLink {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port, ours and the peers'.
    pub port: u16,
    /// MTU of the inner packets.
    pub mtu: Mtu,
    /// The VTEP MAC that peers send to.
    pub mac: Mac,
    /// Address that packets are sent from.
    pub local: IpAddr,
    /// Interface that packets are sent through.
    pub lower: IfIndex,
    /// The network address of the own subnet, as /32 or /128: source of packets from this host to pods elsewhere.
    pub address: IpAddr,
    /// Whether it learns FDB entries from what it receives.
    pub learning: bool,
    /// Whether it carries group policy marks.
    pub gbp: bool,
    /// Whether checksums are left to the network card (`tx-checksum-ip-generic`); `None`: as it is (contract N16).
    pub offload: Option<bool>,
}

/// The entries that lead to peers. A peer behind VXLAN has one in each table, under keys that it shares with no
/// other; a peer reached directly has a route alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// ARP and ND entries: the peer's VTEP MAC for the gateway of its route.
    pub neighbours: BTreeMap<NeighbourKey, Mac>,
    /// VXLAN forwarding entries: the peer's underlay address for its VTEP MAC.
    pub fdb: BTreeMap<FdbKey, IpAddr>,
    /// Routes to the peers' subnets.
    pub routes: BTreeMap<IpNet, Route>,
}

/// Key of an ARP or ND entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The link it belongs to.
    pub link: LinkName,
    /// The address that is resolved.
    pub address: IpAddr,
}

/// Key of a VXLAN forwarding entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// The link it belongs to.
    pub link: LinkName,
    /// The inner destination MAC.
    pub mac: Mac,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The gateway.
    pub via: IpAddr,
    /// The link the gateway is on.
    pub link: LinkName,
    /// The gateway is taken to be on the link though no address of the link says so.
    pub onlink: bool,
}

/// How a peer's pods of one family are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// In VXLAN packets.
    Vxlan { subnet: IpNet, link: LinkName, mac: Mac, underlay: IpAddr },
    /// By a plain route: the peer is a neighbour.
    Direct { subnet: IpNet, link: LinkName, via: IpAddr },
}

/// How packets reach the pods of a peer, to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The peer's pod subnet.
    pub subnet: IpNet,
    /// The peer's address.
    pub underlay: IpAddr,
    /// The peer's VTEP MAC; `None` where packets go as they are.
    pub mac: Option<Mac>,
}

impl Path {
    pub(crate) fn of(way: &Way) -> Self {
        match *way {
            Way::Vxlan { subnet, mac, underlay, .. } => Self { subnet, underlay, mac: Some(mac) },
            Way::Direct { subnet, via, .. } => Self { subnet, underlay: via, mac: None },
        }
    }
}

/// What the rules that masquerade pod traffic must know (contract N10).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Masquerade {
    /// All addresses of pods, of whatever node.
    pub pod_networks: Vec<IpNet>,
    /// The subnets of this node's pods.
    pub own_subnets: Vec<IpNet>,
}

impl OverlayPlan {
    /// The links by which packets of `family` to pods come in.
    pub(crate) fn forwarding_links(&self, family: Family) -> impl Iterator<Item = &LinkName> {
        let tunnels = self.links.iter().filter(move |(_, link)| family.has(link.local));
        tunnels.map(|(name, _)| name).chain(&self.external)
    }

    /// Whether the link is of a family that is left as it is.
    pub(crate) fn holds(&self, link: &LinkName) -> bool {
        self.held.iter().any(|(_, held)| held.link.as_ref() == Some(link))
    }
}

impl Rows {
    /// Adds the rows that lead to a peer.
    pub(crate) fn insert(&mut self, way: &Way) {
        match way {
            Way::Vxlan { subnet, link, mac, underlay } => {
                let (via, link, mac) = (subnet.network(), link.clone(), *mac);
                self.neighbours.insert(NeighbourKey { link: link.clone(), address: via }, mac);
                self.fdb.insert(FdbKey { link: link.clone(), mac }, *underlay);
                self.routes.insert(*subnet, Route { via, link, onlink: true });
            }
            Way::Direct { subnet, link, via } => {
                self.routes.insert(*subnet, Route { via: *via, link: link.clone(), onlink: false });
            }
        }
    }

    /// The rows of the links for which `keep` holds.
    pub(crate) fn of_links(&self, keep: impl Fn(&LinkName) -> bool) -> Self {
        let mut kept = self.clone();
        kept.neighbours.retain(|key, _| keep(&key.link));
        kept.fdb.retain(|key, _| keep(&key.link));
        kept.routes.retain(|_, route| keep(&route.link));
        kept
    }
}
