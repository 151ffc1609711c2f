//! What follows from the machine: its interface, its settings, its own subnet.

use crate::world::*;

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
