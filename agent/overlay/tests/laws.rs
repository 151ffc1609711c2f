//! What holds for any Nodes in any order: incremental equals scratch, the steps reach the plan, and no route ever
//! stands without the entries that it needs.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use podway_overlay::{
    Backend, ExternalInterface, FakeKernel, Family, FdbKey, Host, HostRoute, IfIndex, LinkKind, LinkName,
    Mac, Mtu, NeighbourKey, Node, Op, Overlay, Peering, PerFamily, Reason, Route, Rows, Settings, Sysctl,
    VxlanState, removal,
};
use proptest::prelude::*;

const OWN: &str = "m";
const NAMES: [&str; 6] = ["a", "b", "c", OWN, "x", "y"];

/// What one Node may say; small ranges, so that Nodes contend.
#[derive(Debug, Clone)]
struct Shape {
    managed: bool,
    /// The IPv4 address that it publishes cannot be read.
    slip: bool,
    host_gw: bool,
    v4: Option<(u8, u8)>,
    v6: Option<u8>,
    mac: u8,
    underlay: u8,
}

#[derive(Debug, Clone)]
enum Event {
    Node(usize, Option<Shape>),
    /// The external interface's MTU, and which underlay addresses are neighbours', a bit for each.
    Host(u32, u8),
    /// Whether Services have the range that holds the nodes' addresses.
    Services(bool),
    Drain,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Scratch: each Node's own history since it came or was last without fault, one Node after the other.
    #[test]
    fn n17_incremental_equals_scratch(settings in any_settings(), events in events()) {
        let mut overlay = Overlay::new(settings.clone()).unwrap();
        overlay.set_host(host(1500));
        let (mut nodes, mut facts, mut services) = (BTreeMap::<_, Vec<_>>::new(), host(1500), false);
        for event in &events {
            match event {
                Event::Services(present) => services = *present,
                Event::Node(at, shape) => {
                    let history = nodes.entry(*at).or_default();
                    if shape.as_ref().is_none_or(|shape| !shape.slip) {
                        history.clear();
                    }
                    history.push(shape.clone());
                }
                Event::Host(mtu, neighbours) => facts = host_with(*mtu, *neighbours),
                Event::Drain => {}
            }
            feed(&mut overlay, event);
        }
        let mut scratch = Overlay::new(settings).unwrap();
        scratch.set_host(facts);
        feed(&mut scratch, &Event::Services(services));
        for (at, history) in nodes {
            history.into_iter().for_each(|shape| feed(&mut scratch, &Event::Node(at, shape)));
        }
        prop_assert_eq!(overlay.plan(), scratch.plan());
        prop_assert_eq!(overlay.annotations(), scratch.annotations());
    }

    /// The rules of contracts N14 and N23 once more, by comparing each Node with every other.
    #[test]
    fn n14_n23_of_nodes_that_contend_only_the_first_is_routed_and_no_route_takes_a_nodes_address(shapes in prop::collection::vec(prop::option::of(shape()), 6)) {
        let mut overlay = overlay();
        for (at, shape) in shapes.iter().enumerate() {
            feed(&mut overlay, &Event::Node(at, shape.clone()));
        }
        let claims: Vec<(&str, IpNet, u8, IpAddr)> = NAMES
            .iter()
            .zip(&shapes)
            .filter(|(name, _)| **name != OWN)
            .filter_map(|(name, shape)| {
                let routable = |shape: &&Shape| shape.managed && !shape.host_gw && !shape.slip;
                let shape = shape.as_ref().filter(routable)?;
                Some((*name, subnet4(shape)?, shape.mac, underlay(shape.underlay, Family::V4)))
            })
            .collect();
        let own = shapes[3].as_ref().and_then(subnet4);
        let own_mac = shapes[3].as_ref().map(|shape| if shape.managed { mac(shape.mac, 4) } else { own_device_mac() });
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let addresses: Vec<IpAddr> = claims.iter().map(|(_, _, _, address)| *address).collect();
        let admitted: Vec<_> = claims
            .into_iter()
            .filter(|(_, subnet, at, address)| {
                own.is_some_and(|own| !overlap(&own, subnet) && !own.contains(address))
                    && own_mac != Some(mac(*at, 4))
            })
            .map(|(name, subnet, at, _)| (name, subnet, at))
            .collect();
        let comes_first = |(name, subnet, at): &(&str, IpNet, u8), (other, theirs, mac): &(&str, IpNet, u8)| {
            let longer = overlap(theirs, subnet) && theirs.prefix_len() > subnet.prefix_len();
            longer || other < name && (theirs == subnet || mac == at)
        };
        let expected: BTreeSet<IpNet> = admitted
            .iter()
            .filter(|claim| !admitted.iter().any(|other| comes_first(claim, other)))
            .map(|(_, subnet, _)| *subnet)
            .filter(|subnet| !addresses.iter().any(|address| subnet.contains(address)))
            .collect();
        let routed: BTreeSet<IpNet> =
            overlay.plan().rows.routes.into_keys().filter(|subnet| subnet.addr().is_ipv4()).collect();
        prop_assert_eq!(routed, expected);
    }

    #[test]
    fn n6_the_steps_reach_the_plan_and_no_live_peer_is_ever_cut_off(
        settings in any_settings(), first in events(), second in events(),
    ) {
        let mut kernel = FakeKernel::default();
        let mut overlay = Overlay::new(settings).unwrap();
        overlay.set_host(host(1500));
        for event in first.iter().chain([&Event::Drain]).chain(&second).chain([&Event::Drain]) {
            if !matches!(event, Event::Drain) {
                feed(&mut overlay, event);
                continue;
            }
            let before = kernel.observe().rows;
            let ops = match overlay.changes() {
                Some(ops) => ops,
                None => overlay.reconcile(&kernel.observe()),
            };
            let plan = overlay.plan();
            let remade = ops.iter().any(|op| matches!(op, Op::RemoveLink { .. } | Op::SetLink { mac: Some(_), .. }));
            for op in &ops {
                kernel.run(op).map_err(|refusal| TestCaseError::fail(format!("{op:?}: {refusal}")))?;
                if !remade {
                    let now = kernel.observe().rows;
                    prop_assert_eq!(uncovered(&now), vec![], "after {:?} of {:?}", op, ops);
                    prop_assert_eq!(cut_off(&before, &now, &plan.rows), vec![], "after {:?} of {:?}", op, ops);
                }
            }
            let observed = kernel.observe();
            let planned = |family: Family| plan.held.get(family).is_none();
            let routes: BTreeMap<_, _> =
                observed.rows.routes.clone().into_iter().filter(|(subnet, _)| planned(Family::of(subnet))).collect();
            prop_assert_eq!(routes, plan.rows.routes.clone());
            let blackholes: BTreeSet<_> =
                observed.blackholes.iter().copied().filter(|subnet| planned(Family::of(subnet))).collect();
            prop_assert_eq!(blackholes, plan.blackholes.clone());
            for (name, link) in &plan.links {
                let state = &observed.links[name];
                prop_assert!(state.up && state.ours && state.mismatch(link).is_none());
                prop_assert_eq!(&state.kind, &LinkKind::Vxlan(VxlanState::from(link)));
                prop_assert_eq!((state.mtu, state.mac), (link.mtu, Some(link.mac)));
                prop_assert_eq!(&state.addresses, &BTreeSet::from([IpNet::from(link.address)]));
            }
            prop_assert_eq!(overlay.reconcile(&observed), vec![], "a second pass");
            prop_assert_eq!(overlay.changes(), Some(vec![]));
        }
    }

