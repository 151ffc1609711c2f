//! flannel and podway in one cluster: the real flanneld, and podway in its place.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;
use podway_testkit::{
    Command, ControlPlane, Etcd, EtcdKey, Lab, POD_CIDRS, Pod, Process, binary, manifests, reference, within,
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Dataplane, Member, Source};
use crate::traffic::SOON;

/// What flannel's keys in etcd begin with.
const PREFIX: &str = "/coreos.com/network";

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

/// Where nodes have their subnets from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subnets {
    /// From an API server, whose controller manager gives them to Nodes.
    Kube,
    /// From etcd, by leases.
    Etcd,
}

/// A cluster whose nodes run flannel or podway.
#[derive(Debug)]
pub struct FlannelCluster<'lab> {
    cluster: Cluster<'lab>,
    /// Where subnets are leased, unless Nodes have them.
    etcd: Option<Etcd>,
    rules: Rules,
    families: Families,
    backend: Value,
}

/// A node of such a cluster.
#[derive(Debug)]
pub struct FlannelNode {
    member: Member,
    subnets: RefCell<Vec<IpNet>>,
    next_pod: Cell<usize>,
}

impl<'lab> FlannelCluster<'lab> {
    /// A cluster without nodes over an API server.
    pub fn open(lab: &'lab Lab, rules: Rules, families: Families) -> Result<Self> {
        let cluster = Cluster::over(lab, Source::Kube)?;
        cluster.control_plane().allocate_pod_cidrs()?;
        Ok(Self { cluster, etcd: None, rules, families, backend: vxlan() })
    }

    /// A cluster without nodes over etcd alone.
    pub fn over_etcd(lab: &'lab Lab, rules: Rules, families: Families) -> Result<Self> {
        let etcd = lab.etcd()?;
        let cluster = Cluster::over(lab, Source::Directory)?;
        let leased = Self { cluster, etcd: None, rules, families, backend: vxlan() };
        etcd.put(&format!("{PREFIX}/config"), &leased.net_conf())?;
        Ok(Self { etcd: Some(etcd), ..leased })
    }

    /// Over either.
    pub fn over(lab: &'lab Lab, subnets: Subnets, rules: Rules) -> Result<Self> {
        match subnets {
            Subnets::Kube => Self::open(lab, rules, Families::Both),
            Subnets::Etcd => Self::over_etcd(lab, rules, Families::Both),
        }
    }

    /// The etcd that subnets are leased from. Panics over an API server.
    pub fn etcd(&self) -> &Etcd {
        self.etcd.as_ref().unwrap_or_else(|| panic!("subnets are not leased"))
    }

    /// With another backend than plain VXLAN.
    pub fn with_backend(self, backend: Value) -> Self {
        Self { backend, ..self }
    }

    /// The API server.
    pub fn plane(&self) -> &ControlPlane {
        self.cluster.control_plane()
    }

    /// Raises `node-NUMBER`. With an API server it is registered as its kubelet does it, and has its subnets.
    pub fn node(&self, number: u8) -> Result<FlannelNode> {
        let member = self.cluster.unpublished_member(number)?;
        let node = FlannelNode { member, subnets: RefCell::default(), next_pod: Cell::new(0) };
        if self.etcd.is_none() {
            self.register(&node)?;
        }
        Ok(node)
    }

    fn register(&self, node: &FlannelNode) -> Result<()> {
        // flanneld 0.28.4 panics on a Node without any annotation; a kubelet always writes this one.
        let annotation = "/metadata/annotations/volumes.kubernetes.io~1controller-managed-attach-detach";
        let object = manifests::node(node.name()).internal_ips(node.addresses()).set(annotation, "true");
        self.cluster.publish(node.name(), object)?;
        let subnets = within(2 * SOON, &format!("subnets of {}", node.name()), || {
            let subnets = self.object(node.name())?["spec"]["podCIDRs"].take();
            Ok::<Vec<IpNet>, anyhow::Error>(serde_json::from_value(subnets)?)
        })?;
        node.subnets.replace(subnets.into_iter().take(self.families.count()).collect());
        Ok(())
    }

    /// Removes the machine with all that runs there, and deletes its Node, or its lease as if that had run out.
    pub fn leave(&self, node: FlannelNode) -> Result<()> {
        match &self.etcd {
            None => self.cluster.withdraw(node.name())?,
            Some(etcd) => etcd.delete(&self.lease(&node)?.key)?,
        }
        node.member.into_node().remove()
    }

