//! A hundred requests to one address, and one that nobody can answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use podway_testkit::{Answers, Host, Probe, Transport};

use crate::require;
use crate::screen::Screen;
use crate::shop::Service;
use crate::stage::Stage;
use crate::words::{list, time};

/// So many that a pod is left out by chance once in 10^17 runs.
const REQUESTS: u32 = 100;

/// A client that is not refused at once tries again after a second.
const AT_ONCE: Duration = Duration::from_millis(500);

pub(crate) fn show(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "A hundred requests to one address",
        "Each request is a new connection from the pod shopper to the Service's address. The answer carries the name of \
         the pod that gave it. Every pod gets its share, over both families, TCP and UDP, from pods and from the node.",
    );
    let (shopper, node) = (stage.shopper(), stage.shoppers_node());
    let (web, prices) = (stage.shop.service("web")?, stage.shop.service("prices")?);
    for (from, service, to) in [
        (&**shopper, &web, web.ipv4()?),
        (&**shopper, &web, web.ipv6()?),
        (&**shopper, &prices, prices.ipv4()?),
        (&**node, &web, web.ipv4()?),
    ] {
        let answers = from.send(probe(service, to).count(REQUESTS))?;
        check(stage, service, to, &answers)?;
        screen.line(heading(from, service, to, &answers));
        screen.bars(&answers.by_name());
    }
    screen.held("all requests were answered, and every pod of each Service took part");
    show_refusal(stage, screen)
}

/// Fails unless all were answered and every pod behind the Service was among those who did.
pub(crate) fn check(stage: &Stage<'_>, service: &Service, to: SocketAddr, answers: &Answers) -> Result<()> {
    require(answers.all_answered(), || format!("{} at {to}: {answers}", service.name))?;
    let endpoints = stage.shop.endpoints()?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.service == service.name) {
        counts.insert(&endpoint.pod, 0);
    }
    let answered = answers.by_name();
    require(answered.keys().map(String::as_str).eq(counts.keys().copied()), || {
        format!("{} at {to} has the pods {}, yet: {answers}", service.name, list(counts.keys()))
    })
}

pub(crate) fn heading(from: &Host, service: &Service, to: SocketAddr, answers: &Answers) -> String {
    let protocol = service.protocol.to_uppercase();
    let median = time(answers.p50());
    format!("{} -> {} at {to}, {protocol}, median {median}", from.name(), service.name)
}

pub(crate) fn probe(service: &Service, to: SocketAddr) -> Probe {
    let transport = if service.protocol == "udp" { Transport::Udp } else { Transport::Tcp };
    Probe::new(transport, to)
}

fn show_refusal(stage: &Stage<'_>, screen: &Screen) -> Result<()> {
    let returns = stage.shop.service("returns")?;
    let mut slowest = Duration::ZERO;
    for from in [&**stage.shopper(), &**stage.shoppers_node()] {
        for to in [returns.ipv4()?, returns.ipv6()?] {
            let answers = from.send(probe(&returns, to).count(5))?;
            let is_at_once = answers.all_refused() && answers.slowest() < AT_ONCE;
            require(is_at_once, || {
                format!("{} -> returns {to}: not refused at once, but {answers}", from.name())
            })?;
            slowest = slowest.max(answers.slowest());
        }
    }
    screen.held(format!(
        "Service returns, which has no pod, is refused at once, not after a time-out: 20 of 20 within {}",
        time(slowest)
    ));
    Ok(())
}
