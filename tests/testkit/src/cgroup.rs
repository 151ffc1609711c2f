//! cgroups (version 2) of the hosts: what per-node eBPF programs are attached to, and the sure way to end processes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::eventually::within;

/// The kernel ends killed processes in milliseconds; seconds mean that one hangs in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The folder of a lab's cgroups, under the root of the machine's cgroup2 mount.
pub(crate) fn of_lab(lab: &str) -> Result<PathBuf> {
    Ok(root()?.join("podway-testkit").join(lab))
}

/// Creates a cgroup and its parents.
pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create cgroup {}", path.display()))
}

/// Kills every process in the cgroup and below, then removes all of it. A cgroup that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    within(KILL_DEADLINE, &format!("removal of cgroup {}", path.display()), || {
        fs::write(path.join("cgroup.kill"), "1")?;
        remove_tree(path)
    })
}

/// The names of the cgroups right below.
pub(crate) fn children(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
    let folders = entries.filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()));
    Ok(folders.map(|folder| folder.file_name().to_string_lossy().into_owned()).collect())
}

/// The mount point of cgroup2, which is `/sys/fs/cgroup` on most machines but not where version 1 is mounted too.
fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    mount_point(&mounts).map(PathBuf::from).context("no cgroup2 mount in /proc/self/mountinfo")
}

fn mount_point(mounts: &str) -> Option<&str> {
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    mount.split(' ').nth(4)
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("23 1 0:2 / /proc rw - proc proc rw\n"), None);
    }
}
