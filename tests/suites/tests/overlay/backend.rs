//! The ways to other nodes: VXLAN, plain routes to neighbours, and both (N6, N7, N16).

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use podway_netlink::Netlink;
use podway_overlay::{LinkName, Sought};
use podway_suites::{Cluster, KernelState, Member, SOON, await_answers};
use podway_testkit::{Host, in_lab, manifests, within};
use serde_json::{Value, json};

use crate::{await_in_subnet_env, link, listed, reaches, run, ways_to};

#[test]
fn n6_links_addresses_and_routes_are_flannels_also_with_another_vni_and_port() {
    in_lab("overlay-links", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let other = ["network.vni=77", "network.port=4789"];
        let _podways = (run(&one, &other)?, run(&two, &other)?);
        let packets = lab.counter("port-4789", "udp dport 4789")?;
        reaches(&client, &web);
        assert!(packets.packets()? >= 8, "{} packets at port 4789", packets.packets()?);
        assert_eq!(lab.vxlan_packets()?, 0, "at port 8472");
        for (name, local, network, length) in
            [("flannel.77", one.ipv4(), "10.77.1.0", 32), ("flannel-v6.77", one.ipv6(), "fd77:0:0:1::", 128)]
        {
            let link = link(&one, name)?;
            let vxlan = &link["linkinfo"]["info_data"];
            assert_eq!(
                (&vxlan["id"], &vxlan["port"], &vxlan["learning"], &vxlan["link"]),
                (&json!(77), &json!(4789), &json!(false), &json!("eth0")),
                "{link:#}"
            );
            let sent_from = &vxlan[if local.is_ipv4() { "local" } else { "local6" }];
            assert_eq!(sent_from, &json!(local), "{link:#}");
            let addresses = link["addr_info"].as_array().context("no addresses")?;
            let held = addresses.iter().find(|held| held["local"] == network);
            assert_eq!(held.context("no address of the subnet")?["prefixlen"], length, "{link:#}");
        }
        for (family, subnet, via) in
            [("-4", "10.77.2.0/24", "10.77.2.0"), ("-6", "fd77:0:0:2::/64", "fd77:0:0:2::")]
        {
            let routes = listed(&one, &[family, "route", "show", subnet])?;
            let [route] = &routes[..] else { panic!("not one route: {routes:?}") };
            assert_eq!((&route["gateway"], &route["flags"]), (&json!(via), &json!(["onlink"])), "{route}");
        }
        let accepts = one.command("cat").arg("/proc/sys/net/ipv6/conf/flannel-v6.77/accept_ra").run()?;
        assert_eq!(accepts.trim(), "0");
        Ok(())
    });
}

#[test]
fn n6_host_gw_carries_pods_packets_as_they_are() {
    in_lab("overlay-host-gw", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let host_gw = ["network.backend=host-gw"];
        let _podways = (run(&one, &host_gw)?, run(&two, &host_gw)?);
        let bare = bare_packets(lab)?;
        reaches(&client, &web);
        assert!(bare.iter().all(|counter| counter.packets().is_ok_and(|packets| packets > 0)), "{bare:?}");
        assert_eq!(lab.vxlan_packets()?, 0);
        assert_eq!(link(&one, "flannel.1")?, Value::Null);
        await_in_subnet_env(&one, "FLANNEL_MTU=1500")
    });
}

