//! What somebody else does to the pod network in the kernel is undone at once, while its traffic goes on, and nothing
//! else of theirs is touched (contracts N13, N19).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use podway_suites::{
    Cluster, Dataplane, KernelState, Load, Member, SOON, Source, Strangers, Way, await_answers,
    await_no_trace_of, web_answers, web_behind, web_service,
};
use podway_testkit::{Answers, Host, Lab, Pod, Process, Running, in_lab, manifests, within};
use serde_json::Value;

/// What pods listen on.
const PORT: u16 = 8080;

/// A repair takes milliseconds; a busy machine, and looking at all that the kernel holds, take the rest.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How often traffic is looked at.
const PACE: Duration = Duration::from_millis(5);

/// What podway says when it has undone what somebody else did.
const REPAIRED: &str = "what somebody else changed is as it was";

/// What befalls node-1, and the shell commands that do it. `$MAC4` and `$MAC6` are the MACs of node-2's links.
type Mishap = (&'static str, &'static str);

#[test]
fn n13_entries_of_a_peer_come_back_as_they_were() {
    in_lab("repair-entries", |lab| {
        let site = Site::open(lab)?;
        site.survives(&[
            ("the IPv4 route is deleted", "ip route del 10.77.2.0/24"),
            ("the IPv6 route is deleted", "ip route del fd77:0:0:2::/64"),
            ("the IPv4 route leads elsewhere", "ip route change 10.77.2.0/24 via 192.0.2.1 proto 105"),
            ("the IPv6 route leads elsewhere", "ip route change fd77:0:0:2::/64 via 2001:db8::1 proto 105"),
            ("the ARP entry is deleted", "ip neigh del 10.77.2.0 dev flannel.1"),
            ("the ND entry is deleted", "ip neigh del fd77:0:0:2:: dev flannel-v6.1"),
            (
                "the ARP entry has another MAC",
                "ip neigh replace 10.77.2.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
            ),
            (
                "the ND entry has another MAC",
                "ip neigh replace fd77:0:0:2:: lladdr 02:00:00:00:00:99 dev flannel-v6.1 nud permanent",
            ),
            ("the IPv4 FDB entry is deleted", "bridge fdb del $MAC4 dev flannel.1 dst 192.0.2.12 self"),
            ("the IPv6 FDB entry is deleted", "bridge fdb del $MAC6 dev flannel-v6.1 dst 2001:db8::12 self"),
            (
                "the IPv4 FDB entry leads elsewhere",
                "bridge fdb replace $MAC4 dev flannel.1 dst 192.0.2.99 self permanent",
            ),
            (
                "the IPv6 FDB entry leads elsewhere",
                "bridge fdb replace $MAC6 dev flannel-v6.1 dst 2001:db8::99 self permanent",
            ),
            (
                "packets to all go to two strangers",
                "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.98 self permanent\n\
                 bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.99 self permanent",
            ),
            (
                "a route, a neighbour and an FDB entry that nobody asked for are added",
                "ip route add 10.77.9.0/24 via 10.77.9.0 dev flannel.1 onlink proto 105\n\
                 ip neigh add 10.77.9.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent\n\
                 bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 192.0.2.99 self permanent",
            ),
            (
                "all entries of both families are flushed",
                "ip route flush proto 105\nip -6 route flush proto 105\n\
                 ip neigh flush nud permanent dev flannel.1\nip neigh flush nud permanent dev flannel-v6.1",
            ),
        ])
    });
}

#[test]
fn n13_links_come_back_as_they_were() {
    in_lab("repair-links", |lab| {
        let site = Site::open(lab)?;
        site.survives(&[
            ("the IPv4 address is deleted", "ip addr del 10.77.1.0/32 dev flannel.1"),
            ("the IPv6 address is deleted", "ip addr del fd77:0:0:1::/128 dev flannel-v6.1"),
            ("another pod address is on the link", "ip addr add 10.77.1.9/32 dev flannel.1"),
            ("the IPv4 link is down", "ip link set flannel.1 down"),
            ("the IPv6 link is down", "ip link set flannel-v6.1 down"),
            ("the IPv4 link is gone", "ip link del flannel.1"),
            ("the IPv6 link is gone", "ip link del flannel-v6.1"),
            ("the MTU is smaller", "ip link set flannel.1 mtu 1280"),
            ("the IPv6 link's MTU is smaller", "ip link set flannel-v6.1 mtu 1280"),
            ("the MAC is another", "ip link set flannel.1 address 02:00:00:00:00:77"),
            ("our mark is gone", "ip link set flannel.1 alias ''"),
        ])
    });
}

