//! Series of tries, and how they are reported.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podway_testkit::{Answer, Answers};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::tries::Target;

/// How many tries, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) count: u32,
    pub(crate) interval: Duration,
    pub(crate) parallel: u32,
}

/// How fast to go, and until when.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    pub(crate) interval: Duration,
    end: Option<Instant>,
    stopped: Arc<AtomicBool>,
}

/// What to print.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Report {
    /// A JSON line for each try, as soon as it has ended.
    EachTry,
    /// One line for people, at the end.
    Summary,
}

/// Tries `count` times from `parallel` threads.
pub(crate) fn send(target: Target, schedule: Schedule, report: Report) -> Result<()> {
    let (results, answers) = mpsc::channel();
    let next = Arc::new(AtomicU32::new(0));
    let start = Instant::now();
    for _ in 0..schedule.parallel {
        let (results, next) = (results.clone(), next.clone());
        thread::spawn(move || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= schedule.count {
                    break;
                }
                sleep_until(start + schedule.interval * number);
                // The receiver is gone only when the report failed.
                let _ = results.send(target.try_once(start));
            }
        });
    }
    drop(results);
    report.all(answers)
}

/// Starts a try at every interval, each on a thread of its own, until the limit; then waits for those under way.
pub(crate) fn flood(target: Target, limit: Limit, report: Report) -> Result<()> {
    let (results, answers) = mpsc::channel();
    thread::spawn(move || {
        let start = Instant::now();
        let mut next = start;
        while !limit.is_reached() {
            let results = results.clone();
            thread::spawn(move || drop(results.send(target.try_once(start))));
            next += limit.interval;
            sleep_until(next);
        }
    });
    report.all(answers)
}

impl Limit {
    /// Ends after `length`, or else at SIGTERM or SIGINT.
    pub(crate) fn new(interval: Duration, length: Option<Duration>) -> Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, stopped.clone()).context("catch SIGTERM and SIGINT")?;
        }
        let end = length.map(|length| Instant::now() + length);
        Ok(Self { interval: interval.max(Duration::from_millis(1)), end, stopped })
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.end.is_some_and(|end| Instant::now() >= end)
    }
}

impl Report {
    /// Reports every answer until all senders are gone.
    pub(crate) fn all(self, answers: mpsc::Receiver<Answer>) -> Result<()> {
        match self {
            Self::EachTry => {
                for answer in answers {
                    println!("{}", serde_json::to_string(&answer)?);
                }
            }
            Self::Summary => println!("{}", answers.into_iter().collect::<Answers>()),
        }
        Ok(())
    }
}

pub(crate) fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}