#[test]
fn n6_a_peer_behind_a_router_is_named_by_host_gw_and_taken_up_when_it_is_a_neighbour() {
    in_lab("overlay-host-gw-far", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let host_gw = ["network.backend=host-gw"];
        let _other = run(&two, &host_gw)?;
        let routes = |verb: &str| {
            let to = |to: IpAddr, via: &str| format!("route {verb} {to} via {via}\n");
            one.ip(&(to(two.ipv4(), "192.0.2.1") + &to(two.ipv6(), "2001:db8::1")))
        };
        routes("add")?;
        let podway = run(&one, &host_gw)?;
        for address in [two.ipv4(), two.ipv6()] {
            podway
                .wait_for_log(&format!("its address {address} is no neighbour's on interface eth0"), SOON)?;
        }
        assert!(!KernelState::read(&one)?.mentions("10.77.2.0"), "a route to a node that is no neighbour");
        routes("del")?;
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n6_a_link_of_vxlan_goes_when_the_node_turns_to_host_gw_and_comes_back() {
    in_lab("overlay-backends", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let (first, second) = (run(&one, &[])?, run(&two, &[])?);
        reaches(&client, &web);
        let over_vxlan = KernelState::read(&one)?;
        drop((first, second));
        let host_gw = ["network.backend=host-gw"];
        let (first, second) = (run(&one, &host_gw)?, run(&two, &host_gw)?);
        assert!(!KernelState::read(&one)?.mentions("flannel"), "a link of VXLAN");
        reaches(&client, &web);
        drop((first, second));
        let _podways = (run(&one, &[])?, run(&two, &[])?);
        reaches(&client, &web);
        over_vxlan.await_again_on(&one);
        Ok(())
    });
}

#[test]
fn n6_direct_routing_goes_over_vxlan_while_a_router_is_between() {
    in_lab("overlay-direct", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let router = lab.outside("router")?;
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.eth0.send_redirects", "0"),
            ("net.ipv6.conf.all.forwarding", "1"),
        ] {
            router.sysctl(key, value)?;
        }
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let direct = ["network.directRouting=true"];
        let _podways = (run(&one, &direct)?, run(&two, &direct)?);
        let bare = bare_packets(lab)?;
        reaches(&client, &web);
        assert!(bare.iter().all(|counter| counter.packets().is_ok_and(|packets| packets > 0)), "{bare:?}");
        assert_eq!(lab.vxlan_packets()?, 0, "to a neighbour");

        let streams = ways_to(&web).into_iter().map(|way| client.stream(way.probe()));
        let streams = streams.collect::<Result<Vec<_>>>()?;
        let routes = |from: &Host, to: &Host, verb: &str| {
            let way = |to: IpAddr, via: IpAddr| format!("route {verb} {to} via {via}");
            from.ip(&format!("{}\n{}", way(to.ipv4(), router.ipv4()), way(to.ipv6(), router.ipv6())))
        };
        routes(&one, &two, "add")?;
        routes(&two, &one, "add")?;
        await_route_by(&one, "flannel.1", "flannel-v6.1")?;
        await_route_by(&two, "flannel.1", "flannel-v6.1")?;
        let before = lab.vxlan_packets()?;
        reaches(&client, &web);
        assert!(lab.vxlan_packets()? >= before + 8, "over the router in VXLAN");
        routes(&one, &two, "del")?;
        routes(&two, &one, "del")?;
        await_route_by(&one, "eth0", "eth0")?;
        await_route_by(&two, "eth0", "eth0")?;
        for stream in streams {
            let answers = stream.stop()?;
            assert!(answers.all_answered(), "a stream over both changes: {answers}");
        }
        reaches(&client, &web);
        Ok(())
    });
}

#[test]
fn n6_the_mac_of_a_nodes_annotation_is_kept_over_restart_and_cleanup_and_peers_send_to_it() {
    in_lab("overlay-mac", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        cluster.publish("node-1", annotated(&one, "ee:11:22:33:44:55"))?;
        let (client, (web, _server)) = (two.pod("client")?, one.serving_pod("web")?);
        let _other = run(&two, &[])?;
        for cleaned in [false, true, false] {
            if cleaned {
                one.cleanup(podway_suites::Dataplane::Nftables)?;
                assert_eq!(link(&one, "flannel.1")?, Value::Null);
            }
            let podway = run(&one, &[])?;
            for name in ["flannel.1", "flannel-v6.1"] {
                assert_eq!(link(&one, name)?["address"], "ee:11:22:33:44:55", "{name}");
            }
            reaches(&client, &web);
            assert!(podway.stop()?.success());
        }
        Ok(())
    });
}

#[test]
fn n7_a_configured_mtu_is_that_between_the_nodes_and_pods_get_what_is_left() {
    in_lab("overlay-mtu-set", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let _podway = run(&one, &["network.mtu=1400"])?;
        await_in_subnet_env(&one, "FLANNEL_MTU=1330")?;
        assert_eq!(link(&one, "flannel.1")?["mtu"], 1330);
        assert_eq!(link(&one, "flannel-v6.1")?["mtu"], 1330);
        Ok(())
    });
}