    #[test]
    fn n17_a_change_of_one_peer_touches_that_peer_only(host in 1u8..=249, to in 1u8..=249) {
        let mut overlay = overlay();
        feed(&mut overlay, &Event::Node(3, Some(Shape { managed: true, slip: false, host_gw: false, v4: Some((0, 24)), v6: Some(0), mac: 0, underlay: 0 })));
        for n in 1..=249u8 {
            overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
        }
        let mut kernel = FakeKernel::default();
        for op in overlay.reconcile(&kernel.observe()) {
            kernel.run(&op).unwrap();
        }
        prop_assert_eq!(kernel.observe().rows.routes.len(), 249);
        let mut changed = peer(host);
        changed.flannel.insert("public-ip".to_owned(), format!("198.51.100.{to}"));
        overlay.apply(&changed.name.clone(), Some(&changed));
        let key = FdbKey { link: LinkName::new("flannel.1").unwrap(), mac: mac(host, 4) };
        prop_assert_eq!(overlay.changes(), Some(vec![Op::SetFdb(key, Ipv4Addr::new(198, 51, 100, to).into())]));
    }
}

#[test]
fn n12_a_peer_that_changes_its_mac_is_never_without_an_fdb_entry() {
    let (mut overlay, mut kernel) = with_peer(7);
    let mut changed = peer(7);
    changed
        .flannel
        .insert("backend-data".to_owned(), r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:99"}"#.to_owned());
    overlay.apply(&changed.name.clone(), Some(&changed));
    let ops = overlay.changes().unwrap();
    let kinds: Vec<&str> = ops.iter().map(kind).collect();
    assert_eq!(kinds, ["SetFdb", "SetNeighbour", "RemoveFdb"], "the route stays");
    for op in ops {
        kernel.run(&op).unwrap();
        assert_eq!(uncovered(&kernel.observe().rows), []);
    }
}

#[test]
fn n6_a_new_peer_gets_neighbour_fdb_entry_and_route_in_this_order_and_loses_its_route_first() {
    let (mut overlay, _) = with_peer(7);
    overlay.apply(&peer(8).name.clone(), Some(&peer(8)));
    assert_eq!(
        overlay.changes().unwrap().iter().map(kind).collect::<Vec<_>>(),
        ["SetNeighbour", "SetFdb", "SetRoute"]
    );
    overlay.apply(&peer(8).name.clone(), None);
    assert_eq!(
        overlay.changes().unwrap().iter().map(kind).collect::<Vec<_>>(),
        ["RemoveRoute", "RemoveNeighbour", "RemoveFdb"]
    );
}

#[test]
fn an_event_that_changes_nothing_asks_for_nothing() {
    let (mut overlay, _) = with_peer(7);
    let zone = Node { zone: Some("west".into()), ..peer(7) };
    overlay.apply(&zone.name.clone(), Some(&zone));
    feed(&mut overlay, &own_event());
    overlay.apply(&peer(9).name.clone(), Some(&peer(9)));
    overlay.apply(&peer(9).name.clone(), None);
    assert_eq!(overlay.changes(), Some(vec![]));
}

#[test]
fn n7_a_new_mtu_is_set_in_place() {
    let (mut overlay, kernel) = with_peer(7);
    overlay.set_host(host(1400));
    assert_eq!(overlay.changes(), None, "a link changes: look at the kernel first");
    let ops = overlay.reconcile(&kernel.observe());
    assert!(ops.iter().all(|op| matches!(op, Op::SetLink { mac: None, mtu: Some(_), .. })), "{ops:?}");
    assert_eq!(ops.len(), 2, "one for each family");
}

#[test]
fn n6_a_peer_that_becomes_a_neighbour_gets_its_plain_route_before_its_entries_go_and_the_reverse() {
    let (mut overlay, mut kernel) = direct_peer(7, 0);
    for (neighbours, kinds) in
        [(1 << 7, ["SetRoute", "RemoveNeighbour", "RemoveFdb"]), (0, ["SetNeighbour", "SetFdb", "SetRoute"])]
    {
        overlay.set_host(host_with(1500, neighbours));
        let ops = overlay.changes().unwrap();
        assert_eq!(ops.iter().map(kind).collect::<Vec<_>>(), kinds);
        for op in ops {
            kernel.run(&op).unwrap();
            assert_eq!(uncovered(&kernel.observe().rows), []);
            assert_eq!(kernel.observe().rows.routes.len(), 1, "after {op}");
        }
    }
    let shown: Vec<String> = overlay.plan().rows.routes.values().map(ToString::to_string).collect();
    assert_eq!(shown, ["via 10.244.7.0 dev flannel.1 onlink"]);
    overlay.set_host(host_with(1500, 1 << 7));
    let shown: Vec<String> = overlay.plan().rows.routes.values().map(ToString::to_string).collect();
    assert_eq!(shown, ["via 192.0.2.7 dev eth0"]);
}

#[test]
fn n6_routes_of_the_machine_that_no_peer_is_behind_change_nothing() {
    let (mut overlay, _) = direct_peer(7, 1 << 7);
    let mut host = host_with(1500, 1 << 7);
    host.routes.push(host_route([172, 16, 0, 1].into(), None));
    overlay.set_host(host.clone());
    assert_eq!(overlay.changes(), Some(vec![]));
    host.routes
        .iter_mut()
        .for_each(|route| route.link = route.link.take().map(|(_, name)| (IfIndex(9), name)));
    overlay.set_host(host);
    assert_eq!(overlay.changes(), None, "the interface was made again: what was on it is gone");
}

#[test]
fn n6_host_gw_routes_lead_to_the_peers_address_and_need_no_link() {
    let mut overlay = Overlay::new(Settings { backend: Backend::HostGw, ..settings() }).unwrap();
    overlay.set_host(host_with(1500, 0b0010_1000));
    let shape = |n| Shape {
        managed: true,
        slip: false,
        host_gw: true,
        v4: Some((n, 24)),
        v6: Some(n),
        mac: n,
        underlay: n,
    };
    feed(&mut overlay, &Event::Node(3, Some(Shape { underlay: 0, ..shape(0) })));
    for (at, n) in [(0, 3), (1, 4), (2, 5)] {
        feed(&mut overlay, &Event::Node(at, Some(shape(n))));
    }
    feed(&mut overlay, &Event::Node(4, Some(Shape { host_gw: false, ..shape(2) })));
    let plan = overlay.plan();
    let shown: Vec<String> = plan.rows.routes.iter().map(|(net, route)| format!("{net} {route}")).collect();
    assert_eq!(
        shown,
        [
            "10.244.3.0/24 via 192.0.2.3 dev eth0",
            "10.244.5.0/24 via 192.0.2.5 dev eth0",
            "fd00:0:0:3::/64 via 2001:db8::3 dev eth0",
            "fd00:0:0:5::/64 via 2001:db8::5 dev eth0",
        ]
    );
    assert!(plan.links.is_empty() && plan.rows.neighbours.is_empty() && plan.rows.fdb.is_empty());
    let shown: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(
        shown[0].starts_with("Node b: its address 192.0.2.4 is no neighbour's on interface eth0"),
        "{shown:?}"
    );
    assert!(shown[2].starts_with("Node x: annotation backend-type is `vxlan`, not `host-gw`"), "{shown:?}");
    let wanted = overlay.annotations();
    assert_eq!((&*wanted["backend-data"], &*wanted["backend-v6-data"]), ("null", "null"));
    assert_eq!(wanted["public-ip"], "192.0.2.250");
    let env = overlay.subnet_env(true).unwrap();
    assert_eq!(env.mtu, Mtu::new(1500).unwrap());
}

#[test]
fn n6_host_gw_does_not_work_through_a_translator_and_says_so() {
    let mut overlay = Overlay::new(Settings { backend: Backend::HostGw, ..settings() }).unwrap();
    let public = PerFamily { v4: Some([203, 0, 113, 9].into()), v6: None };
    overlay.set_host(Host { public, ..host(1500) });
    feed(&mut overlay, &own_event());
    let texts: Vec<String> = overlay.problems().iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(
        texts[0].contains("203.0.113.9 is to be published, but interface eth0 has 192.0.2.250"),
        "{texts:?}"
    );
    assert!(overlay.plan().held.v4.is_some() && overlay.plan().held.v6.is_none());
}

#[test]
fn n6_a_node_that_changes_its_backend_moves_its_routes_before_the_link_goes() {
    let (_, mut kernel) = direct_peer(7, 0);
    let mut overlay = Overlay::new(Settings { backend: Backend::HostGw, ..settings() }).unwrap();
    overlay.set_host(host_with(1500, 1 << 7));
    feed(&mut overlay, &own_event());
    let mut changed = peer(7);
    changed.flannel.insert("backend-type".to_owned(), "host-gw".to_owned());
    overlay.apply(&changed.name.clone(), Some(&changed));
    let ops = overlay.reconcile(&kernel.observe());
    assert_eq!(ops.iter().map(kind).collect::<Vec<_>>(), ["SetRoute", "RemoveLink", "RemoveLink"]);
    for op in ops {
        kernel.run(&op).unwrap();
        assert_eq!(kernel.observe().rows.routes.len(), 1, "after {op}");
    }
    assert_eq!(overlay.reconcile(&kernel.observe()), []);
}

#[test]
fn n8_a_chosen_public_address_is_only_published() {
    let (mut overlay, kernel) = with_peer(7);
    let public = PerFamily { v4: Some([203, 0, 113, 9].into()), v6: Some("2001:db8:9::9".parse().unwrap()) };
    overlay.set_host(Host { public, ..host(1500) });
    let wanted = overlay.annotations();
    assert_eq!((&*wanted["public-ip"], &*wanted["public-ipv6"]), ("203.0.113.9", "2001:db8:9::9"));
    assert!(overlay.plan().links.values().all(|link| link.local != IpAddr::from([203, 0, 113, 9])));
    let kinds: Vec<&str> = overlay.reconcile(&kernel.observe()).iter().map(kind).collect();
    assert_eq!(kinds, ["SetOffload", "SetOffload"], "behind a translator (N16)");
    assert!(overlay.offload_breakage().unwrap().to_string().contains("203.0.113.9"));
}

#[test]
fn n8_a_new_address_of_the_interface_is_published_and_sent_from() {
    let (mut overlay, mut kernel) = with_peer(7);
    let mac = kernel.observe().links[&LinkName::new("flannel.1").unwrap()].mac;
    let mut moved = host(1500);
    moved.external.v4 = Some(Ipv4Addr::new(192, 0, 2, 251));
    moved.device_macs = PerFamily::default();
    overlay.set_host(moved);
    assert_eq!(overlay.annotations()["public-ip"], "192.0.2.251");
    assert_eq!(overlay.changes(), None);
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    let observed = kernel.observe();
    assert_eq!(observed.rows, overlay.plan().rows);
    assert_eq!(observed.links[&LinkName::new("flannel.1").unwrap()].mac, mac, "the MAC stays");
}

#[test]
fn n7_an_interface_that_is_made_again_makes_the_link_again_with_its_mac() {
    let mut overlay = overlay();
    let mut kernel = FakeKernel::default();
    let own = Shape {
        managed: false,
        slip: false,
        host_gw: false,
        v4: Some((0, 24)),
        v6: None,
        mac: 5,
        underlay: 0,
    };
    feed(&mut overlay, &Event::Node(3, Some(own)));
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    let name = LinkName::new("flannel.1").unwrap();
    assert_eq!(kernel.observe().links[&name].mac, Some(own_device_mac()));
    // The kernel removes VXLAN links with their lower interface.
    kernel.run(&Op::RemoveLink { name: name.clone(), why: podway_overlay::WhyRemoved::CleanUp }).unwrap();
    let mut remade = host(1500);
    remade.external.index = IfIndex(12);
    remade.device_macs = PerFamily::default();
    overlay.set_host(remade);
    assert_eq!(overlay.changes(), None);
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    assert_eq!(kernel.observe().links[&name].mac, Some(own_device_mac()));
    assert_eq!(overlay.reconcile(&kernel.observe()), []);
}

#[test]
fn n16_checksum_offload_is_switched_off_on_new_links_and_repaired() {
    let settings = Settings { checksum_offload: podway_overlay::Offload::Off, ..settings() };
    let (mut overlay, mut kernel) = (Overlay::new(settings).unwrap(), FakeKernel::default());
    overlay.set_host(host(1500));
    feed(&mut overlay, &own_event());
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    let link = LinkName::new("flannel.1").unwrap();
    assert!(kernel.observe().links.values().all(|state| state.offload == Some(false)));
    kernel.state_mut().links.get_mut(&link).unwrap().offload = Some(true);
    assert_eq!(overlay.reconcile(&kernel.observe()), [Op::SetOffload(link.clone(), false)]);
    kernel.state_mut().links.get_mut(&link).unwrap().offload = None;
    assert_eq!(overlay.reconcile(&kernel.observe()), [], "a kernel that cannot be asked");
}

#[test]
fn n19_a_strict_reverse_path_filter_is_loosened_on_our_link_alone() {
    let setting = |of: &str| Sysctl::RpFilter(LinkName::new(of).unwrap());
    for (all, link, loosened) in
        [("0", "0", false), ("1", "0", true), ("0", "1", true), ("2", "1", false), ("1", "2", false)]
    {
        let (mut overlay, mut kernel) = with_peer(7);
        kernel.state_mut().sysctls.insert(setting("all"), all.to_owned());
        kernel.state_mut().sysctls.insert(setting("flannel.1"), link.to_owned());
        let expected: Vec<Op> = loosened.then(|| Op::SetSysctl(setting("flannel.1"))).into_iter().collect();
        assert_eq!(overlay.reconcile(&kernel.observe()), expected, "all {all}, link {link}");
    }
    let (mut overlay, mut kernel) = (overlay(), FakeKernel::default());
    kernel.state_mut().sysctls.insert(setting("all"), "0".to_owned());
    kernel.state_mut().sysctls.insert(setting("default"), "1".to_owned());
    feed(&mut overlay, &own_event());
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    assert_eq!(kernel.observe().sysctls[&setting("flannel.1")], "2", "a link yet to be made");
    assert_eq!(overlay.reconcile(&kernel.observe()), []);
}

#[test]
fn n19_a_bridge_of_this_nodes_pods_that_netfilter_does_not_see_is_reported() {
    let (mut overlay, _) = with_peer(7);
    let bridge = |name: &str, net: &str| (LinkName::new(name).unwrap(), net.parse::<IpNet>().unwrap());
    let unfiltered_bridges = vec![bridge("cni0", "10.244.0.1/24"), bridge("docker0", "172.17.0.1/16")];
    overlay.set_host(Host { unfiltered_bridges, ..host(1500) });
    let texts: Vec<String> =
        overlay.problems().iter().filter(|problem| &*problem.node == OWN).map(ToString::to_string).collect();
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].contains("bridge cni0") && texts[0].contains("bridge-nf-call-iptables"), "{texts:?}");
    assert_eq!(overlay.changes(), Some(vec![]), "nothing else is looked at again");
    overlay.set_host(host(1500));
    assert!(overlay.problems().iter().all(|problem| &*problem.node != OWN));
}

