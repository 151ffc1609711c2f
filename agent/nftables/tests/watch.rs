//! What others do to our tables, noticed and mended, by the real nft, each test in a network namespace of its own. Needs
//! root.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod namespace;

use std::time::{Duration, Instant};

use ipnet::IpNet;
use namespace::{in_namespace, nft, run};
use podway_nftables::{DEFAULT_MARK, Damage, Forwarding, Network, NetworkRows, NftProcess, Services, Watch};
use podway_proxy::{Frontend, Masquerade, Pool, Protocol, Rows};

/// Many times what the kernel needs to tell of a change, so that silence means that there is nothing to tell.
const SILENCE: Duration = Duration::from_millis(200);

/// Many times what a busy machine needs to tell.
const SOON: Duration = Duration::from_secs(5);

/// Our tables, those who keep them, and the watch.
struct Node {
    network: Network,
    services: Services,
    watch: Watch,
    sound: String,
}

#[test]
fn n13_a_flushed_ruleset_is_noticed_and_built_again() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        nft("flush ruleset");
        let flushed = Instant::now();
        let damage = node.damage().await;
        assert!(damage.services && damage.network);
        node.mend(&damage).await;
        println!("nft flush ruleset: both tables stand again after {:.1?}", flushed.elapsed());
        node.assert_sound();
    });
}

#[test]
fn n13_whatever_is_taken_from_our_tables_comes_back() {
    let thefts = [
        "delete element inet podway-network pod-networks-4 { 10.77.0.0/16 }",
        "delete element ip podway service-ips { 10.96.0.1 . udp . 53 }",
        "flush set inet podway-network own-subnets-4",
        "flush map ip podway udp-endpoints",
        "delete table ip6 podway",
        "delete table inet podway-network",
        "flush chain inet podway-network postrouting-4",
        "flush chain ip podway pick-2",
        "flush chain ip podway judge",
        "delete chain ip podway filter-input",
        "flush table ip podway",
        "flush table inet podway-network",
        "add rule ip podway prerouting drop",
        "insert rule inet podway-network postrouting accept",
        "add chain ip podway filter-output { policy drop ; }",
        "flush set ip podway schema",
    ];
    for theft in thefts {
        in_namespace(async move {
            let mut node = Node::programmed().await;
            nft(theft);
            let damage = node.damage().await;
            assert!(damage.services != damage.network, "{theft}: {damage:?}");
            node.mend(&damage).await;
            node.assert_sound();
            node.hears_nothing().await;
        });
    }
}

#[test]
fn n13_a_rule_that_was_changed_where_it_stands_is_put_right() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        let rules = nft("-a list chain inet podway-network postrouting-4");
        let line = rules.lines().find(|line| line.contains("non-masquerade-4")).unwrap();
        let handle = line.rsplit_once("handle ").unwrap().1;
        nft(&format!("replace rule inet podway-network postrouting-4 handle {handle} accept"));
        let damage = node.damage().await;
        node.mend(&damage).await;
        node.assert_sound();
    });
}

#[test]
fn n13_two_podways_on_one_node_do_not_keep_correcting_each_other() {
    in_namespace(async {
        let (mut one, mut two) = (Node::programmed().await, Node::programmed().await);
        nft("flush chain ip podway judge");
        let mut repairs = 0;
        for _ in 0..4 {
            for node in [&mut one, &mut two] {
                if let Ok(damage) = tokio::time::timeout(SILENCE, node.watch.next()).await {
                    node.mend(&damage).await;
                    repairs += 1;
                }
            }
        }
        assert!(repairs <= 4, "{repairs} repairs of one thing");
        one.hears_nothing().await;
        two.hears_nothing().await;
        one.assert_sound();
    });
}

#[test]
fn n13_a_chain_under_our_name_that_is_another_is_replaced_with_its_table() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        nft("delete chain inet podway-network postrouting");
        nft("add chain inet podway-network postrouting");
        let damage = node.damage().await;
        node.mend(&damage).await;
        node.assert_sound();
    });
}

#[test]
fn n13_what_we_write_ourselves_is_no_damage() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        node.hears_nothing().await;
        node.services.replace(&rows(3)).await.unwrap();
        node.network.replace(&network_rows("10.77.4.0/24")).await.unwrap();
        node.hears_nothing().await;
        let mut big = rows(2);
        let frontend =
            |port| Frontend { address: "10.96.0.9".parse().unwrap(), protocol: Protocol::Tcp, port };
        big.frontends.extend((1..=6_000).map(|port| (frontend(port), Pool::Reject)));
        node.services.replace(&big).await.unwrap();
        node.hears_nothing().await;
    });
}

