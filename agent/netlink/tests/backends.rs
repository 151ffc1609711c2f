//! Ways to peers other than plain VXLAN, and facts of the machine that change under traffic. Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{panic, thread};

use podway_overlay::{Backend, Offload, Op, Overlay, Peering, Settings};
use support::{Namespace, Pair, configured, link, net, node};

/// How long a packet may be on its way.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn n6_host_gw_carries_packets_without_a_link_in_both_families() {
    let pair = Pair::new();
    let host_gw = |n| Settings { backend: Backend::HostGw, ..settings(n) };
    let mut overlays = [1, 2].map(|n| {
        give_pod(&pair, n);
        configured(&pair.nodes[usize::from(n) - 1], host_gw(n))
    });
    for (node, overlay) in pair.nodes.iter().zip(&mut overlays) {
        assert_eq!(overlay.problems(), []);
        node.reconcile(overlay);
        assert_eq!(node.observe(overlay).rows, overlay.plan().rows);
        assert_eq!(node.reconcile(overlay), []);
    }
    assert_eq!(
        pair.nodes[0].ip("route show 10.244.2.0/24").trim(),
        format!("10.244.2.0/24 via 192.0.2.2 dev eth0 proto {}", podway_netlink::ROUTE_PROTOCOL)
    );
    assert!(!pair.nodes[0].ip("link show").contains("flannel"), "no link is needed");
    for (from, to) in [("10.244.1.5", "10.244.2.5"), ("fd00:0:0:1::5", "fd00:0:0:2::5")] {
        let received = traffic(&pair, from, to, || ());
        assert!(received.sent > 0 && received.lost.is_empty(), "{from} to {to}: {received:?}");
    }
    pair.nodes[0].netlink(|netlink| async move { netlink.remove_all().await.unwrap() });
    assert!(!pair.nodes[0].ip("route").contains("10.244.2.0/24"), "clean-up takes plain routes too");
}

#[test]
fn n6_host_gw_takes_over_flannels_very_route_and_leaves_another() {
    let pair = Pair::new();
    pair.nodes[0].ip("route add 10.244.2.0/24 via 192.0.2.2 dev eth0 proto boot");
    pair.nodes[0].ip("route add 10.244.3.0/24 via 192.0.2.9 dev eth0 proto boot");
    let mut overlay = configured(&pair.nodes[0], Settings { backend: Backend::HostGw, ..settings(1) });
    overlay.apply(&"node-3".into(), Some(&node(3)));
    let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
    let report = pair.nodes[0].run(&ops);
    let texts: Vec<String> = report.failures.iter().map(|failure| failure.error.to_string()).collect();
    assert_eq!(
        texts,
        [
            "cannot set route 10.244.3.0/24: there is a route of somebody else, via 192.0.2.9 dev eth0 protocol 3"
        ]
    );
    let routes = pair.nodes[0].ip("route");
    assert!(routes.contains("10.244.2.0/24 via 192.0.2.2 dev eth0 proto 105"), "{routes}");
    assert!(routes.contains("10.244.3.0/24 via 192.0.2.9 dev eth0"), "{routes}");
}

