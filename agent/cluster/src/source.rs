//! A source, whichever it is.

use podway_overlay::AssignPolicy;
use tokio::sync::mpsc::Sender;

use crate::api_server::ApiServer;
use crate::{
    DirectoryConfig, Error, Event, EventWriter, NodeWriter, SourceConfig, SubnetClaims, Wanted, directory,
};

/// A place that the cluster state comes from, ready to be followed.
pub struct Source {
    inner: Inner,
    wanted: Wanted,
}

enum Inner {
    Kube(ApiServer),
    Directory(DirectoryConfig),
}

impl Source {
    /// Reads what the configuration points to (kubeconfig, certificates); connects to nothing yet. The source will
    /// tell of what is `wanted`.
    ///
    /// # Errors
    /// What only a change of the configuration can mend.
    pub async fn open(config: &SourceConfig, wanted: &Wanted) -> Result<Self, Error> {
        let inner = match config {
            SourceConfig::Kube(config) => Inner::Kube(ApiServer::open(config).await?),
            SourceConfig::Directory(config) => Inner::Directory(config.clone()),
        };
        Ok(Self { inner, wanted: wanted.clone() })
    }

    /// What writes to Nodes; none where they are files.
    pub fn node_writer(&self) -> Option<NodeWriter> {
        match &self.inner {
            Inner::Kube(server) => Some(server.node_writer()),
            Inner::Directory(_) => None,
        }
    }

    /// What tells of problems where `kubectl describe` shows them; none where objects are files. Writes on the runtime
    /// that this is called in. `node` is this node's name.
    pub fn event_writer(&self, node: &str) -> Option<EventWriter> {
        match &self.inner {
            Inner::Kube(server) => Some(server.event_writer(node)),
            Inner::Directory(_) => None,
        }
    }

    /// What gets this node its subnets; none where Nodes are files.
    pub fn subnet_claims(&self, policy: AssignPolicy) -> Option<SubnetClaims> {
        match &self.inner {
            Inner::Kube(server) => Some(server.subnet_claims(policy)),
            Inner::Directory(_) => None,
        }
    }

    /// Follows the cluster until the receiver of `events` is dropped. Whatever goes wrong meanwhile is an
    /// [`Event::Problem`] and tried again: a source that was opened does not fail, and does not end before its
    /// receiver does. A panic anywhere within comes out of this call.
    pub async fn run(self, events: Sender<Event>) {
        match self.inner {
            Inner::Kube(server) => server.run(&self.wanted, events).await,
            Inner::Directory(config) => directory::run(config, self.wanted, events).await,
        }
    }
}
