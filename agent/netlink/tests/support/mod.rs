//! Network namespaces for one test, removed when the test ends, also by a panic.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]
#![allow(dead_code, reason = "each test file uses some of it")]

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{panic, process, thread};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use podway_netlink::{InterfaceChoice, Netlink, Report};
use podway_overlay::{Host, LinkName, Node, Observed, Op, Overlay, Peering, Settings};

/// A network namespace with a name of its own.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with its loopback up.
    pub(crate) fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "needs root: it makes network namespaces");
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("pwnl-{}-{count}-{label}", process::id()) };
        command("ip", &["netns", "add", &namespace.name]);
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` in it; the words are divided by blanks.
    pub(crate) fn ip(&self, words: &str) -> String {
        let words: Vec<&str> = ["-n", &self.name].into_iter().chain(words.split_whitespace()).collect();
        command("ip", &words)
    }

    /// Runs `ip` in it once for many lines.
    pub(crate) fn ip_batch(&self, lines: &str) {
        feed(self.batch(), lines);
    }

    /// An `ip` in it that reads lines.
    pub(crate) fn batch(&self) -> Command {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]);
        ip
    }

    /// Runs `bridge` in it.
    pub(crate) fn bridge(&self, words: &str) -> String {
        let words: Vec<&str> = ["-n", &self.name].into_iter().chain(words.split_whitespace()).collect();
        command("bridge", &words)
    }

    /// Ties it to another one.
    pub(crate) fn veth(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}", other.name));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
    }

    /// Runs `job` on a thread inside.
    pub(crate) fn inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                job()
            });
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Runs `job` with a netlink socket inside.
    pub(crate) fn netlink<T: Send, F: Future<Output = T>>(&self, job: impl FnOnce(Netlink) -> F + Send) -> T {
        self.inside(|| here(job))
    }

    /// What podway sees of `overlay`'s links.
    pub(crate) fn observe(&self, overlay: &Overlay) -> Observed {
        let sought = overlay.sought();
        self.netlink(|netlink| async move { netlink.observe(&sought).await.unwrap() })
    }

    /// What this machine contributes, by interface eth0.
    pub(crate) fn host(&self, settings: &Settings) -> Host {
        let choice = InterfaceChoice { interfaces: vec!["eth0".to_owned()], ..InterfaceChoice::default() };
        self.netlink(|netlink| async move { netlink.host(&choice, settings).await.unwrap() })
    }

    /// Carries out steps.
    pub(crate) fn run(&self, ops: &[Op]) -> Report {
        self.netlink(|netlink| async move { netlink.run(ops).await })
    }

    /// Observes, reconciles and runs; every step must succeed. Returns the steps.
    pub(crate) fn reconcile(&self, overlay: &mut Overlay) -> Vec<Op> {
        let ops = overlay.reconcile(&self.observe(overlay));
        let report = self.run(&ops);
        assert_eq!(report.done, ops.len(), "{report:#?}");
        ops
    }

    /// Runs what became necessary since the last time; every step must succeed. Returns the steps.
    pub(crate) fn change(&self, overlay: &mut Overlay) -> Vec<Op> {
        let ops = overlay.changes().unwrap();
        let report = self.run(&ops);
        assert_eq!(report.done, ops.len(), "{report:#?}");
        ops
    }

    /// Links, routes, neighbours and FDB entries as `ip` and `bridge` show them, save for what changes by itself.
    pub(crate) fn everything(&self) -> String {
        let shown = [
            "-4 route show table all",
            "-6 route show table all",
            "-4 neigh show nud permanent",
            "-6 neigh show nud permanent",
            "link show",
            "addr show",
        ];
        let mut all: Vec<String> = shown.iter().map(|what| self.ip(what)).collect();
        all.push(self.bridge("fdb show"));
        all.join("--\n")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a program that reads `lines`; it must succeed.
pub(crate) fn feed(mut program: Command, lines: &str) {
    let mut running = program.stdin(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(running.wait().unwrap().success(), "{program:?}");
}

/// Runs `job` with a netlink socket in the namespace of this thread, on this thread.
pub(crate) fn here<T, F: Future<Output = T>>(job: impl FnOnce(Netlink) -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { job(Netlink::open().unwrap()).await })
}

/// Two nodes, n = 1 and 2, on one underlay: interface eth0, 192.0.2.n and 2001:db8::n. Pods of node n are in
/// 10.244.n.0/24 and fd00:0:0:n::/64.
pub(crate) struct Pair {
    pub(crate) nodes: [Namespace; 2],
}

impl Pair {
    pub(crate) fn new() -> Self {
        let nodes = [Namespace::new("n1"), Namespace::new("n2")];
        nodes[0].veth("eth0", &nodes[1], "eth0");
        for (n, node) in (1..).zip(&nodes) {
            node.ip(&format!("addr add 192.0.2.{n}/24 dev eth0"));
            node.ip(&format!("addr add 2001:db8::{n}/64 dev eth0 nodad"));
        }
        Self { nodes }
    }

    /// The pod network as node `n` sees it: both nodes, both families.
    pub(crate) fn overlay(&self, n: u8) -> Overlay {
        overlay(&self.nodes[usize::from(n) - 1], n, &["10.244.0.0/16", "fd00::/48"])
    }
}

/// The pod network of node `n` with both nodes.
pub(crate) fn overlay(namespace: &Namespace, n: u8, networks: &[&str]) -> Overlay {
    let networks = networks.iter().map(|net| net.parse().unwrap()).collect();
    configured(namespace, Settings::new(&format!("node-{n}"), networks, Peering::Derived))
}

/// The pod network as configured, with both nodes.
pub(crate) fn configured(namespace: &Namespace, settings: Settings) -> Overlay {
    let mut overlay = Overlay::new(settings.clone()).unwrap();
    overlay.set_host(namespace.host(&settings));
    for peer in [node(1), node(2)] {
        overlay.apply(&peer.name.clone(), Some(&peer));
    }
    overlay
}

/// Node `n` as a manifest would give it.
pub(crate) fn node(n: u8) -> Node {
    Node {
        name: format!("node-{n}").into(),
        addresses: vec![format!("192.0.2.{n}").parse().unwrap(), format!("2001:db8::{n}").parse().unwrap()],
        pod_cidrs: vec![net(&format!("10.244.{n}.0/24")), net(&format!("fd00:0:0:{n}::/64"))],
        ..Node::default()
    }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn link(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn command(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", words.join(" "));
    String::from_utf8(output.stdout).unwrap()
}
