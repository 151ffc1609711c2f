//! Where things lie in a checkout, and child processes with a clean environment.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// The checkout that `cargo xtask` was called in.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        // Cargo's value at run time follows a checkout that was moved after xtask was compiled.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let xtask = PathBuf::from(manifest);
        let root = xtask.parent().context("xtask lies in a workspace")?.to_owned();
        Ok(Self { root })
    }

    /// Everything that is built or downloaded; removing it leaves a fresh clone.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Tools that are built from source because no package carries them.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    /// The reference components, under the names they are called by.
    pub(crate) fn reference_bin(&self) -> PathBuf {
        self.target().join("reference/bin")
    }

    /// One log per step, overwritten by its next run.
    pub(crate) fn logs(&self) -> Result<PathBuf> {
        let logs = self.target().join("xtask-logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(logs)
    }

    /// A cargo of this workspace, building into its `target` whatever the user's own setting is: the demo, the
    /// tests and the benchmarks look for podway there.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.env("CARGO_TARGET_DIR", self.target());
        cargo
    }

    /// A child process that starts in the workspace's root.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for name in env::vars_os().map(|(name, _)| name).filter(|name| is_cargo_run(name)) {
            command.env_remove(name);
        }
        command
    }
}

/// Whether `cargo run` set this variable for xtask alone. Build scripts such as ring's watch them, so that each
/// change between `cargo` and `cargo xtask` would compile half the workspace anew.
fn is_cargo_run(name: &std::ffi::OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "LD_LIBRARY_PATH"
}

/// The program of this name in PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_cargo_run_are_told_from_the_users() {
        assert!(is_cargo_run("CARGO_PKG_NAME".as_ref()));
        assert!(is_cargo_run("CARGO_MANIFEST_DIR".as_ref()));
        assert!(!is_cargo_run("CARGO_HOME".as_ref()));
        assert!(!is_cargo_run("CARGO_INCREMENTAL".as_ref()));
    }

    #[test]
    fn the_workspace_is_the_folder_above_xtask() {
        let workspace = Workspace::find().unwrap();
        assert!(workspace.root.join("xtask/Cargo.toml").is_file());
    }

    #[test]
    fn a_program_is_found_in_path_and_an_absent_one_is_not() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
