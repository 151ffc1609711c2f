//! Node subnets that the nodes choose themselves, with no leader (contract N2).
//!
//! Pure: [`Assigner`] says what to ask the API server next and is told the answer; whoever drives it does the I/O.
//!
//! **The lock.** A subnet is claimed by one object whose name is the subnet's ([`claim_name`]): who creates it has it.
//! A node holds a subnet when
//! 1. a claim of its Node's uid and this machine's identity exists,
//! 2. *after* that claim was made, lists of all claims and then of all Nodes showed no other that overlaps it,
//! 3. the subnet stands in the Node's `spec.podCIDRs`, which never change once they are set, and
//! 4. *after* 2 and 3 the very same claim was seen again.
//!
//! **Why no two Nodes hold overlapping subnets.** Say both do, and the second made its claim last. If the first one's
//! claim still stood when the second listed the claims, it was seen (2). If not, the first had already seen it again
//! (4), so its `podCIDRs` were written before that, and the second saw those in its list of Nodes (2). Either way the
//! second let go. No step depends on a clock, on what a daemon remembers, or on a request having been answered: a daemon
//! that is killed, or whose answer is lost, begins anew and finds its claims by its Node's uid.
//!
//! **Late requests.** A request that was given up may still arrive. Creations and writes are harmless by the above; a
//! deletion names the version that it saw, and a claim that is used again gets a new version first.

mod assigner;
mod name;
mod survey;

use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

pub use self::assigner::Assigner;
pub use self::name::{claim_name, claim_subnet};
use crate::range::Range;

/// Whether podway assigns subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AssignMode {
    /// If the cluster gives the Node none for a while, and no other Node has one that podway did not assign.
    #[default]
    Auto,
    /// If the Node has none.
    Always,
    /// Not at all; no claim is read or made.
    Never,
}

/// What one node goes by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignPolicy {
    /// The Node's name.
    pub node: Arc<str>,
    /// What tells this machine from another one with the same node name; empty = unknown, so that two machines
    /// without identity cannot be told apart.
    pub machine: Arc<str>,
    /// Whether to assign.
    pub mode: AssignMode,
    /// Where subnets come from, at most one range a family; the first one's family is the cluster's first.
    pub ranges: Vec<Range>,
    /// Where the claims are, for messages.
    pub namespace: Arc<str>,
}

/// A claim as it was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// What is claimed.
    pub subnet: IpNet,
    /// The object's uid.
    pub uid: Arc<str>,
    /// The object's version.
    pub version: Arc<str>,
    /// The uid of the Node that it is for.
    pub node_uid: Arc<str>,
    /// The machine that made it.
    pub machine: Arc<str>,
}

/// A Node as it was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeSubnets {
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
    /// Its `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The uids of the claims that its subnets are held by, as noted with the subnets.
    pub claims: Vec<Arc<str>>,
    /// Whether podway chose the subnets, as noted with them.
    pub assigned: bool,
}

/// What to ask the API server. Lists and reads must be as new as the server's store, never from a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AssignRequest {
    /// Read the own Node: [`AssignAnswer::Node`].
    Node,
    /// Wait for a while, so that whoever else assigns subnets can: [`AssignAnswer::Done`].
    Grace,
    /// List the claims for the Node with this uid: [`AssignAnswer::Claims`].
    ClaimsOf(Arc<str>),
    /// List all claims: [`AssignAnswer::Claims`].
    Claims,
    /// List all Nodes: [`AssignAnswer::Nodes`].
    Nodes,
    /// Create the claim: [`AssignAnswer::Claim`], or `Refused` if there is one.
    Create {
        /// What to claim.
        subnet: IpNet,
        /// For which Node.
        node_uid: Arc<str>,
    },
    /// Give the claim a new version, if it is still as it was read: [`AssignAnswer::Claim`] or `Refused`.
    Touch(Claim),
    /// Delete the claim, if it is still as it was read: `Done` or `Refused`.
    Delete(Claim),
    /// Write to the own Node, in one step: `Done`, or `Refused` if it is another Node by now or has other subnets.
    Write {
        /// The Node's uid.
        node_uid: Arc<str>,
        /// `spec.podCIDRs`, which podway thereby assigns; empty = those that it has.
        pod_cidrs: Vec<IpNet>,
        /// The uids of the claims.
        claims: Vec<Arc<str>>,
    },
}

