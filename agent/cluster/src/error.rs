//! Why a source cannot start or a Node cannot be written.
//!
//! What is displayed names the operation, the object and the cause. The cause is therefore no `source()`: printed
//! with its chain, an error says everything once.

use std::path::PathBuf;

/// What cannot be mended by trying again is said when a source is opened; a running source reports problems instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `kubeconfig` cannot be used.
    #[error("kubeconfig {path}: {cause}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: Box<kube::config::KubeconfigError>,
    },
    /// No address is configured, and this is not a pod of a cluster.
    #[error("no API server: neither server nor kubeconfig is set, and as a pod of a cluster: {cause}")]
    NoServer {
        /// Why this is no pod of a cluster.
        cause: kube::config::InClusterError,
    },
    /// `server` is not an address.
    #[error("server {server:?} is not a URL such as https://192.0.2.1:6443")]
    Server {
        /// As configured.
        server: String,
    },
    /// `tokenFile` or `caFile` cannot be used.
    #[error("{field} {path}: {cause}")]
    File {
        /// The name in the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// Certificates, keys or credentials cannot be used.
    #[error("connection to {server}: {cause}")]
    Connection {
        /// The server's URL.
        server: String,
        /// Why not.
        cause: Box<kube::Error>,
    },
    /// A Node could not be patched; trying again may help, unless [`is_final`](Error::is_final).
    #[error("patching Node {node}: {cause}")]
    Patch {
        /// The Node's name.
        node: String,
        /// The server's answer, or why there is none.
        cause: String,
        /// The status code, if the server answered.
        code: Option<u16>,
    },
    /// A field of `etcd` cannot be used.
    #[error("etcd.{field}: {cause}")]
    EtcdField {
        /// The name in the configuration.
        field: &'static str,
        /// Why not.
        cause: String,
    },
    /// etcd did not do what it was asked; trying again may help.
    #[error("etcd {endpoint}: {cause}")]
    Etcd {
        /// The member that was asked.
        endpoint: String,
        /// Its answer, or why there is none.
        cause: String,
    },
    /// A pod could not be read; trying again may help, unless [`is_final`](Error::is_final).
    #[error("reading Pod {namespace}/{name}: {cause}")]
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The server's answer, or why there is none.
        cause: String,
        /// The status code, if the server answered.
        code: Option<u16>,
    },
    /// A step of the assignment of subnets failed; trying again may help, unless [`is_final`](Error::is_final).
    #[error("{step}: {cause}")]
    Assign {
        /// What was tried, such as `creating Lease podway-subnets/podway-subnet-10-77-1-0-24`.
        step: String,
        /// The server's answer, or why there is none.
        cause: String,
        /// The status code, if the server answered.
        code: Option<u16>,
    },
}

impl Error {
    /// Whether trying again is of no use until somebody changes something: the configuration, the rights, or the
    /// Node. A conflict (409), too many requests (429), the server's own errors and silence pass by themselves.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Patch { code, .. } | Self::Pod { code, .. } | Self::Assign { code, .. } => {
                code.is_some_and(|code| (400..500).contains(&code) && code != 409 && code != 429)
            }
            Self::Etcd { .. } => false,
            _ => true,
        }
    }
}
