//! Start, stop, upgrade and removal.

use std::fs;
use std::io::ErrorKind::NetworkUnreachable;
use std::net::SocketAddr;
use std::path::Path;

use podway_bpf::{BpfDataplane, Error, Settings};
use podway_proxy::Protocol::Tcp;
use podway_proxy::{Frontend, Pool};

use crate::client::Client;
use crate::fixture::{Cgroup, Node, balance, frontend, serve, set};

const SERVICE: &str = "10.96.0.10:80";

#[test]
fn a_stopped_daemon_leaves_translation_working_and_the_next_one_adopts_it() {
    let (node, server, rows) = one_service();
    let dataplane = node.attached(rows.clone());
    let observed = dataplane.observe().unwrap();
    drop(dataplane);

    assert_eq!(node.connect(Tcp, service()), Ok(server));

    let successor = node.open();
    assert_eq!(observed.into_iter().collect::<Vec<_>>(), rows);
    assert_eq!(successor.observe().unwrap().into_iter().collect::<Vec<_>>(), rows);
    assert_eq!(successor.counters().unwrap().translated, 1, "counted before it was opened");
}

#[test]
fn nothing_is_translated_before_it_is_attached() {
    let (node, server, rows) = one_service();
    let mut dataplane = node.open();
    dataplane.apply(&set(rows)).unwrap();
    assert_eq!(node.connect(Tcp, service()), Err(NetworkUnreachable));
    dataplane.attach().unwrap();
    assert_eq!(node.connect(Tcp, service()), Ok(server));
}

#[test]
fn an_upgrade_under_traffic_drops_no_connection() {
    let (node, server, rows) = one_service();
    drop(node.attached(rows));
    let client = node.start(Tcp, service(), 2000);
    // Loaded beforehand, so that the exchange itself happens often.
    let versions = [node.open(), node.open()];
    let mut upgrades = 0;
    while !client.is_finished() {
        for version in &versions {
            version.attach().unwrap();
            upgrades += 1;
        }
    }
    let outcomes = client.outcomes();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Ok(server)).count(), 2000);
    assert!(upgrades > 100, "only {upgrades} upgrades while the client ran");
}

#[test]
fn maps_of_another_layout_serve_until_their_successors_are_attached() {
    let (node, server, rows) = one_service();
    drop(node.attached(rows.clone()));
    let pins = &node.settings.pin_dir;
    fs::rename(pins.join("v1"), pins.join("v999")).unwrap();

    let mut dataplane = node.open();
    assert!(dataplane.observe().unwrap().is_empty(), "rows of another layout were adopted");
    assert_eq!(node.connect(Tcp, service()), Ok(server), "the old maps no longer serve");

    dataplane.apply(&set(rows)).unwrap();
    dataplane.attach().unwrap();
    assert_eq!(node.connect(Tcp, service()), Ok(server));
    assert_eq!(dataplane.counters().unwrap().translated, 1, "the new maps do not serve");
    assert_eq!(names(pins), ["links", "v1"]);
}

#[test]
fn a_hook_that_only_another_version_has_is_detached() {
    let (node, server, rows) = one_service();
    let dataplane = node.attached(rows);
    let links = node.settings.pin_dir.join("links");
    fs::rename(links.join("connect6"), links.join("sendmsg4")).unwrap();
    dataplane.attach().unwrap();
    assert_eq!(names(&links), ["connect4", "connect6"]);
    assert_eq!(node.connect(Tcp, service()), Ok(server));
}

#[test]
fn another_cgroup_takes_the_place_of_the_configured_one() {
    let (node, server, rows) = one_service();
    drop(node.attached(rows));
    let other = Cgroup::new();
    let settings = Settings { cgroup: other.0.clone(), ..node.settings.clone() };
    BpfDataplane::open(&settings).unwrap().attach().unwrap();

    assert_eq!(Client::start(&other.0, Tcp, service(), 1).outcomes(), [Ok(server)]);
    assert_eq!(node.connect(Tcp, service()), Err(NetworkUnreachable), "still attached to the first cgroup");
}

#[test]
fn a_link_whose_cgroup_is_gone_is_replaced() {
    let (node, server, rows) = one_service();
    let gone = Cgroup::new();
    let settings = Settings { cgroup: gone.0.clone(), ..node.settings.clone() };
    let mut dataplane = BpfDataplane::open(&settings).unwrap();
    dataplane.apply(&set(rows)).unwrap();
    dataplane.attach().unwrap();
    drop((dataplane, gone));

    node.open().attach().unwrap();
    assert_eq!(node.connect(Tcp, service()), Ok(server));
}

#[test]
fn remove_all_removes_everything_of_ours_and_nothing_else() {
    let (node, _, rows) = one_service();
    drop(node.attached(rows));
    let pins = &node.settings.pin_dir;
    fs::create_dir(pins.with_file_name("neighbour")).unwrap();
    let mut expected = names(pins.parent().unwrap());
    expected.retain(|name| name != "podway");

    BpfDataplane::remove_all(pins).unwrap();

    assert_eq!(node.connect(Tcp, service()), Err(NetworkUnreachable));
    assert_eq!(names(pins.parent().unwrap()), expected);
    BpfDataplane::remove_all(pins).unwrap();
}

#[test]
fn remove_all_spares_what_a_stranger_has_put_into_the_pin_directory() {
    let (node, _, rows) = one_service();
    drop(node.attached(rows));
    let pins = &node.settings.pin_dir;
    fs::create_dir(pins.join("stranger")).unwrap();
    BpfDataplane::remove_all(pins).unwrap();
    assert_eq!(names(pins), ["stranger"]);
}

#[test]
fn wrong_settings_are_named() {
    let node = Node::new();
    let no_cgroup = Settings { cgroup: "/tmp".into(), ..node.settings.clone() };
    let error = BpfDataplane::open(&no_cgroup).err().unwrap();
    assert!(matches!(&error, Error::NotCgroup2(path) if path == Path::new("/tmp")), "{error}");
    let no_bpffs = Settings { pin_dir: "/tmp/podway".into(), ..node.settings.clone() };
    let error = BpfDataplane::open(&no_bpffs).err().unwrap();
    assert!(matches!(&error, Error::NotBpffs(path) if path == Path::new("/tmp/podway")), "{error}");
}

fn one_service() -> (Node, SocketAddr, Vec<(Frontend, Pool)>) {
    let node = Node::new();
    let server = serve(Tcp, "127.0.0.1:0");
    let rows = vec![(frontend(Tcp, SERVICE), balance([server]))];
    (node, server, rows)
}

fn service() -> SocketAddr {
    SERVICE.parse().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
