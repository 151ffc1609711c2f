//! What the daemon answers to the commands that ask it. The shapes are those of `-o json`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::board::{Fault, Own, State};
use super::health::Health;

/// The answer to `podway status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub node: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub healthy: bool,
    pub ready: bool,
    /// What keeps it from being well, or ready.
    pub why: Vec<String>,
    pub halves: BTreeMap<String, HalfStatus>,
    pub own: Own,
    pub peers: usize,
    /// Those of them that stand.
    pub programmed_peers: usize,
    pub problems: Vec<Fault>,
    /// Entries that somebody else had changed and that were set right, by kind.
    pub repairs: BTreeMap<String, u64>,
}

/// How far a half has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HalfStatus {
    pub listed: bool,
    pub programmed_seconds_ago: Option<u64>,
    pub took_milliseconds: Option<f64>,
    pub error: Option<String>,
    pub failing_for_seconds: Option<u64>,
    pub attempts: u64,
}

/// One line of `podway nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeStatus {
    pub name: String,
    pub subnets: Vec<IpNet>,
    /// vxlan, direct or host-gw; of this node: local.
    pub backend: String,
    pub underlay: Vec<IpAddr>,
    pub macs: Vec<String>,
    pub mtu: Option<u32>,
    /// How long ago what stands was written; `null` if nothing stands.
    pub programmed_seconds_ago: Option<u64>,
    pub error: Option<String>,
}

impl Status {
    pub(crate) fn of(state: &State, now: Instant) -> Self {
        let Health { healthy, ready, why, .. } = Health::of(state, now);
        let age = |then: Instant| now.duration_since(then).as_secs();
        let half = |(half, progress): (&super::board::Half, &super::board::Progress)| {
            let failing = progress.failing.as_ref();
            let status = HalfStatus {
                listed: progress.listed,
                programmed_seconds_ago: progress.last.map(|(then, _)| age(then)),
                took_milliseconds: progress.last.map(|(_, took)| took.as_secs_f64() * 1e3),
                error: failing.map(|failing| failing.error.clone()),
                failing_for_seconds: failing.map(|failing| age(failing.since)),
                attempts: failing.map_or(0, |failing| failing.attempts),
            };
            (half.name().to_owned(), status)
        };
        Self {
            node: state.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: age(state.started),
            healthy,
            ready,
            why,
            halves: state.halves.iter().map(half).collect(),
            own: state.own.clone(),
            peers: state.peers.len(),
            programmed_peers: state.peers.values().filter(|peer| peer.programmed.is_some()).count(),
            problems: state.faults.iter().cloned().collect(),
            repairs: state.repairs.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        }
    }
}

impl NodeStatus {
    /// This node first, then the others by name.
    pub(crate) fn all(state: &State, now: Instant) -> Vec<Self> {
        let age = |then: Instant| now.duration_since(then).as_secs();
        let network = state.halves.get(&super::board::Half::Network);
        let own = Self {
            name: state.node.clone(),
            subnets: state.own.subnets.clone(),
            backend: "local".to_owned(),
            underlay: state.own.addresses.clone(),
            macs: Vec::new(),
            mtu: state.own.mtu,
            programmed_seconds_ago: network.and_then(|half| half.first).map(age),
            error: network.and_then(|half| half.failing.as_ref()).map(|failing| failing.error.clone()),
        };
        let peers = state.peers.iter().map(|(name, peer)| Self {
            name: name.to_string(),
            subnets: peer.facts.subnets.clone(),
            backend: peer.facts.backend.to_owned(),
            underlay: peer.facts.underlay.clone(),
            macs: peer.facts.macs.iter().map(ToString::to_string).collect(),
            mtu: peer.facts.mtu,
            programmed_seconds_ago: peer.programmed.map(age),
            error: peer.error.clone(),
        });
        network.map(|_| own).into_iter().chain(peers).collect()
    }
}
