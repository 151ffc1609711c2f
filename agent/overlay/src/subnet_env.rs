//! The file by which flannel's CNI plugin learns the node's subnet.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::str::FromStr;

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

/// What makes a subnet.env useless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetEnvError {
    /// A variable that the file cannot do without.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that is not what its variable holds.
    #[error("{variable}: `{value}` is not {expected}")]
    Value {
        /// The variable.
        variable: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
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

    /// Reads the file as flannel's CNI plugin does: lines in any order, unknown ones ignored, the last of several alike,
    /// of several networks the one that holds the subnet. A family that lacks its network or its subnet is not there.
    ///
    /// # Errors
    /// No family, MTU or FLANNEL_IPMASQ; a value that is no network of its family, or no MTU.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let lines = Lines::of(text);
        let subnets = PerFamily {
            v4: lines.subnet(Family::V4, "FLANNEL_NETWORK", "FLANNEL_SUBNET")?,
            v6: lines.subnet(Family::V6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")?,
        };
        if subnets.iter().next().is_none() {
            let either =
                ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"].iter().any(|key| lines.0.contains_key(key));
            return Err(SubnetEnvError::Missing(if either { "FLANNEL_SUBNET" } else { "FLANNEL_NETWORK" }));
        }
        Ok(Self { subnets, mtu: lines.mtu()?, ip_masq: lines.required("FLANNEL_IPMASQ")? == "true" })
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

/// The file's variables.
struct Lines<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(key, value)| (key.trim(), value.trim())).collect())
    }

    fn required(&self, variable: &'static str) -> Result<&'a str, SubnetEnvError> {
        self.0.get(variable).copied().ok_or(SubnetEnvError::Missing(variable))
    }

    fn mtu(&self) -> Result<Mtu, SubnetEnvError> {
        let value = self.required("FLANNEL_MTU")?;
        value.parse().ok().and_then(|mtu| Mtu::new(mtu).ok()).ok_or_else(|| SubnetEnvError::Value {
            variable: "FLANNEL_MTU",
            value: value.to_owned(),
            expected: "an MTU between 68 and 65536",
        })
    }

    fn subnet(
        &self,
        family: Family,
        network: &'static str,
        subnet: &'static str,
    ) -> Result<Option<(IpNet, IpNet)>, SubnetEnvError> {
        let networks = self.networks(family, network)?;
        let subnets = self.networks(family, subnet)?;
        let (Some(first), Some(subnet)) = (networks.first(), subnets.first()) else { return Ok(None) };
        Ok(Some((*networks.iter().find(|network| network.contains(subnet)).unwrap_or(first), *subnet)))
    }

    /// The networks of one variable, between commas; none if it is not there or empty.
    fn networks(&self, family: Family, variable: &'static str) -> Result<Vec<IpNet>, SubnetEnvError> {
        let entries = self.0.get(variable).into_iter().filter(|value| !value.is_empty());
        let network = |value: &str| match IpNet::from_str(value) {
            Ok(network) if Family::of(&network) == family => Ok(network.trunc()),
            _ => Err(SubnetEnvError::Value {
                variable,
                value: value.to_owned(),
                expected: match family {
                    Family::V4 => "an IPv4 network",
                    Family::V6 => "an IPv6 network",
                },
            }),
        };
        entries.flat_map(|value| value.split(',')).map(network).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Peering;

    #[test]
    fn n9_the_file_is_read_in_any_order_with_lines_that_nobody_knows() {
        let text = "# made by hand\r\nFLANNEL_IPMASQ=true\r\nFLANNEL_MTU=1450\r\nFLANNEL_COLOUR=red\r\n\r\n\
                    FLANNEL_SUBNET=10.77.12.1/24\r\nFLANNEL_NETWORK=10.76.0.0/16,10.77.0.0/16\r\n\
                    FLANNEL_IPV6_NETWORK=\r\n";
        let env = SubnetEnv::parse(text).unwrap();
        let subnets = (net("10.77.0.0/16"), net("10.77.12.0/24"));
        assert_eq!(env.subnets, PerFamily { v4: Some(subnets), v6: None });
        assert_eq!((env.mtu.get(), env.ip_masq), (1450, true));
    }

    #[test]
    fn n9_what_is_missing_or_wrong_is_named() {
        let whole = "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert!(SubnetEnv::parse(whole).is_ok());
        for variable in ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
            let without: Vec<&str> =
                whole.lines().filter(|line| !line.starts_with(&format!("{variable}="))).collect();
            assert_eq!(SubnetEnv::parse(&without.join("\n")), Err(SubnetEnvError::Missing(variable)));
        }
        for (line, wrong) in [
            ("FLANNEL_SUBNET=10.77.12.1", "FLANNEL_SUBNET: `10.77.12.1` is not an IPv4 network"),
            ("FLANNEL_NETWORK=fd77::/48", "FLANNEL_NETWORK: `fd77::/48` is not an IPv4 network"),
            (
                "FLANNEL_IPV6_SUBNET=10.77.0.0/16",
                "FLANNEL_IPV6_SUBNET: `10.77.0.0/16` is not an IPv6 network",
            ),
            ("FLANNEL_MTU=20", "FLANNEL_MTU: `20` is not an MTU"),
        ] {
            let error = SubnetEnv::parse(&format!("{whole}{line}")).unwrap_err().to_string();
            assert!(error.starts_with(wrong), "{error}");
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

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
