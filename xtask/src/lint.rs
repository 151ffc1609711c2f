//! `cargo xtask lint`: formatting, clippy, rustdoc, stray paths, and what cargo-deny forbids.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    setup::{self, Need},
    step,
    workspace::{Workspace, find_program},
};

/// Runs every check, also after one has failed, and fails with the names of those that did.
pub(crate) fn run(workspace: &Workspace, deny: Deny) -> Result<()> {
    setup::provide(workspace, &[Need::C, Need::Rustfmt, Need::Clippy])?;
    let mut cargo_deny = find_cargo_deny(workspace);
    if cargo_deny.is_none() && deny == Deny::Install {
        cargo_deny = Some(install_cargo_deny(workspace)?);
    }
    let mut failures = Vec::new();
    let mut note = |outcome: Result<()>| failures.extend(outcome.err().map(|error| format!("{error:#}")));
    note(step::run(workspace, "Formatting", rustfmt(workspace)));
    note(reject_machine_paths(workspace));
    note(step::run(workspace, "Clippy (about 2 min the first time)", clippy(workspace)));
    note(step::run(workspace, "Documentation (about 1 min the first time)", rustdoc(workspace)));
    match &cargo_deny {
        Some(program) => {
            note(step::run(workspace, "Licences, bans, sources", deny_check(workspace, program)))
        }
        None => step::say(
            "cargo-deny is not installed, so licences and sources stay unchecked: lint --deny does it",
        ),
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("lint failed:\n- {}", failures.join("\n- "))
}

/// What to do when cargo-deny is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deny {
    Install,
    LeaveOut,
}

fn rustfmt(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    // rustfmt colours its output even where no terminal is.
    cargo.args(["fmt", "--all", "--check", "--", "--color=never"]);
    cargo
}

fn clippy(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"]);
    cargo
}

fn rustdoc(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings");
    cargo
}

/// Without the advisories: they are a download of their own, and change without a change of ours.
fn deny_check(workspace: &Workspace, program: &Path) -> Command {
    let mut deny = workspace.command(program);
    deny.args(["--locked", "check", "bans", "licenses", "sources"]);
    deny
}

fn find_cargo_deny(workspace: &Workspace) -> Option<PathBuf> {
    let own = workspace.tools().join("bin/cargo-deny");
    if own.is_file() { Some(own) } else { find_program("cargo-deny") }
}

fn install_cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    let mut install = workspace.cargo();
    install.args(["install", "cargo-deny", "--locked", "--root"]).arg(workspace.tools());
    // Into a folder that cargo removes afterwards.
    install.env_remove("CARGO_TARGET_DIR");
    step::run(workspace, "Installing cargo-deny into target/tools (about 3 min)", install)?;
    Ok(workspace.tools().join("bin/cargo-deny"))
}

/// Fails with each place where a file of the repository names a path that only one machine has.
fn reject_machine_paths(workspace: &Workspace) -> Result<()> {
    let checkout = workspace.root.display().to_string();
    let mut found = Vec::new();
    for file in repository_files(workspace)? {
        // Not text, or deleted but not yet committed.
        let Ok(text) = fs::read_to_string(workspace.root.join(&file)) else { continue };
        let lines = text.lines().enumerate().filter(|(_, line)| names_machine_path(line, &checkout));
        found.extend(lines.map(|(index, line)| format!("{file}:{}: {}", index + 1, line.trim())));
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("paths of one machine in the repository:\n  {}", found.join("\n  "))
}

/// Files that are committed or would be.
fn repository_files(workspace: &Workspace) -> Result<Vec<String>> {
    let mut git = workspace.command("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Whether the line names something in a home folder or in this checkout.
fn names_machine_path(line: &str, checkout: &str) -> bool {
    let homes = ["/home/", "/Users/", "/root/"];
    homes.iter().any(|home| paths_under(line, home)) || paths_under(line, checkout)
}

/// Whether a path in the line starts with `prefix`. A prefix on its own, as in this file, is not yet a path below it;
/// with text before it, as in a URL or `target/home/`, it does not start one.
fn paths_under(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + prefix.len()..].chars().next();
        let starts = !before.is_some_and(|c| c.is_alphanumeric() || "./_-~}".contains(c));
        let goes_on = after.is_some_and(|c| c.is_alphanumeric() || "/._-".contains(c));
        starts && goes_on
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Put together here, because these are what no file may hold.
    fn path(parts: &[&str]) -> String {
        format!("/{}", parts.join("/"))
    }

    #[test]
    fn homes_and_the_checkout_are_found() {
        let checkout = path(&["srv", "podway"]);
        assert!(names_machine_path(&format!("read {} first", path(&["home", "ada", "notes"])), &checkout));
        assert!(names_machine_path(
            &format!("let p = \"{}\";", path(&["root", ".kube", "config"])),
            &checkout
        ));
        assert!(names_machine_path(&format!("see {}", path(&["srv", "podway", "agent"])), &checkout));
    }

    #[test]
    fn other_paths_are_not() {
        let checkout = path(&["srv", "podway"]);
        for line in
            ["/run/podway", "https://example.org/home/page", "$HOME/.kube", "/sys/fs/cgroup", "~/podway"]
        {
            assert!(!names_machine_path(line, &checkout), "{line}");
        }
    }
}
