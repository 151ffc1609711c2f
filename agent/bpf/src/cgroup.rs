//! The cgroup whose sockets are translated.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::Error;

/// The cgroup2 root that this process sees, which all sockets of the node belong to.
///
/// # Errors
/// [`Error::NoCgroup2`] where only version 1 is mounted; [`Error::Io`].
pub fn cgroup2_root() -> Result<PathBuf, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = fs::read_to_string(path).map_err(Error::io("reading", path))?;
    find(&mountinfo).ok_or(Error::NoCgroup2)
}

/// Opens the directory `path`, which must be a cgroup.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    let cgroup = File::open(path).map_err(Error::io("opening the cgroup", path))?;
    let kind = fstatfs(&cgroup).map_err(|errno| Error::io("statfs", path)(errno.into()))?.filesystem_type();
    let is_dir = cgroup.metadata().map_err(Error::io("stat", path))?.is_dir();
    match kind == CGROUP2_SUPER_MAGIC && is_dir {
        true => Ok(cgroup),
        false => Err(Error::NotCgroup2(path.to_owned())),
    }
}

/// Fields as in proc_pid_mountinfo(5): the root of a mount is its 4th, the mount point its 5th, and the filesystem's
/// type follows a lone hyphen. A mount of the whole hierarchy is preferred to one of a part of it.
fn find(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        filesystem.starts_with("cgroup2 ").then(|| (root != "/", unescape(point)))
    });
    mounts.min_by_key(|(is_part, _)| *is_part).map(|(_, point)| PathBuf::from(point))
}

/// Space, tab, newline and backslash stand as octal numbers in mountinfo.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, plain)| path.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 20 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory
33 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:11 master:2 - cgroup2 cgroup2 rw
";

    #[test]
    fn version_2_is_found_beside_version_1() {
        assert_eq!(find(HYBRID), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn the_whole_hierarchy_is_preferred_to_a_part_of_it() {
        let mounts = "\
40 20 0:38 /../pods /mnt/some\\040pods rw - cgroup2 cgroup2 rw
41 20 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
";
        assert_eq!(find(mounts), Some("/sys/fs/cgroup".into()));
        assert_eq!(find(mounts.lines().next().unwrap()), Some("/mnt/some pods".into()));
    }

    #[test]
    fn version_1_alone_is_none() {
        assert_eq!(find(HYBRID.rsplit_once("33 ").unwrap().0), None);
    }

    #[test]
    fn a_directory_elsewhere_is_no_cgroup() {
        assert!(matches!(open(Path::new("/proc/self")), Err(Error::NotCgroup2(_))));
        assert!(matches!(open(Path::new("/nowhere")), Err(Error::Io { .. })));
    }
}
