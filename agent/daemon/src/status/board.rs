//! Where the halves write down how they are, and whoever asks reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podway_overlay::Mac;
use serde::{Deserialize, Serialize};

use super::health::Health;
use super::metrics::Metrics;

/// Shared by the halves and the servers; each note takes a moment and waits for nothing.
#[derive(Clone)]
pub(crate) struct Board {
    state: Arc<Mutex<State>>,
    metrics: Arc<Metrics>,
}

/// A half of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Half {
    /// The pod network.
    Network,
    /// The Services.
    Services,
}

/// All that was written down.
pub(crate) struct State {
    pub node: String,
    pub started: Instant,
    pub halves: BTreeMap<Half, Progress>,
    pub own: Own,
    pub peers: BTreeMap<Arc<str>, Peer>,
    pub faults: BTreeSet<Fault>,
    /// Servers that do not answer.
    pub lost: BTreeMap<String, Lost>,
    pub repairs: BTreeMap<&'static str, u64>,
}

/// How far a half has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Whether what there is to program was listed as a whole.
    pub listed: bool,
    /// When it was first programmed as a whole.
    pub first: Option<Instant>,
    /// When it was last programmed as a whole, and how long that took.
    pub last: Option<(Instant, Duration)>,
    pub failing: Option<Failing>,
    /// Since when it has been at an attempt.
    pub busy_since: Option<Instant>,
}

/// A failure that goes on.
#[derive(Debug, Clone)]
pub(crate) struct Failing {
    pub since: Instant,
    pub error: String,
    pub attempts: u64,
}

/// A server that does not answer.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub since: Instant,
    pub why: String,
}

/// This node's part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Own {
    /// The interface that reaches the other nodes.
    pub interface: Option<String>,
    /// The addresses that they send to.
    pub addresses: Vec<IpAddr>,
    /// The pods' MTU.
    pub mtu: Option<u32>,
    pub subnets: Vec<IpNet>,
    /// Where subnets are kept: kube, etcd or static.
    pub store: String,
}

/// Another node, as it stands in the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    pub facts: Facts,
    /// When what stands was written; `None` if nothing stands.
    pub programmed: Option<Instant>,
    /// Why what should stand does not.
    pub error: Option<String>,
}

/// What is programmed for a peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    pub subnets: Vec<IpNet>,
    /// vxlan, direct or host-gw.
    pub backend: &'static str,
    pub underlay: Vec<IpAddr>,
    /// VTEP MACs; none without VXLAN.
    pub macs: Vec<Mac>,
    pub mtu: Option<u32>,
}

