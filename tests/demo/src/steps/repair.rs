//! Somebody removes what podway made, under traffic.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use podway_testkit::{Answers, Probe};

use crate::require;
use crate::screen::Screen;
use crate::stage::Stage;
use crate::words::{list, time};

/// Before the damage.
const CALM: Duration = Duration::from_millis(300);

/// After it: every request that was lost is known to be, and others were answered since.
const AFTERMATH: Duration = Duration::from_millis(1200);

/// Below the second after which TCP tries again by itself: what fails is to be seen as failed.
const PATIENCE: Duration = Duration::from_millis(900);

/// Between two requests; also the precision of the times shown.
const EVERY: Duration = Duration::from_millis(2);

/// What a repair may take at most; typical are some milliseconds, and a tenth of a second for a whole table.
const PROMPT: Duration = Duration::from_secs(2);

pub(crate) fn show(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "Somebody breaks the network, and podway mends it",
        "A firewall is loaded anew, a script tidies up, an operator mistypes: what podway made is gone. The kernel tells \
         podway of each change, and it puts back what is missing.",
    );
    let web = stage.shop.service("web")?.ipv4()?;
    let endpoints = stage.shop.endpoints()?;
    let on_another_node = endpoints.iter().find(|it| it.pod == "web-2" && it.address.is_ipv4());
    let pod = on_another_node.context("no pod web-2")?.address;
    let damages = [
        ("ip route flush proto 105", "pod web-2 on node-2", pod),
        ("ip link delete flannel.1", "pod web-2 on node-2", pod),
        ("nft delete table ip podway", "Service web", web),
    ];
    let mut rows = Vec::new();
    for (damage, to, address) in damages {
        let answers =
            screen.wait(&format!("sending requests during {damage}"), || during(stage, damage, address))?;
        let (pause, lost) = (answers.longest_gap(), answers.failures().count());
        require(pause < PROMPT, || format!("{damage}: {to} was away for {}: {answers}", time(pause)))?;
        rows.push([
            damage.to_owned(),
            to.to_owned(),
            answers.sent().to_string(),
            lost.to_string(),
            time(pause),
        ]);
    }
    screen.table(["SOMEBODY TYPES", "REQUESTS TO", "SENT", "LOST", "LONGEST PAUSE"], &rows);
    stage.wait_until_open()?;
    let node = stage.shopper().node_name().to_owned();
    let status = stage.podway(&node)?.ask("status")?;
    let repaired: Vec<&str> =
        status.lines().filter_map(|line| line.strip_prefix("Repaired:")).map(str::trim).collect();
    require(!repaired.is_empty(), || format!("podway status tells of no repair:\n{status}"))?;
    screen.held(format!(
        "all is back; `podway status` on {node} counts what was set right: {}",
        list(repaired)
    ));
    Ok(())
}

/// What became of requests to an address while a command ran on the shopper's node.
fn during(stage: &Stage<'_>, damage: &str, to: SocketAddr) -> Result<Answers> {
    let requests = stage.shopper().flood(Probe::tcp(to).every(EVERY).timeout(PATIENCE))?;
    thread::sleep(CALM);
    let mut words = damage.split(' ');
    let program = words.next().context("no program")?;
    stage.shoppers_node().command(program).args(words).run()?;
    thread::sleep(AFTERMATH);
    requests.stop()
}
