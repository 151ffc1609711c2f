//! Which Node a pod runs on.

use kube::core::Request;
use kube::core::request::Error as RequestError;
use serde::Deserialize;

use super::ApiServer;
use super::contact::root_cause;
use super::follow::answer;
use crate::{Error, KubeConfig};

/// The Node of a pod, `spec.nodeName`; none if it is on no Node. Needs the right to get pods.
///
/// # Errors
/// What only a change of the configuration can mend, and [`Error::Pod`].
pub async fn node_of_pod(config: &KubeConfig, namespace: &str, name: &str) -> Result<Option<String>, Error> {
    let client = ApiServer::open(config).await?.client;
    let failed = |error: &kube::Error| {
        let (cause, code) = match error {
            kube::Error::Api(status) => (answer(status), Some(status.code)),
            other => (root_cause(other), None),
        };
        Error::Pod { namespace: namespace.to_owned(), name: name.to_owned(), cause, code }
    };
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods")).get(name, &Default::default());
    let request = request.map_err(|error: RequestError| failed(&kube::Error::BuildRequest(error)))?;
    let pod: Pod = client.request(request).await.map_err(|error| failed(&error))?;
    Ok(pod.spec.node_name.filter(|name| !name.is_empty()))
}

#[derive(Deserialize)]
struct Pod {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
}
