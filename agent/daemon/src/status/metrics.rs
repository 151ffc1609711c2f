//! The daemon in numbers, named as Prometheus wants them.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::board::{Half, State};

/// What `/metrics` answers with.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Family<[(&'static str, String); 1], Gauge>;
type Seconds = Gauge<f64, AtomicU64>;

/// Counters are kept as things happen; gauges are read off the state when somebody asks.
pub(crate) struct Metrics {
    registry: Registry,
    halves: BTreeMap<Half, OfHalf>,
    lost: Family<Server, Seconds>,
    peers: Labels,
    routes: Gauge,
    problems: Labels,
    subnets: Labels,
    memory: Gauge,
    cpu: Counter<f64, AtomicU64>,
}

/// Shown only for a half that is switched on.
struct OfHalf {
    registry: Registry,
    repairs: Family<Kind, Counter>,
    programming: Histogram,
    failures: Family<Operation, Counter>,
    ready: Gauge,
    failing: Seconds,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Server {
    server: String,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let podway = registry.sub_registry_with_prefix("podway");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        podway.register("build", "The version that runs", build);
        let lost = Family::default();
        let help = "For how long a server has not answered";
        podway.register_with_unit("server_lost", help, Unit::Seconds, lost.clone());
        let mut halves: BTreeMap<_, _> =
            [Half::Network, Half::Services].map(|half| (half, OfHalf::new(half))).into();

        let network = halves.entry(Half::Network).or_insert_with(|| OfHalf::new(Half::Network));
        let network = network.registry.sub_registry_with_prefix("podway").sub_registry_with_prefix("network");
        let peers = Family::default();
        network.register("peers", "Other nodes that are programmed, by backend", peers.clone());
        let routes = Gauge::default();
        network.register("routes", "Subnets of other nodes that are programmed", routes.clone());
        let problems = Family::default();
        network.register(
            "problems",
            "What stands in the way now, by the reason of its Event",
            problems.clone(),
        );
        let subnets = Family::default();
        network.register("subnet", "1 for each subnet of this node", subnets.clone());

        let (memory, cpu) = (Gauge::default(), Counter::default());
        let process = registry.sub_registry_with_prefix("process");
        process.register_with_unit("resident_memory", "Resident memory", Unit::Bytes, memory.clone());
        process.register_with_unit("cpu", "User and system time", Unit::Seconds, cpu.clone());
        Self { registry, halves, lost, peers, routes, problems, subnets, memory, cpu }
    }

    pub(crate) fn programmed(&self, half: Half, took: Duration) {
        self.halves[&half].programming.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, half: Half, operation: &'static str) {
        self.halves[&half].failures.get_or_create(&Operation { operation }).inc();
    }

    pub(crate) fn repaired(&self, half: Half, kind: &'static str, count: u64) {
        self.halves[&half].repairs.get_or_create(&Kind { kind }).inc_by(count);
    }

    pub(crate) fn render(&self, state: &State, now: Instant) -> String {
        self.read_network(state);
        for (half, progress) in &state.halves {
            let metrics = &self.halves[half];
            metrics.ready.set(i64::from(progress.first.is_some()));
            let failing = progress.failing.as_ref().map(|failing| now.duration_since(failing.since));
            metrics.failing.set(failing.unwrap_or_default().as_secs_f64());
        }
        self.lost.clear();
        for (server, lost) in &state.lost {
            let seconds = now.duration_since(lost.since).as_secs_f64();
            self.lost.get_or_create(&Server { server: server.clone() }).set(seconds);
        }
        self.read_process();
        self.encode(state.halves.keys())
    }

    fn encode<'a>(&self, halves: impl Iterator<Item = &'a Half>) -> String {
        let halves = halves.map(|half| &self.halves[half].registry);
        let mut text = String::new();
        // A String takes whatever is written to it.
        for registry in [&self.registry].into_iter().chain(halves) {
            let _ = encode_registry(&mut text, registry);
        }
        let _ = encode_eof(&mut text);
        text
    }

    fn read_network(&self, state: &State) {
        let standing = || state.peers.values().filter(|peer| peer.programmed.is_some());
        count(&self.peers, "backend", standing().map(|peer| peer.facts.backend.to_owned()));
        let routes: usize = standing().map(|peer| peer.facts.subnets.len()).sum();
        self.routes.set(i64::try_from(routes).unwrap_or(i64::MAX));
        count(&self.problems, "reason", state.faults.iter().map(|fault| fault.reason.clone()));
        count(&self.subnets, "subnet", state.own.subnets.iter().map(ToString::to_string));
    }

    fn read_process(&self) {
        self.memory.set(resident_kib().unwrap_or_default() * 1024);
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
            let spent = Duration::from_micros(u64::try_from(microseconds).unwrap_or_default());
            let more = spent.as_secs_f64() - self.cpu.get();
            self.cpu.inc_by(more.max(0.0));
        }
    }
}

