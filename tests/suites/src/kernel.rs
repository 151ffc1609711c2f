//! What a node's kernel holds, read with the ordinary tools.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use podway_testkit::{Node, eventually};

use crate::cluster::await_carrier;
use crate::traffic::SOON;

/// Rules, devices, addresses, routes, neighbours and FDB entries of a node, without what traffic and time change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelState {
    /// Sorted: the kernel lists what came back at another place.
    lines: Vec<String>,
}

/// A table, a link, a rule and routes on a node that somebody else made before podway came, some of them much like
/// podway's own.
#[derive(Debug)]
pub struct Strangers {
    node: Node,
    before: KernelState,
}

impl KernelState {
    const LISTS: [&'static [&'static str]; 10] = [
        &["ip", "-brief", "link"],
        &["ip", "-oneline", "-details", "link", "show", "type", "vxlan"],
        &["nft", "--stateless", "list", "ruleset"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-4", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "-brief", "address"],
        &["ip", "neighbour", "show", "nud", "permanent"],
        &["bridge", "fdb", "show"],
    ];

    /// Reads all of it, once every device has its carrier: with it, routes and addresses come by themselves.
    pub fn read(node: &Node) -> Result<Self> {
        await_carrier(node)?;
        let mut lines = Vec::new();
        for list in Self::LISTS {
            let printed = node.command(list[0]).args(&list[1..]).run()?;
            lines
                .extend(printed.lines().map(|line| format!("{}: {}", list[..2].join(" "), unnumbered(line))));
        }
        lines.sort();
        Ok(Self { lines })
    }

    /// Whether any line contains `text`.
    pub fn mentions(&self, text: &str) -> bool {
        self.lines.iter().any(|line| format!("{line} ").contains(text))
    }

    /// What is here of another node: its number in addresses of its subnets and of the underlay.
    pub fn traces_of(&self, number: u8) -> Vec<&str> {
        let traces =
            [format!("10.77.{number}.0"), format!("fd77:0:0:{number}::"), format!("192.0.2.1{number} ")];
        let of_it = |line: &&String| traces.iter().any(|trace| format!("{line} ").contains(trace));
        self.lines.iter().filter(of_it).map(String::as_str).collect()
    }

    /// What is here and not in the other.
    pub fn beyond<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let held: BTreeSet<&String> = other.lines.iter().collect();
        self.lines.iter().filter(|line| !held.contains(line)).map(String::as_str).collect()
    }

    /// Waits until a node is in this state.
    #[track_caller]
    pub fn await_again_on(&self, node: &Node) {
        eventually(SOON, &format!("an earlier state of {}", node.name()), || {
            let now = Self::read(node)?;
            if *self == now { Ok(()) } else { Err(anyhow!(self.differences(&now))) }
        });
    }

    /// Panics with the differences unless the other is the same.
    #[track_caller]
    pub fn assert_same(&self, now: &Self) {
        assert!(self == now, "{}", self.differences(now));
    }

    fn differences(&self, now: &Self) -> String {
        format!("gone: {:#?}\nnew: {:#?}", self.beyond(now), now.beyond(self))
    }
}

impl Strangers {
    /// Moves in on node-1 of a lab. To be called before podway's first start.
    pub fn move_in(node: &Node) -> Result<Self> {
        node.ip("link add stranger type veth peer name stranger-peer\nlink set stranger up\nlink set stranger-peer up\n\
             link add vxlan7 type vxlan id 7 dstport 4789 local 192.0.2.11\nlink set vxlan7 up\n\
             addr add 198.51.100.1/24 dev stranger\n\
             route add 203.0.113.0/24 via 192.0.2.1 proto 77\n\
             route add 2001:db8:77::/48 via 2001:db8::1 proto 77\n\
             route add 10.77.200.0/24 dev vxlan7 proto static\n\
             rule add from 203.0.113.9 lookup 77 priority 777")?;
        let table = "table inet stranger {\n set addresses { type ipv4_addr\n elements = { 10.96.0.10 } }\n \
                     chain forward { type filter hook forward priority 0; policy accept;\n \
                     ip saddr 203.0.113.9 drop\n }\n}\n\
                     table ip podway-of-another {\n chain pick-2 {\n }\n}\n\
                     table ip nat {\n chain postrouting { type nat hook postrouting priority srcnat;\n \
                     ip saddr 203.0.113.7 masquerade\n }\n}\n";
        node.command("nft").args(["--file", "-"]).stdin(table).run()?;
        Ok(Self { node: node.clone(), before: KernelState::read(node)? })
    }

    /// Panics with what is missing unless everything of theirs is still there.
    #[track_caller]
    pub fn are_unharmed(&self) {
        let now = KernelState::read(&self.node).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(self.before.beyond(&now), Vec::<&str>::new(), "of the strangers' is missing");
    }

    /// Panics with the differences unless there is nothing but theirs.
    #[track_caller]
    pub fn are_alone(&self) {
        let now = KernelState::read(&self.node).unwrap_or_else(|error| panic!("{error:#}"));
        self.before.assert_same(&now);
    }
}

/// Without the number of a link, which is another one when the link is made again, and without the length of a queue
/// that VXLAN links do not have: flannel sets it to none, podway leaves the kernel's.
fn unnumbered(line: &str) -> String {
    let line = line.trim();
    let rest = match line.split_once(": ") {
        Some((number, rest)) if number.parse::<u32>().is_ok() => rest,
        _ => line,
    };
    rest.replace("qlen 1000", "")
}

/// Waits until nothing of another node is left on this one.
#[track_caller]
pub fn await_no_trace_of(number: u8, on: &Node) {
    eventually(SOON, &format!("no trace of node-{number} on {}", on.name()), || {
        let state = KernelState::read(on).map_err(|error| format!("{error:#}"))?;
        let traces = state.traces_of(number);
        if traces.is_empty() { Ok(()) } else { Err(traces.join("\n")) }
    });
}
