//! The `kube` source: Services, EndpointSlices, Nodes and ServiceCIDRs from an API server, and what is written to Nodes.

mod connection;
mod contact;
mod event_ledger;
mod event_writer;
mod fold;
mod follow;
mod node_writer;
mod pod;
mod subnet_claims;
mod subnet_objects;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kube::Client;
use kube::runtime::watcher;
use podway_overlay::AssignPolicy;
use tokio::sync::mpsc::Sender;

use self::contact::Contact;
pub use self::event_writer::{EventReason, EventWriter, Regarding};
use self::follow::{Closed, Followed, endpoint_slices, follow, nodes, services};
pub use self::node_writer::NodeWriter;
pub use self::pod::node_of_pod;
pub use self::subnet_claims::{AssignError, SubnetClaims};
use crate::{Error, Event, KubeConfig, Wanted, manifest};

/// A configured API server.
pub(crate) struct ApiServer {
    client: Client,
    contact: Arc<Contact>,
}

impl ApiServer {
    /// See [`crate::Source::open`].
    pub(crate) async fn open(config: &KubeConfig) -> Result<Self, Error> {
        let (config, address) = connection::settings(config).await?;
        let contact = Arc::new(Contact::new(&config.cluster_url, address));
        let client = connection::client(config, contact.clone())?;
        Ok(Self { client, contact })
    }

    pub(crate) fn node_writer(&self) -> NodeWriter {
        NodeWriter::new(self.client.clone())
    }

    pub(crate) fn event_writer(&self, node: &str) -> EventWriter {
        EventWriter::start(self.client.clone(), node)
    }

    pub(crate) fn subnet_claims(&self, policy: AssignPolicy) -> SubnetClaims {
        SubnetClaims::new(self.client.clone(), policy)
    }

    /// Follows what is wanted until nobody listens any more.
    pub(crate) async fn run(self, wanted: &Wanted, events: Sender<Event>) {
        tokio::select! {
            () = events.closed() => {}
            () = self.contact.tell(&events) => {}
            Err(Closed) = self.follow_wanted(wanted, &events) => {}
        }
    }

    // One task, not one a kind: a panic in any of them is a panic of whoever runs this.
    async fn follow_wanted(&self, wanted: &Wanted, events: &Sender<Event>) -> Result<(), Closed> {
        if let Some(problem) = self.contact.doubt() {
            events.send(Event::Problem(problem)).await.map_err(|_| Closed)?;
        }
        tokio::try_join!(
            self.follow::<manifest::Service>(wanted.services.then(services), events),
            self.follow::<manifest::EndpointSlice>(wanted.services.then(endpoint_slices), events),
            self.follow::<manifest::Node>(nodes(&wanted.nodes), events),
            self.follow::<manifest::ServiceCidr>(wanted.service_cidrs.then(watcher::Config::default), events),
        )?;
        Ok(())
    }

    async fn follow<K: Followed>(
        &self,
        selected: Option<watcher::Config>,
        events: &Sender<Event>,
    ) -> Result<(), Closed> {
        match selected {
            Some(selected) => follow::<K>(&self.client, selected, &self.contact, events).await,
            None => Ok(()),
        }
    }
}
