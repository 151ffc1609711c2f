//! Hosts of a lab reach each other as real ones would.

use anyhow::Result;
use podway_testkit::{Lab, Probe, in_lab};

#[test]
fn hosts_on_the_underlay_reach_each_other_at_once_over_both_families() {
    in_lab("topo-underlay", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        assert_eq!(
            (node.ipv4().to_string(), node.ipv6().to_string()),
            ("192.0.2.11".into(), "2001:db8::11".into())
        );
        let _server = node.serve("node-1", 8080)?;
        for address in [node.ipv4_at(8080), node.ipv6_at(8080)] {
            for probe in [Probe::tcp(address), Probe::udp(address)] {
                let answers = client.send(probe.count(5))?;
                assert!(answers.all_answered(), "{address}: {answers}");
                let family = if address.is_ipv4() { client.ipv4() } else { client.ipv6() };
                assert_eq!(answers.sources(), [family].into());
                assert_eq!(answers.remotes(), [address].into());
            }
        }
        Ok(())
    });
}

#[test]
fn pods_of_one_node_reach_each_other_through_their_routed_veths() {
    in_lab("topo-pods", |lab| {
        let node = lab.node("node-1")?;
        let web = node.pod("web-1", ["10.244.1.2", "fd00:10:244:1::2"])?;
        let client = node.pod("client", ["10.244.1.3", "fd00:10:244:1::3"])?;
        let _server = web.serve("web-1", 8080)?;
        for (address, source) in [(web.ipv4_at(8080), client.ipv4()), (web.ipv6_at(8080), client.ipv6())] {
            let answers = client.send(Probe::tcp(address).count(10))?;
            assert!(answers.all_answered(), "{address}: {answers}");
            assert_eq!(answers.sources(), [source].into());
        }
        let from_the_node = node.send(Probe::udp(web.ipv4_at(8080)))?;
        assert_eq!(from_the_node.sources(), ["10.244.1.1".parse()?].into());
        Ok(())
    });
}

#[test]
fn a_pod_has_the_layout_of_the_ptp_plugin() {
    in_lab("topo-ptp", |lab| {
        let node = lab.node("node-1")?;
        let pod = node.pod("web-1", ["10.244.1.2", "fd00:10:244:1::2"])?;
        let device = pod.node_device();
        let on_node = node.command("ip").args(["-brief", "address", "show", "dev", &device]).run()?;
        assert!(on_node.contains("10.244.1.1/32") && on_node.contains("fd00:10:244:1::1/128"), "{on_node}");
        let to_pod = node.command("ip").args(["route", "get", "10.244.1.2"]).run()?;
        assert!(to_pod.contains(&format!("dev {device}")), "{to_pod}");
        let in_pod = pod.command("ip").args(["route"]).run()?;
        let routes: Vec<&str> = in_pod.lines().map(str::trim).collect();
        assert_eq!(
            routes,
            [
                "default via 10.244.1.1 dev eth0",
                "10.244.1.0/24 via 10.244.1.1 dev eth0 src 10.244.1.2",
                "10.244.1.1 dev eth0 scope link src 10.244.1.2",
            ]
        );
        Ok(())
    });
}

#[test]
fn a_removed_pod_and_a_removed_node_may_come_back_under_their_names() {
    in_lab("topo-come-back", |lab| {
        let node = lab.node("node-1")?;
        let client = lab.outside("client")?;
        for _ in 0..2 {
            let pod = node.pod("web-1", ["10.244.1.2"])?;
            let server = pod.serve("web-1", 8080)?;
            assert!(node.send(Probe::tcp(pod.ipv4_at(8080)))?.all_answered());
            pod.remove()?;
            assert!(!server.is_running());
        }
        node.pod("web-2", ["10.244.1.3"])?;
        let address = node.ipv4();
        node.remove()?;
        let again = lab.node("node-1")?;
        assert_eq!(again.ipv4(), address);
        again.pod("web-2", ["10.244.1.3"])?;
        let _server = again.serve("node-1", 8080)?;
        assert!(client.send(Probe::tcp(again.ipv4_at(8080)))?.all_answered());
        Ok(())
    });
}

#[test]
fn an_unplugged_node_answers_again_once_plugged_in() {
    in_lab("topo-unplug", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        let _server = node.serve("node-1", 8080)?;
        let probe = || Probe::tcp(node.ipv4_at(8080)).timeout(std::time::Duration::from_millis(200));
        assert!(client.send(probe())?.all_answered());
        node.unplug()?;
        assert!(client.send(probe())?.all_timed_out());
        node.plug()?;
        let answers = client.send(probe().count(5))?;
        assert!(answers.answered() > 0, "{answers}");
        Ok(())
    });
}

#[test]
fn two_labs_with_the_same_addresses_stand_side_by_side() {
    std::thread::scope(|scope| {
        for name in ["topo-side-a", "topo-side-b"] {
            scope.spawn(move || in_lab(name, only_own_servers_answer));
        }
    });
}

fn only_own_servers_answer(lab: &Lab) -> Result<()> {
    let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
    let _server = node.serve(lab.name(), 8080)?;
    let answers = client.send(Probe::tcp("192.0.2.11:8080").count(50))?;
    assert_eq!(answers.by_name(), [(lab.name().to_owned(), 50)].into());
    Ok(())
}

#[test]
fn vxlan_packets_on_the_underlay_are_counted_over_both_families() {
    in_lab("topo-vxlan", |lab| {
        let (node, peer) = (lab.node("node-1")?, lab.node("node-2")?);
        let plain = lab.counter("plain", "udp dport 8080")?;
        assert_eq!(lab.vxlan_packets()?, 0);
        let sink = |port: u16| peer.enter(move || std::net::UdpSocket::bind(("::", port)));
        let _sinks = (sink(8472)??, sink(8080)??);
        node.enter(|| {
            let v4 = std::net::UdpSocket::bind("0.0.0.0:0")?;
            let v6 = std::net::UdpSocket::bind("[::]:0")?;
            v4.send_to(b"1", peer.ipv4_at(8472))?;
            v4.send_to(b"2", peer.ipv4_at(8472))?;
            v6.send_to(b"3", peer.ipv6_at(8472))?;
            v6.send_to(b"4", peer.ipv6_at(8080))
        })??;
        podway_testkit::within(std::time::Duration::from_secs(5), "3 VXLAN packets and 1 other", || {
            let seen = (lab.vxlan_packets()?, plain.packets()?);
            if seen == (3, 1) { Ok(()) } else { Err(anyhow::anyhow!("{seen:?}")) }
        })
    });
}

#[test]
fn a_process_of_a_pod_is_in_the_cgroup_of_its_node() {
    in_lab("topo-cgroup", |lab| {
        let node = lab.node("node-1")?;
        let pod = node.pod("web-1", ["10.244.1.2"])?;
        let server = pod.serve("web-1", 8080)?;
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", server.id()))?;
        assert!(cgroup.contains("0::/podway-testkit/topo-cgroup/node-1/web-1\n"), "{cgroup}");
        assert!(pod.cgroup().starts_with(node.cgroup()));
        Ok(())
    });
}
