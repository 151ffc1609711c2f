//! When to give way to another program that undoes our work.

use std::time::Duration;

/// So many repairs are made at once: an operator's mishap, or a firewall that is loaded anew, takes one or two.
const AT_ONCE: u32 = 5;

/// Repairs further apart than this have nothing to do with each other.
const CALM: Duration = Duration::from_secs(60);

/// The first wait, which doubles with each further repair, up to [`CALM`].
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Repairs of what others change, slowed down when they change it again and again (contract N13).
///
/// Time is counted from any fixed moment.
#[derive(Debug, Clone, Default)]
pub struct Contest {
    repairs: u32,
    /// When the next repair may be made.
    until: Duration,
}

impl Contest {
    /// Notes a repair; after one too many, how long the next one should wait.
    pub fn repaired(&mut self, now: Duration) -> Option<Duration> {
        if now.saturating_sub(self.until) > CALM {
            self.repairs = 0;
        }
        let waits = self.repairs.checked_sub(AT_ONCE);
        self.repairs = self.repairs.saturating_add(1);
        let wait = waits.map(|waits| FIRST_WAIT.saturating_mul(1 << waits.min(6)).min(CALM));
        self.until = now + wait.unwrap_or_default();
        wait
    }

    /// How long it takes until a fight is over that nobody goes on with; `None` if there is none.
    pub fn lasts(&self, now: Duration) -> Option<Duration> {
        let fought = self.repairs > AT_ONCE;
        (self.until + CALM).checked_sub(now).filter(|left| fought && !left.is_zero())
    }

    /// How long the next repair must still wait, if it must.
    pub fn hold(&self, now: Duration) -> Option<Duration> {
        self.until.checked_sub(now).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn n13_the_first_repairs_are_made_at_once_and_a_fight_is_slowed_down() {
        let mut contest = Contest::default();
        let mut now = Duration::ZERO;
        for _ in 0..AT_ONCE {
            assert_eq!(contest.repaired(now), None);
            now += Duration::from_millis(10);
        }
        assert_eq!(contest.lasts(now), None);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = contest.repaired(now).unwrap();
            assert_eq!(contest.hold(now), Some(wait));
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(contest.hold(now), None);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn n13_after_a_calm_minute_repairs_are_made_at_once_again() {
        let mut contest = Contest::default();
        for _ in 0..20 {
            contest.repaired(SECOND);
        }
        let over = SECOND + CALM + CALM;
        assert_eq!(contest.lasts(SECOND + CALM), Some(CALM));
        assert_eq!(contest.lasts(over), None);
        let later = over + SECOND;
        assert_eq!(contest.hold(later), None);
        assert_eq!(contest.repaired(later), None);
    }
}
