//! podway with a real kube-apiserver, etcd and controller manager: what it reads there, what it writes there, and what
//! it does while they are away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use podway_suites::{
    Cluster, Dataplane, KernelState, Load, Member, SOON, Source, Way, await_answers, await_answers_by,
    await_no_trace_of, await_refusal, complaints, wait_until_programmed, web_behind,
};
use podway_testkit::manifests::{self, Service};
use podway_testkit::{ControlPlane, Host, Lab, POD_CIDRS, Pod, Probe, Process, eventually, in_lab};
use serde_json::{Value, json};

/// What pods listen on.
const PORT: u16 = 8080;

/// What podway may do at the API server, as users apply it.
const PODWAY: &str = include_str!("../../../manifests/podway.yaml");

#[test]
fn n5_n18_nodes_with_assigned_pod_cidrs_find_each_other_by_the_annotations_that_podway_writes() {
    in_lab("kube-network", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let plane = cluster.control_plane();
        let members = [cluster.unpublished_member(1)?, cluster.unpublished_member(2)?];
        let mut podways = Vec::new();
        for member in &members {
            cluster
                .publish(member.name(), manifests::node(member.name()).internal_ips(member.addresses()))?;
            let ranges = format!("network.podNetworks=[{}]", quoted(POD_CIDRS));
            let command = member.podway_command("run", Dataplane::Nftables)?.args(["--set", &ranges]);
            podways.push(command.start("podway")?);
        }
        podways.iter().try_for_each(wait_until_programmed)?;
        // Only now: podway waits for what the controller manager assigns.
        plane.allocate_pod_cidrs()?;
        let nodes = members.each_ref().map(|member| announced_node(plane, member.name()));
        for (member, node) in members.iter().zip(&nodes) {
            assert_eq!(flannel_annotations(node), expected_annotations(member)?);
            let condition = condition(node, "NetworkUnavailable").context("no condition")?;
            assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("PodwayIsUp")));
        }

        let client = assigned_pod(&members[0], &nodes[0], "client")?;
        let web = assigned_pod(&members[1], &nodes[1], "web")?;
        let _server = web.serve("web", PORT)?;
        let before = lab.vxlan_packets()?;
        for way in Way::all(web.addresses().iter().copied(), PORT) {
            let answers = await_answers(&client, way);
            assert_eq!(answers.sources(), [way.same_family(&client)].into(), "{way}");
        }
        assert!(lab.vxlan_packets()? - before >= 8, "four answers, each over VXLAN");
        Ok(())
    });
}

#[test]
fn n12_a_node_that_is_deleted_leaves_nothing_and_is_as_before_when_it_is_registered_again() {
    in_lab("kube-nodes", |lab| {
        let site = Site::open(lab)?;
        let way = Way::all([site.far.ipv4()], PORT)[0];
        await_answers(&site.client, way);
        let with_both = KernelState::read(&site.one)?;

        site.cluster.withdraw("node-2")?;
        await_no_trace_of(2, &site.one);
        assert_eq!(site.client.send(way.probe().timeout(Duration::from_millis(200)))?.answered(), 0);

        site.cluster.publish("node-2", site.two.manifest())?;
        await_answers(&site.client, way);
        announced_node(site.cluster.control_plane(), "node-2");
        eventually(SOON, "the same state as before", || {
            let state = KernelState::read(&site.one).map_err(|error| format!("{error:#}"))?;
            if state == with_both { Ok(()) } else { Err(format!("{:#?}", with_both.beyond(&state))) }
        });
        Ok(())
    });
}

