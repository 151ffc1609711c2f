//! Kubernetes Events: what went wrong with a Node or a Service, where `kubectl describe` shows it.
//!
//! kube's own recorder takes two Events of one reason for the same, whatever their notes say; here the note is what
//! names the subnet or the port.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use podway_overlay::{Reason, Unassigned};
use podway_proxy::ObjectName;
use serde_json::json;
use tokio::sync::mpsc;

use super::contact::root_cause;
use super::event_ledger::{Entry, Ledger};
use super::follow::answer;
use crate::outage::Outage;

/// Who reports.
const CONTROLLER: &str = "podway";

/// More than a node can have to tell at once; what comes beyond is dropped.
const QUEUE: usize = 256;

/// The API server takes no longer note (kubernetes, pkg/apis/core/validation/events.go).
const LONGEST_NOTE: usize = 1024;

/// Tells the cluster of what happens. Clones share one queue; dropping the last one ends the writing.
///
/// Rights: create and patch events.k8s.io in all namespaces: an Event is in its object's namespace.
#[derive(Clone)]
pub struct EventWriter(mpsc::Sender<Occurrence>);

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regarding {
    /// A Node.
    Node {
        /// Its name.
        name: Arc<str>,
        /// Its uid; empty where it is not known: then `kubectl describe` does not show the Event.
        uid: Arc<str>,
    },
    /// A Service. Its uid is not known, so that `kubectl events --for` shows the Event, and `kubectl describe` does not.
    Service(ObjectName),
}

/// Every reason that podway gives, as the Event shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventReason {
    /// podway chose the Node's subnets (normal).
    SubnetAssigned,
    /// The Node has no subnets, and podway leaves them to others.
    SubnetMissing,
    /// The range has no free subnet.
    SubnetsExhausted,
    /// Another machine of the same node name holds the Node's subnets.
    SubnetHeldElsewhere,
    /// Two Nodes have overlapping subnets, or one VTEP MAC.
    SubnetConflict,
    /// A Node's subnet is outside the pod network.
    SubnetOutside,
    /// The ranges of pods or Services overlap each other, a network of the machine, or a node's address.
    RangeOverlap,
    /// Annotations or addresses of a Node cannot be used.
    NodeUnusable,
    /// The interface to other nodes cannot be used for a family, or not as peers expect.
    InterfaceUnusable,
    /// Links, routes or rules could not be programmed.
    NetworkIncomplete,
    /// Another program changes the same links, routes or rules over and over.
    NetworkContended,
    /// Two Services want one address and port.
    ServiceConflict,
    /// Fields of a Service or its EndpointSlices cannot be used.
    ServiceInvalid,
    /// A Service could not be programmed.
    ServiceIncomplete,
}

impl fmt::Display for EventReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl From<&Unassigned> for EventReason {
    fn from(why: &Unassigned) -> Self {
        match why {
            Unassigned::NoNode(_) | Unassigned::LeftToOthers(_) | Unassigned::OthersAssign { .. } => {
                Self::SubnetMissing
            }
            Unassigned::OtherMachine { .. } => Self::SubnetHeldElsewhere,
            Unassigned::Taken { .. } | Unassigned::Contended { .. } => Self::SubnetConflict,
            Unassigned::Exhausted { .. } => Self::SubnetsExhausted,
        }
    }
}

impl From<&Reason> for EventReason {
    fn from(reason: &Reason) -> Self {
        match reason {
            Reason::NoSubnet(_) => Self::SubnetMissing,
            Reason::SubnetOutside(_) => Self::SubnetOutside,
            Reason::SubnetTaken { .. } | Reason::MacTaken { .. } => Self::SubnetConflict,
            Reason::SubnetCovers { .. }
            | Reason::AddressInSubnet { .. }
            | Reason::AddressInPodNetwork { .. }
            | Reason::AddressInServiceRange { .. } => Self::RangeOverlap,
            Reason::ExternalAddress { .. } | Reason::AddressDiffers { .. } | Reason::MtuTooSmall(_) => {
                Self::InterfaceUnusable
            }
            _ => Self::NodeUnusable,
        }
    }
}

