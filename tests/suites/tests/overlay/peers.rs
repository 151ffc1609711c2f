//! Peers that change, and peers that cannot be used (N5, N6, N12).

use std::time::{Duration, Instant};

use anyhow::anyhow;
use podway_suites::{Cluster, KernelState, Member, SOON, await_no_trace_of};
use podway_testkit::{eventually, in_lab, manifests};

use crate::backend::{annotated, annotation};
use crate::{link, reaches, run};

#[test]
fn n12_a_node_whose_pod_cidrs_change_is_reached_there_and_nothing_of_the_old_ones_stays() {
    in_lab("overlay-recidr", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (old, _old_server)) = (one.pod("client")?, two.serving_pod("old")?);
        let podways = (run(&one, &[])?, run(&two, &[])?);
        reaches(&client, &old);
        cluster.publish("node-2", two.manifest().pod_cidrs(["10.77.22.0/24", "fd77:0:0:22::/64"]))?;
        let new = (*two).pod("new", ["10.77.22.5", "fd77:0:0:22::5"])?;
        let _new_server = new.serve("new", crate::PORT)?;
        reaches(&client, &new);
        eventually(SOON, "nothing of the subnets before", || {
            let (here, there) = (KernelState::read(&one)?, KernelState::read(&two)?);
            let of_before = here.mentions("10.77.2.0") || here.mentions("fd77:0:0:2::");
            let links = there.mentions("10.77.2.0/32") || there.mentions("fd77:0:0:2::/128");
            if of_before || links { Err(anyhow!("{here:#?}{there:#?}")) } else { Ok(()) }
        });
        drop(podways);
        Ok(())
    });
}

#[test]
fn n12_a_node_with_another_mac_is_reached_and_its_old_entries_go() {
    in_lab("overlay-remac", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podway = run(&one, &[])?;
        for mac in ["ee:00:00:00:00:01", "ee:00:00:00:00:02"] {
            cluster.publish("node-2", annotated(&two, mac))?;
            // A machine that is set up anew, in place of the one before.
            two.cleanup(podway_suites::Dataplane::Nftables)?;
            let _other = run(&two, &[])?;
            assert_eq!(link(&two, "flannel.1")?["address"], mac);
            reaches(&client, &web);
            assert!(KernelState::read(&one)?.mentions(mac), "no entry for {mac}");
        }
        await_no_mention_of("ee:00:00:00:00:01", &one);
        Ok(())
    });
}

#[test]
fn n12_n17_of_two_thousand_nodes_one_that_changes_costs_its_own_entries_and_is_followed_within_a_second() {
    in_lab("overlay-many", |lab| {
        let (cluster, [one]) = Cluster::of_nodes(lab)?;
        cluster
            .publish("many", (0..2000).map(|number| far_node(number, 0).to_string()).collect::<String>())?;
        let podway = run(&one, &["network.podNetworks=[10.64.0.0/10, \"fd77::/48\"]"])?;
        let routes = one.command("ip").args(["-6", "route", "show", "dev", "flannel-v6.1"]).run()?;
        assert!(routes.lines().count() >= 2000, "{} routes", routes.lines().count());
        let mut waits = Vec::new();
        for round in 1..6 {
            let said = podway.log().len();
            let published = Instant::now();
            cluster.publish("extra", far_node(2000, round))?;
            let address = format!("198.18.200.{round}");
            eventually(SOON, "the node is followed", || {
                let entries = one.command("bridge").args(["fdb", "show", "dev", "flannel.1"]).run()?;
                if entries.contains(&address) { Ok(()) } else { Err(anyhow!("no entry for {address}")) }
            });
            waits.push(published.elapsed());
            let log = podway.log();
            let steps = log[said..].lines().filter(|line| line.contains("podway_netlink::run: step")).count();
            assert!((1..=8).contains(&steps), "{steps} steps for one node\n{}", &log[said..]);
        }
        waits.sort();
        // Two thousand manifests are read again each time, by a program that is not optimised.
        assert!(waits[2] < Duration::from_secs(2), "{waits:?}");
        Ok(())
    });
}

