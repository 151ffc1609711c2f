//! Which endpoints a Service port has, and which of them are used.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::{Endpoint, EndpointSlice, NodeContext, ObjectName, ServicePort};

/// The endpoints of one Service port in one family, by address and port.
pub type MergedEndpoints<'a> = BTreeMap<SocketAddr, &'a Endpoint>;

/// Merges what all slices of a Service say about one of its ports (contract S2, S3).
///
/// - A slice port belongs to the Service port of the same name and protocol; numbers are not compared.
/// - Of several entries with one address and port, one that is not terminating beats one that is, else the newest
///   slice wins, else the slice whose name sorts last: an endpoint that moves between slices is never lost.
///
/// Kubernetes: `pkg/proxy/endpointslicecache.go`.
pub fn merge_slices<'a>(
    slices: impl IntoIterator<Item = (&'a ObjectName, &'a EndpointSlice)>,
    port: &ServicePort,
    ipv6: bool,
) -> MergedEndpoints<'a> {
    let mut ranked = BTreeMap::new();
    for (name, slice) in slices {
        let numbers = slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol);
        for number in numbers.map(|it| it.port) {
            for endpoint in slice.endpoints.iter().filter(|it| it.address.is_ipv6() == ipv6) {
                let rank = (!endpoint.terminating, slice.created, name);
                let entry =
                    ranked.entry(SocketAddr::new(endpoint.address, number)).or_insert((rank, endpoint));
                if entry.0 < rank {
                    *entry = (rank, endpoint);
                }
            }
        }
    }
    ranked.into_iter().map(|(address, (_, endpoint))| (address, endpoint)).collect()
}

/// The endpoints that a Service port's frontends may use, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointChoice {
    /// Under policy Cluster.
    pub cluster: Vec<SocketAddr>,
    /// Under policy Local.
    pub local: Vec<SocketAddr>,
    /// Whether any endpoint of the cluster, on whichever node, could answer: decides between reject and drop where a
    /// set is empty (contract S27).
    pub any_usable: bool,
    /// Those of either set that are on this node: they may meet themselves (hairpin).
    pub on_this_node: Vec<SocketAddr>,
}

/// Chooses the endpoints of one Service port for the node that asks (contract S5, S8, S27).
///
/// Cluster set, the first of these that is not empty:
/// 1. ready endpoints, narrowed by hints as below;
/// 2. endpoints that are serving and terminating, hints ignored.
///
/// Local set, the first of these that is not empty, whatever other nodes have:
/// 1. ready endpoints on this node;
/// 2. serving and terminating endpoints on this node.
///
/// Hints narrow the ready endpoints to those for this node if every ready endpoint has node hints and at least one
/// names us; else to those for our zone if every ready endpoint has zone hints and at least one names it; else
/// nothing is narrowed. An endpoint that is neither ready nor serving and terminating is never used.
///
/// Kubernetes: `CategorizeEndpoints` in `pkg/proxy/topology.go`; KEP-1669, KEP-2433, KEP-3015.
pub fn choose_endpoints(endpoints: &MergedEndpoints<'_>, node: &NodeContext) -> EndpointChoice {
    let ready: Entries<'_> = entries(endpoints, |it| it.ready);
    let draining: Entries<'_> = entries(endpoints, |it| !it.ready && it.serving && it.terminating);
    let is_local = |(_, endpoint): &Entry<'_>| endpoint.node.as_ref() == Some(&node.name);

    let cluster = first_not_empty(narrow_by_hints(&ready, node), draining.clone());
    let local = first_not_empty(
        ready.iter().copied().filter(is_local).collect(),
        draining.iter().copied().filter(is_local).collect(),
    );
    let either: BTreeMap<_, _> = cluster.iter().chain(&local).copied().collect();
    EndpointChoice {
        on_this_node: addresses(either.into_iter().filter(is_local).collect()),
        cluster: addresses(cluster),
        local: addresses(local),
        any_usable: !ready.is_empty() || !draining.is_empty(),
    }
}

type Entry<'a> = (SocketAddr, &'a Endpoint);
type Entries<'a> = Vec<Entry<'a>>;

