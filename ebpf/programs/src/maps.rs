//! The maps: filled by the daemon, read here; only the counters are written here.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use podway_ebpf_common::{Counter, FrontendKey, FrontendValue, MAX_FRONTENDS, MAX_SLOTS, SlotKey, Target};

// Without preallocation kernel memory follows use, and an element that is being read is never reused for another.
#[map]
static FRONTENDS: HashMap<FrontendKey, FrontendValue> =
    HashMap::with_max_entries(MAX_FRONTENDS, BPF_F_NO_PREALLOC);

#[map]
static SLOTS: HashMap<SlotKey, Target> = HashMap::with_max_entries(MAX_SLOTS, BPF_F_NO_PREALLOC);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

pub(crate) fn frontend(key: &FrontendKey) -> Option<FrontendValue> {
    // SAFETY: BPF_F_NO_PREALLOC: an update replaces the whole element, and RCU keeps the one that is read here.
    unsafe { FRONTENDS.get(key) }.copied()
}

pub(crate) fn target(key: &SlotKey) -> Option<Target> {
    // SAFETY: as in `frontend`.
    unsafe { SLOTS.get(key) }.copied()
}

pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a live element of this CPU's own copy; programs do not migrate while they run.
        unsafe { *value += 1 };
    }
}
