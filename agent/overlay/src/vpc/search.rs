//! One family's search for room.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::shortfall::Shortfall;
use super::{NOT_FOR_PODS, Room, VpcError, VpcPlan, VpcRequest, blocks};
use crate::overlaps::overlap;
use crate::range::Range;
use crate::units::Family;

/// Address bits of the largest Service range that kube-apiserver takes: /12, with IPv6 /108
/// (cmd/kube-apiserver/app/options/validation.go).
const MOST_SERVICE_BITS: u8 = 20;

/// The tenth Service address is that of DNS by kubeadm's custom, so a range has at least 16.
pub(super) const LEAST_SERVICE_BITS: u8 = 4;

/// What is looked for, and where.
pub(super) struct Search {
    pub(super) vpc: IpNet,
    pub(super) asked: Room,
    pub(super) growth: u128,
    pub(super) reserved: Vec<IpNet>,
    /// What is reserved and what is only to be avoided.
    taken: Vec<IpNet>,
    pub(super) free: Vec<IpNet>,
}

/// Address bits: of a node's subnet, of the nodes' number, of the Services.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits {
    pub(super) subnet: u8,
    pub(super) nodes: u8,
    pub(super) services: u8,
}

impl Search {
    pub(super) fn new(request: &VpcRequest, vpc: IpNet, avoided: &[IpNet]) -> Self {
        let vpc = vpc.trunc();
        let reserved = outermost(request.reserved.iter().map(IpNet::trunc).filter(|net| overlap(net, &vpc)));
        let asked = Room {
            nodes: request.nodes.into(),
            pods_per_node: request.pods_per_node.into(),
            services: request.services.into(),
        };
        let taken: Vec<IpNet> = reserved.iter().chain(avoided).copied().collect();
        Self { vpc, asked, growth: request.growth.into(), free: blocks::free(vpc, &taken), reserved, taken }
    }

    pub(super) fn plan(&self) -> Result<VpcPlan, VpcError> {
        let least = self.least();
        if least.services > MOST_SERVICE_BITS {
            let most = (1 << MOST_SERVICE_BITS) - 2;
            let asked = u64::try_from(self.asked.services).unwrap_or(u64::MAX);
            return Err(VpcError::Services { asked, most });
        }
        let found = self.tries(least).find_map(|bits| self.place(bits));
        found.ok_or_else(|| VpcError::DoesNotFit(Box::new(Shortfall::of(self, least))))
    }

    /// The least that holds what is asked.
    fn least(&self) -> Bits {
        Bits {
            subnet: bits_for(self.asked.pods_per_node.saturating_add(NOT_FOR_PODS)).max(2),
            nodes: node_bits(self.asked.nodes),
            services: service_bits(self.family(), self.asked.services),
        }
    }

    /// What is worth trying, best first: all the growth with any size of subnet, then ever less growth.
    fn tries(&self, least: Bits) -> impl Iterator<Item = Bits> {
        let nodes = node_bits(self.asked.nodes.saturating_mul(self.growth));
        let services = service_bits(self.family(), self.asked.services.saturating_mul(self.growth));
        let services = services.min(MOST_SERVICE_BITS);
        let family = self.family();
        let usual: &[u8] = match family {
            Family::V4 => &[],
            Family::V6 => &[64, 48, 32, 16],
        };
        let usual = usual.iter().copied().filter(move |bits| *bits > least.subnet);
        let subnets: Vec<u8> = usual.chain([least.subnet]).collect();
        let whole = subnets.clone().into_iter().map(move |subnet| Bits { subnet, nodes, services });
        let less = subnets.into_iter().flat_map(move |subnet| {
            (least.nodes..=nodes).rev().flat_map(move |nodes| {
                let services = service_sizes(family, least.services, services);
                services.map(move |services| Bits { subnet, nodes, services })
            })
        });
        whole.chain(less)
    }

    /// The ranges of these sizes, if there is room.
    pub(super) fn place(&self, bits: Bits) -> Option<VpcPlan> {
        let family = self.family();
        let network =
            blocks::best_fit(&self.free, prefix_len(family, bits.subnet.checked_add(bits.nodes)?)?)?;
        let range = Range::new(network, prefix_len(family, bits.subnet), None, None).ok()?;
        let services_len = prefix_len(family, bits.services)?;
        let services = blocks::free(self.vpc, &self.with(&[network]))
            .iter()
            .filter_map(|block| Some((block.prefix_len(), blocks::near_end(block, services_len)?)))
            .min_by_key(|(block_len, services)| {
                let widest = blocks::widest(network, &self.vpc, &self.with(&[*services]));
                (widest.prefix_len(), u8::MAX - block_len, Reverse(*services))
            });
        let (_, services) = services?;
        Some(VpcPlan { vpc: self.vpc, range, services, reserved: self.reserved.clone() })
    }

    fn with(&self, taken: &[IpNet]) -> Vec<IpNet> {
        self.taken.iter().chain(taken).copied().collect()
    }

    pub(super) fn family(&self) -> Family {
        Family::of(&self.vpc)
    }
}

/// Those that lie in no other, lowest address first.
fn outermost(nets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let all: BTreeSet<IpNet> = nets.collect();
    let is_inside = |net: &IpNet| all.iter().any(|other| other != net && other.contains(net));
    all.iter().filter(|net| !is_inside(net)).copied().collect()
}

/// The first subnet is not handed out, and flannel wants four.
fn node_bits(nodes: u128) -> u8 {
    bits_for(nodes.saturating_add(1)).max(2)
}

/// With IPv6 at least a /112: what lies between that and /108 is cut to it (kubeadm, constants.go).
fn service_bits(family: Family, services: u128) -> u8 {
    let bits = bits_for(services.saturating_add(2));
    match family {
        Family::V4 => bits.max(LEAST_SERVICE_BITS),
        Family::V6 if bits <= 16 => 16,
        Family::V6 => bits.max(MOST_SERVICE_BITS),
    }
}

/// Sizes of a Service range in address bits, largest first. What with IPv6 lies between /112 and /108 is no size.
pub(super) fn service_sizes(family: Family, least: u8, most: u8) -> impl Iterator<Item = u8> {
    (least..=most).rev().filter(move |bits| family == Family::V4 || !(17..MOST_SERVICE_BITS).contains(bits))
}

/// The address bits that hold this many addresses.
fn bits_for(addresses: u128) -> u8 {
    let bits = 128 - addresses.saturating_sub(1).leading_zeros();
    u8::try_from(bits).unwrap_or(128)
}

pub(super) fn prefix_len(family: Family, bits: u8) -> Option<u8> {
    family.host_prefix().checked_sub(bits)
}