#[test]
fn services_at_the_addresses_that_the_api_server_assigns_follow_their_endpoints() {
    in_lab("kube-services", |lab| {
        let site = Site::open(lab)?;
        let ways = site.publish_web(&web(), [&site.near, &site.far])?;
        assert_eq!(ways.len(), 4, "TCP and UDP, IPv4 and IPv6: {ways:?}");
        let reach = |client: &Host, names: &[&str]| {
            ways.iter().for_each(|way| await_answers_by(client, *way, names));
        };
        reach(&site.client, &["near", "far"]);
        reach(&site.one, &["near", "far"]);
        site.publish_web(&web(), [&site.near])?;
        reach(&site.client, &["near"]);
        site.publish_web(&web(), [])?;
        ways.iter().for_each(|way| drop(await_refusal(&site.client, *way)));
        site.publish_web(&web(), [&site.far])?;
        reach(&site.client, &["far"]);
        // Deleted by whoever looks after them, slice by slice, then the Service.
        site.cluster.control_plane().delete(web_behind([]))?;
        ways.iter().for_each(|way| drop(await_refusal(&site.client, *way)));
        site.cluster.control_plane().delete(web())?;
        ways.iter().for_each(|way| nobody_answers(&site.client, *way));
        // Slots go in a transaction behind the one that ends the Service.
        eventually(SOON, "no trace of the deleted Service", || {
            let kernel = KernelState::read(&site.one).map_err(|error| format!("{error:#}"))?;
            let address = format!("{} ", ways[0].address.ip());
            if kernel.mentions(&address) { Err(format!("{address}is still there")) } else { Ok(()) }
        });
        Ok(())
    });
}

#[test]
fn s1_a_service_that_is_labelled_as_another_proxys_is_let_go_and_taken_back() {
    in_lab("kube-proxy-name", |lab| {
        let site = Site::open(lab)?;
        let ways = site.publish_web(&web(), [&site.near])?;
        await_answers_by(&site.client, ways[0], &["near"]);
        let label = "/metadata/labels/service.kubernetes.io~1service-proxy-name";
        // Applied by its owner, who drops the label again by leaving it out.
        site.publish_web(&web().set(label, "another"), [&site.near])?;
        ways.iter().for_each(|way| nobody_answers(&site.client, *way));
        site.publish_web(&web(), [&site.near])?;
        ways.iter().for_each(|way| await_answers_by(&site.client, *way, &["near"]));
        Ok(())
    });
}

#[test]
fn s24_traffic_goes_on_without_the_api_server_and_what_changed_meanwhile_is_followed() {
    in_lab("kube-away", |lab| {
        let site = Site::open(lab)?;
        let plane = site.cluster.control_plane();
        let ways = site.publish_web(&web(), [&site.near])?;
        let leaving = manifests::service("leaving").tcp("http", 80, PORT);
        plane
            .apply(format!("{leaving}{}", manifests::slices("leaving").tcp("http", PORT).pod(&site.near)))?;
        let leaving_way = Way::all(cluster_ips(plane, "leaving")?, 80)[0];
        ways.iter().chain([&leaving_way]).for_each(|way| await_answers_by(&site.client, *way, &["near"]));

        let load = Load::start(&site.client, ways.iter().copied())?;
        plane.stop()?;
        site.podways[0].wait_for_log("trying again", SOON)?;
        std::thread::sleep(Duration::from_secs(1));
        ways.iter().chain([&leaving_way]).for_each(|way| await_answers_by(&site.client, *way, &["near"]));

        plane.start()?;
        // Before podway has come back: it lists, and must see what is gone as well as what is new.
        plane.delete(&leaving)?;
        site.publish_web(&web(), [&site.near, &site.far])?;
        plane.apply(manifests::service("coming").tcp("http", 80, PORT))?;
        plane.apply(manifests::slices("coming").tcp("http", PORT).pod(&site.near))?;
        let coming_way = Way::all(cluster_ips(plane, "coming")?, 80)[0];
        ways.iter().for_each(|way| await_answers_by(&site.client, *way, &["near", "far"]));
        await_answers_by(&site.client, coming_way, &["near"]);
        nobody_answers(&site.client, leaving_way);
        load.assert_nothing_lost();
        assert!(site.podways[0].log().contains("API server answers again"));
        Ok(())
    });
}

