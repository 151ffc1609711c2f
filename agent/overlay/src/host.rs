//! What this machine contributes: its interface, the addresses it publishes, its own routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::units::{ExternalInterface, Family, IfIndex, LinkName, Mac, PerFamily};

/// What this machine contributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The interface that reaches the other nodes.
    pub external: ExternalInterface,
    /// Addresses that peers are told instead of the interface's (contract N8).
    pub public: PerFamily<Option<IpAddr>>,
    /// MACs of VXLAN links that stand already ([`crate::Observed::device_macs`]).
    pub device_macs: PerFamily<Option<Mac>>,
    /// The machine's own routes of its main table, ours excluded (contract N6).
    pub routes: Vec<HostRoute>,
    /// The driver of the external interface, such as `vmxnet3`; `None` where there is none (contract N16).
    pub driver: Option<String>,
    /// Bridges, with their addresses of families whose packets netfilter does not see there (contract N19).
    pub unfiltered_bridges: Vec<(LinkName, IpNet)>,
}

/// One way of a route of the main table; a multipath route is one for each of its ways.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// Of two routes with one destination that of the lesser metric holds.
    pub metric: u32,
    /// The router in between.
    pub via: Option<IpAddr>,
    /// The link; `None` where packets end here (blackhole, unreachable and the like).
    pub link: Option<(IfIndex, LinkName)>,
}

impl Host {
    /// A machine of which no more is known than its interface.
    pub fn new(external: ExternalInterface) -> Self {
        Self {
            external,
            public: PerFamily::default(),
            device_macs: PerFamily::default(),
            routes: Vec::new(),
            driver: None,
            unfiltered_bridges: Vec::new(),
        }
    }

    /// The address of `family` that peers are told.
    pub fn published(&self, family: Family) -> Option<IpAddr> {
        self.public.get(family).or(self.external.address(family))
    }
}

/// Routes to be asked for the one that an address takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoutingTable {
    routes: BTreeMap<IpNet, BTreeSet<HostRoute>>,
}

impl RoutingTable {
    pub(crate) fn of(routes: &[HostRoute]) -> Self {
        let mut table = Self::default();
        for route in routes {
            table.routes.entry(route.destination.trunc()).or_default().insert(route.clone());
        }
        table
    }

    /// The link on which `address` is a neighbour: the longest prefix that holds it has exactly one route of the
    /// least metric, and that has no gateway (contract N6; flannel, pkg/ip/iface.go, DirectRouting).
    pub(crate) fn neighbour_link(&self, address: IpAddr) -> Option<&LinkName> {
        let mut best = self.best(address)?;
        match (best.next()?, best.next()) {
            (HostRoute { via: None, link: Some((_, name)), .. }, None) => Some(name),
            _ => None,
        }
    }

    /// Destinations whose routes are not the same in `other`.
    pub(crate) fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a IpNet> {
        let changed = self.routes.iter().filter(|(net, routes)| other.routes.get(net) != Some(routes));
        let new = other.routes.keys().filter(|net| !self.routes.contains_key(net));
        changed.map(|(net, _)| net).chain(new)
    }

    /// The routes of the least metric to the longest prefix that holds `address`.
    fn best(&self, address: IpAddr) -> Option<impl Iterator<Item = &HostRoute>> {
        let longest = IpNet::from(address).prefix_len();
        let routes = (0..=longest).rev().find_map(|length| {
            let net = IpNet::new(address, length).ok()?.trunc();
            self.routes.get(&net)
        })?;
        let metric = routes.iter().map(|route| route.metric).min()?;
        Some(routes.iter().filter(move |route| route.metric == metric))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n6_a_neighbour_is_reached_by_the_longest_prefix_through_one_route_without_gateway() {
        let table = RoutingTable::of(&[
            route("0.0.0.0/0", 0, Some("192.0.2.254"), Some("eth0")),
            route("192.0.2.0/24", 100, None, Some("eth0")),
            route("192.0.2.0/24", 200, Some("198.51.100.1"), Some("eth1")),
            route("192.0.2.64/26", 0, Some("192.0.2.1"), Some("eth0")),
            route("192.0.2.128/26", 0, None, None),
            route("198.51.100.0/24", 0, None, Some("eth1")),
            route("198.51.100.0/24", 0, None, Some("eth2")),
            route("2001:db8::/64", 256, None, Some("eth0")),
        ]);
        let link = |text: &str| table.neighbour_link(text.parse().unwrap()).map(LinkName::as_str);
        assert_eq!(link("192.0.2.7"), Some("eth0"), "the lesser metric holds");
        assert_eq!(link("2001:db8::7"), Some("eth0"));
        for (address, why) in [
            ("203.0.113.1", "the default route has a gateway"),
            ("192.0.2.65", "a longer prefix has a gateway"),
            ("192.0.2.129", "packets end here"),
            ("198.51.100.7", "two ways"),
            ("2001:db8:1::1", "no route"),
        ] {
            assert_eq!(link(address), None, "{why}");
        }
    }

    #[test]
    fn n6_only_destinations_whose_routes_changed_are_looked_at() {
        let before = [route("10.0.0.0/8", 0, None, Some("a")), route("192.0.2.0/24", 0, None, Some("eth0"))];
        let after =
            [route("192.0.2.0/24", 0, None, Some("eth0")), route("172.16.0.0/12", 0, None, Some("b"))];
        let (before, after) = (RoutingTable::of(&before), RoutingTable::of(&after));
        let changed: Vec<String> = before.differences(&after).map(ToString::to_string).collect();
        assert_eq!(changed, ["10.0.0.0/8", "172.16.0.0/12"]);
    }

    fn route(destination: &str, metric: u32, via: Option<&str>, link: Option<&str>) -> HostRoute {
        HostRoute {
            destination: destination.parse().unwrap(),
            metric,
            via: via.map(|via| via.parse().unwrap()),
            link: link.map(|name| (IfIndex(2), LinkName::new(name).unwrap())),
        }
    }
}
