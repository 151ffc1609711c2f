//! `podway cleanup`: removes everything of ours and nothing else (contract S22).

use anyhow::{Result, bail};
use podway_nftables::{Forwarding, Network, NftProcess, Services};
use tracing::info;

use crate::cni_files;
use crate::config::Config;
use crate::message;
use crate::network::{remove_overlay, subnet_file};
use crate::privilege::require_net_admin;
use crate::status;

/// Removes tables, links, routes, pinned programs and the subnet file. Goes on after a failure, so that one broken
/// part does not keep the rest; what failed is named at the end.
pub(crate) async fn cleanup(config: &Config) -> Result<()> {
    require_net_admin()?;
    if status::ask(&config.status.socket, "/status").await.is_ok() {
        bail!("a podway runs on this node and would put everything back: stop it first");
    }
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<()>| match result {
        Ok(()) => info!("nothing is left of: {what}"),
        Err(error) => failures.push(format!("{what}: {}", message::of(&error))),
    };
    // First: a kubelet that finds no network configuration starts no pods on what is going.
    let cni = &config.network.cni;
    match cni.bin_directory.as_os_str().is_empty() && cni.conf_directory.as_os_str().is_empty() {
        true => info!("not looked for: CNI plugin and configuration (network.cni.* is not set)"),
        false => note("CNI configuration and plugin", cni_files::remove(cni)),
    }
    note(
        "eBPF programs and maps",
        podway_bpf::BpfDataplane::remove_all(&config.ebpf.pin_directory).map_err(Into::into),
    );
    note("Service tables", Services::remove_all(&mut NftProcess::default()).await.map_err(Into::into));
    note("pod network masquerade", Network::remove_all(&mut NftProcess::default()).await.map_err(Into::into));
    note("forward rules", Forwarding::remove_all(NftProcess::default()).await.map_err(Into::into));
    note("subnet file", subnet_file::remove(config).await);
    note("VXLAN links and routes", remove_overlay().await);
    match failures.is_empty() {
        true => Ok(()),
        false => bail!("not everything could be removed: {}", failures.join("; ")),
    }
}