#[test]
fn n6_direct_routing_follows_the_machines_routes_and_loses_no_packet() {
    for (from, to, family, own) in [
        ("10.244.1.5", "10.244.2.5", "-4", "192.0.2.2/32 via 192.0.2.2 dev eth0 onlink"),
        ("fd00:0:0:1::5", "fd00:0:0:2::5", "-6", "2001:db8::2/128 via 2001:db8::2 dev eth0 onlink"),
    ] {
        let pair = Pair::new();
        let direct = |n| Settings { direct_routing: true, ..settings(n) };
        for n in [1, 2] {
            give_pod(&pair, n);
        }
        let (ours, peer) = (&pair.nodes[0], &pair.nodes[1]);
        peer.reconcile(&mut configured(peer, direct(2)));
        let mut overlay = configured(ours, direct(1));
        ours.reconcile(&mut overlay);
        let subnet = if family == "-4" { "10.244.2.0/24" } else { "fd00:0:0:2::/64" };
        let way = || ours.ip(&format!("{family} route show {subnet}"));
        assert!(way().contains("dev eth0"), "{}", way());

        let received = traffic(&pair, from, to, || {
            for turn in 0..6 {
                // A router in between, though it is the peer itself: packets get there either way.
                let (action, link) = if turn % 2 == 0 { ("add", "dev flannel") } else { ("del", "dev eth0") };
                ours.ip(&format!("{family} route {action} {own}"));
                overlay.set_host(ours.host(&direct(1)));
                let ops = ours.change(&mut overlay);
                assert_eq!(ops.len(), 3, "the peer's three rows and nothing else: {ops:?}");
                assert!(way().contains(link), "{}", way());
                let all = ours.ip(&format!("{family} route show proto {}", podway_netlink::ROUTE_PROTOCOL));
                assert_eq!(all.lines().count(), 1, "nothing is left of the way there: {all}");
                assert_eq!(ours.observe(&overlay).rows, overlay.plan().rows);
                thread::sleep(Duration::from_millis(30));
            }
        });
        assert!(received.sent > 50 && received.lost.is_empty(), "{from} to {to}: {received:?}");
    }
}

#[test]
fn n7_a_changed_mtu_of_the_interface_reaches_the_links_under_traffic() {
    let pair = Pair::new();
    let mut overlays = [1, 2].map(|n| {
        give_pod(&pair, n);
        configured(&pair.nodes[usize::from(n) - 1], settings(n))
    });
    for (node, overlay) in pair.nodes.iter().zip(&mut overlays) {
        node.reconcile(overlay);
    }
    let ours = &pair.nodes[0];
    let received = traffic(&pair, "10.244.1.5", "10.244.2.5", || {
        for mtu in [1400, 1500] {
            ours.ip(&format!("link set eth0 mtu {mtu}"));
            overlays[0].set_host(ours.host(&settings(1)));
            assert_eq!(overlays[0].changes(), None);
            let ops = ours.reconcile(&mut overlays[0]);
            assert!(ops.iter().all(|op| matches!(op, Op::SetLink { mac: None, .. })), "{ops:?}");
            assert_eq!(ours.observe(&overlays[0]).links[&link("flannel.1")].mtu.get(), mtu - 70);
        }
    });
    assert!(received.sent > 0 && received.lost.is_empty(), "{received:?}");
}

#[test]
fn n8_a_new_address_is_taken_in_place_and_a_new_interface_makes_the_link_anew_with_its_mac() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    let settings = Settings { peering: Peering::Annotated, ..settings(1) };
    let mut overlay = configured(ours, settings.clone());
    ours.reconcile(&mut overlay);
    let mac = || ours.observe(&Overlay::new(settings.clone()).unwrap()).links[&link("flannel.1")].mac;
    let before = mac();

    let index = || ours.observe(&Overlay::new(settings.clone()).unwrap()).links[&link("flannel.1")].index;
    let same = index();
    ours.ip("addr del 192.0.2.1/24 dev eth0");
    ours.ip("addr add 192.0.2.77/24 dev eth0");
    overlay.set_host(ours.host(&settings));
    assert_eq!(overlay.annotations()["public-ip"], "192.0.2.77");
    let ops = ours.reconcile(&mut overlay);
    assert!(matches!(ops[..], [Op::SetLink { tunnel: Some(_), .. }]), "the rest stands: {ops:?}");
    assert_eq!((ours.observe(&overlay).rows, index()), (overlay.plan().rows, same));
    assert!(ours.ip("-d link show flannel.1").contains("local 192.0.2.77"));
    assert_eq!(mac(), before);

    ours.ip("link del eth0");
    assert!(!ours.ip("link show").contains("flannel"), "the kernel removed the links along with it");
    ours.veth("eth0", &pair.nodes[1], "eth1");
    ours.ip("addr add 192.0.2.77/24 dev eth0");
    ours.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    overlay.set_host(ours.host(&settings));
    assert_eq!(overlay.changes(), None);
    ours.reconcile(&mut overlay);
    assert_eq!(mac(), before);
    assert_eq!(ours.observe(&overlay).rows, overlay.plan().rows);
}

