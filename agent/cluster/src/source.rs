//! A source, whichever it is.

use tokio::sync::mpsc::Sender;

use crate::api_server::ApiServer;
use crate::{DirectoryConfig, Error, Event, NodeWriter, SourceConfig, directory};

/// A place that the cluster state comes from, ready to be followed.
pub struct Source(Inner);

enum Inner {
    Kube(ApiServer),
    Directory(DirectoryConfig),
}

impl Source {
    /// Reads what the configuration points to (kubeconfig, certificates); connects to nothing yet.
    ///
    /// # Errors
    /// What only a change of the configuration can mend.
    pub async fn open(config: &SourceConfig) -> Result<Self, Error> {
        match config {
            SourceConfig::Kube(config) => Ok(Self(Inner::Kube(ApiServer::open(config).await?))),
            SourceConfig::Directory(config) => Ok(Self(Inner::Directory(config.clone()))),
        }
    }

    /// What writes to Nodes; none where they are files.
    pub fn node_writer(&self) -> Option<NodeWriter> {
        match &self.0 {
            Inner::Kube(server) => Some(server.node_writer()),
            Inner::Directory(_) => None,
        }
    }

    /// Follows the cluster until the receiver of `events` is dropped. Whatever goes wrong meanwhile is an
    /// [`Event::Problem`] and tried again: a source that was opened does not fail.
    pub async fn run(self, events: Sender<Event>) {
        match self.0 {
            Inner::Kube(server) => server.run(events).await,
            Inner::Directory(config) => directory::run(config, events).await,
        }
    }
}
