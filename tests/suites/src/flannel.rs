//! flannel and podway in one cluster: the real flanneld, and podway in its place.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;
use podway_testkit::{
    Command, ControlPlane, Lab, POD_CIDRS, Pod, Process, binary, manifests, reference, within,
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Dataplane, Member, Source};
use crate::traffic::SOON;

/// Who runs the pod network of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// The real flanneld.
    Flanneld,
    /// podway, by flannel's command line.
    PodwayFlanneld,
    /// podway, by its own.
    PodwayRun,
}

/// How flannel masquerades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// By iptables.
    Iptables,
    /// By nft.
    Nftables,
}

/// Of which families pods have addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4, as in flannel's own manifest.
    Ipv4,
    /// IPv4 and IPv6.
    Both,
}

/// A cluster over an API server whose controller manager gives Nodes their subnets; nodes run flannel or podway.
#[derive(Debug)]
pub struct FlannelCluster<'lab> {
    cluster: Cluster<'lab>,
    rules: Rules,
    families: Families,
}

/// A node of such a cluster.
#[derive(Debug)]
pub struct FlannelNode {
    member: Member,
    subnets: Vec<IpNet>,
    next_pod: Cell<usize>,
}

impl<'lab> FlannelCluster<'lab> {
    /// A cluster without nodes.
    pub fn open(lab: &'lab Lab, rules: Rules, families: Families) -> Result<Self> {
        let cluster = Cluster::over(lab, Source::Kube)?;
        cluster.control_plane().allocate_pod_cidrs()?;
        Ok(Self { cluster, rules, families })
    }

    /// The API server.
    pub fn plane(&self) -> &ControlPlane {
        self.cluster.control_plane()
    }

    /// Registers `node-NUMBER` as its kubelet does, and waits for its subnets.
    pub fn node(&self, number: u8) -> Result<FlannelNode> {
        let member = self.cluster.unpublished_member(number)?;
        // flanneld 0.28.4 panics on a Node without any annotation; a kubelet always writes this one.
        let annotation = "/metadata/annotations/volumes.kubernetes.io~1controller-managed-attach-detach";
        let node = manifests::node(member.name()).internal_ips(member.addresses()).set(annotation, "true");
        self.cluster.publish(member.name(), node)?;
        let what = format!("subnets of {}", member.name());
        let subnets = within(2 * SOON, &what, || {
            let subnets: Vec<IpNet> =
                serde_json::from_value(self.object(member.name())?["spec"]["podCIDRs"].clone())?;
            Ok::<_, anyhow::Error>(subnets)
        })?;
        let subnets = subnets.into_iter().take(self.families.count()).collect();
        Ok(FlannelNode { member, subnets, next_pod: Cell::new(0) })
    }

    /// Deletes the Node, and removes the machine with all that runs there.
    pub fn leave(&self, node: FlannelNode) -> Result<()> {
        self.cluster.withdraw(node.name())?;
        node.member.into_node().remove()
    }

    /// Starts who is to run the pod network, and returns when it stands.
    pub fn run(&self, node: &FlannelNode, runner: Runner) -> Result<Process> {
        match runner {
            Runner::Flanneld => {
                let process = self.line(node, reference("flanneld")?)?.start("flanneld")?;
                process.wait_for_log("Running backend.", 2 * SOON)?;
                Ok(process)
            }
            Runner::PodwayFlanneld => {
                let process = self.podway_flanneld(node)?.start("podway-flanneld")?;
                wait_until_network_stands(&process)?;
                Ok(process)
            }
            Runner::PodwayRun => {
                let ranges = self.ranges().iter().map(|range| format!("{range:?}")).collect::<Vec<_>>();
                let settings = [
                    "services.enabled=false".to_owned(),
                    "network.interface=eth0".to_owned(),
                    format!("network.podNetworks=[{}]", ranges.join(",")),
                ];
                let settings = settings.iter().flat_map(|setting| ["--set", setting]);
                let command = node.podway_command("run", Dataplane::Nftables)?.args(settings);
                let process = command.start("podway")?;
                wait_until_network_stands(&process)?;
                Ok(process)
            }
        }
    }

    /// podway by flannel's command line, and what several on one machine must have for themselves.
    pub fn podway_flanneld(&self, node: &FlannelNode) -> Result<Command> {
        let link = node.folder()?.join("flanneld");
        if !link.exists() {
            std::os::unix::fs::symlink(binary("podway")?, &link)?;
        }
        let command = self.line(node, link)?;
        Ok(command
            .env("PODWAY_STATUS_SOCKET", node.folder()?.join("podway.sock"))
            .env("PODWAY_MACHINE_ID_FILE", node.machine_id_file()?)
            .env("PODWAY_LOG_LEVEL", "debug"))
    }

