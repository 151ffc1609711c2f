//! A node is taken over from a running flannel and handed back while traffic goes on: the same links, the same entries,
//! no connection lost.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podway_suites::{
    Dataplane, Families, FlannelCluster, FlannelNode, KernelState, Rules, Runner, SOON, Subnets, Way,
    await_answers, stop,
};
use podway_testkit::{Host, Lab, Pod, Process, Running, Transport, eventually, in_lab};
use serde_json::Value;

const PORT: u16 = 8080;

/// Often enough that an interruption of 20 ms costs a datagram.
const PACE: Duration = Duration::from_millis(10);

/// Nothing that carries packets changes hands, so none should be lost; a busy machine may hold one up past its time.
const LOST_AT_MOST: usize = 3;

/// So many messages show that traffic went on.
const ENOUGH: usize = 50;

/// The links that carry pods' packets.
const LINKS: [&str; 2] = ["flannel.1", "flannel-v6.1"];

#[test]
fn x6_a_node_is_taken_over_by_podway_flanneld_and_handed_back_under_traffic() {
    in_lab("takeover-flanneld", |lab| {
        take_over_and_hand_back(lab, Subnets::Kube, Rules::Nftables, Runner::PodwayFlanneld)
    });
}

#[test]
fn x6_a_node_is_taken_over_by_podway_run_and_handed_back_under_traffic() {
    in_lab("takeover-run", |lab| {
        take_over_and_hand_back(lab, Subnets::Kube, Rules::Iptables, Runner::PodwayRun)
    });
}

#[test]
fn n3_x6_a_node_whose_subnet_is_leased_is_taken_over_and_handed_back_under_traffic() {
    in_lab("takeover-etcd", |lab| {
        take_over_and_hand_back(lab, Subnets::Etcd, Rules::Nftables, Runner::PodwayFlanneld)
    });
}

/// Twice, for what is taken over the second time has been podway's before.
fn take_over_and_hand_back(lab: &Lab, subnets: Subnets, rules: Rules, podway: Runner) -> Result<()> {
    let mut pair = Pair::over(lab, subnets, rules)?;
    let before = pair.links()?;
    let announced = pair.cluster.announced(&pair.two)?;
    let traffic = Traffic::start(&pair)?;
    for runner in [podway, Runner::Flanneld, podway, Runner::Flanneld] {
        pair.change_to(runner)?;
        assert_eq!(pair.links()?, before, "links under {runner:?}");
        assert_eq!(pair.cluster.announced(&pair.two)?, announced, "told by {runner:?}");
    }
    traffic.assert_hardly_anything_lost();
    pair.reach_each_other();
    Ok(())
}

#[test]
fn n6_what_is_taken_over_is_what_a_fresh_podway_makes() {
    in_lab("takeover-state", |lab| {
        let mut pair = Pair::open(lab, Rules::Nftables)?;
        pair.change_to(Runner::PodwayFlanneld)?;
        // flannel's own rules are left to its users: nothing of podway's depends on them.
        for table in [["ip", "flannel-ipv4"], ["ip6", "flannel-ipv6"]] {
            pair.two.command("nft").args(["delete", "table"]).args(table).run()?;
        }
        pair.reach_each_other();
        let taken_over = (KernelState::read(&pair.two)?, pair.links_in_full()?);
        stop(&pair.daemon)?;
        pair.two.cleanup(Dataplane::Nftables)?;
        assert!(!KernelState::read(&pair.two)?.mentions("flannel"), "something is left after cleanup");

        pair.daemon = pair.cluster.run(&pair.two, Runner::PodwayFlanneld)?;
        taken_over.0.assert_same(&KernelState::read(&pair.two)?);
        assert_eq!(pair.links_in_full()?, taken_over.1);
        pair.reach_each_other();
        Ok(())
    });
}

#[test]
fn s22_cleanup_on_a_node_that_flannel_has_back_takes_nothing_from_it() {
    in_lab("takeover-cleanup", |lab| {
        let mut pair = Pair::open(lab, Rules::Nftables)?;
        pair.change_to(Runner::PodwayFlanneld)?;
        pair.change_to(Runner::Flanneld)?;
        let (links, file) = (pair.links()?, pair.two.subnet_env()?);
        let traffic = Traffic::start(&pair)?;
        eventually(SOON, "flannel's routes in the place of podway's", || {
            let state = KernelState::read(&pair.two)?;
            ensure!(!state.mentions(" proto 105 "), "{state:#?}");
            anyhow::Ok(())
        });
        pair.two.cleanup(Dataplane::Nftables)?;
        let state = KernelState::read(&pair.two)?;
        assert!(
            !state.mentions("table inet podway") && !state.mentions("table ip podway"),
            "tables are left"
        );
        traffic.assert_hardly_anything_lost();
        assert_eq!((pair.links()?, pair.two.subnet_env()?), (links, file));
        Ok(())
    });
}