/// What stands in the way of some part, until somebody changes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// One word: `SubnetTaken`.
    pub reason: String,
    /// What it concerns: `Node node-2`.
    pub object: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Board {
    /// Of this node, before anything is known.
    pub(crate) fn new(node: &str) -> Self {
        let state = State {
            node: node.to_owned(),
            started: Instant::now(),
            halves: BTreeMap::new(),
            own: Own::default(),
            peers: BTreeMap::new(),
            faults: BTreeSet::new(),
            lost: BTreeMap::new(),
            repairs: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), metrics: Arc::new(Metrics::new()) }
    }

    /// The half is switched on.
    pub(crate) fn expect(&self, half: Half) {
        self.state().halves.entry(half).or_default();
    }

    /// The half knows all that there is to program.
    pub(crate) fn listed(&self, half: Half, completely: bool) {
        self.progress(half, |progress| progress.listed = completely);
    }

    /// The half is at an attempt until what is returned is dropped.
    pub(crate) fn busy(&self, half: Half) -> Busy {
        self.progress(half, |progress| progress.busy_since = Some(Instant::now()));
        Busy { board: self.clone(), half }
    }

    /// Everything that the half wants stands in the kernel; the last change took so long.
    pub(crate) fn programmed(&self, half: Half, took: Duration) {
        let now = Instant::now();
        self.metrics.programmed(half, took);
        self.progress(half, |progress| {
            progress.first.get_or_insert(now);
            progress.last = Some((now, took));
            progress.failing = None;
        });
    }

    /// Nothing fails, and yet there is nothing to program.
    pub(crate) fn waits(&self, half: Half) {
        self.progress(half, |progress| progress.failing = None);
    }

    /// Something that the half wants does not stand. `operation` is one of a few words, such as `program`.
    pub(crate) fn failed(&self, half: Half, operation: &'static str, error: &str) {
        self.metrics.failed(half, operation);
        self.progress(half, |progress| {
            let new = Failing { since: Instant::now(), error: String::new(), attempts: 0 };
            let failing = progress.failing.get_or_insert(new);
            failing.error = error.to_owned();
            failing.attempts += 1;
        });
    }

    /// What this node contributes has been found out.
    pub(crate) fn own(&self, own: Own) {
        self.state().own = own;
    }

    /// The peer's entries were written, or found as they should be. One that stays as it was keeps its age.
    pub(crate) fn peer_programmed(&self, name: &Arc<str>, facts: Facts) {
        let mut state = self.state();
        let peer = state.peers.entry(name.clone()).or_default();
        peer.error = None;
        if peer.programmed.is_none() || peer.facts != facts {
            peer.programmed = Some(Instant::now());
            peer.facts = facts;
        }
    }

    /// Something of the peer's could not be written.
    pub(crate) fn peer_failed(&self, name: &Arc<str>, error: &str) {
        self.state().peers.entry(name.clone()).or_default().error = Some(error.to_owned());
    }

    /// Nothing is to lead to the peer.
    pub(crate) fn peer_left_out(&self, name: &Arc<str>, why: &str) {
        let peer = Peer { error: Some(why.to_owned()), ..Peer::default() };
        self.state().peers.insert(name.clone(), peer);
    }

    /// All peers but these are gone.
    pub(crate) fn keep_peers(&self, keep: impl Fn(&str) -> bool) {
        self.state().peers.retain(|name, _| keep(name));
    }

    /// The peer's entries were removed.
    pub(crate) fn peer_gone(&self, name: &str) {
        self.state().peers.remove(name);
    }

    /// All that stands in the way now.
    pub(crate) fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults = faults.into_iter().collect();
    }

    /// A server such as `etcd` was lost, and why, or answers again.
    pub(crate) fn contact(&self, server: String, lost: Option<String>) {
        let lost = lost.map(|why| Lost { since: Instant::now(), why });
        let mut state = self.state();
        match lost {
            Some(lost) => drop(state.lost.insert(server, lost)),
            None => drop(state.lost.remove(&server)),
        }
    }

    /// So many of the half's entries of a kind that somebody else had changed were set right.
    pub(crate) fn repaired(&self, half: Half, kind: &'static str, count: u64) {
        *self.state().repairs.entry(kind).or_default() += count;
        self.metrics.repaired(half, kind, count);
    }

    pub(crate) fn health(&self) -> Health {
        Health::of(&self.state(), Instant::now())
    }

    /// All numbers as OpenMetrics text.
    pub(crate) fn metrics(&self) -> String {
        self.metrics.render(&self.state(), Instant::now())
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, half: Half, change: impl FnOnce(&mut Progress)) {
        change(self.state().halves.entry(half).or_default());
    }
}

/// An attempt that is under way.
pub(crate) struct Busy {
    board: Board,
    half: Half,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.board.progress(self.half, |progress| progress.busy_since = None);
    }
}

impl Half {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Services => "services",
        }
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(underlay: &str) -> Facts {
        Facts { underlay: vec![underlay.parse().unwrap()], backend: "vxlan", ..Facts::default() }
    }

    #[test]
    fn n12_a_peers_age_is_that_of_its_last_change() {
        let board = Board::new("node-1");
        let name: Arc<str> = "node-2".into();
        board.peer_programmed(&name, facts("192.0.2.2"));
        let first = board.state().peers[&name].programmed.unwrap();
        board.peer_failed(&name, "No buffer space available");
        assert!(board.state().peers[&name].error.is_some());
        board.peer_programmed(&name, facts("192.0.2.2"));
        assert_eq!(board.state().peers[&name].programmed, Some(first), "found as it should be");
        assert_eq!(board.state().peers[&name].error, None);
        std::thread::sleep(Duration::from_millis(1));
        board.peer_programmed(&name, facts("192.0.2.3"));
        assert!(board.state().peers[&name].programmed > Some(first), "moved");
        board.peer_gone("node-2");
        assert!(board.state().peers.is_empty());
    }

    #[test]
    fn a_failure_lasts_from_its_first_attempt_until_success() {
        let board = Board::new("node-1");
        board.failed(Half::Network, "program", "first");
        let since = board.state().halves[&Half::Network].failing.clone().unwrap().since;
        board.failed(Half::Network, "program", "second");
        let failing = board.state().halves[&Half::Network].failing.clone().unwrap();
        assert_eq!((failing.since, failing.error.as_str(), failing.attempts), (since, "second", 2));
        assert!(!board.health().ready);
        board.programmed(Half::Network, Duration::from_millis(3));
        assert!(board.state().halves[&Half::Network].failing.is_none());
        assert!(board.health().ready);
    }
}