#[test]
fn n22_the_own_subnet_gets_a_blackhole_route_and_loses_it_with_the_setting() {
    let (mut overlay, mut kernel) =
        (Overlay::new(Settings { blackhole: true, ..settings() }).unwrap(), FakeKernel::default());
    overlay.set_host(host(1500));
    feed(&mut overlay, &own_event());
    let ops = overlay.reconcile(&kernel.observe());
    for op in &ops {
        kernel.run(op).unwrap();
    }
    let own: BTreeSet<IpNet> = ["10.244.0.0/24", "fd00::/64"].map(|net| net.parse().unwrap()).into();
    assert_eq!(kernel.observe().blackholes, own);
    let mut without = self::overlay();
    feed(&mut without, &own_event());
    let ops = without.reconcile(&kernel.observe());
    assert_eq!(ops.iter().map(kind).collect::<Vec<_>>(), ["RemoveBlackhole", "RemoveBlackhole"]);
}

#[test]
fn n14_problems_follow_the_nodes_that_have_them() {
    let (mut overlay, _) = with_peer(7);
    let texts = |overlay: &Overlay| -> Vec<String> {
        overlay.problems().iter().map(ToString::to_string).filter(|text| !text.contains("no IPv6")).collect()
    };
    assert_eq!(texts(&overlay), Vec::<String>::new());
    let rival = Node { name: "peer-8".into(), ..peer(7) };
    overlay.apply(&rival.name.clone(), Some(&rival));
    let found = texts(&overlay);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("Node peer-8: subnet 10.244.7.0/24 overlaps"), "{found:?}");
    overlay.apply(&peer(7).name.clone(), None);
    assert_eq!(texts(&overlay), Vec::<String>::new());
}

