//! Rows in the kernel's maps.

use std::net::{Ipv4Addr, SocketAddr};

use podway_bpf::Error;
use podway_ebpf_common::{FrontendKey, MAX_FRONTENDS, SlotKey, TCP, Target, v4_mapped};
use podway_proxy::Protocol::{Sctp, Tcp, Udp};
use podway_proxy::{Frontend, Masquerade, Pool, RowDelta, Rows};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::fixture::{Node, balance, frontend, pinned_slots, set};

#[test]
fn the_kernel_holds_what_was_applied_whatever_came_before() {
    let node = Node::new();
    let mut dataplane = node.open();
    let mut mirror = Rows::default();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
    let tables = prop::collection::btree_map(any_frontend(), any_pool(), 0..12);
    let mut kernel = std::cell::RefCell::new((&mut dataplane, &mut mirror));

    runner
        .run(&tables, |frontends| {
            let (dataplane, mirror) = &mut *kernel.borrow_mut();
            let desired = Rows { frontends, ..Rows::default() };
            let delta = mirror.delta_to(&desired);
            dataplane.apply(&delta).unwrap();
            dataplane.apply(&delta).unwrap();
            mirror.apply(&delta);
            prop_assert_eq!(dataplane.observe().unwrap(), desired.frontends);
            Ok(())
        })
        .unwrap();

    let (dataplane, mirror) = kernel.get_mut();
    dataplane.apply(&mirror.delta_to(&Rows::default())).unwrap();
    assert_eq!(pinned_slots(&node.settings).keys().count(), 0, "slots without a frontend are left");
}

#[test]
fn removing_what_is_absent_is_no_error() {
    let node = Node::new();
    let mut delta = RowDelta::default();
    delta.frontends.remove.insert(frontend(Tcp, "10.96.0.10:80"));
    node.open().apply(&delta).unwrap();
}

#[test]
fn what_a_killed_daemon_left_half_written_is_seen_or_removed() {
    let node = Node::new();
    let targets: Vec<SocketAddr> = ["10.1.0.1:80", "10.1.0.2:80"].map(|t| t.parse().unwrap()).to_vec();
    let service = frontend(Tcp, "10.96.0.10:80");
    node.open().apply(&set([(service, balance(targets.clone()))])).unwrap();
    let key = FrontendKey::new(v4_mapped([10, 96, 0, 10]), [0, 80], TCP);
    let mut slots = pinned_slots(&node.settings);
    slots.remove(&SlotKey::new(key, 0)).unwrap();
    slots.insert(SlotKey::new(key, 2), Target::new(v4_mapped([10, 1, 0, 3]), [0, 80]), 0).unwrap();

    let mut dataplane = node.open();

    assert_eq!(dataplane.observe().unwrap()[&service], balance([targets[1]]));
    assert!(slots.get(&SlotKey::new(key, 2), 0).is_err(), "a slot beyond the count is left");
    dataplane.apply(&set([(service, balance(targets.clone()))])).unwrap();
    assert_eq!(dataplane.observe().unwrap()[&service], balance(targets));
}

#[test]
fn rows_that_do_not_fit_are_named_and_keep_no_other_out() {
    let node = Node::new();
    let mut dataplane = node.open();
    let rows = (0..=MAX_FRONTENDS).map(|number| {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number).into();
        (Frontend { address, protocol: Tcp, port: 80 }, Pool::Reject)
    });

    let error = dataplane.apply(&set(rows)).unwrap_err();

    assert!(
        matches!(&error, Error::Full { map: "FRONTENDS", frontend } if frontend == "10.1.0.0 port 80/tcp")
    );
    assert_eq!(dataplane.observe().unwrap().len(), MAX_FRONTENDS as usize);
}

fn any_frontend() -> impl Strategy<Value = Frontend> {
    let protocol = prop_oneof![Just(Tcp), Just(Udp), Just(Sctp)];
    (0u8..4, any::<bool>(), protocol, 80u16..82).prop_map(|(last, v6, protocol, port)| {
        let address =
            if v6 { [0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()].into() } else { [10, 96, 0, last].into() };
        Frontend { address, protocol, port }
    })
}

fn any_pool() -> impl Strategy<Value = Pool> {
    let targets = prop::collection::btree_set((0u8..8, 80u16..82), 1..6);
    let masquerade =
        prop_oneof![Just(Masquerade::Never), Just(Masquerade::UnlessPod), Just(Masquerade::Always)];
    let balanced = (targets, masquerade).prop_map(|(targets, masquerade)| Pool::Balance {
        targets: targets.into_iter().map(|(last, port)| SocketAddr::from(([10, 1, 0, last], port))).collect(),
        masquerade,
    });
    prop_oneof![balanced, Just(Pool::Reject), Just(Pool::Drop)]
}
