//! Rules in other programs' forward chains, by the real nft and iptables, each test in a network namespace of its own.
//! Needs root.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod namespace;

use std::process::{Command, Stdio};

use ipnet::IpNet;
use namespace::{in_namespace, nft, run};
use nftables::schema::Nftables;
use podway_nftables::{Error, FakeNft, ForwardProblem, ForwardReport, Forwarding, Nft, NftProcess};

#[test]
fn n10_an_iptables_forward_policy_of_drop_gets_our_rules_and_iptables_still_reads_its_table() {
    in_namespace(async {
        for program in ["iptables", "ip6tables"] {
            run(program, "-P FORWARD DROP");
            run(program, "-A FORWARD -i docker0 -j ACCEPT");
        }
        let mut forwarding = Forwarding::new(NftProcess::default());
        let report = apply(&mut forwarding).await;
        assert_eq!((report.written, report.opened.len(), report.problems.len()), (4, 2, 0));
        assert_eq!(apply(&mut forwarding).await.written, 0, "they stand");

        let rules = run("iptables", "-S FORWARD");
        let expected = "-P FORWARD DROP\n\
                        -A FORWARD -i docker0 -j ACCEPT\n\
                        -A FORWARD -s 10.77.0.0/16 -m comment --comment podway -j ACCEPT\n\
                        -A FORWARD -d 10.77.0.0/16 -m comment --comment podway -j ACCEPT\n";
        assert_eq!(rules, expected);
        assert!(run("iptables", "-n -L FORWARD").contains("/* podway */"));
        assert!(
            run("ip6tables", "-S FORWARD").contains("-s fd77::/48 -m comment --comment podway -j ACCEPT")
        );
    });
}

#[test]
fn n10_what_iptables_restore_brings_back_is_neither_doubled_nor_mistaken_for_something_else() {
    in_namespace(async {
        run("iptables", "-P FORWARD DROP");
        let mut forwarding = Forwarding::new(NftProcess::default());
        apply(&mut forwarding).await;
        let saved = run("iptables-save", "-t filter");
        feed("iptables-restore", &[], &saved);
        assert_eq!(apply(&mut forwarding).await.written, 0, "{}", nft("list ruleset"));
        assert_eq!(run("iptables-save", "-t filter").lines().filter(|it| it.starts_with("-A")).count(), 2);
        // As Docker and ufw do it: their own chains, the others' untouched.
        let docker =
            "*filter\n:DOCKER-USER - [0:0]\n-I FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\nCOMMIT\n";
        feed("iptables-restore", &["-n"], docker);
        assert_eq!(apply(&mut forwarding).await.written, 0, "theirs is ahead of ours already");
    });
}

#[test]
fn n10_our_rules_come_back_after_a_flush_and_go_with_the_drop() {
    in_namespace(async {
        run("iptables", "-P FORWARD DROP");
        let mut forwarding = Forwarding::new(NftProcess::default());
        apply(&mut forwarding).await;
        run("iptables", "-F FORWARD");
        assert_eq!(apply(&mut forwarding).await.written, 2);
        run("iptables", "-P FORWARD ACCEPT");
        let report = apply(&mut forwarding).await;
        assert_eq!((report.written, report.opened.len()), (2, 0));
        assert_eq!(run("iptables", "-S FORWARD"), "-P FORWARD ACCEPT\n");
    });
}

#[test]
fn n10_what_an_administrator_denies_on_a_condition_stays_ahead_of_our_rules() {
    in_namespace(async {
        run("iptables", "-P FORWARD DROP");
        run("iptables", "-A FORWARD -d 10.77.1.5 -j DROP");
        let mut forwarding = Forwarding::new(NftProcess::default());
        assert_eq!(apply(&mut forwarding).await.written, 2);
        assert_eq!(order("iptables"), ["10.77.1.5", "podway", "podway"]);

        run("iptables", "-A FORWARD -d 10.77.1.6 -j DROP");
        run("iptables", "-A FORWARD -i docker0 -j ACCEPT");
        assert_eq!(apply(&mut forwarding).await.written, 4, "moved behind it");
        let moved = ["10.77.1.5", "10.77.1.6", "docker0", "podway", "podway"];
        assert_eq!(order("iptables"), moved);

        run("iptables", "-A FORWARD -i docker1 -j ACCEPT");
        assert_eq!(apply(&mut forwarding).await.written, 0, "what only accepts may stand behind them");

        run("iptables", "-I FORWARD 4 -j REJECT");
        assert_eq!(apply(&mut forwarding).await.written, 4, "moved ahead of it");
        let moved = ["10.77.1.5", "10.77.1.6", "docker0", "podway", "podway", "REJECT", "docker1"];
        assert_eq!(order("iptables"), moved);
        assert_eq!(apply(&mut forwarding).await.written, 0);
    });
}

