//! How long a daemon takes to program all peers, and to find them in place after a restart.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podway_testkit::{ControlPlane, Node, Process};

use super::change::{self, Changes};
use super::peers::{POD_NETWORK, Peers};
use super::usage;
use crate::contenders::{self, PATIENCE};
use crate::memory::Memory;

/// The device whose routes are counted; both daemons have it.
const DEVICE: &str = "flannel.1";

/// Between two looks at the routing table.
const LOOK: Duration = Duration::from_millis(1);

/// After programming, until memory and processor time are read.
const REST: Duration = Duration::from_secs(5);

/// What one daemon did with one number of peers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// From the first route to the last.
    pub(super) spread: Duration,
    /// From the process's start to the last route.
    pub(super) cold: Duration,
    /// From the start after a kill -9 until everything has been looked through.
    pub(super) warm: Duration,
    /// One peer's new address.
    pub(super) change: Changes,
    /// Resident memory at rest, in bytes.
    pub(super) resident: u64,
    /// Processor time from the cold start until rest.
    pub(super) processor: Duration,
}

/// Runs the daemon on a node without its entries, and leaves none.
pub(super) fn measure(
    daemon: &str,
    node: &Node,
    plane: &ControlPlane,
    peers: &Peers<'_>,
) -> Result<Measured> {
    let start = || match daemon {
        "podway" => {
            let fields = [
                contenders::kubeconfig(plane),
                format!("network.podNetworks={POD_NETWORK}"),
                "services.enabled=false".to_owned(),
            ];
            contenders::podway(node, &fields)
        }
        _ => contenders::flanneld(node, plane, POD_NETWORK),
    };
    let started = Instant::now();
    let process = start()?;
    let (first, last) = watch_routes(node, &process, peers.count)?;
    thread::sleep(REST);
    let (resident, processor) = (Memory::of(process.id())?.resident, usage::processor(process.id())?);
    let change = change::measure(node, &process, plane, peers)?;
    process.kill9()?;
    let (warm, process) = warm_start(daemon, start)?;
    // flanneld may take longer to stop than anybody waits.
    process.kill9()?;
    node.ip(&format!("link del {DEVICE}"))?;
    Ok(Measured { spread: last - first, cold: last - started, warm, change, resident, processor })
}

/// When the first route stood, and when all did.
fn watch_routes(node: &Node, process: &Process, wanted: u16) -> Result<(Instant, Instant)> {
    let deadline = Instant::now() + PATIENCE;
    node.enter(|| {
        let mut first = None;
        loop {
            let found = routes()?;
            let now = Instant::now();
            if found > 0 {
                first.get_or_insert(now);
            }
            match (found, first) {
                (found, Some(first)) if found >= usize::from(wanted) => return Ok((first, now)),
                _ if process.is_running() && now < deadline => {}
                (found, _) => bail!("{found} of {wanted} routes\n{}", contenders::last_lines(process)),
            }
            thread::sleep(LOOK);
        }
    })?
}

/// Routes through a gateway on the device, of the namespace that the thread is in.
fn routes() -> Result<usize> {
    let table = fs::read_to_string("/proc/thread-self/net/route").context("read the routing table")?;
    Ok(table.lines().filter(|line| line.starts_with(DEVICE)).count())
}

fn warm_start(daemon: &str, start: impl Fn() -> Result<Process>) -> Result<(Duration, Process)> {
    let started = Instant::now();
    let process = start()?;
    let done = match daemon {
        "podway" => "pod network stands as planned",
        // Its last step before it waits for events.
        _ => "Running backend",
    };
    process.wait_for_log(done, PATIENCE)?;
    Ok((started.elapsed(), process))
}
