//! The pod network as configured, from the configuration's fields.

use anyhow::{Context, Result};
use podway_cluster::SourceConfig;
use podway_overlay::{Backend, Mtu, Offload, Peering, Settings, Vni};

use crate::config::{self, ChecksumOffload, Config};

/// The pod network as configured.
pub(crate) fn overlay_settings(config: &Config) -> Result<Settings> {
    let network = &config.network;
    let mut settings = Settings::new(&config.node_name, network.pod_networks.clone(), peering(config));
    settings.vni = Vni::new(network.vni).context("network.vni")?;
    settings.port = network.port;
    settings.mtu = match network.mtu {
        0 => None,
        mtu => Some(Mtu::new(mtu).context("network.mtu")?),
    };
    settings.backend = match network.backend {
        config::Backend::Vxlan => Backend::Vxlan,
        config::Backend::HostGw => Backend::HostGw,
    };
    settings.direct_routing = network.direct_routing;
    settings.checksum_offload = match network.checksum_offload {
        ChecksumOffload::Auto => Offload::Auto,
        ChecksumOffload::On => Offload::On,
        ChecksumOffload::Off => Offload::Off,
    };
    settings.learning = network.learning;
    settings.gbp = network.gbp;
    settings.blackhole = network.blackhole_route;
    Ok(settings)
}

/// Nodes of an API server, and leases in etcd, tell each other their part; files are written by nobody but their
/// owner.
pub(crate) fn peering(config: &Config) -> Peering {
    match (&config.source, config.network.store()) {
        (_, Store::Etcd) | (SourceConfig::Kube(_), Store::Nodes) => Peering::Annotated,
        _ => Peering::Derived,
    }
}

/// Where the nodes' subnets are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// In the Nodes of the source.
    Nodes,
    /// In a file of Nodes.
    Static,
    /// In flannel's etcd.
    Etcd,
}

impl crate::config::NetworkConfig {
    /// Where the nodes' subnets are kept.
    pub(crate) fn store(&self) -> Store {
        match (self.etcd.endpoints.is_empty(), self.nodes.as_os_str().is_empty()) {
            (false, _) => Store::Etcd,
            (true, false) => Store::Static,
            (true, true) => Store::Nodes,
        }
    }
}
