//! The embedded object, and what it becomes in the kernel.

use std::io;

use aya::maps::Map;
use aya::programs::{CgroupSockAddr, ProgramError, ProgramFd, ProgramType};
use aya::sys::{BpfHelper, SyscallError, is_helper_supported};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};

use crate::Error;
use crate::bpffs::PinDir;
use crate::maps::{COUNTERS, FRONTENDS, Maps, SLOTS};
use crate::sys::AttachType;

/// Empty when the programs were not built before this crate.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podway.bpf.o"));

/// A place that a program is attached to.
#[derive(Debug)]
pub(crate) struct Hook {
    /// The name of its pin.
    pub(crate) name: &'static str,
    /// The name of its program.
    program: &'static str,
    pub(crate) attach_type: AttachType,
}

pub(crate) const HOOKS: [Hook; 2] = [
    Hook { name: "connect4", program: "podway_connect4", attach_type: AttachType::Connect4 },
    Hook { name: "connect6", program: "podway_connect6", attach_type: AttachType::Connect6 },
];

/// Whether this build and this kernel can do it; the error says what they lack.
pub(crate) fn check() -> Result<(), Error> {
    if OBJECT.is_empty() {
        return Err(Error::NotBuilt);
    }
    match is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Unsupported),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Err(Error::NotPermitted(io_error))
        }
        Err(source) => Err(Error::Program { program: "probe", source }),
    }
}

/// Loads the programs with the maps that are pinned in `pins`; pins new ones where there are none.
pub(crate) fn load(pins: &PinDir) -> Result<(Maps, [ProgramFd; HOOKS.len()]), Error> {
    let dir = pins.maps();
    let mut loader = EbpfLoader::new();
    // No program needs the kernel's type information.
    loader.btf(None);
    for (name, pin) in [FRONTENDS, SLOTS, COUNTERS].map(|map| (map, dir.join(map.to_lowercase()))) {
        loader.map_pin_path(name, pin);
    }
    let mut ebpf = loader.load(OBJECT).map_err(Error::Load)?;
    let [connect4, connect6] = &HOOKS;
    let programs = [program(&mut ebpf, connect4)?, program(&mut ebpf, connect6)?];
    let maps = Maps::new(map(&mut ebpf, FRONTENDS)?, map(&mut ebpf, SLOTS)?, map(&mut ebpf, COUNTERS)?)?;
    Ok((maps, programs))
}

fn program(ebpf: &mut Ebpf, hook: &Hook) -> Result<ProgramFd, Error> {
    let failed = |source| Error::Program { program: hook.program, source };
    let program = ebpf.program_mut(hook.program).ok_or(Error::Incomplete(hook.program))?;
    let program: &mut CgroupSockAddr = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    let fd = program.fd().map_err(failed)?;
    fd.try_clone().map_err(|error| failed(error.into()))
}

fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or(Error::Incomplete(name))
}
