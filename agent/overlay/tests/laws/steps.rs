//! One event after the other: which steps follow, and in which order.

use crate::world::*;

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
