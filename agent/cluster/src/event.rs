//! What every source ends in.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use podway_overlay::Node;
use podway_proxy::{EndpointSlice, ObjectName, Service};

/// A fact about the cluster. For one object, the last event is the truth; `None` says that it is gone or no longer
/// to be looked at (contract S1). A list that is repeated after a broken watch ends in the same events, the
/// deletions that were missed included.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A Service appeared, changed or went.
    Service(ObjectName, Option<Service>),
    /// An EndpointSlice appeared, changed or went.
    EndpointSlice(ObjectName, Option<EndpointSlice>),
    /// A Node appeared, changed or went.
    Node(Arc<str>, Option<Node>),
    /// A ServiceCIDR appeared, changed or went: addresses that Services may get.
    ServiceCidr(Arc<str>, Option<Vec<IpNet>>),
    /// What could be read of the first list of a kind is through, and some could not: a file is broken, unreadable or
    /// being written. What was told may be programmed; what was not told may exist, so nothing may be removed for
    /// it. Sent at most once a kind and only before [`Event::Synced`]; an API server's lists are whole or not told.
    Partial(Kind),
    /// The first complete list of a kind is through (contract S32): what was not told does not exist. Sent once a
    /// kind that is [`Wanted`](crate::Wanted).
    Synced(Kind),
    /// Something could not be used; the rest goes on.
    Problem(Problem),
    /// A server was lost, or answers again: told once for each of both, beside the [`Event::Problem`]s that remind of
    /// it. What was told before stands meanwhile. At the start a server is taken to answer.
    Contact {
        /// Which: `API server https://192.0.2.1:6443`, `etcd`.
        server: String,
        /// Why it was lost; `None` when it answers.
        lost: Option<String>,
    },
}

/// A kind of object that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
    /// Nodes.
    Node,
    /// ServiceCIDRs; a cluster that does not have them is synced without any.
    ServiceCidr,
}

/// Input that could not be used, named so that its owner can mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object (`Service shop/web`) or the file and line (`shop.yaml:12`).
    pub subject: String,
    /// The field's path (`spec.clusterIPs[1]`), empty when the whole subject is meant.
    pub field: String,
    /// What is wrong and what becomes of it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.subject, self.message),
            field => write!(f, "{}: {field}: {}", self.subject, self.message),
        }
    }
}
