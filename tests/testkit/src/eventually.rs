//! Waiting for a condition with a deadline.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to sleep between two looks: short against everything that is waited for, long against a look.
const PAUSE: Duration = Duration::from_millis(10);

/// Polls `look` until it is Ok; panics after `deadline`, naming `what` was waited for and what was last seen.
#[track_caller]
pub fn eventually<T, E: Display>(deadline: Duration, what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    match within(deadline, what, look) {
        Ok(seen) => seen,
        Err(error) => panic!("{error}"),
    }
}

/// [`eventually`] for callers that go on after a time-out: the error names `what` and what was last seen.
pub fn within<T, E: Display>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(seen) => return Ok(seen),
            Err(last) if start.elapsed() >= deadline => {
                bail!("not within {deadline:?}: {what}; last seen: {last:#}")
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_names_what_was_last_seen() {
        let mut looks = 0;
        let error = within(Duration::from_millis(30), "three replies", || {
            looks += 1;
            Err::<(), _>(format!("{looks} replies"))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("not within 30ms: three replies; last seen: {looks} replies"));
    }

    #[test]
    fn the_first_success_is_returned() {
        let mut looks = 0;
        let seen = eventually(Duration::from_secs(5), "the third look", || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err("too early") }
        });
        assert_eq!(seen, 3);
    }
}
