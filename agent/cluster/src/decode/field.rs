//! Single fields, and the notes on those that could not be used.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podway_proxy::{Protocol, parse_ip};

use super::Key;
use crate::Problem;

/// The problems of one object.
pub(super) struct Notes<'a> {
    key: &'a Key,
    problems: Vec<Problem>,
}

impl<'a> Notes<'a> {
    pub(super) fn of(key: &'a Key) -> Self {
        Self { key, problems: Vec::new() }
    }

    /// Notes that `field` could not be used.
    pub(super) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        let subject = self.key.to_string();
        self.problems.push(Problem { subject, field: field.into(), message: message.into() });
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

/// An address, leading zeros read as decimal (S33).
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    parse_ip(text).ok_or_else(|| format!("{text:?} is no IP address; skipped"))
}

/// A network; host bits are cleared, as the API server's own parser does.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let parsed = text.split_once('/').and_then(|(ip, length)| {
        let length = Some(length).filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))?;
        IpNet::new(parse_ip(ip)?, length.parse().ok()?).ok()
    });
    parsed.map(|network| network.trunc()).ok_or_else(|| format!("{text:?} is no CIDR; skipped"))
}

/// A port number other than 0.
pub(super) fn port(number: i64) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("{number} is not within 1 to 65535; port skipped"))
}

/// A protocol, TCP when absent (S34).
pub(super) fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("") | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is none of TCP, UDP, SCTP; port skipped")),
    }
}

/// A port name, empty when absent (S34).
pub(super) fn port_name(text: Option<&str>) -> Arc<str> {
    text.unwrap_or_default().into()
}