#[test]
fn n13_links_that_somebody_made_otherwise_are_made_again() {
    in_lab("repair-replaced", |lab| {
        let site = Site::open(lab)?;
        site.survives(&[
            (
                "another UDP port",
                "ip link del flannel.1\n\
                 ip link add flannel.1 type vxlan id 1 dstport 4790 local 192.0.2.11 dev eth0\n\
                 ip link set flannel.1 up",
            ),
            (
                "another VNI",
                "ip link del flannel-v6.1\n\
                 ip link add flannel-v6.1 type vxlan id 9 dstport 8472 local 2001:db8::11 dev eth0\n\
                 ip link set flannel-v6.1 up",
            ),
            (
                "the same but for MAC, MTU, address, learning and group policy",
                "ip link del flannel.1\n\
                 ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.11 dev eth0 gbp learning\n\
                 ip addr add 10.77.1.77/24 dev flannel.1\nip link set flannel.1 up",
            ),
            (
                "no VXLAN link at all",
                "ip link del flannel.1\nip link add flannel.1 type veth peer name flannel-peer\n\
                 ip link set flannel.1 up",
            ),
            (
                "another name",
                "ip link set flannel.1 down\nip link set flannel.1 name renamed\nip link set renamed up",
            ),
            ("both are gone", "ip link del flannel.1\nip link del flannel-v6.1"),
        ])
    });
}

#[test]
fn n13_tables_that_another_program_flushes_come_back() {
    in_lab("repair-tables", |lab| {
        let site = Site::open_alone(lab)?;
        site.survives(&[
            ("nft flush ruleset", "nft flush ruleset"),
            ("the pod network's table is deleted", "nft delete table inet podway-network"),
            ("a set is flushed", "nft flush set inet podway-network pod-networks-4"),
            ("the rules are flushed", "nft flush table inet podway-network"),
            ("an element more", "nft add element inet podway-network own-subnets-4 '{ 10.77.99.0/24 }'"),
            (
                "nft flush ruleset, five times in a second",
                "for i in 1 2 3 4 5; do nft flush ruleset; sleep 0.2; done",
            ),
        ])
    });
}

