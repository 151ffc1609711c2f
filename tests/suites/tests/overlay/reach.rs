//! Who reaches whom, by which way, and from which address.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use podway_suites::{
    Cluster, Dataplane, KernelState, Member, SOON, Source, await_answers, await_no_trace_of,
    wait_until_programmed,
};
use podway_testkit::{Process, in_lab, manifests};

use crate::{PORT, ways_to};

#[test]
fn pods_of_one_node_reach_each_other_without_encapsulation() {
    in_lab("overlay-one-node", |lab| {
        let (_cluster, [node]) = Cluster::of_nodes(lab)?;
        let _podway = node.podway(Dataplane::Nftables)?;
        let (web, _server) = node.serving_pod("web")?;
        let client = node.pod("client")?;
        for way in ways_to(&web) {
            let answers = client.send(way.probe().count(10))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.sources(), [way.same_family(&client)].into(), "{way}");
        }
        assert_eq!(lab.vxlan_packets()?, 0);
        Ok(())
    });
}

#[test]
fn pods_of_two_nodes_reach_each_other_over_vxlan_under_their_own_addresses() {
    in_lab("overlay-two-nodes", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podways = (one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?);
        let bare = lab.counter("bare-pods", "ip daddr 10.77.0.0/16")?;
        for way in ways_to(&web) {
            let before = lab.vxlan_packets()?;
            let answers = client.send(way.probe().count(50))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.sources(), [way.same_family(&client)].into(), "{way}");
            let packets = lab.vxlan_packets()? - before;
            assert!(packets >= 100, "{way}: 50 answers in {packets} packets");
        }
        assert_eq!(bare.packets()?, 0, "pod addresses outside of VXLAN");
        Ok(())
    });
}

#[test]
fn a_host_reaches_a_remote_pod_and_is_reached_by_it() {
    in_lab("overlay-host", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podways = (one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?);
        for way in ways_to(&web) {
            let answers = one.send(way.probe().count(10))?;
            assert!(answers.all_answered(), "{way}: {answers}");
        }
        assert!(lab.vxlan_packets()? > 0);
        let _host_server = two.serve("node-2", PORT)?;
        for way in ways_to(&two) {
            let answers = client.send(way.probe().count(10))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.sources(), [way.same_family(&one)].into(), "{way}: as its node");
        }
        Ok(())
    });
}

#[test]
fn n7_packets_of_full_size_pass_between_nodes() {
    in_lab("overlay-mtu", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, web) = (one.pod("client")?, two.pod("web")?);
        let _podways = (one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?);
        // 1500 minus 70: VXLAN over IPv6 is the larger overhead of the two.
        let mtu = 1430;
        let env = std::fs::read_to_string(one.subnet_file()?)?;
        assert!(env.contains(&format!("FLANNEL_MTU={mtu}\n")), "{env}");
        for (address, headers) in [(web.ipv4(), 20 + 8), (web.ipv6(), 40 + 8)] {
            let server = web.enter(|| std::net::UdpSocket::bind((address, 9)))??;
            server.set_read_timeout(Some(SOON))?;
            let full = vec![7_u8; mtu - headers];
            let sender = client.enter(|| std::net::UdpSocket::bind((any_of_family(address), 0)))??;
            sender.send_to(&full, (address, 9))?;
            let mut received = vec![0; 2 * mtu];
            assert_eq!(server.recv(&mut received)?, full.len(), "{address}");
        }
        Ok(())
    });
}

#[test]
fn n10_only_what_leaves_the_pod_network_gets_the_nodes_address() {
    in_lab("overlay-masquerade", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let outside = lab.outside("outside")?;
        let _outside_server = outside.serve("outside", PORT)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podways = (one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?);
        for way in ways_to(&outside) {
            let answers = client.send(way.probe().count(5))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.sources(), [way.same_family(&one)].into(), "{way}: the pod as its node");
        }
        for way in ways_to(&web) {
            let answers = client.send(way.probe().count(5))?;
            assert_eq!(answers.sources(), [way.same_family(&client)].into(), "{way}: pod to pod");
        }
        Ok(())
    });
}

#[test]
fn n10_an_outside_client_that_is_routed_to_a_pod_keeps_its_address() {
    in_lab("overlay-routed-in", |lab| {
        let (_cluster, [node]) = Cluster::of_nodes(lab)?;
        let outside = lab.outside("outside")?;
        let (web, _server) = node.serving_pod("web")?;
        let _podway = node.podway(Dataplane::Nftables)?;
        outside.ip(&format!(
            "route add 10.77.1.0/24 via {}\nroute add fd77:0:0:1::/64 via {}",
            node.ipv4(),
            node.ipv6()
        ))?;
        for way in ways_to(&web) {
            let answers = outside.send(way.probe().count(5))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.sources(), [way.same_family(&outside)].into(), "{way}");
        }
        Ok(())
    });
}

