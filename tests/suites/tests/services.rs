//! Services over a folder of manifests, translated by nftables: who answers, from which address, and who is refused.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use podway_suites::{
    Dataplane, Load, Member, SOON, Shop, WEB, WEB_PORT, Way, await_answers_by, await_refusal,
    await_refusal_at_once, await_silence, new_connections_reach_only, web_answers, web_behind, web_service,
};
use podway_testkit::{Host, Transport, eventually, in_lab, manifests};
use serde_json::json;

#[test]
fn a_pod_reaches_every_endpoint_of_a_service_and_is_seen_under_its_own_address() {
    in_lab("services-pod", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        for way in Shop::ways() {
            let answers = shop.client.send(way.probe().count(300))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.sources(), [way.same_family(&shop.client)].into(), "{way}");
            // A third each: 100 of 300, with a standard deviation of 8.
            assert!(answers.by_name().values().all(|count| (50..=150).contains(count)), "{way}: {answers}");
        }
        Ok(())
    });
}

#[test]
fn s15_a_host_reaches_a_service_and_is_masqueraded_to_the_address_it_has_on_the_way() {
    in_lab("services-host", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.one, &["near", "far-1", "far-2"]);
        for way in Shop::ways() {
            let answers = shop.one.send(way.probe().count(100))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            let own = addresses_of(&shop.one)?;
            assert!(answers.sources().is_subset(&own), "{way}: {:?} of {own:?}", answers.sources());
        }
        Ok(())
    });
}

#[test]
fn s15_an_outside_client_that_is_routed_to_a_service_is_masqueraded_to_the_node() {
    in_lab("services-outside", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let outside = lab.outside("outside")?;
        outside.ip(&format!(
            "route add 10.96.0.0/12 via {}\nroute add fd96::/64 via {}",
            shop.one.ipv4(),
            shop.one.ipv6()
        ))?;
        web_answers(&outside, &["near", "far-1", "far-2"]);
        for way in Shop::ways() {
            let answers = outside.send(way.probe().count(50))?;
            let own = addresses_of(&shop.one)?;
            assert!(answers.sources().is_subset(&own), "{way}: {:?} of {own:?}", answers.sources());
        }
        Ok(())
    });
}

#[test]
fn s15_s39_a_pod_that_reaches_itself_through_its_service_sees_the_node() {
    in_lab("services-hairpin", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        shop.set_endpoints([&shop.near])?;
        web_answers(&shop.near, &["near"]);
        for way in Shop::ways() {
            let answers = shop.near.send(way.probe().count(20))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            let own = addresses_of(&shop.one)?;
            assert!(answers.sources().is_subset(&own), "{way}: {:?} of {own:?}", answers.sources());
        }
        shop.set_endpoints([&shop.near, &shop.far[0]])?;
        web_answers(&shop.near, &["near", "far-1"]);
        for way in Shop::ways() {
            let answers = shop.near.send(way.probe().count(40))?;
            let by_far = answers.iter().filter(|answer| answer.name.as_deref() == Some("far-1"));
            let sources: Vec<IpAddr> = by_far.filter_map(|answer| Some(answer.peer?.ip())).collect();
            assert!(
                sources.iter().all(|source| *source == way.same_family(&shop.near)),
                "{way}: {sources:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn s15_s39_an_endpoint_that_is_the_node_itself_sees_the_pod_and_serves_its_own_node() {
    in_lab("services-host-network", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let _server = shop.one.serve("host-1", 8080)?;
        shop.set(web_behind([]).endpoint(shop.one.addresses(), "node-1"))?;
        for client in [&shop.client, &shop.far[0], &*shop.one as &Host] {
            web_answers(client, &["host-1"]);
        }
        for way in Shop::ways() {
            let answers = shop.client.send(way.probe().count(10))?;
            assert_eq!(answers.sources(), [way.same_family(&shop.client)].into(), "{way}");
            let answers = shop.far[0].send(way.probe().count(10))?;
            assert_eq!(
                answers.sources(),
                [way.same_family(&shop.two)].into(),
                "{way}: n10, it left the pod network"
            );
        }
        Ok(())
    });
}

#[test]
fn each_port_of_a_service_leads_to_its_own_target() {
    in_lab("services-ports", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let (http, metrics) = (shop.near.serve("http", 8081)?, shop.near.serve("metrics", 8082)?);
        let service = manifests::service("ports")
            .cluster_ips(["10.96.0.20", "fd96::20"])
            .tcp("http", 80, 8081)
            .tcp("metrics", 9090, 8082);
        let service = service.udp("dns", 80, 8082);
        let slices = manifests::slices("ports").tcp("http", 8081).tcp("metrics", 8082).udp("dns", 8082);
        shop.cluster.publish("ports", format!("{service}{}", slices.pod(&shop.near)))?;
        let to = |transport, port| {
            let addresses: [IpAddr; 2] = ["10.96.0.20".parse().unwrap(), "fd96::20".parse().unwrap()];
            Way::all(addresses, port).into_iter().filter(move |way| way.transport == transport)
        };
        let expected = [
            (Transport::Tcp, 80, "http"),
            (Transport::Tcp, 9090, "metrics"),
            (Transport::Udp, 80, "metrics"),
        ];
        for (transport, port, name) in expected {
            to(transport, port).for_each(|way| await_answers_by(&shop.client, way, &[name]));
        }
        for way in to(Transport::Udp, 9090) {
            assert!(shop.client.send(way.probe())?.all_refused(), "s10: {way} is no port of it");
        }
        drop((http, metrics));
        Ok(())
    });
}

#[test]
fn s9_a_service_without_endpoints_refuses_at_once() {
    in_lab("services-reject", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        shop.set_endpoints([])?;
        for client in shop.clients() {
            for way in Shop::ways() {
                await_refusal_at_once(client, way);
            }
        }
        shop.set_endpoints([&shop.far[0]])?;
        shop.clients().into_iter().for_each(|client| web_answers(client, &["far-1"]));
        Ok(())
    });
}