#[test]
fn n5_a_slip_in_an_annotation_of_a_live_peer_is_named_and_costs_it_nothing() {
    let (mut overlay, _) = with_peer(7);
    let before = overlay.plan().rows;
    let faulty = |key: &str, value: Option<&str>| {
        let mut node = peer(7);
        node.flannel.remove(key);
        node.flannel.extend(value.map(|value| (key.to_owned(), value.to_owned())));
        node
    };
    let named = |overlay: &Overlay| -> Vec<String> {
        overlay.problems().iter().map(ToString::to_string).filter(|text| !text.contains("no IPv6")).collect()
    };
    for (key, value) in [
        ("public-ip", Some("oops")),
        ("public-ip", None),
        ("backend-data", Some(r#"{"VNI":1,"VtepMAC":"oops"}"#)),
        ("backend-data", None),
    ] {
        overlay.apply(&"peer-7".into(), Some(&faulty(key, value)));
        assert_eq!(overlay.changes(), Some(vec![]), "{key} {value:?}");
        let found = named(&overlay);
        let [text] = &found[..] else { panic!("{found:?}") };
        assert!(text.starts_with(&format!("Node peer-7: annotation {key}: ")), "{text}");
        assert!(text.ends_with("the node goes on to be reached for IPv4 as it said before"), "{text}");
    }
    // Another subnet is another lease; a Node that takes part no more, or that is gone, has none.
    let elsewhere = Node { pod_cidrs: vec!["10.244.77.0/24".parse().unwrap()], ..faulty("public-ip", None) };
    for (node, faults) in [(Some(elsewhere), 1), (Some(faulty("kube-subnet-manager", None)), 0), (None, 0)] {
        overlay.apply(&"peer-7".into(), Some(&peer(7)));
        assert_eq!((overlay.plan().rows, named(&overlay)), (before.clone(), vec![]), "and it is as it was");
        overlay.apply(&"peer-7".into(), node.as_ref());
        assert_eq!((overlay.plan().rows, named(&overlay).len()), (Rows::default(), faults), "{node:?}");
        overlay.apply(&"peer-7".into(), Some(&faulty("public-ip", Some("oops"))));
        assert!(overlay.plan().rows.routes.is_empty(), "what was given up does not come back");
        assert!(named(&overlay)[0].ends_with("the node is skipped for IPv4"), "{:?}", named(&overlay));
    }
}

#[test]
fn n14_one_node_with_a_wide_subnet_or_everybodys_mac_costs_no_other_node_its_place() {
    let (mut overlay, _) = with_peer(7);
    for n in [8, 9] {
        overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
    }
    let before = overlay.plan().rows;
    let faults = |overlay: &Overlay, name: &str| -> Vec<String> {
        let of_it = overlay.problems().into_iter().filter(|problem| &*problem.node == name);
        of_it.map(|problem| problem.reason.to_string()).filter(|text| !text.contains("no IPv6")).collect()
    };
    let claim = |subnet: &str, mac: u8| {
        let shape = Shape {
            managed: true,
            slip: false,
            host_gw: false,
            v4: Some((7, 24)),
            v6: None,
            mac,
            underlay: 60,
        };
        Node { pod_cidrs: vec![subnet.parse().unwrap()], ..node("aaa", &shape) }
    };
    for (subnet, mac, fault) in [
        // Around this machine's own subnet, then around those of two peers only.
        ("10.244.0.0/16", 60, "subnet 10.244.0.0/16 overlaps 10.244.0.0/24 of Node m"),
        ("10.244.8.0/23", 60, "subnet 10.244.8.0/23 overlaps 10.244.8.0/24 of Node peer-8"),
        // What this machine refuses has no claim on a peer's MAC either.
        ("10.244.0.0/16", 7, "subnet 10.244.0.0/16 overlaps 10.244.0.0/24 of Node m"),
        ("10.244.0.0/24", 8, "subnet 10.244.0.0/24 overlaps 10.244.0.0/24 of Node m"),
    ] {
        overlay.apply(&"aaa".into(), Some(&claim(subnet, mac)));
        assert_eq!(overlay.plan().rows, before, "{subnet} {mac}");
        let found = faults(&overlay, "aaa");
        assert!(found.len() == 1 && found[0].starts_with(fault), "{found:?}");
        assert!((7..=9).all(|n| faults(&overlay, &format!("peer-{n}")).is_empty()));
    }
    overlay.apply(&"aaa".into(), Some(&claim("10.244.8.0/24", 60)));
    let found = faults(&overlay, "peer-8");
    assert!(found[0].contains("10.244.8.0/24 of Node aaa"), "between equal ones the name decides: {found:?}");
}

#[test]
fn n23_a_nodes_address_in_a_pod_network_is_named_and_only_what_would_cut_it_off_is_not_routed() {
    let (mut overlay, _) = with_peer(7);
    let at = |n: u8, address: &str| {
        let mut node = peer(n);
        node.flannel.insert("public-ip".to_owned(), address.to_owned());
        node
    };
    let routed = |overlay: &Overlay| -> Vec<String> {
        overlay.plan().rows.routes.keys().map(ToString::to_string).collect()
    };
    let found = |overlay: &Overlay| -> Vec<(String, &'static str)> {
        let all = overlay.problems().into_iter();
        all.filter(|problem| !matches!(problem.reason, Reason::NoSubnet(_)))
            .map(|problem| (problem.node.to_string(), problem.reason.name()))
            .collect()
    };
    let named = |node: &str, reason| (node.to_owned(), reason);

    for n in 8..=9 {
        overlay.apply(&peer(n).name, Some(&at(n, &format!("10.244.200.{n}"))));
    }
    assert_eq!(routed(&overlay), ["10.244.7.0/24", "10.244.8.0/24", "10.244.9.0/24"]);
    let among = [named("peer-8", "AddressAmongPods"), named("peer-9", "AddressAmongPods")];
    assert_eq!(found(&overlay), among);

    overlay.apply(&peer(200).name, Some(&peer(200)));
    assert_eq!(routed(&overlay), ["10.244.7.0/24", "10.244.8.0/24", "10.244.9.0/24"]);
    let covers = [vec![named("peer-200", "SubnetCovers")], among.to_vec()].concat();
    assert_eq!(found(&overlay), covers);
    let text = overlay.problems().iter().map(ToString::to_string).find(|text| text.contains("contains"));
    let text = text.unwrap();
    assert!(
        text.contains("10.244.200.0/24") && text.contains("10.244.200.8, the address of Node peer-8"),
        "{text}"
    );

    overlay.changes().unwrap();
    for n in 8..=9 {
        overlay.apply(&peer(n).name, Some(&peer(n)));
    }
    let kinds: Vec<&str> = overlay.changes().unwrap().iter().map(kind).collect();
    assert_eq!(
        kinds,
        ["SetNeighbour", "SetFdb", "SetFdb", "SetFdb", "SetRoute"],
        "those two and the one that waited"
    );
    assert_eq!(found(&overlay), []);

    overlay.apply(&peer(9).name, Some(&at(9, "10.244.0.9")));
    assert!(
        !routed(&overlay).contains(&"10.244.9.0/24".to_owned()),
        "its packets would end in this node's pods"
    );
    assert_eq!(found(&overlay), [named("peer-9", "AddressAmongPods"), named("peer-9", "AddressInSubnet")]);
    overlay.apply(&peer(9).name, Some(&at(9, "10.244.9.1")));
    assert_eq!(
        found(&overlay),
        [named("peer-9", "AddressAmongPods"), named("peer-9", "SubnetCovers")],
        "in its own subnet"
    );
    assert_eq!(routed(&overlay).len(), 3);
}

#[test]
fn n23_a_subnet_with_this_machines_own_address_is_not_routed() {
    let mut overlay = overlay();
    feed(&mut overlay, &own_event());
    let mut host = host(1500);
    host.external.v4 = Some(Ipv4Addr::new(10, 244, 7, 9));
    overlay.set_host(host);
    overlay.apply(&peer(7).name, Some(&peer(7)));
    overlay.apply(&peer(8).name, Some(&peer(8)));
    let routes: Vec<String> = overlay.plan().rows.routes.keys().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.244.8.0/24"]);
    let texts: Vec<String> = overlay.problems().iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.contains("10.244.7.9, the address of Node m")), "{texts:?}");
}

