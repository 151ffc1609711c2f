//! What stands in the kernel already: kept, taken over, put right or removed.

use crate::world::*;

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