    /// Starts who is to run the pod network, and returns when it stands.
    pub fn run(&self, node: &FlannelNode, runner: Runner) -> Result<Process> {
        let process = self.start(node, runner)?;
        self.note_subnets(node)?;
        Ok(process)
    }

    /// Where subnets are leased, the node has those of its `subnet.env`.
    fn note_subnets(&self, node: &FlannelNode) -> Result<()> {
        if self.etcd.is_some() {
            node.subnets.replace(within(2 * SOON, "a subnet in subnet.env", || node.leased_subnets())?);
        }
        Ok(())
    }

    fn start(&self, node: &FlannelNode, runner: Runner) -> Result<Process> {
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
            Runner::PodwayRun => self.start_podway(node, &["network.interface=eth0"]),
        }
    }

    /// Starts podway by its own command line with these settings, and returns when its pod network stands.
    pub fn run_podway(&self, node: &FlannelNode, settings: &[&str]) -> Result<Process> {
        let process = self.start_podway(node, settings)?;
        self.note_subnets(node)?;
        Ok(process)
    }

    fn start_podway(&self, node: &FlannelNode, settings: &[&str]) -> Result<Process> {
        let ranges = self.ranges().iter().map(|range| format!("{range:?}")).collect::<Vec<_>>();
        let mut all =
            vec!["services.enabled=false".to_owned(), format!("network.podNetworks=[{}]", ranges.join(","))];
        all.extend(self.etcd.iter().map(|etcd| format!("network.etcd.endpoints=[{}]", etcd.url())));
        all.extend(settings.iter().map(|setting| (*setting).to_owned()));
        let settings = all.iter().flat_map(|setting| ["--set", setting]);
        let command = node.podway_command("run", Dataplane::Nftables)?.args(settings);
        let process = command.start("podway")?;
        wait_until_network_stands(&process)?;
        Ok(process)
    }

    /// podway by flannel's command line, and what several on one machine must have for themselves.
    pub fn podway_flanneld(&self, node: &FlannelNode) -> Result<Command> {
        self.podway_line(node, node.flanneld_link()?)
    }

    /// The same as a container that is not privileged has it: `/proc/sys` can only be read, and there are no
    /// capabilities but those of flannel's manifest.
    pub fn confined_podway_flanneld(&self, node: &FlannelNode) -> Result<Command> {
        let (link, script) = (node.flanneld_link()?, node.folder()?.join("confined"));
        let confined = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
                        exec setpriv --bounding-set=-all,+net_admin,+net_raw \"$@\"";
        let text =
            format!("#!/bin/sh\nexec unshare --mount sh -c '{confined}' sh {} \"$@\"\n", link.display());
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.podway_line(node, script)
    }

    fn podway_line(&self, node: &FlannelNode, program: impl AsRef<OsStr>) -> Result<Command> {
        let command = self.line(node, program)?;
        Ok(command
            .env("PODWAY_STATUS_SOCKET", node.folder()?.join("podway.sock"))
            .env("PODWAY_MACHINE_ID_FILE", node.machine_id_file()?)
            .env("PODWAY_LOG_LEVEL", "debug"))
    }

    /// The line of flannel's own manifest, or for etcd, with the servers and files of this lab.
    fn line(&self, node: &FlannelNode, program: impl AsRef<OsStr>) -> Result<Command> {
        let subnet_file = format!("--subnet-file={}", node.subnet_file()?.display());
        let command = node.command(program).args(["--ip-masq", "--iface=eth0", &subnet_file]);
        if let Some(etcd) = &self.etcd {
            return Ok(command.arg(format!("--etcd-endpoints={}", etcd.url())));
        }
        let config = node.folder()?.join("net-conf.json");
        fs::write(&config, self.net_conf()).with_context(|| format!("write {}", config.display()))?;
        Ok(command.env("NODE_NAME", node.name()).args([
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={}", self.plane().kubeconfig().display()),
            format!("--net-config-path={}", config.display()),
        ]))
    }

    fn net_conf(&self) -> String {
        let mut config = json!({
            "Network": self.ranges()[0],
            "EnableNFTables": self.rules == Rules::Nftables,
            "Backend": self.backend,
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

    /// What a node tells its peers: flannel's annotations, keys without the prefix, or the value of its lease.
    pub fn announced(&self, node: &FlannelNode) -> Result<BTreeMap<String, String>> {
        if self.etcd.is_some() {
            return Ok([("lease".to_owned(), self.lease(node)?.value)].into());
        }
        let object = self.object(node.name())?;
        let annotations = object["metadata"]["annotations"].as_object().context("no annotations")?;
        let flannels = annotations.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix("flannel.alpha.coreos.com/")?.to_owned(), value.as_str()?.to_owned()))
        });
        Ok(flannels.collect())
    }

    /// What flannel would tell of the links that stand on a node, byte for byte.
    pub fn expected(&self, node: &FlannelNode) -> Result<BTreeMap<String, String>> {
        let vtep = |link: &str| -> Result<String> {
            let link = node.link(link)?;
            let mac = link["address"].as_str().context("a link without address")?;
            Ok(format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#))
        };
        let both = self.families == Families::Both;
        let v6 = if both { Some((node.ipv6(), vtep("flannel-v6.1")?)) } else { None };
        let (public_ip, v4) = (node.ipv4(), vtep("flannel.1")?);
        let mut told = BTreeMap::new();
        if self.etcd.is_some() {
            let (public_v6, data_v6) = match v6 {
                Some((address, data)) => (format!("\"{address}\""), format!(r#","BackendV6Data":{data}"#)),
                None => ("null".to_owned(), String::new()),
            };
            told.insert("lease".to_owned(), format!(
                r#"{{"PublicIP":"{public_ip}","PublicIPv6":{public_v6},"BackendType":"vxlan","BackendData":{v4}{data_v6}}}"#
            ));
            return Ok(told);
        }
        let mut tell = |key: &str, value: String| drop(told.insert(key.to_owned(), value));
        tell("backend-data", v4);
        tell("backend-type", "vxlan".to_owned());
        tell("kube-subnet-manager", "true".to_owned());
        tell("public-ip", public_ip.to_string());
        if let Some((address, data)) = v6 {
            tell("backend-v6-data", data);
            tell("public-ipv6", address.to_string());
        }
        Ok(told)
    }

    /// The lease of a node's subnets.
    pub fn lease(&self, node: &FlannelNode) -> Result<EtcdKey> {
        let etcd = self.etcd.as_ref().context("subnets are not leased")?;
        let subnets = node.subnets();
        let subnet = subnets.first().context("no subnet yet")?;
        let beginning = format!("{PREFIX}/subnets/{}-{}", subnet.network(), subnet.prefix_len());
        let mut leases = etcd.keys(&beginning)?;
        match leases.pop() {
            Some(lease) if leases.is_empty() => Ok(lease),
            _ => bail!("not one lease that begins with {beginning}"),
        }
    }

    /// The Node as the API server has it.
    pub fn object(&self, name: &str) -> Result<Value> {
        self.plane().get(&format!("/api/v1/nodes/{name}"))
    }
}

fn vxlan() -> Value {
    json!({ "Type": "vxlan" })
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
    /// podway by flannel's name.
    pub fn flanneld_link(&self) -> Result<PathBuf> {
        let link = self.folder()?.join("flanneld");
        if !link.exists() {
            symlink(binary("podway")?, &link).with_context(|| format!("link {}", link.display()))?;
        }
        Ok(link)
    }

    /// Its subnets, IPv4 first; where they are leased, those that it had last.
    pub fn subnets(&self) -> Vec<IpNet> {
        self.subnets.borrow().clone()
    }

    /// Its subnets as they stand in `subnet.env`.
    fn leased_subnets(&self) -> Result<Vec<IpNet>> {
        let env = self.subnet_env()?;
        let subnet = |line: &str| {
            let value =
                ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="].iter().find_map(|key| line.strip_prefix(key))?;
            Some(value.parse().map(|subnet: IpNet| subnet.trunc()).with_context(|| line.to_owned()))
        };
        env.lines().filter_map(subnet).collect()
    }

    /// Adds a pod with the next address of each subnet.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let place = self.next_pod.get();
        self.next_pod.set(place + 1);
        // The network address is the VXLAN link's, the first one the gateway.
        let subnets = self.subnets();
        let addresses = subnets.iter().filter_map(|subnet| {
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
