//! Pinned links: they keep programs attached when nobody holds them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;

use crate::sys::{self, AttachType};
use crate::{Error, bpffs};

/// Puts `program` to work for the sockets of `cgroup`, under the pin `path`; replaces what is pinned there in one step,
/// so that no connection goes by unseen.
pub(crate) fn attach(
    path: &Path,
    program: BorrowedFd<'_>,
    cgroup: &File,
    attach_type: AttachType,
) -> Result<(), Error> {
    match update(path, program, cgroup) {
        Ok(true) => Ok(()),
        Ok(false) => replace(path, program, cgroup, attach_type),
        Err(error) => Err(Error::io("updating the link", path)(error)),
    }
}

/// Detaches what is pinned in `dir` and removes the pins, but for the names that `keep` says yes to.
pub(crate) fn remove(dir: &Path, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
    for name in bpffs::entries(dir)?.into_iter().filter(|name| !keep(name)) {
        let path = dir.join(name);
        let link = sys::pinned(&path).map_err(Error::io("opening the link", &path))?;
        sys::link_detach(link.as_fd()).map_err(Error::io("detaching the link", &path))?;
        fs::remove_file(&path).map_err(Error::io("removing", &path))?;
    }
    Ok(())
}

/// Whether a link to this cgroup was there to be updated.
fn update(path: &Path, program: BorrowedFd<'_>, cgroup: &File) -> io::Result<bool> {
    let link = match sys::pinned(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        link => link?,
    };
    if sys::link_info(link.as_fd())?.cgroup != cgroup.metadata()?.ino() {
        return Ok(false);
    }
    match sys::link_update(link.as_fd(), program) {
        // The cgroup went meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        result => result.map(|()| true),
    }
}

/// Pins a new link beside the old one, if any, and moves it there: the old one ends when the new one works.
fn replace(
    path: &Path,
    program: BorrowedFd<'_>,
    cgroup: &File,
    attach_type: AttachType,
) -> Result<(), Error> {
    let link = sys::link_create(program, cgroup.as_fd(), attach_type)
        .map_err(Error::io("attaching the program to a cgroup, to be pinned at", path))?;
    // A BPF filesystem admits no dots in names.
    let beside = path.with_file_name(format!("{}_new", path.file_name().unwrap_or_default().display()));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("removing", &beside)(error));
        }
        _ => {}
    }
    sys::pin(link.as_fd(), &beside).map_err(Error::io("pinning", &beside))?;
    fs::rename(&beside, path).map_err(Error::io("renaming to", path))
}
