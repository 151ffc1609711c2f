//! Prerequisites: what is missing on this machine, and either its installation or the commands for it.

use std::{iter, time::Instant};

use anyhow::{Result, bail};

use crate::{
    ebpf, go,
    host::{self, Packaging},
    step,
    workspace::{Workspace, find_program},
};

/// Something that a subcommand cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A C compiler: for crates with C inside, and for flannel.
    C,
    /// nft: podway's own way to nftables.
    Nftables,
    /// ip: the probes of the kernel, and looking around in the demo.
    Iproute,
    /// iptables: flanneld and the CNI plugins call it.
    Iptables,
    /// curl: the tests ask the daemon's pages as an operator would.
    Curl,
    /// A rustc that compiles for BPF, and bpf-linker.
    Ebpf,
    /// Go for the reference components.
    Go,
    Rustfmt,
    Clippy,
}

const ALL: [Need; 9] = [
    Need::C,
    Need::Nftables,
    Need::Iproute,
    Need::Iptables,
    Need::Curl,
    Need::Ebpf,
    Need::Rustfmt,
    Need::Clippy,
    Need::Go,
];

/// `cargo xtask setup`: everything that any subcommand needs.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    provide(workspace, &ALL)?;
    step::say(&format!("Everything is in place ({:.1} s)", started.elapsed().as_secs_f32()));
    Ok(())
}

/// Installs what is missing of `needs`, or fails with what to type, for all of it at once.
pub(crate) fn provide(workspace: &Workspace, needs: &[Need]) -> Result<()> {
    let packages = provide_packages(workspace, &missing_packages(needs));
    let others = needs.iter().map(|need| match need {
        Need::Ebpf => ebpf::install(&workspace.root),
        Need::Go => go::require(workspace).map(drop),
        Need::Rustfmt => provide_component(workspace, "rustfmt", "cargo-fmt"),
        Need::Clippy => provide_component(workspace, "clippy", "cargo-clippy"),
        Need::C | Need::Nftables | Need::Iproute | Need::Iptables | Need::Curl => Ok(()),
    });
    let outcomes = iter::once(packages).chain(others);
    let problems: Vec<_> = outcomes.filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n\n"))
}

/// A package, by its name with apt, dnf and pacman.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Package {
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
}

impl Package {
    fn name(self, packaging: Packaging) -> &'static str {
        match packaging {
            Packaging::Apt => self.apt,
            Packaging::Dnf => self.dnf,
            Packaging::Pacman => self.pacman,
        }
    }
}

impl Need {
    /// The program to look for, and the package that brings it.
    fn program(self) -> Option<(&'static str, Package)> {
        let (program, apt, dnf, pacman) = match self {
            Self::C => ("cc", "build-essential", "gcc", "gcc"),
            Self::Nftables => ("nft", "nftables", "nftables", "nftables"),
            Self::Iproute => ("ip", "iproute2", "iproute", "iproute2"),
            Self::Iptables => ("iptables", "iptables", "iptables-nft", "iptables"),
            Self::Curl => ("curl", "curl", "curl", "curl"),
            Self::Ebpf | Self::Go | Self::Rustfmt | Self::Clippy => return None,
        };
        Some((program, Package { apt, dnf, pacman }))
    }
}

fn missing_packages(needs: &[Need]) -> Vec<Package> {
    let programs = needs.iter().filter_map(|need| need.program());
    programs.filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| package).collect()
}

fn provide_packages(workspace: &Workspace, packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let Some(packaging) = Packaging::detect() else {
        let names: Vec<_> = packages.iter().map(|package| package.apt).collect();
        bail!(
            "missing: {}. Install them with this system's package manager (the names are Debian's)",
            names.join(", ")
        );
    };
    let names: Vec<_> = packages.iter().map(|package| package.name(packaging)).collect();
    if packaging != Packaging::Apt || !host::is_root() {
        bail!("missing: {}. As root:\n\n    {}", names.join(", "), packaging.install_command(&names));
    }
    apt_install(workspace, &names)
}

/// Installs packages of Debian or Ubuntu. The package lists are refreshed only when apt cannot go on with what it has:
/// a machine that installed anything lately has good ones.
pub(crate) fn apt_install(workspace: &Workspace, names: &[&str]) -> Result<()> {
    let title = format!("Installing {} with apt-get", names.join(" "));
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(names);
    if step::attempt(workspace, &title, apt_get(workspace, &install))? {
        return Ok(());
    }
    step::run(workspace, "Refreshing apt's package lists", apt_get(workspace, &["update"]))?;
    step::run(workspace, &title, apt_get(workspace, &install))
}

fn apt_get(workspace: &Workspace, arguments: &[&str]) -> std::process::Command {
    let mut command = workspace.command("apt-get");
    // Another apt may be at work, as on a machine that has just been started.
    command.args(["-o", "DPkg::Lock::Timeout=120"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// A component of the Rust toolchain in use, which brings `program`.
fn provide_component(workspace: &Workspace, component: &str, program: &str) -> Result<()> {
    let works =
        workspace.command(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if works {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "`{program}` is missing, and there is no rustup to add it: install this system's package of {component}"
        );
    }
    let mut add = workspace.command("rustup");
    add.args(["component", "add", component]);
    step::run(workspace, &format!("Adding {component} with rustup"), add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absent_programs_ask_for_a_package() {
        // This test was compiled, so that there is a C compiler.
        assert_eq!(missing_packages(&[Need::C, Need::Go]), []);
    }

    #[test]
    fn a_package_goes_by_its_name_in_each_distribution() {
        let (program, package) = Need::Iproute.program().unwrap();
        assert_eq!(program, "ip");
        assert_eq!(package.name(Packaging::Apt), "iproute2");
        assert_eq!(package.name(Packaging::Dnf), "iproute");
    }
}
