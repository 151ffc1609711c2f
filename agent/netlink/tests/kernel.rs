//! The plan in a real kernel: reached, kept, adopted, removed, and nobody else's things touched. Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use std::collections::BTreeSet;

use podway_netlink::{Error, ROUTE_PROTOCOL};
use podway_overlay::{Backend, Family, LinkKind, Mac, Mtu, Node, Op, Peering, Settings, Vni};
use support::{Namespace, Pair, configured, link, net, node, overlay};

#[test]
fn n6_the_plan_is_reached_and_a_second_run_does_nothing() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    assert_eq!(overlay.problems(), []);
    pair.nodes[0].reconcile(&mut overlay);

    let (plan, observed) = (overlay.plan(), pair.nodes[0].observe(&overlay));
    assert_eq!(observed.rows, plan.rows);
    assert_eq!(observed.rows.routes.len(), 2, "one peer, two families");
    for (name, wanted) in &plan.links {
        let found = &observed.links[name];
        assert_eq!(found.mismatch(wanted), None);
        assert_eq!((found.mtu, found.mac, found.up, found.ours), (wanted.mtu, Some(wanted.mac), true, true));
        assert_eq!(found.addresses, BTreeSet::from([wanted.address.into()]));
    }
    assert_eq!(pair.nodes[0].reconcile(&mut overlay), []);
    assert_eq!(pair.nodes[0].reconcile(&mut pair.overlay(1)), [], "a daemon that starts anew");
}

#[test]
fn n6_links_and_routes_look_as_flannels_do() {
    let pair = Pair::new();
    pair.nodes[0].reconcile(&mut pair.overlay(1));
    let shown = pair.nodes[0].ip("-d link show flannel.1");
    for part in ["vxlan id 1 local 192.0.2.1 dev eth0", "dstport 8472", "nolearning", "alias podway"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(pair.nodes[0].ip("-d link show flannel-v6.1").contains("vxlan id 1 local 2001:db8::1 dev eth0"));
    assert!(pair.nodes[0].ip("addr show flannel.1").contains("inet 10.244.1.0/32 scope global"));
    let route = pair.nodes[0].ip("route show 10.244.2.0/24");
    assert_eq!(
        route.trim(),
        format!("10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto {ROUTE_PROTOCOL} onlink")
    );
    let route = pair.nodes[0].ip("-6 route show fd00:0:0:2::/64");
    assert!(route.starts_with("fd00:0:0:2::/64 via fd00:0:0:2:: dev flannel-v6.1"), "{route}");
}

#[test]
fn n7_mtus_are_those_of_the_outer_family() {
    for (networks, mtus) in [
        (&["10.244.0.0/16"][..], &[("flannel.1", 1450)][..]),
        (&["fd00::/48"][..], &[("flannel-v6.1", 1430)][..]),
        (&["10.244.0.0/16", "fd00::/48"][..], &[("flannel.1", 1430), ("flannel-v6.1", 1430)][..]),
    ] {
        let pair = Pair::new();
        let mut overlay = overlay(&pair.nodes[0], 1, networks);
        pair.nodes[0].reconcile(&mut overlay);
        let observed = pair.nodes[0].observe(&overlay);
        let found: Vec<_> =
            observed.links.iter().map(|(name, state)| (name.as_str(), state.mtu.get())).collect();
        let mut mtus = mtus.to_vec();
        mtus.sort_unstable();
        assert_eq!(found, mtus);
    }
}

#[test]
fn n7_a_changed_mtu_reaches_the_same_link() {
    let pair = Pair::new();
    let mut before = pair.overlay(1);
    pair.nodes[0].reconcile(&mut before);
    let index = pair.nodes[0].observe(&before).links[&link("flannel.1")].index;

    pair.nodes[0].ip("link set eth0 mtu 1400");
    let mut after = pair.overlay(1);
    let ops = pair.nodes[0].reconcile(&mut after);
    assert!(ops.iter().all(|op| matches!(op, Op::SetLink { mtu: Some(_), mac: None, .. })), "{ops:?}");
    let observed = pair.nodes[0].observe(&after);
    let state = &observed.links[&link("flannel.1")];
    assert_eq!((state.index, state.mtu.get()), (index, 1330));
    assert_eq!(observed.rows, after.plan().rows);
}

#[test]
fn n12_peers_come_change_and_go_step_by_step() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    pair.nodes[0].reconcile(&mut overlay);
    let mut moved = node(3);
    moved.addresses[0] = "192.0.2.33".parse().unwrap();
    moved.pod_cidrs[0] = net("10.244.33.0/24");
    for (peer, steps) in [(Some(node(3)), 6), (Some(moved), 5), (None, 6)] {
        overlay.apply(&"node-3".into(), peer.as_ref());
        let ops = pair.nodes[0].change(&mut overlay);
        assert_eq!(ops.len(), steps, "{ops:?}");
        assert_eq!(pair.nodes[0].observe(&overlay).rows, overlay.plan().rows);
    }
}

