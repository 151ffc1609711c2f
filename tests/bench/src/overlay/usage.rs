//! Processor time of a process and its children.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks a second in /proc, the same on every Linux of today (USER_HZ).
const TICKS: u64 = 100;

/// User and system time of the process `id` and of its children that have ended.
pub(super) fn processor(id: u32) -> Result<Duration> {
    let path = format!("/proc/{id}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    ticks(&text)
        .map(|ticks| Duration::from_millis(ticks * 1000 / TICKS))
        .with_context(|| format!("read {path}"))
}

/// Fields 14 to 17 of proc_pid_stat(5): utime, stime, cutime, cstime; the name before them may hold spaces.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_times_are_added_whatever_the_name() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 1 20 300 4000 20 0";
        assert_eq!(ticks(stat), Some(4321));
        assert_eq!(ticks("7 (short) S 1"), None);
    }
}
