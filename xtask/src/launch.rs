//! `cargo xtask build`, `demo` and `bench`: build binaries, then hand the terminal over to them.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    ebpf, host, kernel,
    reference::{self, Component},
    setup::{self, Need},
    step,
    workspace::Workspace,
};

/// Builds `podway` for release, with the eBPF programs inside.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    setup::provide(workspace, &[Need::C, Need::Ebpf])?;
    ebpf::build(&workspace.root)?;
    let folder = build_binaries(workspace, Profile::Release, &["podway"])?;
    let podway = folder.join("podway");
    let megabytes = fs::metadata(&podway)?.len() as f64 / 1e6;
    step::say(&format!("{} ({megabytes:.1} MB)", podway.display()));
    Ok(())
}

/// Raises the demo; the arguments are the demo's own.
pub(crate) fn demo(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    host::require_root("demo")?;
    setup::provide(workspace, &[Need::C, Need::Nftables, Need::Iproute, Need::Ebpf])?;
    kernel::require_features(workspace)?;
    if arguments.iter().any(|argument| argument == "--kube") {
        reference::build(workspace, &[Component::Kube])?;
    }
    ebpf::build(&workspace.root)?;
    // Not for release: that would take three times as long until the first packet.
    let folder = build_binaries(workspace, Profile::Dev, &["podway", "podway-testkit", "podway-demo"])?;
    exec(workspace, &folder.join("podway-demo"), arguments)
}

/// Runs the benchmark `name` with its own arguments; without a name it lists them.
pub(crate) fn bench(workspace: &Workspace, name: Option<&str>, arguments: &[OsString]) -> Result<()> {
    host::require_root("bench")?;
    setup::provide(workspace, &[Need::C, Need::Nftables, Need::Iproute, Need::Ebpf])?;
    kernel::require_features(workspace)?;
    if name.is_some_and(|name| !WITHOUT_REFERENCE.contains(&name)) {
        setup::provide(workspace, &[Need::Iptables])?;
        reference::build(workspace, Component::value_variants())?;
    }
    ebpf::build(&workspace.root)?;
    let folder = build_binaries(workspace, Profile::Release, &["podway", "podway-testkit", "podway-bench"])?;
    let name = name.map(OsString::from);
    let arguments: Vec<_> = name.iter().chain(arguments).cloned().collect();
    exec(workspace, &folder.join("podway-bench"), &arguments)
}

/// Benchmarks that measure podway alone.
const WITHOUT_REFERENCE: [&str; 1] = ["sizes"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    Dev,
    Release,
}

/// Builds the binaries of packages; returns the folder that they all lie in, where each looks for the others.
fn build_binaries(workspace: &Workspace, profile: Profile, packages: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--bins"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let (folder, remark) = match profile {
        Profile::Dev => ("debug", "about 2 min the first time"),
        Profile::Release => ("release", "about 4 min the first time"),
    };
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    step::run(workspace, &format!("Building {} ({remark})", packages.join(", ")), cargo)?;
    Ok(workspace.target().join(folder))
}

/// Becomes the program: its exit code and its Ctrl-C are then ours.
fn exec(workspace: &Workspace, program: &Path, arguments: &[OsString]) -> Result<()> {
    let error = workspace.command(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
