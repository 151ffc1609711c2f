//! The podway of one node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use podway_testkit::{Command, Node, Output, Process, binary};
use serde_json::{Value, json};

/// All pods of the shop, see manifests/demo/nodes.yaml.
const POD_NETWORKS: [&str; 2] = ["10.77.0.0/16", "fd77::/48"];

/// Several times what a busy machine needs.
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(20);

/// What translates Service addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dataplane {
    Nftables,
    Ebpf,
}

/// The daemon of one node, with a configuration file of its own.
pub(crate) struct Podway {
    node: Node,
    source: Value,
    process: Option<Process>,
}

impl Podway {
    pub(crate) fn new(node: &Node, source: Value) -> Self {
        Self { node: node.clone(), source, process: None }
    }

    /// Starts the daemon; one that runs is left running.
    pub(crate) fn start(&mut self, dataplane: Dataplane) -> Result<()> {
        self.configure(dataplane)?;
        let command = self.command("run")?;
        self.process = Some(command.start("podway")?);
        Ok(())
    }

    /// Waits until the daemon has made what it found missing: for its first start on a node, as after one in order it
    /// says otherwise. A node's pods start after that, too.
    pub(crate) fn wait_until_programmed(&self) -> Result<()> {
        let process = self.process.as_ref().context("podway does not run")?;
        ["Services programmed", "pod network programmed"]
            .into_iter()
            .try_for_each(|said| process.wait_for_log(said, READY_DEADLINE))
    }

    /// Stops the daemon, which leaves everything in the kernel; fails when it did not end well.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("podway does not run")?;
        let status = process.stop()?;
        crate::require(status.success(), || format!("podway on {} ended with {status}", self.node.name()))
    }

    /// Whether the daemon runs, and its process id.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().filter(|process| process.is_running()).map(Process::id)
    }

    /// Runs `podway cleanup`.
    pub(crate) fn cleanup(&self) -> Result<Output> {
        self.command("cleanup")?.output()
    }

    /// What a command that asks the daemon prints, such as `status`, whatever its exit status.
    pub(crate) fn ask(&self, subcommand: &str) -> Result<String> {
        Ok(self.command(subcommand)?.output()?.stdout)
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> Result<PathBuf> {
        Ok(self.node.folder()?.join("podway.yaml"))
    }

    /// Where its eBPF programs and maps are pinned: on a BPF file system that goes away with the lab.
    pub(crate) fn pins(&self) -> Result<PathBuf> {
        Ok(self.node.bpffs()?.join("podway"))
    }

    /// The file for flannel's CNI plugin.
    pub(crate) fn subnet_file(&self) -> Result<PathBuf> {
        Ok(self.node.folder()?.join("subnet.env"))
    }

    fn command(&self, subcommand: &str) -> Result<Command> {
        Ok(self.node.command(binary("podway")?).args([subcommand, "--config"]).arg(self.config()?))
    }

    fn configure(&self, dataplane: Dataplane) -> Result<()> {
        let config = json!({
            "nodeName": self.node.name(),
            "dataplane": match dataplane { Dataplane::Nftables => "nftables", Dataplane::Ebpf => "ebpf" },
            "source": self.source,
            "network": { "podNetworks": POD_NETWORKS, "subnetFile": self.subnet_file()? },
            // The machine's own sockets are none of the demo's business.
            "ebpf": { "cgroup": self.node.cgroup(), "pinDirectory": self.pins()? },
            "status": { "socket": self.node.folder()?.join("podway.sock") },
        });
        write(&self.config()?, &serde_saphyr::to_string(&config).context("write YAML")?)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
