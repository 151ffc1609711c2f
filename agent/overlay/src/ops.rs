//! Steps from what the kernel holds to what it should hold, in an order that never cuts off a peer that stays.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_reconcile::diff as delta;

use crate::observed::{LinkKind, LinkState, Observed};
use crate::plan::{FdbKey, NeighbourKey, OverlayPlan, Route, Rows, VxlanLink};
use crate::units::{Family, IfIndex, LinkName, Mac, Mtu, Vni};

/// One step. Each can be repeated: setting what is set and removing what is gone changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes a VXLAN link with our mark, down and without addresses.
    AddLink {
        /// Its name.
        name: LinkName,
        /// What it is to be.
        link: VxlanLink,
    },
    /// Changes a link in place; what is `None` stays. The mark is set in any case.
    SetLink {
        /// Its name.
        name: LinkName,
        /// The new MTU.
        mtu: Option<Mtu>,
        /// The new MAC; the kernel forgets the link's neighbours with it.
        mac: Option<Mac>,
        /// The new ends of its tunnels. A kernel that cannot change them in place loses the link, to be made again.
        tunnel: Option<Tunnel>,
        /// Whether it is taken out of the bridge, bond or VRF into which somebody put it.
        release: bool,
    },
    /// Brings a link up.
    LinkUp(LinkName),
    /// Removes a link, with everything on it.
    RemoveLink {
        /// Its name.
        name: LinkName,
        /// Why.
        why: WhyRemoved,
    },
    /// Gives a kernel setting the value that the pod network needs.
    SetSysctl(Sysctl),
    /// Adds an address to a link.
    AddAddress(LinkName, IpNet),
    /// Removes an address from a link.
    RemoveAddress(LinkName, IpNet),
    /// Adds or replaces an ARP or ND entry.
    SetNeighbour(NeighbourKey, Mac),
    /// Removes an ARP or ND entry.
    RemoveNeighbour(NeighbourKey),
    /// Adds or replaces a VXLAN forwarding entry.
    SetFdb(FdbKey, IpAddr),
    /// Removes a VXLAN forwarding entry to this address.
    RemoveFdb(FdbKey, IpAddr),
    /// Adds a route, or replaces one of ours or of flannel's.
    SetRoute(IpNet, Route),
    /// Removes this very route; one of anybody else that leads the same way stays.
    RemoveRoute(IpNet, Route, Whose),
    /// Adds a route of the greatest metric by which packets to this subnet lead nowhere.
    SetBlackhole(IpNet),
    /// Removes it.
    RemoveBlackhole(IpNet),
    /// Leaves the checksums of a VXLAN link to the network card, or to the kernel.
    SetOffload(LinkName, bool),
}

/// What of a VXLAN link the kernel changes in place, with its entries and routes left as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// VXLAN network identifier, by which the kernel knows it; it does not change.
    pub vni: Vni,
    /// Address that packets are sent from.
    pub local: IpAddr,
    /// Interface that packets are sent through.
    pub lower: IfIndex,
    /// Whether it learns FDB entries from what it receives.
    pub learning: bool,
}

/// Whose a route is, told by its protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// One of ours.
    Ours,
    /// One that flannel left on a link that is ours now.
    Flannels,
}

impl Op {
    /// Whether the step concerns one entry, and so one peer alone; entries of one kind have nothing to do with each other.
    pub fn is_row(&self) -> bool {
        matches!(
            self,
            Self::SetNeighbour(..)
                | Self::RemoveNeighbour(_)
                | Self::SetFdb(..)
                | Self::RemoveFdb(..)
                | Self::SetRoute(..)
                | Self::RemoveRoute(..)
        )
    }
}

/// Why a link is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyRemoved {
    /// All that is ours goes.
    CleanUp,
    /// It is ours and the plan has no use for it.
    Unwanted,
    /// It has the name of a link of ours and cannot become it in place; what does not fit.
    Unfit(String),
}

/// A kernel setting that the pod network needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    /// Packets of the family are forwarded (contract N19).
    Forwarding(Family),
    /// Those that come in by this link are too. Whoever sets [`Self::Forwarding`] sets it for every link.
    LinkForwarding(Family, LinkName),
    /// The link takes no router advertisements (contract N6).
    AcceptRa(LinkName),
    /// Packets of a source that is routed some other way are not dropped on the link: where peers change between VXLAN
    /// and plain routes the two directions differ for a while (contract N19). The kernel takes the greater of this and
    /// the setting of `all`, so that loose (2) holds in any case.
    RpFilter(LinkName),
    /// The interface takes router advertisements although this machine forwards. Without it the kernel drops the
    /// default route that it learnt from them when forwarding is switched on.
    KeepRa(LinkName),
}

