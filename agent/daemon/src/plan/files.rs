//! A plan as the files that make it true.

use std::fmt::Write;

use anyhow::Result;
use ipnet::IpNet;
use podway_overlay::{Family, PerFamily, Range, Room, VpcPlan};
use serde::Serialize;

use super::Answer;

/// How many bits longer than the pod network kubeadm lets a node's subnet be (cmd/kubeadm/app/constants).
const KUBEADM_NODE_BITS: u8 = 16;

/// flannel's net-conf.json.
pub(super) fn net_conf(answer: &Answer) -> Result<String> {
    let [v4, v6] = [answer.plans.v4.as_ref(), answer.plans.v6.as_ref()];
    pretty(&NetConf {
        enable_ipv4: v4.is_none().then_some(false),
        enable_ipv6: v6.is_some().then_some(true),
        network: v4.map(|plan| plan.range.network()),
        subnet_len: v4.map(|plan| plan.range.subnet_len()),
        ipv6_network: v6.map(|plan| plan.range.network()),
        ipv6_subnet_len: v6.map(|plan| plan.range.subnet_len()),
        backend: NetConfBackend { kind: "vxlan" },
    })
}

/// The fields of podway's configuration.
pub(super) fn config(answer: &Answer) -> String {
    let networks = joined(&answer.plans, ", ", |plan| plan.range.network());
    let mut text = format!("network:\n  podNetworks: [{networks}]\n  assign:\n");
    for (family, plan) in answer.plans.iter() {
        let field = match family {
            Family::V4 => "subnetLen",
            Family::V6 => "ipv6SubnetLen",
        };
        let _ = writeln!(text, "    {field}: {}", plan.range.subnet_len());
    }
    let services = joined(&answer.plans, ",", |plan| plan.services);
    let _ = writeln!(text, "# For the API server: --service-cluster-ip-range={services}");
    text
}

/// The fields of kubeadm's ClusterConfiguration. Where kubeadm would refuse the pod network it is left out: then
/// podway assigns the subnets from its own configuration.
pub(super) fn kubeadm(answer: &Answer) -> String {
    let mut text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n".to_owned();
    let _ = writeln!(text, "  serviceSubnet: {}", joined(&answer.plans, ",", |plan| plan.services));
    let pods = joined(&answer.plans, ",", |plan| plan.range.network());
    let node_bits = |plan: &VpcPlan| plan.range.subnet_len() - plan.range.network().prefix_len();
    if answer.plans.iter().any(|(_, plan)| node_bits(plan) > KUBEADM_NODE_BITS) {
        let _ = writeln!(
            text,
            "# podSubnet {pods} is left out: kubeadm refuses node subnets that are more than {KUBEADM_NODE_BITS} bits \
             longer.\n# podway assigns them from its own configuration: podway plan -o config"
        );
        return text;
    }
    let _ = writeln!(text, "  podSubnet: {pods}\ncontrollerManager:\n  extraArgs:");
    let dual = answer.plans.iter().count() == 2;
    for (family, plan) in answer.plans.iter() {
        let flag = match (dual, family) {
            (false, _) => "node-cidr-mask-size",
            (true, Family::V4) => "node-cidr-mask-size-ipv4",
            (true, Family::V6) => "node-cidr-mask-size-ipv6",
        };
        let _ = writeln!(text, "    - name: {flag}\n      value: \"{}\"", plan.range.subnet_len());
    }
    text
}

/// Everything.
pub(super) fn json(answer: &Answer) -> Result<String> {
    let request = &answer.request;
    let shown = |(family, plan): (Family, &VpcPlan)| Shown {
        family: family.to_string(),
        vpc: plan.vpc,
        network: plan.range.network(),
        subnet_len: plan.range.subnet_len(),
        service_range: plan.services,
        api_server: plan.api_server().to_string(),
        dns: plan.dns().to_string(),
        room: plan.room().into(),
        other_cuts: plan.other_cuts(request.nodes, request.pods_per_node).iter().map(Into::into).collect(),
        widened: plan.widened().as_ref().map(Into::into),
        reserved: plan.reserved.clone(),
        free: plan.free(),
    };
    pretty(&ShownAnswer {
        families: answer.plans.iter().map(shown).collect(),
        notes: answer.notes.iter().map(ToString::to_string).collect(),
    })
}

fn pretty(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn joined(plans: &PerFamily<Option<VpcPlan>>, between: &str, net: impl Fn(&VpcPlan) -> IpNet) -> String {
    plans.iter().map(|(_, plan)| net(plan).to_string()).collect::<Vec<_>>().join(between)
}

/// In the order of flannel's own examples.
#[derive(Serialize)]
struct NetConf {
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "Network", skip_serializing_if = "Option::is_none")]
    network: Option<IpNet>,
    #[serde(rename = "SubnetLen", skip_serializing_if = "Option::is_none")]
    subnet_len: Option<u8>,
    #[serde(rename = "IPv6Network", skip_serializing_if = "Option::is_none")]
    ipv6_network: Option<IpNet>,
    #[serde(rename = "IPv6SubnetLen", skip_serializing_if = "Option::is_none")]
    ipv6_subnet_len: Option<u8>,
    #[serde(rename = "Backend")]
    backend: NetConfBackend,
}

