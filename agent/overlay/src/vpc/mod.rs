//! Where in a VPC's address range the pods and the Services of a cluster go (contract N23).

mod blocks;
mod note;
mod search;
mod shortfall;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::range::{self, Range};
use crate::units::{Family, PerFamily};

pub use note::{VpcNote, vpc_notes};
use search::Search;
pub use shortfall::Shortfall;

/// What a node's subnet cannot give to pods: its network address, which the VXLAN device has, the gateway, and the
/// broadcast address. IPv6 is counted alike.
const NOT_FOR_PODS: u128 = 3;

/// The bridge that Docker makes on every machine unless it is told otherwise.
const DOCKER: &str = "172.17.0.0/16";

/// What a cluster needs, and what it may take it from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcRequest {
    /// The VPC's range of each family that pods are to have.
    pub vpc: PerFamily<Option<IpNet>>,
    /// Nodes.
    pub nodes: u64,
    /// Pods on each node.
    pub pods_per_node: u64,
    /// Services.
    pub services: u64,
    /// How many times as many nodes and Services there should be room for, where the VPC has it; 1 is none.
    pub growth: u64,
    /// What must stay free: the nodes' own subnets, peered networks.
    pub reserved: Vec<IpNet>,
}

/// One family's ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcPlan {
    /// The VPC's range, host bits zero.
    pub vpc: IpNet,
    /// The pod network and its cut into node subnets: flannel's `Network` and `SubnetLen`.
    pub range: Range,
    /// The Service range: `--service-cluster-ip-range`.
    pub services: IpNet,
    /// What of the VPC was reserved, lowest address first; what lies within another is left out.
    pub reserved: Vec<IpNet>,
}

/// What some ranges hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Room {
    /// Nodes.
    pub nodes: u128,
    /// Pods on each node.
    pub pods_per_node: u128,
    /// Services.
    pub services: u128,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VpcError {
    /// Neither family has a range.
    #[error("no VPC range is given, neither IPv4 nor IPv6")]
    NoVpc,
    /// Nothing is asked for.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// No Service range is that large.
    #[error("{asked} Services are more than Kubernetes takes: a Service range holds at most {most}")]
    Services {
        /// What was asked.
        asked: u64,
        /// What the largest range holds.
        most: u128,
    },
    /// The range has no room.
    #[error(transparent)]
    DoesNotFit(Box<Shortfall>),
}

/// Plans each family by itself.
///
/// A node's subnet is as small as its pods allow (IPv6: a /64 if that fits, else a /80, /96, /112). The pod network
/// holds `growth` times the nodes, the Service range `growth` times the Services (IPv6: at least a /112), or as much
/// of that as there is room for, Services giving way first. The pod network goes to the smallest free block that holds
/// it, the Service range where it hinders the pod network least in being widened, and neither to Docker's own network
/// if there is as much room elsewhere.
///
/// # Errors
/// See [`VpcError`]; the first family that does not fit is named.
pub fn plan_vpc(request: &VpcRequest) -> Result<PerFamily<Option<VpcPlan>>, VpcError> {
    let asked = [
        ("nodes", request.nodes),
        ("pods per node", request.pods_per_node),
        ("Services", request.services),
        ("growth", request.growth),
    ];
    if let Some((what, _)) = asked.iter().find(|(_, number)| *number == 0) {
        return Err(VpcError::Zero(what));
    }
    if request.vpc.iter().next().is_none() {
        return Err(VpcError::NoVpc);
    }
    let plan = |vpc: &Option<IpNet>| vpc.map(|vpc| plan_family(request, vpc)).transpose();
    Ok(PerFamily { v4: plan(&request.vpc.v4)?, v6: plan(&request.vpc.v6)? })
}

/// Around Docker's bridge, if that costs nothing.
fn plan_family(request: &VpcRequest, vpc: IpNet) -> Result<VpcPlan, VpcError> {
    let plan = Search::new(request, vpc, &[]).plan()?;
    let docker: Vec<IpNet> = DOCKER.parse().into_iter().collect();
    let around = Search::new(request, vpc, &docker).plan();
    Ok(around.ok().filter(|around| around.room() == plan.room()).unwrap_or(plan))
}

impl VpcPlan {
    /// What the ranges hold.
    pub fn room(&self) -> Room {
        Room { services: services_in(&self.services), ..room(&self.range) }
    }

    /// The pod network as wide as it can be made later without moving anything, if it can be.
    pub fn widened(&self) -> Option<Range> {
        let widest = blocks::widest(self.range.network(), &self.vpc, &self.taken_beside_pods());
        let range = Range::new(widest, Some(self.range.subnet_len()), None, None).ok()?;
        (widest != self.range.network()).then_some(range)
    }

    /// Other node subnets that the same pod network could be cut into and still hold these nodes and pods, smallest
    /// subnets first. Of IPv6 those of /64, /80, /96 and /112.
    pub fn other_cuts(&self, nodes: u64, pods_per_node: u64) -> Vec<Range> {
        let network = self.range.network();
        let most = network.max_prefix_len() - 2;
        (network.prefix_len() + 2..=most)
            .rev()
            .filter(|len| *len != self.range.subnet_len())
            .filter(|len| self.range.family() == Family::V4 || [64, 80, 96, 112].contains(len))
            .filter_map(|len| Range::new(network, Some(len), None, None).ok())
            .filter(|range| {
                let room = room(range);
                room.nodes >= nodes.into() && room.pods_per_node >= pods_per_node.into()
            })
            .collect()
    }

    /// The address that the API server's own Service `kubernetes` gets: the first one.
    pub fn api_server(&self) -> IpAddr {
        self.service(1)
    }

    /// The address that kubeadm, and most after it, give to DNS: the tenth one.
    pub fn dns(&self) -> IpAddr {
        self.service(10)
    }

    /// What of the VPC nobody has, lowest address first.
    pub fn free(&self) -> Vec<IpNet> {
        let mut taken = self.taken_beside_pods();
        taken.push(self.range.network());
        blocks::free(self.vpc, &taken)
    }

    fn service(&self, number: u128) -> IpAddr {
        range::address(self.range.family(), range::bits(self.services.addr()) + number)
    }

    fn taken_beside_pods(&self) -> Vec<IpNet> {
        self.reserved.iter().copied().chain([self.services]).collect()
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, pods_per_node, services } = self;
        write!(f, "{nodes} nodes with {pods_per_node} pods each and {services} Services")
    }
}

/// What a range holds, without Services.
fn room(range: &Range) -> Room {
    let bits = u32::from(range.network().max_prefix_len() - range.subnet_len());
    let addresses = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    Room { nodes: range.count(), pods_per_node: addresses.saturating_sub(NOT_FOR_PODS), services: 0 }
}

/// Kubernetes hands out neither the first nor, with IPv4, the last address; IPv6 is counted alike.
fn services_in(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(2)
}
