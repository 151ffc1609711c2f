//! What the network half writes on the board.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podway_netlink::Failure;
use podway_overlay::{Mac, Op, Reason, Way};

use super::{NetworkHalf, Store};
use crate::config::NetworkConfig;
use crate::status::{self, Facts, Fault, Own};

impl NetworkHalf {
    /// After a run that concerned these peers, or all of them.
    pub(super) fn tell_peers(&self, touched: Option<Vec<Arc<str>>>, failures: &[Failure]) {
        self.board.listed(status::Half::Network, true);
        let failed = Failed::of(failures);
        let mtu = self.overlay.subnet_env(false).map(|env| env.mtu.get());
        let problems = self.overlay.problems();
        let left_out = problems.iter().map(|problem| (&*problem.node, &problem.reason)).collect();
        match touched {
            Some(names) => names.iter().for_each(|name| self.tell_peer(name, mtu, &left_out, &failed)),
            None => {
                self.board.keep_peers(|name| self.overlay.ways(name).is_some());
                self.overlay.peers().for_each(|name| self.tell_peer(name, mtu, &left_out, &failed));
            }
        }
    }

    /// This node's part, and all that stands in the way.
    pub(super) fn tell_own(&self) {
        let external = self.host.as_ref().map(|host| &host.external);
        let addresses = external.into_iter().flat_map(|external| {
            [external.v4.map(IpAddr::V4), external.v6.map(IpAddr::V6)].into_iter().flatten()
        });
        let env = self.overlay.subnet_env(false);
        self.board.own(Own {
            interface: external.map(|external| external.name.to_string()),
            addresses: addresses.collect(),
            mtu: env.as_ref().map(|env| env.mtu.get()),
            subnets: env.iter().flat_map(|env| env.subnets.iter().map(|(_, (_, own))| *own)).collect(),
            store: match self.config.network.store() {
                Store::Nodes => "nodes",
                Store::Static => "static",
                Store::Etcd => "etcd",
            }
            .to_owned(),
        });
        let problems = self.problems.iter().map(|problem| Fault {
            reason: problem.reason.name().to_owned(),
            object: format!("Node {}", problem.node),
            message: problem.reason.to_string(),
        });
        let overlaps = self.overlaps.iter().map(|overlap| Fault {
            reason: "Overlap".to_owned(),
            object: format!("Node {}", self.config.node_name),
            message: overlap.to_string(),
        });
        let of_node = |reason: &str, message: String| Fault {
            reason: reason.to_owned(),
            object: format!("Node {}", self.config.node_name),
            message,
        };
        let unassigned = self.subnets.trouble().map(|text| of_node("NoSubnetAssigned", text.to_owned()));
        let closed = self.tables.problems().iter();
        let closed = closed.map(|problem| of_node("ForwardClosed", problem.to_string()));
        self.board.faults(problems.chain(overlaps).chain(unassigned).chain(closed));
    }

    /// Entries that were set right, by kind.
    pub(super) fn tell_repairs(&self, ops: &[Op], elements: usize) {
        let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
        ops.iter().for_each(|op| *kinds.entry(kind(op)).or_default() += 1);
        if elements > 0 {
            kinds.insert("nftables", elements as u64);
        }
        kinds.into_iter().for_each(|(kind, count)| self.board.repaired(kind, count));
    }

    fn tell_peer(
        &self,
        name: &Arc<str>,
        mtu: Option<u32>,
        left_out: &BTreeMap<&str, &Reason>,
        failed: &Failed,
    ) {
        let Some(ways) = self.overlay.ways(name) else { return self.board.peer_gone(name) };
        if let Some(error) = ways.iter().find_map(|way| failed.on(way)) {
            return self.board.peer_failed(name, error);
        }
        if ways.is_empty() {
            let why = left_out.get(&**name).map_or("nothing leads to it".to_owned(), ToString::to_string);
            return self.board.peer_left_out(name, &why);
        }
        self.board.peer_programmed(name, facts(&ways, mtu, &self.config.network));
    }
}

fn facts(ways: &[&Way], mtu: Option<u32>, config: &NetworkConfig) -> Facts {
    let mut facts = Facts { mtu, ..Facts::default() };
    for way in ways {
        match way {
            Way::Vxlan { subnet, mac, underlay, .. } => {
                facts.backend = "vxlan";
                facts.subnets.push(*subnet);
                facts.underlay.push(*underlay);
                facts.macs.push(*mac);
            }
            Way::Direct { subnet, via, .. } => {
                facts.backend = match config.direct_routing {
                    true => "direct",
                    false => "host-gw",
                };
                facts.subnets.push(*subnet);
                facts.underlay.push(*via);
            }
        }
    }
    facts
}

/// What failed, by what tells whose it was.
#[derive(Default)]
struct Failed {
    routes: BTreeMap<IpNet, String>,
    neighbours: BTreeMap<IpAddr, String>,
    fdb: BTreeMap<Mac, String>,
}

impl Failed {
    fn of(failures: &[Failure]) -> Self {
        let mut failed = Self::default();
        for Failure { op, error } in failures {
            match op {
                Op::SetRoute(subnet, _) => drop(failed.routes.insert(*subnet, error.to_string())),
                Op::SetNeighbour(key, _) => drop(failed.neighbours.insert(key.address, error.to_string())),
                Op::SetFdb(key, _) => drop(failed.fdb.insert(key.mac, error.to_string())),
                _ => {}
            }
        }
        failed
    }

    fn on(&self, way: &Way) -> Option<&str> {
        let (subnet, mac) = match way {
            Way::Vxlan { subnet, mac, .. } => (subnet, Some(mac)),
            Way::Direct { subnet, .. } => (subnet, None),
        };
        let entry = mac.and_then(|mac| self.fdb.get(mac).or_else(|| self.neighbours.get(&subnet.network())));
        self.routes.get(subnet).or(entry).map(String::as_str)
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::SetRoute(..) | Op::RemoveRoute(..) => "route",
        Op::SetNeighbour(..) | Op::RemoveNeighbour(_) => "neighbour",
        Op::SetFdb(..) | Op::RemoveFdb(..) => "fdb",
        Op::AddAddress(..) | Op::RemoveAddress(..) => "address",
        Op::SetSysctl(_) => "sysctl",
        _ => "link",
    }
}
