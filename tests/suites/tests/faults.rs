//! What podway depends on goes away, forgets, or is killed, while pods of living nodes talk to each other: they lose
//! nothing, and afterwards the kernel is as after a fresh start (contracts N3, N13, N20, S24).

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use podway_overlay::{LeaseAttributes, Mac, PerFamily, Vni};
use podway_suites::{
    Cluster, Dataplane, KernelState, Load, Member, SOON, Source, Way, await_answers, await_no_trace_of,
    complaints, wait_until_network_stands,
};
use podway_testkit::{ControlPlane, Etcd, Lab, Pod, Process, in_lab, manifests, within};
use serde_json::{Value, json};

/// What pods listen on.
const PORT: u16 = 8080;

/// How long a server is away.
const AWAY: Duration = Duration::from_secs(60);

/// How often podway is killed.
const KILLS: u32 = 20;

/// A connection whose other end died without a word is noticed within half a minute.
const UNHEARD: Duration = Duration::from_secs(40);

/// Nodes that nobody runs, and that come and go.
const GHOSTS: [u8; 4] = [21, 22, 23, 24];

#[test]
fn s24_n13_without_the_api_server_for_a_minute_nothing_is_lost() {
    in_lab("faults-api-away", |lab| without_its_server_for_a_minute(lab, Store::Kube));
}

#[test]
fn n3_n13_without_etcd_for_a_minute_nothing_is_lost() {
    in_lab("faults-etcd-away", |lab| without_its_server_for_a_minute(lab, Store::Etcd));
}

#[test]
fn s24_a_watch_that_the_api_server_cannot_continue_begins_with_a_list_and_finds_what_is_gone() {
    in_lab("faults-api-410", |lab| with_a_forgotten_history(lab, Store::Kube));
}

#[test]
fn n3_a_watch_that_etcd_cannot_continue_begins_with_a_list_and_finds_what_is_gone() {
    in_lab("faults-etcd-410", |lab| with_a_forgotten_history(lab, Store::Etcd));
}

#[test]
fn n20_s24_killed_twenty_times_while_nodes_of_the_api_server_change() {
    in_lab("faults-api-kill", |lab| killed_again_and_again(lab, Store::Kube));
}

#[test]
fn n3_n20_killed_twenty_times_while_leases_in_etcd_change() {
    in_lab("faults-etcd-kill", |lab| killed_again_and_again(lab, Store::Etcd));
}

#[test]
fn n20_a_stop_leaves_everything_and_the_next_start_has_nothing_to_do() {
    for (name, store) in [("faults-api-stop", Store::Kube), ("faults-etcd-stop", Store::Etcd)] {
        in_lab(name, |lab| {
            let mut site = Site::open(lab, store)?;
            site.appear(21)?;
            let before = KernelState::read(&site.one)?;
            let load = site.load()?;
            for _ in 0..3 {
                assert!(site.podways[0].stop()?.success());
                before.assert_same(&KernelState::read(&site.one)?);
                assert!(site.one.subnet_file()?.exists());
                site.podways[0] = site.run(&site.one)?;
                site.podways[0].wait_for_log("pod network stands as planned: nothing to change", SOON)?;
                before.assert_same(&KernelState::read(&site.one)?);
            }
            load.assert_nothing_lost();
            site.matches_a_fresh_start()
        });
    }
}