impl Sysctl {
    /// The file below `/proc/sys`.
    pub fn path(&self) -> String {
        match self {
            Self::Forwarding(Family::V4) => "net/ipv4/ip_forward".to_owned(),
            Self::Forwarding(Family::V6) => "net/ipv6/conf/all/forwarding".to_owned(),
            Self::LinkForwarding(Family::V4, link) => format!("net/ipv4/conf/{link}/forwarding"),
            Self::LinkForwarding(Family::V6, link) => format!("net/ipv6/conf/{link}/forwarding"),
            Self::RpFilter(link) => format!("net/ipv4/conf/{link}/rp_filter"),
            Self::AcceptRa(link) | Self::KeepRa(link) => format!("net/ipv6/conf/{link}/accept_ra"),
        }
    }

    /// The value that it must have.
    pub fn wanted(&self) -> &'static str {
        match self {
            Self::Forwarding(_) | Self::LinkForwarding(..) => "1",
            Self::AcceptRa(_) => "0",
            Self::KeepRa(_) | Self::RpFilter(_) => "2",
        }
    }
}

/// The steps from `observed` to `plan`; none if the kernel already holds it, so that a restart changes nothing.
///
/// Order: routes that must go; links of ours that stand in the way of one that is wanted, or cannot become it; links
/// made or changed, their settings and addresses; links up; forwarding; then the entries; then links of ours that
/// nobody wants, from which routes have moved by now. Everything of a held family is left alone.
pub fn diff(plan: &OverlayPlan, observed: &Observed) -> Vec<Op> {
    let found = kept_rows(plan, observed);
    let mut ops = stale_flannel_routes(plan, observed);
    let (gone, rest): (Vec<Op>, Vec<Op>) =
        rows(&plan.rows, &found).into_iter().partition(|op| matches!(op, Op::RemoveRoute(..)));
    ops.extend(gone);
    let (in_the_way, idle) = unwanted_links(plan, observed);
    ops.extend(in_the_way);
    for name in plan.links.keys() {
        ops.extend(link_ops(plan, name, observed));
    }
    ops.extend(plan.forwarding.iter().flat_map(|family| forwarding_ops(plan, *family, observed)));
    ops.extend(rest);
    ops.extend(further_fdb(&found, observed));
    ops.extend(idle);
    ops.extend(blackhole_ops(plan, observed));
    ops
}

/// The steps that remove all that is ours, and nothing else: our routes, then the links with our mark, unless flannel
/// has them.
pub fn removal(observed: &Observed) -> Vec<Op> {
    let routes = observed
        .rows
        .routes
        .iter()
        .map(|(subnet, route)| Op::RemoveRoute(*subnet, route.clone(), Whose::Ours));
    let ours = observed.links.iter().filter(|(_, state)| state.ours && !observed.are_flannels());
    let links = ours.map(|(name, _)| Op::RemoveLink { name: name.clone(), why: WhyRemoved::CleanUp });
    let blackholes = observed.blackholes.iter().copied().map(Op::RemoveBlackhole);
    routes.chain(links).chain(blackholes).collect()
}

/// The steps from one set of entries to another.
///
/// A route stands only while its neighbour and FDB entry stand: routes that go are removed first; then come new
/// neighbours, FDB entries, routes (contract N6); what nothing leads to any more is removed last. A neighbour that
/// changes its MAC waits until the FDB knows the new one.
pub(crate) fn rows(wanted: &Rows, found: &Rows) -> Vec<Op> {
    let neighbours = delta(&wanted.neighbours, &found.neighbours);
    let fdb = delta(&wanted.fdb, &found.fdb);
    let routes = delta(&wanted.routes, &found.routes);
    let (changed, new): (Vec<_>, Vec<_>) =
        neighbours.set.into_iter().partition(|(key, _)| found.neighbours.contains_key(key));

    let mut ops = Vec::with_capacity(new.len() + changed.len() + fdb.len() + routes.len());
    let gone = routes.remove.iter().filter_map(|subnet| found.routes.get_key_value(subnet));
    ops.extend(gone.map(|(subnet, route)| Op::RemoveRoute(*subnet, route.clone(), Whose::Ours)));
    ops.extend(new.into_iter().map(|(key, mac)| Op::SetNeighbour(key, mac)));
    ops.extend(fdb.set.into_iter().map(|(key, underlay)| Op::SetFdb(key, underlay)));
    ops.extend(changed.into_iter().map(|(key, mac)| Op::SetNeighbour(key, mac)));
    ops.extend(routes.set.into_iter().map(|(subnet, route)| Op::SetRoute(subnet, route)));
    ops.extend(neighbours.remove.into_iter().map(Op::RemoveNeighbour));
    let gone = fdb.remove.iter().filter_map(|key| found.fdb.get_key_value(key));
    ops.extend(gone.map(|(key, underlay)| Op::RemoveFdb(key.clone(), *underlay)));
    ops
}