#[test]
fn n5_n6_peers_with_bad_annotations_or_another_backend_are_skipped_and_named_and_taken_up_when_right() {
    in_lab("overlay-bad-peers", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let (podway, _other) = (run(&one, &[])?, run(&two, &[])?);
        let before = KernelState::read(&one)?;
        let bad = [
            ("backend-type", "host-gw", "annotation backend-type is `host-gw`, not `vxlan`"),
            ("backend-type", "wireguard", "annotation backend-type is `wireguard`, not `vxlan`"),
            ("backend-data", "{", "annotation backend-data: `{`"),
            ("backend-data", r#"{"VNI":7,"VtepMAC":"ee:00:00:00:00:07"}"#, "VNI 7, this node has VNI 1"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#, "no unicast MAC"),
            ("backend-v6-data", "", "annotation backend-v6-data"),
            ("public-ip", "192.0.2", "annotation public-ip: `192.0.2` is no IP address"),
            ("public-ip", "127.0.0.1", "`127.0.0.1` is no address of a node"),
            ("public-ip", "192.0.2.11", "its address 192.0.2.11 is this machine's own"),
            ("public-ipv6", "192.0.2.13", "`192.0.2.13` is no IPv6 address"),
        ];
        for (number, (key, value, named)) in (3..).zip(bad) {
            let (name, node) = bad_peer(number, key, value);
            cluster.publish(&name, node)?;
            podway.wait_for_log(named, SOON)?;
            let log = podway.log();
            let said = log.lines().find(|line| line.contains(named)).unwrap_or_default();
            assert!(said.contains("WARN") && said.contains(&format!("Node {name}")), "{said}");
        }
        reaches(&client, &web);
        let added = KernelState::read(&one)?;
        for line in added.beyond(&before) {
            // The family that is right goes on.
            assert!(
                line.contains("fd77")
                    || line.contains("10.77.8.0")
                    || line.contains("10.77.12.0")
                    || line.contains("ee:00:00:00:00"),
                "{line}"
            );
        }

        let three = cluster.unpublished_member(3)?;
        cluster.publish("node-3", annotated(&three, "ee:00:00:00:00:33"))?;
        let (late, _late_server) = three.serving_pod("late")?;
        let _third = run(&three, &[])?;
        podway.wait_for_log("no longer: Node node-3: annotation backend-type", SOON)?;
        reaches(&client, &late);
        for number in 4..13 {
            cluster.withdraw(&format!("node-{number}"))?;
        }
        cluster.withdraw("node-3")?;
        await_no_trace_of(3, &one);
        before.await_again_on(&one);
        assert!(podway.is_running());
        Ok(())
    });
}

/// A Node that is nowhere, with a subnet and an address of its own.
fn far_node(number: u16, round: u8) -> manifests::Node {
    let [high, low] = number.to_be_bytes();
    let address = if round == 0 { format!("198.18.{high}.{low}") } else { format!("198.18.200.{round}") };
    manifests::node(&format!("far-{number}"))
        .pod_cidrs([format!("10.{}.{low}.0/24", 100 + high), format!("fd77:0:0:{:x}::/64", 0x1000 + number)])
        .internal_ips([address, format!("2001:db8:1::{number:x}")])
}

/// A Node of which nothing runs, and whose annotation `key` is `value`.
fn bad_peer(number: u8, key: &str, value: &str) -> (String, manifests::Node) {
    let name = format!("node-{number}");
    let data = format!(r#"{{"VNI":1,"VtepMAC":"ee:00:00:00:00:{number:02}"}}"#);
    let published = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", &data),
        ("backend-v6-data", &data),
        ("public-ip", &format!("192.0.2.1{number}")),
        ("public-ipv6", &format!("2001:db8::1{number}")),
        (key, value),
    ];
    let subnets = [format!("10.77.{number}.0/24"), format!("fd77:0:0:{number}::/64")];
    let node = manifests::node(&name).pod_cidrs(subnets);
    let node = published.into_iter().fold(node, |node, (key, value)| node.set(&annotation(key), value));
    (name, node)
}

fn await_no_mention_of(text: &str, on: &Member) {
    eventually(SOON, &format!("no mention of {text} on {}", on.name()), || {
        let state = KernelState::read(on)?;
        if state.mentions(text) { Err(anyhow!("{state:#?}")) } else { Ok(()) }
    });
}
