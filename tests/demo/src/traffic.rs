//! Requests that go on while something changes, and what they say about when it took effect.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podway_testkit::{Answer, Answers, Host, Probe, Running};

use crate::require;

/// Between two looks at what has come in.
const PAUSE: Duration = Duration::from_millis(20);

/// A flood of requests, with its clock brought in line with ours.
pub(crate) struct Traffic {
    running: Running,
    clock: Clock,
}

/// What came of a flood.
pub(crate) struct Record {
    pub(crate) answers: Answers,
    pub(crate) clock: Clock,
}

/// Turns our moments into the sender's, late by at most the few milliseconds that it takes to see a first answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    began: Instant,
}

impl Clock {
    /// A moment in microseconds since the sender began.
    pub(crate) fn at(self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Traffic {
    /// Starts the flood, and waits for the first answer.
    pub(crate) fn start(host: &Host, probe: Probe) -> Result<Self> {
        let running = host.flood(probe)?;
        let asked = Instant::now();
        let clock = loop {
            let seen = Instant::now();
            if let Some(first) = running.answers()?.iter().next() {
                break Clock { began: seen - Duration::from_micros(first.end()) };
            }
            require(asked.elapsed() < Duration::from_secs(5), || "no request was answered".to_owned())?;
            thread::sleep(Duration::from_millis(1));
        };
        Ok(Self { running, clock })
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Waits until what has come in satisfies `is_enough`.
    pub(crate) fn wait(&self, what: &str, is_enough: impl Fn(&Answers) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let answers = self.running.answers()?;
            if is_enough(&answers) {
                return Ok(());
            }
            require(started.elapsed() < Duration::from_secs(15), || {
                format!("{what}: not seen in 15 s; {answers}")
            })?;
            thread::sleep(PAUSE);
        }
    }

    /// Ends the flood when the tries under way are through.
    pub(crate) fn stop(self) -> Result<Record> {
        Ok(Record { answers: self.running.stop().context("stop the requests")?, clock: self.clock })
    }
}

impl Record {
    /// How long after `moment` the last request began that `is_stale`; zero when none did.
    pub(crate) fn last_after(&self, moment: Instant, is_stale: impl Fn(&Answer) -> bool) -> Duration {
        let moment = self.clock.at(moment);
        let stale = self.answers.iter().filter(|answer| is_stale(answer)).map(|answer| answer.at);
        Duration::from_micros(stale.max().unwrap_or(0).saturating_sub(moment))
    }

    /// How long after `moment` the first request began that `is_fresh`.
    pub(crate) fn first_after(
        &self,
        moment: Instant,
        is_fresh: impl Fn(&Answer) -> bool,
    ) -> Option<Duration> {
        let moment = self.clock.at(moment);
        let fresh = self.answers.iter().filter(|answer| answer.at >= moment && is_fresh(answer));
        fresh.map(|answer| Duration::from_micros(answer.at - moment)).min()
    }

    /// For each name, and for failures, in which of `cells` equal parts of the time there was one.
    pub(crate) fn cells(&self, names: &[&str], cells: usize) -> Vec<(String, Vec<bool>)> {
        let length = self.answers.iter().map(|answer| answer.at).max().unwrap_or(0) + 1;
        let cell = |answer: &Answer| usize::try_from(answer.at * cells as u64 / length).unwrap_or(0);
        let row = |wanted: &dyn Fn(&Answer) -> bool| {
            let mut row = vec![false; cells];
            self.answers.iter().filter(|answer| wanted(answer)).for_each(|answer| row[cell(answer)] = true);
            row
        };
        let mut rows: Vec<(String, Vec<bool>)> =
            names.iter().map(|name| ((*name).to_owned(), row(&|answer| is_by(answer, name)))).collect();
        rows.push(("failed".to_owned(), row(&|answer| !answer.ok)));
        rows
    }

    /// How long one of `cells` equal parts of the time is.
    pub(crate) fn cell_length(&self, cells: u32) -> Duration {
        let length = self.answers.iter().map(|answer| answer.at).max().unwrap_or(0) + 1;
        Duration::from_micros(length) / cells
    }
}

/// Whether this server gave the answer.
pub(crate) fn is_by(answer: &Answer, name: &str) -> bool {
    answer.ok && answer.name.as_deref() == Some(name)
}

/// How many requests began after the last one that this server answered.
pub(crate) fn since_last_by(answers: &Answers, name: &str) -> usize {
    let last = answers.iter().filter(|answer| is_by(answer, name)).map(|answer| answer.at).max().unwrap_or(0);
    answers.iter().filter(|answer| answer.at > last).count()
}
