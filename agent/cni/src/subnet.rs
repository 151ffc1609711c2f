//! The node's subnets and MTU, as the daemon left them.

use std::fs;
use std::path::Path;

use ipnet::IpNet;
use podway_overlay::Mtu;

use crate::error::Error;

/// What the subnet file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeSubnets {
    /// IPv4 before IPv6; at least one.
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) mtu: Mtu,
}

impl NodeSubnets {
    /// Reads the file. Whatever is wrong with it, the daemon may put right: the caller may try again.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let not_ready = |cause: String| Error::NotReady { path: path.to_owned(), cause };
        let text = fs::read_to_string(path).map_err(|error| not_ready(error.to_string()))?;
        parse(&text).map_err(not_ready)
    }
}

fn parse(text: &str) -> Result<NodeSubnets, String> {
    let field = |name: &str| {
        let lines = text.lines().filter_map(|line| line.trim().split_once('='));
        lines.filter(|(key, _)| *key == name).map(|(_, value)| value).next_back()
    };
    let mut subnets = Vec::new();
    for name in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"] {
        if let Some(value) = field(name) {
            let subnet: IpNet = value.parse().map_err(|_| format!("{name}={value} is not a subnet"))?;
            subnets.push(subnet.trunc());
        }
    }
    if subnets.is_empty() {
        return Err("it has no FLANNEL_SUBNET and no FLANNEL_IPV6_SUBNET".to_owned());
    }
    let mtu = field("FLANNEL_MTU").ok_or("it has no FLANNEL_MTU")?;
    let mtu = mtu.parse().ok().and_then(|mtu| Mtu::new(mtu).ok());
    Ok(NodeSubnets { subnets, mtu: mtu.ok_or("its FLANNEL_MTU is not an MTU")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_the_subnet_file_gives_subnets_and_mtu() {
        let text = "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\nFLANNEL_IPV6_NETWORK=fd77::/48\n\
                    FLANNEL_IPV6_SUBNET=fd77:0:0:c::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        let subnets = parse(text).unwrap();
        assert_eq!(subnets.subnets, ["10.77.12.0/24".parse().unwrap(), "fd77:0:0:c::/64".parse().unwrap()]);
        assert_eq!(subnets.mtu, Mtu::new(1430).unwrap());
    }

    #[test]
    fn n11_a_subnet_file_that_lacks_something_says_what() {
        for (text, says) in [
            ("", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=x\nFLANNEL_MTU=1450", "FLANNEL_SUBNET=x"),
            ("FLANNEL_SUBNET=10.0.0.1/24\n", "FLANNEL_MTU"),
            ("FLANNEL_SUBNET=10.0.0.1/24\nFLANNEL_MTU=y", "FLANNEL_MTU"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