#[test]
fn s24_s32_a_restart_without_the_api_server_changes_nothing_and_later_finds_all_as_planned() {
    in_lab("kube-restart", |lab| {
        let mut site = Site::open(lab)?;
        let ways = site.publish_web(&web(), [&site.near, &site.far])?;
        ways.iter().for_each(|way| await_answers_by(&site.client, *way, &["near", "far"]));
        site.cluster.control_plane().stop()?;
        let before = KernelState::read(&site.one)?;
        let load = Load::start(&site.client, ways.iter().copied())?;

        for stopped in [true, false] {
            if stopped {
                site.podways[0].stop()?
            } else {
                site.podways[0].kill9()?
            };
            site.podways[0] = site.one.podway_command("run", Dataplane::Nftables)?.start("podway")?;
            site.podways[0].wait_for_log("trying again", SOON)?;
            std::thread::sleep(Duration::from_millis(500));
            before.assert_same(&KernelState::read(&site.one)?);
        }

        site.cluster.control_plane().start()?;
        for half in ["pod network stands as planned", "Services stand as planned"] {
            site.podways[0].wait_for_log(half, 2 * SOON)?;
        }
        before.assert_same(&KernelState::read(&site.one)?);
        load.assert_nothing_lost();
        site.publish_web(&web(), [&site.far])?;
        ways.iter().for_each(|way| await_answers_by(&site.client, *way, &["far"]));
        Ok(())
    });
}

#[test]
fn s42_the_rights_of_manifests_podway_yaml_are_enough_and_no_more_than_that() {
    in_lab("kube-rights", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let (plane, node) = (cluster.control_plane(), cluster.member(1)?);
        let kubeconfig = plane.service_account_kubeconfig("kube-system", "podway")?;
        let podway = start_as(&node, &kubeconfig)?;
        podway.wait_for_log("trying again", SOON)?;
        let log = podway.log();
        let complaint = complaints(&log).first().copied().unwrap_or_default();
        for name in [&*plane.server_url(), "system:serviceaccount:kube-system:podway", "is forbidden"] {
            assert!(complaint.contains(name), "{complaint} does not name {name}");
        }

        plane.apply(PODWAY)?;
        wait_until_programmed(&podway)?;
        announced_node(plane, "node-1");
        let (web_pod, _server) = node.serving_pod("web")?;
        plane.apply(format!("{}{}", web(), web_behind([&web_pod])))?;
        let client = node.pod("client")?;
        for way in Way::all(cluster_ips(plane, "web")?, 80) {
            await_answers_by(&client, way, &["web"]);
        }

        for (verb, resource, is_allowed) in [
            ("list", "services", true),
            ("watch", "endpointslices", true),
            ("watch", "nodes", true),
            ("watch", "servicecidrs", true),
            ("create", "servicecidrs", false),
            ("patch", "nodes/status", true),
            ("patch", "nodes", true),
            ("update", "nodes/status", false),
            ("delete", "nodes", false),
            ("create", "services", false),
            ("update", "endpointslices", false),
            ("list", "secrets", false),
            ("list", "pods", false),
        ] {
            assert_eq!(may(plane, verb, resource)?, is_allowed, "{verb} {resource}");
        }
        Ok(())
    });
}

/// Two nodes with a podway each; a client and the pod `near` on one, the pod `far` on the other.
struct Site<'lab> {
    cluster: Cluster<'lab>,
    one: Member,
    two: Member,
    client: Pod,
    near: Pod,
    far: Pod,
    podways: [Process; 2],
    _servers: [Process; 2],
}

impl<'lab> Site<'lab> {
    fn open(lab: &'lab Lab) -> Result<Self> {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let (one, two) = (cluster.member(1)?, cluster.member(2)?);
        // Calls are refused here more often than the one ICMP error a second that the kernel sends to one client.
        one.sysctl("net.ipv4.icmp_ratelimit", "0")?;
        one.sysctl("net.ipv6.icmp.ratelimit", "0")?;
        let client = one.pod("client")?;
        let ((near, near_server), (far, far_server)) = (one.serving_pod("near")?, two.serving_pod("far")?);
        let podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        Ok(Self { cluster, one, two, client, near, far, podways, _servers: [near_server, far_server] })
    }

    /// Applies `web` with these endpoints, and returns every way to call it.
    fn publish_web<'pod>(
        &self,
        web: &Service,
        pods: impl IntoIterator<Item = &'pod Pod>,
    ) -> Result<Vec<Way>> {
        self.cluster.publish("web", format!("{web}{}", web_behind(pods)))?;
        Ok(Way::all(cluster_ips(self.cluster.control_plane(), "web")?, 80))
    }
}

