//! Services, EndpointSlices and this node, as far as planning looks at them.
//!
//! Invalid fields never get here: whoever decodes an object skips them one by one and says so (contract S33), and
//! fills in what the API server would have (S34).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Namespace and name of an object, printed `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// The object `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The part before the slash.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A transport protocol that Services know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its name in nftables and in lower-cased Kubernetes fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Protocol {
    type Err = ();

    /// Reads the Kubernetes spelling (`TCP`) and nftables' (`tcp`).
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "TCP" | "tcp" => Ok(Self::Tcp),
            "UDP" | "udp" => Ok(Self::Udp),
            "SCTP" | "sctp" => Ok(Self::Sctp),
            _ => Err(()),
        }
    }
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// A Service that is to be proxied (contract S1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `metadata.creationTimestamp` in seconds since 1970, 0 when absent: the older Service wins a frontend (S29).
    pub created: i64,
    /// `spec.clusterIPs`, at most one a family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
}

/// One of a Service's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Joined with the slices' port names; may be empty.
    pub name: Arc<str>,
    /// Joined with the slices' protocols.
    pub protocol: Protocol,
    /// The port at the clusterIP; the endpoints' port is the slice's matter.
    pub port: u16,
}

/// An EndpointSlice of address type IPv4 or IPv6 that belongs to a Service (contract S2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Label `kubernetes.io/service-name` with the slice's namespace.
    pub service: ObjectName,
    /// Ports with a number; a port without one is not proxied (S3).
    pub ports: Vec<SlicePort>,
    /// Endpoints with a valid address.
    pub endpoints: Vec<Endpoint>,
    /// `metadata.creationTimestamp` in seconds since 1970, for ties between slices (S3).
    pub created: i64,
}

/// One of a slice's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service port that it serves.
    pub name: Arc<str>,
    /// The protocol of the Service port that it serves.
    pub protocol: Protocol,
    /// The port at the endpoints, never 0.
    pub port: u16,
}

/// One of a slice's endpoints, conditions resolved by contract S4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `conditions.ready`, absent = true.
    pub ready: bool,
    /// `conditions.serving`, absent = true.
    pub serving: bool,
    /// `conditions.terminating`, absent = false.
    pub terminating: bool,
    /// `hints.forZones`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub node_hints: Vec<Arc<str>>,
}

/// What planning needs to know of the node that it plans for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeContext {
    /// The node's name; an endpoint is local when its `nodeName` is exactly this (S3).
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone` (S8).
    pub zone: Option<Arc<str>>,
    /// The addresses that count as pods (detect-local); empty = not configured, so that clusterIP traffic is never
    /// masqueraded (S28).
    pub pod_networks: Vec<IpNet>,
}