/// The entries that will still be there when the links are as planned: those of held families do not count, a link
/// that is removed takes its entries along, a new MAC takes the neighbours.
fn kept_rows(plan: &OverlayPlan, observed: &Observed) -> Rows {
    let going: BTreeSet<&LinkName> = observed
        .links
        .iter()
        .filter(|(name, state)| match plan.links.get(name) {
            Some(link) => state.mismatch(link).is_some(),
            None => true,
        })
        .map(|(name, _)| name)
        .collect();
    let mut found = observed.rows.of_links(|link| !going.contains(link) && !plan.holds(link));
    found.routes.retain(|subnet, _| {
        let repaired = observed.altered_routes.contains(subnet) && plan.rows.routes.contains_key(subnet);
        plan.held.get(Family::of(subnet)).is_none() && !repaired
    });
    found.neighbours.retain(|key, _| {
        let mac = observed.links.get(&key.link).and_then(|state| state.mac);
        plan.links.get(&key.link).is_some_and(|link| Some(link.mac) == mac)
    });
    found
}

/// Of entries that nothing leads to, every destination goes; the one that counts as the entry's is among the rows.
fn further_fdb(kept: &Rows, observed: &Observed) -> impl Iterator<Item = Op> {
    let further = observed.further_fdb.iter().filter(|(key, _)| kept.fdb.contains_key(key));
    further.map(|(key, underlay)| Op::RemoveFdb(key.clone(), *underlay))
}

fn stale_flannel_routes(plan: &OverlayPlan, observed: &Observed) -> Vec<Op> {
    let stale = observed.flannel_routes.iter().filter(|(subnet, route)| {
        plan.links.contains_key(&route.link) && !plan.rows.routes.contains_key(subnet)
    });
    stale.map(|(subnet, route)| Op::RemoveRoute(*subnet, route.clone(), Whose::Flannels)).collect()
}

/// Links of ours without a place in the plan: those whose VNI a planned link needs, and the others.
fn unwanted_links(plan: &OverlayPlan, observed: &Observed) -> (Vec<Op>, Vec<Op>) {
    let needed = |state: &LinkState| match &state.kind {
        LinkKind::Vxlan(found) => plan.links.values().any(|link| link.vni.get() == found.vni),
        LinkKind::Other(_) => false,
    };
    let unwanted = observed
        .links
        .iter()
        .filter(|(name, state)| state.ours && !plan.links.contains_key(name) && !plan.holds(name));
    let (in_the_way, idle): (Vec<_>, Vec<_>) = unwanted.partition(|(_, state)| needed(state));
    let remove =
        |(name, _): (&LinkName, &LinkState)| Op::RemoveLink { name: name.clone(), why: WhyRemoved::Unwanted };
    (in_the_way.into_iter().map(remove).collect(), idle.into_iter().map(remove).collect())
}

fn blackhole_ops(plan: &OverlayPlan, observed: &Observed) -> Vec<Op> {
    let missing = plan.blackholes.difference(&observed.blackholes).copied().map(Op::SetBlackhole);
    let stale = observed.blackholes.difference(&plan.blackholes);
    let stale = stale.filter(|subnet| plan.held.get(Family::of(subnet)).is_none());
    missing.chain(stale.copied().map(Op::RemoveBlackhole)).collect()
}

fn link_ops(plan: &OverlayPlan, name: &LinkName, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let link = &plan.links[name];
    let mut kept = observed.links.get(name);
    if let Some(why) = kept.and_then(|state| state.mismatch(link)) {
        ops.push(Op::RemoveLink { name: name.clone(), why: WhyRemoved::Unfit(why) });
        kept = None;
    }
    let Some(state) = kept else {
        ops.push(Op::AddLink { name: name.clone(), link: link.clone() });
        ops.push(Op::SetSysctl(Sysctl::AcceptRa(name.clone())));
        ops.extend(rp_filter(name, "default", link, observed));
        ops.extend(link.offload.map(|on| Op::SetOffload(name.clone(), on)));
        ops.push(Op::AddAddress(name.clone(), IpNet::from(link.address)));
        ops.push(Op::LinkUp(name.clone()));
        return ops;
    };
    ops.extend(changes_in_place(name, link, state));
    // A kernel without IPv6 has no such setting; a link that stands shows which kernel this is.
    let accept_ra = Sysctl::AcceptRa(name.clone());
    if observed.sysctls.contains_key(&accept_ra) {
        ops.extend(sysctl(accept_ra, observed));
    }
    ops.extend(rp_filter(name, name.as_str(), link, observed));
    if let (Some(wanted), Some(found)) = (link.offload, state.offload)
        && wanted != found
    {
        ops.push(Op::SetOffload(name.clone(), wanted));
    }
    ops.extend(address_ops(plan, name, state));
    if !state.up {
        ops.push(Op::LinkUp(name.clone()));
    }
    ops
}

