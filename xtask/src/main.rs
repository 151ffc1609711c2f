//! `cargo xtask`: the only door to building, testing and showing podway. What each subcommand does and needs is in
//! `cargo xtask --help`.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

mod ebpf;
mod go;
mod host;
mod kernel;
mod launch;
mod lint;
mod reference;
mod setup;
mod step;
mod test;
mod workspace;

use lint::Deny;
use reference::Component;
use workspace::Workspace;

/// Builds, tests and shows podway.
///
/// Each subcommand brings its own prerequisites and does nothing twice: start with `cargo xtask demo` or
/// `cargo xtask test`. Needed beforehand: Linux, Rust (rustup), git, a C compiler; Go 1.26 for the tests; root for the
/// demo, the tests and the benchmarks. Times are for 2 cores. Everything built or downloaded lies in target/, except for
/// packages of the system; the output of each step is in target/xtask-logs/.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    subcommand: Xtask,
}

#[derive(Debug, Subcommand)]
enum Xtask {
    /// Install everything that the other subcommands need.
    ///
    /// On Debian and Ubuntu, as root, with apt-get: nftables, iproute2, iptables, curl, a C compiler, and a Rust compiler for
    /// BPF; then bpf-linker into target/tools, rustfmt and clippy. Elsewhere it prints the commands to type and fails.
    /// Go is looked for and not installed. About a minute and a half the first time, then at once.
    Setup,

    /// Compile the eBPF programs.
    ///
    /// Installs a compiler for BPF and bpf-linker if they are missing (setup does the same). About 20 seconds, and a
    /// minute for bpf-linker the first time.
    BuildEbpf,

    /// Build the podway binary for release, with the eBPF programs inside.
    ///
    /// Compiles the eBPF programs first. About 4 minutes the first time. Plain `cargo build --release` needs no tool for
    /// eBPF, and gives a podway that has nftables only.
    Build,

    /// Build the reference components that podway is tested and measured against.
    ///
    /// etcd, kube-apiserver, kube-controller-manager, kubectl, kube-proxy, flanneld and the CNI plugins, from their Go
    /// modules into target/reference/bin. Needs Go 1.26; downloads about 1 GB into Go's module cache. About 7 minutes the
    /// first time. Tests use the control plane in KUBEBUILDER_ASSETS instead, where that is set and complete.
    Reference {
        /// Build this one alone; may be given several times.
        #[arg(long, value_enum)]
        only: Vec<Component>,
    },

    /// Run the tests: unit, property, and integration tests with real packets.
    ///
    /// Needs root, for network namespaces of its own; the machine's own network is left alone. Installs what is missing,
    /// builds the reference components, the eBPF programs and podway. About 15 minutes the first time, then as long as
    /// the tests.
    Test {
        /// `overlay`: everything about the pod network, in all suites that are about it. Or a suite (a file or folder in a
        /// package's `tests`, such as tests/suites/tests/takeover.rs: `takeover`), or a part of tests' names.
        filter: Option<String>,
    },

    /// Check formatting, clippy, documentation, stray paths and licences.
    ///
    /// Installs rustfmt and clippy if they are missing. About 3 minutes the first time.
    Lint {
        /// Install cargo-deny into target/tools if it is missing (about 3 minutes); without it licences and sources of
        /// crates are checked only where cargo-deny is already there.
        #[arg(long)]
        deny: bool,
    },

    /// Show podway at work: three nodes with pods, from ordinary Kubernetes manifests.
    ///
    /// Needs root, for network namespaces of its own, and cleans up after itself. Installs nftables and iproute2 if they
    /// are missing, and compiles podway with its eBPF programs. About 4 minutes the first time, then a quarter of one. All
    /// arguments go to the demo: --keep (leave it up to look around), --remove (what was kept), --kube (with a real
    /// kube-apiserver; needs Go and 5 minutes more the first time).
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },

    /// Measure podway, alone or beside kube-proxy and flannel.
    ///
    /// Without a name it lists the benchmarks. Needs root; builds podway for release, and the reference components for all
    /// but `sizes`. The name and all further arguments go to the benchmark.
    Bench {
        /// The benchmark, for instance `sizes`.
        name: Option<String>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().subcommand) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(subcommand: Xtask) -> Result<()> {
    let workspace = Workspace::find()?;
    match subcommand {
        Xtask::Setup => setup::run(&workspace),
        Xtask::BuildEbpf => build_ebpf(&workspace),
        Xtask::Build => launch::build(&workspace),
        Xtask::Reference { only } => build_reference(&workspace, &only),
        Xtask::Test { filter } => test::run(&workspace, filter.as_deref()),
        Xtask::Lint { deny: true } => lint::run(&workspace, Deny::Install),
        Xtask::Lint { deny: false } => lint::run(&workspace, Deny::LeaveOut),
        Xtask::Demo { arguments } => launch::demo(&workspace, &arguments),
        Xtask::Bench { name, arguments } => launch::bench(&workspace, name.as_deref(), &arguments),
    }
}

fn build_ebpf(workspace: &Workspace) -> Result<()> {
    setup::provide(workspace, &[setup::Need::Ebpf])?;
    let object = ebpf::build(&workspace.root)?;
    step::say(&object.display().to_string());
    Ok(())
}

fn build_reference(workspace: &Workspace, only: &[Component]) -> Result<()> {
    let components = if only.is_empty() { Component::value_variants() } else { only };
    reference::build(workspace, components)?;
    step::say(&format!("Reference components are in {}", workspace.reference_bin().display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_subcommand_has_a_paragraph_of_help() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            assert!(subcommand.get_long_about().is_some(), "{}", subcommand.get_name());
        }
    }

    #[test]
    fn arguments_of_the_demo_and_of_a_benchmark_pass_through() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap().subcommand;
        assert!(
            matches!(parse("xtask demo --keep --kube"), Xtask::Demo { arguments } if arguments == ["--keep", "--kube"])
        );
        assert!(matches!(parse("xtask bench sizes --json"),
            Xtask::Bench { name: Some(name), arguments } if name == "sizes" && arguments == ["--json"]));
        assert!(
            matches!(parse("xtask test overlay"), Xtask::Test { filter: Some(word) } if word == "overlay")
        );
    }
}
