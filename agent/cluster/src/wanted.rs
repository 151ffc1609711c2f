//! Which part of the cluster a source is asked for.

use std::sync::Arc;

use crate::Kind;
use crate::decode::Key;

/// What a source is to tell of. Of the rest it tells nothing, [`Event::Synced`](crate::Event::Synced) included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Services and their EndpointSlices.
    pub services: bool,
    /// Which Nodes.
    pub nodes: Nodes,
    /// ServiceCIDRs.
    pub service_cidrs: bool,
}

/// Which Nodes are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nodes {
    /// Every one: the pod network needs them.
    All,
    /// The one of this name: all that Services need (contract S1).
    Only(Arc<str>),
    /// None.
    None,
}

impl Wanted {
    /// All there is.
    pub fn everything() -> Self {
        Self { services: true, nodes: Nodes::All, service_cidrs: true }
    }

    /// The kinds of which anything is wanted.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let services = [Kind::Service, Kind::EndpointSlice].into_iter().filter(|_| self.services);
        let nodes = (self.nodes != Nodes::None).then_some(Kind::Node);
        services.chain(nodes).chain(self.service_cidrs.then_some(Kind::ServiceCidr)).collect()
    }

    pub(crate) fn includes(&self, key: &Key) -> bool {
        match (key, &self.nodes) {
            (Key::Service(_) | Key::EndpointSlice(_), _) => self.services,
            (Key::Node(_), Nodes::All) => true,
            (Key::Node(name), Nodes::Only(wanted)) => name == wanted,
            (Key::Node(_), Nodes::None) => false,
            (Key::ServiceCidr(_), _) => self.service_cidrs,
        }
    }
}