#[test]
fn n7_a_changed_mtu_of_the_interface_is_followed_in_place_and_in_subnet_env() {
    in_lab("overlay-mtu-follow", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podways = (run(&one, &[])?, run(&two, &[])?);
        reaches(&client, &web);
        let before = link(&one, "flannel.1")?;
        let stream = client.stream(ways_to(&web)[0].probe())?;
        one.ip("link set eth0 mtu 1400")?;
        await_in_subnet_env(&one, "FLANNEL_MTU=1330")?;
        let after = link(&one, "flannel.1")?;
        assert_eq!((&after["mtu"], &after["ifindex"]), (&json!(1330), &before["ifindex"]));
        one.ip("link set eth0 mtu 1500")?;
        await_in_subnet_env(&one, "FLANNEL_MTU=1430")?;
        let answers = stream.stop()?;
        assert!(answers.all_answered(), "a stream over both changes: {answers}");
        Ok(())
    });
}

#[test]
fn n16_checksums_are_the_kernels_where_that_is_set_and_behind_a_translator() {
    in_lab("overlay-offload", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _other = run(&two, &["network.checksumOffload=off"])?;
        let podway = run(&one, &[])?;
        reaches(&client, &web);
        let offloaded = |node: &Member| {
            ["flannel.1", "flannel-v6.1"]
                .into_iter()
                .map(|name| offload(node, name))
                .collect::<Result<Vec<_>>>()
        };
        assert_eq!(offloaded(&two)?, [Some(false), Some(false)], "off");
        assert_eq!(offloaded(&one)?, [Some(true), Some(true)], "auto, with nothing known to be wrong");
        drop(podway);
        let overwritten = one.manifest().set(&annotation("public-ip-overwrite"), "192.0.2.11");
        cluster.publish("node-1", overwritten)?;
        let podway = run(&one, &[])?;
        assert_eq!(offloaded(&one)?, [Some(true), Some(true)], "the overwrite is the address itself");
        drop(podway);
        cluster.publish("node-1", one.manifest().set(&annotation("public-ip-overwrite"), "203.0.113.9"))?;
        let _podway = run(&one, &[])?;
        assert_eq!(offloaded(&one)?, [Some(false), Some(true)], "auto, translated in one family");
        for way in ways_to(&web) {
            await_answers(&client, way);
        }
        Ok(())
    });
}

/// Packets of pods over the underlay that are not in VXLAN, of both families.
fn bare_packets(lab: &podway_testkit::Lab) -> Result<[podway_testkit::Counter; 2]> {
    Ok([lab.counter("bare-v4", "ip daddr 10.77.0.0/16")?, lab.counter("bare-v6", "ip6 daddr fd77::/48")?])
}

/// Waits until the routes to the other of two nodes lead over these links.
fn await_route_by(node: &Member, v4: &str, v6: &str) -> Result<()> {
    let other = 3 - node.number();
    let routes = [("-4", format!("10.77.{other}.0/24"), v4), ("-6", format!("fd77:0:0:{other}::/64"), v6)];
    within(SOON, &format!("routes of {} over {v4} and {v6}", node.name()), || {
        for (family, subnet, device) in &routes {
            let found = listed(node, &[family, "route", "show", subnet])?;
            if found.len() != 1 || found[0]["dev"] != *device {
                return Err(anyhow!("{found:?}"));
            }
        }
        Ok(())
    })
}

/// The key of one of flannel's annotations as a JSON pointer.
pub(crate) fn annotation(key: &str) -> String {
    format!("/metadata/annotations/flannel.alpha.coreos.com~1{key}")
}

/// A member's Node with all that flannel publishes of it, and this MAC in both families.
pub(crate) fn annotated(member: &Member, mac: &str) -> manifests::Node {
    let backend = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let published = [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".to_owned()),
        ("backend-data", backend.clone()),
        ("backend-v6-data", backend),
        ("public-ip", member.ipv4().to_string()),
        ("public-ipv6", member.ipv6().to_string()),
    ];
    published.into_iter().fold(member.manifest(), |node, (key, value)| node.set(&annotation(key), value))
}

/// Whether a link leaves checksums to the network card; iproute2 does not show it.
fn offload(node: &Member, name: &str) -> Result<Option<bool>> {
    let name = LinkName::new(name)?;
    let observed = node.enter(|| -> Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sought = Sought { links: [name.clone()].into(), external: None };
        runtime.block_on(async { Ok(Netlink::open()?.observe(&sought).await?) })
    })??;
    Ok(observed.links.get(&name).context("no such link")?.offload)
}
