//! How long one peer's new address takes to reach the kernel.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podway_testkit::{ControlPlane, Node, Process};

use super::peers::Peers;
use super::usage;

/// Changes measured, one after the other.
pub(super) const CHANGES: u16 = 200;

/// More than any daemon takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two changes, so that they do not come as one.
const PAUSE: Duration = Duration::from_millis(30);

/// One change at a time, over [`CHANGES`] of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changes {
    /// From the watch event to the kernel's notification.
    pub(super) median: Duration,
    /// See `median`.
    pub(super) p99: Duration,
    /// How many of [`CHANGES`] were in the kernel before our own watcher had its event; each counts as no time at all.
    pub(super) ahead: usize,
    /// Processor time of the daemon.
    pub(super) processor: Duration,
}

/// Changes one peer after the other and listens to the API server and to the kernel.
pub(super) fn measure(
    node: &Node,
    process: &Process,
    plane: &ControlPlane,
    peers: &Peers<'_>,
) -> Result<Changes> {
    let events = watch_events(plane)?;
    let mut kernel = Monitor::start(node)?;
    // Both are listening only when they have heard something.
    let round = peers.new_round();
    change(peers, 0, round, &events, &kernel)?;
    let before = usage::processor(process.id())?;
    let mut delays = Vec::new();
    for number in 1..=CHANGES {
        delays.push(change(peers, number, round, &events, &kernel)?);
        thread::sleep(PAUSE);
    }
    let processor = (usage::processor(process.id())? - before) / u32::from(CHANGES);
    kernel.stop();
    let ahead = delays.iter().filter(|delay| delay.is_none()).count();
    let mut delays: Vec<Duration> = delays.into_iter().map(Option::unwrap_or_default).collect();
    delays.sort();
    let p99 = delays[delays.len() * 99 / 100 - 1];
    Ok(Changes { median: delays[delays.len() / 2], p99, ahead, processor })
}

/// From the event until the entry; `None` if the entry was there first.
fn change(
    peers: &Peers<'_>,
    number: u16,
    round: u8,
    events: &Receiver<(Instant, String)>,
    kernel: &Monitor,
) -> Result<Option<Duration>> {
    let address = peers.re_address(number, round)?;
    let told = wait_for(events, &format!("\"{address}\"")).context("watch event")?;
    let done = wait_for(&kernel.lines, &format!("dst {address} ")).context("FDB entry in the kernel")?;
    Ok(done.checked_duration_since(told))
}

fn wait_for(lines: &Receiver<(Instant, String)>, text: &str) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (when, line) = lines.recv_timeout(left).with_context(|| format!("nothing with {text}"))?;
        if line.contains(text) {
            return Ok(when);
        }
    }
}

/// Every line of a watch on Nodes from now on, with the moment at which it came.
fn watch_events(plane: &ControlPlane) -> Result<Receiver<(Instant, String)>> {
    let list = plane.get("/api/v1/nodes?limit=1")?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list without resourceVersion")?;
    let stream = plane.watch(&format!("/api/v1/nodes?watch=1&resourceVersion={version}"))?;
    Ok(read_lines(stream))
}

fn read_lines(from: impl std::io::Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    lines
}

/// `bridge monitor fdb` in a node.
struct Monitor {
    child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Monitor {
    fn start(node: &Node) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", node.netns(), "bridge", "monitor", "fdb"]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("start bridge monitor")?;
        let lines = read_lines(child.stdout.take().context("bridge monitor without output")?);
        // It says nothing when it is ready.
        thread::sleep(Duration::from_millis(200));
        Ok(Self { child, lines })
    }

    fn stop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
    }
}
