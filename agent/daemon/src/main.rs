//! podway: one daemon per Kubernetes node in place of kube-proxy and flannel.
//!
//! This crate wires: configuration, sources, the two halves (network, services), commands. What is decided is
//! decided in podway-proxy and podway-overlay; what touches the kernel is in podway-nftables, -netlink and -bpf.

mod cleanup;
mod cni_files;
mod config;
mod flanneld;
mod log;
mod message;
mod net_conf;
mod network;
mod nodes;
mod overrides;
mod plan;
mod privilege;
mod run;
mod service_cidrs;
mod services;
mod status;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::nodes::{NodesOutput, StatusOutput};
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
    /// Print the nodes whose pods are reached from here, and how.
    ///
    /// Exit status: 0 = printed; 3 = no podway runs on this node; 1 = anything else.
    Nodes {
        /// How to print; without it, a table.
        #[arg(short, long, value_name = "HOW")]
        output: Option<NodesOutput>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Print how the podway of this node is.
    ///
    /// Exit status: 0 = all is well; 4 = it starts, or something is wrong, which is printed; 3 = no podway runs on this
    /// node; 1 = anything else.
    Status {
        /// How to print; without it, as text.
        #[arg(short, long, value_name = "HOW")]
        output: Option<StatusOutput>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Work out a new cluster's pod network, node subnets and Service range in a VPC. Nothing is asked or changed.
    Plan(plan::Plan),
    /// Print the configuration file with every field documented and at its default.
    Config,
    /// Attach or detach a pod, as a CNI runtime asks in CNI_* variables and on standard input. Under the plugin's name,
    /// with nothing but CNI_COMMAND, no argument is needed.
    Cni,
    /// Run the pod network alone, by flannel's command line and variables; also when called by this name.
    #[command(disable_help_flag = true)]
    Flanneld {
        /// flannel's flags; --help lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAG")]
        flags: Vec<String>,
    },
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

/// Nobody answers at the socket.
const NO_DAEMON: u8 = 3;

fn main() -> ExitCode {
    // Before anything else is looked at: a pod waits for it.
    if podway_cni::is_called() {
        return podway_cni::run();
    }
    let command = Cli::parse_from(arguments(std::env::args_os().collect())).command;
    match &command {
        Command::Flanneld { flags } => return flanneld::main(flags),
        Command::Cni => return podway_cni::run(),
        _ => {}
    }
    match command.execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podway: {}", message::of(&error));
            match error.is::<status::NoDaemon>() {
                true => ExitCode::from(NO_DAEMON),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// A program called `flanneld` is `podway flanneld` (contract X6).
fn arguments(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().and_then(|path| Path::new(path).file_name()).map(OsStr::to_owned);
    if let Some(name) = name.filter(|name| name == "flanneld") {
        arguments.insert(1, name);
    }
    arguments
}

impl Command {
    fn execute(&self) -> Result<ExitCode> {
        let done: Result<()> = match self {
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
            Self::Plan(plan) => plan.execute(),
            Self::Config => {
                print!("{}", config::DOCUMENTED);
                Ok(())
            }
            Self::Nodes { output, settings } => {
                let socket = settings.load()?.status.socket;
                return block_on(nodes::nodes(&socket, *output));
            }
            Self::Status { output, settings } => {
                let socket = settings.load()?.status.socket;
                return block_on(nodes::status(&socket, *output));
            }
            Self::Flanneld { .. } | Self::Cni => unreachable!("these have exit statuses of their own"),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// One thread is enough: the daemon waits for events and for the kernel, and a small daemon is a gentle one.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A source may wait for a server; nothing of it is worth waiting for at the end.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x6_flannels_flags_reach_flanneld_untouched_by_either_name() {
        let line = ["--help", "--version", "-iface=eth0", "--", "x"];
        for program in [&["/opt/bin/flanneld"][..], &["/usr/bin/podway", "flanneld"]] {
            let words = program.iter().chain(&line).map(OsString::from).collect();
            let Command::Flanneld { flags } = Cli::parse_from(arguments(words)).command else {
                panic!("{program:?}")
            };
            assert_eq!(flags, line);
        }
    }
}
