//! The interface that leads to the other nodes (N8).

use anyhow::{Context, Result};
use podway_suites::{Cluster, FlannelCluster, Rules, SOON, Subnets, wait_until_network_stands};
use podway_testkit::{Host, in_lab};
use serde_json::{Value, json};

use crate::{assert_names, link, reaches, start};

/// A second cable between two nodes, in both families.
const CABLE: [[&str; 2]; 2] = [["198.51.100.1", "2001:db8:51::1"], ["198.51.100.2", "2001:db8:51::2"]];

#[test]
fn n8_an_interface_chosen_in_any_way_carries_the_packets_and_its_address_is_told_to_peers() {
    in_lab("overlay-interface", |lab| {
        let cluster = FlannelCluster::over(lab, Subnets::Etcd, Rules::Nftables)?;
        let (one, two) = (cluster.node(1)?, cluster.node(2)?);
        connect(&one, &two)?;
        let _other = cluster.run_podway(&two, &["network.interface=[eth1]"])?;
        let (web, mut client) = (two.pod("web")?, None);
        let _server = web.serve("web", crate::PORT)?;
        for choice in [
            &["network.interface=[eth9, eth1]"][..],
            &["network.interface=[198.51.100.1]"],
            &["network.interface=[]", r#"network.interfaceRegex=["^nothing$", "^(198\\.51|2001:db8:51:)"]"#],
            &["network.interface=[]", r#"network.interfaceRegex=["th1$"]"#],
            &["network.interface=[]", "network.interfaceCanReach=198.51.100.2"],
            &["network.interface=[]", "network.publicIp=198.51.100.1", "network.publicIPv6=2001:db8:51::1"],
        ] {
            let podway = cluster.run_podway(&one, choice)?;
            for (name, key, local) in
                [("flannel.1", "local", CABLE[0][0]), ("flannel-v6.1", "local6", CABLE[0][1])]
            {
                let vxlan = link(&one, name)?["linkinfo"]["info_data"].take();
                assert_eq!((&vxlan["link"], &vxlan[key]), (&json!("eth1"), &json!(local)), "{choice:?}");
            }
            let lease: Value = serde_json::from_str(&cluster.announced(&one)?["lease"])?;
            assert_eq!(
                (&lease["PublicIP"], &lease["PublicIPv6"]),
                (&json!(CABLE[0][0]), &json!(CABLE[0][1])),
                "{choice:?}"
            );
            let client = match &client {
                Some(client) => client,
                None => client.insert(one.pod("client")?),
            };
            reaches(client, &web);
            assert_eq!(lab.vxlan_packets()?, 0, "over the other interface, by {choice:?}");
            drop(podway);
        }
        Ok(())
    });
}

#[test]
fn n8_the_interface_of_the_nodes_address_is_taken_before_that_of_the_default_route() {
    in_lab("overlay-interface-node", |lab| {
        let cluster = Cluster::over(lab, podway_suites::Source::Directory)?;
        let (one, two) = (cluster.unpublished_member(1)?, cluster.unpublished_member(2)?);
        connect(&one, &two)?;
        for (member, addresses) in [&one, &two].into_iter().zip(CABLE) {
            let node = podway_testkit::manifests::node(member.name());
            cluster.publish(member.name(), node.pod_cidrs(member.subnets()).internal_ips(addresses))?;
        }
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podways = (crate::run(&one, &[])?, crate::run(&two, &[])?);
        reaches(&client, &web);
        assert_eq!(lab.vxlan_packets()?, 0, "over the default route's interface");
        Ok(())
    });
}

#[test]
fn n8_an_interface_that_is_not_there_is_named_with_those_that_are_and_used_when_it_comes() {
    in_lab("overlay-interface-absent", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        for (choice, named) in [
            ("network.interface=[eth9]", "interface eth9"),
            (r#"network.interfaceRegex=["^eth9$"]"#, "pattern `^eth9$`"),
        ] {
            let podway = start(&one, &[choice])?;
            podway.wait_for_log("no interface is meant by", SOON)?;
            let log = podway.log();
            let said = log.lines().find(|line| line.contains("no interface is meant by"));
            assert_names(said.context("not one line")?, &[named, "eth0", "192.0.2.11", "2001:db8::11"]);
            assert_eq!(link(&one, "flannel.1")?, Value::Null, "without an interface");
        }
        let podway = start(&one, &["network.interface=[eth1]"])?;
        podway.wait_for_log("no interface is meant by interface eth1", SOON)?;
        connect(&one, &two)?;
        wait_until_network_stands(&podway)?;
        assert_eq!(link(&one, "flannel.1")?["linkinfo"]["info_data"]["link"], "eth1");
        Ok(())
    });
}

#[test]
fn n8_a_public_address_beside_an_interface_is_only_told_to_peers() {
    in_lab("overlay-public-ip", |lab| {
        let cluster = FlannelCluster::over(lab, Subnets::Etcd, Rules::Nftables)?;
        let one = cluster.node(1)?;
        let told = ["network.interface=[eth0]", "network.publicIp=203.0.113.9"];
        let _podway = cluster.run_podway(&one, &told)?;
        let lease: Value = serde_json::from_str(&cluster.announced(&one)?["lease"])?;
        assert_eq!(lease["PublicIP"], "203.0.113.9");
        assert_eq!(lease["PublicIPv6"], json!(one.ipv6()));
        assert_eq!(link(&one, "flannel.1")?["linkinfo"]["info_data"]["local"], json!(one.ipv4()));
        Ok(())
    });
}

/// Lays the second cable, `eth1` at both ends.
fn connect(one: &Host, two: &Host) -> Result<()> {
    one.ip(&format!("link add eth1 type veth peer name eth1 netns {}", two.netns()))?;
    for (host, [v4, v6]) in [one, two].into_iter().zip(CABLE) {
        host.ip(&format!("addr add {v4}/24 dev eth1\naddr add {v6}/64 dev eth1 nodad\nlink set eth1 up"))?;
    }
    Ok(())
}
