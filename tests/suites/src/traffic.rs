//! Calling an address in every way, and waiting for what comes back.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podway_testkit::{Answers, Failure, Host, Probe, Transport, eventually};

/// Many times what a busy machine needs for any change to take effect.
pub const SOON: Duration = Duration::from_secs(10);

/// An ICMP error reaches a TCP client on the same machine at its second SYN only, after 1.03 s; a reset at once.
const AT_ONCE: Duration = Duration::from_millis(500);

/// So many tries find each of three endpoints except once in a million times.
const TRIES: u32 = 40;

/// How to call an address: `tcp 10.96.0.10:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// TCP or UDP.
    pub transport: Transport,
    /// Whom to call.
    pub address: SocketAddr,
}

impl Way {
    /// Both transports to a port of each address.
    pub fn all(addresses: impl IntoIterator<Item = IpAddr>, port: u16) -> Vec<Self> {
        let both = |address: IpAddr| {
            [Transport::Tcp, Transport::Udp]
                .map(|transport| Self { transport, address: (address, port).into() })
        };
        addresses.into_iter().flat_map(both).collect()
    }

    /// One call, with more patience than a loaded machine needs.
    pub fn probe(self) -> Probe {
        Probe::new(self.transport, self.address).timeout(SOON / 2)
    }

    /// The same for a caller who tries again.
    fn brief_probe(self) -> Probe {
        self.probe().timeout(Duration::from_secs(1))
    }

    /// The address out of these, IPv4 or IPv6, that is of the family called.
    pub fn same_family(self, host: &Host) -> IpAddr {
        if self.address.is_ipv4() { host.ipv4() } else { host.ipv6() }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.transport, self.address)
    }
}

/// Waits until `client` is answered, and returns that answer.
#[track_caller]
pub fn await_answers(client: &Host, way: Way) -> Answers {
    eventually(SOON, &format!("{} is answered at {way}", client.name()), || {
        let answers = client.send(way.brief_probe()).map_err(|error| format!("{error:#}"))?;
        if answers.all_answered() { Ok(answers) } else { Err(answers.to_string()) }
    })
}

/// Waits until `client` is answered by all of these servers and by no other, every time.
#[track_caller]
pub fn await_answers_by(client: &Host, way: Way, names: &[&str]) {
    eventually(SOON, &format!("{} is answered by {names:?} at {way}", client.name()), || {
        let answers = client.send(way.brief_probe().count(TRIES)).map_err(|error| format!("{error:#}"))?;
        let by_name = answers.by_name();
        let exactly = by_name.len() == names.len() && names.iter().all(|name| by_name.contains_key(*name));
        if exactly && answers.all_answered() { Ok(()) } else { Err(answers.to_string()) }
    });
}

/// Waits until `client` is refused every time, and returns those refusals.
#[track_caller]
pub fn await_refusal(client: &Host, way: Way) -> Answers {
    eventually(SOON, &format!("{} is refused at {way}", client.name()), || {
        let answers = client.send(way.brief_probe().count(3)).map_err(|error| format!("{error:#}"))?;
        if failed_by(&answers, way, &Failure::Refused) { Ok(answers) } else { Err(answers.to_string()) }
    })
}

/// Waits until `client` is refused every time, without having to wait for it.
#[track_caller]
pub fn await_refusal_at_once(client: &Host, way: Way) {
    eventually(SOON, &format!("{} is refused at once at {way}", client.name()), || {
        let answers = client.send(way.probe().count(3)).map_err(|error| format!("{error:#}"))?;
        // The fastest: a loaded machine may hold up any one, an ICMP error would come late for all.
        let fastest = answers.iter().map(|answer| Duration::from_micros(answer.micros)).min();
        let at_once = fastest.is_some_and(|fastest| fastest < AT_ONCE);
        let refused = failed_by(&answers, way, &Failure::Refused);
        if refused && at_once { Ok(()) } else { Err(format!("{answers}, fastest after {fastest:?}")) }
    });
}

/// Waits until a call by `client` is neither answered nor refused.
#[track_caller]
pub fn await_silence(client: &Host, way: Way) {
    eventually(SOON, &format!("{} hears nothing from {way}", client.name()), || {
        let probe = way.probe().timeout(Duration::from_millis(200));
        let answers = client.send(probe).map_err(|error| format!("{error:#}"))?;
        if failed_by(&answers, way, &Failure::Timeout) { Ok(()) } else { Err(answers.to_string()) }
    });
}

/// Whether every call failed in this way. The kernel tells a process at once, and by EPERM, when a datagram of its own
/// does not leave the machine, be it rejected or dropped.
fn failed_by(answers: &Answers, way: Way, failure: &Failure) -> bool {
    let own_datagram = way.transport == Transport::Udp;
    let expected = |seen: &Failure| seen == failure || (own_datagram && *seen == Failure::Denied);
    answers.answered() == 0 && answers.sent() > 0 && answers.errors().keys().all(expected)
}

/// Many calls from now on reach these servers only, without exception.
#[track_caller]
pub fn new_connections_reach_only(client: &Host, way: Way, names: &[&str]) {
    let answers = client.send(way.probe().count(3 * TRIES)).unwrap_or_else(|error| panic!("{error:#}"));
    let strays: Vec<_> =
        answers.by_name().into_keys().filter(|name| !names.contains(&name.as_str())).collect();
    assert!(answers.all_answered() && strays.is_empty(), "{way}: {answers}");
}
