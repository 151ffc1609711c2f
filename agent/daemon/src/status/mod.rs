//! What can be seen of the daemon: health and metrics over TCP, everything by the socket of this node.

mod board;
mod health;
mod http;
mod metrics;
mod report;
mod socket;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

pub(crate) use board::{Board, Facts, Fault, Half, Own};
pub(crate) use report::{HalfStatus, NodeStatus, Status};
pub(crate) use socket::{NoDaemon, ask};

use crate::config::StatusConfig;
use http::Pages;

/// kube-proxy's ports.
const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Starts the servers that are configured as tasks of the current LocalSet. They end with it.
pub(crate) fn start(config: &StatusConfig, board: &Board) -> Result<tokio::task::JoinSet<()>> {
    let mut servers = tokio::task::JoinSet::new();
    for (text, field, port, pages) in [
        (&config.health_address, "status.healthAddress", HEALTH_PORT, Pages::Health),
        (&config.metrics_address, "status.metricsAddress", METRICS_PORT, Pages::Metrics),
    ] {
        if !text.is_empty() {
            let address = address(text, port).context(field)?;
            let serve = http::serve(address, field, pages, board.clone());
            servers.spawn_local(async { match serve.await {} });
        }
    }
    if !config.socket.as_os_str().is_empty() {
        servers.spawn_local(socket::serve(config.socket.clone(), board.clone()));
    }
    Ok(servers)
}

/// An address with a port, or without one.
fn address(text: &str, port: u16) -> Result<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    text.parse().with_context(|| format!("`{text}` is neither ADDRESS:PORT nor an address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_port_is_the_default_one() {
        for (text, expected) in [
            ("0.0.0.0", "0.0.0.0:10256"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("::", "[::]:10256"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(address(text, 10256).unwrap().to_string(), expected);
        }
        let error = address("localhost:1", 1).unwrap_err().to_string();
        assert_eq!(error, "`localhost:1` is neither ADDRESS:PORT nor an address");
    }
}
