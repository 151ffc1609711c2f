//! `sizes`: the binary, and the daemon's memory at rest, beside kube-proxy's and flanneld's.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podway_testkit::{ControlPlane, Lab, Node, Process, binary, reference, require_root};
use serde_json::Value;

use crate::clusters::{self, DEMO, DEMO_POD_NETWORKS, ENDPOINTS, POD_NETWORK, SERVICES};
use crate::contenders::{self, PATIENCE, wait_until};
use crate::machine;
use crate::memory::Memory;
use crate::progress::during;
use crate::table::Table;

/// Where `--save` writes, from the repository's root.
const PAGE: &str = "docs/benchmarks/sizes.md";

/// From the last change until memory is read: Go returns what its collector freed within a few seconds.
const REST: Duration = Duration::from_secs(5);

/// Measures, prints, and writes the page if `save`.
pub(crate) fn run(save: bool) -> Result<()> {
    require_root()?;
    let mut measured = Measured::default();
    measured.directory()?;
    match reference("kube-apiserver") {
        Ok(_) => measured.api_server()?,
        Err(error) => {
            measured.notes.push(format!("Without a real API server, kube-proxy and flanneld: {error}."))
        }
    }
    let report = measured.report()?;
    println!("{report}");
    if save {
        let folder = Path::new(PAGE).parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(PAGE, page(&report)).with_context(|| format!("write {PAGE}"))?;
        println!("written to {PAGE}");
    }
    Ok(())
}

/// One process in one cluster.
struct Sample {
    program: &'static str,
    cluster: String,
    source: &'static str,
    memory: Memory,
}

#[derive(Default)]
struct Measured {
    samples: Vec<Sample>,
    notes: Vec<String>,
}

impl Measured {
    fn directory(&mut self) -> Result<()> {
        let lab = Lab::new("bench-sizes")?;
        let node = lab.node("node-1")?;
        let own = clusters::node(&node, 1);
        let empty = lab.folder("empty")?;
        empty.write("node.yaml", &own)?;
        let demo = lab.folder("demo")?;
        for (name, text) in DEMO {
            demo.write(name, text)?;
        }
        let large = lab.folder("large")?;
        large.write("node.yaml", &own)?;
        large.write("services.yaml", clusters::services().collect::<String>())?;
        let small =
            format!("{} Nodes, {} Services (the demo's)", count("kind: Node\n"), count("kind: Service\n"));
        let own_range = format!("[{POD_NETWORK}]");
        for (folder, pod_networks, cluster) in [
            (&empty, &own_range, "1 Node, no Services".to_owned()),
            (&demo, &DEMO_POD_NETWORKS.to_owned(), small),
            (&large, &own_range, format!("1 Node, {}", services_in_words())),
        ] {
            let memory = during(&format!("podway, {cluster}, from a folder"), || {
                let source = format!("source.directory.path={}", folder.path().display());
                at_rest(&podway(&node, &source, pod_networks)?)
            })?;
            self.samples.push(Sample { program: "podway", cluster, source: "folder", memory });
            contenders::podway_cleanup(&node)?;
        }
        Ok(())
    }

    /// Each program on a node of its own.
    fn api_server(&mut self) -> Result<()> {
        let lab = Lab::new("bench-sizes-kube")?;
        let cluster = format!("3 Nodes, {}", services_in_words());
        let plane =
            during(&format!("starting a kube-apiserver with {}", services_in_words()), || -> Result<_> {
                let plane = lab.control_plane()?;
                plane.apply(contenders::CLAIMS)?;
                clusters::services().try_for_each(|service| plane.apply(service))?;
                Ok(plane)
            })?;
        let nodes = (1..=3).map(|number| -> Result<Node> {
            let node = lab.node(&format!("node-{number}"))?;
            plane.apply(clusters::node(&node, number))?;
            Ok(node)
        });
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        for (number, program) in ["podway", "kube-proxy", "flanneld"].into_iter().enumerate() {
            let memory = during(&format!("{program}, {cluster}, from a kube-apiserver"), || {
                let node = &nodes[number];
                let process = match program {
                    "podway" => podway(node, &contenders::kubeconfig(&plane), &format!("[{POD_NETWORK}]"))?,
                    "kube-proxy" => kube_proxy(node, &plane)?,
                    _ => flanneld(node, &plane)?,
                };
                at_rest(&process)
            })?;
            self.samples.push(Sample { program, cluster: cluster.clone(), source: "kube-apiserver", memory });
        }
        Ok(())
    }