/// `web` without addresses: the API server assigns one of each family.
fn web() -> Service {
    manifests::service("web")
        .set("/spec/ipFamilyPolicy", "RequireDualStack")
        .tcp("tcp", 80, PORT)
        .udp("udp", 80, PORT)
}

fn cluster_ips(plane: &ControlPlane, service: &str) -> Result<Vec<IpAddr>> {
    let service = plane.get(&format!("/api/v1/namespaces/default/services/{service}"))?;
    serde_json::from_value(service["spec"]["clusterIPs"].clone()).with_context(|| service.to_string())
}

/// Waits until calls go unanswered, by whatever failure: nobody is at the address any more.
#[track_caller]
fn nobody_answers(client: &Host, way: Way) {
    eventually(SOON, &format!("nobody at {way}"), || {
        let probe = Probe::new(way.transport, way.address).timeout(Duration::from_millis(100));
        let answers = client.send(probe).map_err(|error| format!("{error:#}"))?;
        if answers.answered() == 0 { Ok(()) } else { Err(answers.to_string()) }
    });
}

/// The Node, once podway has told the cluster that its network works.
#[track_caller]
fn announced_node(plane: &ControlPlane, name: &str) -> Value {
    eventually(SOON, &format!("{name} is announced"), || {
        let node = plane.get(&format!("/api/v1/nodes/{name}")).map_err(|error| format!("{error:#}"))?;
        let is_announced =
            condition(&node, "NetworkUnavailable").is_some() && !flannel_annotations(&node).is_empty();
        if is_announced { Ok(node) } else { Err(node.to_string()) }
    })
}

fn condition<'node>(node: &'node Value, kind: &str) -> Option<&'node Value> {
    node["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn flannel_annotations(node: &Value) -> BTreeMap<String, String> {
    let annotations = node["metadata"]["annotations"].as_object();
    let flannels = annotations.into_iter().flatten().filter_map(|(key, value)| {
        Some((key.strip_prefix("flannel.alpha.coreos.com/")?.to_owned(), value.as_str()?.to_owned()))
    });
    flannels.collect()
}

/// What flannel would write for the links that stand on the node, byte for byte.
fn expected_annotations(node: &Member) -> Result<BTreeMap<String, String>> {
    let data = |link: &str| -> Result<String> {
        let listed: Value =
            serde_json::from_str(&node.command("ip").args(["-json", "link", "show", link]).run()?)?;
        let mac = listed[0]["address"].as_str().with_context(|| format!("{link} has no address"))?;
        Ok(format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#))
    };
    let annotations = [
        ("backend-data", data("flannel.1")?),
        ("backend-type", "vxlan".to_owned()),
        ("backend-v6-data", data("flannel-v6.1")?),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", node.ipv4().to_string()),
        ("public-ipv6", node.ipv6().to_string()),
    ];
    Ok(annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A pod with the eighth address of each of its Node's subnets.
fn assigned_pod(member: &Member, node: &Value, name: &str) -> Result<Pod> {
    let cidrs: Vec<IpNet> = serde_json::from_value(node["spec"]["podCIDRs"].clone())?;
    let addresses = cidrs.iter().filter_map(|cidr| cidr.hosts().nth(7));
    (**member).pod(name, addresses)
}

fn quoted(list: &str) -> String {
    list.split(',').map(|item| format!("{item:?}")).collect::<Vec<_>>().join(",")
}

fn start_as(node: &Member, kubeconfig: &Path) -> Result<Process> {
    let field = format!("source.kube.kubeconfig={}", kubeconfig.display());
    node.podway_command("run", Dataplane::Nftables)?.args(["--set", &field]).start("podway")
}

/// Whether RBAC lets podway's ServiceAccount do this.
fn may(plane: &ControlPlane, verb: &str, resource: &str) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let group = match resource {
        "endpointslices" => "discovery.k8s.io",
        "servicecidrs" => "networking.k8s.io",
        _ => "",
    };
    let attributes =
        json!({ "verb": verb, "group": group, "resource": resource, "subresource": subresource });
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": { "user": "system:serviceaccount:kube-system:podway", "resourceAttributes": attributes },
    });
    let answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)?;
    answer["status"]["allowed"].as_bool().context("no answer")
}
