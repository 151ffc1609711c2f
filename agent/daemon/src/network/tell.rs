//! What the network half writes on the board.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podway_cluster::SourceConfig;
use podway_netlink::Failure;
use podway_overlay::{Family, Mac, Mtu, Op, Path, Reason};

use super::{CONTENDED, NetworkHalf, Store};
use crate::config::{Config, NetworkConfig};
use crate::run::Listed;
use crate::status::{self, Facts, Fault, Own};

impl NetworkHalf {
    /// After a run that concerned these peers, or all of them.
    pub(super) fn tell_peers(&self, touched: Option<Vec<Arc<str>>>, failures: &[Failure]) {
        self.board.listed(status::Half::Network, self.listed == Listed::Fully);
        let failed = Failed::of(failures);
        let mtu = self.overlay.pod_mtu().map(Mtu::get);
        let problems = self.overlay.problems();
        let grave = problems.iter().filter(|problem| !problem.reason.is_warning());
        let left_out = grave.map(|problem| (&*problem.node, &problem.reason)).collect();
        match touched {
            Some(names) => names.iter().for_each(|name| self.tell_peer(name, mtu, &left_out, &failed)),
            None => {
                let standing: BTreeSet<&str> = self.overlay.peers().map(|name| &**name).collect();
                self.board.keep_peers(|name| standing.contains(name));
                self.overlay.peers().for_each(|name| self.tell_peer(name, mtu, &left_out, &failed));
            }
        }
    }

    /// This node's part, and all that stands in the way.
    pub(super) fn tell_own(&self) {
        let external = self.host.as_ref().map(|host| &host.external);
        let families = Family::BOTH.into_iter().filter(|family| self.settings.has(*family));
        let addresses = families.filter_map(|family| external?.address(family));
        let env = self.overlay.subnet_env(false);
        self.board.own(Own {
            interface: external.map(|external| external.name.to_string()),
            addresses: addresses.collect(),
            mtu: env.as_ref().map(|env| env.mtu.get()),
            subnets: env.iter().flat_map(|env| env.subnets.iter().map(|(_, (_, own))| *own)).collect(),
            store: store(&self.config).to_owned(),
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
        let contested = self.overlay_repair.is_contested() || self.tables_repair.is_contested();
        let contested = contested.then(|| of_node("NetworkContended", CONTENDED.to_owned()));
        let own = [("HostUnusable", self.host_trouble.as_deref()), ("CniNotInstalled", self.cni.trouble())];
        let own = own.into_iter().filter_map(|(reason, text)| Some(of_node(reason, text?.to_owned())));
        let of_this_node = unassigned.into_iter().chain(closed).chain(contested).chain(own);
        self.board.faults(problems.chain(overlaps).chain(of_this_node));
    }

    /// Entries that were set right, by kind.
    pub(super) fn tell_repairs(&self, ops: &[Op], elements: usize) {
        let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
        ops.iter().for_each(|op| *kinds.entry(kind(op)).or_default() += 1);
        if elements > 0 {
            kinds.insert("nftables", elements as u64);
        }
        for (kind, count) in kinds {
            self.board.repaired(status::Half::Network, kind, count);
        }
    }

    fn tell_peer(
        &self,
        name: &Arc<str>,
        mtu: Option<u32>,
        left_out: &BTreeMap<&str, &Reason>,
        failed: &Failed,
    ) {
        let paths: Vec<Path> = self.overlay.path(name).iter().map(|(_, path)| *path).collect();
        if let Some(error) = paths.iter().find_map(|path| failed.on(path)) {
            return self.board.peer_failed(name, error);
        }
        match (paths.is_empty(), left_out.get(&**name)) {
            (false, _) => {
                self.board.peer_programmed(name, facts(&paths, mtu, &self.config.network));
            }
            (true, Some(why)) => self.board.peer_left_out(name, &why.to_string()),
            (true, None) => self.board.peer_gone(name),
        }
    }
}

/// Where subnets are kept, as the contract names it.
fn store(config: &Config) -> &'static str {
    match (config.network.store(), &config.source) {
        (Store::Etcd, _) => "etcd",
        (Store::Nodes, SourceConfig::Kube(_)) => "kube",
        (Store::Static, _) | (Store::Nodes, SourceConfig::Directory(_)) => "static",
    }
}

fn facts(paths: &[Path], mtu: Option<u32>, config: &NetworkConfig) -> Facts {
    let vxlan = paths.iter().any(|path| path.mac.is_some());
    Facts {
        subnets: paths.iter().map(|path| path.subnet).collect(),
        backend: match (vxlan, config.direct_routing) {
            (true, _) => "vxlan",
            (false, true) => "direct",
            (false, false) => "host-gw",
        },
        underlay: paths.iter().map(|path| path.underlay).collect(),
        macs: paths.iter().filter_map(|path| path.mac).collect(),
        mtu,
    }
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

    fn on(&self, path: &Path) -> Option<&str> {
        let entry = path
            .mac
            .and_then(|mac| self.fdb.get(&mac).or_else(|| self.neighbours.get(&path.subnet.network())));
        self.routes.get(&path.subnet).or(entry).map(String::as_str)
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