    fn report(&self) -> Result<String> {
        let mut binaries = Table::new(&["binary", "MB"], 1);
        let built = if cfg!(debug_assertions) { "podway (not built for release)" } else { "podway" };
        binaries.row([built.to_owned(), megabytes(size(&binary("podway")?)?)]);
        for name in ["kube-proxy", "flanneld"] {
            if let Ok(path) = reference(name) {
                binaries.row([name.to_owned(), megabytes(size(&path)?)]);
            }
        }
        let heading = ["memory at rest, MB", "cluster", "read from", "RSS", "anonymous", "PSS", "peak RSS"];
        let mut memory = Table::new(&heading, 3);
        for Sample { program, cluster, source, memory: of } in &self.samples {
            let text = [*program, cluster.as_str(), *source].map(str::to_owned);
            let numbers = [of.resident, of.anonymous, of.proportional, of.peak].map(megabytes);
            memory.row(text.into_iter().chain(numbers));
        }
        let notes: String = self.notes.iter().map(|note| format!("\n{note}\n")).collect();
        Ok(format!("{binaries}\n{memory}{notes}"))
    }
}

/// Waits until the process has come to rest.
fn at_rest(process: &Process) -> Result<Memory> {
    thread::sleep(REST);
    if !process.is_running() {
        bail!("it has ended\n{}", process.log());
    }
    Memory::of(process.id())
}

fn podway(node: &Node, source: &str, pod_networks: &str) -> Result<Process> {
    let process = contenders::podway(node, &[source.to_owned(), pod_networks_field(pod_networks)])?;
    process.wait_for_log("pod network programmed", PATIENCE)?;
    process.wait_for_log("Services", PATIENCE)?;
    Ok(process)
}

fn pod_networks_field(pod_networks: &str) -> String {
    format!("network.podNetworks={pod_networks}")
}

/// In nftables mode, as podway.
fn kube_proxy(node: &Node, plane: &ControlPlane) -> Result<Process> {
    let command = node.command(reference("kube-proxy")?).args([
        format!("--kubeconfig={}", plane.kubeconfig().display()),
        format!("--hostname-override={}", node.name()),
        format!("--cluster-cidr={POD_NETWORK}"),
        "--proxy-mode=nftables".to_owned(),
        // Writable in the machine's own network namespace only.
        "--conntrack-max-per-core=0".to_owned(),
    ]);
    let process = command.start("kube-proxy")?;
    wait_until(&process, "kube-proxy's Services", || {
        let list = ["-j", "list", "map", "ip", "kube-proxy", "service-ips"];
        let listed: Value = serde_json::from_str(&node.command("nft").args(list).output()?.stdout)?;
        let objects = listed["nftables"].as_array().context("no list")?;
        let elements = objects.iter().find_map(|object| object["map"]["elem"].as_array()).map_or(0, Vec::len);
        if elements < usize::from(SERVICES) { bail!("{elements} of {SERVICES}") } else { Ok(()) }
    })?;
    Ok(process)
}

fn flanneld(node: &Node, plane: &ControlPlane) -> Result<Process> {
    let process = contenders::flanneld(node, plane, POD_NETWORK)?;
    let subnet_file = contenders::subnet_file(node)?;
    wait_until(&process, "flanneld's subnet file", || match subnet_file.exists() {
        true => Ok(()),
        false => bail!("{} is not there", subnet_file.display()),
    })?;
    Ok(process)
}

fn services_in_words() -> String {
    format!("{SERVICES} Services x {ENDPOINTS} endpoints")
}

fn count(kind: &str) -> usize {
    DEMO.iter().map(|(_, text)| text.matches(kind).count()).sum()
}

fn size(path: &PathBuf) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

fn page(report: &str) -> String {
    format!(
        "# Sizes\n\nWritten by `cargo xtask bench sizes --save` on: {}.\n\n{report}\n\
         Memory is read {} s after the last change. RSS counts every page in memory, the program's own code and shared \
         libraries included; anonymous is heap and stacks, the part that grows with the cluster; in PSS a shared page \
         counts by its share. podway and kube-proxy run `nft` as a child for moments, which is not counted. Services are \
         IPv4 with one TCP port. kube-proxy runs in nftables mode; podway does the work of both others.\n",
        machine::describe(),
        REST.as_secs()
    )
}