/// One thing that happened; equal ones are one Event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Occurrence {
    pub(super) regarding: Regarding,
    pub(super) is_warning: bool,
    pub(super) reason: EventReason,
    pub(super) action: String,
    pub(super) note: String,
}

impl EventWriter {
    /// Starts writing, on the runtime that this is called in. `node` is this node's name.
    pub(super) fn start(client: Client, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter { client, node: node.to_owned(), outage: Outage::default() };
        tokio::spawn(reporter.run(receiver));
        Self(sender)
    }

    /// Something is as it should be, and worth knowing. `action` is what podway did, in one word such as `Assign`.
    pub fn normal(&self, regarding: Regarding, reason: EventReason, action: &str, note: &str) {
        self.record(regarding, false, reason, action, note);
    }

    /// Something is wrong; `note` says what, and what to do. `action` is what podway did, or could not do.
    pub fn warning(&self, regarding: Regarding, reason: EventReason, action: &str, note: &str) {
        self.record(regarding, true, reason, action, note);
    }

    /// Never waits: what does not fit into the queue is in the log all the same.
    fn record(&self, regarding: Regarding, is_warning: bool, reason: EventReason, action: &str, note: &str) {
        let note = note[..note.floor_char_boundary(LONGEST_NOTE)].to_owned();
        let occurrence = Occurrence { regarding, is_warning, reason, action: action.to_owned(), note };
        if self.0.try_send(occurrence).is_err() {
            tracing::debug!(%reason, "an Event is dropped: too many wait for the API server");
        }
    }
}

struct Reporter {
    client: Client,
    node: String,
    outage: Outage,
}

impl Reporter {
    async fn run(mut self, mut occurrences: mpsc::Receiver<Occurrence>) {
        let mut ledger = Ledger::new(Instant::now());
        while let Some(occurrence) = occurrences.recv().await {
            let name = format!("{}.{:x}", occurrence.regarding.name(), Timestamp::now().as_nanosecond());
            let Some(entry) = ledger.apply(&occurrence, name, Instant::now()) else { continue };
            match self.write(&occurrence, entry).await {
                Ok(()) => drop(self.outage.over(Instant::now())),
                Err(error) => {
                    ledger.forget(&occurrence);
                    self.complain(&error);
                }
            }
        }
    }

    async fn write(&self, occurrence: &Occurrence, entry: Entry) -> kube::Result<()> {
        let namespace = occurrence.regarding.event_namespace();
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match entry {
            Entry::New { name } => {
                let event = event(occurrence, name, &self.node);
                events.create(&PostParams::default(), &event).await.map(drop)
            }
            Entry::Again { name, count } => {
                let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
                let patch = Patch::Merge(json!({ "series": series }));
                events.patch(&name, &PatchParams::default(), &patch).await.map(drop)
            }
        }
    }

    fn complain(&mut self, error: &kube::Error) {
        let why = match error {
            kube::Error::Api(status) => answer(status),
            other => root_cause(other),
        };
        if self.outage.failed(&why, Instant::now()) {
            tracing::warn!("Events are not written, their text is in this log: {why}");
        }
    }
}

fn event(occurrence: &Occurrence, name: String, node: &str) -> Event {
    let kind = if occurrence.is_warning { "Warning" } else { "Normal" };
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(occurrence.regarding.event_namespace().to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(occurrence.regarding.reference()),
        type_: Some(kind.to_owned()),
        reason: Some(occurrence.reason.to_string()),
        action: Some(occurrence.action.clone()),
        note: Some(occurrence.note.clone()),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

impl Regarding {
    fn name(&self) -> &str {
        match self {
            Self::Node { name, .. } => name,
            Self::Service(name) => name.name(),
        }
    }

    /// Events of what has no namespace are in `default`, as the kubelet's are.
    fn event_namespace(&self) -> &str {
        match self {
            Self::Node { .. } => "default",
            Self::Service(name) => name.namespace(),
        }
    }

    fn reference(&self) -> ObjectReference {
        let (kind, namespace, uid) = match self {
            Self::Node { uid, .. } => ("Node", None, Some(uid.to_string()).filter(|uid| !uid.is_empty())),
            Self::Service(name) => ("Service", Some(name.namespace().to_owned()), None),
        };
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(self.name().to_owned()),
            namespace,
            uid,
            ..ObjectReference::default()
        }
    }
}
