//! `cni`: how long a pod waits for its network, and how long its removal takes, beside the standard plugins.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podway_testkit::{Host, Lab, Node, binary, reference, require_root};
use serde_json::{Value, json};

use crate::machine;
use crate::progress::during;
use crate::table::Table;

/// Where `--save` writes, from the repository's root.
const PAGE: &str = "docs/benchmarks/cni.md";

/// Enough for a 99th percentile that one slow call does not make.
const ROUNDS: usize = 100;
/// With duplicate address detection, an ADD of some chains takes seconds.
const DUAL_STACK_ROUNDS: usize = 20;
/// Pods of the same chain that are there already: nearly as many as a kubelet takes by default.
const OTHERS: usize = 100;

/// The plugins in one run; podway first, the ratios' base.
const CHAINS: [&[&str]; 5] =
    [&["podway"], &["podway", "portmap"], &["ptp"], &["ptp", "portmap"], &["bridge", "portmap"]];

/// Measures, prints, and writes the page if `save`.
pub(crate) fn run(save: bool) -> Result<()> {
    require_root()?;
    let mut report = String::new();
    for case in [
        Case { families: Families::V4, others: 0, rounds: ROUNDS },
        Case { families: Families::V4, others: OTHERS, rounds: ROUNDS },
        Case { families: Families::Both, others: 0, rounds: DUAL_STACK_ROUNDS },
    ] {
        let table = case.measure()?;
        println!("{table}");
        report += &format!("{table}\n");
    }
    if save {
        let folder = Path::new(PAGE).parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(PAGE, page(&report)).with_context(|| format!("write {PAGE}"))?;
        println!("written to {PAGE}");
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Families {
    V4,
    Both,
}

/// The routes of a pod behind ptp, by family.
const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// What flannel's CNI plugin has the bridge route, beside the default route that the bridge makes itself.
const POD_NETWORKS: [&str; 2] = ["10.77.0.0/16", "fd77::/48"];

/// One table.
#[derive(Debug, Clone, Copy)]
struct Case {
    families: Families,
    others: usize,
    rounds: usize,
}

/// A chain of plugins with a subnet and reservations of its own.
struct Chain {
    name: String,
    plugins: Vec<Value>,
}

/// How long calls took, unsorted.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Case {
    /// The chains take turns, so that a busy moment meets all of them.
    fn measure(self) -> Result<Table> {
        let lab = Lab::new("bench-cni")?;
        let node = lab.node("node-1")?;
        let bin = plugins(&node)?;
        let chains: Vec<Chain> = (1..)
            .zip(CHAINS)
            .map(|(number, kinds)| self.chain(&node, number, kinds))
            .collect::<Result<_>>()?;
        during(&format!("{self}: {} pods of each chain", self.others), || {
            for (number, chain) in chains.iter().enumerate() {
                for other in 0..self.others {
                    let pod = self.sandbox(&node, &format!("other-{number}-{other}"))?;
                    Attachment { bin: &bin, pod: &pod }.add(&node, chain)?;
                }
            }
            anyhow::Ok(())
        })?;
        let mut times: Vec<[Times; 2]> = chains.iter().map(|_| Default::default()).collect();
        let pod = self.sandbox(&node, "pod")?;
        during(&format!("{self}: {} rounds", self.rounds), || {
            for _ in 0..self.rounds {
                for (chain, [add, del]) in chains.iter().zip(&mut times) {
                    let attachment = Attachment { bin: &bin, pod: &pod };
                    let (result, time) = attachment.add(&node, chain)?;
                    add.0.push(time);
                    del.0.push(attachment.del(&node, chain, &result)?);
                }
            }
            anyhow::Ok(())
        })?;
        Ok(self.table(&chains, times))
    }

    fn table(self, chains: &[Chain], times: Vec<[Times; 2]>) -> Table {
        let title = self.to_string();
        let heading = [title.as_str(), "ADD p50, ms", "p99", "ratio", "DEL p50, ms", "p99", "ratio"];
        let mut table = Table::new(&heading, 1);
        let mut base: Option<[Duration; 2]> = None;
        for (chain, [add, del]) in chains.iter().zip(times) {
            let medians = [add.percentile(50), del.percentile(50)];
            let [add_base, del_base] = *base.get_or_insert(medians);
            let ratio =
                |mine: Duration, base: Duration| format!("{:.2}", mine.as_secs_f64() / base.as_secs_f64());
            table.row([
                chain.name.clone(),
                milliseconds(medians[0]),
                milliseconds(add.percentile(99)),
                ratio(medians[0], add_base),
                milliseconds(medians[1]),
                milliseconds(del.percentile(99)),
                ratio(medians[1], del_base),
            ]);
        }
        table
    }

    /// With two families, new devices look for duplicate addresses, as they do on a node.
    fn sandbox(self, node: &Node, name: &str) -> Result<Host> {
        let pod = node.sandbox(name)?;
        if self.families == Families::Both {
            pod.sysctl("net.ipv6.conf.default.accept_dad", "1")?;
        }
        Ok(pod)
    }

    fn chain(self, node: &Node, number: u8, kinds: &[&str]) -> Result<Chain> {
        if self.families == Families::Both {
            node.sysctl("net.ipv6.conf.default.accept_dad", "1")?;
        }
        let folder = node.folder()?.join(format!("chain-{number}"));
        fs::create_dir_all(&folder)?;
        let plugins = kinds.iter().map(|kind| {
            Ok(match *kind {
                "podway" => self.podway(&folder, number)?,
                "ptp" => json!({ "type": "ptp", "mtu": 1450, "ipam": self.host_local(&folder, number, EVERYWHERE) }),
                "bridge" => json!({
                    "type": "bridge", "bridge": format!("cni{number}"), "mtu": 1450, "isGateway": true,
                    "isDefaultGateway": true, "hairpinMode": true, "ipam": self.host_local(&folder, number, POD_NETWORKS),
                }),
                other => json!({ "type": other }),
            })
        });
        let name =
            kinds.join(" + ").replace("ptp", "ptp + host-local").replace("bridge", "bridge + host-local");
        Ok(Chain { name, plugins: plugins.collect::<Result<_>>()? })
    }

    fn podway(self, folder: &Path, number: u8) -> Result<Value> {
        let mut env = format!("FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.{number}.1/24\n");
        if self.families == Families::Both {
            env += &format!("FLANNEL_IPV6_NETWORK=fd77::/48\nFLANNEL_IPV6_SUBNET=fd77:0:0:{number}::1/64\n");
        }
        env += "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let subnet_file = folder.join("subnet.env");
        fs::write(&subnet_file, env)?;
        Ok(json!({ "type": "podway", "subnetFile": subnet_file, "dataDir": folder }))
    }

    fn host_local(self, folder: &Path, number: u8, to: [&str; 2]) -> Value {
        let mut ranges = vec![json!([{ "subnet": format!("10.77.{number}.0/24") }])];
        let mut routes = vec![json!({ "dst": to[0] })];
        if self.families == Families::Both {
            ranges.push(json!([{ "subnet": format!("fd77:0:0:{number}::/64") }]));
            routes.push(json!({ "dst": to[1] }));
        }
        json!({ "type": "host-local", "dataDir": folder, "ranges": ranges, "routes": routes })
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let families = match self.families {
            Families::V4 => "IPv4",
            Families::Both => "IPv4 and IPv6",
        };
        write!(f, "{families}, {} pods there", self.others)
    }
}

/// A pod, and where the plugins are.
struct Attachment<'a> {
    bin: &'a Path,
    pod: &'a Host,
}