#[derive(Serialize)]
struct NetConfBackend {
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct ShownAnswer {
    families: Vec<Shown>,
    notes: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    family: String,
    vpc: IpNet,
    network: IpNet,
    subnet_len: u8,
    service_range: IpNet,
    api_server: String,
    dns: String,
    room: ShownRoom,
    other_cuts: Vec<ShownRange>,
    widened: Option<ShownRange>,
    reserved: Vec<IpNet>,
    free: Vec<IpNet>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownRoom {
    nodes: u128,
    pods_per_node: u128,
    services: u128,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownRange {
    network: IpNet,
    subnet_len: u8,
    nodes: u128,
}

impl From<Room> for ShownRoom {
    fn from(room: Room) -> Self {
        Self { nodes: room.nodes, pods_per_node: room.pods_per_node, services: room.services }
    }
}

impl From<&Range> for ShownRange {
    fn from(range: &Range) -> Self {
        Self { network: range.network(), subnet_len: range.subnet_len(), nodes: range.count() }
    }
}

#[cfg(test)]
mod tests {
    use podway_overlay as overlay;

    use super::*;
    use crate::config::Config;
    use crate::plan::tests::answer;

    const REQUESTS: [&str; 3] = [
        "--vpc 10.0.0.0/8 --nodes 1000 --reserve 10.0.0.0/16",
        "--vpc fd00:10::/48 --nodes 1000",
        "--vpc 172.16.0.0/12 --vpc fd00:10::/48 --nodes 300 --pods-per-node 250",
    ];

    #[test]
    fn n23_net_conf_json_is_read_back_as_the_same_ranges() {
        for flags in REQUESTS {
            let answer = answer(flags);
            let conf = overlay::NetConf::parse(&net_conf(&answer).unwrap()).unwrap();
            let ranges = conf.ranges().unwrap();
            for family in Family::BOTH {
                let planned = answer.plans.get(family).as_ref().map(|plan| plan.range);
                assert_eq!(*ranges.get(family), planned, "{flags}");
            }
        }
    }

    #[test]
    fn n23_the_configuration_is_read_back_as_the_same_ranges() {
        for (at, flags) in REQUESTS.iter().enumerate() {
            let answer = answer(flags);
            let file = std::env::temp_dir().join(format!("podway-plan-{}-{at}.yaml", std::process::id()));
            std::fs::write(&file, config(&answer)).unwrap();
            let network = Config::load(Some(&file), &[]).unwrap().network;
            std::fs::remove_file(&file).unwrap();
            let planned: Vec<IpNet> = answer.plans.iter().map(|(_, plan)| plan.range.network()).collect();
            assert_eq!(network.pod_networks, planned);
            let len = |family| answer.plans.get(family).as_ref().map_or(0, |plan| plan.range.subnet_len());
            assert_eq!(network.assign.subnet_len, len(Family::V4));
            assert_eq!(network.assign.ipv6_subnet_len, len(Family::V6));
        }
    }

    #[test]
    fn n23_kubeadm_gets_the_ranges_or_why_it_does_not() {
        let dual = kubeadm(&answer("--vpc 10.0.0.0/8 --vpc fd00:10::/48 --nodes 300"));
        for line in [
            "  serviceSubnet: 10.255.0.0/16,fd00:10:0:ffff::/112",
            "  podSubnet: 10.0.0.0/14,fd00:10::/53",
            "    - name: node-cidr-mask-size-ipv4\n      value: \"25\"",
            "    - name: node-cidr-mask-size-ipv6\n      value: \"64\"",
        ] {
            assert!(dual.contains(line), "{line}: {dual}");
        }
        let single = kubeadm(&answer("--vpc 10.0.0.0/8 --nodes 300"));
        assert!(single.contains("- name: node-cidr-mask-size\n"), "{single}");
        let many = kubeadm(&answer("--vpc fd00:10::/32 --nodes 70000"));
        assert!(
            many.contains("# podSubnet fd00:10::/45 is left out") && !many.contains("  podSubnet"),
            "{many}"
        );
    }

    #[test]
    fn n23_json_has_every_figure() {
        let text = json(&answer("--vpc 10.0.0.0/8 --vpc fd00:10::/48 --nodes 1000")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let [v4, v6] = [&value["families"][0], &value["families"][1]];
        assert_eq!(v4["network"], "10.0.0.0/13");
        assert_eq!(v4["room"]["nodes"], 4095);
        assert_eq!(v4["widened"]["network"], "10.0.0.0/9");
        assert_eq!(v4["otherCuts"][0]["subnetLen"], 24);
        assert_eq!(v6["room"]["podsPerNode"], u64::MAX - 2);
        assert_eq!(value["notes"].as_array().unwrap().len(), 2);
    }
}
