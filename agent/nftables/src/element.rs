//! The elements of the tables of Services, typed: what rows become in nftables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use podway_proxy::{Frontend, Hairpin, Pool, Protocol, RowDelta, Rows};
use podway_reconcile::{Delta, diff};

use crate::chains::Chooser;
use crate::schema::Family;

/// Which element. The order is that of loading: what is referred to comes before what refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    PodNetwork(IpNet),
    Hairpin(Hairpin),
    Endpoint(Frontend, u16),
    ServiceIp(Frontend),
    NoEndpoints(Frontend),
    ClusterIp(IpAddr),
}

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    Present,
    Choose(Chooser),
    Refuse,
    Discard,
    Target(SocketAddr),
}

pub(crate) type Elements = BTreeMap<Key, Value>;

impl Key {
    pub(crate) fn family(&self) -> Family {
        Family::of(match self {
            Self::PodNetwork(network) => network.addr(),
            Self::Hairpin(hairpin) => hairpin.address,
            Self::Endpoint(at, _) | Self::ServiceIp(at) | Self::NoEndpoints(at) => at.address,
            Self::ClusterIp(address) => *address,
        })
    }

    /// The set or map that it is in.
    pub(crate) fn set(&self) -> &'static str {
        match self {
            Self::PodNetwork(_) => "pod-networks",
            Self::Hairpin(_) => "hairpins",
            Self::Endpoint(at, _) => match at.protocol {
                Protocol::Tcp => "tcp-endpoints",
                Protocol::Udp => "udp-endpoints",
                Protocol::Sctp => "sctp-endpoints",
            },
            Self::ServiceIp(_) => "service-ips",
            Self::NoEndpoints(_) => "no-endpoints",
            Self::ClusterIp(_) => "cluster-ips",
        }
    }
}

/// Everything that `rows` become.
pub(crate) fn of_rows(rows: &Rows) -> Elements {
    let pools = rows.frontends.iter().flat_map(|(frontend, pool)| of_pool(*frontend, pool));
    pools
        .chain(rows.hairpins.keys().map(|it| (Key::Hairpin(*it), Value::Present)))
        .chain(rows.cluster_ips.keys().map(|it| (Key::ClusterIp(*it), Value::Present)))
        .chain(rows.pod_networks.keys().map(|it| (Key::PodNetwork(*it), Value::Present)))
        .collect()
}

/// What `delta` changes in `held`, element by element.
pub(crate) fn of_delta(delta: &RowDelta, held: &Elements) -> Delta<Key, Value> {
    let mut changes = Delta::default();
    for (frontend, pool) in &delta.frontends.set {
        replace_pool(*frontend, of_pool(*frontend, pool).collect(), held, &mut changes);
    }
    for frontend in &delta.frontends.remove {
        replace_pool(*frontend, Elements::new(), held, &mut changes);
    }
    presence(&delta.hairpins, Key::Hairpin, held, &mut changes);
    presence(&delta.cluster_ips, Key::ClusterIp, held, &mut changes);
    presence(&delta.pod_networks, Key::PodNetwork, held, &mut changes);
    changes
}

fn of_pool(frontend: Frontend, pool: &Pool) -> impl Iterator<Item = (Key, Value)> + '_ {
    let targets = match pool {
        Pool::Balance { targets, .. } => targets.as_slice(),
        Pool::Reject | Pool::Drop => &[],
    };
    let slots =
        (0..u16::MAX).zip(targets).map(move |(at, it)| (Key::Endpoint(frontend, at), Value::Target(*it)));
    let verdict = match pool {
        Pool::Reject => (Key::NoEndpoints(frontend), Value::Refuse),
        Pool::Drop => (Key::NoEndpoints(frontend), Value::Discard),
        Pool::Balance { targets, masquerade } => {
            let count = u16::try_from(targets.len()).unwrap_or(u16::MAX);
            (Key::ServiceIp(frontend), Value::Choose(Chooser { masquerade: *masquerade, count }))
        }
    };
    slots.chain([verdict])
}

fn replace_pool(frontend: Frontend, wanted: Elements, held: &Elements, changes: &mut Delta<Key, Value>) {
    let slots: RangeInclusive<Key> = Key::Endpoint(frontend, 0)..=Key::Endpoint(frontend, u16::MAX);
    let verdicts = [Key::ServiceIp(frontend), Key::NoEndpoints(frontend)];
    let standing: Elements = held
        .range(slots)
        .chain(verdicts.iter().filter_map(|key| held.get_key_value(key)))
        .map(|(key, value)| (*key, *value))
        .collect();
    let change = diff(&wanted, &standing);
    changes.set.extend(change.set);
    changes.remove.extend(change.remove);
}

fn presence<K: Ord + Copy>(
    delta: &Delta<K, ()>,
    key: impl Fn(K) -> Key,
    held: &Elements,
    changes: &mut Delta<Key, Value>,
) {
    let absent = delta.set.keys().map(|it| key(*it)).filter(|it| !held.contains_key(it));
    changes.set.extend(absent.map(|it| (it, Value::Present)));
    changes.remove.extend(delta.remove.iter().map(|it| key(*it)).filter(|it| held.contains_key(it)));
}
