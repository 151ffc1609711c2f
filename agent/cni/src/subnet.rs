//! The node's subnets and MTU, as the daemon left them.

use std::fs;
use std::path::Path;

use ipnet::IpNet;
use podway_overlay::{Mtu, SubnetEnv};

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
    let env = SubnetEnv::parse(text).map_err(|error| error.to_string())?;
    let subnets = env.subnets.iter().map(|(_, (_, subnet))| *subnet).collect();
    Ok(NodeSubnets { subnets, mtu: env.mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_the_subnet_file_gives_subnets_and_mtu() {
        let text = "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\nFLANNEL_IPV6_NETWORK=fd77::/48\n\
                    FLANNEL_IPV6_SUBNET=fd77:0:0:c::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        let node = parse(text).unwrap();
        assert_eq!(node.subnets, ["10.77.12.0/24".parse().unwrap(), "fd77:0:0:c::/64".parse().unwrap()]);
        assert_eq!(node.mtu, Mtu::new(1430).unwrap());
    }

    #[test]
    fn n11_a_useless_subnet_file_asks_to_try_again_and_says_why() {
        let folder = std::env::temp_dir().join(format!("podway-cni-subnet-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("subnet.env");
        let error = NodeSubnets::read(&path).unwrap_err();
        assert!(error.code() == 11 && error.details().contains("No such file"), "{}", error.details());
        fs::write(&path, "FLANNEL_MTU=1450\n").unwrap();
        let error = NodeSubnets::read(&path).unwrap_err();
        fs::remove_dir_all(&folder).unwrap();
        assert!(error.code() == 11 && error.details().contains("FLANNEL_NETWORK"), "{}", error.details());
    }
}