#[test]
fn s10_a_port_that_a_service_does_not_have_is_refused() {
    in_lab("services-port", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        for client in shop.clients() {
            for way in Way::all(WEB, 81) {
                await_refusal_at_once(client, way);
            }
        }
        Ok(())
    });
}

#[test]
fn s4_an_endpoint_that_is_not_ready_is_not_used() {
    in_lab("services-not-ready", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        shop.set(web_behind([&shop.near, &shop.far[0]]).not_ready())?;
        web_answers(&shop.client, &["near"]);
        shop.set(web_behind([&shop.near]).not_ready())?;
        for way in Shop::ways() {
            await_refusal(&shop.client, way);
        }
        // Without conditions, an endpoint is ready.
        shop.set(web_behind([&shop.far[1]]).of_latest("/conditions", json!({})))?;
        web_answers(&shop.client, &["far-2"]);
        Ok(())
    });
}

#[test]
fn s5_a_terminating_endpoint_serves_only_while_no_other_is_ready() {
    in_lab("services-terminating", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        shop.set(web_behind([&shop.near]).pod(&shop.far[0]).terminating())?;
        web_answers(&shop.client, &["near"]);
        shop.set(web_behind([&shop.near]).terminating().pod(&shop.far[0]).terminating())?;
        web_answers(&shop.client, &["near", "far-1"]);
        shop.set(web_behind([&shop.near]).terminating().pod(&shop.far[0]).not_ready())?;
        web_answers(&shop.client, &["near"]);
        Ok(())
    });
}

#[test]
fn s6_s27_a_local_policy_keeps_to_the_node_drops_without_local_and_refuses_without_any_endpoint() {
    in_lab("services-local", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let local = || web_service().set("/spec/internalTrafficPolicy", "Local");
        shop.cluster.publish("web", format!("{}{}", local(), shop.behind_all()))?;
        for client in shop.clients() {
            web_answers(client, &["near"]);
        }
        shop.cluster.publish("web", format!("{}{}", local(), web_behind(&shop.far)))?;
        for client in shop.clients() {
            Shop::ways().into_iter().for_each(|way| await_silence(client, way));
        }
        shop.cluster.publish("web", format!("{}{}", local(), web_behind([])))?;
        for client in shop.clients() {
            for way in Shop::ways() {
                await_refusal_at_once(client, way);
            }
        }
        Ok(())
    });
}

#[test]
fn s8_an_endpoint_hinted_at_the_zone_of_the_node_is_preferred_and_a_change_of_zone_counts() {
    in_lab("services-zones", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let hint = |zone: &str| json!({ "forZones": [{ "name": zone }] });
        let hinted = web_behind([&shop.near]).of_latest("/hints", hint("a"));
        let hinted = hinted.pod(&shop.far[0]).of_latest("/hints", hint("b"));
        shop.set(hinted.clone())?;
        web_answers(&shop.client, &["near", "far-1"]);
        shop.cluster.publish("node-1", shop.one.manifest().zone("a"))?;
        web_answers(&shop.client, &["near"]);
        shop.cluster.publish("node-1", shop.one.manifest().zone("b"))?;
        web_answers(&shop.client, &["far-1"]);
        // One ready endpoint without a hint: hints do not count.
        shop.set(hinted.pod(&shop.far[1]))?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        Ok(())
    });
}