#[test]
fn n6_flannel_finds_its_macs_again_in_the_annotations_that_podway_wrote() {
    in_lab("takeover-macs", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Nftables, Families::Both)?;
        let node = cluster.node(1)?;
        let macs =
            || LINKS.iter().map(|link| Ok(node.link(link)?["address"].clone())).collect::<Result<Vec<_>>>();
        for (first, then) in
            [(Runner::PodwayFlanneld, Runner::Flanneld), (Runner::Flanneld, Runner::PodwayFlanneld)]
        {
            let daemon = cluster.run(&node, first)?;
            let before = macs()?;
            eventually(SOON, "the annotations", || {
                match (cluster.announced(&node), cluster.expected(&node)) {
                    (Ok(told), Ok(expected)) if told == expected => Ok(()),
                    seen => Err(format!("{seen:?}")),
                }
            });
            stop(&daemon)?;
            // As after a reboot.
            node.ip(&LINKS.map(|link| format!("link del {link}")).join("\n"))?;
            let daemon = cluster.run(&node, then)?;
            assert_eq!(macs()?, before, "{first:?}, then {then:?}");
            stop(&daemon)?;
        }
        Ok(())
    });
}

#[test]
fn n10_iptables_rules_that_flannel_left_do_not_stand_in_the_way() {
    in_lab("takeover-iptables", |lab| masquerade_beside(lab, Rules::Iptables, "FLANNEL-POSTRTG"));
}

#[test]
fn n10_nftables_that_flannel_left_do_not_stand_in_the_way() {
    in_lab("takeover-nftables", |lab| masquerade_beside(lab, Rules::Nftables, "table ip flannel-ipv4"));
}

/// Out of the pod network as the node, within it as oneself, with the rules of both in the kernel.
fn masquerade_beside(lab: &Lab, rules: Rules, flannels: &str) -> Result<()> {
    let mut pair = Pair::open(lab, rules)?;
    let outside = lab.outside("outside")?;
    let _server = outside.serve("outside", PORT)?;
    let ruleset = |pair: &Pair<'_>| pair.two.command("nft").args(["list", "ruleset"]).run();
    for runner in [Runner::PodwayFlanneld, Runner::Flanneld, Runner::PodwayFlanneld] {
        pair.change_to(runner)?;
        pair.reach_outside_as_the_node(&outside);
        let rules = ruleset(&pair)?;
        assert!(rules.contains(flannels) && rules.contains("podway-network"), "{rules}");
    }
    for command in documented_commands(rules) {
        pair.two.command("sh").args(["-c", &command]).run()?;
    }
    let rules = ruleset(&pair)?.to_lowercase();
    assert!(!rules.contains("flannel"), "{rules}");
    pair.reach_outside_as_the_node(&outside);
    Ok(())
}

/// The commands by which docs/flannel.md removes flannel's rules.
fn documented_commands(rules: Rules) -> Vec<String> {
    let lines = include_str!("../../../docs/flannel.md").lines().map(str::trim);
    match rules {
        Rules::Nftables => lines.filter(|line| line.starts_with("nft delete")).map(str::to_owned).collect(),
        Rules::Iptables => {
            let lines = lines.filter(|line| line.starts_with("iptables -"));
            lines.flat_map(|line| [line.to_owned(), line.replace("iptables", "ip6tables")]).collect()
        }
    }
}

/// Two nodes with a flanneld each, and a pod on each that serves.
struct Pair<'lab> {
    cluster: FlannelCluster<'lab>,
    two: FlannelNode,
    pods: [Pod; 2],
    daemon: Process,
    _peer: (FlannelNode, Process),
    _servers: [Process; 2],
}

impl<'lab> Pair<'lab> {
    fn open(lab: &'lab Lab, rules: Rules) -> Result<Self> {
        Self::over(lab, Subnets::Kube, rules)
    }

