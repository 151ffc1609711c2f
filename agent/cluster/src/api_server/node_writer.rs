//! What is written to Nodes: annotations, and that the network works.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::contact::root_cause;
use super::follow::answer;
use crate::{Error, manifest};

/// Writes to Nodes, by one patch to `nodes/status` each: no further right is needed (contract N5).
#[derive(Clone)]
pub struct NodeWriter(Api<manifest::Node>);

impl NodeWriter {
    pub(super) fn new(client: Client) -> Self {
        Self(Api::all(client))
    }

    /// Sets flannel's annotations on a Node, keys without flannel's prefix as in [`podway_overlay::Node`]; others
    /// stay. Writes even when nothing differs: whoever calls has the Node and can compare.
    ///
    /// # Errors
    /// [`Error::Patch`].
    pub async fn annotate(&self, node: &str, annotations: &BTreeMap<String, String>) -> Result<(), Error> {
        let prefix = manifest::annotation_prefix();
        let annotations: BTreeMap<String, &String> =
            annotations.iter().map(|(key, value)| (format!("{prefix}{key}"), value)).collect();
        self.patch(node, json!({ "metadata": { "annotations": annotations } })).await
    }

    /// Sets condition NetworkUnavailable=False on a Node (contract N18): pods that wait for the network are
    /// scheduled. `now` becomes the time of the transition.
    ///
    /// # Errors
    /// [`Error::Patch`].
    pub async fn network_available(&self, node: &str, now: SystemTime) -> Result<(), Error> {
        let now = Time(Timestamp::try_from(now).unwrap_or_default());
        let condition = json!({
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "PodwayIsUp",
            "message": "podway is running on this node",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        });
        self.patch(node, json!({ "status": { "conditions": [condition] } })).await
    }

    async fn patch(&self, node: &str, patch: Value) -> Result<(), Error> {
        let patched = self.0.patch_status(node, &PatchParams::default(), &Patch::Strategic(patch)).await;
        patched.map(drop).map_err(|error| failed(node, &error))
    }
}

fn failed(node: &str, error: &kube::Error) -> Error {
    let (cause, code) = match error {
        kube::Error::Api(status) => (answer(status), Some(status.code)),
        other => (root_cause(other), None),
    };
    Error::Patch { node: node.to_owned(), cause, code }
}
