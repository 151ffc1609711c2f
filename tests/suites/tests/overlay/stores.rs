//! Where subnets come from and how peers learn of each other: an API server without a controller manager, leases in
//! etcd (N2, N3, N5, N18).

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use podway_suites::{
    Cluster, FlannelCluster, KernelState, Member, Rules, SOON, Source, Subnets, complaints,
    wait_until_network_stands,
};
use podway_testkit::{ControlPlane, Host, Pod, in_lab, manifests, within};
use serde_json::{Value, json};

use crate::backend::annotation;
use crate::{PORT, assert_names, link, reaches, run, start};

#[test]
fn n2_podways_give_their_nodes_subnets_where_nobody_does_and_a_second_machine_of_one_name_gets_none() {
    in_lab("overlay-assign", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let plane = cluster.control_plane();
        let members = [register(&cluster, 1, &[])?, register(&cluster, 2, &[])?];
        let podways = members.each_ref().map(|member| start(member, &[]));
        let [one_podway, two_podway] = podways;
        let (one_podway, two_podway) = (one_podway?, two_podway?);
        wait_until_network_stands(&one_podway)?;
        wait_until_network_stands(&two_podway)?;
        let pods = [assigned_pod(plane, &members[0], "client")?, assigned_pod(plane, &members[1], "web")?];
        let _server = pods[1].serve("web", PORT)?;
        reaches(&pods[0], &pods[1]);
        let before = pod_cidrs(plane, "node-1")?;
        assert_eq!(before.iter().map(IpNet::prefix_len).collect::<Vec<_>>(), [24, 64]);

        let twin = cluster.unpublished_member(3)?;
        let twin_podway = start(&twin, &["nodeName=node-1"])?;
        twin_podway.wait_for_log("this node has no subnets", SOON)?;
        let log = twin_podway.log();
        assert_names(complaints(&log).first().context("nothing")?, &["node-1", "another node name"]);
        assert_eq!(link(&twin, "flannel.1")?, Value::Null, "the second machine");
        assert_eq!(pod_cidrs(plane, "node-1")?, before);
        reaches(&pods[0], &pods[1]);

        // Once more after a restart, with the same.
        assert!(one_podway.stop()?.success());
        let _one_podway = run(&members[0], &[])?;
        assert_eq!(pod_cidrs(plane, "node-1")?, before);
        reaches(&pods[0], &pods[1]);
        Ok(())
    });
}