#[test]
fn a_removed_endpoint_gets_no_new_connection_and_keeps_the_old_ones_and_a_new_one_gets_its_share() {
    in_lab("services-change", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        shop.set_endpoints([&shop.far[1]])?;
        web_answers(&shop.client, &["far-2"]);
        let stream = shop.client.stream(Shop::ways()[0].probe())?;
        shop.set_endpoints([&shop.near, &shop.far[0]])?;
        for client in shop.clients() {
            web_answers(client, &["near", "far-1"]);
            // A datagram from a port that was in use a moment ago belongs to the connection of then.
            for way in Shop::ways().into_iter().filter(|way| way.transport == Transport::Tcp) {
                new_connections_reach_only(client, way, &["near", "far-1"]);
            }
        }
        let answers = stream.stop()?;
        assert!(answers.all_answered(), "the stream to far-2: {answers}");
        assert_eq!(answers.by_name().into_keys().collect::<Vec<_>>(), ["far-2"]);
        shop.set_endpoints([&shop.far[1], &shop.far[0]])?;
        shop.clients().into_iter().for_each(|client| web_answers(client, &["far-1", "far-2"]));
        Ok(())
    });
}

#[test]
fn no_connection_is_lost_while_endpoints_come_and_go() {
    in_lab("services-churn", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let load = Load::start(&shop.client, Shop::ways())?;
        for _ in 0..10 {
            for pods in [vec![&shop.near], vec![&shop.far[0], &shop.near], vec![&shop.far[1]]] {
                shop.set_endpoints(pods)?;
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        load.assert_nothing_lost();
        Ok(())
    });
}

#[test]
fn a_deleted_service_is_no_longer_at_its_address() {
    in_lab("services-deleted", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        shop.cluster.withdraw("web")?;
        for way in Shop::ways() {
            eventually(SOON, &format!("nobody at {way}"), || {
                let probe = way.probe().timeout(Duration::from_millis(100));
                let answers = shop.client.send(probe).map_err(|error| format!("{error:#}"))?;
                if answers.answered() == 0 { Ok(()) } else { Err(answers.to_string()) }
            });
        }
        shop.set(shop.behind_all())?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        Ok(())
    });
}

#[test]
fn endpoints_that_come_before_their_service_are_kept_for_it() {
    in_lab("services-order", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        shop.cluster.withdraw("web")?;
        shop.cluster.publish("a-slices", web_behind([&shop.near]))?;
        shop.cluster.publish("b-service", web_service())?;
        web_answers(&shop.client, &["near"]);
        Ok(())
    });
}

#[test]
fn s29_of_two_services_with_one_address_the_older_has_it_and_the_log_names_the_other() {
    in_lab("services-contested", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let created = |time: &str| json!(format!("2026-01-0{time}T00:00:00Z"));
        let web = web_service().set("/metadata/creationTimestamp", created("1"));
        shop.cluster.publish("web", format!("{web}{}", shop.behind_all()))?;
        let rival =
            manifests::service("rival").cluster_ips(WEB).tcp("tcp", WEB_PORT, 9).udp("udp", WEB_PORT, 9);
        let rival = rival.set("/metadata/creationTimestamp", created("2"));
        let slices = manifests::slices("rival").tcp("tcp", 9).udp("udp", 9).pod(&shop.near);
        shop.cluster.publish("rival", format!("{rival}{slices}"))?;
        shop.podways[0].wait_for_log("rival", SOON)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        Ok(())
    });
}

/// Every address of a node, of whichever device.
fn addresses_of(member: &Member) -> Result<std::collections::BTreeSet<IpAddr>> {
    let printed = member.command("ip").args(["-json", "address"]).run()?;
    let devices: serde_json::Value = serde_json::from_str(&printed)?;
    let addresses =
        devices.as_array().into_iter().flatten().filter_map(|device| device["addr_info"].as_array());
    let addresses = addresses.flatten().filter_map(|address| address["local"].as_str());
    Ok(addresses.map(str::parse).collect::<Result<_, _>>()?)
}
