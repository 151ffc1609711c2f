//! Stopping, killing and starting podway again: traffic goes on, nothing is written twice, nothing is missed.

use std::time::Duration;

use anyhow::{Result, anyhow};
use podway_suites::{
    Cluster, Dataplane, KernelState, Load, SOON, Shop, Strangers, Way, await_answers, await_answers_by,
    await_no_trace_of, wait_until_programmed, web_answers, web_behind, web_service,
};
use podway_testkit::{Host, Pod, eventually, in_lab, manifests};

#[test]
fn s24_no_connection_is_lost_while_podway_is_killed_stopped_and_started() {
    in_lab("restart-traffic", |lab| {
        let mut shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let load = Load::start(&shop.client, Shop::ways().into_iter().chain(ways_to(&shop.far[0])))?;
        for round in 0..4 {
            for node in 0..2 {
                let kill = (round + node) % 2 == 0;
                let podway = &shop.podways[node];
                if kill {
                    podway.kill9()?
                } else {
                    podway.stop()?
                };
                std::thread::sleep(Duration::from_millis(50));
                shop.podways[node] = [&shop.one, &shop.two][node].podway(Dataplane::Nftables)?;
            }
        }
        load.assert_nothing_lost();
        Ok(())
    });
}

#[test]
fn s24_a_restarted_podway_finds_everything_as_planned_and_writes_nothing() {
    in_lab("restart-adopt", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let running = (KernelState::read(&shop.one)?, rules_with_handles(&shop.one)?);
        shop.podways[0].kill9()?;
        let dead = (KernelState::read(&shop.one)?, rules_with_handles(&shop.one)?);
        running.0.assert_same(&dead.0);
        let podway = shop.one.podway(Dataplane::Nftables)?;
        podway.wait_for_log("pod network stands as planned: nothing to change", SOON)?;
        podway.wait_for_log("Services stand as planned: nothing to change", SOON)?;
        running.0.assert_same(&KernelState::read(&shop.one)?);
        // Whatever is written again gets another handle.
        assert_eq!(running.1, rules_with_handles(&shop.one)?);
        Ok(())
    });
}

#[test]
fn s24_what_changed_while_podway_was_down_is_caught_up() {
    in_lab("restart-catch-up", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        let other = |name: &str, number: u8| {
            let addresses = [format!("10.96.0.{number}"), format!("fd96::{number}")];
            let service = manifests::service(name).cluster_ips(addresses).tcp("tcp", 80, 8080);
            format!("{service}{}", manifests::slices(name).tcp("tcp", 8080).pod(&shop.near))
        };
        let at = |number: u8| {
            Way::all(["10.96.0.".to_owned() + &number.to_string()].map(|it| it.parse().unwrap()), 80)
        };
        shop.cluster.publish("goes", other("goes", 21))?;
        await_answers_by(&shop.client, at(21)[0], &["near"]);
        let before = KernelState::read(&shop.one)?;
        assert!(shop.podways[0].stop()?.success());

        shop.cluster.withdraw("goes")?;
        shop.cluster.publish("comes", other("comes", 22))?;
        shop.set_endpoints([&shop.far[1]])?;
        let three = shop.cluster.member(3)?;
        let (joined, _server) = three.serving_pod("joined")?;
        let _third = three.podway(Dataplane::Nftables)?;
        before.assert_same(&KernelState::read(&shop.one)?);

        let _podway = shop.one.podway(Dataplane::Nftables)?;
        web_answers(&shop.client, &["far-2"]);
        await_answers_by(&shop.client, at(22)[0], &["near"]);
        eventually(SOON, "no trace of a Service that went meanwhile", || {
            if KernelState::read(&shop.one)?.mentions("10.96.0.21 ") {
                Err(anyhow!("there is"))
            } else {
                Ok(())
            }
        });
        for way in ways_to(&joined) {
            await_answers(&shop.client, way);
        }
        Ok(())
    });
}