#[test]
fn n23_nodes_with_addresses_of_services_are_named_and_nothing_else_changes() {
    let (mut overlay, _) = with_peer(7);
    feed(&mut overlay, &Event::Services(true));
    assert_eq!(overlay.changes(), Some(vec![]));
    let named = |overlay: &Overlay| {
        let reasons: Vec<_> = overlay.problems().iter().map(|problem| problem.reason.name()).collect();
        reasons.contains(&"AddressInServiceRange")
    };
    assert!(named(&overlay));
    feed(&mut overlay, &Event::Services(false));
    assert!(!named(&overlay));
}

/// An overlay with DirectRouting and one peer, and the kernel that has it.
fn direct_peer(n: u8, neighbours: u8) -> (Overlay, FakeKernel) {
    let settings = Settings { direct_routing: true, ..settings() };
    let (mut overlay, mut kernel) = (Overlay::new(settings).unwrap(), FakeKernel::default());
    overlay.set_host(host_with(1500, neighbours));
    feed(&mut overlay, &own_event());
    overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    assert_eq!(kernel.observe().rows.routes.len(), 1);
    (overlay, kernel)
}

#[test]
fn n20_without_the_own_subnet_everything_stands_as_it_is() {
    let (mut overlay, kernel) = with_peer(7);
    overlay.apply(&OWN.into(), None);
    assert_eq!(overlay.reconcile(&kernel.observe()), []);
    assert_eq!(overlay.masquerade(), None, "the rules that stand stay");
    assert_eq!(overlay.problems()[0].reason, Reason::NoNode);
    overlay.apply(&OWN.into(), Some(&Node { name: OWN.into(), ..Node::default() }));
    assert_eq!(overlay.reconcile(&kernel.observe()), []);
    assert_eq!(overlay.masquerade(), None);
    let own = overlay.problems().into_iter().filter(|problem| &*problem.node == OWN);
    let reasons: Vec<Reason> = own.map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::NoSubnet(Family::V4), Reason::NoSubnet(Family::V6)]);
}