#[test]
fn n5_n13_nodes_with_every_field_wrong_are_named_and_harm_no_other() {
    in_lab("faults-wrong-nodes", |lab| {
        let site = Site::open(lab, Store::Kube)?;
        let before = KernelState::read(&site.one)?;
        let load = site.load()?;
        let wrong = wrong_annotations().into_iter().enumerate().map(|(number, annotations)| {
            let name = format!("wrong-{number}");
            let node = manifests::node(&name).pod_cidrs([format!("10.77.{}.0/24", 31 + number)]);
            let node = annotations.into_iter().fold(node, |node, (key, value)| {
                node.set(&format!("/metadata/annotations/flannel.alpha.coreos.com~1{key}"), value)
            });
            (name, node)
        });
        let wrong: Vec<_> = wrong.collect();
        for (name, node) in &wrong {
            site.cluster.publish(name, node)?;
        }
        for (name, _) in &wrong {
            within(SOON, &format!("{name} is named"), || {
                let log = site.podways[0].log();
                match complaints(&log).iter().any(|line| line.contains(name.as_str())) {
                    true => Ok(()),
                    false => Err(log),
                }
            })?;
        }
        site.appear(21)?;
        site.vanish(21)?;
        await_no_trace_of(21, &site.one);
        before.assert_same(&KernelState::read(&site.one)?);
        load.assert_nothing_lost();
        site.matches_a_fresh_start()
    });
}

#[test]
fn n3_n13_leases_with_every_field_wrong_are_named_and_harm_no_other() {
    in_lab("faults-wrong-leases", |lab| {
        let site = Site::open(lab, Store::Etcd)?;
        let etcd = site.etcd.as_ref().context("no etcd")?;
        let before = KernelState::read(&site.one)?;
        let load = site.load()?;
        let wrong = [
            ("10.77.31.0-24&fd77:0:0:31::-64", "{"),
            ("10.77.32.0-24", r#"{"PublicIP":"nowhere","BackendType":"vxlan","BackendData":[]}"#),
            (
                "10.77.33.0-24",
                r#"{"PublicIP":"192.0.2.133","BackendType":"vxlan","BackendData":{"VtepMAC":7}}"#,
            ),
            ("10.77.34.0-24", r#"{"PublicIP":"192.0.2.134","BackendType":"carrier pigeon"}"#),
            ("300.77.35.0-99", "{}"),
        ];
        for (key, value) in wrong {
            etcd.put(&format!("/coreos.com/network/subnets/{key}"), value)?;
        }
        for (key, _) in wrong {
            within(SOON, &format!("{key} is named"), || {
                let log = site.podways[0].log();
                match complaints(&log).iter().any(|line| line.contains(key)) {
                    true => Ok(()),
                    false => Err(log),
                }
            })?;
        }
        site.appear(21)?;
        site.vanish(21)?;
        await_no_trace_of(21, &site.one);
        before.assert_same(&KernelState::read(&site.one)?);
        load.assert_nothing_lost();
        site.matches_a_fresh_start()
    });
}

#[test]
fn n4_s24_files_of_nodes_with_every_field_wrong_are_named_and_harm_no_other() {
    in_lab("faults-wrong-files", |lab| {
        let site = Site::open(lab, Store::Files)?;
        let before = KernelState::read(&site.one)?;
        let load = site.load()?;
        let node = |number: u8| manifests::node(&format!("wrong-{number}"));
        let wrong = [
            node(1).pod_cidrs(["300.77.31.0/24", "fd77::/129", ""]),
            node(2).set("/spec/podCIDRs", json!({ "10.77.32.0": 24 })).set("/spec/podCIDR", 7),
            node(3).set("/status", "Ready").set("/spec", json!([])),
            node(4)
                .pod_cidrs(["10.77.34.0/24"])
                .set("/status/addresses", json!([{ "type": 7 }, "192.0.2.134"])),
            // Ours, and another node's.
            node(5).pod_cidrs(["10.77.1.0/24", "fd77:0:0:2::/64"]).internal_ips(["192.0.2.135"]),
            node(6).pod_cidrs(["192.168.0.0/16"]).internal_ips(["nowhere"]),
        ];
        for (number, node) in (1..).zip(&wrong) {
            site.cluster.publish(&format!("wrong-{number}"), node)?;
        }
        for number in 1..=wrong.len() {
            within(SOON, &format!("wrong-{number} is named"), || {
                let log = site.podways[0].log();
                match complaints(&log).iter().any(|line| line.contains(&format!("wrong-{number}"))) {
                    true => Ok(()),
                    false => Err(log),
                }
            })?;
        }
        site.cluster.publish("ghost-21", ghost_node(21))?;
        site.await_trace_of(21)?;
        site.cluster.withdraw("ghost-21")?;
        await_no_trace_of(21, &site.one);
        before.assert_same(&KernelState::read(&site.one)?);
        load.assert_nothing_lost();
        site.matches_a_fresh_start()
    });
}

#[test]
fn n3_n12_a_changed_address_is_written_to_the_lease_and_peers_follow() {
    in_lab("faults-lease-address", |lab| {
        let site = Site::open(lab, Store::Etcd)?;
        let etcd = site.etcd.as_ref().context("no etcd")?;
        let started = Instant::now();
        site.two.ip(
            "addr del 192.0.2.12/24 dev eth0\naddr add 192.0.2.66/24 dev eth0\nroute add default via 192.0.2.1",
        )?;
        within(2 * SOON, "the peer sends to the new address", || {
            let state = KernelState::read(&site.one)?;
            match state.mentions("dst 192.0.2.66 ") && !state.mentions("192.0.2.12 ") {
                true => Ok(()),
                false => Err(anyhow!("not yet")),
            }
        })?;
        eprintln!("a peer knows the new address after {:.0?}", started.elapsed());
        let lease = etcd.get(&lease_key(2))?.context("no lease")?;
        assert!(lease.value.contains("192.0.2.66"), "{lease:?}");
        site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        Ok(())
    });
}

#[test]
fn n13_a_repair_does_not_wait_for_an_api_server_that_says_nothing() {
    in_lab("faults-api-silent", |lab| {
        let site = Site::open(lab, Store::Kube)?;
        let blockade = Blockade::raise(&site.one)?;
        // Peers are to be told of it, and that takes its time now.
        site.one.ip("addr del 192.0.2.11/24 dev eth0\naddr add 192.0.2.66/24 dev eth0\nroute add default via 192.0.2.1")?;
        within(SOON, "the link sends from the new address", || {
            match KernelState::read(&site.one)?.mentions("local 192.0.2.66 dev eth0") {
                true => Ok(()),
                false => Err(anyhow!("not yet")),
            }
        })?;
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(500));
            site.one.ip("route del fd77:0:0:2::/64")?;
            let started = Instant::now();
            within(Duration::from_secs(1), "the route is back", || {
                match site.one.command("ip").args(["-6", "route", "show", "proto", "105"]).run()? {
                    routes if routes.contains("fd77:0:0:2::/64") => Ok(()),
                    routes => Err(anyhow!(routes)),
                }
            })?;
            eprintln!("with a silent API server: seen to be repaired after {:.0?}", started.elapsed());
        }
        blockade.lift()?;
        within(UNHEARD, "the peer sends to the new address", || {
            match KernelState::read(&site.two)?.mentions("dst 192.0.2.66 ") {
                true => Ok(()),
                false => Err(anyhow!("not yet")),
            }
        })
    });
}

