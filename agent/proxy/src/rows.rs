//! The rows that both dataplanes load: everything that varies with the cluster, typed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use podway_reconcile::{Delta, diff};

use crate::Protocol;

/// Where traffic for a Service port arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The Service's address.
    pub address: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
}

/// What happens to a new connection to a [`Frontend`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pool {
    /// One of the targets answers, each with the same probability.
    Balance {
        /// Sorted, distinct, never empty, all of the frontend's family.
        targets: Vec<SocketAddr>,
        /// Whose source address is replaced by the node's.
        masquerade: Masquerade,
    },
    /// Refused at once: no endpoint is usable anywhere (S9).
    Reject,
    /// No answer: usable endpoints exist, but none that this traffic policy allows (S6, S27).
    Drop,
}

/// Whose source address is replaced on the way to an endpoint (S15). Hairpin traffic always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Nobody's.
    Never,
    /// Everybody's but the pods'.
    UnlessPod,
    /// Everybody's.
    Always,
}

/// An endpoint on this node, which may reach itself through a Service and must then be answered through the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hairpin {
    /// The endpoint's address: source and, after translation, destination.
    pub address: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
}

/// Whole tables of rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Frontends with their verdicts and targets.
    pub frontends: BTreeMap<Frontend, Pool>,
    /// Local endpoints.
    pub hairpins: BTreeMap<Hairpin, ()>,
    /// Addresses of Services: what they do not serve is rejected (S10).
    pub cluster_ips: BTreeMap<IpAddr, ()>,
    /// The sources that are pods (detect-local).
    pub pod_networks: BTreeMap<IpNet, ()>,
}

/// A change of [`Rows`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowDelta {
    /// Of [`Rows::frontends`].
    pub frontends: Delta<Frontend, Pool>,
    /// Of [`Rows::hairpins`].
    pub hairpins: Delta<Hairpin, ()>,
    /// Of [`Rows::cluster_ips`].
    pub cluster_ips: Delta<IpAddr, ()>,
    /// Of [`Rows::pod_networks`].
    pub pod_networks: Delta<IpNet, ()>,
}

impl Rows {
    /// What is left to do so that `self` becomes `desired`.
    pub fn delta_to(&self, desired: &Rows) -> RowDelta {
        RowDelta {
            frontends: diff(&desired.frontends, &self.frontends),
            hairpins: diff(&desired.hairpins, &self.hairpins),
            cluster_ips: diff(&desired.cluster_ips, &self.cluster_ips),
            pod_networks: diff(&desired.pod_networks, &self.pod_networks),
        }
    }

    /// Carries out `delta`.
    pub fn apply(&mut self, delta: &RowDelta) {
        delta.frontends.apply(&mut self.frontends);
        delta.hairpins.apply(&mut self.hairpins);
        delta.cluster_ips.apply(&mut self.cluster_ips);
        delta.pod_networks.apply(&mut self.pod_networks);
    }
}

impl RowDelta {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of rows touched.
    pub fn len(&self) -> usize {
        self.frontends.len() + self.hairpins.len() + self.cluster_ips.len() + self.pod_networks.len()
    }

    /// Adds a later change to this one.
    pub fn merge(&mut self, later: RowDelta) {
        merge(&mut self.frontends, later.frontends);
        merge(&mut self.hairpins, later.hairpins);
        merge(&mut self.cluster_ips, later.cluster_ips);
        merge(&mut self.pod_networks, later.pod_networks);
    }
}

fn merge<K: Ord + Clone, V: Clone>(delta: &mut Delta<K, V>, later: Delta<K, V>) {
    for key in later.remove {
        delta.note(key, None);
    }
    for (key, value) in later.set {
        delta.note(key, Some(value));
    }
}
