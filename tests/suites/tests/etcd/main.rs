//! Node subnets in a real etcd: flannel's keys and leases, beside the real flanneld, and what podway does better
//! (contract N3).

mod connection;
mod lost_answer;
mod tenant;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use podway_cluster::{EtcdConfig, EtcdStore, Event};
use podway_overlay::{Family, Lease, LeaseAttributes, PerFamily, Vni};
use podway_suites::SOON;
use podway_testkit::{Etcd, EtcdKey, Node, Process, eventually, in_lab, reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use lost_answer::Proxy;
use tenant::{PREFIX, SELF, Wish, leases, path, runtime, subnets, vxlan};

/// 255 subnets.
const WIDE: &str = r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Three subnets: 10.77.1.0/24 to 10.77.3.0/24.
const NARROW: &str = r#"{"Network":"10.77.0.0/22","Backend":{"Type":"vxlan"}}"#;

const DUAL: &str =
    r#"{"Network":"10.77.0.0/16","IPv6Network":"fd77::/48","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#;

#[test]
fn n3_what_flanneld_wrote_is_taken_over_and_written_byte_for_byte() {
    for (lab, net_conf) in [
        ("etcd-bytes-vxlan", WIDE),
        ("etcd-bytes-dual", DUAL),
        ("etcd-bytes-gw", r#"{"Network":"10.77.0.0/16","Backend":{"Type":"host-gw"}}"#),
    ] {
        in_lab(lab, |lab| {
            let etcd = lab.etcd()?;
            etcd.put(&format!("{PREFIX}/config"), net_conf)?;
            let node = lab.node("node-1")?;
            let theirs = {
                let flanneld = flanneld(&etcd, &node)?;
                flanneld.wait_for_log("Running backend.", 2 * SOON)?;
                // With host-gw it does not stop when it is asked to.
                flanneld.kill9()?;
                single_lease(&etcd)?
            };
            // What a daemon knows of its own node, made from parts: not flanneld's text.
            let parsed: Value = serde_json::from_str(&theirs.value)?;
            let mut wish = Wish::at(&etcd, net_conf, 11);
            wish.attributes = own_attributes(&parsed, &node)?;
            let tenant = wish.start(&node)?;
            let key = theirs.key.strip_prefix(&path("")).context("a key below subnets")?;
            tenant.await_subnets(key);

            let ours = single_lease(&etcd)?;
            assert_eq!((&ours.key, &ours.value), (&theirs.key, &theirs.value));
            assert_ne!(ours.lease, theirs.lease, "each start takes a new lease");
            assert_eq!(etcd.granted_seconds(ours.lease)?, etcd.granted_seconds(theirs.lease)?);
            // And another one that podway makes by itself is such a key, too.
            let another = Wish { attributes: vxlan(99), ..wish }.start(&node)?;
            another.subnets();
            assert_eq!(leases(&etcd)?.len(), 2);
            assert!(etcd.keys(&path("10.77."))?.iter().all(|found| {
                found.key.contains('&') == key.contains('&')
                    && etcd.granted_seconds(found.lease).unwrap() == 86_400
            }));
            // A flanneld that starts over finds the lease to be its own.
            tenant.stop()?;
            let flanneld = flanneld(&etcd, &node)?;
            flanneld.wait_for_log("for current IP (192.0.2.11), reusing", 2 * SOON)?;
            flanneld.wait_for_log("Running backend.", 2 * SOON)?;
            assert_eq!(etcd.get(&theirs.key)?.context("the lease")?.value, theirs.value);
            Ok(())
        });
    }
}

#[test]
fn n3_the_lease_with_our_address_is_reused_then_the_previous_subnet_then_a_new_one() {
    in_lab("etcd-order", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let wish = Wish::at(&etcd, WIDE, 11).before("10.77.9.0-24");
        etcd.put_leased(&path("10.77.5.0-24"), &vxlan(11).render(), 300)?;
        etcd.put_leased(&path("10.77.6.0-24"), &vxlan(12).render(), 300)?;
        let tenant = wish.start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.5.0/24"]);
        tenant.await_peers(&["10.77.6.0-24"]);
        tenant.stop()?;

        etcd.delete(&path("10.77.5.0-24"))?;
        let tenant = wish.start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.9.0/24"]);
        tenant.stop()?;

        etcd.put_leased(&path("10.77.9.0-24"), &vxlan(13).render(), 300)?;
        let tenant = wish.start(&node)?;
        let new = tenant.subnets();
        assert_ne!(new, ["10.77.9.0/24"]);
        tenant.await_peers(&["10.77.6.0-24", "10.77.9.0-24"]);
        tenant.stop()?;

        // Ours, yet not of the configured length: deleted, and another one taken.
        let smaller = r#"{"Network":"10.77.0.0/16","SubnetLen":26}"#;
        let tenant = Wish { net_conf: smaller.to_owned(), ..wish }.start(&node)?;
        assert!(tenant.subnets()[0].ends_with("/26"));
        assert_eq!(leases(&etcd)?.len(), 3);
        Ok(())
    });
}

#[test]
fn n3_a_reservation_is_used_and_stays_without_lease() {
    in_lab("etcd-reserve", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        etcd.put(&path("10.77.42.0-24"), r#"{"PublicIP":"192.0.2.11"}"#)?;
        etcd.put(&path("10.77.43.0-24"), r#"{"PublicIP":"192.0.2.12"}"#)?;
        let wish = Wish { margin: Duration::from_secs(86_399), ..Wish::at(&etcd, WIDE, 11) };
        let tenant = wish.start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.42.0/24"]);
        let key = etcd.get(&path("10.77.42.0-24"))?.context("the reservation")?;
        assert_eq!((key.lease, key.value), (0, vxlan(11).render()));
        tenant
            .attributes
            .send_replace(LeaseAttributes { public_ip: "192.0.2.111".parse().ok(), ..vxlan(11) });
        let lease = eventually(SOON, "the new address", || {
            let key = etcd.get(&path("10.77.42.0-24"))?.context("the reservation")?;
            match key.value.contains("192.0.2.111") {
                true => Ok(key.lease),
                false => Err(anyhow::anyhow!("{key:?}")),
            }
        });
        assert_eq!((lease, etcd.leases()?), (0, Vec::<i64>::new()), "no lease was ever needed");
        // A reservation that no node has taken is no peer and no problem.
        let seen = tenant.seen();
        assert_eq!((seen.peers(), &seen.problems), (vec![], &vec![]));
        Ok(())
    });
}

#[test]
fn n3_fifty_nodes_that_join_at_once_get_fifty_subnets() {
    for (lab, net_conf) in [("etcd-race-v4", WIDE), ("etcd-race-dual", DUAL)] {
        in_lab(lab, |lab| {
            let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
            let wishes: Vec<Wish> = (100..150).map(|number| Wish::at(&etcd, net_conf, number)).collect();
            let nodes = node.enter(|| {
                runtime()?.block_on(async {
                    join_all(wishes.iter().map(first_node)).await.into_iter().collect::<Result<Vec<_>>>()
                })
            })??;

            for family in Family::BOTH.into_iter().take(nodes[0].pod_cidrs.len()) {
                let subnets: BTreeSet<_> = nodes
                    .iter()
                    .flat_map(|node| &node.pod_cidrs)
                    .filter(|subnet| Family::of(subnet) == family)
                    .collect();
                assert_eq!(subnets.len(), 50, "{family}");
            }
            let held = leases(&etcd)?;
            assert_eq!(held.len(), 50);
            let used: BTreeSet<i64> = held.iter().map(|key| key.lease).collect();
            assert_eq!(etcd.leases()?.into_iter().collect::<BTreeSet<_>>(), used, "no lease is left over");
            Ok(())
        });
    }
}

#[test]
fn n3_a_lease_that_is_deleted_or_runs_out_is_regained_and_one_that_is_taken_replaced() {
    in_lab("etcd-lost", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let tenant = Wish::at(&etcd, WIDE, 11).before("10.77.7.0-24").start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.7.0/24"]);
        let own = path("10.77.7.0-24");
        let regained = |than: i64| {
            eventually(SOON, "the lease again", || match etcd.get(&own) {
                Ok(Some(key)) if key.lease != than && key.value == vxlan(11).render() => Ok(key.lease),
                seen => Err(format!("{seen:?}")),
            })
        };
        let first = regained(0);
        etcd.delete(&own)?;
        let second = regained(first);
        etcd.end_lease(second)?;
        let third = regained(second);
        tenant.await_problem("it was deleted or has run out: it is acquired again");
        let told = tenant.seen().history;
        assert_eq!(told.len(), 1, "the own Node never changed: {told:?}");

        etcd.put_leased(&own, &vxlan(12).render(), 300)?;
        tenant.await_problem("node 192.0.2.12 holds it now");
        tenant.await_peers(&["10.77.7.0-24"]);
        let seen = tenant.await_seen("another subnet", |seen| {
            seen.nodes[SELF].pod_cidrs != [subnets("10.77.7.0-24").v4.unwrap()]
        });
        let held = leases(&etcd)?;
        assert_eq!(held.len(), 2, "{held:?}");
        assert!(held.iter().any(|key| key.value == vxlan(11).render() && key.lease != third));
        assert_eq!(seen.synced, 1);
        Ok(())
    });
}

#[test]
fn n3_while_etcd_is_away_what_is_known_stands_and_a_compacted_history_is_listed_again() {
    in_lab("etcd-away", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        for (key, number) in [("10.77.21.0-24", 21), ("10.77.22.0-24", 22)] {
            etcd.put(&path(key), &vxlan(number).render())?;
        }
        let tenant = Wish::at(&etcd, WIDE, 11).before("10.77.7.0-24").start(&node)?;
        tenant.subnets();
        tenant.await_peers(&["10.77.21.0-24", "10.77.22.0-24"]);
        let before = tenant.seen();
        etcd.stop()?;
        tenant.await_problem("what is known of other nodes stands");
        assert_eq!(tenant.seen().history, before.history);
        assert_eq!(tenant.seen().contacts, [("etcd".to_owned(), false)]);

        // It comes back, out of the node's reach, and much happens that nobody can look up later.
        node.ip("link set eth0 down")?;
        etcd.start()?;
        etcd.delete(&path("10.77.21.0-24"))?;
        etcd.put(&path("10.77.22.0-24"), &vxlan(222).render())?;
        etcd.put(&path("10.77.23.0-24"), &vxlan(23).render())?;
        etcd.compact()?;
        assert_eq!(tenant.seen().history, before.history);
        node.ip("link set eth0 up")?;
        tenant.await_peers(&["10.77.22.0-24", "10.77.23.0-24"]);
        let seen = tenant.seen();
        assert_eq!(seen.contacts, [("etcd".to_owned(), false), ("etcd".to_owned(), true)]);
        assert_eq!(seen.nodes["10.77.22.0-24"].addresses, [IpAddr::from([192, 0, 2, 222])]);
        assert_eq!(seen.nodes[SELF], before.nodes[SELF]);
        assert_eq!((seen.synced, leases(&etcd)?.len()), (1, 3));
        Ok(())
    });
}

