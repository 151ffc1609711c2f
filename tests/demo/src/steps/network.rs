//! The pod network: what podway made on each node, and packets on their way between two.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use podway_testkit::{Node, Pod, Probe, within};
use serde_json::Value;

use crate::node_state::json;
use crate::require;
use crate::screen::Screen;
use crate::shop;
use crate::stage::Stage;
use crate::words::{list, time};

/// The number that podway's routes carry as their protocol.
const PODWAY_ROUTES: &str = "105";

/// Enough to be told from a stray packet.
const REQUESTS: u32 = 20;

/// The nodes with their subnets, and the links and routes that podway made.
pub(crate) fn show_nodes(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "The nodes, and the network that podway laid between them",
        "Every Node has a pod subnet. podway raises one VXLAN device per address family and one route to every other \
         node's subnet, so that a pod reaches every other pod by its own address.",
    );
    let described = stage.shop.nodes()?;
    let mut rows = Vec::new();
    for node in &described {
        rows.extend(rows_of(node, &stage.nodes[&node.name])?);
    }
    screen.table(["NODE", "UNDERLAY", "POD SUBNET", "VXLAN DEVICE", "MTU", "PODWAY'S ROUTES TO"], &rows);
    for node in &described {
        check_routes(node, &described, &stage.nodes[&node.name])?;
    }
    let announcements = stage.cluster.announcements(&stage.shop)?;
    if let Some(first) = announcements.first() {
        screen.held(format!(
            "each podway wrote its part to its Node, in flannel's annotations; {}: {first}",
            described[0].name
        ));
    }
    screen.held(format!(
        "every node has a route to the subnets of both others; all pods answered {} after the daemons' start",
        time(stage.ready_after)
    ));
    Ok(())
}

/// Packets between pods of two nodes and of one node, counted where they cross.
pub(crate) fn show_path(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "From node to node over VXLAN",
        "Between nodes, a pod's packets travel inside UDP packets (port 8472) of the nodes, counted here on the wire \
         between them. The pod at the other end still sees the sender's own address: nothing is masqueraded.",
    );
    let shopper = stage.shopper();
    let mut rows = Vec::new();
    for pod in [&stage.pods["web-1"], &stage.pods["web-2"]] {
        for (address, source) in [(pod.ipv4(), shopper.ipv4()), (pod.ipv6(), shopper.ipv6())] {
            let crossed = crossing(stage, pod, address, source)?;
            let path = format!("shopper on {} -> {} on {}", shopper.node_name(), pod.name(), pod.node_name());
            rows.push([path, address.to_string(), source.to_string(), crossed.to_string()]);
        }
    }
    screen.table(["REQUESTS FROM -> TO", "POD'S ADDRESS", "SENDER AS SEEN THERE", "VXLAN PACKETS"], &rows);
    screen.held(format!(
        "{REQUESTS} requests each, all answered; between nodes all packets were encapsulated, within a node none"
    ));
    Ok(())
}

/// One row for each address family.
fn rows_of(described: &shop::Node, node: &Node) -> Result<Vec<[String; 6]>> {
    let devices = json(node, &["link", "show", "type", "vxlan"])?;
    let mut rows = Vec::new();
    for (underlay, subnet) in described.internal_ips.iter().zip(&described.pod_cidrs) {
        let device = devices.iter().find(|device| is_over(device, *underlay));
        let device =
            device.with_context(|| format!("{} has no VXLAN device over {underlay}", described.name))?;
        let name = if rows.is_empty() { described.name.clone() } else { String::new() };
        let [device_name, mtu] = [&device["ifname"], &device["mtu"]].map(text);
        let routes = list(routes(node, family_flag(*underlay))?);
        rows.push([name, underlay.to_string(), subnet.clone(), device_name, mtu, routes]);
    }
    Ok(rows)
}

fn check_routes(own: &shop::Node, all: &[shop::Node], node: &Node) -> Result<()> {
    let routes = [routes(node, "-4")?, routes(node, "-6")?].concat();
    for subnet in all.iter().filter(|peer| peer.name != own.name).flat_map(|peer| &peer.pod_cidrs) {
        require(routes.contains(subnet), || {
            format!("{} has no route to {subnet}, only to {}", own.name, list(&routes))
        })?;
    }
    Ok(())
}

/// The destinations of podway's routes on a node, of the family `-4` or `-6`.
pub(crate) fn routes(node: &Node, family: &str) -> Result<Vec<String>> {
    let routes = json(node, &[family, "route", "show", "proto", PODWAY_ROUTES])?;
    Ok(routes.iter().map(|route| text(&route["dst"])).collect())
}

/// VXLAN packets that crossed the underlay during requests to a pod that must see the sender's own address.
fn crossing(stage: &Stage<'_>, pod: &Pod, address: IpAddr, source: IpAddr) -> Result<u64> {
    let endpoints = stage.shop.endpoints()?;
    let endpoint = endpoints.iter().find(|endpoint| endpoint.address.ip() == address);
    let to = endpoint.with_context(|| format!("{address} is no endpoint"))?.address;
    let before = silence(stage)?;
    let answers = stage.shopper().send(Probe::tcp(to).count(REQUESTS))?;
    let crossed = stage.lab.vxlan_packets()? - before;
    require(answers.all_answered(), || format!("{to}: {answers}"))?;
    require(answers.sources() == [source].into(), || {
        format!("{} saw the sender as {}", pod.name(), list(answers.sources()))
    })?;
    let is_remote = pod.node_name() != stage.shopper().node_name();
    // A connection takes at least three packets each way.
    let is_right = if is_remote { crossed >= u64::from(REQUESTS) * 6 } else { crossed == 0 };
    require(is_right, || format!("{crossed} VXLAN packets crossed during {REQUESTS} requests to {to}"))?;
    Ok(crossed)
}

/// Waits until nothing of earlier connections is under way any more; returns the VXLAN packets so far.
fn silence(stage: &Stage<'_>) -> Result<u64> {
    within(Duration::from_secs(10), "no VXLAN packets", || {
        let before = stage.lab.vxlan_packets()?;
        thread::sleep(Duration::from_millis(50));
        let after = stage.lab.vxlan_packets()?;
        require(before == after, || format!("{} packets in 50 ms", after - before))?;
        Ok::<_, anyhow::Error>(after)
    })
}

fn is_over(device: &Value, underlay: IpAddr) -> bool {
    let local = if underlay.is_ipv4() { "local" } else { "local6" };
    device["linkinfo"]["info_data"][local] == underlay.to_string()
}

fn family_flag(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
