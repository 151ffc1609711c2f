//! What was told as Kubernetes Events, so that repetition becomes a count and a flood a trickle. Pure: time goes in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event_writer::Occurrence;

/// What happens again within this time is the same Event with a higher count, as in client-go (tools/events).
const SERIES: Duration = Duration::from_secs(6 * 60);

/// A count is written again after this long: often enough for who looks, seldom enough for etcd.
const COUNT_AFTER: Duration = Duration::from_secs(60);

/// So many Events may be made at once...
const BURST: u32 = 25;

/// ...and one more after each of these: the writes of one node stay negligible beside its kubelet's.
const REFILL: Duration = Duration::from_secs(10);

/// Every Event of the last minutes.
#[derive(Debug)]
pub(super) struct Ledger {
    told: BTreeMap<Occurrence, Series>,
    allowance: u32,
    refilled: Instant,
}

#[derive(Debug)]
struct Series {
    /// The Event's name.
    name: String,
    count: i32,
    last: Instant,
    written: Instant,
}

/// What to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A new Event.
    New {
        /// Its name.
        name: String,
    },
    /// It happened again.
    Again {
        /// The Event's name.
        name: String,
        /// How often by now.
        count: i32,
    },
}

impl Ledger {
    pub(super) fn new(now: Instant) -> Self {
        Self { told: BTreeMap::new(), allowance: BURST, refilled: now }
    }

    /// Notes an occurrence; `name` is for a new Event. `None`: counted, or too many.
    pub(super) fn apply(&mut self, occurrence: &Occurrence, name: String, now: Instant) -> Option<Entry> {
        self.told.retain(|_, series| now.saturating_duration_since(series.last) < SERIES);
        if let Some(series) = self.told.get_mut(occurrence) {
            series.count = series.count.saturating_add(1);
            series.last = now;
            if now.saturating_duration_since(series.written) < COUNT_AFTER {
                return None;
            }
            series.written = now;
            return Some(Entry::Again { name: series.name.clone(), count: series.count });
        }
        if !self.is_allowed(now) {
            return None;
        }
        let series = Series { name: name.clone(), count: 1, last: now, written: now };
        self.told.insert(occurrence.clone(), series);
        Some(Entry::New { name })
    }

    /// An Event could not be written, or is gone by now: the next occurrence is a new one.
    pub(super) fn forget(&mut self, occurrence: &Occurrence) {
        self.told.remove(occurrence);
    }

    fn is_allowed(&mut self, now: Instant) -> bool {
        while self.allowance < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.allowance += 1;
            self.refilled += REFILL;
        }
        if self.allowance == BURST {
            self.refilled = now;
        }
        let is_allowed = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::super::event_writer::{EventReason, Regarding};
    use super::*;

    fn occurrence(note: u32) -> Occurrence {
        Occurrence {
            regarding: Regarding::Node { name: "node-1".into(), uid: "u".into() },
            is_warning: true,
            reason: EventReason::SubnetConflict,
            action: "Program".to_owned(),
            note: note.to_string(),
        }
    }

    #[test]
    fn s42_what_repeats_itself_is_one_event_whose_count_grows_once_a_minute() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let mut at = |seconds| {
            ledger.apply(&occurrence(1), format!("e{seconds}"), start + Duration::from_secs(seconds))
        };
        assert_eq!(at(0), Some(Entry::New { name: "e0".to_owned() }));
        assert_eq!((at(1), at(59)), (None, None));
        assert_eq!(at(60), Some(Entry::Again { name: "e0".to_owned(), count: 4 }));
        assert_eq!(at(61), None);
        assert_eq!(at(500), Some(Entry::New { name: "e500".to_owned() }), "after six minutes it is news");
    }

    #[test]
    fn s42_a_flood_of_different_events_ends_after_the_first_and_trickles_on() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let mut made = |notes: std::ops::Range<u32>, seconds| {
            let now = start + Duration::from_secs(seconds);
            notes.filter(|note| ledger.apply(&occurrence(*note), String::new(), now).is_some()).count()
        };
        assert_eq!(made(0..1000, 0), 25);
        assert_eq!(made(1000..2000, 9), 0);
        assert_eq!(made(2000..3000, 35), 3);
    }
}
