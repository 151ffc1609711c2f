//! What the log says, and by it how often the kernel is asked. Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::mpsc::{self, Sender};

use podway_overlay::{Node, Op, Peering, Settings};
use support::{Namespace, Pair, configured, net, overlay};

#[test]
fn the_log_warns_of_a_link_that_is_made_again_and_says_why() {
    let pair = Pair::new();
    pair.nodes[0].ip("link add flannel.1 type vxlan id 5 dstport 8472 local 192.0.2.1 dev eth0 nolearning");
    let mut overlay = overlay(&pair.nodes[0], 1, &["10.244.0.0/16"]);
    let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
    let log = logged(&pair.nodes[0], &ops);
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one warning: {log}") };
    let expected = "link flannel.1 is removed with all that is on it: its VNI is 5, not 1";
    assert!(warning.ends_with(expected), "{warning}");
}

#[test]
fn n17_all_of_flannels_routes_are_taken_over_by_one_list() {
    const PEERS: u16 = 500;
    let pair = Pair::new();
    let node = &pair.nodes[0];
    let mut overlay = overlay(node, 1, &["10.0.0.0/8"]);
    node.reconcile(&mut overlay);
    let mut routes = String::new();
    for n in 0..PEERS {
        let [a, b] = n.to_be_bytes();
        writeln!(routes, "route add 10.{a}.{b}.0/24 via 10.{a}.{b}.0 dev flannel.1 onlink").unwrap();
        let peer = Node {
            name: format!("peer-{n}").into(),
            addresses: vec![[198, 18, a, b].into()],
            pod_cidrs: vec![net(&format!("10.{a}.{b}.0/24"))],
            ..Node::default()
        };
        overlay.apply(&peer.name.clone(), Some(&peer));
    }
    node.ip_batch(&routes);

    let ops = overlay.reconcile(&node.observe(&overlay));
    let log = logged(node, &ops);
    assert_eq!(log.lines().filter(|line| line.contains("list routes")).count(), 1);
    let observed = node.observe(&overlay);
    assert_eq!(observed.rows, overlay.plan().rows);
    assert!(observed.rows.routes.len() > usize::from(PEERS) && observed.flannel_routes.is_empty());
}

#[test]
fn n17_a_changed_route_costs_no_list_of_the_others() {
    let pair = Pair::new();
    let node = &pair.nodes[0];
    let settings = |direct_routing| Settings {
        direct_routing,
        ..Settings::new("node-1", vec![net("10.244.0.0/16"), net("fd00::/48")], Peering::Derived)
    };
    let mut tunnelled = configured(node, settings(false));
    node.reconcile(&mut tunnelled);
    let mut direct = configured(node, settings(true));
    for overlay in [&mut direct, &mut tunnelled] {
        let ops = overlay.reconcile(&node.observe(overlay));
        let changed = ops.iter().filter(|op| matches!(op, Op::SetRoute(..))).count();
        assert_eq!(changed, 2, "one of each family: {ops:?}");
        let log = logged(node, &ops);
        let lines = |what| log.lines().filter(|line| line.contains(what)).count();
        assert_eq!(lines("list routes"), 0, "{log}");
        assert!((2..=4).contains(&lines("look a route up")), "{log}");
        assert_eq!(node.observe(overlay).rows, overlay.plan().rows);
    }
}

/// Carries the steps out and gives back what was logged meanwhile.
fn logged(node: &Namespace, ops: &[Op]) -> String {
    let (sender, lines) = mpsc::channel();
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || Lines(sender.clone()))
        .finish();
    node.inside(|| {
        tracing::subscriber::with_default(log, || {
            support::here(|netlink| async move { netlink.run(ops).await })
        })
    });
    String::from_utf8(lines.into_iter().flatten().collect()).unwrap()
}

struct Lines(Sender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
