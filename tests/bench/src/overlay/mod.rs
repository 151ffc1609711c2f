//! `overlay`: how fast peers are programmed, what a change costs, and what the data path carries, beside flanneld and
//! beside a VXLAN device that was set up by hand.

mod change;
mod data_path;
mod peers;
mod programming;
mod standing;
mod usage;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use podway_testkit::{Lab, reference, require_root};

use self::data_path::DataPath;
use self::peers::Peers;
use crate::machine;
use crate::progress::during;
use crate::table::Table;

/// Where `--save` writes, from the repository's root.
const PAGE: &str = "docs/benchmarks/overlay.md";

/// Clusters by their number of peers. flanneld is started at every size, and given [`crate::contenders::PATIENCE`].
const SIZES: [u16; 3] = [250, 1000, 5000];

/// A half of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Peers, changes and memory.
    Peers,
    /// What the data path carries.
    Path,
}

/// Measures, prints, and writes the page if `save`; or one part of it.
pub(crate) fn run(save: bool, only: Option<Part>) -> Result<()> {
    require_root()?;
    for name in ["kube-apiserver", "etcd", "flanneld"] {
        reference(name)?;
    }
    let mut report = String::new();
    if only != Some(Part::Path) {
        report = format!("{}\n", control(SIZES)?);
        println!("{report}");
    }
    if only != Some(Part::Peers) {
        let table = data()?;
        println!("{table}");
        report += &table;
    }
    if save {
        let folder = Path::new(PAGE).parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(PAGE, page(&report)).with_context(|| format!("write {PAGE}"))?;
        println!("written to {PAGE}");
    }
    Ok(())
}

/// Peers from cold and warm, one change, memory and processor time, by size of the cluster.
fn control(sizes: impl IntoIterator<Item = u16>) -> Result<String> {
    let heading = [
        "peers",
        "daemon",
        "first to last, ms",
        "ratio",
        "start to last, ms",
        "ratio",
        "warm restart, ms",
        "change p50, ms",
        "p99, ms",
        "ahead",
        "CPU a change, ms",
        "RSS, MB",
        "CPU from start, s",
    ];
    let mut table = Table::new(&heading, 2);
    let lab = Lab::new("bench-overlay")?;
    let plane = during("starting a kube-apiserver", || lab.control_plane())?;
    plane.apply(crate::contenders::CLAIMS)?;
    let nodes = [("podway", lab.node("node-1")?), ("flanneld", lab.node("node-2")?)];
    let mut peers = Peers::new(&plane);
    for (number, (_, node)) in (1..).zip(&nodes) {
        plane.apply(peers::own_node(node, number))?;
    }
    for size in sizes {
        during(&format!("{size} Nodes into the API server"), || peers.grow_to(size))?;
        let mut podway = None;
        for (daemon, node) in &nodes {
            let title = format!("{daemon} with {size} peers");
            let measured = during(&title, || programming::measure(daemon, node, &plane, &peers))?;
            let base = podway.get_or_insert(measured);
            let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
            let ratio = |mine: Duration, theirs: Duration| {
                format!("{:.1}", mine.as_secs_f64() / theirs.as_secs_f64())
            };
            table.row([
                size.to_string(),
                (*daemon).to_owned(),
                ms(measured.spread),
                ratio(measured.spread, base.spread),
                ms(measured.cold),
                ratio(measured.cold, base.cold),
                ms(measured.warm),
                ms(measured.change.median),
                ms(measured.change.p99),
                measured.change.ahead.to_string(),
                format!("{:.2}", measured.change.processor.as_secs_f64() * 1e3),
                format!("{:.1}", measured.resident as f64 / 1e6),
                format!("{:.2}", measured.processor.as_secs_f64()),
            ]);
        }
    }
    Ok(table.to_string())
}

fn data() -> Result<String> {
    let mut path = during("two nodes each: bare VXLAN, podway, flannel", DataPath::new_measured)?;
    let mut table = Table::new(
        &["data path", "start to first packet, ms", "connections a second", "to bare", "Gbit/s", "to bare"],
        1,
    );
    let bare = path.rows.remove(0);
    let ratio = |value: f64, limit: f64| format!("{:.2}", value / limit);
    for row in [&bare].into_iter().chain(&path.rows) {
        table.row([
            row.name.to_owned(),
            row.first_packet.map_or("-".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1e3)),
            format!("{:.0}", row.connections),
            ratio(row.connections, bare.connections),
            format!("{:.2}", row.bits / 1e9),
            ratio(row.bits, bare.bits),
        ]);
    }
    Ok(table.to_string())
}

fn page(report: &str) -> String {
    let built = if cfg!(debug_assertions) { " podway was not built for release." } else { "" };
    format!(
        "# Pod network\n\nWritten by `cargo xtask bench overlay --save` on: {}.{built}\n\n{report}\n\
         Peers are Nodes in a real kube-apiserver, with podCIDRs and flannel's annotations; podway and flanneld each \
         run on a node of their own and see the same ones. *First to last* is the time from the first entry for any \
         peer, be it neighbour, FDB entry or route, until every peer has all three, as the kernel notifies of them; \
         *start to last* begins with the process. A *warm restart* is kill -9 and a start that finds everything in \
         place: until podway has compared all of it and says so, or until flanneld, which says nothing at its end, has \
         named the last peer, right before it writes that peer's entries once more. A *change* is the patch of one \
         peer's address: from the watch event, as a watcher beside the daemon receives it, until the kernel tells of \
         the new FDB entry, over {changes} patches one after the other. *Ahead* of them were in the kernel before \
         the watcher itself had its event; these count as 0 ms. Ratios are to \
         podway's row.\n\n\
         The data path joins two pods on two nodes: *bare* has the VXLAN device, one route, neighbour and FDB entry set \
         by hand and nothing else, so that its packets are not tracked as connections; podway (without its Services half) and \
         flannel run their daemons with masquerading on, which needs connection tracking, flannel's pods behind a \
         bridge as its CNI configuration has it, the others routed. Medians of interleaved rounds.\n",
        machine::describe(),
        changes = change::CHANGES,
    )
}
