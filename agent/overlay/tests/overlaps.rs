//! Overlaps, found once more by comparing addresses (contracts N14, N23).

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use podway_overlay::{Addressing, Claimant, HostNet, Overlap, Severity, overlaps};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// No overlap is missed, and none is invented.
    #[test]
    fn n23_there_is_an_overlap_exactly_where_an_address_is_claimed_twice(addressing in addressing()) {
        let found = overlaps(&addressing);
        for overlap in &found {
            prop_assert!(share(&overlap.range.net(), &overlap.with.net()), "{overlap}");
        }
        for range in addressing.pod_networks.iter().chain(&addressing.service_ranges) {
            for net in others(&addressing) {
                let is_said = found.iter().any(|overlap| {
                    let around = overlap.range.net().contains(range) || range.contains(&overlap.range.net());
                    around && overlap.with.net() == net
                });
                prop_assert_eq!(is_said && share(range, &net), share(range, &net), "{} {}", range, net);
            }
        }
    }

    #[test]
    fn n14_only_what_concerns_the_own_subnet_forbids_programming(addressing in addressing()) {
        let found = overlaps(&addressing);
        for overlap in &found {
            let own = matches!(overlap.range, Claimant::OwnSubnet(_));
            prop_assert!(own || overlap.severity() == Severity::Warning, "{overlap}");
        }
        let own = &addressing.own_subnets[0];
        let harmless = |overlap: &Overlap| overlap.severity() == Severity::Warning;
        for (_, address) in addressing.nodes.iter().filter(|(_, address)| own.contains(address)) {
            let with = IpNet::from(*address);
            prop_assert!(found.iter().any(|overlap| overlap.with.net() == with && !harmless(overlap)));
        }
        let mut without = addressing.clone();
        without.own_subnets.clear();
        prop_assert!(overlaps(&without).iter().all(harmless));
    }

    #[test]
    fn n23_worst_first_and_each_once_with_something_to_do(addressing in addressing()) {
        let found = overlaps(&addressing);
        prop_assert!(found.is_sorted_by_key(|overlap| std::cmp::Reverse(overlap.severity())));
        for (at, overlap) in found.iter().enumerate() {
            prop_assert!(!found[at + 1..].contains(overlap), "{overlap}");
            let text = overlap.to_string();
            let (what, advice) = text.split_once(": ").unwrap();
            prop_assert!(what.contains(&overlap.range.to_string()) && advice.len() > 20, "{text}");
        }
    }
}

/// What counts as taken: routes but for ours and default ones, addresses, nodes.
fn others(addressing: &Addressing) -> Vec<IpNet> {
    let hosts = addressing.host.iter().filter(|host| !host.ours && host.net.prefix_len() > 1);
    let nodes = addressing.nodes.iter().map(|(_, address)| IpNet::from(*address));
    hosts.map(|host| host.net.trunc()).chain(nodes).collect()
}

fn share(a: &IpNet, b: &IpNet) -> bool {
    a.network().max(b.network()) <= a.broadcast().min(b.broadcast())
}

/// Few distinct ranges, so that they meet.
fn addressing() -> impl Strategy<Value = Addressing> {
    let host = (net(), any::<u8>(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(net, at, address, ours)| {
            let net = if address { IpNet::new(inside(&net, at), net.prefix_len()).unwrap() } else { net };
            HostNet { net, what: format!("network {net}").into(), ours }
        },
    );
    let node = (net(), any::<u8>()).prop_map(|(net, at)| inside(&net, at));
    (
        (net(), any::<u8>()),
        prop::collection::vec(net(), 0..3),
        prop::collection::vec(host, 0..5),
        prop::collection::btree_set(node, 0..4),
    )
        .prop_map(|((pods, at), services, host, nodes)| {
            let own = IpNet::new(inside(&pods, at), pods.prefix_len().max(24)).unwrap().trunc();
            Addressing {
                pod_networks: vec![pods],
                own_subnets: vec![own],
                service_ranges: services.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
                host: host.into_iter().enumerate().map(|(at, host)| named(at, host)).collect(),
                nodes: nodes.into_iter().map(|at| (format!("node-{at}").into(), at)).collect(),
            }
        })
}

/// No two networks of a machine have one name.
fn named(at: usize, host: HostNet) -> HostNet {
    HostNet { what: format!("{} {at}", host.what).into(), ..host }
}

fn net() -> impl Strategy<Value = IpNet> {
    (0..4_u8, 0..8_u8, prop::sample::select(vec![0, 1, 6, 8, 12, 14, 16, 17, 24, 25, 32]))
        .prop_map(|(a, b, len)| IpNet::new(Ipv4Addr::new(10 + a / 3, b, a, 0).into(), len).unwrap().trunc())
}

fn inside(net: &IpNet, at: u8) -> IpAddr {
    let host = (u32::from(at) * 0x0001_0101) & u32::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0);
    match net.network() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) | host).into(),
        other => other,
    }
}
