//! When what others do is undone, and when what the kernel refused is tried again (contract N13).

use std::time::{Duration, Instant};

use podway_reconcile::Contest;

/// What others may have changed of one kind. Each kind has its own: a fight over rules is none over routes.
#[derive(Debug)]
pub(super) struct Repair {
    /// Whether somebody may have changed something that was not looked at since.
    noted: bool,
    contest: Contest,
    started: Instant,
}

impl Repair {
    /// Nothing is changed so far.
    pub(super) fn new() -> Self {
        Self { noted: false, contest: Contest::default(), started: Instant::now() }
    }

    /// Somebody may have changed something.
    pub(super) fn note(&mut self) {
        self.noted = true;
    }

    /// Whether it is to be looked at now; then it counts as looked at.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.noted && self.contest.hold(self.started.elapsed()).is_none();
        self.noted &= !due;
        due
    }

    /// Notes that something had to be undone; in a fight, returns how long the next repair waits.
    pub(super) fn repaired(&mut self) -> Option<Duration> {
        self.contest.repaired(self.started.elapsed())
    }

    /// Whether somebody changes things again and again.
    pub(super) fn is_contested(&self) -> bool {
        self.contest.lasts(self.started.elapsed()).is_some()
    }

    /// After how long there is something to do again: a repair that had to wait, or a fight to be called over.
    pub(super) fn next(&self) -> Option<Duration> {
        let now = self.started.elapsed();
        match self.noted {
            true => Some(self.contest.hold(now).unwrap_or_default()),
            false => self.contest.lasts(now),
        }
    }
}
