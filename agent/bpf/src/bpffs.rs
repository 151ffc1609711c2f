//! The BPF filesystem and podway's directory on it:
//!
//! ```text
//! <pin dir>/v<schema>/frontends, slots, counters    one directory per layout of the maps
//! <pin dir>/links/connect4, connect6                what is attached, whatever layout it reads
//! ```

use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use podway_ebpf_common::SCHEMA;

use crate::Error;

/// Where the kernel wants a BPF filesystem mounted, and the only place where podway mounts one.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// podway's directory on a BPF filesystem.
#[derive(Debug, Clone)]
pub(crate) struct PinDir(PathBuf);

impl PinDir {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes sure that things can be pinned.
    pub(crate) fn create(&self) -> Result<(), Error> {
        if !is_bpffs(&self.0)? {
            if !self.0.starts_with(MOUNT_POINT) {
                return Err(Error::NotBpffs(self.0.clone()));
            }
            mount_bpffs()?;
        }
        for dir in [self.maps(), self.links()] {
            fs::create_dir_all(&dir).map_err(Error::io("creating", &dir))?;
        }
        Ok(())
    }

    /// The maps of this version's layout.
    pub(crate) fn maps(&self) -> PathBuf {
        self.0.join(maps_name())
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    /// Removes the maps of layouts that `keep` says no to.
    pub(crate) fn remove_maps(&self, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
        for name in entries(&self.0)? {
            if is_maps_name(&name) && !keep(&name) {
                let dir = self.0.join(name);
                fs::remove_dir_all(&dir).map_err(Error::io("removing", &dir))?;
            }
        }
        Ok(())
    }

    /// Removes the directory itself, unless someone else has put something into it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        for dir in [self.links(), self.0.clone()] {
            // A read-only /sys, as containers have it, would refuse the removal of nothing, too.
            if !dir.exists() {
                continue;
            }
            match fs::remove_dir(&dir) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(Error::io("removing", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name of this version's directory of maps.
pub(crate) fn maps_name() -> String {
    format!("v{SCHEMA}")
}

/// The names in a directory; none when there is no directory.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let read = |dir: &Path| -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    match read(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(Error::io("reading", dir)),
    }
}

fn is_maps_name(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Asks the nearest directory that exists.
fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let stat = statfs(existing).map_err(|errno| Error::io("statfs", existing)(errno.into()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs() -> Result<(), Error> {
    tracing::info!(path = MOUNT_POINT, "mounting a BPF filesystem");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| Error::io("mounting a BPF filesystem at", Path::new(MOUNT_POINT))(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_directories_hold_maps() {
        assert!(is_maps_name(&maps_name()));
        for foreign in ["links", "v", "vault", "version1", "1"] {
            assert!(!is_maps_name(foreign), "{foreign}");
        }
    }

    #[test]
    fn pinning_elsewhere_is_refused_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("podway-no-bpffs-{}", std::process::id()));
        assert!(matches!(PinDir::new(&dir).create(), Err(Error::NotBpffs(_))));
        assert!(!dir.exists());
    }
}