#[test]
fn n12_a_changed_mac_of_this_node_keeps_the_link_and_its_entries() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    pair.nodes[0].reconcile(&mut overlay);
    pair.nodes[0].ip("link set flannel.1 address 0a:00:00:00:00:01");
    let ops = pair.nodes[0].reconcile(&mut overlay);
    assert!(matches!(ops[0], Op::SetLink { mac: Some(_), .. }), "{ops:?}");
    assert_eq!(pair.nodes[0].observe(&overlay).rows, overlay.plan().rows);
    assert_eq!(pair.nodes[0].reconcile(&mut overlay), []);
}

#[test]
fn n20_entries_of_an_earlier_run_are_pruned() {
    let pair = Pair::new();
    let mut before = pair.overlay(1);
    before.apply(&"node-9".into(), Some(&node(9)));
    pair.nodes[0].reconcile(&mut before);
    let mut after = pair.overlay(1);
    let ops = pair.nodes[0].reconcile(&mut after);
    assert_eq!(ops.len(), 6, "route, neighbour and FDB entry in two families: {ops:?}");
    assert_eq!(pair.nodes[0].observe(&after).rows, after.plan().rows);
}

#[test]
fn n20_nothing_of_a_stranger_is_touched_neither_by_run_nor_by_cleanup() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    ours.ip("route add 10.99.0.0/16 via 192.0.2.9 proto static");
    ours.ip("-6 route add fd99::/48 via 2001:db8::9");
    ours.ip("route add 10.244.2.0/24 via 192.0.2.9 metric 500");
    ours.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
    ours.ip("link add other type vxlan id 77 dstport 4789 local 192.0.2.1 dev eth0");
    // Its own link-local address would be tentative for a while.
    ours.ip("link set other addrgenmode none");
    ours.ip("link set other up");
    ours.ip("neigh add 10.77.0.1 lladdr 02:00:00:00:00:77 dev other nud permanent");
    ours.bridge("fdb add 02:00:00:00:00:77 dev other dst 192.0.2.77");
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{family}");
        ours.inside(|| std::fs::write(path, "1").unwrap());
    }
    let before = ours.everything();

    let mut overlay = pair.overlay(1);
    ours.reconcile(&mut overlay);
    ours.ip("route add 172.31.0.0/16 dev flannel.1 proto static");
    assert_eq!(ours.reconcile(&mut overlay), [], "a stranger's route on our link stays");
    assert!(ours.ip("route").contains("172.31.0.0/16 dev flannel.1"));
    assert!(ours.everything().contains("02:00:00:00:00:77"));

    let report = ours.netlink(|netlink| async move { netlink.remove_all().await.unwrap() });
    assert_eq!((report.failures.len(), report.skipped.len()), (0, 0), "{report:?}");
    assert_eq!(ours.everything(), before);
    let report = ours.netlink(|netlink| async move { netlink.remove_all().await.unwrap() });
    assert_eq!(report.done, 0, "nothing is left to remove");
}

