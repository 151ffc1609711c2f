//! What the tables hold between two transactions, with faults injected; nothing here touches the kernel.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use podway_nftables::{DEFAULT_MARK, FakeNft, Network, NetworkRows, Nft, Ports, Services};
use podway_proxy::{Frontend, Hairpin, Masquerade, Pool, Protocol, Rows};
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_sequence_of_changes_ends_in_the_wanted_rows_and_is_complete_at_every_step(
        tables in prop::collection::vec((rows(), 0u32..3, 0u32..3), 1..8)
    ) {
        block_on(async {
            let mut fake = FakeNft::default();
            let mut mirror = Services::adopt(fake.clone(), DEFAULT_MARK).await.unwrap();
            let mut held = Rows::default();
            for (rows, failures, blindness) in tables {
                let mut tries = 0;
                (mirror.nft_mut().failures, mirror.nft_mut().blindness) = (failures, blindness);
                let mut done = mirror.apply(&held.delta_to(&rows)).await;
                while done.is_err() {
                    tries += 1;
                    assert!(tries <= failures + blindness, "fails although no fault is left");
                    done = mirror.replace(&rows).await;
                }
                (mirror.nft_mut().failures, mirror.nft_mut().blindness) = (0, 0);
                held = rows;
                fake = mirror.nft_mut().clone();
                assert_every_frontend_has_all_its_slots(&fake.history);
                let mut restarted = Services::adopt(fake.clone(), DEFAULT_MARK).await.unwrap();
                assert_eq!(restarted.replace(&held).await.unwrap(), 0, "a restart finds nothing to change");
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}

#[test]
fn a_cold_load_goes_in_parts_and_the_frontends_last() {
    block_on(async {
        let rows = many_rows(4_000);
        let mut services = Services::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        assert_eq!(services.replace(&rows).await.unwrap(), 16_000);
        let history = &services.nft_mut().history;
        assert!(history.len() > 4, "one transaction would take nft's memory to the sky");
        assert_every_frontend_has_all_its_slots(history);
        history.iter().for_each(|state| assert_no_address_comes_before_its_frontends(state));
    });
}

#[test]
fn s31_a_refused_transaction_changes_nothing_and_the_next_try_carries_it_out() {
    block_on(async {
        let mut services = Services::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        services.replace(&many_rows(1)).await.unwrap();
        let before = services.nft_mut().history.last().cloned();
        services.nft_mut().failures = 1;
        assert!(services.replace(&many_rows(2)).await.is_err());
        assert_eq!(services.nft_mut().history.last().cloned(), before);
        services.replace(&many_rows(2)).await.unwrap();
        assert_eq!(services.replace(&many_rows(2)).await.unwrap(), 0);
    });
}

#[test]
fn s31_a_mirror_that_is_wrong_is_mended_by_observing() {
    block_on(async {
        let mut services = Services::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        services.replace(&many_rows(2)).await.unwrap();
        for family in ["ip", "ip6"] {
            services.nft_mut().load(&format!("delete table {family} podway")).await.unwrap();
        }
        assert!(services.replace(&many_rows(3)).await.is_err());
        services.nft_mut().blindness = 1;
        assert!(
            services.replace(&many_rows(3)).await.is_err(),
            "nothing is written on a picture that may be wrong"
        );
        assert_eq!(services.replace(&many_rows(3)).await.unwrap(), 12);
    });
}

#[test]
fn s31_the_networks_table_is_made_again_after_somebody_flushed_it() {
    block_on(async {
        let rows = |network: &str| NetworkRows {
            pod_networks: vec!["10.77.0.0/16".parse().unwrap()],
            own_subnets: vec![network.parse().unwrap()],
            ..NetworkRows::default()
        };
        let mut network = Network::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        network.replace(&rows("10.77.3.0/24")).await.unwrap();
        network.nft_mut().load("delete table inet podway-network").await.unwrap();
        assert!(network.replace(&rows("10.77.4.0/24")).await.is_err());
        assert_eq!(network.replace(&rows("10.77.4.0/24")).await.unwrap(), 2);
    });
}

#[test]
fn n13_what_stands_no_more_is_made_again_by_one_transaction_after_a_doubt() {
    block_on(async {
        let rows = NetworkRows {
            pod_networks: vec!["10.77.0.0/16".parse().unwrap()],
            own_subnets: vec!["10.77.3.0/24".parse().unwrap()],
            ..NetworkRows::default()
        };
        let mut network = Network::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        network.replace(&rows).await.unwrap();
        for (damage, written) in [
            ("delete table inet podway-network", 2),
            ("delete element inet podway-network own-subnets-4 { 10.77.3.0/24 }", 1),
            ("flush chain inet podway-network postrouting-4", 1),
            ("delete chain inet podway-network postrouting", 1),
            ("add rule inet podway-network postrouting drop", 1),
        ] {
            network.nft_mut().load(damage).await.unwrap();
            let before = network.nft_mut().history.len();
            network.invalidate();
            assert_eq!(network.replace(&rows).await.unwrap(), written, "{damage}");
            assert_eq!(network.nft_mut().history.len(), before + 1, "{damage}");
            network.invalidate();
            assert_eq!(network.replace(&rows).await.unwrap(), 0, "{damage}");
        }
    });
}

#[test]
fn n10_another_choice_of_ports_is_one_transaction() {
    block_on(async {
        let rows = |ports| NetworkRows {
            pod_networks: vec!["10.77.0.0/16".parse().unwrap()],
            non_masquerade: vec!["192.0.2.0/24".parse().unwrap()],
            ports,
            ..NetworkRows::default()
        };
        let mut network = Network::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        assert_eq!(network.replace(&rows(Ports::Random)).await.unwrap(), 2);
        assert_eq!(network.replace(&rows(Ports::Kept)).await.unwrap(), 2);
        assert_eq!(network.nft_mut().history.len(), 2);
        assert_eq!(network.replace(&rows(Ports::Kept)).await.unwrap(), 0);
    });
}

#[test]
fn n10_the_networks_sets_follow_and_overlaps_are_merged() {
    block_on(async {
        let rows = NetworkRows {
            pod_networks: vec!["10.77.0.0/16".parse().unwrap(), "10.77.3.0/24".parse().unwrap()],
            own_subnets: vec!["10.77.3.0/24".parse().unwrap(), "fd77::/64".parse().unwrap()],
            ..NetworkRows::default()
        };
        let mut network = Network::adopt(FakeNft::default(), DEFAULT_MARK).await.unwrap();
        assert_eq!(network.replace(&rows).await.unwrap(), 3);
        assert_eq!(network.replace(&rows).await.unwrap(), 0);
    });
}

/// The law of the transactions: a packet that finds a frontend finds the slot that it draws, even if a transaction comes
/// between the two look-ups.
fn assert_every_frontend_has_all_its_slots(history: &[Vec<[String; 4]>]) {
    let nothing = Vec::new();
    for (at, state) in history.iter().enumerate() {
        for later in [state, history.get(at + 1).unwrap_or(&nothing)] {
            if !later.is_empty() {
                assert_slots(state, later);
            }
        }
    }
}

/// Every slot that `frontends` count on is in `slots`.
fn assert_slots(frontends: &[[String; 4]], slots: &[[String; 4]]) {
    let slots: BTreeSet<(String, String)> = slots
        .iter()
        .filter(|[_, set, ..]| set.ends_with("-endpoints"))
        .map(|[table, set, key, _]| (format!("{table} {}", set.trim_end_matches("-endpoints")), key.clone()))
        .collect();
    for [table, _, key, value] in frontends.iter().filter(|[_, set, ..]| set == "service-ips") {
        let count: u32 = value.trim_end_matches("\"}}").rsplit_once('-').unwrap().1.parse().unwrap();
        for slot in 0..count {
            // {"concat":["10.96.0.1","tcp",80]} has its slots at {"concat":["10.96.0.1",80,0]} and so on.
            let [address, protocol, port] = parts_of(key);
            let slot_key = format!("{{\"concat\":[\"{address}\",{port},{slot}]}}");
            assert!(
                slots.contains(&(format!("{table} {protocol}"), slot_key)),
                "{key} lacks slot {slot} of {count}"
            );
        }
    }
}

/// No address refuses everything else before what it serves is there.
fn assert_no_address_comes_before_its_frontends(state: &[[String; 4]]) {
    let frontends = state.iter().filter(|[_, set, ..]| set == "service-ips" || set == "no-endpoints");
    let served: BTreeSet<String> = frontends.map(|[_, _, key, _]| parts_of(key)[0].clone()).collect();
    for [_, _, key, _] in state.iter().filter(|[_, set, ..]| set == "cluster-ips") {
        assert!(
            served.contains(key.trim_matches('"')),
            "{key} is refused although nothing of it is served yet"
        );
    }
}

fn parts_of(key: &str) -> [String; 3] {
    let parts = key.trim_start_matches("{\"concat\":[").trim_end_matches("]}").split(',');
    let parts: Vec<String> = parts.map(|part| part.trim_matches('"').to_owned()).collect();
    parts.try_into().unwrap()
}

fn rows() -> impl Strategy<Value = Rows> {
    let address = (any::<bool>(), 0u8..4).prop_map(|(v6, host)| match v6 {
        true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]),
        false => IpAddr::from([10, 96, 0, host]),
    });
    let frontend = (address, any::<bool>()).prop_map(|(address, udp)| Frontend {
        address,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        port: 80,
    });
    let pool = prop_oneof![
        Just(Pool::Reject),
        Just(Pool::Drop),
        (prop::collection::btree_set(0u8..9, 1..6), any::<bool>()).prop_map(|(hosts, pods)| Pool::Balance {
            targets: hosts.into_iter().map(|host| SocketAddr::from(([10, 1, 0, host], 8080))).collect(),
            masquerade: if pods { Masquerade::UnlessPod } else { Masquerade::Never },
        }),
    ];
    let hairpin = (0u8..4).prop_map(|host| Hairpin {
        address: [10, 1, 0, host].into(),
        protocol: Protocol::Tcp,
        port: 8080,
    });
    (
        prop::collection::btree_map(frontend, pool, 0..8),
        prop::collection::btree_map(hairpin, Just(()), 0..3),
        prop::collection::btree_map(
            (0u8..4).prop_map(|host| IpAddr::from([10, 96, 0, host])),
            Just(()),
            0..3,
        ),
    )
        .prop_map(|(frontends, hairpins, cluster_ips)| Rows {
            frontends,
            hairpins,
            cluster_ips,
            pod_networks: BTreeMap::from([("10.1.0.0/16".parse().unwrap(), ())]),
        })
}

fn many_rows(services: u16) -> Rows {
    let mut rows = Rows::default();
    for n in 0..services {
        let [high, low] = n.to_be_bytes();
        let address = IpAddr::from([10, 96, high, low]);
        let target = |host| SocketAddr::from(([10, high, low, host], 8080));
        let pool = Pool::Balance { targets: vec![target(1), target(2)], masquerade: Masquerade::Never };
        rows.frontends.insert(Frontend { address, protocol: Protocol::Tcp, port: 80 }, pool);
        rows.cluster_ips.insert(address, ());
    }
    rows
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
