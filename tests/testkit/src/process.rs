//! A program that goes on running inside a host.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually::within;
use crate::host::Host;

/// Longer than any of our programs may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The longest sleep between two looks at a program that should end.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// A running program; killed when dropped, unless the lab is kept.
#[derive(Debug)]
#[must_use = "the program is killed when this is dropped"]
pub struct Process {
    host: Host,
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
    said_before: usize,
}

impl Process {
    pub(crate) fn new(host: Host, name: &str, child: Child, log: PathBuf, said_before: u64) -> Self {
        let said_before = usize::try_from(said_before).unwrap_or(usize::MAX);
        Self { host, name: name.to_owned(), child: Mutex::new(child), log, said_before }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Asks it to stop (SIGTERM) and waits; kills it and fails when it does not stop within ten seconds.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let ended = wait(&mut self.child(), STOP_DEADLINE)?;
        let Some(status) = ended else {
            self.kill9()?;
            bail!("{} did not stop within {STOP_DEADLINE:?}\n{}", self.title(), self.log());
        };
        Ok(status)
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill9(&self) -> Result<ExitStatus> {
        let mut child = self.child();
        child.kill().and_then(|()| child.wait()).with_context(|| format!("kill {}", self.title()))
    }

    /// Sends it a signal, such as SIGINT. One that has ended already is fine.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        // Not reaped, so the id is still its own.
        if child.try_wait()?.is_none() {
            let id = Pid::from_raw(i32::try_from(child.id())?);
            kill(id, signal).with_context(|| format!("send {signal} to {}", self.title()))?;
        }
        Ok(())
    }

    /// Waits until it ends by itself; fails when it is still running after `deadline`.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let ended = wait(&mut self.child(), deadline)?;
        ended.ok_or_else(|| anyhow!("{} still runs after {deadline:?}\n{}", self.title(), self.log()))
    }

    /// What it has said since it was started; a program of the same name before it is left out.
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(self.said_before..).unwrap_or_default()).into_owned()
    }

    /// Waits until its log contains `text`; fails at once when it ends before.
    pub fn wait_for_log(&self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("{text:?} in the log of {}", self.title());
        let seen = within(deadline, &what, || {
            let running = self.is_running();
            let log = self.log();
            if log.contains(text) {
                return Ok(true);
            }
            if running { Err(log) } else { Ok(false) }
        })?;
        if !seen {
            bail!("{} ended before it said {text:?}\n{}", self.title(), self.log());
        }
        Ok(())
    }

    fn title(&self) -> String {
        format!("{} on {}", self.name, self.host.name)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() && !self.host.site.is_kept() {
            self.kill9().map_or_else(|error| eprintln!("{error:#}"), drop);
        }
    }
}

/// Waits for the end of a program; None when it still runs after `deadline`.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        let status = child.try_wait().context("wait for a program")?;
        if status.is_some() || start.elapsed() >= deadline {
            return Ok(status);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