#[test]
fn n20_cleanup_leaves_a_link_of_flannels_that_was_never_ours() {
    let pair = Pair::new();
    as_flannel(&pair.nodes[0], "0a:00:00:00:00:01");
    let before = pair.nodes[0].everything();
    let report = pair.nodes[0].netlink(|netlink| async move { netlink.remove_all().await.unwrap() });
    assert_eq!(report.done, 0);
    assert_eq!(pair.nodes[0].everything(), before);
}

#[test]
fn n6_flannels_link_is_adopted_without_a_gap() {
    let pair = Pair::new();
    let mac = |n: u8| Mac::derived(&format!("node-{n}"), Vni::default(), Family::V4).to_string();
    as_flannel(&pair.nodes[0], &mac(1));
    for (peer, mac) in [(2, mac(2)), (9, "0a:00:00:00:00:09".to_owned())] {
        let (subnet, underlay) = (format!("10.244.{peer}.0"), format!("192.0.2.{peer}"));
        pair.nodes[0].ip(&format!("neigh add {subnet} lladdr {mac} dev flannel.1 nud permanent"));
        pair.nodes[0].bridge(&format!("fdb add {mac} dev flannel.1 dst {underlay} self permanent"));
        pair.nodes[0].ip(&format!("route add {subnet}/24 via {subnet} dev flannel.1 onlink proto boot"));
    }
    let mut overlay = overlay(&pair.nodes[0], 1, &["10.244.0.0/16"]);
    let index = pair.nodes[0].observe(&overlay).links[&link("flannel.1")].index;
    let ops = pair.nodes[0].reconcile(&mut overlay);
    let shown: Vec<String> = ops.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "remove route 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink",
            "set link flannel.1",
            "set net/ipv6/conf/flannel.1/accept_ra to 0",
            "set net/ipv4/ip_forward to 1",
            "set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "remove neighbour 10.244.9.0 dev flannel.1",
            "remove FDB entry 0a:00:00:00:00:09 dev flannel.1 to 192.0.2.9",
        ]
    );
    let observed = pair.nodes[0].observe(&overlay);
    assert_eq!(observed.links[&link("flannel.1")].index, index, "the same link");
    assert_eq!((observed.rows, observed.flannel_routes), (overlay.plan().rows, Default::default()));
    assert_eq!(pair.nodes[0].reconcile(&mut overlay), []);
}

#[test]
fn n6_a_link_of_the_name_that_does_not_fit_is_made_again() {
    for (sort, reason) in [
        ("vxlan id 5 dstport 8472 local 192.0.2.1 dev eth0 nolearning", "its VNI is 5, not 1"),
        ("vxlan id 1 dstport 4789 local 192.0.2.1 dev eth0 nolearning", "its port is 4789, not 8472"),
        (
            "vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0 group 239.1.1.1 nolearning",
            "it has a group or default remote",
        ),
        ("bridge", "it is a bridge link"),
    ] {
        let pair = Pair::new();
        pair.nodes[0].ip(&format!("link add flannel.1 type {sort}"));
        let mut overlay = overlay(&pair.nodes[0], 1, &["10.244.0.0/16"]);
        let ops = pair.nodes[0].reconcile(&mut overlay);
        assert_eq!(ops[0].to_string(), format!("remove link flannel.1 ({reason})"));
        assert_eq!(pair.nodes[0].reconcile(&mut overlay), []);
        assert!(matches!(pair.nodes[0].observe(&overlay).links[&link("flannel.1")].kind, LinkKind::Vxlan(_)));
    }
}

#[test]
fn a_link_of_another_vni_of_ours_goes_when_the_vni_changes() {
    let pair = Pair::new();
    pair.nodes[0].reconcile(&mut pair.overlay(1));
    pair.nodes[0].ip("link set flannel.1 name flannel.9");
    let ops = pair.nodes[0].reconcile(&mut pair.overlay(1));
    assert!(ops.iter().any(|op| op.to_string().starts_with("remove link flannel.9")), "{ops:?}");
}

