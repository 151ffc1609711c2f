//! What a node's kernel holds, read with the ordinary tools, and a counter that is none of podway's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result};
use podway_testkit::Node;
use serde_json::Value;

use crate::podway::Podway;
use crate::shop::Shop;
use crate::words::list;

/// Rules, devices, addresses, routes and permanent neighbours of a node, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeState {
    lines: BTreeSet<String>,
}

impl NodeState {
    const LISTS: [&'static [&'static str]; 7] = [
        &["nft", "--stateless", "list", "ruleset"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-4", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "-oneline", "address"],
        &["ip", "neighbour", "show", "nud", "permanent"],
    ];

    pub(crate) fn read(node: &Node) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for list in Self::LISTS {
            let printed = node.command(list[0]).args(&list[1..]).run()?;
            lines.extend(printed.lines().map(|line| format!("{}: {}", list[..2].join(" "), line.trim())));
        }
        for device in json(node, &["link"])? {
            lines.insert(format!("ip link: {}", device["ifname"].as_str().unwrap_or_default()));
        }
        Ok(Self { lines })
    }

    /// How many lines there are.
    pub(crate) fn size(&self) -> usize {
        self.lines.len()
    }

    /// What is here and not in the other.
    pub(crate) fn beyond<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        self.lines.difference(&other.lines).map(String::as_str).collect()
    }
}

/// The files that podway leaves on a node: pinned eBPF objects, and the one for flannel's CNI plugin.
pub(crate) fn files(podway: &Podway) -> Result<Vec<String>> {
    let mut files = names(&podway.pins()?)?;
    files.extend(podway.subnet_file()?.exists().then(|| "subnet.env".to_owned()));
    Ok(files)
}

/// The names in a directory, of none when it is not there.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", folder.display()))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// The list that `ip -json` prints in the node.
pub(crate) fn json(node: &Node, arguments: &[&str]) -> Result<Vec<Value>> {
    let printed = node.command("ip").args(["-json", "-details"]).args(arguments).run()?;
    // ip prints nothing at all, and not an empty list, where there is no such device.
    if printed.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&printed).with_context(|| format!("read what ip {} printed", arguments.join(" ")))
}

/// A table beside podway's own, as another program on the node might have it: counts the TCP connections to Service
/// addresses that pods begin, by their first packet, before anyone translates it.
pub(crate) struct Witness {
    node: Node,
}

impl Witness {
    pub(crate) fn install(node: &Node, shop: &Shop) -> Result<Self> {
        let addresses: Vec<IpAddr> =
            shop.services()?.into_iter().flat_map(|service| service.cluster_ips).collect();
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv4);
        let table = format!(
            "table inet witness {{\n counter to-services {{}}\n chain prerouting {{\n  \
             type filter hook prerouting priority raw;\n  \
             ip daddr {{ {} }} tcp flags & (syn | ack) == syn counter name to-services\n  \
             ip6 daddr {{ {} }} tcp flags & (syn | ack) == syn counter name to-services\n }}\n}}\n",
            list(v4),
            list(v6)
        );
        node.command("nft").args(["--file", "-"]).stdin(table).run()?;
        Ok(Self { node: node.clone() })
    }

    /// How many so far.
    pub(crate) fn connections(&self) -> Result<u64> {
        let nft =
            self.node.command("nft").args(["--json", "list", "counter", "inet", "witness", "to-services"]);
        let listed: Value = serde_json::from_str(&nft.run()?).context("read what nft printed")?;
        let objects = listed["nftables"].as_array().context("nft printed no list")?;
        let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
        packets.context("nft printed no counter")
    }
}
