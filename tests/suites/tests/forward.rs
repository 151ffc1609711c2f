//! Beside other firewalls: pods reach each other and the outside, whatever those do in FORWARD, and keep their addresses
//! where they are told to.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use podway_suites::{
    Cluster, Dataplane, KernelState, Member, SOON, Shop, Way, await_answers, wait_until_programmed,
    web_answers,
};
use podway_testkit::{Host, Process, eventually, in_lab};

const PORT: u16 = 8080;

/// Many times what an answer takes.
const SHORT: Duration = Duration::from_millis(500);

/// What a firewall loads, and with which program, and what its administrator then says to keep packets from a pod.
struct Firewall {
    lab: &'static str,
    loads: &'static [(&'static str, &'static [&'static str], &'static str)],
    denies_ipv4: (&'static str, &'static str),
    denies_ipv6: (&'static str, &'static str),
}

/// As Docker leaves iptables: a policy of DROP, chains of its own, accepts for its own bridge.
const DOCKER: Firewall = Firewall {
    lab: "forward-docker",
    loads: &[("iptables-restore", &["-n"], DOCKER_RULES), ("ip6tables-restore", &["-n"], DOCKER_RULES)],
    denies_ipv4: ("iptables", "-I DOCKER-USER -d ADDRESS -j DROP"),
    denies_ipv6: ("ip6tables", "-I DOCKER-USER -d ADDRESS -j DROP"),
};

const DOCKER_RULES: &str = "*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
";

/// As ufw leaves it: a policy of DROP, and chains that let answers pass and hold `ufw route` rules.
const UFW: Firewall = Firewall {
    lab: "forward-ufw",
    loads: &[("iptables-restore", &["-n"], UFW_RULES), ("ip6tables-restore", &["-n"], UFW_RULES)],
    denies_ipv4: ("iptables", "-A ufw-user-forward -d ADDRESS -j DROP"),
    denies_ipv6: ("ip6tables", "-A ufw-user-forward -d ADDRESS -j DROP"),
};

const UFW_RULES: &str = "*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-reject-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"
COMMIT
";

const NFTABLES: Firewall = Firewall {
    lab: "forward-nft",
    loads: &[(
        "nft",
        &["-f", "-"],
        "table inet filter {
            chain forward { type filter hook forward priority filter; policy drop;
                ct state established,related accept
            }
        }",
    )],
    denies_ipv4: ("nft", "add rule inet filter forward ip daddr ADDRESS drop"),
    denies_ipv6: ("nft", "add rule inet filter forward ip6 daddr ADDRESS drop"),
};

/// As firewalld has it: no policy, but a reject at the end, and its policies before.
const FIREWALLD: Firewall = Firewall {
    lab: "forward-firewalld",
    loads: &[(
        "nft",
        &["-f", "-"],
        "table inet firewalld {
            chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
                ct state { established, related } accept
                ct state invalid drop
                jump filter_FORWARD_POLICIES
                reject with icmpx admin-prohibited
            }
            chain filter_FORWARD_POLICIES { iifname \"lo\" accept
            }
        }",
    )],
    denies_ipv4: ("nft", "add rule inet firewalld filter_FORWARD_POLICIES ip daddr ADDRESS reject"),
    denies_ipv6: ("nft", "add rule inet firewalld filter_FORWARD_POLICIES ip6 daddr ADDRESS reject"),
};

/// As firewalld 1.0 has it: the zones reject, some of it on conditions, and the administrator's rule is ahead of them.
const FIREWALLD_ZONES: Firewall = Firewall {
    lab: "forward-zones",
    loads: &[(
        "nft",
        &["-f", "-"],
        "table inet firewalld {
            chain filter_FWD_public { reject with icmpx admin-prohibited
            }
            chain filter_FORWARD_POLICIES {
                iifname != \"lo\" oifname != \"lo\" jump filter_FWD_public
                jump filter_FWD_public
                reject with icmpx admin-prohibited
            }
            chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
                ct state { established, related } accept
                ct state invalid drop
                jump filter_FORWARD_POLICIES
                log prefix \"FINAL_REJECT: \"
                reject with icmpx admin-prohibited
            }
        }",
    )],
    denies_ipv4: ("nft", "insert rule inet firewalld filter_FORWARD ip daddr ADDRESS reject"),
    denies_ipv6: ("nft", "insert rule inet firewalld filter_FORWARD ip6 daddr ADDRESS reject"),
};

#[test]
fn n10_pods_pass_dockers_forward_chain() {
    pods_pass(&DOCKER);
}

#[test]
fn n10_pods_pass_ufws_forward_chain() {
    pods_pass(&UFW);
}

#[test]
fn n10_pods_pass_an_nftables_forward_chain_with_a_policy_of_drop() {
    pods_pass(&NFTABLES);
}

#[test]
fn n10_pods_pass_firewallds_forward_chain() {
    pods_pass(&FIREWALLD);
}

#[test]
fn n10_pods_pass_a_firewalld_whose_zones_reject() {
    pods_pass(&FIREWALLD_ZONES);
}

