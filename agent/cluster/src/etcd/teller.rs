//! What was told to the rest of the daemon, so that nothing is told twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use podway_overlay::Node;
use tokio::sync::mpsc::Sender;

use crate::outage::Outage;
use crate::{Event, Kind, Problem};

/// The way to the receiver of events.
#[derive(Debug)]
pub(super) struct Teller {
    events: Sender<Event>,
    peers: BTreeSet<Arc<str>>,
    own: Option<Node>,
    /// What is wrong with a key.
    faults: BTreeMap<Arc<str>, String>,
    troubles: Outage,
    outage: Outage,
    lost: bool,
    synced: bool,
}

impl Teller {
    pub(super) fn new(events: Sender<Event>) -> Self {
        let (troubles, outage) = (Outage::default(), Outage::default());
        let (peers, faults) = (BTreeSet::new(), BTreeMap::new());
        Self { events, peers, own: None, faults, troubles, outage, lost: false, synced: false }
    }

    /// Tells of a peer that changed, or that is gone if it was told of.
    pub(super) async fn peer(&mut self, name: &Arc<str>, node: Option<Node>) {
        let told = match node {
            Some(_) => !self.peers.insert(name.clone()),
            None => self.peers.remove(name),
        };
        if told || node.is_some() {
            self.send(Event::Node(name.clone(), node)).await;
        }
    }

    /// Tells of our own Node if it differs from what was told.
    pub(super) async fn own(&mut self, node: Node) {
        if self.own.as_ref() != Some(&node) {
            self.own = Some(node.clone());
            self.send(Event::Node(node.name.clone(), Some(node))).await;
        }
    }

    /// Tells what is wrong with a key, until it is something else.
    pub(super) async fn fault(&mut self, key: &Arc<str>, subject: String, fault: Option<String>) {
        if self.faults.get(key) == fault.as_ref() {
            return;
        }
        let Some(message) = fault else {
            self.faults.remove(key);
            return;
        };
        self.faults.insert(key.clone(), message.clone());
        self.send(Event::Problem(Problem { subject, field: String::new(), message })).await;
    }

    /// Tells of a trouble, each once a minute.
    pub(super) async fn problem(&mut self, subject: &str, message: String) {
        let problem = Problem { subject: subject.to_owned(), field: String::new(), message };
        if self.troubles.failed(&problem.to_string(), Instant::now()) {
            self.send(Event::Problem(problem)).await;
        }
    }

    /// Tells that etcd cannot be followed, and why, once a minute; and once that it is lost.
    pub(super) async fn outage(&mut self, message: String) {
        if !std::mem::replace(&mut self.lost, true) {
            self.contact(Some(message.clone())).await;
        }
        if self.outage.failed(&message, Instant::now()) {
            let subject = "node subnets".to_owned();
            let message = format!("{message}; what is known of other nodes stands");
            self.send(Event::Problem(Problem { subject, field: String::new(), message })).await;
        }
    }

    /// Tells that etcd is followed again.
    pub(super) async fn recovered(&mut self) {
        if std::mem::take(&mut self.lost) {
            self.contact(None).await;
        }
        if let Some(lasted) = self.outage.over(Instant::now()) {
            tracing::info!(?lasted, "etcd is followed again");
        }
    }

    /// Tells once that all there is was told.
    pub(super) async fn synced(&mut self) {
        if !std::mem::replace(&mut self.synced, true) {
            self.send(Event::Synced(Kind::Node)).await;
        }
    }

    /// Returns when nobody listens any more.
    pub(super) async fn closed(&self) {
        self.events.closed().await;
    }

    async fn contact(&self, lost: Option<String>) {
        self.send(Event::Contact { server: "etcd".to_owned(), lost }).await;
    }

    async fn send(&self, event: Event) {
        // Who does not listen is not told; the caller ends by `closed`.
        let _ = self.events.send(event).await;
    }
}
