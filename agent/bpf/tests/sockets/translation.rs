//! What a socket meets at `connect`.

use std::collections::BTreeSet;
use std::io::ErrorKind::{ConnectionRefused, NetworkUnreachable};
use std::net::{SocketAddr, TcpStream};

use podway_ebpf_common::{FrontendKey, SlotKey, TCP, v4_mapped};
use podway_proxy::{Masquerade, Pool, Protocol};

use crate::fixture::{Node, balance, frontend, pinned_slots, serve, set};

const V4: &str = "10.96.0.10:80";
const V6: &str = "[fd00:96::10]:80";
/// [`V4`] as an IPv6 socket may name it.
const MAPPED: &str = "[::ffff:10.96.0.10]:80";
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn a_service_is_reached_over_tcp_and_udp_in_both_families_and_by_its_mapped_address() {
    let node = Node::new();
    for protocol in PROTOCOLS {
        let (v4, v6) = (serve(protocol, "127.0.0.1:0"), serve(protocol, "[::1]:0"));
        let rows = [(frontend(protocol, V4), balance([v4])), (frontend(protocol, V6), balance([v6]))];
        let dataplane = node.attached(rows);
        let before = dataplane.counters().unwrap().translated;

        assert_eq!(node.connect(protocol, address(V4)), Ok(v4), "{protocol}");
        assert_eq!(node.connect(protocol, address(V6)), Ok(v6), "{protocol}");
        assert_eq!(node.connect(protocol, address(MAPPED)), Ok(v4), "{protocol}");
        assert_eq!(dataplane.counters().unwrap().translated, before + 3);
    }
}

#[test]
fn a_service_of_one_protocol_is_not_one_of_the_other() {
    let node = Node::new();
    let server = serve(Protocol::Tcp, "127.0.0.1:0");
    let _dataplane = node.attached([(frontend(Protocol::Tcp, V4), balance([server]))]);
    assert_eq!(node.connect(Protocol::Udp, address(V4)), Err(NetworkUnreachable));
}

#[test]
fn s9_a_service_without_endpoints_refuses_at_connect() {
    let node = Node::new();
    for protocol in PROTOCOLS {
        let dataplane = node.attached([V4, V6].map(|at| (frontend(protocol, at), Pool::Reject)));
        let before = dataplane.counters().unwrap().rejected;
        for destination in [V4, V6, MAPPED] {
            let outcome = node.connect(protocol, address(destination));
            assert_eq!(outcome, Err(ConnectionRefused), "{protocol} {destination}");
        }
        assert_eq!(dataplane.counters().unwrap().rejected, before + 3);
    }
}

#[test]
fn what_nftables_has_to_do_is_left_to_it() {
    let node = Node::new();
    let server = serve(Protocol::Tcp, "127.0.0.1:0");
    let masqueraded = Pool::Balance { targets: vec![server], masquerade: Masquerade::Always };
    let dataplane = node.attached([
        (frontend(Protocol::Tcp, V4), Pool::Drop),
        (frontend(Protocol::Tcp, "10.96.0.11:80"), masqueraded),
    ]);
    // The scratch network has no route to Services: what is not translated is unreachable.
    for untranslated in [V4, "10.96.0.11:80", "10.96.0.12:80"] {
        assert_eq!(node.connect(Protocol::Tcp, address(untranslated)), Err(NetworkUnreachable));
    }
    assert_eq!(dataplane.counters().unwrap(), Default::default());
}

#[test]
fn sockets_outside_the_cgroup_are_left_alone() {
    let node = Node::new();
    let server = serve(Protocol::Tcp, "127.0.0.1:0");
    let _dataplane = node.attached([(frontend(Protocol::Tcp, V4), balance([server]))]);
    assert_eq!(TcpStream::connect(V4).unwrap_err().kind(), NetworkUnreachable);
    assert_eq!(node.connect(Protocol::Tcp, address(V4)), Ok(server));
}

#[test]
fn every_target_of_a_pool_gets_connections() {
    let node = Node::new();
    let servers = [serve(Protocol::Tcp, "127.0.0.1:0"), serve(Protocol::Tcp, "127.0.0.1:0")];
    let _dataplane = node.attached([(frontend(Protocol::Tcp, V4), balance(servers))]);

    let outcomes = node.start(Protocol::Tcp, address(V4), 100).outcomes();

    // Fewer than 20 of 100 at a fair coin: once in 10^10 runs.
    for server in servers {
        let share = outcomes.iter().filter(|outcome| **outcome == Ok(server)).count();
        assert!((20..=80).contains(&share), "{server} answered {share} of 100");
    }
}

#[test]
fn no_connection_misses_a_target_while_its_pool_grows_shrinks_and_moves() {
    let node = Node::new();
    let port = serve(Protocol::Tcp, "0.0.0.0:0").port();
    let targets: Vec<_> = (1..=8).map(|last| SocketAddr::from(([127, 0, 0, last], port))).collect();
    let service = frontend(Protocol::Tcp, V4);
    let mut dataplane = node.attached([(service, balance(targets.clone()))]);

    let client = node.start(Protocol::Tcp, address(V4), 3000);
    let mut changes = 0;
    while !client.is_finished() {
        for window in [&targets[..], &targets[..1], &targets[3..], &targets[7..], &targets[2..5]] {
            dataplane.apply(&set([(service, balance(window.to_vec()))])).unwrap();
            changes += 1;
        }
    }

    let outcomes: BTreeSet<_> = client.outcomes().into_iter().collect();
    assert!(outcomes.iter().all(Result::is_ok), "after {changes} changes: {outcomes:?}");
    let counters = dataplane.counters().unwrap();
    assert_eq!((counters.translated, counters.missed_slots), (3000, 0));
    assert!(changes > 100, "only {changes} changes while the client ran");
}

#[test]
fn a_missing_slot_is_looked_for_again_and_at_last_left_to_nftables() {
    let node = Node::new();
    let server = serve(Protocol::Tcp, "127.0.0.1:0");
    let dataplane = node.attached([(frontend(Protocol::Tcp, V4), balance([server, server]))]);
    let lost = SlotKey::new(FrontendKey::new(v4_mapped([10, 96, 0, 10]), [0, 80], TCP), 0);
    pinned_slots(&node.settings).remove(&lost).unwrap();

    let outcomes = node.start(Protocol::Tcp, address(V4), 300).outcomes();

    // Half of all looks miss: one look would translate about 150 of 300, four looks about 281.
    let translated = outcomes.iter().filter(|outcome| **outcome == Ok(server)).count();
    assert!((240..300).contains(&translated), "{translated} of 300 translated");
    assert_eq!(
        outcomes.iter().filter(|outcome| **outcome == Err(NetworkUnreachable)).count(),
        300 - translated
    );
    let counters = dataplane.counters().unwrap();
    assert_eq!((counters.translated, counters.missed_slots), (translated as u64, 300 - translated as u64));
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