#[test]
fn n10_pods_of_the_own_subnets_are_masqueraded_as_far_as_those_are_known() {
    let (mut overlay, _) = with_peer(7);
    let own_subnets = |overlay: &Overlay| overlay.masquerade().unwrap().own_subnets;
    let Event::Node(_, Some(shape)) = own_event() else { panic!("own Node") };
    assert_eq!(own_subnets(&overlay), node(OWN, &shape).pod_cidrs);
    feed(&mut overlay, &Event::Node(3, Some(Shape { v6: None, ..shape.clone() })));
    assert_eq!(own_subnets(&overlay), [subnet4(&shape).unwrap()]);
}

#[test]
fn n19_interfaces_go_on_taking_router_advertisements_when_forwarding_is_switched_on() {
    let eth = |n: u8| LinkName::new(&format!("eth{n}")).unwrap();
    for (forwarding, steps) in [("0", 3), ("1", 1)] {
        let (mut overlay, mut kernel) = with_peer(7);
        let sysctls = &mut kernel.state_mut().sysctls;
        sysctls.insert(Sysctl::Forwarding(Family::V4), "0".to_owned());
        sysctls.insert(Sysctl::Forwarding(Family::V6), forwarding.to_owned());
        for (n, value) in [(0, "0"), (1, "1"), (2, "2")] {
            sysctls.insert(Sysctl::KeepRa(eth(n)), value.to_owned());
        }
        let wanted = [Sysctl::Forwarding(Family::V4), Sysctl::KeepRa(eth(1)), Sysctl::Forwarding(Family::V6)];
        let wanted: Vec<Op> = wanted.into_iter().map(Op::SetSysctl).take(steps).collect();
        assert_eq!(overlay.reconcile(&kernel.observe()), wanted);
    }
}

#[test]
fn n13_what_somebody_added_to_a_route_or_did_with_a_link_is_taken_back() {
    let (mut overlay, mut kernel) = with_peer(7);
    let name = LinkName::new("flannel.1").unwrap();
    let subnet: IpNet = "10.244.7.0/24".parse().unwrap();
    let state = kernel.state_mut();
    state.altered_routes.insert(subnet);
    state.links.get_mut(&name).unwrap().enslaved = true;
    let ops = overlay.reconcile(&kernel.observe());
    assert_eq!(ops.iter().map(kind).collect::<Vec<_>>(), ["SetLink", "SetRoute"]);
    ops.iter().for_each(|op| kernel.run(op).unwrap());
    assert_eq!(overlay.reconcile(&kernel.observe()), []);

    kernel.state_mut().altered_routes.insert(subnet);
    overlay.apply(&"peer-7".into(), None);
    let ops = overlay.reconcile(&kernel.observe());
    assert_eq!(ops.iter().map(kind).collect::<Vec<_>>(), ["RemoveRoute", "RemoveNeighbour", "RemoveFdb"]);
}

