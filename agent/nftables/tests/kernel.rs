//! The schema and the rows in the kernel, by the real nft, each test in a network namespace of its own. Needs root.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod namespace;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use namespace::{in_namespace, nft};
use podway_nftables::{DEFAULT_MARK, Network, NetworkRows, NftProcess, Services};
use podway_proxy::{Frontend, Hairpin, Masquerade, Pool, Protocol, Rows};

#[test]
fn s24_rows_are_found_again_by_the_next_process() {
    in_namespace(async {
        let mut services = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        let written = services.replace(&rows(3)).await.unwrap();
        assert_eq!(written, 14, "{}", nft("list ruleset"));
        let mut next = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        assert_eq!(next.replace(&rows(3)).await.unwrap(), 0);
        assert!(next.replace(&rows(2)).await.unwrap() < written);
    });
}

#[test]
fn s24_rules_of_another_make_are_replaced_and_the_elements_stay() {
    in_namespace(async {
        let mut old = Services::adopt(NftProcess::default(), 0x8000).await.unwrap();
        old.replace(&rows(3)).await.unwrap();
        let mut new = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        let rules = nft("list table ip podway");
        assert!(rules.contains("0x00004000") && !rules.contains("0x00008000"), "{rules}");
        assert_eq!(new.replace(&rows(3)).await.unwrap(), 0);
        assert_eq!(
            nft("list table ip podway").matches("dnat ip to").count(),
            3,
            "one chooser, a rule a protocol"
        );
    });
}

#[test]
fn s2_every_chooser_serves_every_protocol() {
    in_namespace(async {
        let mut services = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        // Each makes one chooser a family, the first of its transaction; then rules of another make are replaced.
        services.replace(&rows(2)).await.unwrap();
        assert_choosers(2);
        services.replace(&rows(3)).await.unwrap();
        assert_choosers(3);
        Services::adopt(NftProcess::default(), 0x8000).await.unwrap();
        assert_choosers(3);
    });
}

fn assert_choosers(count: u16) {
    for family in ["ip", "ip6"] {
        let rules = nft(&format!("list chain {family} podway pick-{count}"));
        for protocol in ["tcp", "udp", "sctp"] {
            let choice = format!(
                "dnat {family} to {family} daddr . {protocol} dport . numgen random mod {count} map @{protocol}-endpoints"
            );
            assert!(rules.lines().any(|line| line.trim() == choice), "{choice} is not in {rules}");
        }
    }
}

#[test]
fn s24_a_table_whose_sets_are_defined_otherwise_is_replaced_and_keeps_its_elements() {
    in_namespace(async {
        for command in [
            "add table ip podway",
            "add set ip podway cluster-ips { type ipv4_addr ; flags interval ; }",
            "add element ip podway cluster-ips { 10.96.0.1 }",
        ] {
            nft(command);
        }
        let mut services = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        assert!(nft("list set ip podway cluster-ips").contains("10.96.0.1"));
        assert!(!nft("list set ip podway cluster-ips").contains("interval"));
        services.replace(&rows(1)).await.unwrap();
    });
}

#[test]
fn every_kind_of_change_is_taken() {
    in_namespace(async {
        let mut services = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        let mut held = Rows::default();
        for wanted in [rows(1), rows(4), rows(0), rows(2), Rows::default()] {
            services.apply(&held.delta_to(&wanted)).await.unwrap();
            held = wanted;
            let mut fresh = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
            assert_eq!(fresh.replace(&held).await.unwrap(), 0);
        }
    });
}

#[test]
fn s22_cleanup_removes_our_tables_and_nothing_else() {
    in_namespace(async {
        nft("add table ip stranger");
        nft("add chain ip stranger podway");
        let mut services = Services::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        services.replace(&rows(2)).await.unwrap();
        Network::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        for _ in 0..2 {
            Services::remove_all(&mut NftProcess::default()).await.unwrap();
            Network::remove_all(&mut NftProcess::default()).await.unwrap();
        }
        assert_eq!(nft("list tables").trim(), "table ip stranger");
        assert!(nft("list ruleset").contains("chain podway"));
    });
}

#[test]
fn n10_the_networks_rows_are_found_again() {
    in_namespace(async {
        let rows = NetworkRows {
            pod_networks: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()],
            own_subnets: vec!["10.77.3.0/24".parse().unwrap(), "10.78.0.1/32".parse().unwrap()],
            ..NetworkRows::default()
        };
        let mut network = Network::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        assert_eq!(network.replace(&rows).await.unwrap(), 4);
        let mut next = Network::adopt(NftProcess::default(), DEFAULT_MARK).await.unwrap();
        assert_eq!(next.replace(&rows).await.unwrap(), 0);
        assert_eq!(next.replace(&NetworkRows::default()).await.unwrap(), 4);
    });
}

/// One frontend a family with `endpoints` targets, and the rows that go with them.
fn rows(endpoints: u8) -> Rows {
    let mut rows = Rows { pod_networks: BTreeMap::from([(net("10.1.0.0/16"), ())]), ..Rows::default() };
    for (service, pod) in [("10.96.0.1", "10.1.0"), ("fd00::1", "fd01:")] {
        let targets: Vec<SocketAddr> = (1..=endpoints)
            .map(|host| match service.contains(':') {
                true => format!("[{pod}:{host}]:8080"),
                false => format!("{pod}.{host}:8080"),
            })
            .map(|text| text.parse().unwrap())
            .collect();
        let address: IpAddr = service.parse().unwrap();
        let hairpin =
            |it: &SocketAddr| Hairpin { address: it.ip(), protocol: Protocol::Udp, port: it.port() };
        rows.hairpins.extend(targets.first().map(|it| (hairpin(it), ())));
        rows.cluster_ips.insert(address, ());
        let pool = match targets.is_empty() {
            true => Pool::Reject,
            false => Pool::Balance { targets, masquerade: Masquerade::UnlessPod },
        };
        rows.frontends.insert(Frontend { address, protocol: Protocol::Udp, port: 53 }, pool);
    }
    rows.frontends.insert(
        Frontend { address: "10.96.0.1".parse().unwrap(), protocol: Protocol::Sctp, port: 9 },
        Pool::Drop,
    );
    rows
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}
