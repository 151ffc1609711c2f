//! Which interface carries the encapsulated packets (contract N8). Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use podway_netlink::{Error, InterfaceChoice};
use podway_overlay::ExternalInterface;
use support::{Namespace, link};

#[test]
fn n8_by_name_with_the_best_address_of_each_family() {
    let node = machine();
    let found = find(&node, InterfaceChoice::Name(link("eth0"))).unwrap();
    assert_eq!((found.name.as_str(), found.mtu.get()), ("eth0", 1500));
    assert_eq!(found.v4.unwrap().to_string(), "192.0.2.1", "neither link-local nor deprecated nor secondary");
    assert_eq!(found.v6.unwrap().to_string(), "2001:db8::1");
}

#[test]
fn n8_by_an_address_which_is_then_the_one_to_send_to() {
    let node = machine();
    let found = find(&node, InterfaceChoice::Owner("198.51.100.2".parse().unwrap())).unwrap();
    assert_eq!((found.name.as_str(), found.v4.unwrap().to_string()), ("eth1", "198.51.100.2".to_owned()));
    let missing = find(&node, InterfaceChoice::Owner("198.51.100.3".parse().unwrap())).unwrap_err();
    assert_eq!(missing.to_string(), "no interface has address 198.51.100.3");
}

#[test]
fn n8_by_the_default_route_of_the_least_metric() {
    let node = machine();
    assert!(matches!(find(&node, InterfaceChoice::DefaultRoute).unwrap_err(), Error::NoDefaultRoute));
    node.ip("route add default via 198.51.100.9 metric 200");
    assert_eq!(find(&node, InterfaceChoice::DefaultRoute).unwrap().name, link("eth1"));
    node.ip("route add default via 192.0.2.9 metric 100");
    assert_eq!(find(&node, InterfaceChoice::DefaultRoute).unwrap().name, link("eth0"));
    node.ip("-6 route add default via 2001:db8:1::9");
    let text = find(&node, InterfaceChoice::DefaultRoute).unwrap_err().to_string();
    assert!(text.starts_with("the default routes lead to two interfaces, eth0 and eth1"), "{text}");
}

#[test]
fn n8_an_interface_that_is_not_there_is_named() {
    let node = machine();
    let text = find(&node, InterfaceChoice::Name(link("eth9"))).unwrap_err().to_string();
    assert_eq!(text, "there is no interface eth9");
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