#[test]
fn a_udp_port_in_use_by_a_program_is_named() {
    let pair = Pair::new();
    let mut overlay = overlay(&pair.nodes[0], 1, &["10.244.0.0/16"]);
    let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
    let socket = pair.nodes[0].inside(|| std::net::UdpSocket::bind("0.0.0.0:8472").unwrap());
    let report = pair.nodes[0].run(&ops);
    let [failure] = &report.failures[..] else { panic!("one failure: {report:?}") };
    let text = failure.error.to_string();
    assert_eq!(
        text,
        "cannot bring link flannel.1 up: UDP port 8472 is in use by another program: Address already in use (os error 98)"
    );
    assert!(matches!(failure.error, Error::PortInUse { port: 8472, .. }));
    assert_eq!(report.skipped.len(), 3, "neighbour, FDB entry and route wait for the link: {report:?}");
    drop(socket);
    pair.nodes[0].reconcile(&mut overlay);
}

#[test]
fn a_udp_port_or_vni_in_use_by_another_vxlan_link_is_named_with_the_link() {
    for (other, beginning) in [
        (
            "id 1 dstport 8472 local 192.0.2.1 dev eth0",
            "cannot add VXLAN link flannel.1 with VNI 1 and port 8472",
        ),
        ("external dstport 8472", "cannot bring link flannel.1 up"),
    ] {
        let pair = Pair::new();
        pair.nodes[0].ip(&format!("link add other type vxlan {other}"));
        pair.nodes[0].ip("link set other up");
        let mut overlay = overlay(&pair.nodes[0], 1, &["10.244.0.0/16"]);
        let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
        let report = pair.nodes[0].run(&ops);
        let text = report.failures[0].error.to_string();
        assert!(
            text.starts_with(beginning) && text.contains("UDP port 8472 is in use by VXLAN link other"),
            "{text}"
        );
        assert!(pair.nodes[0].ip("link show other").contains("UP"), "the other link stands");
    }
}

#[test]
fn n14_a_route_of_somebody_else_to_a_peers_subnet_is_named_and_stays() {
    let pair = Pair::new();
    pair.nodes[0].ip("route add 10.244.2.0/24 via 192.0.2.9 proto static");
    let mut overlay = pair.overlay(1);
    let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
    let report = pair.nodes[0].run(&ops);
    let [failure] = &report.failures[..] else { panic!("one failure: {report:?}") };
    assert_eq!(
        failure.error.to_string(),
        "cannot set route 10.244.2.0/24: there is a route of somebody else, via 192.0.2.9 dev eth0 protocol 4"
    );
    assert!(pair.nodes[0].ip("route").contains("10.244.2.0/24 via 192.0.2.9 dev eth0 proto static"));
    assert!(pair.nodes[0].ip("-6 route").contains("fd00:0:0:2::/64 via"), "the other family goes on");
}