impl Attachment<'_> {
    /// The last plugin's result, and the time that all calls took, process starts included.
    fn add(&self, node: &Node, chain: &Chain) -> Result<(Value, Duration)> {
        node.enter(|| {
            let start = Instant::now();
            let mut result = Value::Null;
            for plugin in &chain.plugins {
                result = self.call("ADD", plugin, &result)?;
            }
            Ok((result, start.elapsed()))
        })?
    }

    fn del(&self, node: &Node, chain: &Chain, result: &Value) -> Result<Duration> {
        node.enter(|| {
            let start = Instant::now();
            for plugin in chain.plugins.iter().rev() {
                self.call("DEL", plugin, result)?;
            }
            Ok(start.elapsed())
        })?
    }

    /// One call as libcni makes it.
    fn call(&self, verb: &str, plugin: &Value, previous: &Value) -> Result<Value> {
        let mut config = plugin.clone();
        (config["cniVersion"], config["name"]) = (json!("1.0.0"), json!("bench"));
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().unwrap_or_default();
        let mut child = Command::new(self.bin.join(kind))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", self.bin)
            .env("CNI_CONTAINERID", self.pod.name())
            .env("CNI_NETNS", Path::new("/run/netns").join(self.pod.netns()))
            .env("CNI_IFNAME", "eth0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {kind}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{verb} {kind}: {}", String::from_utf8_lossy(&output.stdout));
        }
        Ok(if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout)? })
    }
}

impl Times {
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(index).copied().unwrap_or_default()
    }
}

/// One folder for all plugins, as on a node.
fn plugins(node: &Node) -> Result<PathBuf> {
    let bin = node.folder()?.join("bin");
    fs::create_dir_all(&bin)?;
    std::os::unix::fs::symlink(binary("podway")?, bin.join("podway"))?;
    for plugin in ["ptp", "bridge", "host-local", "portmap"] {
        std::os::unix::fs::symlink(reference(plugin)?, bin.join(plugin))?;
    }
    Ok(bin)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

fn page(report: &str) -> String {
    let built = if cfg!(debug_assertions) { " podway was not built for release." } else { "" };
    format!(
        "# The CNI plugin\n\nWritten by `cargo xtask bench cni --save` on: {}.{built}\n\n{report}\n\
         Every plugin of a chain is called as libcni calls it: a process for each, host-local by ptp and bridge. Times \
         are of whole chains, process starts included, over {ROUNDS} rounds ({DUAL_STACK_ROUNDS} with two families) in \
         which the chains take turns; ratios are of medians, to podway's. portmap has no hostPort to map, as most pods \
         have none. With two families, devices look for duplicate addresses as the kernel does by default: ptp and \
         bridge wait until that is over, podway gives an address that nobody else can have and does not wait.\n",
        machine::describe()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = Times([3, 1, 2, 100].map(Duration::from_millis).to_vec());
        assert_eq!(times.percentile(50), Duration::from_millis(2));
        assert_eq!(times.percentile(99), Duration::from_millis(100));
        assert_eq!(Times::default().percentile(50), Duration::ZERO);
    }
}