#[test]
fn n16_checksum_offload_is_switched_off_and_repaired_and_left_alone_by_default() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    let set = |checksum_offload| Settings { checksum_offload, ..settings(1) };
    let shown = |overlay: &Overlay| ours.observe(overlay).links[&link("flannel.1")].offload;
    let mut auto = configured(ours, set(Offload::Auto));
    ours.reconcile(&mut auto);
    assert_eq!(shown(&auto), Some(true), "as the kernel makes it");

    let mut off = configured(ours, set(Offload::Off));
    let ops = ours.reconcile(&mut off);
    let links = ["flannel-v6.1", "flannel.1"].map(|name| Op::SetOffload(link(name), false));
    assert_eq!(ops, links);
    assert_eq!(shown(&off), Some(false));
    assert_eq!(ours.reconcile(&mut auto), [], "what somebody set stays");
    ours.reconcile(&mut configured(ours, set(Offload::On)));
    assert_eq!(shown(&off), Some(true));
    assert_eq!(ours.reconcile(&mut off), links, "repaired");
    ours.ip("link del flannel.1");
    ours.reconcile(&mut off);
    assert_eq!(shown(&off), Some(false), "a link made anew");
}

#[test]
fn n19_a_strict_reverse_path_filter_is_loosened_on_our_link() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    let path = |of: &str| format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
    ours.inside(|| std::fs::write(path("default"), "1").unwrap());
    let mut overlay = configured(ours, settings(1));
    ours.reconcile(&mut overlay);
    let read = |of: &str| ours.inside(|| std::fs::read_to_string(path(of)).unwrap().trim().to_owned());
    assert_eq!((&*read("flannel.1"), &*read("default")), ("2", "1"), "ours alone");
    ours.inside(|| std::fs::write(path("flannel.1"), "0").unwrap());
    assert_eq!(ours.reconcile(&mut overlay), []);
    ours.inside(|| std::fs::write(path("all"), "1").unwrap());
    assert_eq!(ours.reconcile(&mut overlay).len(), 1);
    assert_eq!((&*read("flannel.1"), &*read("all")), ("2", "1"));
}

#[test]
fn n19_a_bridge_of_pods_that_netfilter_does_not_see_is_named() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    ours.ip("link add cni0 type bridge");
    ours.ip("addr add 10.244.1.1/24 dev cni0");
    let seen = ours.inside(|| {
        std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
            .is_ok_and(|value| value.trim() == "1")
    });
    let texts: Vec<String> =
        configured(ours, settings(1)).problems().iter().map(ToString::to_string).collect();
    assert_eq!(texts.iter().any(|text| text.contains("bridge cni0 has the pods of 10.244.1.0/24")), !seen);
}

