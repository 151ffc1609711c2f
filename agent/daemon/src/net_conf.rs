//! flannel's net-conf.json over the fields of the configuration that say the same.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};
use podway_overlay::{AssignMode, BackendKind, Family, NetConf, NetConfRange};

use crate::config::{Backend, NetworkConfig};

/// Reads `network.netConf`, if it is set, and puts its content over the fields.
pub(crate) fn read(network: &mut NetworkConfig) -> Result<()> {
    let path = &network.net_conf;
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let named = || format!("network.netConf {}", path.display());
    let text = fs::read_to_string(path).with_context(named)?;
    let conf = NetConf::parse(&text).with_context(named)?;
    if network.assign.mode != AssignMode::Never {
        conf.ranges().with_context(named)?;
    }
    apply(network, &conf);
    Ok(())
}

/// Puts what net-conf.json says over the fields. Whether nftables or iptables masquerades is no question here.
pub(crate) fn apply(network: &mut NetworkConfig, conf: &NetConf) {
    network.pod_networks = conf.networks();
    let backend = &conf.backend;
    network.backend = match backend.kind {
        BackendKind::Vxlan => Backend::Vxlan,
        BackendKind::HostGw => Backend::HostGw,
    };
    network.vni = backend.vni.get();
    network.port = backend.port.unwrap_or(podway_overlay::DEFAULT_PORT);
    network.mtu = backend.mtu.map_or(0, |mtu| mtu.get());
    network.direct_routing = backend.direct_routing;
    network.learning = backend.learning;
    network.gbp = backend.gbp;
    for (family, range) in conf.families.iter() {
        subnets(network, family, range);
    }
}

fn subnets(network: &mut NetworkConfig, family: Family, range: &NetConfRange) {
    let assign = &mut network.assign;
    let len = range.subnet_len.unwrap_or(0);
    match family {
        Family::V4 => {
            let address = |bound| match bound {
                Some(IpAddr::V4(address)) => Some(address),
                _ => None,
            };
            assign.subnet_len = len;
            (assign.subnet_min, assign.subnet_max) = (address(range.subnet_min), address(range.subnet_max));
        }
        Family::V6 => {
            let address = |bound| match bound {
                Some(IpAddr::V6(address)) => Some(address),
                _ => None,
            };
            assign.ipv6_subnet_len = len;
            (assign.ipv6_subnet_min, assign.ipv6_subnet_max) =
                (address(range.subnet_min), address(range.subnet_max));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n1_net_conf_goes_over_the_fields() {
        let text = r#"{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "EnableIPv6": true,
            "IPv6Network": "fd77::/48", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "DirectRouting": true}}"#;
        let mut network = NetworkConfig::default();
        apply(&mut network, &NetConf::parse(text).unwrap());
        assert_eq!(network.pod_networks, ["10.0.0.0/8".parse().unwrap(), "fd77::/48".parse().unwrap()]);
        assert_eq!((network.vni, network.port, network.direct_routing), (7, 4789, true));
        assert_eq!(network.assign.subnet_len, 20);
        assert_eq!(network.assign.subnet_min, Some([10, 10, 0, 0].into()));
    }
}
