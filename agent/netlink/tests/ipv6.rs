//! What IPv6 does not allow leaves IPv4 alone, and forwarding leaves the machine's own IPv6 alone. Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt::Ipv6Ttl,
};
use podway_netlink::Report;
use podway_overlay::{Observed, Op, Overlay};
use podway_reconcile::Recovery;
use support::{Namespace, Pair, link};

#[test]
fn ipv4_is_complete_where_ipv6_is_switched_off() {
    for (off, on, expected) in [
        (
            "default",
            "flannel-v6.1",
            "cannot add address fd00:0:0:1::/128 to link flannel-v6.1: Permission denied (os error 13)",
        ),
        (
            "all",
            "all",
            "cannot add VXLAN link flannel-v6.1 with VNI 1 and port 8472 from 2001:db8::1: \
             IPv6 is switched off on eth0: Operation not permitted (os error 1)",
        ),
    ] {
        let pair = Pair::new();
        let mut overlay = pair.overlay(1);
        write(&pair.nodes[0], &format!("net/ipv6/conf/{off}/disable_ipv6"), "1");
        let report = run(&pair.nodes[0], &mut overlay);
        let [failure] = &report.failures[..] else { panic!("one failure, not one a peer: {report:#?}") };
        assert_eq!(failure.error.to_string(), expected);
        assert_eq!(failure.error.recovery(), Recovery::Resync, "the daemon lives on");
        assert!(report.skipped.iter().all(|op| op.to_string().contains("flannel-v6.1")), "{report:#?}");
        assert!(ipv4_is_complete(&pair.nodes[0], &overlay));

        write(&pair.nodes[0], &format!("net/ipv6/conf/{on}/disable_ipv6"), "0");
        pair.nodes[0].reconcile(&mut overlay);
        assert_eq!(pair.nodes[0].observe(&overlay).rows, overlay.plan().rows, "and goes on when it is back");
    }
}

#[test]
fn a_container_that_cannot_write_settings_is_warned_and_programs_everything_else() {
    let pair = Pair::new();
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        write(&pair.nodes[0], path, "1");
    }
    let mut overlay = pair.overlay(1);
    let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
    let (report, seen) = run_with_settings_read_only(&pair.nodes[0], &overlay, &ops);
    assert_eq!(overlay.reconcile(&seen), [], "what cannot be set is not tried for ever");
    assert!(report.failures.is_empty() && report.skipped.is_empty(), "{report:#?}");
    let texts: Vec<String> = report.warnings.iter().map(|warning| warning.error.to_string()).collect();
    let text = |link: &str| {
        format!(
            "cannot set /proc/sys/net/ipv6/conf/{link}/accept_ra to 0: Read-only file system (os error 30)"
        )
    };
    assert_eq!(texts, [text("flannel-v6.1"), text("flannel.1")]);
    assert_eq!(pair.nodes[0].observe(&overlay).rows, overlay.plan().rows);
}

#[test]
fn n19_a_container_that_cannot_switch_forwarding_on_says_so_and_lives_on() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    let ops = overlay.reconcile(&pair.nodes[0].observe(&overlay));
    let (report, _) = run_with_settings_read_only(&pair.nodes[0], &overlay, &ops);
    let paths = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    assert_eq!(report.failures.len(), paths.len(), "{report:#?}");
    for (failure, path) in report.failures.iter().zip(paths) {
        let expected = format!(
            "cannot set /proc/sys/{path} to 1: Read-only file system (os error 30); a container may not: set it on \
             the node itself"
        );
        assert_eq!(failure.error.to_string(), expected);
        assert_eq!(failure.error.recovery(), Recovery::Resync);
    }
    assert_eq!(pair.nodes[0].observe(&overlay).rows, overlay.plan().rows);
}

#[test]
fn n19_a_default_route_learnt_by_router_advertisement_stays() {
    let pair = Pair::new();
    for (n, node) in (1..).zip(&pair.nodes) {
        node.ip(&format!("addr add fe80::{n}/64 dev eth0 nodad"));
    }
    write(&pair.nodes[0], "net/ipv6/conf/eth0/accept_ra", "1");
    let default = || pair.nodes[0].ip("-6 route show default");
    let start = Instant::now();
    while !default().contains("via fe80::2 dev eth0 proto ra") {
        assert!(start.elapsed() < Duration::from_secs(10), "no route was learnt: {}", default());
        pair.nodes[1].inside(|| advertise("fe80::1".parse().unwrap()));
        thread::sleep(Duration::from_millis(50));
    }

    let mut overlay = pair.overlay(1);
    let ops = pair.nodes[0].reconcile(&mut overlay);
    assert!(default().contains("via fe80::2 dev eth0 proto ra"), "it is gone");
    let settings: Vec<String> = ops
        .iter()
        .filter(|op| matches!(op, Op::SetSysctl(_)))
        .map(ToString::to_string)
        .filter(|text| !text.contains("flannel"))
        .collect();
    assert_eq!(
        settings,
        [
            "set net/ipv4/ip_forward to 1",
            "set net/ipv6/conf/eth0/accept_ra to 2",
            "set net/ipv6/conf/all/forwarding to 1",
        ]
    );
    assert_eq!(pair.nodes[0].reconcile(&mut overlay), []);
}

fn run(node: &Namespace, overlay: &mut Overlay) -> Report {
    let ops = overlay.reconcile(&node.observe(overlay));
    node.run(&ops)
}

fn ipv4_is_complete(node: &Namespace, overlay: &Overlay) -> bool {
    let (observed, plan) = (node.observe(overlay), overlay.plan());
    let flannel = link("flannel.1");
    let forwarding = node.inside(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    let rows = plan.rows.routes.iter().filter(|(_, route)| route.link == flannel);
    let held = observed.rows.routes.iter().filter(|(_, route)| route.link == flannel);
    rows.eq(held)
        && plan
            .rows
            .neighbours
            .iter()
            .all(|(key, mac)| key.link != flannel || observed.rows.neighbours.get(key) == Some(mac))
        && plan
            .rows
            .fdb
            .iter()
            .all(|(key, underlay)| key.link != flannel || observed.rows.fdb.get(key) == Some(underlay))
        && observed.links[&flannel].up
        && forwarding.trim() == "1"
}

/// As in a container without privileges: its `/proc/sys` is mounted read-only.
/// What came of the steps, and what is seen from in there.
fn run_with_settings_read_only(node: &Namespace, overlay: &Overlay, ops: &[Op]) -> (Report, Observed) {
    let sought = overlay.sought();
    node.inside(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none).unwrap();
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, "/proc/sys", none, again, none).unwrap();
        support::here(|netlink| async move {
            let report = netlink.run(ops).await;
            (report, netlink.observe(&sought).await.unwrap())
        })
    })
}

/// A router advertisement (RFC 4861, 4.2) from eth0: a default router for half an hour.
fn advertise(to: Ipv6Addr) {
    let (kind, code, checksum, hop_limit, flags) = (134, 0, [0, 0], 64, 0);
    let [high, low] = 1800u16.to_be_bytes();
    let mut message = vec![kind, code, checksum[0], checksum[1], hop_limit, flags, high, low];
    message.extend([0; 8]);
    let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6).unwrap();
    setsockopt(&raw, Ipv6Ttl, &255).unwrap();
    let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, if_nametoindex("eth0").unwrap()));
    sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
}

fn write(node: &Namespace, path: &str, value: &str) {
    node.inside(|| fs::write(format!("/proc/sys/{path}"), value).unwrap());
}
