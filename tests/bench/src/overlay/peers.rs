//! Simulated peers: Nodes with podCIDRs and flannel's annotations, without machines behind them.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::thread;

use anyhow::{Result, anyhow};
use podway_testkit::{ControlPlane, Node};
use serde_json::{Value, json};

/// What pods of all nodes have their addresses from.
pub(super) const POD_NETWORK: &str = "10.0.0.0/8";

/// Requests under way at once; the API server's own limit for one user is far above.
const WRITERS: u16 = 8;

/// The Nodes `peer-0` to `peer-(count - 1)` in the API server.
pub(super) struct Peers<'plane> {
    plane: &'plane ControlPlane,
    pub(super) count: u16,
    round: Cell<u8>,
}

impl<'plane> Peers<'plane> {
    pub(super) fn new(plane: &'plane ControlPlane) -> Self {
        Self { plane, count: 0, round: Cell::new(0) }
    }

    /// Adds those that are missing.
    pub(super) fn grow_to(&mut self, count: u16) -> Result<()> {
        let (plane, first) = (self.plane, self.count);
        thread::scope(|scope| {
            let writers = (0..WRITERS).map(|writer| {
                let mine = (first..count).filter(move |number| number % WRITERS == writer);
                scope.spawn(move || {
                    mine.into_iter().try_for_each(|number| {
                        plane.request("POST", "/api/v1/nodes", &peer(number)).map(drop)
                    })
                })
            });
            let writers: Vec<_> = writers.collect();
            writers
                .into_iter()
                .try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writer of Nodes panicked"))?)
        })?;
        self.count = count;
        Ok(())
    }

    /// A number that no address has been made of so far.
    pub(super) fn new_round(&self) -> u8 {
        self.round.replace(self.round.get() + 1)
    }

    /// Moves a peer, one of the first 250, to another underlay address, which nobody has; returns it.
    pub(super) fn re_address(&self, number: u16, round: u8) -> Result<String> {
        let address = format!("198.19.{round}.{}", number % 250 + 1);
        let patch =
            json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": address } } });
        self.plane.request("PATCH", &format!("/api/v1/nodes/peer-{number}"), &patch)?;
        Ok(address)
    }
}

/// The number of the peer with this MAC.
pub(super) fn of_mac(mac: &[u8]) -> Option<u16> {
    match mac {
        [0x0a, 0, 0, 0, high, low] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

/// The number of the peer with this subnet, if it is a peer's.
pub(super) fn of_subnet(subnet: Ipv4Addr) -> Option<u16> {
    match subnet.octets() {
        [10, high, low, 0] => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

/// The Node of a daemon that is measured: a subnet of its own, and an annotation as every kubelet sets one (flanneld
/// ends without).
pub(super) fn own_node(node: &Node, number: u8) -> String {
    let manifest = podway_testkit::manifests::node(node.name()).pod_cidrs([format!("10.250.{number}.0/24")]);
    let manifest = manifest.internal_ips([node.ipv4()]);
    manifest.set("/metadata/annotations/node.alpha.kubernetes.io~1ttl", "0").to_string()
}

fn peer(number: u16) -> Value {
    let [high, low] = number.to_be_bytes();
    let subnet = format!("10.{high}.{low}.0/24");
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": format!("peer-{number}"),
            "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data":
                    format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:00:{high:02x}:{low:02x}"}}"#),
                "flannel.alpha.coreos.com/public-ip": format!("198.18.{high}.{low}"),
            },
        },
        "spec": { "podCIDR": subnet, "podCIDRs": [subnet] },
    })
}