#[test]
fn n3_podways_lease_from_etcd_keep_their_subnets_and_regain_a_lease_that_was_deleted() {
    in_lab("overlay-leases", |lab| {
        let cluster = FlannelCluster::over(lab, Subnets::Etcd, Rules::Nftables)?;
        let (one, two) = (cluster.node(1)?, cluster.node(2)?);
        let (podway, _other) = (cluster.run_podway(&one, &[])?, cluster.run_podway(&two, &[])?);
        let (client, web) = (one.pod("client")?, two.pod("web")?);
        let _server = web.serve("web", PORT)?;
        reaches(&client, &web);
        let (first, env) = (cluster.lease(&one)?, one.subnet_env()?);
        assert_eq!(cluster.announced(&one)?, cluster.expected(&one)?);

        assert!(podway.stop()?.success());
        assert_eq!(cluster.lease(&one)?, first, "a stop leaves the lease");
        let podway = cluster.run_podway(&one, &[])?;
        assert_eq!((cluster.lease(&one)?.key, one.subnet_env()?), (first.key.clone(), env.clone()));
        reaches(&client, &web);

        cluster.etcd().delete(&first.key)?;
        within(SOON, "the lease is there again", || cluster.lease(&one))?;
        assert_eq!(cluster.announced(&one)?, cluster.expected(&one)?);
        reaches(&client, &web);
        assert!(podway.is_running());

        // Forgotten by etcd while nobody was there: subnet.env tells which subnet the pods have.
        assert!(podway.stop()?.success());
        cluster.etcd().delete(&first.key)?;
        let _podway = cluster.run_podway(&one, &[])?;
        assert_eq!((cluster.lease(&one)?.key, one.subnet_env()?), (first.key, env));
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n1_n2_subnets_are_handed_out_as_net_conf_json_says_until_there_are_no_more() {
    in_lab("overlay-assign-range", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let plane = cluster.control_plane();
        let text = r#"{"Network": "10.77.0.0/16", "SubnetLen": 26, "SubnetMin": "10.77.9.64", "SubnetMax": "10.77.9.128",
            "EnableIPv6": true, "IPv6Network": "fd77::/48", "IPv6SubnetLen": 80, "Backend": {"Type": "vxlan"}}"#;
        let file =
            format!("network.netConf={}", lab.folder("flannel")?.write("net-conf.json", text)?.display());
        let (one, two) = (register(&cluster, 1, &[])?, register(&cluster, 2, &[])?);
        let _podways = (run(&one, &[&file])?, run(&two, &[&file])?);
        let (client, web) = (assigned_pod(plane, &one, "client")?, assigned_pod(plane, &two, "web")?);
        let _server = web.serve("web", PORT)?;
        reaches(&client, &web);
        let mut handed_out = Vec::new();
        for name in ["node-1", "node-2"] {
            let subnets = pod_cidrs(plane, name)?;
            assert_eq!(subnets[1].prefix_len(), 80, "{subnets:?}");
            handed_out.push(subnets[0].to_string());
        }
        handed_out.sort();
        assert_eq!(handed_out, ["10.77.9.128/26", "10.77.9.64/26"]);

        let three = register(&cluster, 3, &[])?;
        let podway = start(&three, &[&file])?;
        podway.wait_for_log("this node has no subnets", SOON)?;
        let log = podway.log();
        let said = log.lines().find(|line| line.contains("this node has no subnets"));
        assert_names(said.context("nothing")?, &["10.77.0.0/16"]);
        cluster.withdraw("node-2")?;
        wait_until_network_stands(&podway)?;
        Ok(())
    });
}

#[test]
fn n3_podways_lease_from_an_etcd_with_tls_and_another_prefix() {
    in_lab("overlay-etcd-tls", |lab| {
        let etcd = lab.etcd_with_tls()?;
        let tls = etcd.tls().context("TLS")?.clone();
        let net_conf = r#"{"Network": "10.77.0.0/16", "EnableIPv6": true, "IPv6Network": "fd77::/48"}"#;
        etcd.put("/pods/network/config", net_conf)?;
        let settings = [
            format!("network.etcd.endpoints=[{}]", etcd.url()),
            "network.etcd.prefix=/pods/network".to_owned(),
            format!("network.etcd.caFile={}", tls.ca.display()),
            format!("network.etcd.certFile={}", tls.cert.display()),
            format!("network.etcd.keyFile={}", tls.key.display()),
        ];
        let settings = settings.each_ref().map(String::as_str);
        let cluster = Cluster::over(lab, Source::Directory)?;
        let mut pods = Vec::new();
        let mut podways = Vec::new();
        for (number, name) in [(1, "client"), (2, "web")] {
            let member = cluster.unpublished_member(number)?;
            podways.push(run(&member, &settings)?);
            let subnets = within(SOON, "subnets in subnet.env", || leased_subnets(&member))?;
            pods.push((*member).pod(name, subnets.iter().filter_map(|subnet| subnet.hosts().nth(7)))?);
        }
        let _server = pods[1].serve("web", PORT)?;
        reaches(&pods[0], &pods[1]);
        assert_eq!(etcd.keys("/pods/network/subnets/")?.len(), 2);
        Ok(())
    });
}

#[test]
fn n3_while_etcd_is_away_what_stands_stays_and_a_restarted_podway_waits_for_it() {
    in_lab("overlay-etcd-away", |lab| {
        let cluster = FlannelCluster::over(lab, Subnets::Etcd, Rules::Nftables)?;
        let (one, two) = (cluster.node(1)?, cluster.node(2)?);
        let (podway, _other) = (cluster.run_podway(&one, &[])?, cluster.run_podway(&two, &[])?);
        let (client, web) = (one.pod("client")?, two.pod("web")?);
        let _server = web.serve("web", PORT)?;
        reaches(&client, &web);
        let before = (KernelState::read(&one)?, cluster.lease(&one)?.key);
        cluster.etcd().stop()?;
        reaches(&client, &web);
        assert!(podway.stop()?.success());
        let endpoint = format!("network.etcd.endpoints=[{}]", cluster.etcd().url());
        let podway = start(&one, &[&endpoint])?;
        podway.wait_for_log(&cluster.etcd().url(), SOON)?;
        reaches(&client, &web);
        before.0.assert_same(&KernelState::read(&one)?);
        cluster.etcd().start()?;
        wait_until_network_stands(&podway)?;
        assert_eq!(cluster.lease(&one)?.key, before.1);
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n5_a_node_behind_a_translator_is_reached_at_its_overwritten_address_and_one_may_choose_its_own() {
    in_lab("overlay-translated", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let plane = cluster.control_plane();
        let nat = lab.outside("nat")?;
        let one = register(&cluster, 1, &[("node-public-ip", "192.0.2.111")])?;
        one.ip("addr add 192.0.2.111/24 dev eth0")?;
        let (nat_v4, nat_v6) = (nat.ipv4().to_string(), nat.ipv6().to_string());
        let overwritten = [("public-ip-overwrite", &*nat_v4), ("public-ipv6-overwrite", &nat_v6)];
        let two = register(&cluster, 2, &overwritten)?;
        translate(&nat, &two)?;
        let to_nat = lab.counter("to-nat", &format!("udp dport 8472 ip daddr {nat_v4}"))?;
        let to_chosen = lab.counter("to-chosen", "udp dport 8472 ip daddr 192.0.2.111")?;
        let _podways = (run(&one, &[])?, run(&two, &[])?);
        let (client, web) = (assigned_pod(plane, &one, "client")?, assigned_pod(plane, &two, "web")?);
        let _server = web.serve("web", PORT)?;
        reaches(&client, &web);
        assert!(to_nat.packets()? > 0 && to_chosen.packets()? > 0);
        let published = flannels(plane, "node-2", "flannel.alpha.coreos.com/")?;
        assert_eq!((&published["public-ip"], &published["public-ipv6"]), (&json!(nat_v4), &json!(nat_v6)));
        assert_eq!(flannels(plane, "node-1", "flannel.alpha.coreos.com/")?["public-ip"], "192.0.2.111");
        Ok(())
    });
}

#[test]
fn n5_n18_with_another_annotation_prefix_without_the_condition_and_beside_a_peer_of_another_backend() {
    in_lab("overlay-prefix", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let plane = cluster.control_plane();
        let members = [1, 2, 3].map(|number| register(&cluster, number, &[]));
        let [one, two, three] = members;
        let (one, two, three) = (one?, two?, three?);
        let settings = ["network.annotationPrefix=net.example.org/", "network.nodeCondition=false"];
        let (podway, _other) = (run(&one, &settings)?, run(&two, &settings)?);
        let (client, web) = (assigned_pod(plane, &one, "client")?, assigned_pod(plane, &two, "web")?);
        let _server = web.serve("web", PORT)?;
        reaches(&client, &web);
        let published = flannels(plane, "node-1", "net.example.org/")?;
        assert_eq!(
            (&published["backend-type"], &published["public-ip"]),
            (&json!("vxlan"), &json!(one.ipv4()))
        );
        assert_eq!(flannels(plane, "node-1", "flannel.alpha.coreos.com/")?, json!({}));
        let node = plane.get("/api/v1/nodes/node-1")?;
        assert!(!node["status"]["conditions"].to_string().contains("NetworkUnavailable"), "{node:#}");
        // What the Node has already is not written again.
        assert!(podway.stop()?.success());
        let podway = run(&one, &settings)?;
        reaches(&client, &web);
        let version = &plane.get("/api/v1/nodes/node-1")?["metadata"]["resourceVersion"];
        assert_eq!(*version, node["metadata"]["resourceVersion"]);

        let host_gw = [settings[0], settings[1], "network.backend=host-gw"];
        let stranger = run(&three, &host_gw)?;
        podway.wait_for_log("Node node-3: annotation backend-type is `host-gw`, not `vxlan`", SOON)?;
        stranger.wait_for_log("Node node-1: annotation backend-type is `vxlan`, not `host-gw`", SOON)?;
        reaches(&client, &web);
        within(SOON, "an Event of the Node that is skipped", || {
            let shown = plane.kubectl(&["events", "--all-namespaces", "--for", "node/node-3"])?;
            let named = shown.contains("Warning") && shown.contains("annotation backend-type is `host-gw`");
            if named { Ok(()) } else { Err(anyhow!(shown)) }
        })?;
        drop(stranger);
        let _third = run(&three, &settings)?;
        podway.wait_for_log("no longer: Node node-3: annotation backend-type", SOON)?;
        let late = assigned_pod(plane, &three, "late")?;
        let _late_server = late.serve("late", PORT)?;
        reaches(&client, &late);
        Ok(())
    });
}

/// Raises a node and registers it as its kubelet does, without subnets and with these of flannel's annotations.
fn register(cluster: &Cluster, number: u8, annotations: &[(&str, &str)]) -> Result<Member> {
    let member = cluster.unpublished_member(number)?;
    let node = manifests::node(member.name()).internal_ips(member.addresses());
    let node = annotations.iter().fold(node, |node, (key, value)| node.set(&annotation(key), *value));
    cluster.publish(member.name(), node)?;
    Ok(member)
}

/// The subnets that stand in a Node.
fn pod_cidrs(plane: &ControlPlane, name: &str) -> Result<Vec<IpNet>> {
    let node = plane.get(&format!("/api/v1/nodes/{name}"))?;
    serde_json::from_value(node["spec"]["podCIDRs"].clone()).with_context(|| node.to_string())
}

/// A pod with the eighth address of each of its Node's subnets.
fn assigned_pod(plane: &ControlPlane, member: &Member, name: &str) -> Result<Pod> {
    let cidrs = within(SOON, &format!("subnets of {}", member.name()), || pod_cidrs(plane, member.name()))?;
    (**member).pod(name, cidrs.iter().filter_map(|cidr| cidr.hosts().nth(7)))
}

/// The subnets that stand in `subnet.env`.
fn leased_subnets(member: &Member) -> Result<Vec<IpNet>> {
    let env = std::fs::read_to_string(member.subnet_file()?)?;
    let values = env.lines().filter_map(|line| {
        ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="].iter().find_map(|key| line.strip_prefix(key))
    });
    values.map(|value| Ok(value.parse::<IpNet>()?.trunc())).collect()
}

/// The Node's annotations that begin with `prefix`, by what follows it.
fn flannels(plane: &ControlPlane, name: &str, prefix: &str) -> Result<Value> {
    let node = plane.get(&format!("/api/v1/nodes/{name}"))?;
    let annotations = node["metadata"]["annotations"].as_object();
    let found = annotations.into_iter().flatten();
    let found = found.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())));
    Ok(Value::Object(found.collect()))
}

/// What comes to the translator's VXLAN port goes to this node, from the translator.
fn translate(nat: &Host, to: &Host) -> Result<()> {
    nat.sysctl("net.ipv4.ip_forward", "1")?;
    nat.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let table = format!(
        "table inet translator {{\n chain in {{\n  type nat hook prerouting priority dstnat;\n  \
         udp dport 8472 dnat ip to {}\n  udp dport 8472 dnat ip6 to {}\n }}\n \
         chain out {{\n  type nat hook postrouting priority srcnat;\n  udp dport 8472 masquerade\n }}\n}}\n",
        to.ipv4(),
        to.ipv6()
    );
    nat.command("nft").args(["--file", "-"]).stdin(table).run().map(drop)
}