#[test]
fn n3_an_etcd_that_falls_silent_is_noticed_and_one_that_lost_its_store_is_filled_again() {
    in_lab("etcd-silent", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        etcd.put(&path("10.77.21.0-24"), &vxlan(21).render())?;
        let tenant = Wish::at(&etcd, WIDE, 11).before("10.77.7.0-24").start(&node)?;
        tenant.subnets();
        let first = leases(&etcd)?;
        node.ip("link set eth0 down")?;
        tenant.await_problem("what is known of other nodes stands");
        node.ip("link set eth0 up")?;

        etcd.stop()?;
        fs::remove_dir_all(etcd.host().folder()?.join("etcd"))?;
        etcd.start()?;
        tenant.await_peers(&[]);
        let held = eventually(SOON, "the subnet in the new store", || single_lease(&etcd));
        assert_eq!((&held.key, &held.value), (&path("10.77.7.0-24"), &vxlan(11).render()));
        assert!(first.iter().any(|key| key.key == held.key));
        etcd.put(&path("10.77.22.0-24"), &vxlan(22).render())?;
        tenant.await_peers(&["10.77.22.0-24"]);
        Ok(())
    });
}

#[test]
fn n3_a_lease_is_renewed_before_its_end_and_changed_attributes_are_written_at_once() {
    in_lab("etcd-renew", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let wish = Wish { margin: Duration::from_secs(86_398), ..Wish::at(&etcd, WIDE, 11) };
        let tenant = wish.start(&node)?;
        tenant.subnets();
        let mut seen = BTreeSet::from([single_lease(&etcd)?.lease]);
        eventually(SOON, "two renewals", || {
            seen.insert(single_lease(&etcd).unwrap().lease);
            if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        eventually(SOON, "the old leases are revoked", || {
            let leases = etcd.leases().unwrap();
            if leases.len() == 1 { Ok(()) } else { Err(format!("{leases:?}")) }
        });
        tenant.attributes.send_replace(vxlan(12));
        tenant.await_seen("the new address", |seen| {
            seen.nodes[SELF].addresses == [IpAddr::from([192, 0, 2, 12])]
        });
        assert_eq!(single_lease(&etcd)?.value, vxlan(12).render());
        assert_eq!(tenant.seen().problems, Vec::<String>::new());
        Ok(())
    });
}

#[test]
fn n3_a_write_whose_answer_is_lost_takes_no_lease_from_the_key_and_is_no_contest() {
    in_lab("etcd-lost-answer", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let proxy = Proxy::start(&node, etcd.host())?;
        let witness = Wish::at(&etcd, WIDE, 12).start(&node)?;
        witness.subnets();
        // Two ways to one store, as to two members.
        let wish = Wish { margin: Duration::from_secs(86_396), ..Wish::at(&etcd, WIDE, 11) };
        let endpoints = vec![proxy.url(), etcd.url()];
        let config = EtcdConfig { endpoints, ..wish.config.clone() };
        let tenant = Wish { config, ..wish }.before("10.77.7.0-24").start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.7.0/24"]);
        witness.await_peers(&["10.77.7.0-24"]);
        let own = path("10.77.7.0-24");
        let first = etcd.get(&own)?.context("the key")?.lease;
        proxy.lose_the_next_answer();
        eventually(2 * SOON, "a renewal", || match etcd.get(&own)? {
            Some(key) if key.lease != first && proxy.lost() == 1 => Ok(()),
            seen => Err(anyhow::anyhow!("{seen:?}, {} lost", proxy.lost())),
        });
        // What would be revoked by mistake is so at once.
        std::thread::sleep(Duration::from_secs(2));
        let told = witness.seen().history;
        assert!(told.iter().all(|(_, node)| node.is_some()), "the peer never went: {told:?}");
        assert!(etcd.get(&own)?.is_some());
        Ok(())
    });
}

