//! Nodes in each other's way, and Nodes with faults.

use crate::world::*;

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