/// Behind this firewall on node-1 nothing of pods passes without our rules, everything with them but what its
/// administrator denies, and all of it is the firewall's again after a cleanup.
fn pods_pass(firewall: &Firewall) {
    in_lab(firewall.lab, |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (near, _near)) = (one.pod("client")?, one.serving_pod("near")?);
        let (forbidden, _forbidden) = one.serving_pod("forbidden")?;
        let (far_client, (far, _far)) = (two.pod("far-client")?, two.serving_pod("far")?);
        let outside = lab.outside("outside")?;
        let _outside_server = outside.serve("outside", PORT)?;
        firewall.load(&one)?;
        firewall.deny(&one, &forbidden)?;
        let before = rules(&one)?;
        let _other = two.podway(Dataplane::Nftables)?;

        let closed = run_with(&one, &["network.forwardAccept=false"])?;
        let outward: Vec<Way> = [ways_to(&far), ways_to(&outside)].concat();
        for way in &outward {
            assert_unanswered(&client, *way)?;
        }
        assert_unanswered(&far_client, ways_to(&near)[0])?;
        closed.stop()?;

        let open = run_with(&one, &[])?;
        for way in outward {
            assert_answered(&client, way)?;
        }
        for way in ways_to(&near) {
            assert_answered(&far_client, way)?;
        }
        for way in ways_to(&forbidden) {
            assert_unanswered(&far_client, way)?;
            assert_answered(&one, way)?;
        }
        open.stop()?;
        one.cleanup(Dataplane::Nftables)?;
        assert_eq!(rules(&one)?, before, "after the cleanup");
        Ok(())
    });
}

#[test]
fn n10_what_an_administrator_denies_while_podway_runs_is_denied_though_he_appends_it() {
    in_lab("forward-deny", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let (forbidden, _forbidden) = two.serving_pod("forbidden")?;
        for program in ["iptables", "ip6tables"] {
            one.command(program).args(["-P", "FORWARD", "DROP"]).run()?;
        }
        let _podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        for way in ways_to(&forbidden) {
            await_answers(&client, way);
        }
        for (program, address) in
            [("iptables", forbidden.ipv4().to_string()), ("ip6tables", forbidden.ipv6().to_string())]
        {
            one.command(program).args(["-A", "FORWARD", "-d", &address, "-j", "DROP"]).run()?;
        }
        for way in ways_to(&forbidden) {
            eventually(SOON, "a denial", || match client.send(way.probe().timeout(SHORT)) {
                Ok(answers) if answers.answered() == 0 => Ok(()),
                Ok(answers) => Err(anyhow!("{way}: {answers}")),
                Err(error) => Err(error),
            });
        }
        for way in ways_to(&web) {
            assert_answered(&client, way)?;
        }
        Ok(())
    });
}

#[test]
fn n13_a_forward_chain_that_is_closed_or_flushed_while_podway_runs_is_open_again_at_once() {
    in_lab("forward-flush", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let _podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        for (program, arguments) in [
            ("iptables", "-P FORWARD DROP"),
            ("ip6tables", "-P FORWARD DROP"),
            ("iptables", "-F FORWARD"),
            ("ip6tables", "-F FORWARD"),
        ] {
            one.command(program).args(arguments.split(' ')).run()?;
            let closed = Instant::now();
            eventually(SOON, &format!("our rules after {program} {arguments}"), || {
                let rules = one.command(program).args(["-S", "FORWARD"]).run()?;
                if rules.matches("--comment podway").count() == 2 { Ok(()) } else { Err(anyhow!(rules)) }
            });
            println!("{program} {arguments}: our rules stand after {:.1?}", closed.elapsed());
        }
        for way in ways_to(&web) {
            assert_answered(&client, way)?;
        }
        Ok(())
    });
}

#[test]
fn n13_a_fight_over_a_forward_chain_is_given_way_in_and_ends_with_our_rules() {
    in_lab("forward-fight", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let podway = one.podway(Dataplane::Nftables)?;
        one.command("iptables").args(["-P", "FORWARD", "DROP"]).run()?;
        let ours = || -> Result<usize> {
            let rules = one.command("iptables").args(["-S", "FORWARD"]).run()?;
            Ok(rules.matches("--comment podway").count())
        };
        let (attacks, mut undone) = (40, 0);
        for _ in 0..attacks {
            one.command("iptables").args(["-F", "FORWARD"]).run()?;
            std::thread::sleep(std::time::Duration::from_millis(200));
            undone += usize::from(ours()? > 0);
        }
        assert!(undone * 2 < attacks, "{undone} of {attacks} were undone at once: that is no giving way");
        podway.wait_for_log("another program changes the pod network again and again", SOON)?;
        // The wait doubles with each repair, from a second on.
        eventually(3 * SOON, "our rules once the other has stopped", || match ours() {
            Ok(2) => Ok(()),
            other => Err(anyhow!("{other:?}")),
        });
        Ok(())
    });
}

