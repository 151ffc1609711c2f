//! podway: one daemon per Kubernetes node in place of kube-proxy and flannel.
//!
//! This crate wires: configuration, sources, the two halves (network, services), commands. What is decided is
//! decided in podway-proxy and podway-overlay; what touches the kernel is in podway-nftables, -netlink and -bpf.

mod cleanup;
mod config;
mod log;
mod message;
mod net_conf;
mod network;
mod overrides;
mod privilege;
mod run;
mod services;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::overrides::Override;

/// One daemon per Kubernetes node in place of kube-proxy and flannel: Pod network and Services.
#[derive(Debug, Parser)]
#[command(name = "podway", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon for this node, until SIGTERM. What it programmed stays in the kernel when it stops.
    Run(Settings),
    /// Remove everything that podway programmed on this node, and nothing else. Traffic through it ends.
    Cleanup(Settings),
    /// Print the configuration file with every field documented and at its default.
    Config,
}

#[derive(Debug, Args)]
struct Settings {
    /// The configuration file; without one, defaults. `podway config` prints a documented one.
    #[arg(long, env = "PODWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name in the cluster.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Take the cluster state from this folder of Kubernetes manifests, or this file.
    #[arg(long, value_name = "PATH")]
    directory: Option<String>,
    /// Take the cluster state from the API server of this kubeconfig's current context.
    #[arg(long, value_name = "FILE", conflicts_with = "directory")]
    kubeconfig: Option<String>,
    /// nftables or ebpf.
    #[arg(long, value_name = "WHICH")]
    dataplane: Option<String>,
    /// Any field of the configuration, as network.vni=7; may be repeated. Goes over PODWAY_* variables.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
}

impl Settings {
    fn load(&self) -> Result<Config> {
        let flags = [
            ("nodeName", &self.node_name),
            ("source.directory.path", &self.directory),
            ("source.kube.kubeconfig", &self.kubeconfig),
            ("dataplane", &self.dataplane),
        ];
        let mut overrides = Override::from_environment()?;
        for (field, value) in flags.iter().filter_map(|(field, value)| Some((field, value.as_ref()?))) {
            overrides.push(Override::from_flag(&format!("{field}={value}"))?);
        }
        for flag in &self.set {
            overrides.push(Override::from_flag(flag)?);
        }
        Config::load(self.config.as_deref(), &overrides)
    }
}

fn main() -> ExitCode {
    match Cli::parse().command.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podway: {}", message::of(&error));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn execute(&self) -> Result<()> {
        match self {
            Self::Run(settings) => {
                let config = settings.load()?;
                log::start(&config.log)?;
                block_on(run::run(config))
            }
            Self::Cleanup(settings) => {
                let config = settings.load()?;
                log::start(&config.log)?;
                block_on(cleanup::cleanup(&config))
            }
            Self::Config => {
                print!("{}", config::DOCUMENTED);
                Ok(())
            }
        }
    }
}

/// One thread is enough: the daemon waits for events and for the kernel, and a small daemon is a gentle one.
fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A source may wait for a server; nothing of it is worth waiting for at the end.
    runtime.shutdown_background();
    result
}
