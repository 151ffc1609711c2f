//! The file by which flannel's CNI plugin learns the node's subnet.

use std::fmt::Write;

use ipnet::IpNet;

use crate::settings::Settings;
use crate::units::{Family, Mtu, PerFamily};

/// Content of `/run/flannel/subnet.env` (contract N9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Per family the pod network and the node's subnet in it.
    pub subnets: PerFamily<Option<(IpNet, IpNet)>>,
    /// MTU of the pods.
    pub mtu: Mtu,
    /// Whether this daemon masquerades, so that the CNI plugin need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// What stands in the file for a node with these subnets; a subnet outside the pod networks is left out.
    pub fn new(settings: &Settings, subnets: &PerFamily<Option<IpNet>>, mtu: Mtu, ip_masq: bool) -> Self {
        let subnets = PerFamily::from_fn(|family| {
            let subnet = (*subnets.get(family))?;
            Some((*settings.network_of(&subnet)?, subnet))
        });
        Self { subnets, mtu, ip_masq }
    }

    /// The file, byte for byte as flannel writes it. The subnet is given by its first address, the gateway of its
    /// pods.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (family, (network, subnet)) in self.subnets.iter() {
            let prefix = match family {
                Family::V4 => "FLANNEL",
                Family::V6 => "FLANNEL_IPV6",
            };
            let gateway = subnet.hosts().find(|host| *host != subnet.network()).unwrap_or(subnet.addr());
            let _ = writeln!(text, "{prefix}_NETWORK={network}");
            let _ = writeln!(text, "{prefix}_SUBNET={gateway}/{}", subnet.prefix_len());
        }
        let _ = writeln!(text, "FLANNEL_MTU={}", self.mtu);
        let _ = writeln!(text, "FLANNEL_IPMASQ={}", self.ip_masq);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Peering;

    #[test]
    fn n9_ipv4() {
        let settings = Settings::new("a", vec!["10.77.0.0/16".parse().unwrap()], Peering::Annotated);
        let subnets = PerFamily { v4: Some("10.77.12.0/24".parse().unwrap()), v6: None };
        assert_eq!(
            SubnetEnv::new(&settings, &subnets, Mtu::new(1450).unwrap(), true).render(),
            "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn n9_dual_stack() {
        let networks = vec!["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()];
        let settings = Settings::new("a", networks, Peering::Annotated);
        let subnets = PerFamily {
            v4: Some("10.77.12.0/24".parse().unwrap()),
            v6: Some("fd77:0:0:c::/64".parse().unwrap()),
        };
        assert_eq!(
            SubnetEnv::new(&settings, &subnets, Mtu::new(1430).unwrap(), false).render(),
            "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\n\
             FLANNEL_IPV6_NETWORK=fd77::/48\nFLANNEL_IPV6_SUBNET=fd77:0:0:c::1/64\n\
             FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
        );
    }
}