#[test]
fn n3_an_address_that_was_written_without_an_answer_is_known_to_be_our_own() {
    in_lab("etcd-lost-address", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let proxy = Proxy::start(&node, etcd.host())?;
        let wish = Wish::at(&etcd, WIDE, 11);
        let config = EtcdConfig { endpoints: vec![proxy.url(), etcd.url()], ..wish.config.clone() };
        let tenant = Wish { config, ..wish }.start(&node)?;
        tenant.subnets();
        proxy.lose_the_next_answer();
        tenant.attributes.send_replace(vxlan(12));
        tenant.await_seen("the new address", |seen| {
            seen.nodes[SELF].addresses == [IpAddr::from([192, 0, 2, 12])] && proxy.lost() == 1
        });
        assert_eq!(single_lease(&etcd)?.value, vxlan(12).render());
        // By then the key was looked at again.
        std::thread::sleep(Duration::from_secs(2));
        let problems = tenant.seen().problems;
        for words in ["another program", "holds it now"] {
            assert!(!problems.iter().any(|problem| problem.contains(words)), "{problems:?}");
        }
        Ok(())
    });
}

#[test]
fn n3_without_a_free_subnet_it_says_so_and_takes_the_first_that_is_freed() {
    in_lab("etcd-full", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        for number in 1..=3 {
            etcd.put(&path(&format!("10.77.{number}.0-24")), &vxlan(100 + number).render())?;
        }
        let tenant = Wish::at(&etcd, NARROW, 11).start(&node)?;
        tenant.await_problem("out of subnets");
        assert_eq!(tenant.seen().synced, 0);
        etcd.delete(&path("10.77.2.0-24"))?;
        assert_eq!(tenant.subnets(), ["10.77.2.0/24"]);
        tenant.await_peers(&["10.77.1.0-24", "10.77.3.0-24"]);
        Ok(())
    });
}

