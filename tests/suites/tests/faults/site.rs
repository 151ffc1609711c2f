//! Two nodes whose subnets are kept in one of the stores, and what can happen to its server.

use anyhow::{Context, Result, anyhow, bail};
use podway_overlay::{LeaseAttributes, Mac, PerFamily, Vni};
use podway_suites::{
    Cluster, Dataplane, KernelState, Load, Member, SOON, Source, Way, await_answers,
    wait_until_network_stands,
};
use podway_testkit::{ControlPlane, Etcd, Lab, Pod, Process, manifests, within};
use serde_json::{Value, json};

/// What pods listen on.
const PORT: u16 = 8080;

/// Where subnets are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Kube,
    Etcd,
    Files,
}

/// Two nodes with a podway each; a client on one, the pod `far` on the other.
pub(crate) struct Site<'lab> {
    pub(crate) cluster: Cluster<'lab>,
    /// Where subnets are leased, unless Nodes have them.
    pub(crate) etcd: Option<Etcd>,
    pub(crate) one: Member,
    pub(crate) two: Member,
    pub(crate) client: Pod,
    far: Pod,
    pub(crate) podways: [Process; 2],
    _server: Process,
}

impl<'lab> Site<'lab> {
    pub(crate) fn open(lab: &'lab Lab, store: Store) -> Result<Self> {
        let (cluster, etcd) = match store {
            Store::Kube => (Cluster::over(lab, Source::Kube)?, None),
            Store::Etcd => (Cluster::over(lab, Source::Directory)?, Some(lab.etcd()?)),
            Store::Files => (Cluster::over(lab, Source::Directory)?, None),
        };
        if let Some(etcd) = &etcd {
            let config = json!({ "Network": "10.77.0.0/16", "EnableIPv6": true, "IPv6Network": "fd77::/48" });
            etcd.put("/coreos.com/network/config", &config.to_string())?;
        }
        let (one, two) = (cluster.member(1)?, cluster.member(2)?);
        let client = one.pod("client")?;
        let (far, server) = two.serving_pod("far")?;
        let podways = [&one, &two].map(|member| start(member, etcd.as_ref()));
        let [first, second] = podways;
        let site = Self { cluster, etcd, one, two, client, far, podways: [first?, second?], _server: server };
        for podway in &site.podways {
            wait_until_network_stands(podway)?;
        }
        site.ways().into_iter().for_each(|way| drop(await_answers(&site.client, way)));
        Ok(site)
    }

    pub(crate) fn start(&self, member: &Member) -> Result<Process> {
        start(member, self.etcd.as_ref())
    }

    pub(crate) fn run(&self, member: &Member) -> Result<Process> {
        let podway = self.start(member)?;
        wait_until_network_stands(&podway)?;
        Ok(podway)
    }

    pub(crate) fn ways(&self) -> Vec<Way> {
        Way::all([self.far.ipv4(), self.far.ipv6()], PORT)
    }

    pub(crate) fn load(&self) -> Result<Load> {
        Load::start(&self.client, self.ways())
    }

    /// The Node, or the lease, of a machine that nobody runs.
    pub(crate) fn publish(&self, number: u8) -> Result<()> {
        match &self.etcd {
            Some(etcd) => etcd.put_leased(&lease_key(number), &ghost_attributes(number).render(), 3600),
            None => self.cluster.publish(&format!("ghost-{number}"), ghost_node(number)),
        }
    }

    /// Publishes it and waits until node-1 has heard of it.
    pub(crate) fn appear(&self, number: u8) -> Result<()> {
        self.publish(number)?;
        self.await_trace_of(number)
    }

    pub(crate) fn vanish(&self, number: u8) -> Result<()> {
        match &self.etcd {
            Some(etcd) => etcd.delete(&lease_key(number)),
            None => self.cluster.withdraw(&format!("ghost-{number}")),
        }
    }

    /// Waits until node-1 has all of another node: for each family a neighbour, an FDB entry and a route.
    pub(crate) fn await_trace_of(&self, number: u8) -> Result<()> {
        within(SOON, &format!("all of node {number}"), || {
            let state = KernelState::read(&self.one)?;
            let traces = ["10.77.NN.0 dev", "192.0.2.1NN self", "10.77.NN.0/24 via", "fd77:0:0:NN:: dev"];
            let traces = traces.into_iter().chain(["2001:db8::NN self", "fd77:0:0:NN::/64 via"]);
            let missing = traces
                .map(|trace| trace.replace("NN", &number.to_string()))
                .filter(|trace| !state.mentions(trace));
            let missing: Vec<String> = missing.collect();
            if missing.is_empty() { Ok(()) } else { Err(anyhow!("missing: {missing:?}")) }
        })
    }

    pub(crate) fn stop_server(&self) -> Result<()> {
        self.etcd.as_ref().map_or_else(|| self.cluster.control_plane().stop(), Etcd::stop)
    }

    pub(crate) fn start_server(&self) -> Result<()> {
        self.etcd.as_ref().map_or_else(|| self.cluster.control_plane().start(), Etcd::start)
    }

