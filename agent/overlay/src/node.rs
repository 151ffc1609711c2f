//! A node of the cluster, as far as the pod network looks at it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::annotations;
use crate::problem::Reason;
use crate::units::Family;

/// A Kubernetes Node, from an API server or a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`: another one of the same name is another Node. Empty in files.
    pub uid: Arc<str>,
    /// `status.addresses`: every InternalIP, then every ExternalIP, each in the order of the object (contract S35).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, else `spec.podCIDR`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Annotations under flannel's prefix, keys without the prefix, values as they stand (contract N5).
    pub flannel: BTreeMap<String, String>,
}

impl Node {
    /// The address of `family` that annotation `node-public-ip` or `node-public-ipv6` says this machine is to be
    /// reached by; it replaces the configured one (contract N8).
    pub fn public_ip(&self, family: Family) -> Result<Option<IpAddr>, Reason> {
        annotations::node_public_ip(self, family)
    }
}
