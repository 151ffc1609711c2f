//! The claim on a lab's name: one process at a time, and the leftovers of a killed one are swept.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use crate::cgroup;
use crate::namespace::Namespace;

const LOCKS: &str = "/run/podway-testkit";

/// A lab's name, held by this process until dropped. The kernel lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: Flock<File>,
}

impl Claim {
    /// Claims `lab`; fails by name when a living process holds it.
    pub(crate) fn take(lab: &str) -> Result<Self> {
        check_name(lab)?;
        fs::create_dir_all(LOCKS).with_context(|| format!("create {LOCKS}"))?;
        let path = Path::new(LOCKS).join(format!("{lab}.lock"));
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.with_context(|| format!("open {}", path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, _)) => bail!("lab {lab} is in use by process {}", holder(file)),
        };
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .context("write the lock file")?;
        Ok(Self { _lock: lock })
    }
}

/// The prefix of a lab's namespaces. Names of labs and hosts have no dot, so no lab's prefix starts another's.
pub(crate) fn namespace_prefix(lab: &str) -> String {
    format!("pw-{lab}.")
}

/// The folder of a lab's logs and files.
pub(crate) fn folder(lab: &str) -> PathBuf {
    std::env::temp_dir().join("podway-testkit").join(lab)
}

/// Removes all that a lab leaves in the system: processes, cgroups, namespaces, mounts, files. What is not there is
/// fine. The caller holds the lab's claim.
pub(crate) fn sweep(lab: &str) -> Result<()> {
    cgroup::remove(&cgroup::of_lab(lab)?)?;
    for namespace in Namespace::starting_with(&namespace_prefix(lab))? {
        namespace.delete()?;
    }
    let folder = folder(lab);
    unmount_below(&folder)?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// Names become parts of file, device and namespace names.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(fits) {
        bail!("{name:?} is not a name of lower-case letters, digits and dashes");
    }
    Ok(())
}

fn holder(mut file: File) -> String {
    let mut holder = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut holder)) {
        Ok(_) if !holder.is_empty() => holder,
        _ => "unknown".to_owned(),
    }
}

fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(folder)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}
