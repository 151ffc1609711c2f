//! When the daemon is well, as kubelets, load balancers and operators ask (contract N15).

use std::time::{Duration, Instant};

use serde::Serialize;

use super::board::State;

/// How long a half may fail, or be at one attempt, before the daemon is unhealthy. kube-proxy's: 60 s (proxier_health.go).
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The answers to `/livez`, `/healthz` and `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Health {
    /// A restart would not help.
    pub live: bool,
    /// What the cluster wants is in the kernel, or has not been missing for long.
    pub healthy: bool,
    /// Each half has been programmed once as a whole. A kernel keeps what it has been given: later failures do not
    /// take it back.
    pub ready: bool,
    /// What keeps it from being well, or ready.
    pub why: Vec<String>,
}

impl Health {
    /// Judges the halves that are switched on. While it starts the daemon is live and healthy, and not ready. Servers
    /// that do not answer are named and change nothing (contract S24): the kernel goes on with what it has.
    pub(crate) fn of(state: &State, now: Instant) -> Self {
        let mut health = Self { live: true, healthy: true, ready: !state.halves.is_empty(), why: Vec::new() };
        for (half, progress) in &state.halves {
            if let Some(since) = progress.busy_since
                && now.duration_since(since) > PATIENCE
            {
                (health.live, health.healthy) = (false, false);
                let seconds = now.duration_since(since).as_secs();
                health.why.push(format!("{half}: one attempt has taken {seconds}s so far"));
            }
            if let Some(failing) = &progress.failing {
                health.healthy &= now.duration_since(failing.since) <= PATIENCE;
                let seconds = now.duration_since(failing.since).as_secs();
                health.why.push(format!("{half}: failing for {seconds}s: {}", failing.error));
            }
            if progress.first.is_none() {
                health.ready = false;
                let waits =
                    if progress.listed { "is not programmed yet" } else { "waits for the cluster's state" };
                health.why.push(format!("{half}: {waits}"));
            }
        }
        health.why.extend(state.lost.iter().map(|(server, lost)| {
            let seconds = now.duration_since(lost.since).as_secs();
            format!("{server} has not answered for {seconds}s: {}; what is known stands", lost.why)
        }));
        health
    }
}

#[cfg(test)]
mod tests {
    use super::super::board::{Board, Failing, Half, Progress};
    use super::*;

    fn after(seconds: u64, progress: Progress, start: Instant) -> Health {
        of(&[(Half::Network, progress)], start + Duration::from_secs(seconds))
    }

    fn of(halves: &[(Half, Progress)], now: Instant) -> Health {
        let board = Board::new("node-1");
        board.state().halves.extend(halves.iter().cloned());
        Health::of(&board.state(), now)
    }

    #[test]
    fn n15_while_it_starts_it_is_healthy_and_not_ready() {
        let health = after(3600, Progress::default(), Instant::now());
        assert_eq!((health.live, health.healthy, health.ready), (true, true, false));
        assert_eq!(health.why, ["network: waits for the cluster's state"]);
    }

    #[test]
    fn n15_it_is_ready_when_each_half_has_been_programmed_once() {
        let start = Instant::now();
        let done = Progress { first: Some(start), listed: true, ..Progress::default() };
        let waiting = (Half::Services, Progress::default());
        assert!(!of(&[(Half::Network, done.clone()), waiting], start).ready);
        let health = of(&[(Half::Network, done.clone()), (Half::Services, done)], start);
        assert_eq!((health.live, health.healthy, health.ready), (true, true, true));
        assert!(health.why.is_empty());
    }

    #[test]
    fn n15_a_failure_is_named_at_once_and_unhealthy_after_a_minute() {
        let start = Instant::now();
        let failing = Failing { since: start, error: "there is no interface eth9".to_owned(), attempts: 3 };
        let progress = Progress { first: Some(start), failing: Some(failing), ..Progress::default() };
        let soon = after(60, progress.clone(), start);
        assert_eq!((soon.live, soon.healthy, soon.ready), (true, true, true));
        assert_eq!(soon.why, ["network: failing for 60s: there is no interface eth9"]);
        let late = after(61, progress, start);
        assert_eq!((late.live, late.healthy, late.ready), (true, false, true), "a restart would not help");
    }

    #[test]
    fn s24_a_server_that_does_not_answer_is_named_and_takes_nothing_back() {
        let board = Board::new("node-1");
        board.programmed(Half::Network, Duration::from_millis(3));
        board.contact("etcd".to_owned(), Some("connection refused".to_owned()));
        let since = board.state().lost["etcd"].since;
        let health = Health::of(&board.state(), since + Duration::from_secs(600));
        assert_eq!((health.live, health.healthy, health.ready), (true, true, true));
        assert_eq!(health.why, ["etcd has not answered for 600s: connection refused; what is known stands"]);
        board.contact("etcd".to_owned(), None);
        assert!(board.health().why.is_empty());
    }

    #[test]
    fn n15_an_attempt_that_does_not_end_is_not_live() {
        let start = Instant::now();
        let progress = Progress { first: Some(start), busy_since: Some(start), ..Progress::default() };
        assert!(after(60, progress.clone(), start).live);
        let stuck = after(61, progress, start);
        assert_eq!((stuck.live, stuck.healthy), (false, false));
        assert_eq!(stuck.why, ["network: one attempt has taken 61s so far"]);
    }
}
