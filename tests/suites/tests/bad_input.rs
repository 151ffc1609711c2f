//! Input that cannot be used, and machines that are not as they should be: each ends in one message that names the
//! thing, and in an exit or a retry as fits.

use std::fs;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;

use anyhow::Result;
use podway_suites::{
    Cluster, Dataplane, KernelState, Member, SOON, Source, WEB, WEB_PORT, Way, await_answers, await_refusal,
    complaints, wait_until_programmed, web_answers, web_behind, web_service,
};
use podway_testkit::{Command, Host, Lab, Pod, Process, binary, eventually, in_lab, manifests};
use serde_json::json;

#[test]
fn an_unknown_field_of_the_configuration_is_named_with_its_path_and_broken_text_with_its_line() {
    in_lab("bad-field", |lab| {
        let machine = lab.outside("machine")?;
        let config = lab.folder("config")?.write("podway.yaml", "network:\n  vnii: 7\n")?;
        let said = last_words(podway(&machine)?.arg("--config").arg(&config))?;
        assert_names(&said, [&*config.to_string_lossy(), "network.vnii", "unknown field"]);
        fs::write(&config, "network:\n  vni: [\n")?;
        let said = last_words(podway(&machine)?.arg("--config").arg(&config))?;
        assert_names(&said, [&*config.to_string_lossy(), "line 2", "unclosed bracket"]);
        Ok(())
    });
}

#[test]
fn a_wrong_value_is_named_with_its_field_and_where_it_was_set() {
    in_lab("bad-value", |lab| {
        let machine = lab.outside("machine")?;
        let config = lab.folder("config")?.write("podway.yaml", "network: {port: many}\n")?;
        let said = last_words(podway(&machine)?.arg("--config").arg(&config))?;
        assert_names(&said, [&*config.to_string_lossy(), "network.port", "many"]);
        let said = last_words(podway(&machine)?.args(["--set", "network.vni=16777216"]))?;
        assert_names(&said, ["--set network.vni=16777216", "between 1 and 16777215"]);
        let said = last_words(podway(&machine)?.args(["--set", "network.podNetworks=[10.0.0.0/33]"]))?;
        assert_names(&said, ["--set network.podNetworks", "network.podNetworks: entry 0"]);
        Ok(())
    });
}

#[test]
fn a_configuration_file_that_is_not_there_is_named() {
    in_lab("bad-file", |lab| {
        let machine = lab.outside("machine")?;
        let absent = lab.folder("config")?.path().join("podway.yaml");
        let said = last_words(podway(&machine)?.arg("--config").arg(&absent))?;
        assert_names(&said, [&*absent.to_string_lossy(), "No such file"]);
        let output = podway(&machine)?.arg("--kubeconfig").arg(&absent).within(SOON).output()?;
        assert!(!output.status.success(), "{}", output.stderr);
        let said = output.stderr.lines().last().unwrap_or_default();
        assert_names(said, ["podway: kubeconfig", &absent.to_string_lossy(), "No such file"]);
        assert_eq!(said.matches("No such file").count(), 1, "{said}");
        Ok(())
    });
}

#[test]
fn an_unknown_variable_is_named() {
    in_lab("bad-variable", |lab| {
        let machine = lab.outside("machine")?;
        let said = last_words(podway(&machine)?.env("PODWAY_NETWORK_VNII", "7"))?;
        assert_names(&said, ["PODWAY_NETWORK_VNII", "no such setting", "podway config"]);
        let said = last_words(podway(&machine)?.env("PODWAY_NETWORK_PORT", "many"))?;
        assert_names(&said, ["PODWAY_NETWORK_PORT", "network.port", "many"]);
        Ok(())
    });
}

#[test]
fn n23_services_among_the_addresses_of_pods_are_named_whenever_they_come_and_nothing_waits_for_them() {
    in_lab("bad-ranges", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let podway = cluster.member(1)?.podway(Dataplane::Nftables)?;
        wait_until_programmed(&podway)?;
        assert_eq!(complaints(&podway.log()), Vec::<&str>::new());
        let range = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": { "name": "more" },
            "spec": { "cidrs": ["10.77.1.128/25"] },
        });
        cluster.publish("more", range)?;
        podway.wait_for_log("this node's subnet 10.77.1.0/24 contains Service range 10.77.1.128/25", SOON)?;
        Ok(())
    });
}