#[test]
fn n20_what_was_left_of_a_node_that_went_meanwhile_is_pruned() {
    in_lab("restart-prune", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let _client = one.pod("client")?;
        let podway = one.podway(Dataplane::Nftables)?;
        let alone = {
            cluster.withdraw("node-2")?;
            await_no_trace_of(2, &one);
            KernelState::read(&one)?
        };
        cluster.publish("node-2", two.manifest())?;
        eventually(SOON, "the route to node-2", || match KernelState::read(&one) {
            Ok(state) if state.traces_of(2).is_empty() => Err("none".to_owned()),
            result => result.map(drop).map_err(|error| format!("{error:#}")),
        });
        podway.kill9()?;
        cluster.withdraw("node-2")?;
        let _podway = one.podway(Dataplane::Nftables)?;
        alone.await_again_on(&one);
        Ok(())
    });
}

#[test]
fn s31_a_podway_that_was_killed_in_the_middle_of_its_work_ends_where_another_does() {
    in_lab("restart-killed-midway", |lab| {
        let (cluster, [one]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (web, _server) = one.serving_pod("web")?;
        cluster.publish("web", format!("{}{}", web_service(), web_behind([&web])))?;
        cluster.publish("many", many_services(400, &web))?;
        let undisturbed = {
            let podway = one.podway(Dataplane::Nftables)?;
            let state = KernelState::read(&one)?;
            assert!(podway.stop()?.success());
            state
        };
        one.cleanup(Dataplane::Nftables)?;
        for age in [30, 60, 90, 120, 150, 180] {
            let podway = one.podway_command("run", Dataplane::Nftables)?.start("podway")?;
            std::thread::sleep(Duration::from_millis(age));
            podway.kill9()?;
        }
        let _podway = one.podway(Dataplane::Nftables)?;
        undisturbed.await_again_on(&one);
        web_answers(&client, &["web"]);
        Ok(())
    });
}

#[test]
fn s22_s24_strangers_survive_everything_and_cleanup_leaves_them_alone() {
    in_lab("restart-cleanup", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let strangers = Strangers::move_in(&one)?;
        // On a node that podway never ran on.
        one.cleanup(Dataplane::Nftables)?;
        strangers.are_alone();
        cluster.publish("web", format!("{}{}", web_service(), web_behind([&web])))?;
        let _other = two.podway(Dataplane::Nftables)?;
        for _ in 0..2 {
            let podway = one.podway(Dataplane::Nftables)?;
            web_answers(&client, &["web"]);
            strangers.are_unharmed();
            assert!(podway.stop()?.success());
            let podway = one.podway(Dataplane::Nftables)?;
            strangers.are_unharmed();
            podway.kill9()?;
            web_answers(&client, &["web"]);
            one.cleanup(Dataplane::Nftables)?;
            strangers.are_alone();
            assert!(!one.subnet_file()?.exists());
        }
        Ok(())
    });
}

#[test]
fn s24_a_second_podway_beside_a_running_one_changes_nothing_for_traffic() {
    in_lab("restart-two", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let load = Load::start(&shop.client, Shop::ways().into_iter().chain(ways_to(&shop.far[0])))?;
        let second = shop.one.podway_command("run", Dataplane::Nftables)?.start("second")?;
        wait_until_programmed(&second)?;
        shop.set_endpoints([&shop.far[0], &shop.near])?;
        web_answers(&shop.client, &["near", "far-1"]);
        assert!(second.stop()?.success());
        load.assert_nothing_lost();
        Ok(())
    });
}

fn ways_to(host: &Host) -> Vec<Way> {
    Way::all([host.ipv4(), host.ipv6()], 8080)
}

fn rules_with_handles(host: &Host) -> Result<String> {
    host.command("nft").args(["--stateless", "--handle", "list", "ruleset"]).run()
}

fn many_services(count: u16, pod: &Pod) -> String {
    let one = |number: u16| {
        let name = format!("many-{number}");
        let addresses =
            [format!("10.96.{}.{}", 1 + number / 250, 1 + number % 250), format!("fd96::1:{number}")];
        let service = manifests::service(&name).cluster_ips(addresses).tcp("tcp", 80, 8080);
        format!("{service}{}", manifests::slices(&name).tcp("tcp", 8080).pod(pod))
    };
    (0..count).map(one).collect()
}