#[test]
fn n13_what_happens_to_other_tables_is_no_damage_unless_packets_are_forwarded_through_them() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        let mut forwarding = Forwarding::new(node.nft());
        forwarding.apply(&pod_networks()).await.unwrap();
        nft("add table inet stranger");
        nft("add set inet stranger addresses { type ipv4_addr ; }");
        nft("add element inet stranger addresses { 192.0.2.1 }");
        nft("add chain inet stranger input { type filter hook input priority 0 ; policy drop ; }");
        nft("add chain inet stranger podway");
        node.hears_nothing().await;
        nft("add rule inet stranger podway drop");
        let damage = node.damage().await;
        assert!(!damage.services && !damage.network && !forwarding.is_touched_by(&damage), "{damage:?}");
        run("iptables", "-P FORWARD DROP");
        assert!(forwarding.is_touched_by(&node.damage().await));
        nft("delete table inet stranger");
        assert!(!forwarding.is_touched_by(&node.damage().await));
        node.assert_sound();
    });
}

#[test]
fn n10_a_flushed_forward_chain_is_noticed_and_our_own_rules_there_are_not() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        let mut forwarding = Forwarding::new(node.nft());
        run("iptables", "-P FORWARD DROP");
        let damage = node.damage().await;
        assert!(forwarding.is_touched_by(&damage));
        assert_eq!(forwarding.apply(&pod_networks()).await.unwrap().written, 2);
        node.hears_nothing().await;
        run("iptables", "-F FORWARD");
        let flushed = Instant::now();
        assert!(forwarding.is_touched_by(&node.damage().await));
        assert_eq!(forwarding.apply(&pod_networks()).await.unwrap().written, 2);
        println!("iptables -F FORWARD: pods pass again after {:.1?}", flushed.elapsed());
    });
}

#[test]
fn n13_a_watch_that_missed_something_says_that_all_may_be_damaged() {
    in_namespace(async {
        let mut node = Node::programmed().await;
        // More than the buffer holds, and nobody reads.
        let comment = "x".repeat(120);
        let numbers: Vec<String> = (0..80_000).map(|it| format!("{it} comment \"{comment}\"")).collect();
        let set = "table ip stranger {\n set numbers { type mark ; }\n}\n";
        let text = format!("{set}add element ip stranger numbers {{ {} }}\n", numbers.join(", "));
        let file = std::env::temp_dir().join(format!("podway-watch-{}.nft", std::process::id()));
        std::fs::write(&file, text).unwrap();
        nft(&format!("-f {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(node.damage().await, Damage::everything());
    });
}

impl Node {
    async fn programmed() -> Self {
        let nft = NftProcess::default();
        let watch = Watch::open(&nft).unwrap();
        let mut network = Network::adopt(nft.clone(), DEFAULT_MARK).await.unwrap();
        let mut services = Services::adopt(nft, DEFAULT_MARK).await.unwrap();
        network.replace(&network_rows("10.77.3.0/24")).await.unwrap();
        services.replace(&rows(2)).await.unwrap();
        Self { network, services, watch, sound: ruleset() }
    }

    fn nft(&mut self) -> NftProcess {
        self.network.nft_mut().clone()
    }

    async fn damage(&mut self) -> Damage {
        let next = tokio::time::timeout(SOON, self.watch.next()).await;
        next.expect("somebody else changed something")
    }

    async fn hears_nothing(&mut self) {
        let next = tokio::time::timeout(SILENCE, self.watch.next()).await;
        assert!(next.is_err(), "{next:?}");
    }

    async fn mend(&mut self, damage: &Damage) {
        if damage.network {
            self.network.invalidate();
        }
        if damage.services {
            self.services.invalidate();
        }
        self.network.replace(&network_rows("10.77.3.0/24")).await.unwrap();
        self.services.replace(&rows(2)).await.unwrap();
    }

    #[track_caller]
    fn assert_sound(&self) {
        assert_eq!(ruleset(), self.sound);
    }
}

/// All tables of ours, in the order of their names.
fn ruleset() -> String {
    ["ip podway", "ip6 podway", "inet podway-network"]
        .map(|table| sorted(&nft(&format!("-s list table {table}"))))
        .concat()
}

/// The chains, sets and maps of a table in the order of their names: the kernel lists the latest last.
fn sorted(table: &str) -> String {
    let mut blocks: Vec<&str> = table.split("\n\t}\n").map(str::trim).collect();
    blocks.sort_unstable();
    blocks.join("\n")
}

fn network_rows(own: &str) -> NetworkRows {
    NetworkRows {
        pod_networks: pod_networks().to_vec(),
        own_subnets: vec![own.parse().unwrap()],
        ..NetworkRows::default()
    }
}

fn pod_networks() -> [IpNet; 1] {
    ["10.77.0.0/16".parse().unwrap()]
}

fn rows(endpoints: u8) -> Rows {
    let mut rows = Rows::default();
    let targets = (1..=endpoints).map(|host| format!("10.77.0.{host}:53").parse().unwrap()).collect();
    let address = "10.96.0.1".parse().unwrap();
    let pool = Pool::Balance { targets, masquerade: Masquerade::Never };
    rows.frontends.insert(Frontend { address, protocol: Protocol::Udp, port: 53 }, pool);
    rows.cluster_ips.insert(address, ());
    rows
}
