//! A node on which podway is the CNI plugin, called as a container runtime calls it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podway_testkit::{Command, Host, Lab, Node, Output, binary, reference};
use serde_json::{Value, json};

/// The standard plugins that chains here may name.
const STANDARD_PLUGINS: [&str; 6] = ["portmap", "bandwidth", "tuning", "ptp", "bridge", "host-local"];

/// A node with a subnet file and a folder of plugins; no daemon runs on it.
#[derive(Debug)]
pub struct CniNode {
    node: Node,
    folder: PathBuf,
}

/// What a call answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether the exit status was 0.
    pub success: bool,
    /// Standard output; null if it was empty.
    pub json: Value,
}

impl CniNode {
    /// `node-1` of the lab, with 10.77.1.0/24 and fd77:0:0:1::/64.
    pub fn new(lab: &Lab) -> Result<Self> {
        let node = lab.node("node-1")?;
        let cni = Self { folder: node.folder()?, node };
        for folder in ["bin", "net.d", "cache"] {
            fs::create_dir_all(cni.folder.join(folder))?;
        }
        symlink(binary("podway")?, cni.folder.join("bin/podway"))?;
        for plugin in STANDARD_PLUGINS {
            symlink(reference(plugin)?, cni.folder.join("bin").join(plugin))?;
        }
        cni.subnets(&["10.77.1.1/24", "fd77:0:0:1::1/64"])?;
        // As it is once a node has had a pod: tests compare what the kernel holds before and after.
        cni.node.sysctl("net.ipv4.ip_forward", "1")?;
        cni.node.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        Ok(cni)
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Writes the node's subnets, each as its gateway with the prefix length.
    pub fn subnets(&self, gateways: &[&str]) -> Result<()> {
        let mut text = String::new();
        for gateway in gateways {
            text += &match gateway.contains(':') {
                true => format!("FLANNEL_IPV6_NETWORK=fd77::/48\nFLANNEL_IPV6_SUBNET={gateway}\n"),
                false => format!("FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET={gateway}\n"),
            };
        }
        text += "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        Ok(fs::write(self.subnet_file(), text)?)
    }

    /// The file with the node's subnets.
    pub fn subnet_file(&self) -> PathBuf {
        self.folder.join("subnet.env")
    }

    /// Where host-local keeps its reservations.
    pub fn host_local(&self) -> PathBuf {
        self.folder.join("host-local")
    }

    /// podway's configuration in a chain of this version, without what libcni adds.
    pub fn plugin(&self) -> Value {
        json!({
            "type": "podway",
            "subnetFile": self.subnet_file(),
            "dataDir": self.folder.join("reservations"),
            "hostLocalDir": self.host_local(),
        })
    }

    /// podway's configuration as the plugin gets it, with these fields on top.
    pub fn config(&self, fields: Value) -> Value {
        let mut config = self.plugin();
        (config["cniVersion"], config["name"]) = (json!("1.1.0"), json!("podway"));
        if let Value::Object(fields) = fields {
            config.as_object_mut().into_iter().for_each(|config| config.extend(fields.clone()));
        }
        config
    }

    /// A call about a pod, not yet made.
    pub fn command(&self, verb: &str, pod: &Host, config: &Value) -> Result<Command> {
        self.plugin_command(verb, "podway", pod, config)
    }

    /// A call about a pod.
    pub fn call(&self, verb: &str, pod: &Host, config: &Value) -> Result<Answer> {
        Answer::of(self.command(verb, pod, config)?.output()?)
    }

    /// A call about no pod: GC, STATUS, VERSION.
    pub fn ask(&self, verb: &str, config: &Value) -> Result<Answer> {
        let command = self.node.command(self.folder.join("bin/podway")).env("CNI_COMMAND", verb);
        Answer::of(command.env("CNI_PATH", self.folder.join("bin")).stdin(config.to_string()).output()?)
    }

    /// Attaches a pod; fails with the plugin's error.
    pub fn add(&self, pod: &Host) -> Result<Answer> {
        self.call("ADD", pod, &self.config(Value::Null))?.succeeded("ADD")
    }

    /// Detaches a pod; fails with the plugin's error.
    pub fn del(&self, pod: &Host) -> Result<()> {
        self.call("DEL", pod, &self.config(Value::Null))?.succeeded("DEL").map(|_| ())
    }

    /// GC of all attachments but those of these pods.
    pub fn gc(&self, valid: &[&Host]) -> Result<Answer> {
        let valid: Vec<Value> =
            valid.iter().map(|pod| json!({ "containerID": pod.name(), "ifname": "eth0" })).collect();
        self.ask(
            "GC",
            &self.config(json!({ "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid })),
        )
    }

    /// Calls the plugins of a chain one after the other, as libcni does: each gets the result of the one before; DEL goes
    /// backwards, and CHECK and DEL get the last result of the ADD in `previous`.
    pub fn chain(&self, verb: &str, pod: &Host, plugins: &[Value], previous: &Value) -> Result<Answer> {
        let mut answer = Answer { success: true, json: previous.clone() };
        let mut order: Vec<&Value> = plugins.iter().collect();
        if verb == "DEL" {
            order.reverse();
        }
        for plugin in order {
            let mut config = plugin.clone();
            (config["cniVersion"], config["name"]) = (json!("1.0.0"), json!("podway"));
            let result = if verb == "ADD" { &answer.json } else { previous };
            if !result.is_null() {
                config["prevResult"] = result.clone();
            }
            let kind = plugin["type"].as_str().unwrap_or_default();
            answer = Answer::of(self.plugin_command(verb, kind, pod, &config)?.output()?)?;
            if !answer.success {
                bail!("{verb} {kind}: {}", answer.json);
            }
        }
        Ok(answer)
    }

    /// Writes the network configuration that [`CniNode::cnitool`] finds.
    pub fn conflist(&self, list: &Value) -> Result<()> {
        Ok(fs::write(self.folder.join("net.d/10-podway.conflist"), list.to_string())?)
    }

    /// The specification's own tool over libcni, whose cache is the node's own. `capabilities` are its CAP_ARGS.
    pub fn cnitool(&self, verb: &str, pod: &Host, capabilities: &Value) -> Result<Output> {
        let script = "mkdir -p /var/lib/cni && mount --bind \"$1\" /var/lib/cni && shift && exec \"$@\"";
        let command = self.node.command("unshare").args(["--mount", "sh", "-c", script, "sh"]);
        let command = command.arg(self.folder.join("cache")).arg(reference("cnitool")?);
        let command = command.args([verb, "podway", &netns(pod)]);
        let command =
            command.env("CNI_PATH", self.folder.join("bin")).env("NETCONFPATH", self.folder.join("net.d"));
        match capabilities {
            Value::Null => command.output(),
            some => command.env("CAP_ARGS", some.to_string()).output(),
        }
    }

    /// Every address that is reserved.
    pub fn reserved(&self) -> Result<BTreeSet<IpAddr>> {
        let mut addresses = BTreeSet::new();
        for entry in fs::read_dir(self.folder.join("reservations/podway"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let state: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
            for reservation in state["reserved"].as_array().context("no reservations")? {
                let held: Vec<IpAddr> = serde_json::from_value(reservation["addresses"].clone())?;
                addresses.extend(held);
            }
        }
        Ok(addresses)
    }

    fn plugin_command(&self, verb: &str, plugin: &str, pod: &Host, config: &Value) -> Result<Command> {
        let bin = self.folder.join("bin");
        let command = self.node.command(bin.join(plugin)).env("CNI_COMMAND", verb).env("CNI_PATH", &bin);
        let command = command.env("CNI_CONTAINERID", pod.name()).env("CNI_NETNS", netns(pod));
        Ok(command.env("CNI_IFNAME", "eth0").env("CNI_ARGS", "IgnoreUnknown=1").stdin(config.to_string()))
    }
}

impl Answer {
    /// Reads what a call said.
    pub fn of(output: Output) -> Result<Self> {
        let text = output.stdout.trim();
        let json =
            if text.is_empty() { Value::Null } else { serde_json::from_str(text).context(output.stdout)? };
        Ok(Self { success: output.status.success(), json })
    }

    /// Itself if it is a success.
    pub fn succeeded(self, what: &str) -> Result<Self> {
        if self.success { Ok(self) } else { bail!("{what}: {}", self.json) }
    }

    /// The specification's error number; 0 if it is no error.
    pub fn code(&self) -> u64 {
        self.json["code"].as_u64().unwrap_or_default()
    }

    /// The addresses of an ADD's result, without their prefix lengths.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.json["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        ips.iter().filter_map(address).collect()
    }

    /// The name of the pod's link on the node.
    pub fn link(&self) -> &str {
        self.json["interfaces"][0]["name"].as_str().unwrap_or_default()
    }
}

/// The path of a pod's network namespace.
pub fn netns(pod: &Host) -> String {
    format!("/run/netns/{}", pod.netns())
}

/// Opens a connection from a host and writes a byte to it.
pub fn reaches(from: &Host, to: impl Into<SocketAddr>, within: Duration) -> Result<()> {
    let to = to.into();
    let connect = || -> std::io::Result<()> { TcpStream::connect_timeout(&to, within)?.write_all(b"x") };
    from.enter(connect)?.with_context(|| format!("{} to {to}", from.name()))
}
