//! Gets this node its subnets: what [`Assigner`] asks, asked of the API server (contract N2).

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use podway_overlay::{
    AssignAnswer, AssignPolicy, AssignRequest, AssignStep, Assigner, Assignment, Claim, NodeSubnets,
    Unassigned, claim_name,
};
use serde::de::DeserializeOwned;

use super::contact::root_cause;
use super::follow::answer;
use super::subnet_objects::{self, NODE_UID, NodeObject, claim, node_subnets};
use crate::Error;

/// A controller manager answers within a second; where one is at work, other Nodes show it. This is for the first
/// Nodes of a cluster, which may come while its controller manager starts.
const GRACE: Duration = Duration::from_secs(10);

/// Objects a page. A list of 5,000 Nodes at once would be 50 MB.
const PAGE: u32 = 250;

/// Why this node has no subnets.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// The cluster's state says so; to be tried again when it changes, and from time to time.
    #[error(transparent)]
    Unassigned(#[from] Unassigned),
    /// The API server did not do what it was asked; to be tried again.
    #[error(transparent)]
    Api(#[from] Error),
}

/// Claims subnets for one node: one Lease each, whose creation is the lock.
///
/// Rights: get, list Nodes; patch nodes/status; create, list, patch, delete Leases in the policy's namespace. To give
/// subnets to Nodes that have none: patch Nodes.
#[derive(Clone)]
pub struct SubnetClaims {
    policy: Arc<AssignPolicy>,
    leases: Api<Lease>,
    nodes: Api<NodeObject>,
    grace: Duration,
}

impl SubnetClaims {
    pub(super) fn new(client: Client, policy: AssignPolicy) -> Self {
        let leases = Api::namespaced(client.clone(), &policy.namespace);
        Self { policy: Arc::new(policy), leases, nodes: Api::all(client), grace: GRACE }
    }

    /// How long others have to assign subnets first, with [`AssignMode::Auto`](podway_overlay::AssignMode::Auto) in a
    /// cluster that shows no trace of any assignment. Default: 10 s.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Gets the subnets that this node holds, chosen now if it has none. Two requests where nothing has changed since
    /// the last time. To be called when the daemon starts and when its Node appears or its podCIDRs change; before it
    /// is through, none of the Node's podCIDRs may be used. May be dropped at any time and called again.
    ///
    /// # Errors
    /// Whoever gets [`AssignError`] must not use the Node's podCIDRs.
    pub async fn assign(&self) -> Result<Assignment, AssignError> {
        let mut assigner = self.assigner();
        loop {
            match assigner.step() {
                AssignStep::Finished(result) => return Ok(result?),
                AssignStep::Ask(request) => match self.ask(&request).await {
                    Ok(answer) => assigner.apply(answer),
                    Err(error) => return unguarded(&assigner, error),
                },
            }
        }
    }

    /// A new attempt, for who drives it step by step with [`ask`](Self::ask).
    pub fn assigner(&self) -> Assigner {
        Assigner::new(self.policy.clone(), RandomState::new().hash_one(0))
    }

    /// Asks the API server one thing.
    ///
    /// # Errors
    /// No answer, or one that no [`AssignAnswer`] is for, such as a right that is missing.
    pub async fn ask(&self, request: &AssignRequest) -> Result<AssignAnswer, Error> {
        let asked = match request {
            AssignRequest::Node => self.node().await,
            AssignRequest::Grace => {
                tokio::time::sleep(self.grace).await;
                Ok(AssignAnswer::Done)
            }
            AssignRequest::ClaimsOf(uid) => self.claims(&format!("{NODE_UID}={uid}")).await,
            AssignRequest::Claims => self.claims(NODE_UID).await,
            AssignRequest::Nodes => self.all_nodes().await,
            AssignRequest::Create { subnet, node_uid } => {
                let lease = subnet_objects::lease(subnet, node_uid, &self.policy);
                claimed(self.leases.create(&PostParams::default(), &lease).await, &["AlreadyExists"])
            }
            AssignRequest::Touch(claim) => self.touch(claim).await,
            AssignRequest::Delete(claim) => {
                let deletion = subnet_objects::deletion(claim);
                done(self.leases.delete(&claim_name(&claim.subnet), &deletion).await.map(drop))
            }
            AssignRequest::Write { node_uid, pod_cidrs, claims } => {
                let (node, how) = (&*self.policy.node, PatchParams::default());
                let patch = Patch::Merge(subnet_objects::node_patch(node_uid, pod_cidrs, claims));
                // Annotations can be written with the lesser right.
                done(match pod_cidrs.is_empty() {
                    true => self.nodes.patch_status(node, &how, &patch).await.map(drop),
                    false => self.nodes.patch(node, &how, &patch).await.map(drop),
                })
            }
        };
        asked.map_err(|error| self.failed(request, &error))
    }

    async fn node(&self) -> kube::Result<AssignAnswer> {
        let node = self.nodes.get_opt(&self.policy.node).await?;
        Ok(AssignAnswer::Node(node.map(node_subnets)))
    }

    async fn claims(&self, labels: &str) -> kube::Result<AssignAnswer> {
        let pages = ListParams::default().labels(labels).limit(PAGE);
        let claims: Vec<Claim> = list(&self.leases, pages, claim).await?;
        Ok(AssignAnswer::Claims(claims))
    }

    async fn all_nodes(&self) -> kube::Result<AssignAnswer> {
        let pages = ListParams::default().limit(PAGE);
        let nodes: Vec<NodeSubnets> = list(&self.nodes, pages, |node| Some(node_subnets(node))).await?;
        Ok(AssignAnswer::Nodes(nodes))
    }

    async fn touch(&self, claim: &Claim) -> kube::Result<AssignAnswer> {
        let patch = Patch::Merge(subnet_objects::renewal(claim));
        let patched = self.leases.patch(&claim_name(&claim.subnet), &PatchParams::default(), &patch).await;
        claimed(patched, &CHANGED)
    }

    fn failed(&self, request: &AssignRequest, error: &kube::Error) -> Error {
        let (cause, code) = match error {
            kube::Error::Api(status) => (answer(status), Some(status.code)),
            other => (root_cause(other), None),
        };
        Error::Assign { step: self.describe(request), cause, code }
    }

    fn describe(&self, request: &AssignRequest) -> String {
        let AssignPolicy { node, namespace, .. } = &*self.policy;
        let lease = |subnet| format!("Lease {namespace}/{}", claim_name(subnet));
        match request {
            AssignRequest::Node => format!("reading Node {node}"),
            AssignRequest::Grace => "waiting".to_owned(),
            AssignRequest::ClaimsOf(_) | AssignRequest::Claims => format!("listing Leases in {namespace}"),
            AssignRequest::Nodes => "listing Nodes".to_owned(),
            AssignRequest::Create { subnet, .. } => format!("creating {}", lease(subnet)),
            AssignRequest::Touch(claim) => format!("patching {}", lease(&claim.subnet)),
            AssignRequest::Delete(claim) => format!("deleting {}", lease(&claim.subnet)),
            AssignRequest::Write { .. } => format!("patching Node {node}"),
        }
    }
}

/// Reasons by which the API server says that an object is another one by now, or that a field must not change.
const CHANGED: [&str; 3] = ["Conflict", "NotFound", "Invalid"];

fn claimed(created: kube::Result<Lease>, refusals: &[&str]) -> kube::Result<AssignAnswer> {
    match created {
        // A Lease that was just written as a claim is one.
        Ok(lease) => Ok(claim(lease).map_or(AssignAnswer::Refused, AssignAnswer::Claim)),
        Err(kube::Error::Api(status)) if refusals.contains(&&*status.reason) => Ok(AssignAnswer::Refused),
        Err(error) => Err(error),
    }
}

fn done(result: kube::Result<()>) -> kube::Result<AssignAnswer> {
    match result {
        Ok(()) => Ok(AssignAnswer::Done),
        Err(kube::Error::Api(status)) if CHANGED.contains(&&*status.reason) => Ok(AssignAnswer::Refused),
        Err(error) => Err(error),
    }
}

/// Page by page: all of one version, read from the store itself because no version is asked for.
async fn list<K, T>(
    api: &Api<K>,
    mut pages: ListParams,
    read: impl Fn(K) -> Option<T>,
) -> kube::Result<Vec<T>>
where
    K: Clone + DeserializeOwned + Debug + Resource,
{
    let mut all = Vec::new();
    loop {
        let page = api.list(&pages).await?;
        all.extend(page.items.into_iter().filter_map(&read));
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => pages = pages.continue_token(&next),
            None => return Ok(all),
        }
    }
}

/// Subnets that others gave are used even where podway may not claim them, or has no namespace to do it in: it never could
/// before.
fn unguarded(assigner: &Assigner, error: Error) -> Result<Assignment, AssignError> {
    let cannot_claim = matches!(error, Error::Assign { code: Some(403 | 404), .. });
    match assigner.given().filter(|_| cannot_claim) {
        Some(given) => Ok(Assignment { unguarded: Some(error.to_string()), ..given }),
        None => Err(error.into()),
    }
}