    /// The line of flannel's own manifest, with the API server and files of this lab.
    fn line(&self, node: &FlannelNode, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let config = node.folder()?.join("net-conf.json");
        fs::write(&config, self.net_conf()).with_context(|| format!("write {}", config.display()))?;
        Ok(node.command(program).env("NODE_NAME", node.name()).args([
            "--ip-masq".to_owned(),
            "--kube-subnet-mgr".to_owned(),
            "--iface=eth0".to_owned(),
            format!("--kubeconfig-file={}", self.plane().kubeconfig().display()),
            format!("--net-config-path={}", config.display()),
            format!("--subnet-file={}", node.subnet_file()?.display()),
        ]))
    }

    fn net_conf(&self) -> String {
        let mut config = json!({
            "Network": self.ranges()[0],
            "EnableNFTables": self.rules == Rules::Nftables,
            "Backend": { "Type": "vxlan" },
        });
        if let Some(range) = self.ranges().get(1) {
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = (*range).into();
        }
        config.to_string()
    }

    /// The ranges of all pods, IPv4 first.
    fn ranges(&self) -> Vec<&'static str> {
        POD_CIDRS.split(',').take(self.families.count()).collect()
    }

    /// flannel's annotations of a Node, keys without the prefix.
    pub fn annotations(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let node = self.object(name)?;
        let annotations = node["metadata"]["annotations"].as_object().context("no annotations")?;
        let flannels = annotations.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix("flannel.alpha.coreos.com/")?.to_owned(), value.as_str()?.to_owned()))
        });
        Ok(flannels.collect())
    }

    /// The Node as the API server has it.
    pub fn object(&self, name: &str) -> Result<Value> {
        self.plane().get(&format!("/api/v1/nodes/{name}"))
    }
}

impl Families {
    fn count(self) -> usize {
        match self {
            Self::Ipv4 => 1,
            Self::Both => 2,
        }
    }
}

impl FlannelNode {
    /// Its subnets as the controller manager gave them.
    pub fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    /// Adds a pod with the next address of each subnet.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let place = self.next_pod.get();
        self.next_pod.set(place + 1);
        // The network address is the VXLAN link's, the first one the gateway.
        let addresses = self.subnets.iter().filter_map(|subnet| {
            let pods = subnet.hosts().filter(|address| *address != subnet.network());
            pods.skip(1).nth(place)
        });
        let pod = (*self.member).pod(name, addresses)?;
        crate::cluster::await_carrier(&pod)?;
        crate::cluster::await_carrier(self)?;
        Ok(pod)
    }

    /// A VXLAN link as the kernel describes it in JSON; null if there is none.
    pub fn link(&self, name: &str) -> Result<Value> {
        let output = self.command("ip").args(["-json", "-details", "link", "show", name]).output()?;
        if !output.status.success() {
            return Ok(Value::Null);
        }
        let mut listed: Value = serde_json::from_str(&output.stdout)?;
        Ok(listed[0].take())
    }

    /// What flannel would write for the links that stand here, byte for byte.
    pub fn expected_annotations(&self) -> Result<BTreeMap<String, String>> {
        let of = |link: &str| -> Result<String> {
            let link = self.link(link)?;
            let mac = link["address"].as_str().context("a link without address")?;
            Ok(format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#))
        };
        let mut annotations = vec![
            ("backend-data", of("flannel.1")?),
            ("backend-type", "vxlan".to_owned()),
            ("kube-subnet-manager", "true".to_owned()),
            ("public-ip", self.ipv4().to_string()),
        ];
        if self.subnets.len() > 1 {
            annotations.push(("backend-v6-data", of("flannel-v6.1")?));
            annotations.push(("public-ipv6", self.ipv6().to_string()));
        }
        Ok(annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// What `subnet.env` says now.
    pub fn subnet_env(&self) -> Result<String> {
        let path = self.subnet_file()?;
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

impl Deref for FlannelNode {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.member
    }
}

/// Waits until a podway has said that the kernel holds its pod network.
pub fn wait_until_network_stands(podway: &Process) -> Result<()> {
    within(2 * SOON, "podway's pod network stands", || {
        let log = podway.log();
        if !podway.is_running() {
            return Ok(Err(anyhow!("podway has ended\n{log}")));
        }
        let stands =
            ["pod network programmed", "pod network stands as planned"].iter().any(|said| log.contains(said));
        if stands { Ok(Ok(())) } else { Err(log) }
    })?
}

/// Stops a daemon as its kubelet does; fails unless it says that all is well.
pub fn stop(daemon: &Process) -> Result<()> {
    match daemon.stop()? {
        status if status.success() => Ok(()),
        status => bail!("{status}\n{}", daemon.log()),
    }
}
