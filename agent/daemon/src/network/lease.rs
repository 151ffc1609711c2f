//! What a lease in etcd tells the peers of this node (contract N3).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use podway_cluster::LeaseRequest;
use podway_overlay::{Backend, Host, LeaseAttributes, Mac, NetConf, PerFamily, Settings, SubnetEnv};
use tokio::sync::watch;
use tracing::warn;

use crate::config::Config;

/// The attributes that follow from the settings and from this machine. The MAC is that of the link, where one stands;
/// flannel, too, publishes its link's (pkg/backend/vxlan/device.go).
pub(super) fn attributes(settings: &Settings, host: &Host) -> LeaseAttributes {
    let address = |family| if settings.has(family) { host.published(family) } else { None };
    match settings.backend {
        Backend::HostGw => LeaseAttributes::host_gw(&PerFamily::from_fn(address)),
        Backend::Vxlan => {
            let vteps = PerFamily::from_fn(|family| {
                let derived = || Mac::derived(&settings.node, settings.vni, family);
                Some((host.device_macs.get(family).unwrap_or_else(derived), address(family)?))
            });
            LeaseAttributes::vxlan(settings.vni, &vteps)
        }
    }
}

/// What this node asks of the store.
pub(crate) fn request(
    config: &Config,
    net_conf: &NetConf,
    attributes: watch::Receiver<LeaseAttributes>,
) -> Result<LeaseRequest> {
    Ok(LeaseRequest {
        node: config.node_name.as_str().into(),
        ranges: net_conf.ranges()?,
        previous: previous_subnets(&config.network.subnet_file),
        renew_margin: Duration::from_secs(60 * u64::from(config.network.etcd.renew_margin)),
        attributes,
    })
}

/// The subnets of a previous run. A file that cannot be read costs no more than another subnet.
fn previous_subnets(path: &Path) -> PerFamily<Option<IpNet>> {
    let Ok(text) = fs::read_to_string(path) else { return PerFamily::default() };
    match SubnetEnv::parse(&text) {
        Ok(env) => PerFamily::from_fn(|family| env.subnets.get(family).map(|(_, subnet)| subnet)),
        Err(error) => {
            warn!("{}: {error}; the subnet of the previous run is not known", path.display());
            PerFamily::default()
        }
    }
}