#[test]
fn n19_forwarding_that_is_switched_off_is_switched_on_again() {
    in_lab("repair-settings", |lab| {
        let site = Site::open(lab)?;
        site.survives(&[
            ("IPv4 forwarding is off", "echo 0 >/proc/sys/net/ipv4/ip_forward"),
            ("IPv6 forwarding is off", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"),
            (
                "both are off",
                "echo 0 >/proc/sys/net/ipv4/ip_forward\necho 0 >/proc/sys/net/ipv6/conf/all/forwarding",
            ),
        ])?;
        let _podway = site.one.podway(Dataplane::Nftables)?;
        site.one.command("sh").args(["-ec", "echo 1 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter"]).run()?;
        within(AT_ONCE, "a loose filter on the link", || {
            let value = site.one.command("cat").arg("/proc/sys/net/ipv4/conf/flannel.1/rp_filter").run()?;
            if value.trim() == "2" { Ok(()) } else { Err(anyhow!("rp_filter is {value}")) }
        })
    });
}

#[test]
fn n13_podway_gives_way_in_a_fight_says_so_and_has_the_last_word() {
    in_lab("repair-fight", |lab| {
        let site = Site::open(lab)?;
        let podway = site.one.podway(Dataplane::Nftables)?;
        let before = Snapshot::of(&site.one)?;
        let enemy = "for i in $(seq 30); do ip route del 10.77.2.0/24 2>/dev/null || true; sleep 0.15; done";
        let enemy = site.one.command("sh").args(["-ec", enemy]).start("enemy")?;
        podway.wait_for_log("another program changes the pod network again and again", SOON)?;
        within(SOON, "the fight is a problem", || {
            let status = site.status()?;
            let told = status["problems"].as_array().into_iter().flatten();
            match told.into_iter().any(|problem| problem["reason"] == "NetworkContended") {
                true => Ok(()),
                false => Err(anyhow!("{status}")),
            }
        })?;
        // A fight over routes is none over tables, nor over what the other leaves alone.
        site.one.command("nft").args(["flush", "table", "inet", "podway-network"]).run()?;
        let rules = || site.one.command("nft").args(["list", "table", "inet", "podway-network"]).run();
        within(AT_ONCE, "the rules are back", || match rules()?.contains("masquerade") {
            true => Ok(()),
            false => Err(anyhow!("not yet")),
        })?;
        assert!(enemy.wait(2 * SOON)?.success());
        // The wait doubles with each repair, from a second on.
        within(2 * SOON, "it is as it was", || before.differences(&site.one))?;
        let metrics = site.one.command("curl").args(["-s", "http://127.0.0.1:10249/metrics"]).run()?;
        let name = "podway_network_repairs_total{kind=\"route\"} ";
        let repairs = metrics.lines().find_map(|line| line.strip_prefix(name)?.parse::<u32>().ok());
        let repairs = repairs.with_context(|| metrics.clone())?;
        assert!((6..=12).contains(&repairs), "{repairs} repairs of 30 attacks");
        site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        Ok(())
    });
}

#[test]
fn n13_n14_a_strangers_route_in_the_way_of_one_peer_stays_and_holds_up_no_other() {
    in_lab("repair-blocked", |lab| {
        let site = Site::open(lab)?;
        let podway = site.one.podway(Dataplane::Nftables)?;
        let before = Snapshot::of(&site.one)?;
        let theirs = "route replace 10.77.2.0/24 via 192.0.2.1 proto 77";
        site.one.ip(theirs)?;
        podway.wait_for_log("there is a route of somebody else", SOON)?;
        // It is tried again every five seconds by now.
        std::thread::sleep(Duration::from_secs(7));
        assert!(KernelState::read(&site.one)?.mentions("10.77.2.0/24 via 192.0.2.1 dev eth0 proto 77"));
        for _ in 0..3 {
            let started = Instant::now();
            site.one.ip("route del fd77:0:0:2::/64")?;
            within(AT_ONCE, "another route is back", || match site.routes()?.contains("fd77:0:0:2::/64") {
                true => Ok(()),
                false => Err(anyhow!("not yet")),
            })?;
            eprintln!("beside a route in the way: seen to be repaired after {:.0?}", started.elapsed());
        }
        let joined = Instant::now();
        let three = manifests::node("node-3").pod_cidrs(["10.77.3.0/24"]).internal_ips(["192.0.2.13"]);
        site.cluster.publish("node-3", three)?;
        within(AT_ONCE, "a node that joins has its route", || {
            match site.routes()?.contains("10.77.3.0/24") {
                true => Ok(()),
                false => Err(anyhow!("not yet")),
            }
        })?;
        eprintln!("beside a route in the way: a node has joined after {:.0?}", joined.elapsed());
        site.cluster.withdraw("node-3")?;
        await_no_trace_of(3, &site.one);
        site.one.ip("route del 10.77.2.0/24 via 192.0.2.1 proto 77")?;
        within(SOON, "it is as it was", || before.differences(&site.one))?;
        site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        Ok(())
    });
}

#[test]
fn n7_a_changed_mtu_of_the_interface_is_followed_under_traffic() {
    in_lab("repair-mtu", |lab| {
        let site = Site::open(lab)?;
        let _podway = site.one.podway(Dataplane::Nftables)?;
        let before = Snapshot::of(&site.one)?;
        let load = Load::start(&site.client, site.ways())?;
        for (outer, inner) in [(1400, 1330), (9000, 8930), (1500, 1430)] {
            site.one.ip(&format!("link set eth0 mtu {outer}"))?;
            within(AT_ONCE, &format!("MTU {inner} on the links and in subnet.env"), || {
                let env = std::fs::read_to_string(site.one.subnet_file()?)?;
                let links = site.one.command("ip").args(["link", "show", "type", "vxlan"]).run()?;
                let of_ours = links.lines().filter(|line| line.contains("flannel"));
                let followed = of_ours.clone().all(|line| line.contains(&format!(" mtu {inner} ")));
                match followed && of_ours.count() == 2 && env.contains(&format!("FLANNEL_MTU={inner}\n")) {
                    true => Ok(()),
                    false => Err(anyhow!("{links}{env}")),
                }
            })?;
        }
        within(AT_ONCE, "it is as it was", || before.differences(&site.one))?;
        load.assert_nothing_lost();
        Ok(())
    });
}

#[test]
fn n12_a_changed_address_of_the_interface_is_taken_up_and_told_to_the_peers() {
    in_lab("repair-address", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let (one, two) = (cluster.member(1)?, cluster.member(2)?);
        let client = one.pod("client")?;
        let (far, _server) = two.serving_pod("far")?;
        let _podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        let ways = Way::all([far.ipv4(), far.ipv6()], PORT);
        ways.iter().for_each(|way| drop(await_answers(&client, *way)));
        let started = Instant::now();
        two.ip("addr del 192.0.2.12/24 dev eth0\naddr add 192.0.2.77/24 dev eth0\nroute add default via 192.0.2.1")?;
        within(SOON, "the peer sends to the new address", || {
            let fdb = one.command("bridge").args(["fdb", "show", "dev", "flannel.1"]).run()?;
            if fdb.contains("192.0.2.77") { Ok(()) } else { Err(anyhow!(fdb)) }
        })?;
        let took = started.elapsed();
        eprintln!("a peer knows the new address after {took:.0?}");
        assert!(took < SOON / 2, "a peer knows the new address after {took:?}");
        let node = cluster.control_plane().get("/api/v1/nodes/node-2")?;
        assert_eq!(node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"], "192.0.2.77");
        ways.iter().for_each(|way| drop(await_answers(&client, *way)));
        assert!(KernelState::read(&two)?.mentions("local 192.0.2.77 dev eth0"));
        assert!(!KernelState::read(&one)?.mentions("192.0.2.12 "), "its old address");
        Ok(())
    });
}

#[test]
fn n13_n20_an_interface_that_goes_down_and_up_finds_its_links_as_they_were() {
    in_lab("repair-flap", |lab| {
        let site = Site::open_alone(lab)?;
        let podway = site.one.podway(Dataplane::Nftables)?;
        let before = Snapshot::of(&site.one)?;
        for _ in 0..3 {
            // With it go its IPv6 address, and the routes that lead through it.
            site.one.ip("link set eth0 down")?;
            std::thread::sleep(Duration::from_millis(300));
            assert!(KernelState::read(&site.one)?.mentions("flannel-v6.1"), "the links stay");
            site.one.ip("link set eth0 up\naddr add 2001:db8::11/64 dev eth0 nodad\n\
                         route add default via 192.0.2.1\nroute add default via 2001:db8::1")?;
            within(SOON, "it is as it was", || before.differences(&site.one))?;
            site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        }
        assert!(podway.stop()?.success());
        Ok(())
    });
}

#[test]
fn n13_an_interface_that_is_taken_away_and_made_anew_has_its_links_again() {
    in_lab("repair-interface", |lab| {
        let site = Site::open(lab)?;
        let podway = site.one.podway(Dataplane::Nftables)?;
        let before = Snapshot::of(&site.one)?;
        site.one.ip("link del eth0")?;
        podway.wait_for_log("the pod network is not complete", SOON)?;
        site.one.reconnect()?;
        // Which has another MAC now; all else is of the pod network.
        within(SOON, "the links and what is on them are as they were", || {
            let now = KernelState::read(&site.one)?;
            let of_ours = |line: &&str| ["flannel", "10.77.", "fd77:"].iter().any(|part| line.contains(part));
            let gone: Vec<&str> = before.kernel.beyond(&now).into_iter().filter(of_ours).collect();
            if gone.is_empty() { Ok(()) } else { Err(anyhow!("{gone:#?}")) }
        })?;
        site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        Ok(())
    });
}

/// Two nodes with a podway each; a client on one and the pod `far` behind the Service `web` on the other.
struct Site<'lab> {
    cluster: Cluster<'lab>,
    one: Member,
    client: Pod,
    far: Pod,
    strangers: Option<Strangers>,
    macs: [String; 2],
    _two: (Member, Process, Process),
}