fn entries<'a>(endpoints: &MergedEndpoints<'a>, keep: impl Fn(&Endpoint) -> bool) -> Entries<'a> {
    endpoints.iter().map(|(address, endpoint)| (*address, *endpoint)).filter(|(_, it)| keep(it)).collect()
}

fn first_not_empty<'a>(first: Entries<'a>, second: Entries<'a>) -> Entries<'a> {
    if first.is_empty() { second } else { first }
}

fn addresses(entries: Entries<'_>) -> Vec<SocketAddr> {
    entries.into_iter().map(|(address, _)| address).collect()
}

fn narrow_by_hints<'a>(ready: &Entries<'a>, node: &NodeContext) -> Entries<'a> {
    let for_node = hinted(ready, |it| &it.node_hints, Some(&node.name));
    let for_zone = || hinted(ready, |it| &it.zone_hints, node.zone.as_ref());
    for_node.or_else(for_zone).unwrap_or_else(|| ready.clone())
}

/// Those endpoints whose hints name `wanted`, if every endpoint has hints and at least one names it.
fn hinted<'a, T: PartialEq + 'a>(
    ready: &Entries<'a>,
    hints: impl Fn(&'a Endpoint) -> &'a Vec<T>,
    wanted: Option<&T>,
) -> Option<Entries<'a>> {
    let wanted = wanted?;
    if ready.iter().any(|(_, endpoint)| hints(endpoint).is_empty()) {
        return None;
    }
    let named: Entries<'a> =
        ready.iter().copied().filter(|(_, endpoint)| hints(endpoint).contains(wanted)).collect();
    (!named.is_empty()).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Protocol, SlicePort};

    #[test]
    fn s5_serving_and_terminating_endpoints_are_used_only_when_no_endpoint_is_ready() {
        let (ready, draining, gone) = (endpoint(1), terminating(2, true), terminating(3, false));
        assert_eq!(choose(&[&ready, &draining, &gone]).cluster, [at(1)]);
        assert_eq!(choose(&[&draining, &gone]).cluster, [at(2)]);
        assert_eq!(choose(&[&gone]), EndpointChoice::default());
    }

    #[test]
    fn s5_the_local_set_falls_back_on_its_own() {
        let (elsewhere, draining_here) = (on("other", endpoint(1)), on("here", terminating(2, true)));
        let choice = choose(&[&elsewhere, &draining_here]);
        assert_eq!(choice.cluster, [at(1)]);
        assert_eq!(choice.local, [at(2)]);
        assert_eq!(choice.on_this_node, [at(2)]);
    }

    #[test]
    fn s5_not_ready_and_not_terminating_is_never_used() {
        let mut waiting = endpoint(1);
        waiting.ready = false;
        assert_eq!(choose(&[&waiting]), EndpointChoice::default());
    }

    #[test]
    fn s5_ready_and_terminating_counts_as_ready() {
        let mut published = terminating(1, true);
        published.ready = true;
        assert_eq!(choose(&[&published, &endpoint(2)]).cluster, [at(1), at(2)]);
    }

    #[test]
    fn s27_usable_elsewhere_is_told_from_usable_nowhere() {
        let choice = choose(&[&on("other", endpoint(1))]);
        assert!(choice.local.is_empty() && choice.any_usable);
    }

    #[test]
    fn s8_zone_hints_narrow_the_cluster_set_only_if_every_ready_endpoint_has_some() {
        let (ours, theirs, plain) = (zoned(1, "zone-a"), zoned(2, "zone-b"), endpoint(3));
        assert_eq!(choose(&[&ours, &theirs]).cluster, [at(1)]);
        assert_eq!(choose(&[&ours, &theirs, &plain]).cluster, [at(1), at(2), at(3)]);
        assert_eq!(choose(&[&theirs]).cluster, [at(2)]);
    }

    #[test]
    fn s8_endpoints_that_are_not_ready_do_not_count_for_hints_nor_are_they_narrowed() {
        let (ours, draining) = (zoned(1, "zone-a"), terminating(2, true));
        assert_eq!(choose(&[&ours, &draining]).cluster, [at(1)]);
        let mut draining_elsewhere = terminating(3, true);
        draining_elsewhere.zone_hints = vec!["zone-b".into()];
        assert_eq!(choose(&[&draining_elsewhere]).cluster, [at(3)]);
    }

    #[test]
    fn s8_node_hints_come_before_zone_hints_and_need_no_zone() {
        let (mut ours, mut theirs) = (zoned(1, "zone-b"), zoned(2, "zone-a"));
        ours.node_hints = vec!["here".into()];
        theirs.node_hints = vec!["other".into()];
        assert_eq!(choose(&[&ours, &theirs]).cluster, [at(1)]);
        let no_zone = NodeContext { name: "here".into(), ..NodeContext::default() };
        assert_eq!(choose_on(&[&ours, &theirs], &no_zone).cluster, [at(1)]);
        theirs.node_hints.clear();
        assert_eq!(choose(&[&ours, &theirs]).cluster, [at(2)]);
    }

    #[test]
    fn s8_hints_never_narrow_the_local_set() {
        let elsewhere_hinted = on("here", zoned(1, "zone-b"));
        let ours = on("other", zoned(2, "zone-a"));
        let choice = choose(&[&elsewhere_hinted, &ours]);
        assert_eq!((choice.cluster, choice.local), (vec![at(2)], vec![at(1)]));
    }

    #[test]
    fn s2_ports_join_by_name_and_protocol_and_never_by_number() {
        let slice = slice(1, vec![endpoint(1)]);
        let merged = |name: &str, protocol| {
            let port = ServicePort { name: name.into(), protocol, port: 80 };
            merge_slices([(&ObjectName::new("shop", "web-1"), &slice)], &port, false).len()
        };
        assert_eq!(merged("http", Protocol::Tcp), 1);
        assert_eq!(merged("http", Protocol::Udp), 0);
        assert_eq!(merged("", Protocol::Tcp), 0);
        assert_eq!(merged("dns", Protocol::Udp), 1);
    }

    #[test]
    fn s3_an_entry_that_is_not_terminating_beats_one_that_is_else_the_newest_slice_wins() {
        let old = slice(1, vec![endpoint(1), endpoint(2)]);
        let mut moved = endpoint(2);
        moved.node = Some("other".into());
        let new = slice(2, vec![terminating(1, true), moved]);
        let (older, newer) = (ObjectName::new("shop", "z-old"), ObjectName::new("shop", "a-new"));
        for slices in [[(&older, &old), (&newer, &new)], [(&newer, &new), (&older, &old)]] {
            let merged = merge_slices(slices, &http(), false);
            assert!(!merged[&at(1)].terminating);
            assert_eq!(merged[&at(2)].node.as_deref(), Some("other"));
        }
    }

    fn choose(endpoints: &[&Endpoint]) -> EndpointChoice {
        let zone = Some("zone-a".into());
        choose_on(endpoints, &NodeContext { name: "here".into(), zone, pod_networks: vec![] })
    }

    fn choose_on(endpoints: &[&Endpoint], node: &NodeContext) -> EndpointChoice {
        choose_endpoints(&endpoints.iter().map(|it| (SocketAddr::new(it.address, 8080), *it)).collect(), node)
    }

    fn at(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, host], 8080))
    }

    fn endpoint(host: u8) -> Endpoint {
        Endpoint {
            address: at(host).ip(),
            node: None,
            ready: true,
            serving: true,
            terminating: false,
            zone_hints: vec![],
            node_hints: vec![],
        }
    }

    fn terminating(host: u8, serving: bool) -> Endpoint {
        Endpoint { ready: false, serving, terminating: true, ..endpoint(host) }
    }

    fn zoned(host: u8, zone: &str) -> Endpoint {
        Endpoint { zone_hints: vec![zone.into()], ..endpoint(host) }
    }

    fn on(node: &str, endpoint: Endpoint) -> Endpoint {
        Endpoint { node: Some(node.into()), ..endpoint }
    }

    fn http() -> ServicePort {
        ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }
    }

    fn slice(created: i64, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
        let ports = vec![port("http", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 8053)];
        EndpointSlice { service: ObjectName::new("shop", "web"), ports, endpoints, created }
    }
}
