//! What becomes of a `connect`.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::bpf_set_retval;
use podway_ebpf_common::{Counter, FrontendKey, FrontendValue, Masquerade, SlotKey, Target, Verdict};

use crate::maps;
use crate::socket::Destination;

/// How often a slot is looked for. The daemon writes slots before the count that names them, and the count before it
/// removes slots: whoever misses one has read an outdated count, and the next look finds the new one.
const LOOKS: u32 = 4;

const ECONNREFUSED: i32 = 111;

/// What the kernel does with the system call.
pub(crate) enum Outcome {
    /// It goes on, with the destination as it is now.
    Proceed,
    /// It fails.
    Fail,
}

impl From<Outcome> for i32 {
    fn from(outcome: Outcome) -> i32 {
        match outcome {
            Outcome::Proceed => 1,
            Outcome::Fail => 0,
        }
    }
}

/// Sends a connection to a Service to one of its targets, or refuses it; leaves everything else alone.
#[inline(always)]
pub(crate) fn connect(destination: &impl Destination) -> Outcome {
    let Some(key) = destination.frontend() else { return Outcome::Proceed };
    let mut look = 0;
    while look < LOOKS {
        let Some(value) = maps::frontend(&key) else { return Outcome::Proceed };
        match (value.verdict(), value.masquerade()) {
            (Verdict::Drop, _) | (Verdict::Balance, Masquerade::Always) => return Outcome::Proceed,
            (Verdict::Reject, _) => return refuse(),
            (Verdict::Balance, _) => {}
        }
        if let Some(target) = choose(&key, &value) {
            destination.redirect(&target);
            maps::count(Counter::Translated);
            return Outcome::Proceed;
        }
        look += 1;
    }
    maps::count(Counter::MissedSlot);
    Outcome::Proceed
}

#[inline(always)]
fn choose(key: &FrontendKey, value: &FrontendValue) -> Option<Target> {
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    maps::target(&SlotKey::new(*key, value.slot(random)?))
}

#[inline(always)]
fn refuse() -> Outcome {
    maps::count(Counter::Rejected);
    // SAFETY: takes a plain number; without it the caller would see EPERM.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    Outcome::Fail
}