#[test]
fn n19_forwarding_is_switched_on_for_our_links_and_the_interface_where_it_is_off_for_them_alone() {
    let (mut overlay, mut kernel) = with_peer(7);
    let link = |name: &str| LinkName::new(name).unwrap();
    let off = |family, name: &str| (Sysctl::LinkForwarding(family, link(name)), "0".to_owned());
    kernel.state_mut().sysctls.extend([
        off(Family::V4, "eth0"),
        off(Family::V4, "flannel.1"),
        off(Family::V6, "flannel-v6.1"),
        off(Family::V6, "eth0"),
        // Those do not matter: the one is of the other family, the other nobody's concern.
        off(Family::V6, "flannel.1"),
        off(Family::V4, "eth9"),
    ]);
    let paths = |ops: &[Op]| -> Vec<String> {
        let path = |op: &Op| match op {
            Op::SetSysctl(sysctl) => sysctl.path(),
            op => panic!("{op:?}"),
        };
        ops.iter().map(path).collect()
    };
    let expected = [
        "net/ipv4/conf/flannel.1/forwarding",
        "net/ipv4/conf/eth0/forwarding",
        "net/ipv6/conf/flannel-v6.1/forwarding",
        "net/ipv6/conf/eth0/forwarding",
    ];
    assert_eq!(paths(&overlay.reconcile(&kernel.observe())), expected);
    kernel.state_mut().sysctls.insert(Sysctl::Forwarding(Family::V4), "0".to_owned());
    let ops = overlay.reconcile(&kernel.observe());
    assert_eq!(paths(&ops)[..1], ["net/ipv4/ip_forward"], "which switches it on for every link");
    assert_eq!(ops.len(), 3);
}

#[test]
fn n20_entries_of_an_earlier_run_that_no_longer_hold_are_removed() {
    let (mut overlay, mut kernel) = with_peer(7);
    let link = LinkName::new("flannel.1").unwrap();
    let gateway: IpAddr = [10, 244, 99, 0].into();
    let rows = &mut kernel.state_mut().rows;
    rows.neighbours.insert(NeighbourKey { link: link.clone(), address: gateway }, mac(99, 4));
    rows.fdb.insert(FdbKey { link: link.clone(), mac: mac(99, 4) }, [192, 0, 2, 99].into());
    let route = Route { via: gateway, link, onlink: true };
    rows.routes.insert("10.244.99.0/24".parse().unwrap(), route.clone());
    kernel.state_mut().flannel_routes.insert("10.244.98.0/24".parse().unwrap(), route);
    let ops = overlay.reconcile(&kernel.observe());
    assert_eq!(
        ops.iter().map(kind).collect::<Vec<_>>(),
        ["RemoveRoute", "RemoveRoute", "RemoveNeighbour", "RemoveFdb"]
    );
}

#[test]
fn s22_links_that_flannel_has_back_are_not_removed() {
    let (mut overlay, mut kernel) = with_peer(7);
    overlay.reconcile(&kernel.observe()).iter().for_each(|op| kernel.run(op).unwrap());
    let kinds = |kernel: &FakeKernel| removal(&kernel.observe()).iter().map(kind).collect::<Vec<_>>();
    assert_eq!(kinds(&kernel), ["RemoveRoute", "RemoveLink", "RemoveLink"]);
    let state = kernel.state_mut();
    state.flannel_routes = std::mem::take(&mut state.rows.routes);
    assert_eq!(kinds(&kernel), [""; 0], "not even the link on which flannel has no peer");
    kernel.state_mut().flannel_routes.clear();
    assert_eq!(kinds(&kernel), ["RemoveLink", "RemoveLink"]);
}

#[test]
fn n5_the_annotations_to_write_are_those_that_differ() {
    let (mut overlay, _) = with_peer(7);
    let wanted = overlay.annotations();
    assert_eq!(wanted.keys().copied().collect::<Vec<_>>(), ["public-ip", "public-ipv6"], "the rest stands");
    let Event::Node(_, Some(shape)) = own_event() else { panic!("own Node") };
    let mut own = node(OWN, &shape);
    own.flannel.extend(wanted.into_iter().map(|(key, value)| (key.to_owned(), value)));
    overlay.apply(&OWN.into(), Some(&own));
    assert_eq!(overlay.annotations(), BTreeMap::new());
}

#[test]
fn n6_the_mac_is_that_of_the_annotation_else_of_the_device_else_derived() {
    let unmanaged = Shape {
        managed: false,
        slip: false,
        host_gw: false,
        v4: Some((0, 24)),
        v6: None,
        mac: 5,
        underlay: 0,
    };
    let link = LinkName::new("flannel.1").unwrap();
    let mac_of = |overlay: &Overlay| overlay.plan().links[&link].mac;

    let mut overlay = overlay();
    feed(&mut overlay, &Event::Node(3, Some(unmanaged.clone())));
    assert_eq!(mac_of(&overlay), own_device_mac());
    feed(&mut overlay, &Event::Node(3, Some(Shape { managed: true, ..unmanaged.clone() })));
    assert_eq!(mac_of(&overlay), mac(5, 4));
    let mut overlay = Overlay::new(settings()).unwrap();
    overlay.set_host(Host { device_macs: PerFamily::default(), ..host(1500) });
    feed(&mut overlay, &Event::Node(3, Some(unmanaged)));
    assert_eq!(mac_of(&overlay), Mac::derived(OWN, Default::default(), Family::V4));
}

fn with_peer(n: u8) -> (Overlay, FakeKernel) {
    let (mut overlay, mut kernel) = (overlay(), FakeKernel::default());
    feed(&mut overlay, &own_event());
    overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    assert_eq!(kernel.observe().rows.routes.len(), 1);
    (overlay, kernel)
}

fn own_event() -> Event {
    Event::Node(
        3,
        Some(Shape {
            managed: true,
            slip: false,
            host_gw: false,
            v4: Some((0, 24)),
            v6: Some(0),
            mac: 0,
            underlay: 0,
        }),
    )
}

/// Routes whose gateway has no MAC, or whose MAC leads nowhere.
fn uncovered(rows: &Rows) -> Vec<IpNet> {
    let covered = |route: &Route| {
        if !route.onlink {
            return Some(route.via);
        }
        let key = NeighbourKey { link: route.link.clone(), address: route.via };
        let mac = rows.neighbours.get(&key)?;
        rows.fdb.get(&FdbKey { link: route.link.clone(), mac: *mac }).copied()
    };
    rows.routes.iter().filter(|(_, route)| covered(route).is_none()).map(|(subnet, _)| *subnet).collect()
}

