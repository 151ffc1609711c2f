//! The `kube` source: Services, EndpointSlices and Nodes from an API server, and what is written to Nodes.

mod connection;
mod contact;
mod fold;
mod follow;
mod node_writer;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc::Sender;

use self::contact::Contact;
use self::follow::follow;
pub use self::node_writer::NodeWriter;
use crate::{Error, Event, KubeConfig, manifest};

/// A configured API server.
pub(crate) struct ApiServer {
    client: Client,
    contact: Arc<Contact>,
}

impl ApiServer {
    /// See [`crate::Source::open`].
    pub(crate) async fn open(config: &KubeConfig) -> Result<Self, Error> {
        let config = connection::settings(config).await?;
        let contact = Arc::new(Contact::new(&config.cluster_url));
        let client = connection::client(config, contact.clone())?;
        Ok(Self { client, contact })
    }

    pub(crate) fn node_writer(&self) -> NodeWriter {
        NodeWriter::new(self.client.clone())
    }

    /// Follows the three kinds until nobody listens any more.
    pub(crate) async fn run(self, events: Sender<Event>) {
        let Self { client, contact } = &self;
        let kinds = async {
            tokio::try_join!(
                follow::<manifest::Service>(client, contact, &events),
                follow::<manifest::EndpointSlice>(client, contact, &events),
                follow::<manifest::Node>(client, contact, &events),
            )
        };
        tokio::select! {
            () = events.closed() => {}
            _ = kinds => {}
        }
    }
}