impl<'lab> Site<'lab> {
    /// With others' links, routes and tables on node-1.
    fn open(lab: &'lab Lab) -> Result<Self> {
        Self::raise(lab, |one| Strangers::move_in(one).map(Some))
    }

    /// Without anybody else.
    fn open_alone(lab: &'lab Lab) -> Result<Self> {
        Self::raise(lab, |_| Ok(None))
    }

    fn raise(lab: &'lab Lab, strangers: fn(&Member) -> Result<Option<Strangers>>) -> Result<Self> {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (far, server) = two.serving_pod("far")?;
        cluster.publish("web", format!("{}{}", web_service(), web_behind([&far])))?;
        let strangers = strangers(&one)?;
        let podway = two.podway(Dataplane::Nftables)?;
        let macs = [mac(&two, "flannel.1")?, mac(&two, "flannel-v6.1")?];
        Ok(Self { cluster, one, client, far, strangers, macs, _two: (two, podway, server) })
    }

    fn routes(&self) -> Result<String> {
        let list = "ip -4 route show proto 105; ip -6 route show proto 105";
        self.one.command("sh").args(["-ec", list]).run()
    }

    fn status(&self) -> Result<Value> {
        let command = self.one.podway_command("status", Dataplane::Nftables)?.args(["-o", "json"]);
        Ok(serde_json::from_str(&command.output()?.stdout)?)
    }

    fn ways(&self) -> Vec<Way> {
        Way::all([self.far.ipv4(), self.far.ipv6()], PORT)
    }

