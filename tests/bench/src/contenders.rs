//! The daemons that are measured, each started as its users start it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podway_testkit::{ControlPlane, Node, Process, binary, reference, within};

/// Reading a large cluster takes seconds; a busy machine takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Where podway claims subnets, as manifests/podway.yaml makes it.
pub(crate) const CLAIMS: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: podway-subnets}}";

/// podway with these settings besides those that one node of several on one machine must have for itself. Returns
/// before it has programmed anything.
pub(crate) fn podway(node: &Node, fields: &[String]) -> Result<Process> {
    let command = node.command(binary("podway")?).arg("run").args(podway_settings(node, fields)?);
    command.start("podway")
}

/// Removes what podway programmed on the node.
pub(crate) fn podway_cleanup(node: &Node) -> Result<()> {
    node.command(binary("podway")?).arg("cleanup").args(podway_settings(node, &[])?).run().map(drop)
}

fn podway_settings(node: &Node, fields: &[String]) -> Result<Vec<String>> {
    let folder = node.folder()?;
    let own = [
        format!("nodeName={}", node.name()),
        format!("network.subnetFile={}", subnet_file(node)?.display()),
        format!("ebpf.pinDirectory={}", node.bpffs()?.join("podway").display()),
        format!("status.socket={}", folder.join("podway.sock").display()),
    ];
    Ok(own.iter().chain(fields).flat_map(|field| ["--set".to_owned(), field.clone()]).collect())
}

/// The field by which podway finds the API server.
pub(crate) fn kubeconfig(plane: &ControlPlane) -> String {
    format!("source.kube.kubeconfig={}", plane.kubeconfig().display())
}

/// flanneld with VXLAN over the API server's Nodes, masquerading with nftables. Returns before it has programmed
/// anything.
pub(crate) fn flanneld(node: &Node, plane: &ControlPlane, pod_network: &str) -> Result<Process> {
    let config = node.folder()?.join("net-conf.json");
    let network = serde_json::json!({
        "Network": pod_network,
        "EnableNFTables": true,
        "Backend": { "Type": "vxlan" },
    });
    fs::write(&config, network.to_string()).with_context(|| format!("write {}", config.display()))?;
    let command = node.command(reference("flanneld")?).env("NODE_NAME", node.name()).args([
        "--kube-subnet-mgr".to_owned(),
        "--ip-masq".to_owned(),
        "--iface=eth0".to_owned(),
        format!("--kubeconfig-file={}", plane.kubeconfig().display()),
        format!("--net-config-path={}", config.display()),
        format!("--subnet-file={}", subnet_file(node)?.display()),
    ]);
    command.start("flanneld")
}

/// Where the node's daemon tells its subnet.
pub(crate) fn subnet_file(node: &Node) -> Result<PathBuf> {
    Ok(node.folder()?.join("subnet.env"))
}

/// Waits for what the process is to bring about; fails with its log as soon as it ends.
pub(crate) fn wait_until(process: &Process, what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    within(PATIENCE, what, || if process.is_running() { look() } else { Ok(()) })?;
    if !process.is_running() {
        bail!("waiting for {what}: the program has ended\n{}", last_lines(process));
    }
    Ok(())
}

/// The end of a process's log.
pub(crate) fn last_lines(process: &Process) -> String {
    let log = process.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
