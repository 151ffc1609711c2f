//! Reaching etcd: endpoints, prefix, TLS, users, and the network configuration that stands there.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use podway_cluster::{EtcdConfig, EtcdStore, Event};
use podway_suites::SOON;
use podway_testkit::{eventually, in_lab};
use tokio::sync::mpsc;

use crate::tenant::{PREFIX, Wish, runtime, vxlan};
use crate::{WIDE, single_lease};

#[test]
fn n3_the_prefix_is_configurable_and_an_endpoint_that_is_dead_is_passed_over() {
    in_lab("etcd-prefix", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let endpoints = vec!["http://127.0.0.1:4001".to_owned(), etcd.url()];
        let prefix = "/atomic.io/network/".to_owned();
        let config = EtcdConfig { endpoints, prefix, ..EtcdConfig::default() };
        let tenant = Wish { config, ..Wish::at(&etcd, WIDE, 11) }.before("10.77.7.0-24").start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.7.0/24"]);
        assert_eq!(etcd.keys("/")?.len(), 1);
        assert!(etcd.get("/atomic.io/network/subnets/10.77.7.0-24")?.is_some());
        Ok(())
    });
}

#[test]
fn n3_tls_with_a_client_certificate() {
    in_lab("etcd-tls", |lab| {
        let (etcd, node) = (lab.etcd_with_tls()?, lab.outside("node-1")?);
        let tls = etcd.tls().context("TLS")?.clone();
        let wish = Wish::at(&etcd, WIDE, 11).before("10.77.7.0-24");
        let with = |cert: bool| EtcdConfig {
            ca_file: tls.ca.clone(),
            cert_file: if cert { tls.cert.clone() } else { "".into() },
            key_file: if cert { tls.key.clone() } else { "".into() },
            ..wish.config.clone()
        };
        let refused = Wish { config: with(false), ..wish.clone() }.start(&node)?;
        refused.await_problem(&etcd.url());
        assert_eq!(refused.seen().synced, 0);
        let tenant = Wish { config: with(true), ..wish.clone() }.start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.7.0/24"]);
        // Without the authority, etcd is not trusted.
        let other = EtcdConfig { ca_file: tls.cert.clone(), ..with(true) };
        let distrustful = Wish { config: other, ..wish.clone() }.start(&node)?;
        distrustful.await_problem("certificate");

        let garbage = node.folder()?.join("garbage.pem");
        fs::write(&garbage, "garbage")?;
        for (config, named) in [
            (EtcdConfig { key_file: "".into(), ..with(true) }, "etcd.keyFile"),
            (EtcdConfig { cert_file: "".into(), ..with(true) }, "etcd.certFile"),
            (EtcdConfig { cert_file: garbage.clone(), ..with(true) }, "etcd.certFile"),
            (EtcdConfig { ca_file: "/nowhere.pem".into(), ..with(true) }, "etcd.caFile: /nowhere.pem"),
            (EtcdConfig { endpoints: vec!["ftp://192.0.2.3".to_owned()], ..with(true) }, "etcd.endpoints"),
            (EtcdConfig { endpoints: vec![], ..with(true) }, "etcd.endpoints"),
            (EtcdConfig { renew_margin: 0, ..with(true) }, "etcd.renewMargin"),
        ] {
            let error = runtime()?.block_on(EtcdStore::open(&config)).err().context(named)?.to_string();
            assert!(error.contains(named), "{error}");
        }
        Ok(())
    });
}

#[test]
fn n3_user_and_password_also_after_etcd_has_forgotten_who_we_are() {
    in_lab("etcd-auth", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let wish = Wish::at(&etcd, WIDE, 11).before("10.77.7.0-24");
        let user = |password: &str| EtcdConfig {
            username: "flannel".to_owned(),
            password: password.to_owned(),
            ..wish.config.clone()
        };
        let tenant = Wish { config: user("secret"), ..wish.clone() }.start(&node)?;
        assert_eq!(tenant.subnets(), ["10.77.7.0/24"], "before etcd asks for a password");
        etcd.require_password("flannel", "secret", PREFIX)?;
        tenant.attributes.send_replace(vxlan(12));
        eventually(SOON, "the new address", || match single_lease(&etcd) {
            Ok(key) if key.value == vxlan(12).render() => Ok(()),
            seen => Err(format!("{seen:?}")),
        });
        let refused = Wish { config: user("wrong"), ..Wish::at(&etcd, WIDE, 13) }.start(&node)?;
        refused.await_problem("invalid user ID or password");
        // Its tokens are gone with it.
        etcd.stop()?;
        etcd.start()?;
        let root = Wish::at(&etcd, WIDE, 14);
        let root = Wish { config: user("secret"), ..root }.start(&node)?;
        root.subnets();
        tenant.await_seen("the new peer", |seen| seen.peers().len() == 1);
        Ok(())
    });
}

#[test]
fn n3_the_network_configuration_is_waited_for_and_each_fault_is_told_once() {
    in_lab("etcd-config", |lab| {
        let (etcd, node) = (lab.etcd()?, lab.outside("node-1")?);
        let config = EtcdConfig { endpoints: vec![etcd.url()], ..EtcdConfig::default() };
        let key = format!("{PREFIX}/config");
        let (problems, net_conf) = node.enter(|| {
            runtime()?.block_on(async {
                let store = EtcdStore::open(&config).await?;
                let (events, mut receiver) = mpsc::channel(16);
                let mend = async {
                    let mut problems = Vec::new();
                    for next in ["{", r#"{"Network":"10.77.0.0/16","SubnetLen":31}"#, WIDE] {
                        let Some(Event::Problem(problem)) = receiver.recv().await else {
                            anyhow::bail!("not a problem");
                        };
                        problems.push(problem.to_string());
                        tokio::time::sleep(Duration::from_millis(1500)).await;
                        etcd.put(&key, next)?;
                    }
                    Ok(problems)
                };
                let (net_conf, problems) = tokio::join!(store.net_conf(&events), mend);
                anyhow::Ok((problems?, net_conf))
            })
        })??;
        for (problem, words) in problems.iter().zip(["there is no such key", "EOF", "SubnetLen"]) {
            assert!(problem.contains(words) && problem.contains("/coreos.com/network/config"), "{problem}");
        }
        assert_eq!(
            net_conf.ranges()?.v4.map(|range| range.network().to_string()).as_deref(),
            Some("10.77.0.0/16")
        );
        Ok(())
    });
}