#[test]
fn n13_after_nft_flush_ruleset_everything_of_ours_stands_again_at_once() {
    in_lab("forward-flush-ruleset", |lab| {
        let shop = Shop::open(lab, Dataplane::Nftables)?;
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let stream = shop.client.stream(ways_to(&shop.far[0])[0].probe().every(Duration::from_millis(10)))?;
        let before = KernelState::read(&shop.one)?;
        shop.one.command("nft").args(["flush", "ruleset"]).run()?;
        let flushed = Instant::now();
        before.await_again_on(&shop.one);
        println!("nft flush ruleset: everything stands again after {:.1?} or less", flushed.elapsed());
        web_answers(&shop.client, &["near", "far-1", "far-2"]);
        let answers = stream.stop()?;
        assert!(answers.all_answered(), "a stream between pods: {answers}");
        Ok(())
    });
}

#[test]
fn n10_pods_keep_their_address_towards_non_masquerade_cidrs_and_nowhere_else() {
    in_lab("forward-non-masquerade", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (kept, other) = (lab.outside("kept")?, lab.outside("other")?);
        let _servers = [kept.serve("kept", PORT)?, other.serve("other", PORT)?];
        route_pods_of(&one, &kept)?;
        let setting = format!(r#"network.nonMasqueradeCIDRs=[{}/32,"{}/128"]"#, kept.ipv4(), kept.ipv6());
        let _podway = run_with(&one, &[&setting])?;
        for way in ways_to(&kept) {
            let answers = client.send(way.probe().count(5))?;
            assert_eq!(answers.sources(), [way.same_family(&client)].into(), "{way}: {answers}");
        }
        for way in ways_to(&other) {
            let answers = client.send(way.probe().count(5))?;
            assert_eq!(answers.sources(), [way.same_family(&one)].into(), "{way}: {answers}");
        }
        Ok(())
    });
}

#[test]
fn n10_an_outside_client_that_is_routed_to_a_remote_pod_comes_with_the_nodes_address() {
    in_lab("forward-remote", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (web, _server) = two.serving_pod("web")?;
        let outside = lab.outside("outside")?;
        route_pods_through(&one, &two, &outside)?;
        let _podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        for way in ways_to(&web) {
            await_answers(&outside, way);
            let answers = outside.send(way.probe().count(5))?;
            let of_the_link = if way.address.is_ipv4() { "10.77.1.0" } else { "fd77:0:0:1::" };
            assert_eq!(answers.sources(), [of_the_link.parse()?].into(), "{way}: {answers}");
        }
        Ok(())
    });
}

#[test]
fn n10_the_pods_masquerade_can_be_switched_off() {
    in_lab("forward-no-masquerade", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let outside = lab.outside("outside")?;
        let _server = outside.serve("outside", PORT)?;
        route_pods_of(&one, &outside)?;
        let _podway = run_with(&one, &["network.masquerade=false"])?;
        for way in ways_to(&outside) {
            let answers = client.send(way.probe().count(5))?;
            assert_eq!(answers.sources(), [way.same_family(&client)].into(), "{way}: {answers}");
        }
        Ok(())
    });
}

impl Firewall {
    fn load(&self, node: &Member) -> Result<()> {
        for (program, arguments, text) in self.loads {
            node.command(program).args(*arguments).stdin(*text).run()?;
        }
        Ok(())
    }

    fn deny(&self, node: &Member, pod: &Host) -> Result<()> {
        for ((program, arguments), address) in
            [(self.denies_ipv4, pod.ipv4().to_string()), (self.denies_ipv6, pod.ipv6().to_string())]
        {
            node.command(program).args(arguments.replace("ADDRESS", &address).split(' ')).run()?;
        }
        Ok(())
    }
}

fn ways_to(host: &Host) -> Vec<Way> {
    Way::all([host.ipv4(), host.ipv6()], PORT)
}

fn run_with(member: &Member, settings: &[&str]) -> Result<Process> {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let podway = member.podway_command("run", Dataplane::Nftables)?.args(settings).start("podway")?;
    wait_until_programmed(&podway)?;
    Ok(podway)
}

/// Everything in nftables, without counters.
fn rules(node: &Member) -> Result<String> {
    node.command("nft").args(["--stateless", "list", "ruleset"]).run()
}

fn assert_answered(client: &Host, way: Way) -> Result<()> {
    let answers = client.send(way.probe().count(5))?;
    assert!(answers.all_answered(), "{way}: {answers}");
    Ok(())
}

fn assert_unanswered(client: &Host, way: Way) -> Result<()> {
    let answers = client.send(way.probe().timeout(SHORT))?;
    assert_eq!(answers.answered(), 0, "{way}: {answers}");
    Ok(())
}

/// A host outside knows the way back to the pods of a node.
fn route_pods_of(node: &Member, outside: &Host) -> Result<()> {
    route_pods_through(node, node, outside)
}

fn route_pods_through(gateway: &Member, node: &Member, outside: &Host) -> Result<()> {
    let [v4, v6] = node.subnets();
    outside.ip(&format!("route add {v4} via {}\nroute add {v6} via {}", gateway.ipv4(), gateway.ipv6()))
}
