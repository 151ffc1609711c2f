//! Nodes with pods, where their manifests are, and the podway of each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use podway_testkit::{
    Command, ControlPlane, Folder, Host, Lab, Node, Pod, Process, binary, manifests, within,
};

use crate::traffic::SOON;

/// All pods of a cluster; node N has the subnets 10.77.N.0/24 and fd77:0:0:N::/64.
const POD_NETWORKS: &str = r#"network.podNetworks=[10.77.0.0/16,"fd77::/48"]"#;

/// Where a cluster's podways find its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A folder of manifests.
    Directory,
    /// A real API server.
    Kube,
}

/// What translates Service addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dataplane {
    /// Packet by packet.
    Nftables,
    /// At connect().
    Ebpf,
}

/// A cluster: nodes of one lab, and the place that their podways learn of it from.
#[derive(Debug)]
pub struct Cluster<'lab> {
    lab: &'lab Lab,
    store: Store,
    published: RefCell<BTreeMap<String, String>>,
}

/// A node of a cluster: its pods get addresses of its subnets, and its podway the settings that belong to both.
#[derive(Debug)]
pub struct Member {
    node: Node,
    number: u8,
    source: [String; 2],
    next_pod: Cell<u8>,
}

#[derive(Debug)]
enum Store {
    Directory(Folder),
    Kube(Box<ControlPlane>),
}

/// Where subnets are claimed, as manifests/podway.yaml makes it.
const CLAIMS: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: podway-subnets}}";

impl<'lab> Cluster<'lab> {
    /// A cluster without nodes over a folder or an API server of its own.
    pub fn over(lab: &'lab Lab, source: Source) -> Result<Self> {
        let store = match source {
            Source::Directory => Store::Directory(lab.folder("cluster")?),
            Source::Kube => {
                let plane = lab.control_plane()?;
                plane.apply(CLAIMS)?;
                Store::Kube(Box::new(plane))
            }
        };
        Ok(Self { lab, store, published: RefCell::default() })
    }

    /// The nodes `node-1` to `node-COUNT` of a cluster over a folder.
    pub fn of_nodes<const COUNT: usize>(lab: &'lab Lab) -> Result<(Self, [Member; COUNT])> {
        let cluster = Self::over(lab, Source::Directory)?;
        let members = (1..).take(COUNT).map(|number| cluster.member(number)).collect::<Result<Vec<_>>>()?;
        Ok((cluster, members.try_into().unwrap_or_else(|_| unreachable!("as many as were taken"))))
    }

    /// Raises `node-NUMBER` and publishes its Node.
    pub fn member(&self, number: u8) -> Result<Member> {
        let member = self.unpublished_member(number)?;
        self.publish(member.name(), member.manifest())?;
        Ok(member)
    }

    /// Raises `node-NUMBER`, which the cluster does not know of yet.
    pub fn unpublished_member(&self, number: u8) -> Result<Member> {
        let node = self.lab.node(&format!("node-{number}"))?;
        await_carrier(&node)?;
        // Refusals are counted here, and the kernel would tell a host of six in a second.
        node.sysctl("net.ipv4.icmp_ratelimit", "0")?;
        node.sysctl("net.ipv6.icmp.ratelimit", "0")?;
        let source = match &self.store {
            Store::Directory(folder) => ["--directory".to_owned(), folder.path().display().to_string()],
            Store::Kube(plane) => ["--kubeconfig".to_owned(), plane.kubeconfig().display().to_string()],
        };
        Ok(Member { node, number, source, next_pod: Cell::new(2) })
    }

    /// Puts manifests in place of what was published under this name: a file `NAME.yaml`, or objects that are applied.
    /// An API server keeps objects that are no longer listed.
    pub fn publish(&self, name: &str, manifests: impl Display) -> Result<()> {
        let manifests = manifests.to_string();
        match &self.store {
            Store::Directory(folder) => drop(folder.write(&format!("{name}.yaml"), &manifests)?),
            Store::Kube(plane) => plane.apply(&manifests)?,
        }
        self.published.borrow_mut().insert(name.to_owned(), manifests);
        Ok(())
    }

    /// Takes back what was published under this name.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        let Some(manifests) = self.published.borrow_mut().remove(name) else {
            bail!("nothing is published as {name}");
        };
        match &self.store {
            Store::Directory(folder) => folder.remove(&format!("{name}.yaml")),
            Store::Kube(plane) => plane.delete(manifests),
        }
    }

    /// The API server. Panics over a folder.
    pub fn control_plane(&self) -> &ControlPlane {
        match &self.store {
            Store::Kube(plane) => plane,
            Store::Directory(_) => panic!("a cluster over a folder has no API server"),
        }
    }
}

