//! What came back from a probe: one [`Answer`] a try, as `podway-probe` prints it in JSON lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The result of one try: a connection, a datagram, or one message of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the server answered.
    pub ok: bool,
    /// When the try began, in microseconds since the sender began.
    pub at: u64,
    /// How long it took until the answer or the error, in microseconds.
    pub micros: u64,
    /// The name that the server was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The client as the server saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// The server's own address as the server saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// The server as the client saw it: `getpeername`, or the source of the datagram when unconnected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// Why a try got no answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    /// A TCP reset to the SYN, or an ICMP port unreachable.
    Refused,
    /// Nothing came in time.
    Timeout,
    /// The connection was reset after it stood.
    Reset,
    /// ICMP host or network unreachable, or no route.
    Unreachable,
    /// This host's own firewall or an eBPF program forbade it.
    Denied,
    /// The server closed the connection.
    Closed,
    /// Something answered that is no probe server, or anything else that the sockets reported.
    Other(String),
}

/// The answers to a series of tries, in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    answers: Vec<Answer>,
}

impl Answers {
    /// How many tries there were.
    pub fn sent(&self) -> usize {
        self.answers.len()
    }

    /// How many were answered.
    pub fn answered(&self) -> usize {
        self.successes().count()
    }

    /// Every try.
    pub fn iter(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter()
    }

    /// How often each server answered.
    pub fn by_name(&self) -> BTreeMap<String, usize> {
        count(self.successes().filter_map(|answer| answer.name.clone()))
    }

    /// The client addresses that the servers saw.
    pub fn sources(&self) -> BTreeSet<IpAddr> {
        self.successes().filter_map(|answer| answer.peer).map(|peer| peer.ip()).collect()
    }

    /// The addresses that the client saw the answers come from.
    pub fn remotes(&self) -> BTreeSet<SocketAddr> {
        self.successes().filter_map(|answer| answer.remote).collect()
    }

    /// The tries without an answer.
    pub fn failures(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| !answer.ok)
    }

    /// How often each error occurred.
    pub fn errors(&self) -> BTreeMap<Failure, usize> {
        count(self.failures().filter_map(|answer| answer.error.clone()))
    }

    /// Whether there was a try, and every one was answered.
    pub fn all_answered(&self) -> bool {
        !self.answers.is_empty() && self.answers.iter().all(|answer| answer.ok)
    }

    /// Whether there was a try, and every one was refused.
    pub fn all_refused(&self) -> bool {
        self.all_failed_by(&Failure::Refused)
    }

    /// Whether there was a try, and none got an answer or an error.
    pub fn all_timed_out(&self) -> bool {
        self.all_failed_by(&Failure::Timeout)
    }

    /// The time within which that share of the answers came, such as 0.5 or 0.99; zero without answers.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut micros: Vec<u64> = self.successes().map(|answer| answer.micros).collect();
        micros.sort_unstable();
        let last = micros.len().saturating_sub(1);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below the number of answers"
        )]
        let index = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
        Duration::from_micros(micros.get(index).copied().unwrap_or(0))
    }

    /// The median time to an answer.
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The longest time of any try, answered or not.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.answers.iter().map(|answer| answer.micros).max().unwrap_or(0))
    }

    /// The longest time without an answer coming in, from the first try to the end of the last.
    pub fn longest_gap(&self) -> Duration {
        let mut moments: Vec<u64> = self.successes().map(Answer::end).collect();
        moments.extend(self.answers.iter().map(|answer| answer.at).min());
        moments.extend(self.answers.iter().map(Answer::end).max());
        moments.sort_unstable();
        let gaps = moments.windows(2).map(|pair| pair[1] - pair[0]);
        Duration::from_micros(gaps.max().unwrap_or(0))
    }

    fn successes(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| answer.ok)
    }

    fn all_failed_by(&self, failure: &Failure) -> bool {
        !self.answers.is_empty() && self.answers.iter().all(|answer| answer.error.as_ref() == Some(failure))
    }
}

impl Answer {
    /// When the answer or the error came, in microseconds since the sender began.
    pub fn end(&self) -> u64 {
        self.at + self.micros
    }
}

impl FromIterator<Answer> for Answers {
    fn from_iter<I: IntoIterator<Item = Answer>>(answers: I) -> Self {
        Self { answers: answers.into_iter().collect() }
    }
}

/// One line, such as `98 of 100 answered (web-1 50, web-2 48), 2 failed (refused 2), p50 312µs, longest gap 20ms`.
impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} answered{}", self.answered(), self.sent(), listed(self.by_name()))?;
        if self.answered() < self.sent() {
            write!(f, ", {} failed{}", self.failures().count(), listed(self.errors()))?;
        }
        write!(f, ", p50 {:?}, longest gap {:?}", self.p50(), self.longest_gap())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::Closed => "closed",
            Self::Other(what) => what,
        })
    }
}

fn count<T: Ord>(seen: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for one in seen {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

fn listed<T: fmt::Display>(counts: BTreeMap<T, usize>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    format!(" ({})", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_the_time_before_the_first_and_after_the_last_answer() {
        let late: Answers = [failed(0, 10), answered(40, 10), failed(60, 10)].into_iter().collect();
        assert_eq!(late.longest_gap(), Duration::from_micros(50));
        let dying: Answers = [answered(0, 10), failed(20, 100)].into_iter().collect();
        assert_eq!(dying.longest_gap(), Duration::from_micros(110));
        assert_eq!(Answers::default().longest_gap(), Duration::ZERO);
    }

    #[test]
    fn nothing_sent_is_neither_answered_nor_refused() {
        let none = Answers::default();
        assert!(!none.all_answered() && !none.all_refused() && !none.all_timed_out());
    }

    #[test]
    fn quantiles_look_at_answers_only() {
        let answers: Answers =
            [answered(0, 1), answered(0, 3), answered(0, 2), failed(0, 100)].into_iter().collect();
        assert_eq!(answers.p50(), Duration::from_micros(2));
        assert_eq!(answers.quantile(1.0), Duration::from_micros(3));
        assert_eq!(answers.slowest(), Duration::from_micros(100));
    }

    #[test]
    fn an_answer_is_one_json_line_with_what_is_known() {
        let line = serde_json::to_string(&failed(5, 7)).unwrap();
        assert_eq!(line, r#"{"ok":false,"at":5,"micros":7,"error":"refused"}"#);
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), failed(5, 7));
    }

    fn answered(at: u64, micros: u64) -> Answer {
        Answer { ok: true, name: Some("web-1".to_owned()), error: None, ..failed(at, micros) }
    }

    fn failed(at: u64, micros: u64) -> Answer {
        let error = Some(Failure::Refused);
        Answer { ok: false, at, micros, name: None, peer: None, local: None, remote: None, error }
    }
}