#[test]
fn n12_a_node_that_joins_is_reached_by_those_that_were_there() {
    in_lab("overlay-join", |lab| {
        let (cluster, [one]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let _podway = one.podway(Dataplane::Nftables)?;
        let two = cluster.member(2)?;
        let (web, _server) = two.serving_pod("web")?;
        let _joined = two.podway(Dataplane::Nftables)?;
        for way in ways_to(&web) {
            await_answers(&client, way);
        }
        Ok(())
    });
}

#[test]
fn n12_a_node_that_leaves_takes_its_routes_along_and_nothing_of_the_others() {
    in_lab("overlay-leave", |lab| {
        let (cluster, [one, two, three]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (stays, _stays_server) = two.serving_pod("stays")?;
        let (goes, _goes_server) = three.serving_pod("goes")?;
        let _podways = run_on_all([&one, &two, &three])?;
        for way in ways_to(&stays).into_iter().chain(ways_to(&goes)) {
            await_answers(&client, way);
        }
        let stream = client.stream(ways_to(&stays)[0].probe())?;
        let before = KernelState::read(&one)?;

        cluster.withdraw("node-3")?;
        three.into_node().remove()?;
        await_no_trace_of(3, &one);
        for way in ways_to(&stays) {
            let answers = client.send(way.probe().count(20))?;
            assert!(answers.all_answered(), "{way}: {answers}");
        }
        let answers = stream.stop()?;
        assert!(answers.all_answered(), "a stream to another node: {answers}");

        let three = cluster.member(3)?;
        // A new machine with an old address announces itself; a new namespace does not.
        one.ip("neigh flush dev eth0")?;
        let (back, _back_server) = three.serving_pod("back")?;
        let _back_podway = three.podway(Dataplane::Nftables)?;
        for way in ways_to(&back) {
            await_answers(&client, way);
        }
        before.await_again_on(&one);
        Ok(())
    });
}

#[test]
fn n12_a_node_with_another_address_is_reached_there() {
    in_lab("overlay-moved", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (web, _server) = two.serving_pod("web")?;
        let _podways = run_on_all([&one, &two])?;
        for way in ways_to(&web) {
            await_answers(&client, way);
        }
        two.ip("addr del 192.0.2.12/24 dev eth0\naddr add 192.0.2.77/24 dev eth0\nroute add default via 192.0.2.1")?;
        let moved = manifests::node("node-2")
            .pod_cidrs(two.subnets())
            .internal_ips(["192.0.2.77".parse()?, two.ipv6()]);
        cluster.publish("node-2", moved)?;
        for way in ways_to(&web) {
            await_answers(&client, way);
        }
        assert!(!KernelState::read(&one)?.mentions("192.0.2.12 "), "its old address");
        Ok(())
    });
}

#[test]
fn n4_the_file_of_nodes_is_followed_beside_any_source() {
    in_lab("overlay-nodes-file", |lab| {
        let cluster = Cluster::over(lab, Source::Directory)?;
        let (one, two) = (cluster.unpublished_member(1)?, cluster.unpublished_member(2)?);
        let client = one.pod("client")?;
        let (web, _server) = two.serving_pod("web")?;
        let file = lab.folder("static")?;
        let nodes = file.write("nodes.yaml", one.manifest())?;
        let _podway = run_with_nodes(&one, &nodes)?;
        let _other =
            two.podway_command("run", Dataplane::Nftables)?.args(nodes_in(&nodes)).start("podway")?;
        await_no_trace_of(2, &one);

        file.write("nodes.yaml", format!("{}{}", one.manifest(), two.manifest()))?;
        for way in ways_to(&web) {
            await_answers(&client, way);
        }
        file.write("nodes.yaml", one.manifest())?;
        await_no_trace_of(2, &one);
        Ok(())
    });
}

#[test]
fn n14_of_two_nodes_with_one_subnet_the_first_has_it_and_the_log_names_the_other() {
    in_lab("overlay-conflict", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (web, _server) = two.serving_pod("web")?;
        let (podway, _other) = (one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?);
        let thief = manifests::node("node-3").pod_cidrs(two.subnets()).internal_ips(["192.0.2.99"]);
        cluster.publish("thief", thief)?;
        podway.wait_for_log("node=node-3", SOON)?;
        for way in ways_to(&web) {
            let answers = client.send(way.probe().count(5))?;
            assert!(answers.all_answered(), "{way}: {answers}");
        }
        cluster.withdraw("thief")?;
        podway.wait_for_log("no longer", SOON)?;
        Ok(())
    });
}

fn run_on_all<const COUNT: usize>(members: [&Member; COUNT]) -> Result<Vec<Process>> {
    members.into_iter().map(|member| member.podway(Dataplane::Nftables)).collect()
}

fn run_with_nodes(member: &Member, nodes: &Path) -> Result<Process> {
    let command = member.podway_command("run", Dataplane::Nftables)?.args(nodes_in(nodes));
    let podway = command.start("podway")?;
    wait_until_programmed(&podway)?;
    Ok(podway)
}

fn nodes_in(nodes: &Path) -> [String; 2] {
    ["--set".to_owned(), format!("network.nodes={}", nodes.display())]
}

fn any_of_family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "0.0.0.0" } else { "::" }
}
