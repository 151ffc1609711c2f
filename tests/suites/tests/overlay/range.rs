//! The ranges of the pods: flannel's net-conf.json, and what must not overlap (N1, N14, N23).

use anyhow::Context;
use podway_suites::{Cluster, Dataplane, KernelState, Member, SOON, complaints, wait_until_network_stands};
use podway_testkit::{in_lab, manifests};
use serde_json::{Value, json};

use crate::{assert_names, await_in_subnet_env, link, reaches, run, start};

#[test]
fn n1_net_conf_json_of_flannels_gives_ranges_vni_port_mtu_and_direct_routing() {
    in_lab("overlay-net-conf", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let folder = lab.folder("flannel")?;
        // Keys in any case, as Go reads them; over the fields that say otherwise.
        let text = r#"{"network": "10.77.0.0/16", "EnableIPv6": true, "IPV6Network": "fd77::/48",
            "EnableNFTables": true, "Backend": {"type": "vxlan", "VNI": 9, "port": 4790, "MTU": 1400}}"#;
        let file = format!("network.netConf={}", folder.write("net-conf.json", text)?.display());
        let wrong = ["network.podNetworks=[10.99.0.0/16]", "network.vni=8", &file];
        let packets = lab.counter("port-4790", "udp dport 4790")?;
        let podways = (run(&one, &wrong)?, run(&two, &wrong)?);
        reaches(&client, &web);
        assert!(packets.packets()? >= 8);
        for name in ["flannel.9", "flannel-v6.9"] {
            let link = link(&one, name)?;
            assert_eq!(link["linkinfo"]["info_data"]["port"], 4790, "{link:#}");
        }
        await_in_subnet_env(&one, "FLANNEL_MTU=1330")?;
        drop(podways);

        let direct = text.replace(r#""port": 4790"#, r#""DirectRouting": true"#);
        folder.write("net-conf.json", direct)?;
        let _podways = (run(&one, &[&file])?, run(&two, &[&file])?);
        let before = packets.packets()?;
        reaches(&client, &web);
        assert_eq!((packets.packets()?, lab.vxlan_packets()?), (before, 0), "neighbours, directly");
        drop(_podways);

        // Without a backend it is vxlan, with flannel's defaults.
        folder.write(
            "net-conf.json",
            r#"{"Network": "10.77.0.0/16", "EnableIPv6": true, "IPv6Network": "fd77::/48"}"#,
        )?;
        let _podways = (run(&one, &[&file])?, run(&two, &[&file])?);
        reaches(&client, &web);
        assert!(lab.vxlan_packets()? >= 8, "at port 8472");
        Ok(())
    });
}

