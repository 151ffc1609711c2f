//! The maps: every read and write of rows in the kernel.
//!
//! Programs read while rows change. A pool's slots are written before the count that makes them visible, and slots that
//! are no longer counted are removed last; a program that comes in between with the old count looks again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use aya::sys::SyscallError;
use nix::libc;
use podway_ebpf_common::{Counter, FrontendKey, FrontendValue, SlotKey, Target};
use podway_proxy::{Frontend, Pool};

use crate::Error;
use crate::convert;

pub(crate) const FRONTENDS: &str = "FRONTENDS";
pub(crate) const SLOTS: &str = "SLOTS";
pub(crate) const COUNTERS: &str = "COUNTERS";

/// What the programs have done since the maps were made, over restarts of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections sent to a target.
    pub translated: u64,
    /// Connections refused.
    pub rejected: u64,
    /// Connections left to nftables because a target was missing: always 0 unless the maps were tampered with.
    pub missed_slots: u64,
}

pub(crate) struct Maps {
    frontends: HashMap<MapData, FrontendKey, FrontendValue>,
    slots: HashMap<MapData, SlotKey, Target>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(crate) fn new(frontends: Map, slots: Map, counters: Map) -> Result<Self, Error> {
        Ok(Self {
            frontends: frontends.try_into().map_err(Error::map(FRONTENDS))?,
            slots: slots.try_into().map_err(Error::map(SLOTS))?,
            counters: counters.try_into().map_err(Error::map(COUNTERS))?,
        })
    }

    /// All frontends. A slot that is missing is left out of its pool, which therefore differs from every desired one.
    pub(crate) fn read(&self) -> Result<BTreeMap<Frontend, Pool>, Error> {
        let mut rows = BTreeMap::new();
        for entry in self.frontends.iter() {
            let (key, value) = entry.map_err(Error::map(FRONTENDS))?;
            if let Some(frontend) = convert::frontend(&key) {
                rows.insert(frontend, convert::pool(&value, self.read_slots(key, value.targets())?));
            }
        }
        Ok(rows)
    }

    fn read_slots(&self, frontend: FrontendKey, count: u32) -> Result<Vec<SocketAddr>, Error> {
        let mut targets = Vec::new();
        for slot in 0..count {
            let target = found(self.slots.get(&SlotKey::new(frontend, slot), 0), SLOTS)?;
            targets.extend(target.as_ref().map(convert::socket_address));
        }
        Ok(targets)
    }

    /// Makes `pool` what `frontend` stands for.
    ///
    /// When it does not fit, the frontend is removed instead, which leaves it to nftables: better than its old targets.
    pub(crate) fn set(&mut self, frontend: &Frontend, pool: &Pool) -> Result<(), Error> {
        let key = convert::frontend_key(frontend);
        let before = self.slot_count(&key)?;
        let value = convert::frontend_value(pool);
        if let Err(error) = self.write(key, value, pool) {
            self.remove_frontend(&key)?;
            self.remove_slots(key, 0, before.max(value.targets()))?;
            return Err(name_full(error, frontend));
        }
        self.remove_slots(key, value.targets(), before)
    }

    /// Leaves connections to `frontend` alone; nothing when it is absent.
    pub(crate) fn remove(&mut self, frontend: &Frontend) -> Result<(), Error> {
        let key = convert::frontend_key(frontend);
        let before = self.slot_count(&key)?;
        self.remove_frontend(&key)?;
        self.remove_slots(key, 0, before)
    }

    /// Removes slots that no frontend counts: left by a daemon that was killed between two writes.
    pub(crate) fn remove_orphans(&mut self) -> Result<(), Error> {
        let counts = self
            .frontends
            .iter()
            .map(|entry| entry.map(|(key, value)| (key, value.targets())))
            .collect::<Result<BTreeMap<_, _>, _>>()
            .map_err(Error::map(FRONTENDS))?;
        let mut orphans = Vec::new();
        for key in self.slots.keys() {
            let key = key.map_err(Error::map(SLOTS))?;
            if counts.get(&key.frontend()).is_none_or(|count| key.slot() >= *count) {
                orphans.push(key);
            }
        }
        for key in orphans {
            found(self.slots.remove(&key), SLOTS)?;
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> Result<Counters, Error> {
        let sum = |counter: Counter| -> Result<u64, Error> {
            let per_cpu = self.counters.get(&(counter as u32), 0).map_err(Error::map(COUNTERS))?;
            Ok(per_cpu.iter().sum())
        };
        Ok(Counters {
            translated: sum(Counter::Translated)?,
            rejected: sum(Counter::Rejected)?,
            missed_slots: sum(Counter::MissedSlot)?,
        })
    }

    fn write(&mut self, key: FrontendKey, value: FrontendValue, pool: &Pool) -> Result<(), Error> {
        let targets: &[SocketAddr] = match pool {
            Pool::Balance { targets, .. } => targets,
            Pool::Reject | Pool::Drop => &[],
        };
        for (slot, target) in (0..).zip(targets) {
            let slot = SlotKey::new(key, slot);
            self.slots.insert(slot, convert::target(target), 0).map_err(Error::map(SLOTS))?;
        }
        self.frontends.insert(key, value, 0).map_err(Error::map(FRONTENDS))
    }

    fn slot_count(&self, key: &FrontendKey) -> Result<u32, Error> {
        Ok(found(self.frontends.get(key, 0), FRONTENDS)?.map_or(0, |value| value.targets()))
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), Error> {
        found(self.frontends.remove(key), FRONTENDS).map(drop)
    }

    fn remove_slots(&mut self, key: FrontendKey, from: u32, to: u32) -> Result<(), Error> {
        for slot in from..to {
            found(self.slots.remove(&SlotKey::new(key, slot)), SLOTS)?;
        }
        Ok(())
    }
}

/// Absence is an answer, not an error; aya reports it in two ways, by the system call.
fn found<T>(result: Result<T, MapError>, map: &'static str) -> Result<Option<T>, Error> {
    match result {
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(None),
        result => result.map(Some).map_err(Error::map(map)),
    }
}

fn name_full(error: Error, frontend: &Frontend) -> Error {
    match error {
        Error::Map { map, source } if errno(&source) == Some(libc::E2BIG) => {
            let Frontend { address, protocol, port } = frontend;
            Error::Full { map, frontend: format!("{address} port {port}/{protocol}") }
        }
        error => error,
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        _ => None,
    }
}