fn without_its_server_for_a_minute(lab: &Lab, store: Store) -> Result<()> {
    let site = Site::open(lab, store)?;
    site.appear(21)?;
    let before = KernelState::read(&site.one)?;
    let load = site.load()?;
    site.stop_server()?;
    std::thread::sleep(AWAY / 2);
    // What somebody does to the kernel is undone all the same.
    site.one.ip("route del 10.77.21.0/24\nroute del fd77:0:0:21::/64")?;
    before.await_again_on(&site.one);
    std::thread::sleep(AWAY / 2);
    before.assert_same(&KernelState::read(&site.one)?);
    site.start_server()?;
    site.appear(22)?;
    site.vanish(21)?;
    await_no_trace_of(21, &site.one);
    load.assert_nothing_lost();
    site.matches_a_fresh_start()
}

/// A Node goes while a podway cannot hear of it, and the server forgets that it ever was.
fn with_a_forgotten_history(lab: &Lab, store: Store) -> Result<()> {
    let site = Site::open(lab, store)?;
    site.appear(21)?;
    site.appear(22)?;
    let load = site.load()?;
    let blockade = Blockade::raise(&site.one)?;
    site.publish(23)?;
    site.vanish(21)?;
    site.forget_history()?;
    assert!(KernelState::read(&site.one)?.mentions("10.77.21.0"), "it cannot know yet");
    blockade.lift()?;
    within(UNHEARD, "node 21 is gone", || {
        let state = KernelState::read(&site.one)?;
        let traces = state.traces_of(21);
        if traces.is_empty() { Ok(()) } else { Err(anyhow!(traces.join("\n"))) }
    })?;
    site.await_trace_of(23)?;
    assert!(KernelState::read(&site.one)?.mentions("10.77.22.0"), "what stayed");
    load.assert_nothing_lost();
    site.matches_a_fresh_start()
}