#[test]
fn n3_peers_come_change_and_go_and_what_is_no_lease_is_named() {
    in_lab("etcd-peers", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        etcd.put(&path("a-note"), "to whom it may concern")?;
        let tenant = Wish::at(&etcd, WIDE, 11).start(&node)?;
        tenant.subnets();
        tenant.await_problem("/coreos.com/network/subnets/a-note: not a subnet");
        let peer = path("10.77.21.0-24&fd77:0:0:15::-64");
        etcd.put(&peer, &vxlan(21).render())?;
        tenant.await_peers(&["10.77.21.0-24&fd77:0:0:15::-64"]);
        etcd.put(&peer, "{")?;
        tenant.await_problem("no JSON object");
        tenant.await_peers(&[]);
        etcd.put(&peer, &vxlan(22).render())?;
        let seen = tenant.await_seen("the peer again", |seen| seen.peers().len() == 1);
        let lease = Lease::parse("10.77.21.0-24&fd77:0:0:15::-64", &vxlan(22).render(), true)?;
        assert_eq!(seen.nodes["10.77.21.0-24&fd77:0:0:15::-64"], lease.node());
        etcd.delete(&peer)?;
        tenant.await_peers(&[]);
        Ok(())
    });
}

#[test]
fn n3_another_program_with_our_address_is_answered_and_told() {
    in_lab("etcd-contest", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let tenant = Wish::at(&etcd, WIDE, 11).before("10.77.7.0-24").start(&node)?;
        tenant.subnets();
        let theirs = LeaseAttributes {
            backend_data: Some(r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}"#.to_owned()),
            ..vxlan(11)
        };
        etcd.put_leased(&path("10.77.7.0-24"), &theirs.render(), 300)?;
        tenant.await_problem("another program wrote it with this node's address");
        eventually(SOON, "our own value again", || match single_lease(&etcd) {
            Ok(key) if key.value == vxlan(11).render() => Ok(()),
            seen => Err(format!("{seen:?}")),
        });
        assert_eq!(tenant.subnets(), ["10.77.7.0/24"]);
        Ok(())
    });
}