#[test]
fn n23_a_nodes_address_among_the_pods_is_named_and_a_subnet_that_would_cut_it_off_is_not_routed() {
    in_lab("bad-underlay", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes::<2>(lab)?;
        let peer = |name: &str, address: &str, subnet: &str| {
            let address: IpAddr = address.parse().unwrap();
            manifests::node(name).internal_ips([address]).pod_cidrs([subnet])
        };
        cluster.publish("vpc", peer("vpc", "10.77.200.9", "10.77.9.0/24"))?;
        let podway = one.podway(Dataplane::Nftables)?;
        wait_until_programmed(&podway)?;
        podway.wait_for_log("Node vpc: its address 10.77.200.9", SOON)?;
        let routes = || -> Result<String> { one.command("ip").args(["route", "show", "proto", "105"]).run() };
        assert!(routes()?.contains("10.77.9.0/24"), "{}", routes()?);

        cluster.publish("late", peer("late", "192.0.2.77", "10.77.200.0/24"))?;
        podway.wait_for_log("Node late: subnet 10.77.200.0/24 contains 10.77.200.9, the address of Node vpc", SOON)?;
        let routes = routes()?;
        assert!(routes.contains("10.77.9.0/24") && routes.contains("10.77.2.0/24"), "{routes} on {}", two.name());
        assert!(!routes.contains("10.77.200.0/24"), "{routes}");
        Ok(())
    });
}

#[test]
fn without_the_right_to_program_the_network_podway_says_which_one_it_needs() {
    in_lab("bad-rights", |lab| {
        let node = lab.node("node-1")?;
        // A copy: the folder of the original may be closed to others than root.
        let copy = lab.folder("program")?.path().join("podway");
        // By another process: a program that this one has open for writing cannot be started while a parallel test forks.
        node.command("cp").args([&binary("podway")?, &copy]).run()?;
        for subcommand in ["run", "cleanup"] {
            let run = || std::process::Command::new(&copy).arg(subcommand).uid(65534).gid(65534).output();
            let output = node.enter(run)??;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{said}");
            assert_names(&said, ["CAP_NET_ADMIN", "root"]);
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        Ok(())
    });
}

#[test]
fn without_nft_podway_names_the_package_and_ends() {
    in_lab("bad-nft", |lab| {
        let (_cluster, [node]) = Cluster::of_nodes(lab)?;
        let command = node.podway_command("run", Dataplane::Nftables)?;
        let output = command.env("PATH", lab.folder("no-programs")?.path()).within(SOON).output()?;
        assert!(!output.status.success(), "{}", output.stderr);
        let said = output.stderr.lines().last().unwrap_or_default();
        assert_names(said, ["nft", "install the package nftables"]);
        assert_eq!(complaints(&output.stderr), Vec::<&str>::new());
        Ok(())
    });
}

#[test]
fn s37_a_cgroup_that_cannot_be_used_is_named() {
    in_lab("bad-cgroup", |lab| {
        let (_cluster, [node]) = Cluster::of_nodes(lab)?;
        for (path, why) in [("/nowhere/pods", "No such file"), ("/proc/self", "cgroup2")] {
            let setting = format!("ebpf.cgroup={path}");
            let output = node
                .podway_command("run", Dataplane::Ebpf)?
                .args(["--set", &setting])
                .within(SOON)
                .output()?;
            assert!(!output.status.success(), "{}", output.stderr);
            let said = output.stderr.lines().last().unwrap_or_default();
            assert_names(said, ["dataplane ebpf", path, why]);
        }
        Ok(())
    });
}

#[test]
fn s33_a_malformed_manifest_is_named_by_file_and_line_and_the_others_go_on() {
    in_lab("bad-manifest", |lab| {
        let shop = Shop::open(lab)?;
        shop.cluster.publish("other", "apiVersion: v1\nkind: Service\n  metadata: [\n")?;
        shop.complains(["other.yaml:3", "stands until it is mended"])?;
        web_answers(&shop.client, &["web-1"]);

        // A change in another file, and one in another document of the same file, are followed all the same.
        let other = other_service(json!(80));
        let broken = format!("{other}{}---\nkind: Service\nmetadata: {{name: \n", other_slices(&shop.web));
        shop.cluster.publish("other", broken)?;
        await_answers(&shop.client, other_way(80));
        shop.cluster.publish("web", format!("{}{}", web_service(), web_behind([])))?;
        await_refusal(&shop.client, Way::all(WEB, WEB_PORT)[0]);

        shop.cluster.publish("other", format!("{}{}", other_service(json!(81)), other_slices(&shop.web)))?;
        await_answers(&shop.client, other_way(81));
        Ok(())
    });
}

#[test]
fn s33_a_wrong_field_is_named_with_its_object_and_the_rest_of_it_goes_on() {
    in_lab("bad-service", |lab| {
        let shop = Shop::open(lab)?;
        let ports = json!([
            { "name": "http", "protocol": "TCP", "port": 80 },
            { "name": "admin", "protocol": "TCP", "port": 70000 },
        ]);
        let service = other_service(json!(80)).set("/spec/ports", ports);
        shop.cluster.publish("other", format!("{service}{}", other_slices(&shop.web)))?;
        shop.complains(["Service default/other", "spec.ports[1].port", "70000"])?;
        await_answers(&shop.client, other_way(80));

        // The wrong type instead of a wrong value: the object as a whole cannot be read; others of the file can.
        let text = web_service().set("/spec/ports", json!([{ "port": "http" }]));
        shop.cluster
            .publish("other", format!("{text}{}{}", other_service(json!(81)), other_slices(&shop.web)))?;
        eventually(SOON, "the field's path", || {
            let log = shop.podway.log();
            let named = complaints(&log).iter().any(|line| line.contains("spec.ports[0].port"));
            if named { Ok(()) } else { Err(log) }
        });
        await_answers(&shop.client, other_way(81));
        web_answers(&shop.client, &["web-1"]);
        Ok(())
    });
}

#[test]
fn an_api_server_that_is_not_there_is_named_by_its_url_and_tried_again_until_it_comes() {
    in_lab("bad-server", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let node = cluster.member(1)?;
        let plane = cluster.control_plane();
        plane.stop()?;
        let podway = node.podway_command("run", Dataplane::Nftables)?.start("podway")?;
        podway.wait_for_log("trying again", SOON)?;
        // Three kinds are watched and tried several times: said once.
        std::thread::sleep(std::time::Duration::from_secs(1));
        let log = podway.log();
        let [complaint] = complaints(&log)[..] else { panic!("not one message:\n{log}") };
        assert_names(complaint, [&plane.server_url(), "refused"]);
        plane.start()?;
        wait_until_programmed(&podway)?;
        assert!(podway.log().contains("API server answers again"), "{}", podway.log());
        assert!(podway.stop()?.success());
        Ok(())
    });
}

