//! The benchmarks behind `cargo xtask bench`: each measures podway in network namespaces of its own, and prints a
//! table.

mod clusters;
mod cni;
mod contenders;
mod machine;
mod memory;
mod overlay;
mod progress;
mod sizes;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Measures podway, alone or beside kube-proxy and flannel.
///
/// Every benchmark raises network namespaces of its own, removes them at its end and on Ctrl-C, and leaves the
/// machine's own network alone. Needs root.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench", max_term_width = 100, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    bench: Option<Bench>,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How large podway is: the binary, and the daemon's memory at rest.
    ///
    /// Runs the daemon with an empty cluster, a small one and one of 1,000 Services, read from a folder. Where the
    /// reference components have been built (`cargo xtask reference`), the large one also comes from a real
    /// kube-apiserver, with the real kube-proxy and flanneld beside podway. About a minute.
    Sizes {
        /// Also write the table to docs/benchmarks/sizes.md.
        #[arg(long)]
        save: bool,
    },
    /// The CNI plugin: how long ADD and DEL take, beside the standard plugins.
    ///
    /// podway, ptp and bridge (both with host-local), each with and without portmap, on one node in turn: alone, with 100
    /// pods there already, and with two families. Two to three minutes.
    Cni {
        /// Also write the tables to docs/benchmarks/cni.md.
        #[arg(long)]
        save: bool,
    },
    /// The pod network beside flanneld: peers, changes, memory, and what the data path carries.
    ///
    /// 250, 1,000 and 5,000 simulated Nodes in a real kube-apiserver, programmed by podway and by the real flanneld; then
    /// two pods on two nodes over podway, over flannel, and over a VXLAN device with nothing else. About ten minutes.
    Overlay {
        /// Also write the tables to docs/benchmarks/overlay.md.
        #[arg(long, conflicts_with = "only")]
        save: bool,
        /// Measure one part.
        #[arg(long, value_enum)]
        only: Option<overlay::Part>,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match arguments.bench {
        Some(Bench::Sizes { save }) => sizes::run(save),
        Some(Bench::Cni { save }) => cni::run(save),
        Some(Bench::Overlay { save, only }) => overlay::run(save, only),
        None => Ok(Arguments::command().print_long_help()?),
    }
}