#[test]
fn n20_a_route_of_somebody_else_stays_though_it_leads_the_same_way() {
    for (backend, way) in [
        (Backend::Vxlan, ["via 10.244.2.0 dev flannel.1 onlink", "via fd00:0:0:2:: dev flannel-v6.1 onlink"]),
        (Backend::HostGw, ["via 192.0.2.2 dev eth0", "via 2001:db8::2 dev eth0"]),
    ] {
        let pair = Pair::new();
        let ours = &pair.nodes[0];
        let networks = vec![net("10.244.0.0/16"), net("fd00::/48")];
        let mut overlay =
            configured(ours, Settings { backend, ..Settings::new("node-1", networks, Peering::Derived) });
        overlay.apply(&"node-2".into(), None);
        ours.reconcile(&mut overlay);
        let subnets = ["10.244.2.0/24", "fd00:0:0:2::/64"];
        for (subnet, way) in subnets.into_iter().zip(way) {
            ours.ip(&format!("route add {subnet} {way} proto static"));
            ours.ip(&format!("route add {subnet} {way} proto static metric 50"));
            ours.ip(&format!("route add {subnet} {way} proto static metric 2000"));
        }
        let routes = || [ours.ip("-4 route"), ours.ip("-6 route")];
        let before = routes();

        overlay.apply(&"node-2".into(), Some(&node(2)));
        let report = ours.run(&overlay.changes().unwrap());
        let named = |failure: &podway_netlink::Failure| failure.error.to_string().contains("protocol 4");
        assert!(report.failures.len() == 2 && report.failures.iter().all(named), "{report:?}");
        assert_eq!(routes(), before, "not taken over");

        overlay.apply(&"node-2".into(), None);
        ours.change(&mut overlay);
        assert_eq!(routes(), before, "nor removed in place of ours");

        for (subnet, way) in subnets.into_iter().zip(way) {
            ours.ip(&format!("route del {subnet} {way} proto static metric {}", default_metric(subnet)));
        }
        let before = routes();
        overlay.apply(&"node-2".into(), Some(&node(2)));
        ours.change(&mut overlay);
        assert_eq!(ours.observe(&overlay).rows.routes.len(), 2);
        overlay.apply(&"node-2".into(), None);
        ours.change(&mut overlay);
        assert_eq!(routes(), before, "ours alone went");
    }
}

fn default_metric(subnet: &str) -> u32 {
    if subnet.contains(':') { 1024 } else { 0 }
}

#[test]
fn n20_a_route_of_somebody_else_stays_whatever_its_type() {
    let hops = "nexthop via 192.0.2.8 dev eth0 nexthop via 10.244.2.0 dev flannel.1 onlink";
    let hops6 = "nexthop via 2001:db8::8 dev eth0 nexthop via 2001:db8::9 dev eth0";
    for (route, found) in [
        ("blackhole 10.244.2.0/24", "blackhole protocol 3"),
        ("unreachable 10.244.2.0/24", "unreachable protocol 3"),
        ("prohibit 10.244.2.0/24 proto static", "prohibit protocol 4"),
        (&format!("10.244.2.0/24 {hops}"), "via 192.0.2.8 dev eth0 via 10.244.2.0 dev flannel.1 protocol 3"),
        ("blackhole fd00:0:0:2::/64", "blackhole dev lo protocol 3"),
        (&format!("fd00:0:0:2::/64 {hops6}"), "via 2001:db8::8 dev eth0 via 2001:db8::9 dev eth0 protocol 3"),
    ] {
        let pair = Pair::new();
        let mut overlay = pair.overlay(1);
        overlay.apply(&"node-2".into(), None);
        pair.nodes[0].reconcile(&mut overlay);
        let (family, subnet) = match route.contains("fd00") {
            true => ("-6", "fd00:0:0:2::/64"),
            false => ("-4", "10.244.2.0/24"),
        };
        pair.nodes[0].ip(&format!("{family} route add {route}"));
        let shown = pair.nodes[0].ip(&format!("{family} route"));
        assert_eq!(pair.nodes[0].reconcile(&mut overlay), [], "it is not ours: {route}");

        overlay.apply(&"node-2".into(), Some(&node(2)));
        let report = pair.nodes[0].run(&overlay.changes().unwrap());
        let [failure] = &report.failures[..] else { panic!("one failure for {route}: {report:?}") };
        let expected = format!("cannot set route {subnet}: there is a route of somebody else, {found}");
        assert_eq!(failure.error.to_string(), expected);
        assert_eq!(pair.nodes[0].ip(&format!("{family} route")), shown);
    }
}