impl OfHalf {
    fn new(half: Half) -> Self {
        let mut root = Registry::default();
        let registry = root.sub_registry_with_prefix("podway").sub_registry_with_prefix(half.name());
        // 0.5 ms to 16 s.
        let programming = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let help = "How long it took to bring the kernel to what is planned";
        registry.register_with_unit("programming_duration", help, Unit::Seconds, programming.clone());
        let failures = Family::default();
        registry.register("failures", "Attempts that failed", failures.clone());
        let ready = Gauge::default();
        registry.register("ready", "1 once it has been programmed as a whole", ready.clone());
        let failing = Seconds::default();
        registry.register_with_unit(
            "failing",
            "For how long attempts have failed",
            Unit::Seconds,
            failing.clone(),
        );
        let repairs = Family::default();
        let help = "Entries that somebody else had changed and that were set right";
        registry.register("repairs", help, repairs.clone());
        Self { registry: root, repairs, programming, failures, ready, failing }
    }
}

fn count(family: &Labels, label: &'static str, values: impl Iterator<Item = String>) {
    family.clear();
    for value in values {
        family.get_or_create(&[(label, value)]).inc();
    }
}

fn resident_kib() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::board::{Board, Facts, Fault};
    use super::*;

    #[test]
    fn n14_n17_metrics_count_peers_routes_problems_repairs_and_failures() {
        let board = Board::new("node-1");
        board.expect(Half::Network);
        for name in ["node-2", "node-3"] {
            let subnets = vec!["10.244.2.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
            board.peer_programmed(&Arc::from(name), Facts { subnets, backend: "vxlan", ..Facts::default() });
        }
        board.peer_failed(&"node-4".into(), "refused");
        board.faults(["Node node-5", "Node node-6"].map(|object| Fault {
            reason: "SubnetTaken".to_owned(),
            object: object.to_owned(),
            message: "taken".to_owned(),
        }));
        board.repaired(Half::Network, "route", 3);
        board.contact("etcd".to_owned(), Some("refused".to_owned()));
        board.failed(Half::Network, "program", "refused");
        board.programmed(Half::Network, Duration::from_millis(3));
        let text = board.metrics();
        for line in [
            "podway_build_info{version=\"0.1.0\"} 1",
            "podway_network_peers{backend=\"vxlan\"} 2",
            "podway_network_routes 4",
            "podway_network_problems{reason=\"SubnetTaken\"} 2",
            "podway_network_repairs_total{kind=\"route\"} 3",
            "podway_network_failures_total{operation=\"program\"} 1",
            "podway_network_ready 1",
            "podway_network_programming_duration_seconds_count 1",
            "podway_network_programming_duration_seconds_bucket{le=\"0.004\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in:\n{text}");
        }
        let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        assert!(text.contains("podway_server_lost_seconds{server=\"etcd\"} 0."), "{text}");
        assert!(memory.unwrap().parse::<u64>().unwrap() > 1 << 20);
        board.faults([]);
        board.contact("etcd".to_owned(), None);
        let text = board.metrics();
        assert!(!text.contains("SubnetTaken") && !text.contains("etcd"), "what is over is not shown: {text}");
    }

    #[test]
    fn n15_a_half_that_is_switched_off_has_no_metrics_and_repairs_are_counted_where_they_belong() {
        let board = Board::new("node-1");
        board.expect(Half::Network);
        let text = board.metrics();
        assert!(text.contains("podway_network_ready 0") && !text.contains("podway_services_"), "{text}");

        let board = Board::new("node-1");
        board.expect(Half::Services);
        board.repaired(Half::Services, "element", 5);
        let text = board.metrics();
        assert!(text.contains("podway_services_repairs_total{kind=\"element\"} 5"), "{text}");
        assert!(!text.contains("podway_network_"), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
    }
}
