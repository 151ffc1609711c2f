//! How long a daemon takes to program all peers, and to find them in place after a restart.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use podway_testkit::{ControlPlane, Node, Process};

use super::change::{self, Changes};
use super::peers::{POD_NETWORK, Peers};
use super::standing::{Standing, between};
use super::usage;
use crate::contenders::{self, PATIENCE};
use crate::memory::Memory;

/// The device that both daemons have.
const DEVICE: &str = "flannel.1";

/// Between two looks at a log; one takes about a millisecond with 5,000 peers.
const LOOK: Duration = Duration::from_millis(20);

/// After programming, until memory and processor time are read.
const REST: Duration = Duration::from_secs(5);

/// What one daemon did with one number of peers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// From the first entry of any table until all peers have theirs in all tables; never zero.
    pub(super) spread: Duration,
    /// From the process's start to the last entry.
    pub(super) cold: Duration,
    /// From the start after a kill -9 until everything has been looked through (podway), or the last peer's turn has
    /// come to be written anew (flanneld).
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
    let mut standing = Standing::listen(node, peers.count)?;
    let started = Instant::now();
    let process = start()?;
    let (first, last) = await_all(&mut standing, &process)?;
    thread::sleep(REST);
    let (resident, processor) = (Memory::of(process.id())?.resident, usage::processor(process.id())?);
    let change = change::measure(node, &process, plane, peers)?;
    process.kill9()?;
    let (warm, process) = warm_start(daemon, peers.count, start)?;
    // flanneld may take longer to stop than anybody waits.
    process.kill9()?;
    node.ip(&format!("link del {DEVICE}"))?;
    let (spread, cold) = (between(first, last), between(started, last));
    Ok(Measured { spread, cold, warm, change, resident, processor })
}

/// When the first entry stood, and when all did.
fn await_all(standing: &mut Standing, process: &Process) -> Result<(Instant, Instant)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(times) = standing.next()? {
            return Ok(times);
        }
        if Instant::now() > deadline || !process.is_running() {
            bail!("{}\n{}", standing.progress(), contenders::last_lines(process));
        }
    }
}

fn warm_start(daemon: &str, peers: u16, start: impl Fn() -> Result<Process>) -> Result<(Duration, Process)> {
    let started = Instant::now();
    let process = start()?;
    match daemon {
        "podway" => process.wait_for_log("pod network stands as planned", PATIENCE)?,
        _ => await_turns(&process, peers)?,
    }
    Ok((between(started, Instant::now()), process))
}

/// flanneld says nothing when it is done ("Running backend" comes before it programs), but names each peer right before
/// it writes its entries (flannel, pkg/backend/vxlan/vxlan_network.go).
fn await_turns(process: &Process, peers: u16) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let turns = turns(&process.log());
        if turns >= usize::from(peers) {
            return Ok(());
        }
        if Instant::now() > deadline || !process.is_running() {
            bail!("{turns} of {peers} peers named\n{}", contenders::last_lines(process));
        }
        thread::sleep(LOOK);
    }
}

/// The peers that a log of flanneld names.
fn turns(log: &str) -> usize {
    let named = log.lines().filter_map(|line| line.split_once("Received Subnet Event with VxLan: "));
    let peers = named.filter(|(_, attributes)| attributes.contains("PublicIP: 198.1"));
    peers.map(|(_, attributes)| attributes).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannelds_peers_are_counted_once_each_and_other_nodes_not() {
        let line = |address: &str| {
            format!(
                "I1121 18:00:00.000000 1 vxlan_network.go:265] Received Subnet Event with VxLan: BackendType: vxlan, \
                 PublicIP: {address}, PublicIPv6: (nil), BackendData: {{}}"
            )
        };
        let log = ["198.18.0.1", "198.19.3.2", "198.18.0.1", "192.0.2.11"].map(line).join("\n");
        assert_eq!(turns(&log), 2);
        assert_eq!(turns("main.go:449] Running backend.\n"), 0);
    }
}
