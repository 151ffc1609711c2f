//! The bpf(2) commands for links, which aya has not for cgroups: update, inspect and detach.
//!
//! The attribute structures are the leading fields of `union bpf_attr`; the kernel takes the rest for zero:
//! <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L1475>.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `enum bpf_attach_type`.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttachType {
    /// `BPF_CGROUP_INET4_CONNECT`.
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`.
    Connect6 = 11,
}

/// `struct bpf_link_info` of a cgroup link.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// Inode number of the cgroup's directory; 0 once the cgroup is gone or the link is detached.
    pub(crate) cgroup: u64,
    attach_type: u32,
    more_padding: u32,
}

pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: RawFd,
        target: RawFd,
        attach_type: u32,
        flags: u32,
    }
    let attach_type = attach_type as u32;
    bpf_fd(
        BPF_LINK_CREATE,
        &Attr { program: program.as_raw_fd(), target: cgroup.as_raw_fd(), attach_type, flags: 0 },
    )
}

/// Replaces the program of a link in one step: every connection meets the old one or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: RawFd,
        new_program: RawFd,
        flags: u32,
        old_program: RawFd,
    }
    let attr = Attr { link: link.as_raw_fd(), new_program: program.as_raw_fd(), flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Ends a link's effect at once, whoever still holds it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: RawFd,
    }
    bpf(BPF_LINK_DETACH, &Attr { link: link.as_raw_fd() }).map(drop)
}

pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attr {
        object: RawFd,
        len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let address = &raw mut info as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &Attr { object: link.as_raw_fd(), len: LINK_INFO_SIZE, info: address })?;
    Ok(info)
}

pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &PathAttr { path: path.as_ptr() as u64, object: object.as_raw_fd(), flags: 0 }).map(drop)
}

pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf_fd(BPF_OBJ_GET, &PathAttr { path: path.as_ptr() as u64, object: 0, flags: 0 })
}

#[repr(C)]
struct PathAttr {
    path: u64,
    object: RawFd,
    flags: u32,
}

fn bpf_fd<A>(command: libc::c_long, attr: &A) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attr)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to this process, with close-on-exec set.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Every pointer in `attr` must be valid for its command.
fn bpf<A>(command: libc::c_long, attr: &A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is readable for its size, the callers above fill it with descriptors and with pointers to living
    // values of the length that the command expects, and the kernel keeps none of them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

const LINK_INFO_SIZE: u32 = 32;
const _: () = assert!(size_of::<LinkInfo>() == LINK_INFO_SIZE as usize);
