//! `podway nodes` and `podway status`: what the daemon of this node says, as kubectl would print it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::status::{self, HalfStatus, NodeStatus, Status};

/// How `podway nodes` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodesOutput {
    /// With VTEP MACs.
    Wide,
    /// As the daemon answers.
    Json,
}

/// How `podway status` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusOutput {
    /// As the daemon answers.
    Json,
}

/// Something is wrong with the pod network or the Services.
const NOT_WELL: u8 = 4;

/// Prints every node that this one reaches, and how.
pub(crate) async fn nodes(socket: &Path, output: Option<NodesOutput>) -> Result<ExitCode> {
    let answer = status::ask(socket, "/nodes").await?;
    let nodes: Vec<NodeStatus> = serde_json::from_slice(&answer).context("the daemon's answer")?;
    match output {
        Some(NodesOutput::Json) => println!("{}", serde_json::to_string_pretty(&nodes)?),
        output => print!("{}", node_table(&nodes, output == Some(NodesOutput::Wide))),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints how the daemon is; succeeds if all is well.
pub(crate) async fn status(socket: &Path, output: Option<StatusOutput>) -> Result<ExitCode> {
    let answer = status::ask(socket, "/status").await?;
    let status: Status = serde_json::from_slice(&answer).context("the daemon's answer")?;
    match output {
        Some(StatusOutput::Json) => println!("{}", serde_json::to_string_pretty(&status)?),
        None => print!("{}", describe(&status)),
    }
    let well = status.healthy && status.ready && status.why.is_empty() && status.problems.is_empty();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

fn node_table(nodes: &[NodeStatus], wide: bool) -> String {
    let mut head = vec!["NAME", "SUBNET", "BACKEND", "VIA", "MTU", "AGE", "STATUS"];
    if wide {
        head.insert(4, "MAC");
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
    rows.extend(nodes.iter().map(|node| {
        let mut row = vec![
            node.name.clone(),
            list(&node.subnets),
            or_none(&node.backend),
            list(&node.underlay),
            node.mtu.map_or("<none>".to_owned(), |mtu| mtu.to_string()),
            node.programmed_seconds_ago.map_or("<none>".to_owned(), age),
            node.error.clone().unwrap_or_else(|| match node.programmed_seconds_ago {
                Some(_) => "Programmed".to_owned(),
                None => "Pending".to_owned(),
            }),
        ];
        if wide {
            row.insert(4, list(&node.macs));
        }
        row
    }));
    table(&rows)
}

fn describe(status: &Status) -> String {
    let state = match (status.healthy, status.ready) {
        (true, true) if !status.why.is_empty() => "ready, with failures",
        (true, true) if !status.problems.is_empty() => "ready, with problems",
        (true, true) => "well",
        (true, false) => "starting",
        (false, _) => "not healthy",
    };
    let mut rows = vec![
        ("Node", status.node.clone()),
        ("Version", format!("{}, up {}", status.version, age(status.uptime_seconds))),
        ("State", state.to_owned()),
    ];
    rows.extend(status.why.iter().map(|why| ("", why.clone())));
    rows.extend(status.halves.iter().map(|(half, progress)| match half.as_str() {
        "network" => ("Pod network", describe_half(progress)),
        _ => ("Services", describe_half(progress)),
    }));
    if status.halves.contains_key("network") {
        let own = &status.own;
        rows.push(("Interface", or_none(own.interface.as_deref().unwrap_or_default())));
        rows.push(("Addresses", list(&own.addresses)));
        rows.push(("Subnets", list(&own.subnets)));
        rows.push(("MTU", own.mtu.map_or("<none>".to_owned(), |mtu| mtu.to_string())));
        rows.push(("Store", or_none(&own.store)));
        rows.push(("Peers", format!("{} of {} programmed", status.programmed_peers, status.peers)));
    }
    rows.extend(status.repairs.iter().map(|(kind, count)| ("Repaired", format!("{count} {kind}"))));
    let problem = |fault: &status::Fault| format!("{}: {} ({})", fault.object, fault.message, fault.reason);
    rows.extend(status.problems.iter().map(|fault| ("Problem", problem(fault))));
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| vec![if name.is_empty() { String::new() } else { format!("{name}:") }, value])
        .collect();
    table(&rows)
}

fn describe_half(half: &HalfStatus) -> String {
    match (&half.error, half.programmed_seconds_ago, half.took_milliseconds) {
        (Some(error), _, _) => {
            let (seconds, attempts) = (half.failing_for_seconds.unwrap_or_default(), half.attempts);
            format!("failing for {}, {attempts} attempts: {error}", age(seconds))
        }
        (None, Some(seconds), Some(took)) => format!("programmed {} ago in {took:.1} ms", age(seconds)),
        _ if half.listed => "not programmed yet".to_owned(),
        _ => "waits for the cluster's state".to_owned(),
    }
}

/// Columns as wide as their longest value, three blanks apart; nothing behind the last.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|value| value.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(value, width)| format!("{value:<width$}")).collect();
        text.push_str(padded.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn list(values: &[impl ToString]) -> String {
    or_none(&values.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
}

/// As kubectl shortens ages (HumanDuration): one unit, or two while the first is small.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |first: u64, unit: &str, second: u64, small: &str| match second {
        0 => format!("{first}{unit}"),
        second => format!("{first}{unit}{second}{small}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            subnets: vec!["10.244.2.0/24".parse().unwrap(), "fd00:0:0:2::/64".parse().unwrap()],
            backend: "vxlan".to_owned(),
            underlay: vec!["192.0.2.2".parse().unwrap()],
            macs: vec!["0a:00:00:00:00:02".to_owned()],
            mtu: Some(1450),
            programmed_seconds_ago: Some(75),
            error: None,
        }
    }

    #[test]
    fn x5_nodes_are_a_table_as_kubectls() {
        let broken = NodeStatus {
            subnets: Vec::new(),
            backend: String::new(),
            underlay: Vec::new(),
            mtu: None,
            programmed_seconds_ago: None,
            error: Some("cannot set route: refused".to_owned()),
            ..peer("node-30")
        };
        let expected = "\
NAME      SUBNET                          BACKEND   VIA         MTU      AGE      STATUS
node-2    10.244.2.0/24,fd00:0:0:2::/64   vxlan     192.0.2.2   1450     75s      Programmed
node-30   <none>                          <none>    <none>      <none>   <none>   cannot set route: refused
";
        assert_eq!(node_table(&[peer("node-2"), broken], false), expected);
        let wide = node_table(&[peer("node-2")], true);
        assert!(wide.contains("VIA         MAC                 MTU"), "{wide}");
        assert!(wide.contains("0a:00:00:00:00:02"), "{wide}");
    }

    #[test]
    fn x5_ages_are_as_kubectls() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (601, "10m"),
            (10_860, "3h1m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
