//! Endpoints and nodes that go and come back under traffic.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podway_testkit::{Probe, within};

use super::network::routes;
use crate::require;
use crate::screen::Screen;
use crate::stage::Stage;
use crate::traffic::{Record, Traffic, is_by, since_last_by};
use crate::words::time;

const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];
const CELLS: usize = 80;

/// Between two requests; also the precision of the times shown.
const EVERY: Duration = Duration::from_millis(2);
/// Below the second after which TCP tries again by itself: what fails is to be seen as failed.
const PATIENCE: Duration = Duration::from_millis(900);
/// Without an answer from one of three pods, so many say that it is not chosen any more; enough of each to be seen.
const PROOF: usize = 300;
/// What an edit may take at most; typical are ten milliseconds.
const PROMPT: Duration = Duration::from_secs(1);
/// A node that comes back may have to open its connection to the API server anew.
const RETURN_DEADLINE: Duration = Duration::from_secs(30);

/// An endpoint leaves the Service and returns; its pod goes on running, so that only podway moves the traffic.
pub(crate) fn show_endpoint(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "A pod leaves the Service, and comes back",
        "web-2 is taken out of its EndpointSlices and put back while 500 requests a second go on. The pod itself keeps \
         running and would answer: whether it is asked is podway's doing alone.",
    );
    let without = stage.shop.without_endpoints_of("web-2")?;
    let traffic = start_traffic(stage)?;
    let (left, returned) = screen.wait("sending requests while web-2 goes and comes back", || {
        let left = Instant::now();
        stage.cluster.change(&stage.shop, &without)?;
        traffic.wait("requests without web-2", |answers| since_last_by(answers, "web-2") >= PROOF)?;
        let returned = Instant::now();
        stage.cluster.change(&without, &stage.shop)?;
        wait_for_answer(&traffic, returned, "web-2")?;
        Ok((left, returned))
    })?;
    let record = traffic.stop()?;
    let cell = |moment| cell(&record, moment);
    show_timeline(screen, &record, &[(cell(left), "web-2 taken out"), (cell(returned), "web-2 put back")]);
    require(record.answers.all_answered(), || {
        format!("{}; the first: {:?}", record.answers, record.answers.failures().next())
    })?;
    let gone_after = record.last_after(left.min(returned), |answer| {
        is_by(answer, "web-2") && answer.at < record.clock.at(returned)
    });
    let back_after = first_answer(&record, returned, "web-2")?;
    require(gone_after < PROMPT, || format!("web-2 was still chosen {} after the edit", time(gone_after)))?;
    let edit = stage.cluster.edit();
    screen.held(format!(
        "last request to web-2 {} after {edit} that took it out, first one {} after the one that put it back",
        time(gone_after),
        time(back_after)
    ));
    screen.held(format!("{} requests in all, none failed", record.answers.sent()));
    Ok(())
}

/// A node loses its network, leaves the cluster, and comes back.
pub(crate) fn show_node(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "A node is lost, and comes back",
        "node-3's cable is pulled; a moment later the cluster says so: its Node and the endpoints there are gone. Until \
         then a third of the requests is sent into the dark, which no proxy can know; from then on none may be.",
    );
    let drained = stage.shop.without_endpoints_on("node-3")?;
    let without = stage.shop.without_node("node-3")?;
    let traffic = start_traffic(stage)?;
    let loss = screen.wait("sending requests while node-3 is lost", || {
        let pulled = Instant::now();
        stage.nodes["node-3"].unplug()?;
        thread::sleep(Duration::from_millis(200));
        let told = Instant::now();
        stage.cluster.change(&stage.shop, &without)?;
        let unrouted = wait_for_route(stage, told, false)?;
        let settled = traffic.clock().at(told + PATIENCE + Duration::from_millis(400));
        traffic
            .wait("requests after the loss", |answers| answers.iter().any(|answer| answer.at > settled))?;
        Ok(Loss { pulled, told, unrouted })
    })?;
    let recovery = screen.wait("sending requests while node-3 comes back", || {
        stage.nodes["node-3"].plug()?;
        let joined = Instant::now();
        stage.cluster.change(&without, &drained)?;
        let reached = wait_for_pod(stage, joined)?;
        let returned = Instant::now();
        stage.cluster.change(&drained, &stage.shop)?;
        wait_for_answer(&traffic, returned, "web-3")?;
        Ok(Recovery { joined, reached, returned })
    })?;
    let record = traffic.stop()?;
    loss.show(stage, screen, &record, &recovery)?;
    recovery.show(stage, screen, &record)
}

/// A node's end, in moments.
struct Loss {
    pulled: Instant,
    told: Instant,
    /// From the edit to the end of the route.
    unrouted: Duration,
}

/// A node's return.
struct Recovery {
    joined: Instant,
    /// From the Node's return to the first answer from a pod there.
    reached: Duration,
    returned: Instant,
}

