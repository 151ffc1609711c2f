//! Integration tests: real packets in network namespaces.
//!
//! What the suites under `tests/` share: a [`Cluster`] of nodes with a podway each, a [`Shop`] with the Service `web` that
//! most of them call, the [`Way`]s to call it, and what a node's kernel holds ([`KernelState`]).

mod cluster;
mod cni;
mod complaints;
mod flannel;
mod kernel;
mod load;
mod shop;
mod traffic;
mod web;
mod witness;

pub use cluster::{Cluster, Dataplane, Member, Source, wait_until_programmed};
pub use cni::{Answer, CniNode, netns, reaches};
pub use complaints::complaints;
pub use flannel::{
    Families, FlannelCluster, FlannelNode, Rules, Runner, Subnets, stop, wait_until_network_stands,
};
pub use kernel::{KernelState, Strangers, await_no_trace_of};
pub use load::Load;
pub use shop::Shop;
pub use traffic::{
    SOON, Way, await_answers, await_answers_by, await_refusal, await_refusal_at_once, await_silence,
    new_connections_reach_only,
};
pub use web::{WEB, WEB_PORT, web_answers, web_behind, web_service};
pub use witness::Witness;