fn killed_again_and_again(lab: &Lab, store: Store) -> Result<()> {
    let mut site = Site::open(lab, store)?;
    let mut dice = Dice::seeded();
    let load = site.load()?;
    let mut present = BTreeSet::new();
    for round in 0..KILLS {
        let victim = usize::from(round % 4 == 3);
        let ghost = GHOSTS[usize::try_from(dice.roll(GHOSTS.len() as u64))?];
        match present.remove(&ghost) {
            true => site.vanish(ghost)?,
            false => {
                site.publish(ghost)?;
                present.insert(ghost);
            }
        }
        // From before its first look at the kernel to long after its first write.
        std::thread::sleep(Duration::from_millis(dice.roll(250)));
        site.podways[victim].kill9()?;
        site.podways[victim] = site.start([&site.one, &site.two][victim])?;
    }
    for podway in &site.podways {
        wait_until_network_stands(podway)?;
    }
    for ghost in GHOSTS {
        match present.contains(&ghost) {
            true => site.await_trace_of(ghost)?,
            false => await_no_trace_of(ghost, &site.one),
        }
    }
    load.assert_nothing_lost();
    site.matches_a_fresh_start()
}

/// Where subnets are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Kube,
    Etcd,
    Files,
}

/// Two nodes with a podway each; a client on one, the pod `far` on the other.
struct Site<'lab> {
    cluster: Cluster<'lab>,
    /// Where subnets are leased, unless Nodes have them.
    etcd: Option<Etcd>,
    one: Member,
    two: Member,
    client: Pod,
    far: Pod,
    podways: [Process; 2],
    _server: Process,
}

impl<'lab> Site<'lab> {
    fn open(lab: &'lab Lab, store: Store) -> Result<Self> {
        let (cluster, etcd) = match store {
            Store::Kube => (Cluster::over(lab, Source::Kube)?, None),
            Store::Etcd => (Cluster::over(lab, Source::Directory)?, Some(lab.etcd()?)),
            Store::Files => (Cluster::over(lab, Source::Directory)?, None),
        };
        if let Some(etcd) = &etcd {
            let config = json!({ "Network": "10.77.0.0/16", "EnableIPv6": true, "IPv6Network": "fd77::/48" });
            etcd.put("/coreos.com/network/config", &config.to_string())?;
        }
        let (one, two) = (cluster.member(1)?, cluster.member(2)?);
        let client = one.pod("client")?;
        let (far, server) = two.serving_pod("far")?;
        let podways = [&one, &two].map(|member| start(member, etcd.as_ref()));
        let [first, second] = podways;
        let site = Self { cluster, etcd, one, two, client, far, podways: [first?, second?], _server: server };
        for podway in &site.podways {
            wait_until_network_stands(podway)?;
        }
        site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        Ok(site)
    }

    fn start(&self, member: &Member) -> Result<Process> {
        start(member, self.etcd.as_ref())
    }

    fn run(&self, member: &Member) -> Result<Process> {
        let podway = self.start(member)?;
        wait_until_network_stands(&podway)?;
        Ok(podway)
    }

    fn ways(&self) -> Vec<Way> {
        Way::all([self.far.ipv4(), self.far.ipv6()], PORT)
    }

    fn load(&self) -> Result<Load> {
        Load::start(&self.client, self.ways())
    }