#[test]
fn n14_a_vxlan_port_that_is_taken_is_named_with_who_has_it_and_taken_over_when_it_is_free() {
    in_lab("bad-port", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        // With another mode than podway's, so that the two cannot share the port.
        one.ip("link add vxlan99 type vxlan id 99 dstport 8472 gbp dev eth0\nlink set vxlan99 up")?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web-1")?);
        let _peer = two.podway(Dataplane::Nftables)?;
        let podway = one.podway_command("run", Dataplane::Nftables)?.start("podway")?;
        podway.wait_for_log("vxlan99", SOON)?;
        let log = podway.log();
        let [complaint, ..] = complaints(&log)[..] else { panic!("no message:\n{log}") };
        assert_names(complaint, ["flannel.1", "8472", "VXLAN link vxlan99"]);
        assert_eq!(
            complaint.matches("in use").count(),
            2,
            "the link, and the kernel's word, once each: {complaint}"
        );
        assert!(podway.is_running());
        one.ip("link del vxlan99")?;
        for way in Way::all(web.addresses().iter().copied(), 8080) {
            await_answers(&client, way);
        }
        Ok(())
    });
}

#[test]
fn a_machine_without_its_node_is_told_so_and_joins_when_the_node_appears() {
    in_lab("bad-node", |lab| {
        let cluster = Cluster::over(lab, Source::Directory)?;
        let (one, two) = (cluster.unpublished_member(1)?, cluster.member(2)?);
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web-1")?);
        let podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        assert_one_complaint(&podways[0], ["Node node-1", "there is no such Node"]);
        cluster.publish("node-1", one.manifest())?;
        for way in Way::all(web.addresses().iter().copied(), 8080) {
            await_answers(&client, way);
        }
        assert!(podways[0].log().contains("no longer: Node node-1"), "{}", podways[0].log());
        Ok(())
    });
}

#[test]
fn n14_a_node_whose_subnet_is_outside_the_pod_networks_is_named_and_not_routed() {
    in_lab("bad-subnet", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let [_, subnet_v6] = two.subnets();
        cluster.publish("node-2", two.manifest().pod_cidrs(["10.99.2.0/24", &subnet_v6]))?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web-1")?);
        let podways = [one.podway(Dataplane::Nftables)?, two.podway(Dataplane::Nftables)?];
        for podway in &podways {
            assert_one_complaint(
                podway,
                ["Node node-2", "10.99.2.0/24", "outside the configured pod networks"],
            );
        }
        assert!(!KernelState::read(&one)?.mentions("10.99.2."));
        // The family that is right goes on.
        Way::all([web.ipv6()], 8080).into_iter().for_each(|way| drop(await_answers(&client, way)));
        cluster.publish("node-2", two.manifest())?;
        Way::all([web.ipv4()], 8080).into_iter().for_each(|way| drop(await_answers(&client, way)));
        Ok(())
    });
}

