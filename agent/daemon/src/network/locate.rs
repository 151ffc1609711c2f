//! Which interface reaches the other nodes, and whether the pods' ranges leave room for what this machine has.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::IpNet;
use podway_netlink::InterfaceChoice;
use podway_overlay::{
    Addressing, Family, Host, HostNet, HostRoute, Node, Overlap, PerFamily, Settings, overlaps,
};

use crate::config::NetworkConfig;

/// How the interface is chosen: as configured, but for the Node's own word (contract N8).
pub(super) fn choice(
    network: &NetworkConfig,
    settings: &Settings,
    own: Option<&Node>,
) -> Result<InterfaceChoice> {
    let mut public =
        PerFamily { v4: network.public_ip.map(IpAddr::V4), v6: network.public_ipv6.map(IpAddr::V6) };
    for family in Family::BOTH {
        if let Some(address) = own.and_then(|node| node.public_ip(family).transpose()) {
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
        node_addresses: own.map(|node| node.addresses.clone()).unwrap_or_default(),
    })
}

/// What of the pods' and the Services' ranges is used for something else, as far as this machine knows (contracts N14,
/// N23), worst first. Other nodes' addresses are [`podway_overlay::Overlay`]'s matter.
///
/// Only routes that lead away count, through a router or the external interface: what else stands inside the own
/// subnet are pods, or the bridge that a CNI plugin has for them.
pub(super) fn host_overlaps(
    settings: &Settings,
    host: &Host,
    own: Option<&Node>,
    service_ranges: &[IpNet],
) -> Vec<Overlap> {
    let external = host.external.index;
    let leads_away = |route: &&HostRoute| {
        route.via.is_some() || route.link.as_ref().is_some_and(|(index, _)| *index == external)
    };
    let own_subnets = own.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    let addresses = Family::BOTH.into_iter().filter_map(|family| host.external.address(family));
    overlaps(&Addressing {
        pod_networks: settings.pod_networks.clone(),
        own_subnets,
        service_ranges: service_ranges.to_vec(),
        host: host.routes.iter().filter(leads_away).map(described).collect(),
        nodes: addresses.map(|address| (settings.node.clone(), address)).collect(),
    })
}

fn described(route: &HostRoute) -> HostNet {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let dev = route.link.as_ref().map(|(_, link)| format!(" dev {link}")).unwrap_or_default();
    let what: Arc<str> = format!("route {}{via}{dev}", route.destination).into();
    HostNet { net: route.destination, what, ours: false }
}

#[cfg(test)]
mod tests {
    use podway_overlay::{ExternalInterface, IfIndex, LinkName, Mtu, Peering, Severity};

    use super::*;

    #[test]
    fn n14_a_route_that_leads_away_from_the_own_subnet_is_an_error_and_a_bridge_of_pods_is_none() {
        let external = ExternalInterface {
            index: IfIndex(2),
            name: LinkName::new("eth0").unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            v4: Some([192, 0, 2, 11].into()),
            v6: None,
        };
        let route = |destination: &str, via: Option<&str>, index, link: &str| HostRoute {
            destination: destination.parse().unwrap(),
            metric: 0,
            via: via.map(|via| via.parse().unwrap()),
            link: Some((IfIndex(index), LinkName::new(link).unwrap())),
        };
        let settings = Settings::new("a", vec!["10.244.0.0/16".parse().unwrap()], Peering::Annotated);
        let own = Node { pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], ..Node::default() };
        let found = |routes: Vec<HostRoute>| {
            let host = Host { routes, ..Host::new(external.clone()) };
            host_overlaps(&settings, &host, Some(&own), &[]).first().map(Overlap::severity)
        };
        let bridge = route("10.244.1.0/24", None, 5, "cni0");
        let underlay = route("192.0.2.0/24", None, 2, "eth0");
        assert_eq!(found(vec![bridge.clone(), underlay]), None);
        let vpn = route("10.244.1.128/25", Some("192.0.2.1"), 2, "eth0");
        assert_eq!(found(vec![bridge, vpn]), Some(Severity::Error));
        assert_eq!(found(vec![route("10.244.9.0/24", None, 2, "eth0")]), Some(Severity::Warning));
    }

    #[test]
    fn n23_services_that_overlap_pods_or_the_host_are_named_and_forbid_nothing() {
        let external = ExternalInterface {
            index: IfIndex(2),
            name: LinkName::new("eth0").unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            v4: Some([10, 100, 0, 11].into()),
            v6: None,
        };
        let settings = Settings::new("a", vec!["10.96.0.0/14".parse().unwrap()], Peering::Annotated);
        let own = Node { pod_cidrs: vec!["10.97.1.0/24".parse().unwrap()], ..Node::default() };
        let services = ["10.96.0.0/12".parse().unwrap()];
        let found = host_overlaps(&settings, &Host::new(external), Some(&own), &services);
        assert!(found.iter().all(|overlap| overlap.severity() == Severity::Warning));
        let said: Vec<String> = found.iter().map(ToString::to_string).collect();
        for named in [
            "this node's subnet 10.97.1.0/24 lies within Service range 10.96.0.0/12",
            "Service range 10.96.0.0/12 contains address 10.100.0.11 of Node a",
        ] {
            assert!(said.iter().any(|said| said.starts_with(named)), "{named}: {said:#?}");
        }
    }
}
