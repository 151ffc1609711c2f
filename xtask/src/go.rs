//! Which Go is installed. It is never installed from here: Debian 12's is too old, and where a newer one comes from
//! is the user's choice.

use std::fmt;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// What Kubernetes 1.36 asks for in its go.mod.
const NEEDED: GoVersion = GoVersion { major: 1, minor: 26, patch: 0 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

/// The installed Go, or an error that says what is wrong and where to go.
pub(crate) fn require(workspace: &Workspace) -> Result<GoVersion> {
    let hint = format!("Install Go {NEEDED} or newer from https://go.dev/dl/ and put it first in PATH");
    let Ok(output) = workspace.command("go").args(["env", "GOVERSION"]).output() else {
        bail!(
            "there is no `go` in PATH: the reference components (Kubernetes, flannel) are built with it. {hint}"
        );
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let found = GoVersion::parse(text.trim())
        .with_context(|| format!("`go env GOVERSION` printed {:?}, which is no version", text.trim()))?;
    if found < NEEDED {
        bail!("Go {found} is too old for the reference components (Kubernetes, flannel). {hint}");
    }
    Ok(found)
}

impl GoVersion {
    /// Reads `go1.26.8`, `go1.27rc1` and the like.
    fn parse(text: &str) -> Option<Self> {
        let numbers = text.strip_prefix("go")?;
        let mut parts = numbers.splitn(3, '.').map(leading_number);
        let (major, minor) = (parts.next()??, parts.next()??);
        Some(Self { major, minor, patch: parts.next().flatten().unwrap_or(0) })
    }
}

/// `27` of `27rc1`.
fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_go_prints_them() {
        let version = |major, minor, patch| Some(GoVersion { major, minor, patch });
        assert_eq!(GoVersion::parse("go1.26.8"), version(1, 26, 8));
        assert_eq!(GoVersion::parse("go1.26"), version(1, 26, 0));
        assert_eq!(GoVersion::parse("go1.27rc1"), version(1, 27, 0));
        assert_eq!(GoVersion::parse("go1.26.8-custom X:nodwarf5"), version(1, 26, 8));
        assert_eq!(GoVersion::parse("devel"), None);
    }

    #[test]
    fn debian_12s_go_is_too_old_and_a_later_one_is_not() {
        assert!(GoVersion::parse("go1.19.8").unwrap() < NEEDED);
        assert!(GoVersion::parse("go1.26.0").unwrap() >= NEEDED);
        assert!(GoVersion::parse("go2.0.0").unwrap() >= NEEDED);
    }
}
