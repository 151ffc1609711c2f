//! The eBPF dataplane as the daemon sees it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::ProgramFd;
use podway_proxy::{Frontend, Pool, RowDelta};

use crate::bpffs::{self, PinDir};
use crate::load::{self, HOOKS};
use crate::maps::{Counters, Maps};
use crate::{Error, cgroup, link};

/// Whose sockets are translated, and where that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Sockets in this cgroup and below are translated; [`crate::cgroup2_root`] for the whole node.
    pub cgroup: PathBuf,
    /// A directory of podway's own on a BPF filesystem; [`crate::DEFAULT_PIN_DIR`].
    pub pin_dir: PathBuf,
}

/// The maps and programs in the kernel.
///
/// Dropping it changes nothing there: what is attached goes on translating by the rows that it has.
pub struct BpfDataplane {
    maps: Maps,
    programs: [ProgramFd; HOOKS.len()],
    cgroup: File,
    pins: PinDir,
}

impl BpfDataplane {
    /// Whether this build and this kernel have what it takes; the error says what they lack.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::Unsupported`], [`Error::NotPermitted`].
    pub fn check() -> Result<(), Error> {
        load::check()
    }

    /// Loads the programs with the rows that an earlier daemon left, or with none.
    ///
    /// Nothing is attached or replaced yet: that is [`Self::attach`]'s part, when the rows are complete. Rows of an
    /// incompatible version are not adopted; its programs go on with them until then. Mounts a BPF filesystem at
    /// /sys/fs/bpf when there is none and the pin directory is below it.
    ///
    /// # Errors
    /// Those of [`Self::check`]; [`Error::NotCgroup2`] and [`Error::NotBpffs`] for the settings; what the kernel says.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        load::check()?;
        let cgroup = cgroup::open(&settings.cgroup)?;
        let pins = PinDir::new(&settings.pin_dir);
        pins.create()?;
        let (mut maps, programs) = load::load(&pins)?;
        maps.remove_orphans()?;
        Ok(Self { maps, programs, cgroup, pins })
    }

    /// Reads the frontends back from the kernel.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn observe(&self) -> Result<BTreeMap<Frontend, Pool>, Error> {
        self.maps.read()
    }

    /// Carries out the frontends' part of `delta`; applying it twice is applying it once.
    ///
    /// Every frontend changes in one step, and no connection ever misses a target. A row that fails does not keep the
    /// others from being written.
    ///
    /// # Errors
    /// The first one of all rows; [`Error::Full`] names the frontend that is left to nftables.
    pub fn apply(&mut self, delta: &RowDelta) -> Result<(), Error> {
        let mut result = Ok(());
        for frontend in &delta.frontends.remove {
            result = result.and(self.maps.remove(frontend));
        }
        for (frontend, pool) in &delta.frontends.set {
            result = result.and(self.maps.set(frontend, pool));
        }
        result
    }

    /// Puts the programs to work on the rows that are loaded, and removes what other versions left.
    ///
    /// To be called once the first complete rows are applied. Where programs are attached already, each is replaced in
    /// one step. Calling it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn attach(&self) -> Result<(), Error> {
        for (hook, program) in HOOKS.iter().zip(&self.programs) {
            link::attach(
                &self.pins.links().join(hook.name),
                program.as_fd(),
                &self.cgroup,
                hook.attach_type,
            )?;
        }
        link::remove(&self.pins.links(), |name| HOOKS.iter().any(|hook| hook.name == name))?;
        self.pins.remove_maps(|name| name == bpffs::maps_name())
    }

    /// What the programs have counted.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Counters, Error> {
        self.maps.counters()
    }

    /// Detaches and removes everything of podway's in `pin_dir`, of any version, and nothing else.
    ///
    /// Works without an open dataplane, and in a podway built without its programs; nothing when nothing is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_all(pin_dir: &Path) -> Result<(), Error> {
        let pins = PinDir::new(pin_dir);
        link::remove(&pins.links(), |_| false)?;
        pins.remove_maps(|_| false)?;
        pins.remove()
    }
}