#[test]
fn n3_ipv6_alone_works() {
    in_lab("etcd-v6-only", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let net_conf = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd77::/48"}"#;
        let attributes = |number: u8| {
            let vtep = (vxlan_mac(number), format!("2001:db8::{number}").parse().unwrap());
            LeaseAttributes::vxlan(Vni::default(), &PerFamily { v4: None, v6: Some(vtep) })
        };
        let wish = |number| Wish { attributes: attributes(number), ..Wish::at(&etcd, net_conf, number) };
        let (one, two) = (wish(11).start(&node)?, wish(12).start(&node)?);
        let (first, second) = (one.subnets(), two.subnets());
        assert_ne!(first, second);
        let held = leases(&etcd)?;
        assert!(held.iter().all(|key| key.key.starts_with(&path("0.0.0.0-0&fd77:"))), "{held:?}");
        one.stop()?;
        let again = wish(11).start(&node)?;
        assert_eq!(again.subnets(), first, "known by its IPv6 address");
        Ok(())
    });
}

/// The real flanneld with its etcd store.
fn flanneld(etcd: &Etcd, node: &Node) -> Result<Process> {
    let subnet_file = node.folder()?.join("subnet.env");
    let command = node.command(reference("flanneld")?).args([
        format!("--etcd-endpoints={}", etcd.url()),
        "--iface=eth0".to_owned(),
        "--iptables-forward-rules=false".to_owned(),
        format!("--subnet-file={}", subnet_file.display()),
    ]);
    command.start("flanneld")
}

/// What a daemon on this node would publish, with the MACs that the lease has.
fn own_attributes(lease: &Value, node: &Node) -> Result<LeaseAttributes> {
    if lease["BackendType"] == json!("host-gw") {
        return Ok(LeaseAttributes::host_gw(&PerFamily { v4: Some(node.ipv4()), v6: None }));
    }
    let mac = |field: &str| lease[field]["VtepMAC"].as_str().map(str::parse).transpose();
    let (v4, v6) = (mac("BackendData")?, mac("BackendV6Data")?);
    let vteps = PerFamily { v4: v4.map(|mac| (mac, node.ipv4())), v6: v6.map(|mac| (mac, node.ipv6())) };
    Ok(LeaseAttributes::vxlan(Vni::default(), &vteps))
}

fn single_lease(etcd: &Etcd) -> Result<EtcdKey> {
    let mut held = leases(etcd)?;
    anyhow::ensure!(held.len() == 1, "{held:?}");
    held.pop().context("no lease")
}

fn vxlan_mac(number: u8) -> podway_overlay::Mac {
    podway_overlay::Mac::new([0x0e, 0, 0, 0, 0, number])
}

/// Joins, and leaves with the first word of its own Node.
async fn first_node(wish: &Wish) -> Result<podway_overlay::Node> {
    let store = EtcdStore::open(&wish.config).await?;
    let (events, mut receiver) = mpsc::channel(16);
    let (request, _attributes) = wish.request();
    let own = async {
        while let Some(event) = receiver.recv().await {
            if let Event::Node(name, Some(node)) = event
                && &*name == SELF
            {
                return Ok(node);
            }
        }
        anyhow::bail!("ended without a subnet")
    };
    tokio::select! {
        () = store.run(request, events) => anyhow::bail!("ended without a subnet"),
        node = own => node,
    }
}
