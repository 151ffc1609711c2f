//! podway and the real flannel in one cluster: pods and hosts reach each other in all directions, whoever runs the pod
//! network of their nodes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use podway_suites::{
    Families, FlannelCluster, FlannelNode, Rules, Runner, SOON, Way, await_answers, stop,
    wait_until_network_stands,
};
use podway_testkit::{Host, Lab, Pod, Process, binary, eventually, in_lab, reference};
use serde_json::{Value, json};

const PORT: u16 = 8080;

#[test]
fn n5_x6_podway_joins_a_cluster_of_flannel_and_everybody_reaches_everybody() {
    in_lab("flannel-joined", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Nftables, Families::Both)?;
        everybody_reaches_everybody(
            lab,
            &cluster,
            [Runner::Flanneld, Runner::Flanneld, Runner::PodwayFlanneld],
        )
    });
}

#[test]
fn n5_x6_flannel_joins_a_cluster_of_podway_and_everybody_reaches_everybody() {
    in_lab("flannel-joins", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Iptables, Families::Both)?;
        everybody_reaches_everybody(
            lab,
            &cluster,
            [Runner::PodwayRun, Runner::PodwayFlanneld, Runner::Flanneld],
        )
    });
}

#[test]
fn n5_x6_flannels_stock_configuration_with_ipv4_alone() {
    in_lab("flannel-ipv4", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Iptables, Families::Ipv4)?;
        everybody_reaches_everybody(
            lab,
            &cluster,
            [Runner::Flanneld, Runner::PodwayFlanneld, Runner::PodwayRun],
        )
    });
}

#[test]
fn n3_x6_podway_joins_flannel_over_etcd_and_everybody_reaches_everybody() {
    in_lab("flannel-etcd-joined", |lab| {
        let cluster = FlannelCluster::over_etcd(lab, Rules::Nftables, Families::Both)?;
        everybody_reaches_everybody(
            lab,
            &cluster,
            [Runner::Flanneld, Runner::Flanneld, Runner::PodwayFlanneld],
        )
    });
}

#[test]
fn n3_x6_flannel_joins_podway_over_etcd_and_everybody_reaches_everybody() {
    in_lab("flannel-etcd-joins", |lab| {
        let cluster = FlannelCluster::over_etcd(lab, Rules::Iptables, Families::Ipv4)?;
        everybody_reaches_everybody(
            lab,
            &cluster,
            [Runner::PodwayFlanneld, Runner::PodwayRun, Runner::Flanneld],
        )
    });
}

#[test]
fn n6_x6_flannel_and_podway_route_directly_to_each_other_where_they_are_told_to() {
    in_lab("flannel-direct", |lab| {
        reach_each_other_without_vxlan(lab, json!({ "Type": "vxlan", "DirectRouting": true }))
    });
}

#[test]
fn n6_x6_flannel_and_podway_reach_each_other_by_host_gw() {
    in_lab("flannel-host-gw", |lab| reach_each_other_without_vxlan(lab, json!({ "Type": "host-gw" })));
}

#[test]
fn n9_podway_writes_the_subnet_env_that_flannel_wrote() {
    in_lab("flannel-subnet-env", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Nftables, Families::Ipv4)?;
        let node = cluster.node(1)?;
        let flanneld = cluster.run(&node, Runner::Flanneld)?;
        let flannels = node.subnet_env()?;
        assert!(flannels.contains("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"), "{flannels}");
        stop(&flanneld)?;
        std::fs::remove_file(node.subnet_file()?)?;
        let _podway = cluster.run(&node, Runner::PodwayFlanneld)?;
        assert_eq!(node.subnet_env()?, flannels);
        Ok(())
    });
}

