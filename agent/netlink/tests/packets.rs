//! Real packets from pod to pod over VXLAN. Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use support::{Namespace, Pair, node};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn pods_of_two_nodes_reach_each_other_in_both_families_and_protocols() {
    let cluster = Cluster::new();
    for (from, to) in [("10.244.1.5", "10.244.2.5"), ("fd00:0:0:1::5", "fd00:0:0:2::5")] {
        let answer = cluster.tcp(&cluster.pods[0], to, 200_000);
        assert_eq!(answer.seen_from, from.parse::<IpAddr>().unwrap(), "the pod keeps its address");
        assert_eq!(answer.bytes, 200_000);
        assert_eq!(cluster.udp(&cluster.pods[0], to), from.parse::<IpAddr>().unwrap());
    }
    for name in ["flannel.1", "flannel-v6.1"] {
        assert!(received(&cluster.pair.nodes[1], name) > 0, "packets came in through {name}");
    }
}

#[test]
fn a_host_reaches_the_pods_of_another_node_from_the_address_of_its_link() {
    let cluster = Cluster::new();
    for (from, to) in [("10.244.1.0", "10.244.2.5"), ("fd00:0:0:1::", "fd00:0:0:2::5")] {
        assert_eq!(cluster.udp(&cluster.pair.nodes[0], to), from.parse::<IpAddr>().unwrap());
    }
}

#[test]
fn n12_a_peer_that_goes_is_not_reached_and_one_that_comes_back_is() {
    let cluster = Cluster::new();
    let mut overlay = cluster.pair.overlay(1);
    cluster.pair.nodes[0].reconcile(&mut overlay);
    overlay.apply(&"node-2".into(), None);
    cluster.pair.nodes[0].change(&mut overlay);
    let refused = cluster.pods[0].inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.connect("10.244.2.5:9").unwrap();
        socket.send(b"?").and_then(|_| socket.recv(&mut [0; 8])).is_err()
    });
    assert!(refused);
    overlay.apply(&"node-2".into(), Some(&node(2)));
    cluster.pair.nodes[0].change(&mut overlay);
    assert_eq!(cluster.udp(&cluster.pods[0], "10.244.2.5"), "10.244.1.5".parse::<IpAddr>().unwrap());
}

#[test]
fn a_daemon_that_starts_anew_loses_no_packet() {
    let cluster = Cluster::new();
    let echo = cluster.pods[1].inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    echo.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = echo.local_addr().unwrap().port();
    let sender = cluster.pods[0].inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for n in 0..20u8 {
        sender.send_to(&[n], ("10.244.2.5", port)).unwrap();
        assert_eq!(
            cluster.pair.nodes[usize::from(n % 2)].reconcile(&mut cluster.pair.overlay(n % 2 + 1)),
            []
        );
    }
    for n in 0..20u8 {
        let mut byte = [0];
        echo.recv(&mut byte).unwrap();
        assert_eq!(byte, [n]);
    }
}

/// Two nodes with a pod each: 10.244.n.5 and fd00:0:0:n::5.
struct Cluster {
    pair: Pair,
    pods: [Namespace; 2],
}

impl Cluster {
    fn new() -> Self {
        let pair = Pair::new();
        let pods = [Namespace::new("p1"), Namespace::new("p2")];
        for (n, (node, pod)) in (1..).zip(pair.nodes.iter().zip(&pods)) {
            node.reconcile(&mut pair.overlay(n));
            node.veth("pod0", pod, "eth0");
            node.ip(&format!("addr add 10.244.{n}.1/24 dev pod0"));
            node.ip(&format!("addr add fd00:0:0:{n}::1/64 dev pod0 nodad"));
            pod.ip("link set eth0 mtu 1430");
            pod.ip(&format!("addr add 10.244.{n}.5/24 dev eth0"));
            pod.ip(&format!("addr add fd00:0:0:{n}::5/64 dev eth0 nodad"));
            pod.ip(&format!("route add default via 10.244.{n}.1"));
            pod.ip(&format!("-6 route add default via fd00:0:0:{n}::1"));
        }
        Self { pair, pods }
    }

    /// Sends `bytes` to the second pod by TCP.
    fn tcp(&self, from: &Namespace, to: &str, bytes: usize) -> Answer {
        let to: IpAddr = to.parse().unwrap();
        let listener = self.pods[1].inside(|| TcpListener::bind((to, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            Answer { seen_from: peer.ip(), bytes: all.len() }
        });
        from.inside(|| {
            let mut stream = patiently(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)));
            stream.write_all(&vec![7; bytes]).unwrap();
        });
        server.join().unwrap()
    }

    /// Asks the second pod by UDP whom it sees.
    fn udp(&self, from: &Namespace, to: &str) -> IpAddr {
        let to: IpAddr = to.parse().unwrap();
        let server = self.pods[1].inside(|| UdpSocket::bind((to, 0)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = server.local_addr().unwrap();
        let echo = thread::spawn(move || {
            let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
            server.send_to(b"!", peer).unwrap();
            peer.ip()
        });
        from.inside(|| {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.connect(address).unwrap();
            patiently(|| socket.send(b"?").and_then(|_| socket.recv(&mut [0; 8])));
        });
        echo.join().unwrap()
    }
}

struct Answer {
    seen_from: IpAddr,
    bytes: usize,
}

fn patiently<T>(mut attempt: impl FnMut() -> std::io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > PATIENCE => panic!("last seen: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn received(node: &Namespace, name: &str) -> u64 {
    let shown: serde_json::Value =
        serde_json::from_str(&node.ip(&format!("-s -j link show {name}"))).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}
