//! The same address under nftables and under eBPF.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use podway_testkit::{Answers, Probe, within};

use super::balance;
use crate::node_state::names;
use crate::podway::Dataplane;
use crate::require;
use crate::screen::Screen;
use crate::stage::Stage;
use crate::words::{list, time};

const REQUESTS: u32 = 100;
/// For the median time of a request.
const MANY: u32 = 1000;
const SWITCH_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn show(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "The same address under nftables and under eBPF",
        "nftables rewrites each packet on its way. With dataplane: ebpf a program changes the address once, at \
         connect(), before there is any packet, and getpeername() names the pod. A counter beside podway's rules counts \
         the connections that leave a pod for a Service's address: under eBPF there are none.",
    );
    let node = stage.shopper().node_name().to_owned();
    let web = stage.shop.service("web")?;
    let addresses = [web.ipv4()?, web.ipv6()?];
    let nftables = screen.wait("measuring under nftables", || measure(stage, addresses))?;
    screen.wait(&format!("restarting podway on {node} with dataplane: ebpf"), || {
        stage.podway(&node)?.stop()?;
        stage.podway(&node)?.start(Dataplane::Ebpf)?;
        wait_for_ebpf(stage, addresses)
    })?;
    let ebpf = screen.wait("measuring under eBPF", || measure(stage, addresses))?;

    let rows = [("nftables", &nftables), ("eBPF", &ebpf)].map(|(name, seen)| seen.row(name));
    screen.table(["DATAPLANE", "ANSWERED", "COUNTED", "PEER AS THE CLIENT SEES IT", "MEDIAN TIME"], &rows);
    screen.line(balance::heading(stage.shopper(), &web, addresses[0], &ebpf.answers[0]));
    screen.bars(&ebpf.answers[0].by_name());

    for seen in [&nftables, &ebpf] {
        for (answers, address) in seen.answers.iter().zip(addresses) {
            balance::check(stage, &web, address, answers)?;
        }
    }
    require(nftables.on_the_wire >= u64::from(2 * REQUESTS), || {
        format!("only {} connections to the Service were seen under nftables", nftables.on_the_wire)
    })?;
    require(ebpf.on_the_wire == 0, || {
        format!("{} connections to the Service were seen under eBPF", ebpf.on_the_wire)
    })?;
    require(ebpf.peers().iter().all(|peer| !addresses.contains(peer)), || {
        format!("connected to {} under eBPF", list(ebpf.peers()))
    })?;
    let programs = names(&stage.podway(&node)?.pins()?.join("links"))?;
    screen.held(format!("under eBPF the address is translated by the programs {} on {node}'s cgroup, before nftables sees a packet", list(programs)));
    Ok(())
}

/// What a client saw, IPv4 and IPv6.
struct Seen {
    answers: [Answers; 2],
    /// Connections to Service addresses that the node saw meanwhile.
    on_the_wire: u64,
    median: Duration,
}

impl Seen {
    fn row(&self, dataplane: &str) -> [String; 5] {
        let answered: usize = self.answers.iter().map(Answers::answered).sum();
        let sent: usize = self.answers.iter().map(Answers::sent).sum();
        let peers = self.answers[0].remotes();
        [
            dataplane.to_owned(),
            format!("{answered} of {sent}"),
            self.on_the_wire.to_string(),
            list(peers.iter().map(SocketAddr::ip)),
            time(self.median),
        ]
    }

    fn peers(&self) -> BTreeSet<SocketAddr> {
        self.answers.iter().flat_map(Answers::remotes).collect()
    }
}

fn measure(stage: &Stage<'_>, addresses: [SocketAddr; 2]) -> Result<Seen> {
    let before = stage.witness.connections()?;
    let send = |address: SocketAddr, count| stage.shopper().send(Probe::tcp(address).count(count));
    let answers = [send(addresses[0], REQUESTS)?, send(addresses[1], REQUESTS)?];
    let on_the_wire = stage.witness.connections()? - before;
    let median = send(addresses[0], MANY)?.p50();
    Ok(Seen { answers, on_the_wire, median })
}

fn wait_for_ebpf(stage: &Stage<'_>, addresses: [SocketAddr; 2]) -> Result<()> {
    for address in addresses {
        within(SWITCH_DEADLINE, &format!("a connection to {address} translated by eBPF"), || {
            let answers = stage.shopper().send(Probe::tcp(address))?;
            let is_translated = answers.all_answered() && !answers.remotes().contains(&address);
            require(is_translated, || format!("{answers}, connected to {}", list(answers.remotes())))
        })?;
    }
    Ok(())
}
