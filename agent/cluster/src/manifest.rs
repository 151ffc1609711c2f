//! Kubernetes objects as they are written, cut down to the fields that are read.
//!
//! Everything else, managedFields first of all, is skipped while parsing and never on the heap. Every field may be
//! absent or null; what that means is decided in [`crate::decode`].

use std::collections::BTreeMap;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// What flannel's Node annotations begin with, when it is not the usual.
static ANNOTATION_PREFIX: OnceLock<String> = OnceLock::new();

/// Takes another beginning for flannel's Node annotations, slash or hyphen included (flannel's
/// --kube-annotation-prefix). To be called once, before the first source is opened: objects are cut down to what is
/// read while they are parsed, where nothing but a constant of the process is at hand.
pub fn use_annotation_prefix(prefix: &str) {
    // A second call would come too late for what has been read; the first one stands.
    let _ = ANNOTATION_PREFIX.set(prefix.to_owned());
}

pub(crate) fn annotation_prefix() -> &'static str {
    ANNOTATION_PREFIX.get().map_or(podway_overlay::ANNOTATION_PREFIX, String::as_str)
}

pub(crate) const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Debug, Clone, Default, Deserialize, Resource)]
#[resource(inherit = "core::Service")]
pub(crate) struct Service {
    #[serde(default, deserialize_with = "slim_metadata")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: Option<ServiceSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Option<Vec<String>>,
    pub(crate) ip_families: Option<Vec<String>>,
    pub(crate) ports: Option<Vec<ServicePort>>,
    pub(crate) internal_traffic_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize, Resource)]
#[resource(inherit = "discovery::EndpointSlice")]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EndpointSlice {
    #[serde(deserialize_with = "slim_metadata")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) address_type: Option<String>,
    pub(crate) endpoints: Option<Vec<Endpoint>>,
    pub(crate) ports: Option<Vec<SlicePort>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Endpoint {
    pub(crate) addresses: Option<Vec<String>>,
    pub(crate) conditions: Option<Conditions>,
    pub(crate) node_name: Option<String>,
    pub(crate) hints: Option<Hints>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Hints {
    pub(crate) for_zones: Option<Vec<Named>>,
    pub(crate) for_nodes: Option<Vec<Named>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Named {
    pub(crate) name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SlicePort {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize, Resource)]
#[resource(inherit = "core::Node")]
#[serde(default)]
pub(crate) struct Node {
    #[serde(deserialize_with = "slim_metadata")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<NodeSpec>,
    pub(crate) status: Option<NodeStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    pub(crate) addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress {
    #[serde(rename = "type")]
    pub(crate) type_: Option<String>,
    pub(crate) address: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, Resource)]
#[resource(inherit = "networking::ServiceCIDR")]
#[serde(default)]
pub(crate) struct ServiceCidr {
    #[serde(deserialize_with = "slim_metadata")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<ServiceCidrSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceCidrSpec {
    pub(crate) cidrs: Option<Vec<String>>,
}

/// Reads a `metadata`, keeping the labels and annotations that some decision looks at.
fn slim_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = Option::<SlimMetadata>::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        creation_timestamp: slim.creation_timestamp,
        labels: kept(slim.labels, |key| [SERVICE_PROXY_NAME, HEADLESS, SERVICE_NAME, ZONE].contains(&key)),
        annotations: kept(slim.annotations, |key| key.starts_with(annotation_prefix())),
        ..ObjectMeta::default()
    })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<Entries>,
    annotations: Option<Entries>,
}

/// Labels or annotations; a null value is an empty one, as for the API server.
type Entries = BTreeMap<String, Option<String>>;

fn kept(entries: Option<Entries>, wanted: impl Fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let entries = entries?.into_iter().filter(|(key, _)| wanted(key));
    Some(entries.map(|(key, value)| (key, value.unwrap_or_default())).collect())
}