    /// The Node, or the lease, of a machine that nobody runs.
    fn publish(&self, number: u8) -> Result<()> {
        match &self.etcd {
            Some(etcd) => etcd.put_leased(&lease_key(number), &ghost_attributes(number).render(), 3600),
            None => self.cluster.publish(&format!("ghost-{number}"), ghost_node(number)),
        }
    }

    /// Publishes it and waits until node-1 has heard of it.
    fn appear(&self, number: u8) -> Result<()> {
        self.publish(number)?;
        self.await_trace_of(number)
    }

    fn vanish(&self, number: u8) -> Result<()> {
        match &self.etcd {
            Some(etcd) => etcd.delete(&lease_key(number)),
            None => self.cluster.withdraw(&format!("ghost-{number}")),
        }
    }

    /// Waits until node-1 has all of another node: for each family a neighbour, an FDB entry and a route.
    fn await_trace_of(&self, number: u8) -> Result<()> {
        within(SOON, &format!("all of node {number}"), || {
            let state = KernelState::read(&self.one)?;
            let traces = ["10.77.NN.0 dev", "192.0.2.1NN self", "10.77.NN.0/24 via", "fd77:0:0:NN:: dev"];
            let traces = traces.into_iter().chain(["2001:db8::NN self", "fd77:0:0:NN::/64 via"]);
            let missing = traces
                .map(|trace| trace.replace("NN", &number.to_string()))
                .filter(|trace| !state.mentions(trace));
            let missing: Vec<String> = missing.collect();
            if missing.is_empty() { Ok(()) } else { Err(anyhow!("missing: {missing:?}")) }
        })
    }

    fn stop_server(&self) -> Result<()> {
        self.etcd.as_ref().map_or_else(|| self.cluster.control_plane().stop(), Etcd::stop)
    }

    fn start_server(&self) -> Result<()> {
        self.etcd.as_ref().map_or_else(|| self.cluster.control_plane().start(), Etcd::start)
    }

    /// Compacts etcd. An API server remembers by itself what it has seen since its start, and so is started anew.
    fn forget_history(&self) -> Result<()> {
        if let Some(etcd) = &self.etcd {
            return etcd.compact();
        }
        let plane = self.cluster.control_plane();
        plane.stop()?;
        compact(plane)?;
        plane.start()
    }

    /// Each node in turn: what stands is what a podway makes that finds nothing.
    fn matches_a_fresh_start(mut self) -> Result<()> {
        for (number, member) in [&self.one, &self.two].into_iter().enumerate() {
            let state = KernelState::read(member)?;
            assert!(self.podways[number].stop()?.success());
            member.cleanup(Dataplane::Nftables)?;
            assert!(!KernelState::read(member)?.mentions("flannel"), "after cleanup");
            self.podways[number] = start(member, self.etcd.as_ref())?;
            wait_until_network_stands(&self.podways[number])?;
            state.await_again_on(member);
        }
        self.ways().into_iter().for_each(|way| drop(await_answers(&self.client, way)));
        Ok(())
    }
}

/// The node's way to the servers, closed as by a firewall in between: packets are dropped without a word.
struct Blockade<'a> {
    node: &'a Member,
}

impl<'a> Blockade<'a> {
    fn raise(node: &'a Member) -> Result<Self> {
        let table = "table inet blockade {\n chain output {\n type filter hook output priority filter\n \
                     tcp dport { 2379, 6443 } drop\n }\n chain input {\n \
                     type filter hook input priority filter\n tcp sport { 2379, 6443 } drop\n }\n}\n";
        node.command("nft").args(["--file", "-"]).stdin(table).run()?;
        Ok(Self { node })
    }

    fn lift(self) -> Result<()> {
        self.node.command("nft").args(["delete", "table", "inet", "blockade"]).run().map(drop)
    }
}

/// Numbers that a failed run can be repeated with.
struct Dice(u64);