#[test]
fn n10_a_reject_at_the_end_of_firewalld_s_chain_gets_our_rules_directly_in_front() {
    in_namespace(async {
        load(
            "table inet firewalld {\n chain filter_FORWARD {\n type filter hook forward priority filter + 10; policy accept;\n \
             ct state { established, related } accept\n ct state invalid drop\n reject with icmpx admin-prohibited\n }\n }\n",
        );
        let mut forwarding = Forwarding::new(NftProcess::default());
        let report = apply(&mut forwarding).await;
        assert_eq!((report.written, report.opened.len()), (4, 1));
        let chain = nft("list chain inet firewalld filter_FORWARD");
        let [denial, first, last, reject] =
            ["ct state invalid drop", "ip saddr 10.77.0.0/16", "ip6 daddr fd77::/48", "reject"]
                .map(|rule| chain.find(rule).unwrap_or_else(|| panic!("no {rule}: {chain}")));
        assert!(denial < first && first < last && last < reject, "{chain}");
        assert_eq!(apply(&mut forwarding).await.written, 0);
    });
}

#[test]
fn n10_a_drop_behind_a_jump_is_found_and_the_rules_go_before_the_jump() {
    in_namespace(async {
        run("iptables", "-N LOGDROP");
        run("iptables", "-A LOGDROP -m limit --limit 5/min -j LOG");
        run("iptables", "-A LOGDROP -j DROP");
        run("iptables", "-A FORWARD -d 10.77.1.5 -j LOGDROP");
        let mut forwarding = Forwarding::new(NftProcess::default());
        assert_eq!(apply(&mut forwarding).await.written, 0, "nothing leads there for all");
        run("iptables", "-A FORWARD -j LOGDROP");
        assert_eq!(apply(&mut forwarding).await.written, 2);
        assert_eq!(order("iptables"), ["10.77.1.5", "podway", "podway", "LOGDROP"]);
        assert_eq!(run("iptables", "-S LOGDROP").lines().count(), 3, "that chain is left alone");
    });
}

#[test]
fn n10_chains_that_drop_nothing_of_ours_are_left_alone() {
    in_namespace(async {
        load(
            "table inet stranger {\n chain forward { type filter hook forward priority 0; policy accept; \
             ip saddr 203.0.113.9 drop; }\n chain input { type filter hook input priority 0; policy drop; }\n }\n\
             table bridge stranger {\n chain forward { type filter hook forward priority 0; policy drop; }\n }\n",
        );
        let before = nft("list ruleset");
        let report = apply(&mut Forwarding::new(NftProcess::default())).await;
        assert_eq!(report, ForwardReport::default());
        assert_eq!(nft("list ruleset"), before);
    });
}

#[test]
fn s22_cleanup_takes_our_rules_out_of_others_chains_and_nothing_else() {
    in_namespace(async {
        run("iptables", "-P FORWARD DROP");
        run("iptables", "-A FORWARD -s 10.77.0.0/16 -j LOG");
        let before = nft("-s list ruleset");
        let mut forwarding = Forwarding::new(NftProcess::default());
        assert_eq!(apply(&mut forwarding).await.written, 2);
        for _ in 0..2 {
            Forwarding::remove_all(NftProcess::default()).await.unwrap();
        }
        assert_eq!(nft("-s list ruleset"), before);
    });
}

#[test]
fn n10_a_table_that_is_made_anew_between_a_look_and_a_write_loses_no_rule_of_its_own() {
    in_namespace(async {
        let table = |rules: &str| {
            format!(
                "table inet stranger {{\n chain forward {{\n type filter hook forward priority 0; policy drop;\n \
                 {rules}\n }}\n }}\n"
            )
        };
        load(&table("ip daddr 10.77.1.5 drop"));
        assert_eq!(apply(&mut Forwarding::new(NftProcess::default())).await.written, 4);
        nft("add rule inet stranger forward ip daddr 10.77.1.6 drop");
        // Ours are to be moved behind that: their handles are these in the other table.
        let anew = table(
            "tcp dport 1 drop\n tcp dport 2 drop\n tcp dport 3 drop\n tcp dport 4 drop\n tcp dport 5 drop",
        );
        let anew = format!("delete table inet stranger\n{anew}");
        let mut forwarding = Forwarding::new(Remaking { nft: NftProcess::default(), anew: Some(anew) });
        let report = apply(&mut forwarding).await;
        assert!(forwarding.nft_mut().anew.is_none(), "it was made anew");
        let chain = nft("list chain inet stranger forward");
        let theirs = (1..=5).filter(|port| chain.contains(&format!("tcp dport {port} drop")));
        assert_eq!((theirs.count(), report.problems.len()), (5, 0), "{chain}");
        assert_eq!((report.written, chain.matches("podway").count()), (4, 4), "{chain}");
    });
}

