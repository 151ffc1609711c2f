//! One node that holds a subnet in etcd, and what it tells.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use podway_cluster::{EtcdConfig, EtcdStore, Event, LeaseRequest};
use podway_overlay::{LeaseAttributes, LeaseKey, Mac, NetConf, Node, PerFamily, Vni};
use podway_suites::SOON;
use podway_testkit::{Etcd, EtcdKey, Host, eventually};
use tokio::sync::{mpsc, oneshot, watch};

/// The name that every tenant tells itself under.
pub(crate) const SELF: &str = "self";

/// flannel's default.
pub(crate) const PREFIX: &str = "/coreos.com/network";

/// What a tenant wants, before it is started.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) config: EtcdConfig,
    pub(crate) net_conf: String,
    pub(crate) previous: PerFamily<Option<IpNet>>,
    pub(crate) margin: Duration,
    pub(crate) attributes: LeaseAttributes,
}

/// A running store on a thread of its own; ends when dropped.
pub(crate) struct Tenant {
    seen: Arc<Mutex<Seen>>,
    pub(crate) attributes: watch::Sender<LeaseAttributes>,
    _stop: oneshot::Sender<()>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What was told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) history: Vec<(String, Option<Node>)>,
    pub(crate) problems: Vec<String>,
    pub(crate) synced: usize,
    /// Which server, and whether it answers.
    pub(crate) contacts: Vec<(String, bool)>,
}

impl Wish {
    /// For a plain etcd, with the subnets of `net_conf`.
    pub(crate) fn at(etcd: &Etcd, net_conf: &str, number: u8) -> Self {
        let config = EtcdConfig { endpoints: vec![etcd.url()], ..EtcdConfig::default() };
        Self {
            config,
            net_conf: net_conf.to_owned(),
            previous: PerFamily::default(),
            margin: Duration::from_secs(3600),
            attributes: vxlan(number),
        }
    }

    /// With the subnets of a previous run.
    pub(crate) fn before(mut self, key: &str) -> Self {
        self.previous = subnets(key);
        self
    }

    /// The request, and the way to change what it publishes.
    pub(crate) fn request(&self) -> (LeaseRequest, watch::Sender<LeaseAttributes>) {
        let (sender, attributes) = watch::channel(self.attributes.clone());
        let ranges = NetConf::parse(&self.net_conf).and_then(|net_conf| net_conf.ranges()).expect("ranges");
        let (node, previous, renew_margin) = (SELF.into(), self.previous, self.margin);
        (LeaseRequest { node, ranges, previous, renew_margin, attributes }, sender)
    }

    /// Starts it on a host.
    pub(crate) fn start(&self, host: &Host) -> Result<Tenant> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ((request, attributes), (stop, stopped)) = (self.request(), oneshot::channel());
        let (host, config, told) = (host.clone(), self.config.clone(), seen.clone());
        let thread = thread::spawn(move || {
            host.enter(|| runtime()?.block_on(follow(config, request, told, stopped)))?
        });
        Ok(Tenant { seen, attributes, _stop: stop, thread: Some(thread) })
    }
}

impl Tenant {
    /// What was told so far.
    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Its subnets, once it has told them.
    #[track_caller]
    pub(crate) fn subnets(&self) -> Vec<String> {
        let seen = self.await_seen("a subnet", |seen| seen.synced == 1 && seen.nodes.contains_key(SELF));
        seen.nodes[SELF].pod_cidrs.iter().map(ToString::to_string).collect()
    }

    /// Waits until what was told is as it should be.
    #[track_caller]
    pub(crate) fn await_seen(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Seen {
        // After an outage, a silent connection is noticed within 15 s.
        eventually(3 * SOON, what, || {
            let seen = self.seen();
            if is_so(&seen) { Ok(seen) } else { Err(format!("{seen:#?}")) }
        })
    }

    /// Waits for a problem with these words.
    #[track_caller]
    pub(crate) fn await_problem(&self, words: &str) {
        self.await_seen(words, |seen| seen.problems.iter().any(|problem| problem.contains(words)));
    }

    /// Waits until it tells of exactly these peers.
    #[track_caller]
    pub(crate) fn await_peers(&self, keys: &[&str]) {
        self.await_seen(&format!("peers {keys:?}"), |seen| seen.peers() == keys);
    }

    /// Waits until it holds exactly these subnets.
    #[track_caller]
    pub(crate) fn await_subnets(&self, key: &str) {
        let wanted: Vec<IpNet> = subnets(key).iter().map(|(_, subnet)| *subnet).collect();
        self.await_seen(&format!("subnets {key}"), |seen| {
            seen.nodes.get(SELF).is_some_and(|node| node.pod_cidrs == wanted)
        });
    }

    /// Ends it, as a crash would: etcd is told nothing.
    pub(crate) fn stop(mut self) -> Result<()> {
        let thread = self.thread.take().context("no thread")?;
        drop(self);
        thread.join().map_err(|_| anyhow!("the store panicked"))?
    }
}

impl Seen {
    /// The keys of the peers.
    pub(crate) fn peers(&self) -> Vec<&str> {
        self.nodes.keys().map(String::as_str).filter(|name| *name != SELF).collect()
    }
}

/// What node `number` publishes.
pub(crate) fn vxlan(number: u8) -> LeaseAttributes {
    let vtep = (Mac::new([0x0a, 0, 0, 0, 0, number]), IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)));
    LeaseAttributes::vxlan(Vni::default(), &PerFamily { v4: Some(vtep), v6: None })
}

/// The subnets that a key names.
pub(crate) fn subnets(key: &str) -> PerFamily<Option<IpNet>> {
    key.parse::<LeaseKey>().expect("a key").0
}

/// `<prefix>/subnets/KEY`.
pub(crate) fn path(key: &str) -> String {
    format!("{PREFIX}/subnets/{key}")
}

/// All leases below flannel's usual prefix.
pub(crate) fn leases(etcd: &Etcd) -> Result<Vec<EtcdKey>> {
    etcd.keys(&path(""))
}

/// A runtime for the thread it is made on.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn follow(
    config: EtcdConfig,
    request: LeaseRequest,
    told: Arc<Mutex<Seen>>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let store = EtcdStore::open(&config).await?;
    let (events, mut receiver) = mpsc::channel(16);
    let collect = async {
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                event = receiver.recv() => note(&mut lock(&told), event.context("the store ended by itself")?),
                _ = &mut stopped => break,
            }
        }
        drop(receiver);
        anyhow::Ok(())
    };
    let ((), collected) = tokio::join!(store.run(request, events), collect);
    collected
}

fn note(seen: &mut Seen, event: Event) {
    match event {
        Event::Node(name, node) => {
            match &node {
                Some(node) => seen.nodes.insert(name.to_string(), node.clone()),
                None => seen.nodes.remove(&*name),
            };
            seen.history.push((name.to_string(), node));
        }
        Event::Problem(problem) => seen.problems.push(problem.to_string()),
        Event::Synced(_) => seen.synced += 1,
        Event::Contact { server, lost } => seen.contacts.push((server, lost.is_none())),
        other => panic!("etcd has no {other:?}"),
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