    fn over(lab: &'lab Lab, subnets: Subnets, rules: Rules) -> Result<Self> {
        let cluster = FlannelCluster::over(lab, subnets, rules)?;
        let (one, two) = (cluster.node(1)?, cluster.node(2)?);
        let peer = cluster.run(&one, Runner::Flanneld)?;
        let daemon = cluster.run(&two, Runner::Flanneld)?;
        let pods = [one.pod("pod-1")?, two.pod("pod-2")?];
        let servers = [pods[0].serve("pod-1", PORT)?, pods[1].serve("pod-2", PORT)?];
        let pair = Self { cluster, two, pods, daemon, _peer: (one, peer), _servers: servers };
        pair.reach_each_other();
        Ok(pair)
    }

    /// Ends who runs the pod network of node-2, and starts another.
    fn change_to(&mut self, runner: Runner) -> Result<()> {
        stop(&self.daemon)?;
        self.daemon = self.cluster.run(&self.two, runner)?;
        Ok(())
    }

    #[track_caller]
    fn reach_each_other(&self) {
        let [one, two] = &self.pods;
        for (from, to) in [(one, two), (two, one)] {
            for way in ways_to(to) {
                let answers = await_answers(from, way);
                assert_eq!(answers.sources(), [way.same_family(from)].into(), "{way}");
            }
        }
    }

    /// Calls from node-2's pod: out of the pod network as the node, within it as itself.
    #[track_caller]
    fn reach_outside_as_the_node(&self, outside: &Host) {
        for way in ways_to(outside) {
            let answers = await_answers(&self.pods[1], way);
            assert_eq!(answers.sources(), [way.same_family(&self.two)].into(), "{way}");
        }
        self.reach_each_other();
    }

    /// What makes the links of node-2 those that they are: number, MAC, VNI, port and underlay.
    fn links(&self) -> Result<BTreeMap<&'static str, String>> {
        let of = |name: &'static str| {
            let link = self.two.link(name)?;
            let vxlan = &link["linkinfo"]["info_data"];
            let parts = ["id", "port", "local", "local6"].map(|field| &vxlan[field]);
            let parts = [&link["ifindex"], &link["address"]].into_iter().chain(parts);
            Ok((name, parts.map(Value::to_string).collect::<Vec<_>>().join(" ")))
        };
        LINKS.into_iter().map(of).collect()
    }

    /// The links of node-2 in all their settings, but for their numbers, and for the length of a queue that a link
    /// without queueing does not have: flannel's is 0, the kernel's own default 1000.
    fn links_in_full(&self) -> Result<Vec<Value>> {
        let of = |name: &&str| {
            let mut link = self.two.link(name)?;
            let fields = link.as_object_mut().with_context(|| format!("there is no {name}"))?;
            fields.retain(|name, _| name != "ifindex" && name != "txqlen");
            Ok(link)
        };
        LINKS.iter().map(of).collect()
    }
}

/// Streams and new connections in both directions.
struct Traffic {
    running: Vec<(String, Way, Running)>,
}

impl Traffic {
    fn start(pair: &Pair<'_>) -> Result<Self> {
        let [one, two] = &pair.pods;
        let mut running = Vec::new();
        for (from, to) in [(one, two), (two, one)] {
            for way in ways_to(to) {
                let probe = || way.probe().every(PACE);
                running.push((format!("a stream from {}", from.name()), way, from.stream(probe())?));
                running.push((format!("new sockets from {}", from.name()), way, from.flood(probe())?));
            }
        }
        Ok(Self { running })
    }

    /// Prints what was lost. A connection is never lost; a datagram hardly ever.
    #[track_caller]
    fn assert_hardly_anything_lost(self) {
        for (what, way, running) in self.running {
            eventually(SOON, "enough traffic to tell", || match running.answers() {
                Ok(answers) if answers.sent() >= ENOUGH => Ok(()),
                seen => Err(format!("{what}, {way}: {seen:?}")),
            });
            let answers = running.stop().unwrap_or_else(|error| panic!("{what}, {way}: {error:#}"));
            let lost = answers.sent() - answers.answered();
            println!("{what}, {way}: {lost} lost; {answers}");
            let bound = if way.transport == Transport::Tcp { 0 } else { LOST_AT_MOST };
            assert!(lost <= bound, "{what}, {way}: {answers}");
        }
    }
}

fn ways_to(host: &Host) -> Vec<Way> {
    Way::all([host.ipv4(), host.ipv6()], PORT)
}
