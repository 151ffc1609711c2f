//! How steps and rows read in a log.

use std::fmt;

use crate::ops::{Op, Tunnel, WhyRemoved};
use crate::plan::{FdbKey, NeighbourKey, Route};

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink { name, link } => {
                write!(
                    f,
                    "add VXLAN link {name} with VNI {} and port {} from {}",
                    link.vni, link.port, link.local
                )
            }
            Self::SetLink { name, mtu, mac, tunnel, release } => {
                write!(f, "set link {name}")?;
                tunnel.map_or(Ok(()), |tunnel| write!(f, "{tunnel}"))?;
                release.then_some(()).map_or(Ok(()), |()| f.write_str(" nomaster"))?;
                mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))?;
                mac.map_or(Ok(()), |mac| write!(f, " address {mac}"))
            }
            Self::LinkUp(name) => write!(f, "bring link {name} up"),
            Self::RemoveLink { name, why } => write!(f, "remove link {name} ({why})"),
            Self::SetSysctl(sysctl) => write!(f, "set {} to {}", sysctl.path(), sysctl.wanted()),
            Self::AddAddress(link, address) => write!(f, "add address {address} to link {link}"),
            Self::RemoveAddress(link, address) => write!(f, "remove address {address} from link {link}"),
            Self::SetNeighbour(key, mac) => write!(f, "set neighbour {key} to {mac}"),
            Self::RemoveNeighbour(key) => write!(f, "remove neighbour {key}"),
            Self::SetFdb(key, underlay) => write!(f, "set FDB entry {key} to {underlay}"),
            Self::RemoveFdb(key, underlay) => write!(f, "remove FDB entry {key} to {underlay}"),
            Self::SetRoute(subnet, route) => write!(f, "set route {subnet} {route}"),
            Self::RemoveRoute(subnet, route, _) => write!(f, "remove route {subnet} {route}"),
            Self::SetBlackhole(subnet) => write!(f, "set blackhole route {subnet}"),
            Self::RemoveBlackhole(subnet) => write!(f, "remove blackhole route {subnet}"),
            Self::SetOffload(link, on) => {
                write!(f, "switch checksum offload of link {link} {}", if *on { "on" } else { "off" })
            }
        }
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let learning = if self.learning { "learning" } else { "nolearning" };
        write!(f, " local {} dev {} {learning}", self.local, self.lower.0)
    }
}

impl fmt::Display for WhyRemoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CleanUp => f.write_str("clean-up"),
            Self::Unwanted => f.write_str("it is not wanted any more"),
            Self::Unfit(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let onlink = if self.onlink { " onlink" } else { "" };
        write!(f, "via {} dev {}{onlink}", self.via, self.link)
    }
}

impl fmt::Display for NeighbourKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

impl fmt::Display for FdbKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.mac, self.link)
    }
}