#[test]
fn n9_n11_flannels_own_cni_plugin_connects_pods_by_the_subnet_env_of_either() {
    in_lab("flannel-cni", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Nftables, Families::Both)?;
        let (one, two) = (cluster.node(1)?, cluster.node(2)?);
        let _podway = cluster.run(&one, Runner::PodwayFlanneld)?;
        let _flanneld = cluster.run(&two, Runner::Flanneld)?;
        let client = CniPod::add(&one, "client")?;
        let server = CniPod::add(&two, "server")?;
        let _serving = (client.pod.serve("client", PORT)?, server.pod.serve("server", PORT)?);
        for (from, to, node) in [(&client, &server, &two), (&server, &client, &one)] {
            for (address, subnet) in to.addresses.iter().zip(node.subnets()) {
                assert!(subnet.contains(address), "{address} is not of {subnet}");
            }
            for way in Way::all(to.addresses.iter().copied(), PORT) {
                let seen = await_answers(&from.pod, way).sources();
                assert!(seen.iter().all(|source| from.addresses.contains(source)), "{way}: from {seen:?}");
            }
        }
        // Over IPv6 1430 is all that passes; flannel says 1450.
        assert_eq!(client.mtu()?, 1430);
        client.delete(&one)?;
        let again = CniPod::add(&one, "again")?;
        assert_eq!(again.addresses.len(), 2, "addresses after those that were given back");
        Ok(())
    });
}