#[test]
fn n14_of_two_nodes_with_one_subnet_one_is_routed_and_the_other_is_named() {
    in_lab("bad-twins", |lab| {
        let (cluster, [one, two, three]) = Cluster::of_nodes(lab)?;
        cluster.publish("node-3", three.manifest().pod_cidrs(two.subnets()))?;
        let client = one.pod("client")?;
        let ((web, _web_server), (late, _late_server)) =
            (two.serving_pod("web-1")?, three.serving_pod("web-2")?);
        let podways = [&one, &two, &three].map(|member| member.podway(Dataplane::Nftables));
        let [podway, _two, _three] = podways;
        let podway = podway?;
        let log = podway.log();
        let told = complaints(&log);
        assert_eq!(told.len(), 2, "one for each family:\n{log}");
        for (complaint, subnet) in told.into_iter().zip(two.subnets()) {
            assert_names(complaint, ["Node node-3", &subnet, "only that of Node node-2 is routed"]);
        }
        let reaches = |pod: &Pod| {
            for way in Way::all(pod.addresses().iter().copied(), 8080) {
                await_answers(&client, way);
            }
        };
        reaches(&web);
        cluster.publish("node-3", three.manifest())?;
        reaches(&late);
        reaches(&web);
        Ok(())
    });
}

/// One node with the Service `web`.
struct Shop<'lab> {
    cluster: Cluster<'lab>,
    _node: Member,
    client: Pod,
    web: Pod,
    podway: Process,
    _server: Process,
}

impl<'lab> Shop<'lab> {
    fn open(lab: &'lab Lab) -> Result<Self> {
        let (cluster, [node]) = Cluster::of_nodes(lab)?;
        let (client, (web, server)) = (node.pod("client")?, node.serving_pod("web-1")?);
        cluster.publish("web", format!("{}{}", web_service(), web_behind([&web])))?;
        let podway = node.podway(Dataplane::Nftables)?;
        web_answers(&client, &["web-1"]);
        Ok(Self { cluster, _node: node, client, web, podway, _server: server })
    }

    /// Waits for the first complaint; there must be one, and it names all of these.
    #[track_caller]
    fn complains<const COUNT: usize>(&self, names: [&str; COUNT]) -> Result<()> {
        self.podway.wait_for_log(names[0], SOON)?;
        assert_one_complaint(&self.podway, names);
        Ok(())
    }
}

/// A second Service, at 10.96.0.20, with one port.
fn other_service(port: serde_json::Value) -> manifests::Service {
    let ports = json!([{ "name": "http", "protocol": "TCP", "port": port }]);
    manifests::service("other").cluster_ips(["10.96.0.20"]).set("/spec/ports", ports)
}

fn other_slices(pod: &Pod) -> manifests::Slices {
    manifests::slices("other").tcp("http", 8080).pod(pod)
}

fn other_way(port: u16) -> Way {
    Way::all([IpAddr::from([10, 96, 0, 20])], port)[0]
}

/// `podway run` with nothing set.
fn podway(machine: &Host) -> Result<Command> {
    Ok(machine.command(binary("podway")?).arg("run"))
}

/// Runs podway to its end, which must be a failure, and returns the one line that it says.
fn last_words(command: Command) -> Result<String> {
    let output = command.within(SOON).output()?;
    assert!(!output.status.success(), "{}", output.stderr);
    assert_eq!((output.stderr.lines().count(), output.stdout.as_str()), (1, ""), "{}", output.stderr);
    assert!(output.stderr.starts_with("podway: "), "{}", output.stderr);
    Ok(output.stderr)
}

#[track_caller]
fn assert_one_complaint<const COUNT: usize>(podway: &Process, names: [&str; COUNT]) {
    let log = podway.log();
    let [complaint] = complaints(&log)[..] else { panic!("not one message:\n{log}") };
    assert_names(complaint, names);
}

#[track_caller]
fn assert_names<const COUNT: usize>(said: &str, names: [&str; COUNT]) {
    let missing: Vec<_> = names.into_iter().filter(|name| !said.contains(name)).collect();
    assert!(missing.is_empty(), "does not name {missing:?}: {said}");
}
