//! Where the cluster state comes from, as the daemon's configuration says it.

use std::fmt;
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

/// flannel's etcd (contract N3).
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port`, one after the other until one answers; etcd is used if there is one.
    #[serde(deserialize_with = "list")]
    pub endpoints: Vec<String>,
    /// What all keys begin with. Default: `/coreos.com/network`.
    pub prefix: String,
    /// PEM file with the client's key. TLS is used for `https`, and for endpoints without a scheme if there is a
    /// certificate.
    pub key_file: PathBuf,
    /// PEM file with the client's certificate.
    pub cert_file: PathBuf,
    /// PEM file with the authorities of the server's certificate; empty = the system's.
    pub ca_file: PathBuf,
    /// Name and password, if etcd asks for them.
    pub username: String,
    /// See `username`.
    pub password: String,
    /// Minutes before its end at which a lease is renewed. Default: 60.
    pub renew_margin: u16,
}

impl fmt::Debug for EtcdConfig {
    /// Without the password, which has no place in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, prefix, key_file, cert_file, ca_file, username, password: _, renew_margin } =
            self;
        f.debug_struct("EtcdConfig")
            .field("endpoints", endpoints)
            .field("prefix", prefix)
            .field("key_file", key_file)
            .field("cert_file", cert_file)
            .field("ca_file", ca_file)
            .field("username", username)
            .field("renew_margin", renew_margin)
            .finish_non_exhaustive()
    }
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/coreos.com/network".to_owned(),
            key_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            username: String::new(),
            password: String::new(),
            renew_margin: 60,
        }
    }
}

/// A list, or its entries with commas between them; nothing is an empty list.
fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Many(Vec<String>),
        Text(String),
    }
    Ok(match Option::<Written>::deserialize(deserializer)? {
        Some(Written::Many(entries)) => entries,
        Some(Written::Text(text)) => {
            text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect()
        }
        None => Vec::new(),
    })
}
