//! What the kernel refused.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use podway_overlay::LinkName;
use podway_reconcile::Recovery;

/// What went wrong, naming the operation, its object and the kernel's answer, which is therefore no `source()` to be
/// printed once more; its error number is kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    /// The kernel refused a request.
    #[error("cannot {operation}: {cause}")]
    Refused {
        /// The operation and its object, such as `list links`.
        operation: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Another VXLAN link or program has the UDP port or the VNI.
    #[error("cannot {operation}: UDP port {port} is in use by {by}: {cause}")]
    PortInUse {
        /// The operation and its object.
        operation: String,
        /// The UDP port.
        port: u16,
        /// Who has it.
        by: PortUser,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// IPv6 is switched off on the interface that a VXLAN link over IPv6 needs.
    #[error("cannot {operation}: IPv6 is switched off on {interface}: {cause}")]
    Ipv6Off {
        /// The operation and its object.
        operation: String,
        /// The interface.
        interface: LinkName,
        /// The kernel's answer.
        cause: io::Error,
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
    /// Nothing that was configured leads to an interface.
    #[error("no interface is meant by {tried}; there are: {interfaces}")]
    NoInterface {
        /// What was tried.
        tried: String,
        /// The interfaces with their addresses.
        interfaces: String,
    },
    /// A regular expression for the external interface cannot be read.
    #[error("pattern `{pattern}` for the external interface: {cause}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Nobody has the address by which the external interface was to be found.
    #[error("no interface has address {address}; there are: {interfaces}")]
    NoOwner {
        /// The address.
        address: IpAddr,
        /// The interfaces with their addresses.
        interfaces: String,
    },
    /// There is no default route by which to find the external interface.
    #[error(
        "no default route leads to an interface: name the external interface in the configuration; there are: \
         {interfaces}"
    )]
    NoDefaultRoute {
        /// The interfaces with their addresses.
        interfaces: String,
    },
    /// The two families lead to two interfaces.
    #[error("{by} lead to two interfaces, {v4} and {v6}: name the external interface in the configuration")]
    TwoInterfaces {
        /// What leads there.
        by: &'static str,
        /// That of IPv4.
        v4: String,
        /// That of IPv6.
        v6: String,
    },
    /// The external interface was removed while it was looked at.
    #[error("the external interface has just been removed; there are: {interfaces}")]
    Vanished {
        /// The interfaces with their addresses.
        interfaces: String,
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
    #[error("cannot set {path} to {value}: {cause}{}", remedy(path, cause))]
    Sysctl {
        /// The file.
        path: String,
        /// The value.
        value: &'static str,
        /// Why not.
        cause: io::Error,
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
    /// What can be done about it. Only EPERM says that rights are missing, and not even that where IPv6 is switched
    /// off ([`Self::Ipv6Off`]); there EACCES is the answer to an address. Somebody may switch it on again.
    pub fn recovery(&self) -> Recovery {
        let cause = match self {
            Self::Open(cause) | Self::Refused { cause, .. } | Self::Sysctl { cause, .. } => cause,
            _ => return Recovery::Resync,
        };
        match cause.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => Recovery::Fatal,
            _ => Recovery::Resync,
        }
    }

    /// A setting below a /proc/sys that is read-only, as in containers.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::Sysctl { cause, .. } if cause.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    pub(crate) fn refused(operation: impl fmt::Display, cause: io::Error) -> Self {
        Self::Refused { operation: operation.to_string(), cause }
    }
}

/// What somebody who reads it can do.
fn remedy(path: &str, cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::ReadOnlyFilesystem if path.contains("forward") => {
            "; a container may not: set it on the node itself"
        }
        _ => "",
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
        let refused = |errno| Error::refused("list links", io::Error::from_raw_os_error(errno as i32));
        assert_eq!(refused(Errno::EPERM).recovery(), Recovery::Fatal);
        for errno in [Errno::EACCES, Errno::EROFS, Errno::EBUSY] {
            assert_eq!(refused(errno).recovery(), Recovery::Resync, "{errno}");
        }
    }

    #[test]
    fn the_kernels_answer_is_printed_once() {
        let cause = || io::Error::from_raw_os_error(Errno::EPERM as i32);
        let operation = || "list links".to_owned();
        let interface = LinkName::new("eth0").unwrap();
        let (path, by) = ("/proc/sys/net/ipv4/ip_forward".to_owned(), PortUser::Unknown);
        for error in [
            Error::Open(cause()),
            Error::Refused { operation: operation(), cause: cause() },
            Error::PortInUse { operation: operation(), port: 8472, by, cause: cause() },
            Error::Ipv6Off { operation: operation(), interface, cause: cause() },
            Error::Sysctl { path, value: "1", cause: cause() },
        ] {
            assert!(error.to_string().ends_with(": Operation not permitted (os error 1)"), "{error}");
            assert!(std::error::Error::source(&error).is_none(), "{error}");
        }
    }
}
