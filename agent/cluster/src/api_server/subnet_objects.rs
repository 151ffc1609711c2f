//! Claims and Nodes as the API server holds them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::{DeleteParams, Preconditions};
use podway_overlay::{AssignPolicy, Claim, NodeSubnets, claim_name, claim_subnet};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::manifest::NodeSpec;

/// The label of every claim: the uid of its Node.
pub(super) const NODE_UID: &str = "podway/node-uid";

/// The annotation of a claim that says its Node's name, for people.
const NODE_NAME: &str = "podway/node";

/// The Node annotation with the uids of the claims that its subnets are held by.
const CLAIMS: &str = "podway/subnet-claims";

/// The Node annotation that is there if podway chose the subnets.
const ASSIGNED: &str = "podway/assigned-subnets";

/// A Node without what is of no use here: in a large cluster all of them are listed.
#[derive(Debug, Clone, Default, Deserialize, Resource)]
#[resource(inherit = "core::Node")]
#[serde(default)]
pub(super) struct NodeObject {
    #[serde(deserialize_with = "slim")]
    pub(super) metadata: ObjectMeta,
    spec: Option<NodeSpec>,
}

/// A new claim. The cluster's garbage collector deletes it when its Node goes.
pub(super) fn lease(subnet: &IpNet, node_uid: &str, policy: &AssignPolicy) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: policy.node.to_string(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    };
    let now = Some(MicroTime(Timestamp::now()));
    Lease {
        metadata: ObjectMeta {
            name: Some(claim_name(subnet)),
            labels: Some([(NODE_UID.to_owned(), node_uid.to_owned())].into()),
            annotations: Some([(NODE_NAME.to_owned(), policy.node.to_string())].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(policy.machine.to_string()),
            acquire_time: now.clone(),
            renew_time: now,
            ..LeaseSpec::default()
        }),
    }
}

/// The claim that a Lease is; `None` for one that is not podway's.
pub(super) fn claim(lease: Lease) -> Option<Claim> {
    let ObjectMeta { name, uid, resource_version, labels, .. } = lease.metadata;
    Some(Claim {
        subnet: claim_subnet(&name?)?,
        uid: uid?.into(),
        version: resource_version?.into(),
        node_uid: labels?.remove(NODE_UID)?.into(),
        machine: lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default().into(),
    })
}

/// A patch that gives a claim a new version, unless it has got one already.
pub(super) fn renewal(claim: &Claim) -> Value {
    json!({
        "metadata": { "uid": &*claim.uid, "resourceVersion": &*claim.version },
        "spec": { "renewTime": MicroTime(Timestamp::now()) },
    })
}

/// Only this very claim, as it was read.
pub(super) fn deletion(claim: &Claim) -> DeleteParams {
    let (uid, version) = (claim.uid.to_string(), claim.version.to_string());
    let preconditions = Preconditions { uid: Some(uid), resource_version: Some(version) };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

/// A merge patch of the Node with this uid. The API server refuses to change podCIDRs that are set.
pub(super) fn node_patch(node_uid: &str, pod_cidrs: &[IpNet], claims: &[Arc<str>]) -> Value {
    let mut patch = json!({ "metadata": { "uid": node_uid, "annotations": { CLAIMS: claims.join(",") } } });
    if let Some(first) = pod_cidrs.first() {
        let all: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
        patch["metadata"]["annotations"][ASSIGNED] = all.join(",").into();
        patch["spec"] = json!({ "podCIDR": first, "podCIDRs": all });
    }
    patch
}

/// What a Node shows of its subnets. What is no subnet is left out: the API server lets none through.
pub(super) fn node_subnets(node: NodeObject) -> NodeSubnets {
    let annotations = node.metadata.annotations.unwrap_or_default();
    let claims = annotations.get(CLAIMS).map(String::as_str).unwrap_or_default();
    let spec = node.spec.unwrap_or_default();
    let cidrs = spec.pod_cidrs.filter(|cidrs| !cidrs.is_empty());
    let cidrs = cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    NodeSubnets {
        name: node.metadata.name.unwrap_or_default().into(),
        uid: node.metadata.uid.unwrap_or_default().into(),
        pod_cidrs: cidrs
            .iter()
            .filter_map(|cidr| cidr.parse().ok())
            .map(|cidr: IpNet| cidr.trunc())
            .collect(),
        claims: claims.split(',').filter(|uid| !uid.is_empty()).map(Into::into).collect(),
        assigned: annotations.contains_key(ASSIGNED),
    }
}

fn slim<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    struct Slim {
        name: Option<String>,
        uid: Option<String>,
        annotations: Option<BTreeMap<String, Option<String>>>,
    }
    let Slim { name, uid, annotations } = Slim::deserialize(deserializer)?;
    let kept = annotations.into_iter().flatten().filter(|(key, _)| [CLAIMS, ASSIGNED].contains(&&**key));
    let annotations = Some(kept.map(|(key, value)| (key, value.unwrap_or_default())).collect());
    Ok(ObjectMeta { name, uid, annotations, ..ObjectMeta::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n2_a_claim_is_read_as_it_was_written_and_belongs_to_its_node() {
        let policy = AssignPolicy {
            node: "node-1".into(),
            machine: "m".into(),
            mode: podway_overlay::AssignMode::Always,
            ranges: Vec::new(),
            namespace: "podway-subnets".into(),
        };
        let mut written = lease(&"10.77.12.0/24".parse().unwrap(), "u", &policy);
        let owners = written.metadata.owner_references.clone().unwrap();
        assert_eq!((&*owners[0].kind, &*owners[0].name, &*owners[0].uid), ("Node", "node-1", "u"));
        assert_eq!(claim(written.clone()), None, "the API server has not given it a uid");
        written.metadata.uid = Some("l".to_owned());
        written.metadata.resource_version = Some("7".to_owned());
        let read = claim(written).unwrap();
        assert_eq!(
            (read.subnet.to_string(), &*read.node_uid, &*read.machine),
            ("10.77.12.0/24".to_owned(), "u", "m")
        );
    }

    #[test]
    fn n2_a_node_says_whose_its_subnets_are() {
        let read = |object: Value| node_subnets(serde_json::from_value(object).unwrap());
        let cidrs = ["10.77.12.0/24".parse().unwrap(), "fd77:0:0:c::/64".parse().unwrap()];
        let mut object = node_patch("u", &cidrs, &["a".into(), "b".into()]);
        object["metadata"]["name"] = "node-1".into();
        let node = read(object.clone());
        assert_eq!(
            (node.pod_cidrs, node.claims, node.assigned),
            (cidrs.to_vec(), vec!["a".into(), "b".into()], true)
        );
        assert_eq!(object["spec"]["podCIDR"], "10.77.12.0/24");
        let given =
            read(json!({"metadata": {"name": "n", "uid": "u"}, "spec": {"podCIDR": "10.77.12.0/24"}}));
        assert_eq!((given.pod_cidrs.len(), given.assigned), (1, false));
        assert_eq!(node_patch("u", &[], &[]).get("spec"), None, "what a Node was given is not written");
    }
}
