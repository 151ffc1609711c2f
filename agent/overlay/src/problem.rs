//! What stands in the way of one node's pod network.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::settings::Backend;
use crate::units::{Family, LinkName, Mac, Mtu};

/// Why a Node, or this machine, has no place in the pod network, or not all of it (contracts N5, N14).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("Node {node}: {reason}")]
pub struct Problem {
    /// The Node's name.
    pub node: Arc<str>,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with a Node and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// This machine's own Node is not there.
    #[error("there is no such Node: no pod network on this machine")]
    NoNode,
    /// The peer runs another backend.
    #[error("annotation backend-type is `{found}`, not `{}`: the node is skipped", wanted.as_str())]
    BackendType {
        /// The peer's.
        found: String,
        /// This machine's.
        wanted: Backend,
    },
    /// One of flannel's annotations cannot be used.
    #[error("annotation {key}: {why}: {}", match kept {
        true => format!("the node goes on to be reached for {family} as it said before"),
        false => format!("the node is skipped for {family}"),
    })]
    Annotation {
        /// The key without flannel's prefix.
        key: &'static str,
        /// The family that needs it.
        family: Family,
        /// What is wrong with its value.
        why: String,
        /// Whether what the Node said before holds on.
        kept: bool,
    },
    /// The Node has no pod subnet.
    #[error("no {0} subnet in spec.podCIDRs: its pods have no {0} network")]
    NoSubnet(Family),
    /// The Node's subnet is not part of a pod network.
    #[error("subnet {0} is outside the configured pod networks: it is not routed")]
    SubnetOutside(IpNet),
    /// Another Node comes first.
    #[error("subnet {subnet} overlaps {theirs} of Node {by}: only that of Node {by} is routed")]
    SubnetTaken {
        /// The Node's subnet.
        subnet: IpNet,
        /// The other Node.
        by: Arc<str>,
        /// The other Node's subnet.
        theirs: IpNet,
    },
    /// Another Node has the same VTEP MAC and comes first.
    #[error("VTEP MAC {mac} is that of Node {by} too: the node is skipped")]
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// The other Node.
        by: Arc<str>,
    },
    /// The Node has no address to send to.
    #[error("no {0} address in status.addresses to send to: the node is skipped for {0}")]
    NoAddress(Family),
    /// The peer's address is one that a pod could have.
    #[error(
        "its address {address} lies in pod network {network}: traffic to the node is taken for pod traffic; \
             choose a pod network apart from the nodes' addresses"
    )]
    AddressAmongPods {
        /// The peer's address.
        address: IpAddr,
        /// The pod network around it.
        network: IpNet,
    },
    /// A peer says that it is to be reached at this machine's own address.
    #[error("its address {0} is this machine's own: the node is skipped")]
    OwnAddress(IpAddr),
    /// A route to the subnet would take packets that are meant for a node (contract N23).
    #[error(
        "subnet {subnet} contains {address}, the address of Node {of}, which a route to it would cut off: it is not \
             routed; give the Node another subnet"
    )]
    SubnetCovers {
        /// The Node's subnet.
        subnet: IpNet,
        /// The underlay address in it.
        address: IpAddr,
        /// Whose address that is; it may be the Node's own.
        of: Arc<str>,
    },
    /// Packets to the node would end in this machine's pods (contract N23).
    #[error(
        "its address {address} is in {subnet}, the subnet of Node {of}, and cannot be reached from there: the node is \
             skipped; give Node {of} another subnet"
    )]
    AddressInSubnet {
        /// The peer's address.
        address: IpAddr,
        /// This machine's subnet.
        subnet: IpNet,
        /// This machine's Node.
        of: Arc<str>,
    },
    /// Nodes have addresses in a range of Services (contract N23). It is told of the first of them: all have one cause.
    #[error(
        "its address {address}, and maybe other nodes', is in Service range {range}: a Service that gets such an \
             address cuts the node off; choose a Service range apart from the nodes' addresses"
    )]
    AddressInServiceRange {
        /// The peer's address.
        address: IpAddr,
        /// The Services' range.
        range: IpNet,
    },
    /// This machine cannot send encapsulated packets of this family.
    #[error("interface {interface} has no {family} address: no {family} pod network on this node")]
    ExternalAddress {
        /// The external interface.
        interface: LinkName,
        /// The family without address.
        family: Family,
    },
    /// Without annotations peers send to the Node's address, which is not that of the external interface.
    #[error("peers send to {node}, but interface {interface} has {external}")]
    AddressDiffers {
        /// The Node's first address.
        node: IpAddr,
        /// The external interface.
        interface: LinkName,
        /// Its address.
        external: IpAddr,
    },
    /// Without VXLAN a peer must be a neighbour.
    #[error(
        "its address {address} is no neighbour's on interface {interface}, which backend host-gw needs: \
             the node is skipped"
    )]
    NoNeighbour {
        /// The peer's address.
        address: IpAddr,
        /// The external interface.
        interface: LinkName,
    },
    /// Without VXLAN nothing may translate addresses on the way.
    #[error(
        "{published} is to be published, but interface {interface} has {external}: backend host-gw does not \
             work through a translator of addresses"
    )]
    Translated {
        /// What peers would be told.
        published: String,
        /// The external interface.
        interface: LinkName,
        /// Its address.
        external: IpAddr,
    },
    /// Netfilter does not see what pods of one bridge send each other.
    #[error("bridge {bridge} has the pods of {subnet}, but net.bridge.bridge-nf-call-{} is not 1: pods there that \
             reach each other by a Service get answers from the wrong address; load module br_netfilter and set it",
             if subnet.addr().is_ipv4() { "iptables" } else { "ip6tables" })]
    BridgeNotFiltered {
        /// The bridge.
        bridge: LinkName,
        /// The subnet of its pods.
        subnet: IpNet,
    },
    /// The kernel takes IPv6 off a device below 1280 bytes.
    #[error("MTU {0} is below the 1280 that IPv6 needs: no IPv6 pod network on this node")]
    MtuTooSmall(Mtu),
}

impl Reason {
    /// Whether a peer of which nothing else is wrong is routed all the same.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::AddressAmongPods { .. }
                | Self::AddressInServiceRange { .. }
                | Self::Annotation { kept: true, .. }
        )
    }

    /// One word for it, as Events and metrics have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoNode => "NoNode",
            Self::BackendType { .. } => "BackendType",
            Self::Annotation { .. } => "Annotation",
            Self::NoSubnet(..) => "NoSubnet",
            Self::SubnetOutside(..) => "SubnetOutside",
            Self::SubnetTaken { .. } => "SubnetTaken",
            Self::MacTaken { .. } => "MacTaken",
            Self::NoAddress(..) => "NoAddress",
            Self::AddressAmongPods { .. } => "AddressAmongPods",
            Self::OwnAddress(..) => "OwnAddress",
            Self::SubnetCovers { .. } => "SubnetCovers",
            Self::AddressInSubnet { .. } => "AddressInSubnet",
            Self::AddressInServiceRange { .. } => "AddressInServiceRange",
            Self::ExternalAddress { .. } => "ExternalAddress",
            Self::AddressDiffers { .. } => "AddressDiffers",
            Self::NoNeighbour { .. } => "NoNeighbour",
            Self::Translated { .. } => "Translated",
            Self::BridgeNotFiltered { .. } => "BridgeNotFiltered",
            Self::MtuTooSmall(..) => "MtuTooSmall",
        }
    }
}