#[test]
fn n1_a_wrong_net_conf_json_is_named_with_its_file_and_field() {
    in_lab("overlay-net-conf-bad", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let folder = lab.folder("flannel")?;
        let path = folder.path().join("net-conf.json");
        let setting = format!("network.netConf={}", path.display());
        let before = KernelState::read(&one)?;
        for (text, named) in [
            ("", "EOF"),
            ("{", "line 1"),
            (r#"{"Backend": {"Type": "vxlan"}}"#, "Network"),
            (r#"{"Network": "10.77.0.0/33"}"#, "Network"),
            (r#"{"Network": "10.77.0.0/16", "SubnetLen": 15}"#, "SubnetLen"),
            (r#"{"Network": "10.77.0.0/16", "SubnetMin": "10.78.0.0"}"#, "SubnetMin"),
            (r#"{"Network": "10.77.0.0/16", "SubnetMax": "10.76.0.0"}"#, "SubnetMax"),
            (r#"{"Network": "10.77.0.0/16", "EnableIPv6": true}"#, "IPv6Network"),
            (r#"{"Network": "10.77.0.0/16", "Backend": {"Type": "wireguard"}}"#, "wireguard"),
            (r#"{"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}"#, "VNI"),
            (r#"{"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan", "Port": 65536}}"#, "Port"),
        ] {
            folder.write("net-conf.json", text)?;
            let run = one.podway_command("run", Dataplane::Nftables)?.args(["--set", &setting]);
            let output = run.within(SOON).output()?;
            assert!(!output.status.success(), "{text}: {}", output.stderr);
            assert_eq!(output.stderr.lines().count(), 1, "{text}: {}", output.stderr);
            assert_names(&output.stderr, &[&path.display().to_string(), named]);
        }
        before.assert_same(&KernelState::read(&one)?);
        Ok(())
    });
}

#[test]
fn n14_while_a_host_route_leads_into_the_own_subnet_nothing_is_programmed_and_it_is_named() {
    in_lab("overlay-overlap", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _other = run(&two, &[])?;
        for (route, via) in [("10.77.1.128/25", "192.0.2.1"), ("fd77:0:0:1:8000::/65", "2001:db8::1")] {
            one.ip(&format!("route add {route} via {via}"))?;
            let before = KernelState::read(&one)?;
            let podway = start(&one, &[])?;
            podway.wait_for_log(route, SOON)?;
            podway.wait_for_log("the pod network is not complete", SOON)?;
            before.assert_same(&KernelState::read(&one)?);
            assert!(!one.subnet_file()?.exists(), "subnet.env");
            assert_names(
                complaints(&podway.log())[0],
                &["this node's subnet", route, "remove it, or give the Node another subnet"],
            );
            let shown = one.podway_command("status", Dataplane::Nftables)?.output()?;
            assert_names(&shown.stdout, &[route]);
            one.ip(&format!("route del {route} via {via}"))?;
            wait_until_network_stands(&podway)?;
            reaches(&client, &web);
            drop(podway);
            one.cleanup(Dataplane::Nftables)?;
        }
        Ok(())
    });
}

#[test]
fn n14_a_host_route_that_comes_later_is_named_and_what_stands_stays() {
    in_lab("overlay-overlap-late", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let (podway, _other) = (run(&one, &[])?, run(&two, &[])?);
        one.ip("route add 10.77.1.128/25 via 192.0.2.1")?;
        podway.wait_for_log("this node's subnet 10.77.1.0/24 contains route 10.77.1.128/25", SOON)?;
        reaches(&client, &web);
        one.ip("route del 10.77.1.128/25 via 192.0.2.1")?;
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n14_without_a_subnet_inside_the_range_a_node_says_so_and_programs_the_other_family() {
    in_lab("overlay-outside", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _other = run(&two, &[])?;
        let before = KernelState::read(&one)?;
        let outside = |member: &Member| member.manifest().pod_cidrs(["10.99.1.0/24", &*member.subnets()[1]]);
        cluster.publish("node-1", outside(&one))?;
        let podway = start(&one, &[])?;
        podway.wait_for_log("subnet 10.99.1.0/24 is outside the configured pod networks", SOON)?;
        podway_suites::Way::all([web.ipv6()], crate::PORT)
            .into_iter()
            .for_each(|way| drop(podway_suites::await_answers(&client, way)));
        let now = KernelState::read(&one)?;
        let added = now.beyond(&before);
        assert!(
            added.iter().all(|line| !line.contains("10.99.1") && !line.contains("flannel.1")),
            "{added:#?}"
        );
        cluster.publish("node-1", one.manifest())?;
        podway.wait_for_log("no longer: Node node-1: subnet 10.99.1.0/24", SOON)?;
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n23_pod_networks_around_the_nodes_own_network_or_another_route_are_named_before_anything_is_programmed() {
    in_lab("overlay-ranges", |lab| {
        let (cluster, [one]) = Cluster::of_nodes(lab)?;
        one.ip("route add 172.20.5.0/24 via 192.0.2.1")?;
        let before = KernelState::read(&one)?;
        for (range, subnet, named) in [
            // The nodes' own addresses among the pods'.
            ("192.0.0.0/16", "192.0.77.0/24", &["pod network 192.0.0.0/16", "192.0.2.11"][..]),
            ("172.20.0.0/16", "172.20.1.0/24", &["pod network 172.20.0.0/16", "route 172.20.5.0/24"]),
        ] {
            cluster.publish("node-1", one.manifest().pod_cidrs([subnet]))?;
            let podway = run(&one, &[&format!("network.podNetworks=[{range}]")])?;
            let log = podway.log();
            let told = complaints(&log);
            let about = told.iter().find(|line| named.iter().all(|name| line.contains(name)));
            let said = log.find(about.with_context(|| log.clone())?).context("not there")?;
            assert!(said < log.find("pod network programmed").context("not programmed")?, "{log}");
            drop(podway);
            one.cleanup(Dataplane::Nftables)?;
        }
        // The node's own subnet holds the node's own address: nothing can work.
        cluster.publish("node-1", one.manifest().pod_cidrs(["192.0.2.0/24"]))?;
        let podway = start(&one, &["network.podNetworks=[192.0.0.0/16]"])?;
        podway.wait_for_log("the pod network is not complete", SOON)?;
        let log = podway.log();
        assert_names(&log, &["this node's subnet 192.0.2.0/24", "ERROR"]);
        before.assert_same(&KernelState::read(&one)?);
        Ok(())
    });
}

#[test]
fn n23_a_peer_whose_address_is_a_pods_is_named() {
    in_lab("overlay-underlay", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let (podway, _other) = (run(&one, &[])?, run(&two, &[])?);
        let inside = manifests::node("node-3")
            .pod_cidrs(["10.77.3.0/24", "fd77:0:0:3::/64"])
            .internal_ips(["10.77.9.9", "2001:db8::99"]);
        cluster.publish("inside", inside)?;
        podway.wait_for_log("its address 10.77.9.9 lies in pod network 10.77.0.0/16", SOON)?;
        let log = podway.log();
        assert_names(complaints(&log).last().context("nothing")?, &["Node node-3", "apart from the nodes'"]);
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n23_a_plan_for_a_vpc_carries_packets_as_it_stands() {
    in_lab("overlay-plan", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let plan =
            ["--vpc", "10.64.0.0/12", "--nodes", "100", "--pods-per-node", "110", "--output", "net-conf"];
        let planned = one.command(podway_testkit::binary("podway")?).arg("plan").args(plan).run()?;
        let conf: Value = serde_json::from_str(&planned).context(planned.clone())?;
        let file = lab.folder("flannel")?.write("net-conf.json", &planned)?;
        let network: ipnet::Ipv4Net = serde_json::from_value(conf["Network"].clone())?;
        let length = conf["SubnetLen"].as_u64().unwrap_or(24);
        let mut subnets = network.subnets(u8::try_from(length)?)?.skip(1);
        let mut pods = Vec::new();
        for (member, name) in [(&one, "client"), (&two, "web")] {
            let subnet = subnets.next().context("no subnet")?;
            cluster.publish(member.name(), member.manifest().pod_cidrs([subnet]))?;
            let address = subnet.hosts().nth(8).context("no address")?;
            pods.push((**member).pod(name, [format!("{address}/{length}")])?);
        }
        let _server = pods[1].serve("web", crate::PORT)?;
        let setting = format!("network.netConf={}", file.display());
        let _podways = (run(&one, &[&setting])?, run(&two, &[&setting])?);
        reaches(&pods[0], &pods[1]);
        assert_eq!(json!(network), conf["Network"]);
        Ok(())
    });
}
