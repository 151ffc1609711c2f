//! Services translated at connect() by eBPF programs, over a folder of manifests.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, anyhow};
use podway_suites::{
    Cluster, Dataplane, Load, SOON, Shop, Source, Strangers, WEB, WEB_PORT, Witness, await_refusal_at_once,
    await_silence, new_connections_reach_only, web_answers, web_behind, web_service,
};
use podway_testkit::{Probe, Transport, eventually, in_lab};

#[test]
fn connections_to_a_service_are_translated_before_there_is_a_packet() {
    in_lab("ebpf-connect", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let witness = Witness::install(&shop.one)?;
        for client in shop.clients() {
            for way in Shop::ways() {
                let answers = client.send(way.probe().count(300))?;
                assert!(answers.all_answered(), "{} at {way}: {answers}", client.name());
                let counts = answers.by_name();
                assert!(
                    counts.len() == 3 && counts.values().all(|it| (50..=150).contains(it)),
                    "{way}: {answers}"
                );
            }
        }
        assert_eq!(witness.packets()?, 0, "packets to Service addresses");
        Ok(())
    });
}

#[test]
fn the_endpoint_sees_the_pod_that_called_the_service() {
    in_lab("ebpf-source", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        for way in Shop::ways() {
            let answers = shop.client.send(way.probe().count(30))?;
            assert_eq!(answers.sources(), [way.same_family(&shop.client)].into(), "{way}");
        }
        Ok(())
    });
}

#[test]
fn an_ipv4_service_is_found_from_an_ipv6_socket() {
    in_lab("ebpf-mapped", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let witness = Witness::install(&shop.one)?;
        let mapped = "[::ffff:10.96.0.10]:80";
        for probe in [Probe::tcp(mapped), Probe::udp(mapped)] {
            let answers = shop.client.send(probe.count(30))?;
            assert!(answers.all_answered(), "{answers}");
        }
        assert_eq!(witness.packets()?, 0, "packets to Service addresses");
        Ok(())
    });
}

#[test]
fn datagrams_without_connect_are_translated_by_nftables() {
    in_lab("ebpf-unconnected", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let witness = Witness::install(&shop.one)?;
        for way in Shop::ways().into_iter().filter(|way| way.transport == Transport::Udp) {
            let before = witness.packets()?;
            let answers = shop.client.send(way.probe().unconnected().count(20))?;
            assert!(answers.all_answered(), "{way}: {answers}");
            assert_eq!(answers.remotes(), [way.address].into(), "{way}: answers come from the Service");
            assert_eq!(witness.packets()? - before, 20, "{way}");
        }
        Ok(())
    });
}

#[test]
fn s37_without_endpoints_connect_itself_is_refused() {
    in_lab("ebpf-reject", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        shop.set_endpoints([])?;
        let witness = Witness::install(&shop.one)?;
        eventually(SOON, "refusals without a packet", || {
            let before = witness.packets()?;
            for client in shop.clients() {
                for way in Shop::ways() {
                    await_refusal_at_once(client, way);
                }
            }
            let packets = witness.packets()? - before;
            if packets == 0 { Ok(()) } else { Err(anyhow!("{packets} packets to Service addresses")) }
        });
        shop.set_endpoints([&shop.far[0]])?;
        web_answers(&shop.client, &["far-1"]);
        Ok(())
    });
}

#[test]
fn s6_s27_a_local_policy_without_a_local_endpoint_drops() {
    in_lab("ebpf-local", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        let local = web_service().set("/spec/internalTrafficPolicy", "Local");
        shop.cluster.publish("web", format!("{local}{}", shop.behind_all()))?;
        web_answers(&shop.client, &["near"]);
        shop.cluster.publish("web", format!("{local}{}", web_behind(&shop.far)))?;
        for way in Shop::ways() {
            await_silence(&shop.client, way);
        }
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    in_lab("ebpf-hairpin", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        shop.set_endpoints([&shop.near])?;
        web_answers(&shop.near, &["near"]);
        Ok(())
    });
}

#[test]
fn a_removed_endpoint_gets_no_new_connection_and_keeps_the_old_ones() {
    in_lab("ebpf-change", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        shop.set_endpoints([&shop.near])?;
        web_answers(&shop.client, &["near"]);
        let stream = shop.client.stream(Shop::ways()[0].probe())?;
        shop.set_endpoints([&shop.far[0], &shop.far[1]])?;
        for client in shop.clients() {
            web_answers(client, &["far-1", "far-2"]);
            for way in Shop::ways() {
                new_connections_reach_only(client, way, &["far-1", "far-2"]);
            }
        }
        let answers = stream.stop()?;
        assert!(answers.all_answered(), "the stream to near: {answers}");
        assert_eq!(answers.by_name().into_keys().collect::<Vec<_>>(), ["near"]);
        Ok(())
    });
}