    /// Compacts etcd. An API server remembers by itself what it has seen since its start, and so is started anew.
    pub(crate) fn forget_history(&self) -> Result<()> {
        if let Some(etcd) = &self.etcd {
            return etcd.compact();
        }
        let plane = self.cluster.control_plane();
        plane.stop()?;
        compact(plane)?;
        plane.start()
    }

    /// Each node in turn: what stands is what a podway makes that finds nothing.
    pub(crate) fn matches_a_fresh_start(mut self) -> Result<()> {
        for (number, member) in [&self.one, &self.two].into_iter().enumerate() {
            let state = KernelState::read(member)?;
            assert!(self.podways[number].stop()?.success());
            member.cleanup(Dataplane::Nftables)?;
            assert!(!KernelState::read(member)?.mentions("flannel"), "after cleanup");
            self.podways[number] = start(member, self.etcd.as_ref())?;
            wait_until_network_stands(&self.podways[number])?;
            state.await_again_on(member);
        }
        self.ways().into_iter().for_each(|way| drop(await_answers(&self.client, way)));
        Ok(())
    }
}

/// The node's way to the servers, closed as by a firewall in between: packets are dropped without a word.
pub(crate) struct Blockade<'a> {
    node: &'a Member,
}

impl<'a> Blockade<'a> {
    pub(crate) fn raise(node: &'a Member) -> Result<Self> {
        let table = "table inet blockade {\n chain output {\n type filter hook output priority filter\n \
                     tcp dport { 2379, 6443 } drop\n }\n chain input {\n \
                     type filter hook input priority filter\n tcp sport { 2379, 6443 } drop\n }\n}\n";
        node.command("nft").args(["--file", "-"]).stdin(table).run()?;
        Ok(Self { node })
    }

    pub(crate) fn lift(self) -> Result<()> {
        self.node.command("nft").args(["delete", "table", "inet", "blockade"]).run().map(drop)
    }
}

/// With flannel's etcd, the node has the subnets that a file of an earlier run names.
fn start(member: &Member, etcd: Option<&Etcd>) -> Result<Process> {
    let mut settings = vec!["services.enabled=false".to_owned()];
    if let Some(etcd) = etcd {
        settings.push(format!("network.etcd.endpoints=[{}]", etcd.url()));
        if !member.subnet_file()?.exists() {
            std::fs::write(member.subnet_file()?, subnet_env(member.number()))?;
        }
    }
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    member.podway_command("run", Dataplane::Nftables)?.args(settings).start("podway")
}

fn subnet_env(number: u8) -> String {
    format!(
        "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.{number}.1/24\nFLANNEL_IPV6_NETWORK=fd77::/48\n\
         FLANNEL_IPV6_SUBNET=fd77:0:0:{number}::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    )
}

pub(crate) fn lease_key(number: u8) -> String {
    format!("/coreos.com/network/subnets/10.77.{number}.0-24&fd77:0:0:{number}::-64")
}

fn ghost_mac(number: u8) -> Mac {
    Mac::new([0x0e, 0, 0, 0, 0, number])
}

fn ghost_addresses(number: u8) -> [String; 2] {
    [format!("192.0.2.1{number}"), format!("2001:db8::{number}")]
}

fn ghost_attributes(number: u8) -> LeaseAttributes {
    let [v4, v6] = ghost_addresses(number).map(|address| Some((ghost_mac(number), address.parse().ok()?)));
    LeaseAttributes::vxlan(Vni::default(), &PerFamily { v4, v6 })
}

pub(crate) fn ghost_node(number: u8) -> manifests::Node {
    let [v4, v6] = ghost_addresses(number);
    let vtep = json!({ "VNI": 1, "VtepMAC": ghost_mac(number).to_string() }).to_string();
    let node = manifests::node(&format!("ghost-{number}"))
        .pod_cidrs([format!("10.77.{number}.0/24"), format!("fd77:0:0:{number}::/64")]);
    [
        ("backend-type", "vxlan"),
        ("backend-data", &vtep),
        ("backend-v6-data", &vtep),
        ("kube-subnet-manager", "true"),
        ("public-ip", &v4),
        ("public-ipv6", &v6),
    ]
    .into_iter()
    .fold(node, |node, (key, value)| {
        node.set(&format!("/metadata/annotations/flannel.alpha.coreos.com~1{key}"), value)
    })
}

/// Has the etcd of an API server forget all that is not the latest state.
fn compact(plane: &ControlPlane) -> Result<()> {
    let ask = |path: &str, question: Value| -> Result<Value> {
        let url = format!("{}/v3/kv/{path}", plane.etcd_url());
        let curl = plane.host().command("curl").args(["-s", "-d", &question.to_string(), &url]);
        let answer: Value = serde_json::from_str(&curl.run()?)?;
        if answer.get("error").is_some() {
            bail!("{path}: {answer}");
        }
        Ok(answer)
    };
    let seen = ask("range", json!({ "key": "Lw==" }))?;
    let revision = seen["header"]["revision"].as_str().context("no revision")?.to_owned();
    ask("compaction", json!({ "revision": revision, "physical": true })).map(drop)
}
