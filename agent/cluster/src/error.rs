//! Why a source cannot start or a Node cannot be written.

use std::path::PathBuf;

/// What cannot be mended by trying again is said when a source is opened; a running source reports problems instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `kubeconfig` cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<kube::config::KubeconfigError>,
    },
    /// No address is configured, and this is not a pod of a cluster.
    #[error("no API server: neither server nor kubeconfig is set, and as a pod of a cluster: {0}")]
    NoServer(#[source] kube::config::InClusterError),
    /// `server` is not an address.
    #[error("server {server:?} is not a URL such as https://192.0.2.1:6443")]
    Server {
        /// As configured.
        server: String,
    },
    /// `tokenFile` or `caFile` cannot be used.
    #[error("{field} {path}: {reason}")]
    File {
        /// The name in the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Certificates, keys or credentials cannot be used.
    #[error("connection to {server}: {source}")]
    Connection {
        /// The server's URL.
        server: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// A Node could not be patched; trying again may help, unless [`is_final`](Error::is_final).
    #[error("Node {node}: {reason}")]
    Patch {
        /// The Node's name.
        node: String,
        /// The server's answer, or why there is none.
        reason: String,
        /// The status code, if the server answered.
        code: Option<u16>,
    },
}

impl Error {
    /// Whether trying again is of no use until somebody changes something: the configuration, or the rights.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Patch { code, .. } => {
                code.is_some_and(|code| (400..500).contains(&code) && code != 409 && code != 429)
            }
            _ => true,
        }
    }
}