#[test]
fn s24_connections_are_translated_while_podway_is_killed_stopped_and_started() {
    in_lab("ebpf-restart", |lab| {
        let mut shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let witness = Witness::install(&shop.one)?;
        let load = Load::start(&shop.client, Shop::ways())?;
        for round in 0..4 {
            let podway = &shop.podways[0];
            if round % 2 == 0 {
                podway.kill9()?
            } else {
                podway.stop()?
            };
            std::thread::sleep(Duration::from_millis(50));
            shop.podways[0] = shop.one.podway(Dataplane::Ebpf)?;
            shop.podways[0].wait_for_log("Services stand as planned: nothing to change", SOON)?;
        }
        load.assert_nothing_lost();
        assert_eq!(witness.packets()?, 0, "packets to Service addresses");
        Ok(())
    });
}

#[test]
fn what_changed_while_podway_was_down_is_caught_up() {
    in_lab("ebpf-catch-up", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        shop.podways[0].kill9()?;
        shop.set_endpoints([&shop.far[1]])?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let _podway = shop.one.podway(Dataplane::Ebpf)?;
        web_answers(&shop.client, &["far-2"]);
        shop.podways[1].kill9()?;
        Ok(())
    });
}

#[test]
fn x3_no_connection_is_lost_in_a_change_of_dataplane_and_back() {
    in_lab("ebpf-switch", |lab| {
        let mut shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let witness = Witness::install(&shop.one)?;
        let load = Load::start(&shop.client, Shop::ways())?;
        for dataplane in [Dataplane::Ebpf, Dataplane::Nftables, Dataplane::Ebpf, Dataplane::Nftables] {
            assert!(shop.podways[0].stop()?.success());
            shop.podways[0] = shop.one.podway(dataplane)?;
            let before = witness.packets()?;
            let answers = shop.one.send(Shop::ways()[0].probe().count(20))?;
            assert!(answers.all_answered(), "{dataplane:?}: {answers}");
            match dataplane {
                Dataplane::Ebpf => assert!(!shop.one.pins()?.is_empty()),
                Dataplane::Nftables => {
                    assert!(witness.packets()? > before);
                    eventually(SOON, "the programs are gone", || match shop.one.pins()? {
                        pins if pins.is_empty() => Ok(()),
                        pins => Err(anyhow!("{pins:?}")),
                    });
                }
            }
        }
        load.assert_nothing_lost();
        Ok(())
    });
}

#[test]
fn s22_cleanup_takes_programs_and_maps_along() {
    in_lab("ebpf-cleanup", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        assert!(!shop.one.pins()?.is_empty());
        assert!(shop.podways[0].stop()?.success());
        // Whichever dataplane cleanup is told of, it removes what it finds.
        shop.one.cleanup(Dataplane::Nftables)?;
        assert_eq!(shop.one.pins()?, Vec::<String>::new());
        for way in Shop::ways() {
            let answers = shop.client.send(way.probe().timeout(Duration::from_millis(100)))?;
            assert_eq!(answers.answered(), 0, "{way}: {answers}");
        }
        shop.set_endpoints(&shop.far)?;
        web_answers(&shop.far[0], &["far-1", "far-2"]);
        Ok(())
    });
}

#[test]
fn s24_what_strangers_have_on_a_node_survives_run_and_cleanup() {
    in_lab("ebpf-strangers", |lab| {
        let cluster = Cluster::over(lab, Source::Directory)?;
        let one = cluster.member(1)?;
        let _client = one.pod("client")?;
        let strangers = Strangers::move_in(&one)?;
        let podway = one.podway(Dataplane::Ebpf)?;
        strangers.are_unharmed();
        assert!(podway.stop()?.success());
        one.cleanup(Dataplane::Ebpf)?;
        strangers.are_alone();
        Ok(())
    });
}

#[test]
fn each_nodes_programs_serve_its_own_cgroup_and_no_other() {
    in_lab("ebpf-cgroups", |lab| {
        let shop = Shop::open(lab, Dataplane::Ebpf)?;
        let local = web_service().set("/spec/internalTrafficPolicy", "Local");
        shop.cluster.publish("web", format!("{local}{}", web_behind([&shop.near, &shop.far[0]])))?;
        let witnesses = [Witness::install(&shop.one)?, Witness::install(&shop.two)?];
        web_answers(&shop.client, &["near"]);
        web_answers(&shop.far[1], &["far-1"]);
        let packets = || -> Result<Vec<u64>> { witnesses.iter().map(Witness::packets).collect() };
        let at_first = packets()?;
        for (client, name) in [(&shop.client, "near"), (&shop.far[1], "far-1")] {
            for way in Shop::ways() {
                new_connections_reach_only(client, way, &[name]);
            }
        }
        assert_eq!(packets()?, at_first, "packets to Service addresses");

        // This process is in none of the nodes' cgroups: no program translates what it sends, wherever it sends it from.
        let address: SocketAddr = (WEB[0], WEB_PORT).into();
        shop.one.enter(|| TcpStream::connect_timeout(&address, SOON))??;
        assert!(packets()?[0] > at_first[0], "translated by nftables");
        Ok(())
    });
}
