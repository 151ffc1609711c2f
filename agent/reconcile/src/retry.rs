//! When to try again after a failure.

use std::time::Duration;

/// Doubling back-off between two bounds; a success starts it afresh.
#[derive(Debug, Clone)]
pub struct Retry {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Retry {
    /// A back-off that waits `first` after the first failure and never more than `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// Notes a failure and returns how long to wait before the next attempt.
    pub fn failed(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        self.first.saturating_mul(factor).min(self.most)
    }

    /// Notes a success.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_afresh_after_a_success() {
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<_> = (0..4).map(|_| retry.failed().as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        retry.succeeded();
        assert_eq!(retry.failed().as_millis(), 100);
    }

    #[test]
    fn a_hundred_failures_do_not_overflow() {
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(30));
        (0..100).for_each(|_| {
            retry.failed();
        });
        assert_eq!(retry.failed(), Duration::from_secs(30));
    }
}
