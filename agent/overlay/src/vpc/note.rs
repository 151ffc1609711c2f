//! What an operator should know about a plan before making it true.

use std::fmt;

use ipnet::IpNet;

use super::{DOCKER, VpcPlan, VpcRequest};
use crate::overlaps::overlap;
use crate::units::{Family, PerFamily};

/// How many bits longer than the pod network a node's subnet may be for kube-controller-manager with IPv6
/// (pkg/controller/nodeipam/ipam/cidrset/cidr_set.go) and for kubeadm with either family (constants.go).
const MOST_NODE_BITS: u8 = 16;

/// Networks that are no real host's elsewhere: RFC 1918, RFC 6598, RFC 4193; and those of documentation.
const PRIVATE: [&str; 9] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001:db8::/32",
];

/// Something worth knowing about a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VpcNote {
    /// There is no room for all the growth that was asked for.
    LessGrowth {
        /// The family.
        family: Family,
        /// How many times the nodes and Services were to fit.
        asked: u64,
        /// The nodes that do fit.
        nodes: u128,
        /// The Services that do fit.
        services: u128,
    },
    /// A node's IPv6 subnet is not the usual /64.
    LongSubnets(u8),
    /// The controller-manager or kubeadm would refuse the ranges.
    NodeMask {
        /// The pod network.
        network: IpNet,
        /// Prefix length of a node's subnet.
        subnet_len: u8,
    },
    /// The VPC's range is somebody's on the Internet.
    NotPrivate(IpNet),
    /// No part of the VPC is said to be the nodes' own.
    NothingReserved(IpNet),
    /// A reserved network that lies in no range of the VPC.
    ReservedOutside(IpNet),
    /// A reserved network that overlaps another one.
    ReservedTwice {
        /// The smaller one.
        inner: IpNet,
        /// The larger one, or the same once more.
        outer: IpNet,
    },
    /// Docker's own network would be in the way on nodes that have it.
    Docker(IpNet),
}

/// Everything worth knowing about these plans.
pub fn vpc_notes(request: &VpcRequest, plans: &PerFamily<Option<VpcPlan>>) -> Vec<VpcNote> {
    let mut notes: Vec<VpcNote> = Vec::new();
    for (family, plan) in plans.iter() {
        notes.extend(growth(request, family, plan));
        notes.extend(cut(plan));
        notes.extend(surroundings(plan));
    }
    notes.extend(reserved(request, plans));
    notes
}

fn growth(request: &VpcRequest, family: Family, plan: &VpcPlan) -> Option<VpcNote> {
    let room = plan.room();
    let times = |number: u64| u128::from(number) * u128::from(request.growth);
    // No Service range is larger, whatever was asked.
    let is_largest = plan.services.max_prefix_len() - plan.services.prefix_len() == 20;
    let less = room.nodes < times(request.nodes) || (room.services < times(request.services) && !is_largest);
    less.then_some(VpcNote::LessGrowth {
        family,
        asked: request.growth,
        nodes: room.nodes,
        services: room.services,
    })
}

fn cut(plan: &VpcPlan) -> Vec<VpcNote> {
    let (network, subnet_len) = (plan.range.network(), plan.range.subnet_len());
    let mut notes = Vec::new();
    if plan.range.family() == Family::V6 && subnet_len > 64 {
        notes.push(VpcNote::LongSubnets(subnet_len));
    }
    if subnet_len - network.prefix_len() > MOST_NODE_BITS {
        notes.push(VpcNote::NodeMask { network, subnet_len });
    }
    notes
}

fn surroundings(plan: &VpcPlan) -> Vec<VpcNote> {
    let mut notes = Vec::new();
    if !PRIVATE.iter().any(|net| is_in(&plan.vpc, net)) {
        notes.push(VpcNote::NotPrivate(plan.vpc));
    }
    if plan.reserved.is_empty() {
        notes.push(VpcNote::NothingReserved(plan.vpc));
    }
    let docker = DOCKER.parse().ok();
    let meets = |net: &IpNet| docker.is_some_and(|docker| overlap(&docker, net));
    notes.extend([plan.range.network(), plan.services].into_iter().filter(meets).map(VpcNote::Docker));
    notes
}

fn reserved(request: &VpcRequest, plans: &PerFamily<Option<VpcPlan>>) -> Vec<VpcNote> {
    let mut notes = Vec::new();
    for (at, net) in request.reserved.iter().enumerate() {
        if !plans.iter().any(|(_, plan)| overlap(&plan.vpc, net)) {
            notes.push(VpcNote::ReservedOutside(*net));
        }
        for other in request.reserved.iter().skip(at + 1).filter(|other| overlap(net, other)) {
            let (inner, outer) = if net.contains(other) { (*other, *net) } else { (*net, *other) };
            notes.push(VpcNote::ReservedTwice { inner, outer });
        }
    }
    notes
}

fn is_in(net: &IpNet, text: &str) -> bool {
    text.parse().is_ok_and(|outer: IpNet| outer.contains(net))
}

impl fmt::Display for VpcNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LessGrowth { family, asked, nodes, services } => write!(
                f,
                "{family}: no room for {asked} times the nodes and Services; there is room for {nodes} nodes and \
                 {services} Services"
            ),
            Self::LongSubnets(len) => write!(
                f,
                "a node's IPv6 subnet is a /{len}, as the VPC has too few /64; pods work all the same"
            ),
            Self::NodeMask { network, subnet_len } => write!(
                f,
                "/{subnet_len} is more than {MOST_NODE_BITS} bits longer than {network}: kubeadm refuses that, and with \
                 IPv6 kube-controller-manager; let podway assign the subnets (--allocate-node-cidrs=false)"
            ),
            Self::NotPrivate(vpc) => write!(
                f,
                "{vpc} is not a private range: pods cannot reach the hosts on the Internet that have its addresses"
            ),
            Self::NothingReserved(vpc) => write!(
                f,
                "nothing in {vpc} is reserved: name the nodes' subnets and the peered networks with --reserve, or \
                 they may overlap what is planned here"
            ),
            Self::ReservedOutside(net) => {
                write!(f, "reserved {net} lies in no range of the VPC: it cannot be in the way")
            }
            Self::ReservedTwice { inner, outer } if inner == outer => {
                write!(f, "{inner} is reserved twice")
            }
            Self::ReservedTwice { inner, outer } => {
                write!(f, "reserved {inner} overlaps reserved {outer}, which contains it")
            }
            Self::Docker(net) => write!(
                f,
                "{net} overlaps {DOCKER}, the bridge that Docker makes by default, as there is no room elsewhere: on \
                 nodes with Docker give that another range"
            ),
        }
    }
}
