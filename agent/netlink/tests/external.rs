//! Which interface carries the encapsulated packets (contract N8). Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use podway_netlink::{Error, InterfaceChoice};
use podway_overlay::{ExternalInterface, Family};
use support::{Namespace, link};

#[test]
fn n8_by_name_with_the_best_address_of_each_family() {
    let node = machine();
    let found = find(&node, named("eth0")).unwrap();
    assert_eq!((found.name.as_str(), found.mtu.get()), ("eth0", 1500));
    assert_eq!(found.v4.unwrap().to_string(), "192.0.2.1", "neither link-local nor deprecated nor secondary");
    assert_eq!(found.v6.unwrap().to_string(), "2001:db8::1");
}

#[test]
fn n8_by_an_address_which_is_then_the_one_to_send_to() {
    let node = machine();
    let mut choice = ipv4();
    choice.public.v4 = Some("198.51.100.2".parse().unwrap());
    let found = find(&node, choice.clone()).unwrap();
    assert_eq!((found.name.as_str(), found.v4.unwrap().to_string()), ("eth1", "198.51.100.2".to_owned()));
    choice.public.v4 = Some("198.51.100.3".parse().unwrap());
    let text = find(&node, choice).unwrap_err().to_string();
    assert!(text.starts_with("no interface has address 198.51.100.3; there are: "), "{text}");
}

#[test]
fn n8_by_the_default_route_of_the_least_metric() {
    let node = machine();
    assert!(matches!(find(&node, ipv4()).unwrap_err(), Error::NoDefaultRoute { .. }));
    node.ip("route add default via 198.51.100.9 metric 200");
    assert_eq!(find(&node, ipv4()).unwrap().name, link("eth1"));
    node.ip("route add default via 192.0.2.9 metric 100");
    assert_eq!(find(&node, ipv4()).unwrap().name, link("eth0"));
    node.ip("-6 route add default via 2001:db8:1::9");
    let both = InterfaceChoice { families: Family::BOTH.into(), ..ipv4() };
    let text = find(&node, both).unwrap_err().to_string();
    assert!(text.starts_with("the default routes lead to two interfaces, eth0 and eth1"), "{text}");
    assert_eq!(find(&node, ipv4()).unwrap().name, link("eth0"), "IPv6 is off");
}

#[test]
fn n8_by_the_way_to_an_address_as_the_kernel_decides() {
    let node = machine();
    node.ip("route add 203.0.113.64/26 via 198.51.100.9 src 198.51.100.2");
    let choice = |address: &str| InterfaceChoice { can_reach: Some(address.parse().unwrap()), ..ipv4() };
    let found = find(&node, choice("203.0.113.77")).unwrap();
    assert_eq!((found.name.as_str(), found.v4.unwrap().to_string()), ("eth1", "198.51.100.2".to_owned()));
    let found = find(&node, choice("2001:db8:1::77")).unwrap();
    assert_eq!((found.name.as_str(), found.v6.unwrap().to_string()), ("eth1", "2001:db8:1::1".to_owned()));
    let text = find(&node, choice("100.64.0.1")).unwrap_err().to_string();
    assert!(text.starts_with("no interface is meant by the way to 100.64.0.1; there are: "), "{text}");
}

#[test]
fn n8_by_a_pattern_of_addresses_then_of_names() {
    let node = machine();
    let by =
        |pattern: &str| find(&node, InterfaceChoice { patterns: vec![pattern.into()], ..ipv4() }).unwrap();
    assert_eq!(by("^198[.]").name, link("eth1"));
    assert_eq!(by("1$").name, link("eth0"), "an address comes before any name");
    assert_eq!(by("^eth1$").name, link("eth1"));
}

#[test]
fn n8_an_interface_that_is_not_there_is_named_with_those_that_are() {
    let node = machine();
    let text = find(&node, named("eth9")).unwrap_err().to_string();
    assert!(text.starts_with("no interface is meant by interface eth9; there are: "), "{text}");
    assert!(text.contains("eth1 (198.51.100.1 198.51.100.2 2001:db8:1::1"), "{text}");
}

fn ipv4() -> InterfaceChoice {
    InterfaceChoice { families: [Family::V4].into(), ..InterfaceChoice::default() }
}

fn named(name: &str) -> InterfaceChoice {
    InterfaceChoice { interfaces: vec![name.into()], ..ipv4() }
}

fn machine() -> Namespace {
    let node = Namespace::new("ext");
    node.ip("link add eth0 type veth peer name peer0");
    node.ip("link add eth1 type veth peer name peer1");
    for name in ["eth0", "eth1", "peer0", "peer1"] {
        node.ip(&format!("link set {name} up"));
    }
    node.ip("addr add 169.254.7.7/16 dev eth0 scope link");
    node.ip("addr add 203.0.113.1/24 dev eth0 preferred_lft 0");
    node.ip("addr add 192.0.2.1/24 dev eth0");
    node.ip("addr add 192.0.2.2/24 dev eth0");
    node.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    node.ip("addr add 198.51.100.1/24 dev eth1");
    node.ip("addr add 198.51.100.2/24 dev eth1");
    node.ip("addr add 2001:db8:1::1/64 dev eth1 nodad");
    node
}

fn find(node: &Namespace, choice: InterfaceChoice) -> Result<ExternalInterface, Error> {
    node.netlink(|netlink| async move { netlink.external_interface(&choice).await })
}
