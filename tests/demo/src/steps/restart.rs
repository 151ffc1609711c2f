//! The daemon is stopped and started under traffic.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use podway_testkit::Probe;

use crate::podway::Dataplane;
use crate::require;
use crate::screen::Screen;
use crate::stage::Stage;
use crate::words::time;

/// How long the node is without its daemon.
const ABSENCE: Duration = Duration::from_millis(700);
/// Longer than a starting daemon takes to compare the kernel with the cluster and write what differs.
const SETTLING: Duration = Duration::from_millis(800);

pub(crate) fn show(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "podway stops and starts under traffic",
        "The kernel does the work, podway only writes it down: when the daemon stops, as in an upgrade, everything \
         stays; when it starts, it reads what stands and writes the differences. Nobody's request may notice.",
    );
    let (web, prices) = (stage.shop.service("web")?, stage.shop.service("prices")?);
    let node = stage.shopper().node_name().to_owned();
    let shopper = stage.shopper();
    let requests = shopper.flood(Probe::tcp(web.ipv4()?).every(Duration::from_millis(2)))?;
    let datagrams = shopper.flood(Probe::udp(prices.ipv6()?).every(Duration::from_millis(4)))?;
    let conversation = shopper.stream(Probe::tcp(web.ipv4()?).every(Duration::from_millis(4)))?;
    screen.wait(&format!("sending requests while podway on {node} stops and starts"), || {
        thread::sleep(Duration::from_millis(200));
        stage.podway(&node)?.stop()?;
        thread::sleep(ABSENCE);
        stage.podway(&node)?.start(Dataplane::Nftables)?;
        thread::sleep(SETTLING);
        let runs = stage.podway(&node)?.id().is_some();
        require(runs, || format!("podway on {node} does not run any more"))
    })?;
    let rows = [
        ("new TCP connections to web, IPv4", requests.stop()?),
        ("UDP requests to prices, IPv6", datagrams.stop()?),
        ("messages on one standing connection", conversation.stop()?),
    ];
    let row = |(what, answers): &(&str, podway_testkit::Answers)| {
        let lost = answers.failures().count();
        [*what, &answers.sent().to_string(), &lost.to_string(), &time(answers.longest_gap())]
            .map(str::to_owned)
    };
    screen.table(["WHILE PODWAY WAS RESTARTED", "SENT", "LOST", "LONGEST PAUSE"], &rows.each_ref().map(row));
    for (what, answers) in &rows {
        require(answers.all_answered(), || {
            format!("{what}: {answers}; the first: {:?}", answers.failures().next())
        })?;
    }
    screen.held(format!("{} without a daemon, and nothing was lost", time(ABSENCE)));
    Ok(())
}