impl Loss {
    fn show(&self, stage: &Stage<'_>, screen: &Screen, record: &Record, recovery: &Recovery) -> Result<()> {
        let cell = |moment| cell(record, moment);
        show_timeline(
            screen,
            record,
            &[
                (cell(self.pulled), "node-3's cable pulled"),
                (cell(self.told), "its Node and endpoints removed"),
                (cell(recovery.joined), "cable plugged in, Node added"),
                (cell(recovery.returned), "endpoints added"),
            ],
        );
        let pulled = record.clock.at(self.pulled);
        // The sender's clock is known to a few milliseconds only.
        let early = record.answers.failures().find(|failure| failure.at + 5_000 < pulled);
        require(early.is_none(), || format!("a request failed before node-3 was lost: {early:?}"))?;
        let effect = record.last_after(self.told, |answer| !answer.ok);
        require(effect < PROMPT, || {
            format!("a request failed {} after node-3 was removed: {}", time(effect), record.answers)
        })?;
        screen.held(format!(
            "last request into the dark {} after {}, node-1's route gone after {}; {} of {} failed, none after that",
            time(effect),
            stage.cluster.edit(),
            time(self.unrouted),
            record.answers.failures().count(),
            record.answers.sent()
        ));
        Ok(())
    }
}

impl Recovery {
    fn show(&self, stage: &Stage<'_>, screen: &Screen, record: &Record) -> Result<()> {
        screen.held(format!(
            "back in: a pod on node-3 reached {} after its Node returned; first request to web-3 {} after its endpoints \
             did",
            time(self.reached),
            time(first_answer(record, self.returned, "web-3")?)
        ));
        stage.wait_until_open()
    }
}

fn start_traffic(stage: &Stage<'_>) -> Result<Traffic> {
    let web = stage.shop.service("web")?;
    let traffic = Traffic::start(stage.shopper(), Probe::tcp(web.ipv4()?).every(EVERY).timeout(PATIENCE))?;
    traffic.wait("requests before the change", |answers| answers.sent() >= PROOF)?;
    Ok(traffic)
}

fn wait_for_answer(traffic: &Traffic, moment: Instant, name: &str) -> Result<()> {
    let moment = traffic.clock().at(moment);
    traffic.wait(&format!("requests to {name}"), |answers| {
        let first = answers.iter().find(|answer| answer.at > moment && is_by(answer, name));
        first.is_some_and(|first| answers.iter().filter(|answer| answer.at > first.at).count() >= PROOF)
    })
}

fn first_answer(record: &Record, moment: Instant, name: &str) -> Result<Duration> {
    let first = record.first_after(moment, |answer| is_by(answer, name));
    first.with_context(|| format!("{name} was not asked again: {}", record.answers))
}

/// Waits until the shopper's node has the route to node-3, or has it no more; returns how long after `since`.
fn wait_for_route(stage: &Stage<'_>, since: Instant, wanted: bool) -> Result<Duration> {
    let nodes = stage.shop.nodes()?;
    let lost = nodes.iter().find(|node| node.name == "node-3").context("no node-3")?;
    let (what, subnet) = (format!("route to node-3: {wanted}"), &lost.pod_cidrs[0]);
    within(RETURN_DEADLINE, &what, || {
        let routes = routes(stage.shoppers_node(), "-4")?;
        require(routes.contains(subnet) == wanted, || format!("routes to {}", routes.join(", ")))
    })?;
    Ok(since.elapsed())
}

/// Waits until the shopper reaches a pod on node-3 by the pod's own address; returns how long after `since`.
fn wait_for_pod(stage: &Stage<'_>, since: Instant) -> Result<Duration> {
    let endpoints = stage.shop.endpoints()?;
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.pod == "web-3") {
        within(RETURN_DEADLINE, &format!("web-3 at {}", endpoint.address), || {
            let probe = Probe::tcp(endpoint.address).timeout(Duration::from_millis(50));
            let answers = stage.shopper().send(probe)?;
            require(answers.all_answered(), || answers.to_string())
        })?;
    }
    Ok(since.elapsed())
}

fn show_timeline(screen: &Screen, record: &Record, marks: &[(usize, &str)]) {
    let cell = record.cell_length(CELLS.try_into().unwrap_or(u32::MAX));
    screen.line(format!("who answered when; a cell is {}", time(cell)));
    screen.timeline(&record.cells(&PODS, CELLS), marks);
}

fn cell(record: &Record, moment: Instant) -> usize {
    let length = record.cell_length(CELLS.try_into().unwrap_or(u32::MAX)).as_micros().max(1);
    let cell = u128::from(record.clock.at(moment)) / length;
    usize::try_from(cell).unwrap_or(CELLS).min(CELLS - 1)
}
