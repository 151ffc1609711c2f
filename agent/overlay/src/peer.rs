//! A Node read as a peer: where its pods are and how to send to them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::annotations;
use crate::node::Node;
use crate::problem::Reason;
use crate::settings::{Backend, Peering, Settings};
use crate::units::{Family, Mac, PerFamily};

/// Where the pods of one node and family are to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// The node's pod subnet.
    pub subnet: IpNet,
    /// Inner destination MAC of packets to it; only VXLAN has one.
    pub mac: Option<Mac>,
    /// The node's address: outer destination of VXLAN packets to it, or gateway.
    pub underlay: IpAddr,
}

/// What a Node says about itself, before it is compared with others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    pub(crate) vteps: PerFamily<Option<Vtep>>,
    pub(crate) reasons: Vec<Reason>,
}

impl Reading {
    /// Reads the families that are on. Each stands for itself: a Node with one bad family has the other. A Node that
    /// has not published itself yet says nothing.
    pub(crate) fn of(settings: &Settings, node: &Node) -> Self {
        let mut reading = Self::default();
        if settings.peering == Peering::Annotated && !annotations::is_managed(node) {
            return reading;
        }
        for family in Family::BOTH.into_iter().filter(|family| settings.has(*family)) {
            match vtep(settings, node, family) {
                Ok(vtep) => {
                    *reading.vteps.get_mut(family) = Some(vtep);
                    reading.reasons.extend(among_pods(settings, vtep.underlay));
                }
                Err(reason) if reading.reasons.contains(&reason) => {}
                Err(reason) => reading.reasons.push(reason),
            }
        }
        reading
    }

    /// Takes over from the reading `before` what a slip in an annotation has cost: where a family's annotations are at
    /// fault and its subnet is the same, the VTEP holds on. flannel keeps the lease too (flannel,
    /// pkg/subnet/kube/kube.go, handleUpdateLeaseEvent).
    pub(crate) fn keep(&mut self, before: &Self, settings: &Settings, node: &Node) {
        for reason in &mut self.reasons {
            let Reason::Annotation { family, kept, .. } = reason else { continue };
            let vtep = before
                .vteps
                .get(*family)
                .filter(|vtep| subnet(settings, node, *family).is_ok_and(|subnet| subnet == vtep.subnet));
            *kept = vtep.is_some();
            *self.vteps.get_mut(*family) = vtep;
        }
    }
}

/// The Node's pod subnet of `family`: the first of that family in `spec.podCIDRs`, inside a pod network.
pub(crate) fn subnet(settings: &Settings, node: &Node, family: Family) -> Result<IpNet, Reason> {
    let Some(subnet) = node.pod_cidrs.iter().find(|subnet| Family::of(subnet) == family) else {
        return Err(Reason::NoSubnet(family));
    };
    match settings.network_of(subnet) {
        Some(_) => Ok(subnet.trunc()),
        None => Err(Reason::SubnetOutside(*subnet)),
    }
}

/// The peer is reached all the same, but not by everybody in every case (contract N23).
fn among_pods(settings: &Settings, address: IpAddr) -> Option<Reason> {
    let network = settings.pod_networks.iter().find(|network| network.contains(&address))?;
    Some(Reason::AddressAmongPods { address, network: *network })
}

/// The Node's first address of `family`.
pub(crate) fn address(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|address| family.has(*address))
}

fn vtep(settings: &Settings, node: &Node, family: Family) -> Result<Vtep, Reason> {
    let subnet = subnet(settings, node, family)?;
    let (mac, underlay) = if annotations::is_managed(node) {
        annotations::vtep(node, settings, family)?
    } else {
        let underlay = address(node, family).ok_or(Reason::NoAddress(family))?;
        let vxlan = settings.backend == Backend::Vxlan;
        (vxlan.then(|| Mac::derived(&node.name, settings.vni, family)), underlay)
    };
    Ok(Vtep { subnet, mac, underlay })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Vni;

    #[test]
    fn n4_without_annotations_the_vtep_is_worked_out_from_the_node() {
        let node = Node {
            name: "b".into(),
            addresses: vec!["fd01::2".parse().unwrap(), "192.0.2.2".parse().unwrap()],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            ..Node::default()
        };
        let settings = settings(Peering::Derived);
        let reading = Reading::of(&settings, &node);
        assert_eq!(
            reading.vteps.v4,
            Some(Vtep {
                subnet: "10.244.2.0/24".parse().unwrap(),
                mac: Some(Mac::derived("b", Vni::default(), Family::V4)),
                underlay: "192.0.2.2".parse().unwrap(),
            })
        );
        assert_eq!(reading.reasons, []);
        let annotated = Settings { peering: Peering::Annotated, ..settings };
        assert_eq!(Reading::of(&annotated, &node), Reading::default());
    }

    #[test]
    fn n14_a_subnet_outside_the_pod_networks_is_not_routed() {
        let node = Node {
            name: "b".into(),
            addresses: vec!["192.0.2.2".parse().unwrap()],
            pod_cidrs: vec!["10.99.2.0/24".parse().unwrap()],
            ..Node::default()
        };
        let reading = Reading::of(&settings(Peering::Derived), &node);
        assert_eq!(reading.vteps, PerFamily::default());
        assert_eq!(reading.reasons, [Reason::SubnetOutside("10.99.2.0/24".parse().unwrap())]);
    }

    #[test]
    fn n23_a_node_whose_address_a_pod_could_have_is_named_and_routed() {
        let node = Node {
            name: "b".into(),
            addresses: vec!["10.244.9.9".parse().unwrap()],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            ..Node::default()
        };
        let reading = Reading::of(&settings(Peering::Derived), &node);
        assert!(reading.vteps.v4.is_some());
        let [reason] = &reading.reasons[..] else { panic!("{:?}", reading.reasons) };
        let said = reason.to_string();
        assert!(said.starts_with("its address 10.244.9.9 lies in pod network 10.244.0.0/16: "), "{said}");
    }

    #[test]
    fn a_node_without_address_or_subnet_says_so() {
        let mut node = Node { name: "b".into(), ..Node::default() };
        let reasons = |node: &Node| Reading::of(&settings(Peering::Derived), node).reasons;
        assert_eq!(reasons(&node), [Reason::NoSubnet(Family::V4)]);
        node.pod_cidrs = vec!["10.244.2.0/24".parse().unwrap()];
        assert_eq!(reasons(&node), [Reason::NoAddress(Family::V4)]);
    }

    fn settings(peering: Peering) -> Settings {
        Settings::new("a", vec!["10.244.0.0/16".parse().unwrap()], peering)
    }
}