#[test]
fn n17_five_thousand_peers_are_programmed_in_both_families() {
    let pair = Pair::new();
    let networks = ["10.0.0.0/8", "fd00::/16"];
    let mut overlay = overlay(&pair.nodes[0], 1, &networks);
    for n in 0..5000u16 {
        let [a, b] = n.to_be_bytes();
        let peer = Node {
            name: format!("peer-{n}").into(),
            addresses: vec![[198, 18, a, b].into(), format!("2001:db8:1::{n:x}").parse().unwrap()],
            pod_cidrs: vec![net(&format!("10.{a}.{b}.0/24")), net(&format!("fd00:0:1:{n:x}::/64"))],
            ..Node::default()
        };
        overlay.apply(&peer.name.clone(), Some(&peer));
    }
    let start = std::time::Instant::now();
    let ops = pair.nodes[0].reconcile(&mut overlay);
    println!("{} steps in {:?}", ops.len(), start.elapsed());
    let start = std::time::Instant::now();
    let observed = pair.nodes[0].observe(&overlay);
    println!("observed in {:?}", start.elapsed());
    assert_eq!(observed.rows, overlay.plan().rows);
    assert!(observed.rows.routes.len() > 10_000);
    assert_eq!(pair.nodes[0].reconcile(&mut overlay), []);
}

#[test]
fn n17_refusals_are_told_of_the_very_rows_that_they_are_about() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    let mut overlay = overlay(ours, 1, &["10.0.0.0/8"]);
    overlay.apply(&"node-2".into(), None);
    let subnet = |n: u16| format!("10.{}.{}.0/24", 1 + n / 200, n % 200);
    for n in 0..500 {
        let peer = Node {
            name: format!("peer-{n}").into(),
            addresses: vec![format!("198.18.{}.{}", 1 + n / 200, n % 200).parse().unwrap()],
            pod_cidrs: vec![net(&subnet(n))],
            ..Node::default()
        };
        overlay.apply(&peer.name.clone(), Some(&peer));
    }
    let foreign: BTreeSet<String> = (0..500).step_by(7).map(subnet).collect();
    let lines: Vec<String> =
        foreign.iter().map(|subnet| format!("route add {subnet} via 192.0.2.9 proto static")).collect();
    ours.ip_batch(&lines.join("\n"));

    let ops = overlay.reconcile(&ours.observe(&overlay));
    let report = ours.run(&ops);
    let refused: BTreeSet<String> = report
        .failures
        .iter()
        .map(|failure| match (&failure.op, &failure.error) {
            (Op::SetRoute(subnet, _), Error::ForeignRoute { .. }) => subnet.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(refused, foreign);
    assert_eq!((report.done, report.skipped.len()), (ops.len() - foreign.len(), 0));
    let routed: BTreeSet<String> =
        ours.observe(&overlay).rows.routes.keys().map(ToString::to_string).collect();
    assert_eq!(routed, (0..500).map(subnet).filter(|subnet| !foreign.contains(subnet)).collect());
}

#[test]
fn n6_a_link_with_other_ends_becomes_ours_in_place() {
    for sort in [
        "local 192.0.2.1 dev eth0",
        "local 192.0.2.99 dev eth0 nolearning",
        "local 192.0.2.1 dev eth7 nolearning",
        "local 192.0.2.1 nolearning",
        "nolearning",
    ] {
        let pair = Pair::new();
        let ours = &pair.nodes[0];
        ours.veth("eth7", &pair.nodes[1], "eth7");
        ours.ip(&format!("link add flannel.1 type vxlan id 1 dstport 8472 {sort}"));
        ours.ip("link set flannel.1 up");
        let mut overlay = overlay(ours, 1, &["10.244.0.0/16"]);
        let index = ours.observe(&overlay).links[&link("flannel.1")].index;
        let ops = ours.reconcile(&mut overlay);
        assert!(!ops.iter().any(|op| matches!(op, Op::RemoveLink { .. })), "{sort}: {ops:?}");
        assert_eq!(ours.reconcile(&mut overlay), [], "{sort}");
        let state = &ours.observe(&overlay).links[&link("flannel.1")];
        assert_eq!(state.index, index, "{sort}");
        assert_eq!(state.kind, LinkKind::Vxlan((&overlay.plan().links[&link("flannel.1")]).into()));
    }
}

/// The kernel takes no IPv6 address for a link that was made for IPv4.
#[test]
fn n6_a_link_that_the_kernel_cannot_change_in_place_is_made_again() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    ours.ip("link add flannel-v6.1 type vxlan id 1 dstport 8472 dev eth0 nolearning");
    let mut overlay = overlay(ours, 1, &["fd00::/48"]);
    let ops = overlay.reconcile(&ours.observe(&overlay));
    let report = ours.run(&ops);
    let [failure] = &report.failures[..] else { panic!("one failure: {report:#?}") };
    assert!(matches!(failure.op, Op::SetLink { tunnel: Some(_), .. }), "{report:#?}");
    ours.reconcile(&mut overlay);
    assert_eq!(ours.observe(&overlay).rows, overlay.plan().rows);
    assert_eq!(ours.reconcile(&mut overlay), []);
}