/// Subnets that were and will be routed, but are not now.
fn cut_off(before: &Rows, now: &Rows, wanted: &Rows) -> Vec<IpNet> {
    let stays = before.routes.keys().filter(|subnet| wanted.routes.contains_key(subnet));
    stays.filter(|subnet| !now.routes.contains_key(subnet)).copied().collect()
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::AddLink { .. } => "AddLink",
        Op::SetLink { .. } => "SetLink",
        Op::LinkUp(_) => "LinkUp",
        Op::RemoveLink { .. } => "RemoveLink",
        Op::SetSysctl(_) => "SetSysctl",
        Op::AddAddress(..) => "AddAddress",
        Op::RemoveAddress(..) => "RemoveAddress",
        Op::SetNeighbour(..) => "SetNeighbour",
        Op::RemoveNeighbour(_) => "RemoveNeighbour",
        Op::SetFdb(..) => "SetFdb",
        Op::RemoveFdb(..) => "RemoveFdb",
        Op::SetRoute(..) => "SetRoute",
        Op::RemoveRoute(..) => "RemoveRoute",
        Op::SetBlackhole(_) => "SetBlackhole",
        Op::RemoveBlackhole(_) => "RemoveBlackhole",
        Op::SetOffload(..) => "SetOffload",
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0..NAMES.len(), prop::option::weighted(0.8, shape())).prop_map(|(at, shape)| Event::Node(at, shape)),
        2 => (prop_oneof![Just(1400), Just(1500)], any::<u8>())
            .prop_map(|(mtu, neighbours)| Event::Host(mtu, neighbours)),
        1 => any::<bool>().prop_map(Event::Services),
        2 => Just(Event::Drain),
    ];
    prop::collection::vec(event, 0..25)
}

fn shape() -> impl Strategy<Value = Shape> {
    let v4 =
        prop::option::weighted(0.9, (0u8..6, prop_oneof![4 => Just(24u8), 1 => Just(23), 1 => Just(25)]));
    let v6 = prop::option::of(0u8..5);
    let bools = (prop::bool::weighted(0.9), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    // Some have an address in what may be a node's subnet.
    let underlay = prop_oneof![8 => 1u8..6, 1 => 250u8..];
    (bools, v4, v6, 0u8..8, underlay).prop_map(|((managed, host_gw, slip), v4, v6, mac, underlay)| Shape {
        managed,
        slip,
        host_gw,
        v4,
        v6,
        mac,
        underlay,
    })
}

/// VXLAN with and without DirectRouting, and host-gw.
fn any_settings() -> impl Strategy<Value = Settings> {
    let backend = prop_oneof![3 => Just(Backend::Vxlan), 1 => Just(Backend::HostGw)];
    (backend, any::<bool>(), any::<bool>()).prop_map(|(backend, direct_routing, blackhole)| Settings {
        backend,
        direct_routing,
        blackhole,
        ..settings()
    })
}

fn overlay() -> Overlay {
    let mut overlay = Overlay::new(settings()).unwrap();
    overlay.set_host(host(1500));
    overlay
}

fn settings() -> Settings {
    let networks = vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()];
    Settings::new(OWN, networks, Peering::Annotated)
}

fn host(mtu: u32) -> Host {
    host_with(mtu, 0)
}

/// A machine on which the underlay addresses 192.0.2.n and 2001:db8::n are neighbours' if bit n is set, and behind
/// a router otherwise.
fn host_with(mtu: u32, neighbours: u8) -> Host {
    let external = ExternalInterface {
        index: IfIndex(2),
        name: LinkName::new("eth0").unwrap(),
        mtu: Mtu::new(mtu).unwrap(),
        v4: Some(Ipv4Addr::new(192, 0, 2, 250)),
        v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x250)),
    };
    let device_macs = PerFamily { v4: Some(own_device_mac()), v6: None };
    let routes = (0..8).flat_map(|n| {
        let address = |text: String| -> IpAddr { text.parse().unwrap() };
        let via = |router: &str| (neighbours & (1 << n) == 0).then(|| address(router.to_owned()));
        [
            host_route(address(format!("192.0.2.{n}")), via("192.0.2.254")),
            host_route(address(format!("2001:db8::{n}")), via("2001:db8::254")),
        ]
    });
    Host { device_macs, routes: routes.collect(), ..Host::new(external) }
}

fn host_route(address: IpAddr, via: Option<IpAddr>) -> HostRoute {
    let link = Some((IfIndex(2), LinkName::new("eth0").unwrap()));
    HostRoute { destination: address.into(), metric: 0, via, link }
}

fn own_device_mac() -> Mac {
    Mac::new([0x0a, 0, 0, 0, 0xee, 0xee])
}

fn feed(overlay: &mut Overlay, event: &Event) {
    match event {
        Event::Node(at, shape) => {
            let name: Arc<str> = NAMES[*at].into();
            let node = shape.as_ref().map(|shape| node(&name, shape));
            overlay.apply(&name, node.as_ref());
        }
        Event::Host(mtu, neighbours) => overlay.set_host(host_with(*mtu, *neighbours)),
        Event::Services(present) => {
            let ranges = ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap());
            overlay.set_service_ranges(if *present { &ranges } else { &[] });
        }
        Event::Drain => {}
    }
}

/// From 250 on, addresses of pods.
fn underlay(n: u8, family: Family) -> IpAddr {
    let text = match (family, n) {
        (Family::V4, 250..) => format!("10.244.{}.200", n - 250),
        (Family::V4, _) => format!("192.0.2.{n}"),
        (Family::V6, 250..) => format!("fd00:0:0:{}::200", n - 250),
        (Family::V6, _) => format!("2001:db8::{n}"),
    };
    text.parse().unwrap()
}

fn node(name: &str, shape: &Shape) -> Node {
    let v6 = shape.v6.map(|at| format!("fd00:0:0:{at}::/64").parse().unwrap());
    let mut node = Node {
        name: name.into(),
        pod_cidrs: subnet4(shape).into_iter().chain(v6).collect(),
        ..Node::default()
    };
    if shape.managed {
        node.flannel = [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", if shape.host_gw { "host-gw" } else { "vxlan" }.to_owned()),
            ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(shape.mac, 4))),
            ("backend-v6-data", format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(shape.mac, 6))),
            (
                "public-ip",
                if shape.slip { "oops".to_owned() } else { underlay(shape.underlay, Family::V4).to_string() },
            ),
            ("public-ipv6", underlay(shape.underlay, Family::V6).to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    }
    node
}

fn peer(n: u8) -> Node {
    node(
        &format!("peer-{n}"),
        &Shape {
            managed: true,
            slip: false,
            host_gw: false,
            v4: Some((n, 24)),
            v6: None,
            mac: n,
            underlay: n,
        },
    )
}

fn subnet4(shape: &Shape) -> Option<IpNet> {
    let (at, length) = shape.v4?;
    Some(IpNet::new([10, 244, at, 0].into(), length).unwrap().trunc())
}

fn mac(at: u8, family: u8) -> Mac {
    Mac::new([0x0a, 0, 0, 0, family - 4, at])
}