    /// Lets each befall a podway that has just started: one that is in a fight already takes its time.
    fn survives(&self, mishaps: &[Mishap]) -> Result<()> {
        let before = {
            let _podway = self.one.podway(Dataplane::Nftables)?;
            self.ways().into_iter().for_each(|way| drop(await_answers(&self.client, way)));
            Snapshot::of(&self.one)?
        };
        let streams = self.streams()?;
        for mishap in mishaps {
            self.survives_one(mishap, &before)?;
        }
        for stream in streams {
            let answers = stream.stop()?;
            assert!(answers.all_answered(), "a TCP stream through all of it: {answers}");
        }
        Ok(())
    }

    fn survives_one(&self, (what, script): &Mishap, before: &Snapshot) -> Result<()> {
        let podway = self.one.podway(Dataplane::Nftables)?;
        let floods = self.floods()?;
        self.befall(&podway, script).with_context(|| (*what).to_owned())?;
        let started = Instant::now();
        within(AT_ONCE, &format!("{what}: it is as it was"), || before.differences(&self.one))?;
        let took = started.elapsed();
        self.ways().into_iter().for_each(|way| drop(await_answers(&self.client, way)));
        web_answers(&self.client, &["far"]);
        let outages = floods.into_iter().map(|flood| Ok(outage(&flood.stop()?)));
        let outage = outages.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        eprintln!("{what}: no packet for {outage:.0?}, seen to be repaired after {took:.0?}");
        assert!(outage < AT_ONCE, "{what}: no packet for {outage:?}");
        assert!(podway.log().contains(REPAIRED), "{what}: podway says what it does");
        if let Some(strangers) = &self.strangers {
            strangers.are_unharmed();
        }
        assert!(podway.stop()?.success());
        Ok(())
    }

    /// Runs the commands; several of them while podway does not look, so that it sees what came of all of them.
    fn befall(&self, podway: &Process, script: &str) -> Result<()> {
        let [mac4, mac6] = &self.macs;
        let script = match (script.contains('\n'), podway.id()) {
            (true, id) => format!("kill -STOP {id}\n{script}\nkill -CONT {id}\n"),
            (false, _) => script.to_owned(),
        };
        let shell = self.one.command("sh").args(["-ec", &script]);
        shell.env("MAC4", mac4).env("MAC6", mac6).run().map(drop)
    }

    fn streams(&self) -> Result<Vec<Running>> {
        let [tcp4, _, tcp6, _] = self.ways()[..] else { anyhow::bail!("four ways") };
        [tcp4, tcp6].into_iter().map(|way| self.client.stream(way.probe())).collect()
    }

    fn floods(&self) -> Result<Vec<Running>> {
        let [_, udp4, _, udp6] = self.ways()[..] else { anyhow::bail!("four ways") };
        let probe = |way: Way| way.probe().every(PACE).timeout(Duration::from_millis(500));
        [udp4, udp6].into_iter().map(|way| self.client.flood(probe(way))).collect()
    }
}

/// All that a node's kernel holds, and the settings that the pod network needs.
#[derive(PartialEq, Eq)]
struct Snapshot {
    kernel: KernelState,
    forwarding: String,
}

impl Snapshot {
    fn of(node: &Member) -> Result<Self> {
        let files = ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/flannel.1/accept_ra"];
        let files = files.map(|file| format!("/proc/sys/net/{file}"));
        Ok(Self { forwarding: node.command("cat").args(files).run()?, kernel: KernelState::read(node)? })
    }

    fn differences(&self, node: &Member) -> Result<()> {
        let now = Self::of(node)?;
        if *self == now {
            return Ok(());
        }
        Err(anyhow!(
            "gone: {:#?}\nnew: {:#?}\nforwarding: {:?}",
            self.kernel.beyond(&now.kernel),
            now.kernel.beyond(&self.kernel),
            now.forwarding
        ))
    }
}

/// How long packets were lost, to the pace at which they were sent.
fn outage(answers: &Answers) -> Duration {
    let lost: Vec<u64> = answers.failures().map(|answer| answer.at).collect();
    match (lost.iter().min(), lost.iter().max()) {
        (Some(first), Some(last)) => Duration::from_micros(last - first) + PACE,
        _ => Duration::ZERO,
    }
}

fn mac(host: &Host, link: &str) -> Result<String> {
    let listed: Value =
        serde_json::from_str(&host.command("ip").args(["-json", "link", "show", link]).run()?)?;
    listed[0]["address"].as_str().map(str::to_owned).with_context(|| format!("{link} has no address"))
}