#[test]
fn n22_unused_addresses_of_the_own_subnet_lead_nowhere_and_pods_are_not_shadowed() {
    let pair = Pair::new();
    let ours = &pair.nodes[0];
    ours.ip("route add default via 192.0.2.2");
    ours.ip("route add 10.244.1.7/32 dev eth0");
    let mut overlay = configured(ours, Settings { blackhole: true, ..settings(1) });
    ours.reconcile(&mut overlay);
    assert_eq!(ours.reconcile(&mut overlay), []);
    assert!(ours.ip("route").contains("blackhole 10.244.1.0/24 proto 105"), "{}", ours.ip("route"));
    assert!(ours.ip("-6 route").contains("blackhole fd00:0:0:1::/64"), "{}", ours.ip("-6 route"));
    let connect = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        ours.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap().connect(to))
    };
    assert!(connect("10.244.1.9:9").is_err(), "nobody has it");
    connect("10.244.1.7:9").unwrap();
    ours.ip("link add cni0 type bridge");
    ours.ip("addr add 10.244.1.1/24 dev cni0");
    ours.ip("link set cni0 up");
    connect("10.244.1.9:9").unwrap();
    assert!(ours.ip("route get 10.244.1.9").contains("dev cni0"), "a bridge of pods comes first");

    ours.ip("route del blackhole 10.244.1.0/24");
    assert_eq!(ours.reconcile(&mut overlay), [Op::SetBlackhole(net("10.244.1.0/24"))], "repaired");
    ours.reconcile(&mut configured(ours, settings(1)));
    assert!(!ours.ip("route").contains("blackhole"));
    ours.reconcile(&mut overlay);
    ours.netlink(|netlink| async move { netlink.remove_all().await.unwrap() });
    assert!(!ours.ip("route").contains("blackhole") && !ours.ip("-6 route").contains("blackhole"));
}

fn settings(n: u8) -> Settings {
    let networks = ["10.244.0.0/16", "fd00::/48"].map(net).to_vec();
    Settings::new(&format!("node-{n}"), networks, Peering::Derived)
}

/// The addresses of a pod, on the node's loopback: 10.244.n.5 and fd00:0:0:n::5.
fn give_pod(pair: &Pair, n: u8) {
    let node = &pair.nodes[usize::from(n) - 1];
    node.ip(&format!("addr add 10.244.{n}.5/32 dev lo"));
    node.ip(&format!("addr add fd00:0:0:{n}::5/128 dev lo nodad"));
}

/// What came of a stream of packets.
#[derive(Debug)]
struct Stream {
    sent: u32,
    lost: Vec<u32>,
}

/// Sends a numbered packet each millisecond from node 1 to node 2 while `meanwhile` goes on.
fn traffic(pair: &Pair, from: &str, to: &str, meanwhile: impl FnOnce()) -> Stream {
    let (receiver, sender) = (bind(&pair.nodes[1], to), bind(&pair.nodes[0], from));
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    first_packet(&sender, &receiver);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0u32;
            while !over.load(Ordering::Relaxed) || sent < 20 {
                sent += 1;
                // A refused send is a lost packet.
                let _ = sender.send(&sent.to_be_bytes());
                thread::sleep(Duration::from_millis(1));
            }
            let _ = sender.send(&u32::MAX.to_be_bytes());
            sent
        });
        let receiving = scope.spawn(|| {
            let mut received = std::collections::BTreeSet::new();
            loop {
                let mut bytes = [0; 4];
                receiver.recv(&mut bytes).unwrap();
                match u32::from_be_bytes(bytes) {
                    u32::MAX => return received,
                    n => received.insert(n),
                };
            }
        });
        let result = panic::catch_unwind(panic::AssertUnwindSafe(meanwhile));
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| panic::resume_unwind(panic));
        let (sent, received) = (sending.join().unwrap(), receiving.join().unwrap());
        Stream { sent, lost: (1..=sent).filter(|n| !received.contains(n)).collect() }
    })
}

/// The first packet waits for the underlay's own ARP and ND.
fn first_packet(sender: &UdpSocket, receiver: &UdpSocket) {
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let arrived = (0..50).any(|_| {
        let _ = sender.send(&0u32.to_be_bytes());
        receiver.recv(&mut [0; 4]).is_ok()
    });
    assert!(arrived, "not one packet arrived");
    while receiver.recv(&mut [0; 4]).is_ok() {}
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
}

fn bind(node: &Namespace, address: &str) -> UdpSocket {
    let address: IpAddr = address.parse().unwrap();
    node.inside(|| UdpSocket::bind((address, 0)).unwrap())
}
