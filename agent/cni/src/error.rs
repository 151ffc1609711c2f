//! What goes wrong, with the specification's numbers.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::version::Version;

/// Why a call failed. The message is short; [`Error::details`] says more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cniVersion {wanted:?} is not supported, only {}", Version::ALL.map(Version::as_str).join(", "))]
    IncompatibleVersion { wanted: String },
    #[error("{command} came with version {since} of the specification, and cniVersion is {version}")]
    CommandTooNew { command: &'static str, version: Version, since: Version },
    #[error("the field {field} is not supported: {value}")]
    UnsupportedField { field: &'static str, value: String },
    #[error("CNI_NETNS is no network namespace: {}", path.display())]
    NoNamespace { path: PathBuf, cause: io::Error },
    #[error("environment: {0}")]
    Environment(String),
    #[error("cannot read the network configuration from standard input")]
    Input(#[source] io::Error),
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, cause: io::Error },
    #[error("cannot decode {what}")]
    Decode { what: String, cause: String },
    #[error("network configuration: {0}")]
    Config(String),
    #[error("this node has no pod subnet yet")]
    NotReady { path: PathBuf, cause: String },
    #[error("all {usable} addresses of {subnet} are reserved")]
    Exhausted { subnet: IpNet, usable: u128, reserved: usize },
    #[error("the address {address} cannot be had: {why}")]
    AddressRefused { address: IpAddr, why: String },
    #[error("{container} has {ifname} already")]
    Attached { container: String, ifname: String, addresses: Vec<IpAddr> },
    #[error("{link} on the node belongs to something else")]
    LinkTaken { link: String, owner: String },
    #[error("the kernel refused to {operation}")]
    Kernel { operation: String, cause: io::Error },
    #[error("the pod's network is not as it was made")]
    Altered(Vec<String>),
    #[error("some attachments are not cleaned up")]
    Leftovers(Vec<String>),
    #[error("the plugin cannot serve ADD: {0}")]
    NotAvailable(String),
}

impl Error {
    /// The specification's numbers; its own begin at 100.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::IncompatibleVersion { .. } | Self::CommandTooNew { .. } => 1,
            Self::UnsupportedField { .. } => 2,
            Self::NoNamespace { .. } => 3,
            Self::Environment(_) => 4,
            Self::Input(_) | Self::File { .. } => 5,
            Self::Decode { .. } => 6,
            Self::Config(_) => 7,
            Self::NotReady { .. } => 11,
            Self::NotAvailable(_) => 50,
            Self::Exhausted { .. } => 100,
            Self::AddressRefused { .. } => 101,
            Self::Attached { .. } => 102,
            Self::Kernel { .. } => 103,
            Self::Altered(_) => 104,
            Self::Leftovers(_) => 105,
            Self::LinkTaken { .. } => 106,
        }
    }

    /// What an operator needs to know besides the message; empty if nothing.
    pub(crate) fn details(&self) -> String {
        match self {
            Self::NoNamespace { cause, .. } | Self::File { cause, .. } | Self::Kernel { cause, .. } => {
                cause.to_string()
            }
            Self::Input(cause) => cause.to_string(),
            Self::Decode { cause, .. } => cause.clone(),
            Self::NotReady { path, cause } => {
                format!("{}: {cause}; the podway daemon writes it once the node has a subnet", path.display())
            }
            Self::Exhausted { reserved, .. } => {
                format!("{reserved} reservations; a GC call frees those of pods that are gone")
            }
            Self::Attached { addresses, .. } => {
                let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                format!("with {}; a DEL must come before another ADD", addresses.join(" and "))
            }
            Self::LinkTaken { link, owner } => {
                let owner = if owner.is_empty() {
                    "is no veth".to_owned()
                } else {
                    format!("has the alias {owner:?}")
                };
                format!("it {owner}; `ip link show {link}` shows it, and nothing was done to it")
            }
            Self::Altered(findings) | Self::Leftovers(findings) => findings.join("; "),
            _ => String::new(),
        }
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { operation, path, cause }
    }

    pub(crate) fn kernel(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |cause| Self::Kernel { operation, cause }
    }
}
