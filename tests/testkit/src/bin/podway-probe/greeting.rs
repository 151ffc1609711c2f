//! What a server says: one JSON line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The line that answers a connection or a datagram.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The server's name.
    pub(crate) name: String,
    /// The client as the server sees it.
    pub(crate) peer: SocketAddr,
    /// The server's own address as the server sees it.
    pub(crate) local: SocketAddr,
    /// The datagram that is answered; absent on TCP, where lines are echoed instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) echo: Option<String>,
}

impl Greeting {
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}
