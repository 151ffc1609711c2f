//! How often a lasting failure is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A failure that goes on is told again after this long: often enough for who looks at the log now, seldom enough
/// to keep a day's outage readable.
const REMINDER: Duration = Duration::from_secs(60);

/// Whether something that is tried over and over works, and what has been told of it.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// When the present outage was first told.
    told_since: Option<Instant>,
    /// Reasons that were told within the last [`REMINDER`], from before the present outage too: what fails and
    /// recovers every second is not told every second.
    told: BTreeMap<String, Instant>,
}

impl Outage {
    /// Notes a failure; true when it is to be told: a new reason, or a minute after it was told last.
    pub(crate) fn failed(&mut self, reason: &str, now: Instant) -> bool {
        self.told.retain(|_, told| now.saturating_duration_since(*told) < REMINDER);
        if self.told.contains_key(reason) {
            return false;
        }
        self.told.insert(reason.to_owned(), now);
        self.told_since.get_or_insert(now);
        true
    }

    /// Notes a success; how long the outage lasted, if it was told of.
    pub(crate) fn over(&mut self, now: Instant) -> Option<Duration> {
        self.told_since.take().map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_at_once_then_when_the_reason_changes_or_a_minute_has_passed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert!(outage.failed("refused", at(0)));
        assert!(!outage.failed("refused", at(30)));
        assert!(outage.failed("timed out", at(31)));
        assert!(!outage.failed("refused", at(59)), "going back and forth is not news");
        assert!(outage.failed("refused", at(60)));
        assert_eq!(outage.over(at(70)), Some(Duration::from_secs(70)));
        assert_eq!(outage.over(at(71)), None);
    }

    #[test]
    fn an_outage_that_was_not_told_does_not_end_aloud() {
        let start = Instant::now();
        let mut outage = Outage::default();
        assert!(outage.failed("refused", start));
        assert!(outage.over(start).is_some());
        assert!(!outage.failed("refused", start));
        assert_eq!(outage.over(start), None);
    }
}