impl Dice {
    /// By the variable `PODWAY_TEST_SEED`, or the clock.
    fn seeded() -> Self {
        let given = std::env::var("PODWAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || u64::from(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_nanos());
        let seed = given.unwrap_or_else(clock) | 1;
        eprintln!("PODWAY_TEST_SEED={seed}");
        Self(seed)
    }

    /// Below `sides` (xorshift64*, Vigna 2016).
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// With flannel's etcd, the node has the subnets that a file of an earlier run names.
fn start(member: &Member, etcd: Option<&Etcd>) -> Result<Process> {
    let mut settings = vec!["services.enabled=false".to_owned()];
    if let Some(etcd) = etcd {
        settings.push(format!("network.etcd.endpoints=[{}]", etcd.url()));
        if !member.subnet_file()?.exists() {
            std::fs::write(member.subnet_file()?, subnet_env(member.number()))?;
        }
    }
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    member.podway_command("run", Dataplane::Nftables)?.args(settings).start("podway")
}

fn subnet_env(number: u8) -> String {
    format!(
        "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.{number}.1/24\nFLANNEL_IPV6_NETWORK=fd77::/48\n\
         FLANNEL_IPV6_SUBNET=fd77:0:0:{number}::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    )
}

fn lease_key(number: u8) -> String {
    format!("/coreos.com/network/subnets/10.77.{number}.0-24&fd77:0:0:{number}::-64")
}

fn ghost_mac(number: u8) -> Mac {
    Mac::new([0x0e, 0, 0, 0, 0, number])
}

fn ghost_addresses(number: u8) -> [String; 2] {
    [format!("192.0.2.1{number}"), format!("2001:db8::{number}")]
}

fn ghost_attributes(number: u8) -> LeaseAttributes {
    let [v4, v6] = ghost_addresses(number).map(|address| Some((ghost_mac(number), address.parse().ok()?)));
    LeaseAttributes::vxlan(Vni::default(), &PerFamily { v4, v6 })
}

fn ghost_node(number: u8) -> manifests::Node {
    let [v4, v6] = ghost_addresses(number);
    let vtep = json!({ "VNI": 1, "VtepMAC": ghost_mac(number).to_string() }).to_string();
    let node = manifests::node(&format!("ghost-{number}"))
        .pod_cidrs([format!("10.77.{number}.0/24"), format!("fd77:0:0:{number}::/64")]);
    [
        ("backend-type", "vxlan"),
        ("backend-data", &vtep),
        ("backend-v6-data", &vtep),
        ("kube-subnet-manager", "true"),
        ("public-ip", &v4),
        ("public-ipv6", &v6),
    ]
    .into_iter()
    .fold(node, |node, (key, value)| {
        node.set(&format!("/metadata/annotations/flannel.alpha.coreos.com~1{key}"), value)
    })
}

/// Each time one more of flannel's annotations is right.
fn wrong_annotations() -> Vec<Vec<(&'static str, &'static str)>> {
    let right = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("public-ip", "192.0.2.131"),
        ("backend-data", r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:31"}"#),
    ];
    let wrong = [
        ("kube-subnet-manager", "perhaps"),
        ("backend-type", "carrier pigeon"),
        ("public-ip", "192.0.2.999"),
        ("backend-data", r#"{"VNI":"one","VtepMAC":["#),
    ];
    (1..right.len()).map(|count| right[..count].iter().chain(&wrong[count..]).copied().collect()).collect()
}

/// Has the etcd of an API server forget all that is not the latest state.
fn compact(plane: &ControlPlane) -> Result<()> {
    let ask = |path: &str, question: Value| -> Result<Value> {
        let url = format!("{}/v3/kv/{path}", plane.etcd_url());
        let curl = plane.host().command("curl").args(["-s", "-d", &question.to_string(), &url]);
        let answer: Value = serde_json::from_str(&curl.run()?)?;
        if answer.get("error").is_some() {
            bail!("{path}: {answer}");
        }
        Ok(answer)
    };
    let seen = ask("range", json!({ "key": "Lw==" }))?;
    let revision = seen["header"]["revision"].as_str().context("no revision")?.to_owned();
    ask("compaction", json!({ "revision": revision, "physical": true })).map(drop)
}