/// Strict reverse path filtering (1) is loosened; none and loose stay. What holds for the link is the greater of the
/// settings of `all` and `of`, which is the link, or `default` for one that is yet to be made.
fn rp_filter(name: &LinkName, of: &str, link: &VxlanLink, observed: &Observed) -> Option<Op> {
    let read = |of: &str| {
        let setting = Sysctl::RpFilter(LinkName::new(of).ok()?);
        observed.sysctls.get(&setting)?.parse::<u8>().ok()
    };
    let strict = link.local.is_ipv4() && read(of).max(read("all")) == Some(1);
    strict.then(|| Op::SetSysctl(Sysctl::RpFilter(name.clone())))
}

/// The ends of the tunnels go first and alone: with them the kernel takes no MTU (vxlan_nl2conf), but makes the one
/// that stands fit the lower interface.
fn changes_in_place(name: &LinkName, link: &VxlanLink, state: &LinkState) -> Vec<Op> {
    let wanted = Tunnel { vni: link.vni, local: link.local, lower: link.lower, learning: link.learning };
    let tunnel = (!state.has(&wanted)).then_some(wanted);
    let mtu = (state.mtu != link.mtu).then_some(link.mtu);
    let mac = (state.mac != Some(link.mac)).then_some(link.mac);
    let release = state.enslaved;
    let set = |mtu, mac, tunnel, release| Op::SetLink { name: name.clone(), mtu, mac, tunnel, release };
    let ends = tunnel.map(|tunnel| set(None, None, Some(tunnel), false));
    let rest = mtu.is_some() || mac.is_some() || release || (!state.ours && ends.is_none());
    ends.into_iter().chain(rest.then(|| set(mtu, mac, None, release))).collect()
}

/// The new address comes before the old ones go: a link that loses its last address loses its routes. An IPv4
/// address that is no pod's stays, as flannel leaves it (contract N6).
fn address_ops(plan: &OverlayPlan, name: &LinkName, state: &LinkState) -> Vec<Op> {
    let wanted = IpNet::from(plan.links[name].address);
    let missing = (!state.addresses.contains(&wanted)).then(|| Op::AddAddress(name.clone(), wanted));
    let stale = |address: &IpNet| {
        Family::of(address) == Family::V6 || plan.pod_networks.iter().any(|net| net.contains(&address.addr()))
    };
    let others = state.addresses.iter().filter(|address| **address != wanted && stale(address));
    missing.into_iter().chain(others.map(|other| Op::RemoveAddress(name.clone(), *other))).collect()
}

/// An interface that takes router advertisements only while this machine does not forward would lose its default
/// route: those that have one are asked to go on taking them first.
fn forwarding_ops(plan: &OverlayPlan, family: Family, observed: &Observed) -> Vec<Op> {
    let switched: Vec<Op> = match sysctl(Sysctl::Forwarding(family), observed) {
        Some(everywhere) => vec![everywhere],
        None => {
            plan.forwarding_links(family).filter_map(|link| link_forwarding(family, link, observed)).collect()
        }
    };
    if switched.is_empty() {
        return switched;
    }
    let would_stop = observed.sysctls.iter().filter(|(setting, value)| {
        family == Family::V6 && matches!(setting, Sysctl::KeepRa(_)) && *value == "1"
    });
    would_stop.map(|(setting, _)| Op::SetSysctl(setting.clone())).chain(switched).collect()
}

/// A link that is yet to be made begins with the setting of `default`.
fn link_forwarding(family: Family, link: &LinkName, observed: &Observed) -> Option<Op> {
    let read = |link: &LinkName| observed.sysctls.get(&Sysctl::LinkForwarding(family, link.clone()));
    let value = read(link).or_else(|| read(&LinkName::new("default").ok()?))?;
    (value == "0").then(|| Op::SetSysctl(Sysctl::LinkForwarding(family, link.clone())))
}

fn sysctl(sysctl: Sysctl, observed: &Observed) -> Option<Op> {
    let value = observed.sysctls.get(&sysctl).map(String::as_str);
    (value != Some(sysctl.wanted())).then_some(Op::SetSysctl(sysctl))
}
