//! What the kernel refused.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_overlay::LinkName;
use podway_reconcile::Recovery;

/// What went wrong, naming the operation and its object; the kernel's error number is kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused a request.
    #[error("cannot {operation}: {source}")]
    Refused {
        /// The operation and its object, such as `list links`.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another VXLAN link or program has the UDP port or the VNI.
    #[error("cannot {operation}: UDP port {port} is in use by {by}: {source}")]
    PortInUse {
        /// The operation and its object.
        operation: String,
        /// The UDP port.
        port: u16,
        /// Who has it.
        by: PortUser,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A route that is not ours has the very destination.
    #[error("cannot set route {subnet}: there is a route of somebody else, {found}")]
    ForeignRoute {
        /// The destination.
        subnet: IpNet,
        /// The other route.
        found: String,
    },
    /// A step on a link that is not there.
    #[error("cannot {operation}: there is no link {link}")]
    NoLink {
        /// The operation and its object.
        operation: String,
        /// The link.
        link: LinkName,
    },
    /// The configured external interface is not there.
    #[error("there is no interface {0}")]
    NoInterface(LinkName),
    /// Nobody has the address by which the external interface was to be found.
    #[error("no interface has address {0}")]
    NoOwner(IpAddr),
    /// There is no default route by which to find the external interface.
    #[error("no default route leads to an interface: name the external interface in the configuration")]
    NoDefaultRoute,
    /// The default routes of the two families lead to two interfaces.
    #[error(
        "the default routes lead to two interfaces, {v4} and {v6}: name the external interface in the configuration"
    )]
    TwoInterfaces {
        /// That of IPv4.
        v4: LinkName,
        /// That of IPv6.
        v6: LinkName,
    },
    /// The external interface is unfit.
    #[error("interface {name} has MTU {mtu}, which no pod network can use")]
    UnusableMtu {
        /// The interface.
        name: LinkName,
        /// Its MTU.
        mtu: u32,
    },
    /// A kernel setting cannot be written.
    #[error("cannot set {path} to {value}: {source}")]
    Sysctl {
        /// The file.
        path: String,
        /// The value.
        value: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Who has a UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortUser {
    /// A VXLAN link.
    Link(LinkName),
    /// A socket of some program, or a VXLAN link that was removed meanwhile.
    Unknown,
}

impl Error {
    /// What can be done about it.
    pub fn recovery(&self) -> Recovery {
        let source = match self {
            Self::Open(source) | Self::Refused { source, .. } | Self::Sysctl { source, .. } => source,
            _ => return Recovery::Resync,
        };
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Recovery::Fatal,
            _ => Recovery::Resync,
        }
    }

    pub(crate) fn refused(operation: impl fmt::Display, source: io::Error) -> Self {
        Self::Refused { operation: operation.to_string(), source }
    }
}

impl fmt::Display for PortUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "VXLAN link {name}"),
            Self::Unknown => f.write_str("another program"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_rights_are_fatal() {
        let refused = |errno| Error::refused("list links", io::Error::from_raw_os_error(errno));
        assert_eq!(refused(nix::libc::EPERM).recovery(), Recovery::Fatal);
        assert_eq!(refused(nix::libc::EBUSY).recovery(), Recovery::Resync);
        assert_eq!(
            refused(nix::libc::EPERM).to_string(),
            "cannot list links: Operation not permitted (os error 1)"
        );
    }
}