impl Member {
    /// The number in its name and its subnets.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its Node object.
    pub fn manifest(&self) -> manifests::Node {
        manifests::node(self.name()).pod_cidrs(self.subnets()).internal_ips(self.addresses())
    }

    /// Its pods' subnets, IPv4 first.
    pub fn subnets(&self) -> [String; 2] {
        let number = self.number;
        [format!("10.77.{number}.0/24"), format!("fd77:0:0:{number}::/64")]
    }

    /// Adds a pod with the next address of each subnet.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let (number, last) = (self.number, self.next_pod.get());
        self.next_pod.set(last + 1);
        let addresses = [format!("10.77.{number}.{last}"), format!("fd77:0:0:{number}::{last}")];
        let pod = self.node.pod(name, addresses)?;
        await_carrier(&pod)?;
        await_carrier(self)?;
        Ok(pod)
    }

    /// Adds a pod with a server of the same name on port 8080, TCP and UDP.
    pub fn serving_pod(&self, name: &str) -> Result<(Pod, Process)> {
        let pod = self.pod(name)?;
        let server = pod.serve(name, crate::web::TARGET_PORT)?;
        Ok((pod, server))
    }

    /// Starts podway and returns when both its halves have programmed the kernel for the first time.
    pub fn podway(&self, dataplane: Dataplane) -> Result<Process> {
        let podway = self.podway_command("run", dataplane)?.start("podway")?;
        wait_until_programmed(&podway)?;
        Ok(podway)
    }

    /// `podway SUBCOMMAND` with everything that makes it this node's; arguments may be added.
    pub fn podway_command(&self, subcommand: &str, dataplane: Dataplane) -> Result<Command> {
        let dataplane = match dataplane {
            Dataplane::Nftables => "nftables",
            Dataplane::Ebpf => "ebpf",
        };
        let settings = [
            POD_NETWORKS.to_owned(),
            format!("network.subnetFile={}", self.subnet_file()?.display()),
            format!("status.socket={}", self.folder()?.join("podway.sock").display()),
            format!("machineIdFile={}", self.machine_id_file()?.display()),
            format!("ebpf.cgroup={}", self.cgroup().display()),
            format!("ebpf.pinDirectory={}", self.pin_directory()?.display()),
            "log.level=debug".to_owned(),
        ];
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let command = self.command(binary("podway")?).args([subcommand, "--node-name", self.name()]);
        Ok(command.args(&self.source).args(["--dataplane", dataplane]).args(settings))
    }

    /// Runs `podway cleanup`; fails unless it succeeds.
    pub fn cleanup(&self, dataplane: Dataplane) -> Result<()> {
        self.podway_command("cleanup", dataplane)?.run().map(drop)
    }

    /// Where its podway writes the file for flannel's CNI plugin.
    pub fn subnet_file(&self) -> Result<PathBuf> {
        Ok(self.folder()?.join("subnet.env"))
    }

    /// What tells it from the other nodes of this machine.
    pub fn machine_id_file(&self) -> Result<PathBuf> {
        let path = self.folder()?.join("machine-id");
        fs::write(&path, format!("{}\n", self.name()))?;
        Ok(path)
    }

    /// Where its podway pins programs and maps.
    pub fn pin_directory(&self) -> Result<PathBuf> {
        Ok(self.bpffs()?.join("podway"))
    }

    /// The names of everything that is pinned there, of nothing when there is no such folder.
    pub fn pins(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut folders = vec![self.pin_directory()?];
        while let Some(folder) = folders.pop() {
            if !folder.exists() {
                continue;
            }
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                names.push(entry.file_name().to_string_lossy().into_owned());
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(names)
    }

    /// The node itself, to be removed for example.
    pub fn into_node(self) -> Node {
        self.node
    }
}

impl Deref for Member {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// Waits until every device that is up can send: a busy kernel may take a second, and drops what is sent until then.
pub(crate) fn await_carrier(host: &Host) -> Result<()> {
    within(SOON, &format!("a carrier for every device of {}", host.name()), || {
        let devices = host.command("ip").args(["-brief", "link", "show", "up"]).run()?;
        if devices.contains("DOWN") { Err(anyhow!(devices)) } else { Ok(()) }
    })
}

/// Waits until both halves of a podway have said that the kernel is as planned.
pub fn wait_until_programmed(podway: &Process) -> Result<()> {
    let said = [
        ["pod network programmed", "pod network stands as planned"],
        ["Services programmed", "Services stand as planned"],
    ];
    within(2 * SOON, "both halves of podway have programmed the kernel", || {
        let log = podway.log();
        match said.iter().all(|either| either.iter().any(|text| log.contains(text))) {
            true => Ok(()),
            false => Err(log),
        }
    })
}
