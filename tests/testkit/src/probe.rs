//! What to send: a description of tries, turned into the arguments of `podway-probe`.

use std::fmt;
use std::time::Duration;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A try is a connection.
    Tcp,
    /// A try is a datagram from a socket of its own.
    Udp,
}

/// A series of tries to reach one address: `Probe::tcp("10.96.0.10:80").count(100)`.
///
/// Defaults: one try, one second for each, no pause between them, one after the other.
#[derive(Debug, Clone)]
pub struct Probe {
    transport: Transport,
    to: String,
    count: u32,
    timeout: Duration,
    interval: Duration,
    parallel: u32,
    unconnected: bool,
}

impl Probe {
    /// New TCP connections to `address:port`, an IPv6 address in brackets.
    pub fn tcp(to: impl fmt::Display) -> Self {
        Self::new(Transport::Tcp, to)
    }

    /// UDP datagrams to `address:port`, an IPv6 address in brackets.
    pub fn udp(to: impl fmt::Display) -> Self {
        Self::new(Transport::Udp, to)
    }

    /// Either.
    pub fn new(transport: Transport, to: impl fmt::Display) -> Self {
        Self {
            transport,
            to: to.to_string(),
            count: 1,
            timeout: Duration::from_secs(1),
            interval: Duration::ZERO,
            parallel: 1,
            unconnected: false,
        }
    }

    /// How many tries; of no meaning to probes that run until they are stopped.
    pub fn count(self, count: u32) -> Self {
        Self { count, ..self }
    }

    /// How long each try may take (whole milliseconds).
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The time between the beginnings of two tries (whole milliseconds).
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// How many tries are under way at once.
    pub fn parallel(self, parallel: u32) -> Self {
        Self { parallel: parallel.max(1), ..self }
    }

    /// Sends datagrams from a socket that is not connected (sendto), as DNS clients do.
    pub fn unconnected(self) -> Self {
        Self { unconnected: true, ..self }
    }

    /// The arguments after the subcommand.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![self.transport.to_string(), self.to.clone()];
        arguments.push(format!("--timeout-ms={}", self.timeout.as_millis()));
        if !self.interval.is_zero() {
            arguments.push(format!("--interval-ms={}", self.interval.as_millis()));
        }
        if self.unconnected {
            arguments.push("--unconnected".to_owned());
        }
        arguments
    }

    pub(crate) fn counted_arguments(&self) -> Vec<String> {
        let mut arguments = self.arguments();
        arguments.push(format!("--count={}", self.count));
        arguments.push(format!("--parallel={}", self.parallel));
        arguments
    }

    /// What all tries take at worst.
    pub(crate) fn longest(&self) -> Duration {
        (self.timeout + self.interval) * self.count.div_ceil(self.parallel)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