#[test]
fn n10_a_table_with_an_owner_is_named_with_the_rules_that_it_needs() {
    in_namespace(async {
        // The owner is whoever holds the socket: this nft, as long as its input is open.
        let mut owner =
            Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let text = "add table inet firewalld { flags owner; }\n\
                    add chain inet firewalld forward { type filter hook forward priority 0; policy drop; }\n";
        std::io::Write::write_all(owner.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
        while !nft("list chains").contains("policy drop") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let report = apply(&mut Forwarding::new(NftProcess::default())).await;
        drop(owner.stdin.take());
        owner.wait().unwrap();
        let problem = report.problems.into_iter().next().unwrap().to_string();
        assert!(problem.starts_with("inet firewalld forward drops pods' packets"), "{problem}");
        assert!(
            problem.contains("firewall-cmd --permanent --zone=trusted --add-source=10.77.0.0/16"),
            "{problem}"
        );
    });
}

#[test]
fn n10_iptables_legacy_is_named_with_the_rules_that_it_needs_until_it_has_them() {
    in_namespace(async {
        let mut forwarding = Forwarding::new(NftProcess::default());
        assert_eq!(apply(&mut forwarding).await, ForwardReport::default());
        run("iptables-legacy", "-P FORWARD DROP");
        let report = apply(&mut forwarding).await;
        let Some(ForwardProblem::Legacy { remedy, .. }) = report.problems.first() else {
            panic!("another problem: {report:?}");
        };
        for command in remedy.split("; ") {
            let (program, arguments) = command.split_once(' ').unwrap();
            run(program, arguments);
        }
        assert_eq!(apply(&mut forwarding).await, ForwardReport::default(), "{remedy}");
    });
}

#[tokio::test]
async fn a_refused_rule_is_tried_once_more_and_then_a_problem_of_that_chain_alone() {
    let mut fake = FakeNft::default();
    for family in ["ip", "ip6"] {
        let chain = format!(
            "add chain {family} filter FORWARD {{ type filter hook forward priority 0; policy drop; }}"
        );
        fake.load(&format!("add table {family} filter\n{chain}\n")).await.unwrap();
    }
    let mut forwarding = Forwarding::new(fake);
    forwarding.nft_mut().failures = 1;
    assert_eq!(apply(&mut forwarding).await.opened.len(), 2);
    let text = "delete table ip filter\nadd table ip filter\n\
                add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n";
    forwarding.nft_mut().load(text).await.unwrap();
    forwarding.nft_mut().failures = 2;
    let report = apply(&mut forwarding).await;
    assert_eq!((report.opened.len(), report.problems.len()), (1, 1));
    let told = report.problems.first().unwrap().to_string();
    assert!(told.contains("nft add rule ip filter FORWARD ip saddr 10.77.0.0/16 accept"), "{told}");
    assert!(!told.contains("ip6"), "{told}");
}

/// An nft beside which somebody else loads a text right after the next chain was listed.
struct Remaking {
    nft: NftProcess,
    anew: Option<String>,
}

impl Nft for Remaking {
    async fn load(&mut self, text: &str) -> Result<(), Error> {
        self.nft.load(text).await
    }

    async fn transact(&mut self, commands: &Nftables<'_>) -> Result<(), Error> {
        self.nft.transact(commands).await
    }

    async fn list_table(&mut self, table: &str) -> Result<Option<String>, Error> {
        self.nft.list_table(table).await
    }

    async fn list_rules(&mut self, table: &str) -> Result<Option<String>, Error> {
        self.nft.list_rules(table).await
    }

    async fn list_tables(&mut self) -> Result<String, Error> {
        self.nft.list_tables().await
    }

    async fn list_chains(&mut self) -> Result<String, Error> {
        self.nft.list_chains().await
    }

    async fn list_chain(&mut self, chain: &str) -> Result<Option<String>, Error> {
        let listing = self.nft.list_chain(chain).await;
        self.anew.take().iter().for_each(|text| load(text));
        listing
    }

    async fn list_legacy_forward(&mut self, ipv6: bool) -> Result<Option<String>, Error> {
        self.nft.list_legacy_forward(ipv6).await
    }
}

async fn apply<N: Nft>(forwarding: &mut Forwarding<N>) -> ForwardReport {
    let networks: [IpNet; 2] = ["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()];
    forwarding.apply(&networks).await.unwrap()
}

/// What distinguishes each rule of FORWARD, in its order.
fn order(program: &str) -> Vec<String> {
    let rules = run(program, "-S FORWARD");
    let marks = ["podway", "10.77.1.5", "10.77.1.6", "docker0", "docker1", "LOGDROP", "REJECT"];
    let mark = |rule: &str| {
        marks.iter().find(|mark| rule.contains(**mark)).map_or(rule.to_owned(), |it| (*it).to_owned())
    };
    rules.lines().filter(|line| line.starts_with("-A")).map(mark).collect()
}

fn load(text: &str) {
    feed("nft", &["-f", "-"], text);
}

fn feed(program: &str, arguments: &[&str], text: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "{program} refused {text}");
}