#[test]
fn n6_learning_is_set_in_place_and_a_link_without_group_policy_is_made_again() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    let mut plain = overlay(ours, 1, &["10.244.0.0/16"]);
    ours.reconcile(&mut plain);
    let lower =
        ours.host(&Settings::new("node-1", vec![net("10.244.0.0/16")], Peering::Derived)).external.index.0;
    let in_place = format!("set link flannel.1 local 192.0.2.1 dev {lower} learning");
    for (learning, gbp, shown) in
        [(true, false, &*in_place), (true, true, "remove link flannel.1 (its GBP is false, not true)")]
    {
        let set = Settings {
            learning,
            gbp,
            ..Settings::new("node-1", vec![net("10.244.0.0/16")], Peering::Derived)
        };
        let mut overlay = configured(ours, set);
        let ops = ours.reconcile(&mut overlay);
        assert_eq!(ops[0].to_string(), shown);
        assert_eq!(ours.reconcile(&mut overlay), []);
        let link = ours.ip("-d link show flannel.1");
        assert!(!link.contains("nolearning") && link.contains(" gbp") == gbp, "{link}");
    }
}

#[test]
fn every_step_can_be_repeated() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    let ops = pair.nodes[0].reconcile(&mut overlay);
    let report = pair.nodes[0].run(&ops);
    assert_eq!(report.done, ops.len(), "{report:?}");
    assert_eq!(pair.nodes[0].observe(&overlay).rows, overlay.plan().rows);
    overlay.apply(&"node-2".into(), None);
    let gone = overlay.changes().unwrap();
    for _ in 0..2 {
        let report = pair.nodes[0].run(&gone);
        assert_eq!(report.done, gone.len(), "{report:?}");
    }
}

#[test]
fn n19_forwarding_is_switched_on_for_the_families_that_have_pods() {
    for (networks, forwarding) in [(&["10.244.0.0/16"][..], ["1", "0"]), (&["fd00::/48"][..], ["0", "1"])] {
        let pair = Pair::new();
        pair.nodes[0].reconcile(&mut overlay(&pair.nodes[0], 1, networks));
        let read = |path: &str| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap();
        let found = pair.nodes[0].inside(|| [read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding")]);
        assert_eq!(found.each_ref().map(|value| value.trim()), forwarding);
    }
}

#[test]
fn n7_an_unusable_mtu_is_a_problem_not_a_broken_link() {
    let pair = Pair::new();
    pair.nodes[0].ip("link set eth0 mtu 1300");
    let mut overlay = pair.overlay(1);
    let ops = pair.nodes[0].reconcile(&mut overlay);
    assert!(!ops.iter().any(|op| op.to_string().contains("flannel-v6.1")), "{ops:?}");
    let problems = overlay.problems();
    assert!(problems[0].to_string().contains("MTU 1230 is below the 1280"), "{problems:?}");
    assert_eq!(pair.nodes[0].observe(&overlay).links[&link("flannel.1")].mtu, Mtu::new(1230).unwrap());
}

/// A link as flannel makes it on node 1.
fn as_flannel(node: &Namespace, mac: &str) {
    node.ip(&format!("link add flannel.1 address {mac} mtu 1450 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning"));
    node.ip("addr add 10.244.1.0/32 dev flannel.1");
    node.ip("link set flannel.1 up");
}
