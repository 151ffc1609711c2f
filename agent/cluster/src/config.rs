//! Where the cluster state comes from, as the daemon's configuration says it.

use std::path::PathBuf;

use serde::Deserialize;

/// One source of cluster state: `kube: {...}` or `directory: {...}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceConfig {
    /// A Kubernetes API server.
    Kube(KubeConfig),
    /// Manifests in a folder or a file.
    Directory(DirectoryConfig),
}

impl Default for SourceConfig {
    /// The API server of the cluster that the daemon runs in.
    fn default() -> Self {
        Self::Kube(KubeConfig::default())
    }
}

/// How the API server is reached. Without any field: as a pod of the cluster, from `KUBERNETES_SERVICE_HOST`,
/// `KUBERNETES_SERVICE_PORT` and the mounted service account.
///
/// The address must not be one that podway itself provides, such as the clusterIP of Service default/kubernetes
/// (contract S23): in a DaemonSet, set `server`, or `KUBERNETES_SERVICE_HOST` to the API server's own address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeConfig {
    /// A kubeconfig file; its current context is used. Default: none.
    pub kubeconfig: Option<PathBuf>,
    /// `https://host:port`, in place of the address from the kubeconfig or the environment. Default: none.
    pub server: Option<String>,
    /// A file with a bearer token, read again when it changes. Default: the kubeconfig's or service account's.
    pub token_file: Option<PathBuf>,
    /// A PEM file with the authorities that the server's certificate may come from, read again when it changes.
    /// Default: the kubeconfig's or service account's, else the system's.
    pub ca_file: Option<PathBuf>,
    /// Take any certificate. Default: false.
    pub insecure: bool,
}

/// A folder of Kubernetes manifests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectoryConfig {
    /// A folder, of which every `*.yaml`, `*.yml` and `*.json` is read, but no subfolder and no name that starts
    /// with a dot; or one file. Links are followed.
    pub path: PathBuf,
}
