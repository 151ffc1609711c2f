//! What can go wrong between podway and the kernel's eBPF.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::programs::ProgramError;
use podway_reconcile::Recovery;

/// Why the eBPF dataplane did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The crate was compiled without the object.
    #[error("this podway was built without its eBPF programs: run cargo xtask build-ebpf and build again")]
    NotBuilt,
    /// The object is not podway's, or of another version.
    #[error("the embedded eBPF object has no {0}")]
    Incomplete(&'static str),
    /// The kernel is too old, or has no BPF at its cgroups.
    #[error(
        "this kernel cannot translate Services at sockets: it lacks bpf_set_retval for cgroup programs (Linux 5.18)"
    )]
    Unsupported,
    /// A capability is missing.
    #[error("the kernel refuses eBPF to this process, which needs CAP_BPF and CAP_NET_ADMIN: {0}")]
    NotPermitted(#[source] io::Error),
    /// There is no cgroup2 hierarchy to attach to.
    #[error("no cgroup2 filesystem is mounted (see /proc/self/mountinfo), so there is nothing to attach to")]
    NoCgroup2,
    /// What was configured is something else.
    #[error("{0} is not a directory on a cgroup2 filesystem")]
    NotCgroup2(PathBuf),
    /// Nothing can be pinned there, and it is not the place where podway mounts a BPF filesystem itself.
    #[error("{0} is not on a BPF filesystem: mount one there, or pin below /sys/fs/bpf")]
    NotBpffs(PathBuf),
    /// More rows than a map holds. The named frontend, and perhaps others, is left to nftables.
    #[error("the eBPF map {map} is full: {frontend} is left to nftables")]
    Full {
        /// The map.
        map: &'static str,
        /// Address, port and protocol.
        frontend: String,
    },
    /// Another failure of a map.
    #[error("eBPF map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The object or its maps were not taken.
    #[error("loading the eBPF programs: {0}")]
    Load(#[source] aya::EbpfError),
    /// The verifier did not take a program.
    #[error("loading the eBPF program {program}: {source}")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said, with the verifier's log.
        source: ProgramError,
    },
    /// A system call on a path.
    #[error("{call} {}: {source}", path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Errno.
        source: io::Error,
    },
}

impl Error {
    /// What to do about it.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Full { .. } | Self::Io { .. } => Recovery::Retry,
            Self::Map { .. } => Recovery::Resync,
            Self::NotBuilt
            | Self::Incomplete(_)
            | Self::Unsupported
            | Self::NotPermitted(_)
            | Self::NoCgroup2
            | Self::NotCgroup2(_)
            | Self::NotBpffs(_)
            | Self::Load(_)
            | Self::Program { .. } => Recovery::Fatal,
        }
    }

    /// For `map_err`: `call` on `path` failed.
    pub(crate) fn io(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { call, path: path.to_owned(), source }
    }

    /// For `map_err`: an operation on `map` failed.
    pub(crate) fn map(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { map, source }
    }
}
