//! The pod network as one podway on each node makes it: real packets for every behaviour that docs/contract.md numbers
//! from N1 to N23, where no other suite has them.

mod attach;
mod backend;
mod interface;
mod node;
mod peers;
mod range;
mod reach;
mod stores;

use anyhow::{Context, Result, anyhow};
use podway_suites::{Dataplane, Member, SOON, Way, await_answers, wait_until_network_stands};
use podway_testkit::{Host, Process, within};
use serde_json::Value;

/// What pods listen on.
const PORT: u16 = 8080;

/// Every way to call a host: TCP and UDP at each of its addresses.
fn ways_to(host: &Host) -> Vec<Way> {
    Way::all(host.addresses().iter().copied(), PORT)
}

/// Waits until a pod is answered by another at all its addresses, each time under its own.
#[track_caller]
fn reaches(client: &Host, server: &Host) {
    for way in ways_to(server) {
        let answers = await_answers(client, way);
        assert_eq!(answers.sources(), [way.same_family(client)].into(), "{way}");
    }
}

/// Starts the network half of podway with these settings over those of its cluster.
fn start(member: &Member, settings: &[&str]) -> Result<Process> {
    let settings = ["services.enabled=false"].iter().chain(settings).flat_map(|setting| ["--set", setting]);
    member.podway_command("run", Dataplane::Nftables)?.args(settings).start("podway")
}

/// The same; returns when the pod network stands.
fn run(member: &Member, settings: &[&str]) -> Result<Process> {
    let podway = start(member, settings)?;
    wait_until_network_stands(&podway)?;
    Ok(podway)
}

/// A link with its details and addresses, as `ip` describes it; null if there is none.
fn link(host: &Host, name: &str) -> Result<Value> {
    let output = host.command("ip").args(["-json", "-details", "address", "show", name]).output()?;
    if !output.status.success() {
        return Ok(Value::Null);
    }
    let mut listed: Value = serde_json::from_str(&output.stdout)?;
    Ok(listed[0].take())
}

/// What `ip ARGUMENTS` lists.
fn listed(host: &Host, arguments: &[&str]) -> Result<Vec<Value>> {
    let printed = host.command("ip").arg("-json").args(arguments).run()?;
    if printed.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&printed).context(printed)
}

/// Waits until `subnet.env` of a node contains a line.
fn await_in_subnet_env(member: &Member, line: &str) -> Result<()> {
    let path = member.subnet_file()?;
    within(SOON, &format!("{line} in subnet.env"), || {
        let env = std::fs::read_to_string(&path)?;
        if env.lines().any(|held| held == line) { Ok(()) } else { Err(anyhow!(env)) }
    })
}

/// Panics unless a text names all of these.
#[track_caller]
fn assert_names(said: &str, names: &[&str]) {
    let missing: Vec<_> = names.iter().filter(|name| !said.contains(**name)).collect();
    assert!(missing.is_empty(), "does not name {missing:?}: {said}");
}