/// What the API server answered. An error is no answer: then everything begins anew, later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AssignAnswer {
    /// The Node; `None` = there is none.
    Node(Option<NodeSubnets>),
    /// All claims that were asked for.
    Claims(Vec<Claim>),
    /// All Nodes.
    Nodes(Vec<NodeSubnets>),
    /// The claim as it is now.
    Claim(Claim),
    /// It is done.
    Done,
    /// It was not done: what is there is not what was expected.
    Refused,
}

/// The subnets of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Assignment {
    /// The uid of the Node that they are of; another one of the same name has to ask anew.
    pub node_uid: Arc<str>,
    /// As they stand in `spec.podCIDRs`.
    pub subnets: Vec<IpNet>,
    /// Whether podway chose them now.
    pub is_new: bool,
    /// Why they are not claimed, where the API server does not allow it: another machine of this name would go
    /// unnoticed.
    pub unguarded: Option<String>,
}

/// Why this node has no subnets that it may use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Unassigned {
    /// The kubelet has not registered it, or it was deleted.
    #[error("Node {0}: there is no such Node")]
    NoNode(Arc<str>),
    /// [`AssignMode::Never`].
    #[error(
        "Node {0}: spec.podCIDRs is empty and network.assign.mode is `never`: waiting for whoever assigns them"
    )]
    LeftToOthers(Arc<str>),
    /// [`AssignMode::Auto`], and somebody else seems to assign.
    #[error(
        "Node {node}: spec.podCIDRs is empty; Node {by} has some that podway did not assign, so they are left to \
         whoever did, such as kube-controller-manager with --allocate-node-cidrs; with network.assign.mode `always` \
         podway assigns them"
    )]
    OthersAssign {
        /// This Node.
        node: Arc<str>,
        /// One that was given subnets.
        by: Arc<str>,
    },
    /// Another machine runs under this Node's name.
    #[error(
        "Node {node}: its subnet {subnet} is held by another machine, {} (this one is {}): nothing is programmed here; \
         give one of the two another node name, or, if that machine is gone: \
         kubectl --namespace {namespace} delete lease {lease}", identity(.holder), identity(.machine)
    )]
    OtherMachine {
        /// The Node.
        node: Arc<str>,
        /// Its subnet.
        subnet: IpNet,
        /// The other machine.
        holder: Arc<str>,
        /// This machine.
        machine: Arc<str>,
        /// Where the claim is.
        namespace: Arc<str>,
        /// The claim's name.
        lease: Arc<str>,
    },
    /// The Node was given a subnet that another one has too.
    #[error(
        "Node {node}: its subnet {subnet} overlaps that of Node {by}: nothing is programmed here; delete one of the two \
         Nodes, so that it is given another when it registers again"
    )]
    Taken {
        /// This Node.
        node: Arc<str>,
        /// Its subnet.
        subnet: IpNet,
        /// The other Node.
        by: Arc<str>,
    },
    /// Others were faster, or are about to let go; to be tried again.
    #[error("Node {node}: {subnet} is being claimed by others at this moment")]
    Contended {
        /// This Node.
        node: Arc<str>,
        /// What was wanted.
        subnet: IpNet,
    },
    /// All subnets are held.
    #[error(
        "Node {node}: no free subnet of length {len} in {range}: {held} are held by other Nodes; delete Nodes that are \
         gone, or make network.podNetworks larger"
    )]
    Exhausted {
        /// This Node.
        node: Arc<str>,
        /// The range.
        range: IpNet,
        /// Length of a subnet.
        len: u8,
        /// How many subnets of the range are held or overlapped.
        held: usize,
    },
}

fn identity(machine: &str) -> &str {
    if machine.is_empty() { "without identity" } else { machine }
}

/// What an [`Assigner`] does next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AssignStep {
    /// Ask this.
    Ask(AssignRequest),
    /// It is through.
    Finished(Result<Assignment, Unassigned>),
}