#[test]
fn x6_with_the_rights_capabilities_and_variables_of_flannels_manifest_podway_runs_in_its_place() {
    in_lab("flannel-manifest", |lab| {
        let cluster = FlannelCluster::open(lab, Rules::Nftables, Families::Both)?;
        let (plane, node) = (cluster.plane(), cluster.node(1)?);
        plane.apply(
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-flannel" } }),
        )?;
        let kubeconfig = plane.service_account_kubeconfig("kube-flannel", "flannel")?;
        plane.apply(FLANNELS_RIGHTS)?;
        plane.apply(pod_of_flannels_daemon_set(node.name()))?;
        // As every node has it that kubeadm let in.
        node.sysctl("net.ipv4.ip_forward", "1")?;
        node.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        let command = cluster.confined_podway_flanneld(&node)?.env("NODE_NAME", "");
        let command = command.env("POD_NAMESPACE", "kube-flannel").env("POD_NAME", "kube-flannel-ds-x");
        let podway =
            command.arg(format!("--kubeconfig-file={}", kubeconfig.display())).start("podway-flanneld")?;
        wait_until_network_stands(&podway)?;
        eventually(SOON, "the annotations and the condition", || {
            let seen = cluster.object(node.name()).map_err(|error| format!("{error:#}"))?;
            let conditions = seen["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is_available = conditions
                .iter()
                .any(|condition| condition["type"] == "NetworkUnavailable" && condition["status"] == "False");
            let is_announced = cluster.announced(&node).ok() == cluster.expected(&node).ok();
            if is_available && is_announced { Ok(()) } else { Err(seen.to_string()) }
        });
        // flannel's rights do not cover ServiceCIDRs, which only a check for overlaps is made with.
        let log: String = podway.log().lines().filter(|line| !line.contains("servicecidrs")).collect();
        assert!(!log.contains("forbidden") && !log.contains("is not complete"), "{log}");
        let two = Site::raise(&cluster, 2, Runner::Flanneld)?;
        let one = Site::on(node, podway)?;
        reach_each_other(&[&one, &two])?;
        stop(&one.daemon)
    });
}

#[test]
fn n21_podway_called_flanneld_speaks_as_flanneld_does() {
    in_lab("flannel-words", |lab| {
        let host = lab.outside("host")?;
        let link = host.folder()?.join("flanneld");
        std::os::unix::fs::symlink(binary("podway")?, &link)?;
        let say = |program: &Path, line: &[&str]| host.command(program).args(line).output();
        let real = reference("flanneld")?;
        let (ours, theirs) = (say(&link, &["--help"])?, say(&real, &["--help"])?);
        assert_eq!(ours.status.code(), Some(0));
        let (ours, theirs) = (defaults(&ours.stderr), defaults(&theirs.stderr));
        assert!(theirs.len() > 25, "{theirs:?}");
        for (flag, default) in theirs {
            assert_eq!(ours.get(&flag), Some(&default), "{flag}");
        }
        for line in [&["--bogus"][..], &["--iface"], &["---x"], &["-v"]] {
            let (ours, theirs) = (say(&link, line)?, say(&real, line)?);
            assert_eq!(ours.stderr.lines().next(), theirs.stderr.lines().next(), "{line:?}");
            // flanneld itself says 0: its usage ends it before Go's flag package does.
            assert_eq!(ours.status.code(), Some(2), "{line:?}");
        }
        let version = say(&link, &["--version"])?;
        assert_eq!((version.status.code(), version.stdout.as_str()), (Some(0), ""));
        assert!(
            version.stderr.starts_with("podway v") && version.stderr.lines().count() == 1,
            "{}",
            version.stderr
        );
        let refused = say(&link, &["--subnet-lease-renew-margin=1440"])?;
        assert_eq!(refused.status.code(), Some(1));
        assert!(refused.stderr.contains("--subnet-lease-renew-margin"), "{}", refused.stderr);
        Ok(())
    });
}

/// The flags of a usage text, and what each is when it is not given.
fn defaults(usage: &str) -> BTreeMap<String, String> {
    let mut defaults = BTreeMap::new();
    let mut lines = usage.lines();
    while let Some(line) = lines.next() {
        if let Some(flag) = line.strip_prefix("  -").and_then(|flag| flag.split_whitespace().next()) {
            let default =
                lines.next().and_then(|help| help.rsplit_once("(default ")).map_or("", |(_, text)| text);
            defaults.insert(flag.to_owned(), default.to_owned());
        }
    }
    defaults
}

/// Three nodes; then the second leaves, and a fourth joins that runs what the second did.
fn everybody_reaches_everybody(lab: &Lab, cluster: &FlannelCluster<'_>, runners: [Runner; 3]) -> Result<()> {
    let [first, second, third] = runners;
    let one = Site::raise(cluster, 1, first)?;
    let two = Site::raise(cluster, 2, second)?;
    let three = Site::raise(cluster, 3, third)?;
    reach_each_other(&[&one, &two, &three])?;
    for site in [&one, &two, &three] {
        let name = site.node.name();
        assert_eq!(cluster.announced(&site.node)?, cluster.expected(&site.node)?, "{name}");
    }
    assert!(lab.vxlan_packets()? > 0);

    let gone = two.node.subnets();
    drop((two.daemon, two.servers));
    cluster.leave(two.node)?;
    for site in [&one, &three] {
        eventually(SOON, &format!("no route to a node that left, on {}", site.node.name()), || {
            let routes = site.routes().map_err(|error| format!("{error:#}"))?;
            if gone.iter().any(|subnet| routes.contains(&subnet.to_string())) { Err(routes) } else { Ok(()) }
        });
    }
    let four = Site::raise(cluster, 4, second)?;
    reach_each_other(&[&one, &three, &four])?;
    for site in [&one, &three, &four] {
        stop(&site.daemon)?;
    }
    Ok(())
}

/// A flannel and a podway on one link.
fn reach_each_other_without_vxlan(lab: &Lab, backend: Value) -> Result<()> {
    let cluster = FlannelCluster::open(lab, Rules::Nftables, Families::Both)?.with_backend(backend);
    let flannels = Site::raise(&cluster, 1, Runner::Flanneld)?;
    let podways = Site::raise(&cluster, 2, Runner::PodwayFlanneld)?;
    reach_each_other(&[&flannels, &podways])?;
    assert_eq!(lab.vxlan_packets()?, 0);
    stop(&podways.daemon)
}

/// A node, who runs its pod network, and a pod; pod and host serve.
struct Site {
    node: FlannelNode,
    daemon: Process,
    pod: Pod,
    servers: [Process; 2],
}

impl Site {
    fn raise(cluster: &FlannelCluster<'_>, number: u8, runner: Runner) -> Result<Self> {
        let node = cluster.node(number)?;
        let daemon = cluster.run(&node, runner)?;
        Self::on(node, daemon)
    }

    fn on(node: FlannelNode, daemon: Process) -> Result<Self> {
        let name = format!("pod-{}", node.number());
        let pod = node.pod(&name)?;
        let servers = [pod.serve(&name, PORT)?, node.serve(node.name(), PORT)?];
        Ok(Self { node, daemon, pod, servers })
    }

    fn routes(&self) -> Result<String> {
        let of = |family: &str| self.node.command("ip").args([family, "route"]).run();
        Ok(of("-4")? + &of("-6")?)
    }
}

/// Pods and hosts, TCP and UDP, in the families of the pods. Pods are seen under their own addresses by other pods, as
/// their nodes by hosts of other nodes.
fn reach_each_other(sites: &[&Site]) -> Result<()> {
    for from in sites {
        for to in sites.iter().filter(|to| to.node.name() != from.node.name()) {
            for way in ways(&from.pod, &to.pod) {
                let answers = await_answers(&from.pod, way);
                assert_eq!(answers.sources(), [way.same_family(&from.pod)].into(), "{way}: pod to pod");
                await_answers(&from.node, way);
            }
            for way in ways(&from.pod, &to.node) {
                let answers = await_answers(&from.pod, way);
                assert_eq!(answers.sources(), [way.same_family(&from.node)].into(), "{way}: pod to host");
            }
        }
    }
    Ok(())
}

/// Ways to a host in the families that a pod has.
fn ways(from: &Pod, to: &Host) -> Vec<Way> {
    let has = |v4: bool| from.addresses().iter().any(|address| address.is_ipv4() == v4);
    Way::all(to.addresses().iter().copied().filter(|address| has(address.is_ipv4())), PORT)
}

/// A pod that flannel's CNI plugin connected, which leaves the work to `bridge` and `host-local`.
struct CniPod {
    pod: Pod,
    addresses: Vec<std::net::IpAddr>,
}

impl CniPod {
    /// The plugin's ADD.
    fn add(node: &FlannelNode, name: &str) -> Result<Self> {
        let pod = (***node).pod(name, [""; 0])?;
        pod.ip("link del eth0")?;
        let result: Value = serde_json::from_str(&plugin(node, &pod, "ADD")?)?;
        let listed = result["ips"].as_array().with_context(|| format!("no addresses: {result}"))?;
        let addresses =
            listed.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
        Ok(Self { addresses: addresses.collect(), pod })
    }

    fn mtu(&self) -> Result<u64> {
        let printed = self.pod.command("ip").args(["-json", "link", "show", "eth0"]).run()?;
        let links: Value = serde_json::from_str(&printed)?;
        links[0]["mtu"].as_u64().context("no MTU")
    }

    /// The plugin's DEL.
    fn delete(self, node: &FlannelNode) -> Result<()> {
        plugin(node, &self.pod, "DEL").map(drop)
    }
}

fn plugin(node: &FlannelNode, pod: &Pod, verb: &str) -> Result<String> {
    let (path, folder) = (reference("flannel")?, node.folder()?);
    // Both folders have defaults that the nodes of one machine would share.
    let config = json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "flannel",
        "subnetFile": node.subnet_file()?,
        "dataDir": folder.join("cni-flannel"),
        "ipam": { "type": "host-local", "dataDir": folder.join("cni-networks") },
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
    });
    let plugins = [reference("bridge")?, path.clone()];
    let folders: Vec<_> =
        plugins.iter().filter_map(|plugin| Some(plugin.parent()?.display().to_string())).collect();
    let command = node.command(path).env("CNI_COMMAND", verb).env("CNI_CONTAINERID", pod.name());
    let command =
        command.env("CNI_NETNS", format!("/var/run/netns/{}", pod.netns())).env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", folders.join(":")).stdin(config.to_string()).run()
}

fn pod_of_flannels_daemon_set(node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "kube-flannel-ds-x", "namespace": "kube-flannel" },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "flannel",
            "hostNetwork": true,
            "containers": [{ "name": "kube-flannel", "image": "flannel" }],
        },
    })
}

/// The ClusterRole of kube-flannel.yml, version 0.28.
const FLANNELS_RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: flannel}
rules:
  - {apiGroups: [''], resources: [pods], verbs: [get]}
  - {apiGroups: [''], resources: [nodes], verbs: [get, list, watch]}
  - {apiGroups: [''], resources: [nodes/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: flannel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}
subjects: [{kind: ServiceAccount, name: flannel, namespace: kube-flannel}]
";
