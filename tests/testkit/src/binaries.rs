//! Finding the programs that a test runs: ours beside the test executable, the reference components in their folder.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The path of one of our own programs, built into the same target folder as the running executable.
///
/// Fails when it has not been built: a test alone does not build another package's program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = profile_folder()?.join(name);
    if !path.is_file() {
        bail!("{name} is not built: run cargo xtask test ({} is missing)", path.display());
    }
    Ok(path)
}

/// The path of a reference component, such as `kube-apiserver`.
///
/// `$KUBEBUILDER_ASSETS` is looked at first, then `reference/bin` in the target folder, which `cargo xtask reference`
/// fills.
pub fn reference(name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os("KUBEBUILDER_ASSETS").map(|assets| Path::new(&assets).join(name))
        && path.is_file()
    {
        return Ok(path);
    }
    let executable = env::current_exe().context("path of the running executable")?;
    executable
        .ancestors()
        .map(|folder| folder.join("reference/bin").join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("{name} is not built: run cargo xtask reference (or set KUBEBUILDER_ASSETS)")
        })
}

/// Fails by name when the caller is not root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: run cargo xtask test as root");
    }
    Ok(())
}

/// `target/<profile>`: where the running executable lies, test executables one folder deeper in `deps`.
fn profile_folder() -> Result<PathBuf> {
    let executable = env::current_exe().context("path of the running executable")?;
    let folder = executable.parent().context("the running executable has no folder")?;
    let above = folder.parent().filter(|_| folder.ends_with("deps") || folder.ends_with("examples"));
    Ok(above.unwrap_or(folder).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_the_command_that_builds_it() {
        let error = binary("no-such-program").unwrap_err().to_string();
        assert!(error.starts_with("no-such-program is not built: run cargo xtask test"), "{error}");
    }

    #[test]
    fn a_missing_reference_component_names_the_command_that_builds_it() {
        let error = reference("no-such-component").unwrap_err().to_string();
        assert!(error.contains("cargo xtask reference"), "{error}");
    }
}
