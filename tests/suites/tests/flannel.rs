//! podway and the real flannel in one cluster: pods and hosts reach each other in all directions, whoever runs the pod
//! network of their nodes.

use anyhow::Result;
use podway_suites::{FlannelCluster, FlannelNode, Rules, Runner, SOON, Way, await_answers, stop};
use podway_testkit::{Host, Lab, Pod, Process, eventually, in_lab};

const PORT: u16 = 8080;

#[test]
fn n5_x6_podway_joins_a_cluster_of_flannel_and_everybody_reaches_everybody() {
    in_lab("flannel-joined", |lab| {
        everybody_reaches_everybody(
            lab,
            Rules::Nftables,
            [Runner::Flanneld, Runner::Flanneld, Runner::PodwayFlanneld],
        )
    });
}

#[test]
fn n5_x6_flannel_joins_a_cluster_of_podway_and_everybody_reaches_everybody() {
    in_lab("flannel-joins", |lab| {
        everybody_reaches_everybody(
            lab,
            Rules::Iptables,
            [Runner::PodwayRun, Runner::PodwayFlanneld, Runner::Flanneld],
        )
    });
}

/// Three nodes; then the second leaves, and a fourth joins that runs what the second did.
fn everybody_reaches_everybody(lab: &Lab, rules: Rules, runners: [Runner; 3]) -> Result<()> {
    let cluster = FlannelCluster::open(lab, rules)?;
    let [first, second, third] = runners;
    let one = Site::raise(&cluster, 1, first)?;
    let two = Site::raise(&cluster, 2, second)?;
    let three = Site::raise(&cluster, 3, third)?;
    reach_each_other(&[&one, &two, &three])?;
    for site in [&one, &two, &three] {
        assert_eq!(
            cluster.annotations(site.node.name())?,
            site.node.expected_annotations()?,
            "{}",
            site.node.name()
        );
    }
    assert!(lab.vxlan_packets()? > 0);

    let gone = two.node.subnets().to_vec();
    drop((two.daemon, two.servers));
    cluster.leave(two.node)?;
    for site in [&one, &three] {
        eventually(SOON, &format!("no route to a node that left, on {}", site.node.name()), || {
            let routes = site.routes().map_err(|error| format!("{error:#}"))?;
            if gone.iter().any(|subnet| routes.contains(&subnet.to_string())) { Err(routes) } else { Ok(()) }
        });
    }
    let four = Site::raise(&cluster, 4, second)?;
    reach_each_other(&[&one, &three, &four])?;
    for site in [&one, &three, &four] {
        stop(&site.daemon)?;
    }
    Ok(())
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
        let name = format!("pod-{number}");
        let pod = node.pod(&name)?;
        let servers = [pod.serve(&name, PORT)?, node.serve(node.name(), PORT)?];
        Ok(Self { node, daemon, pod, servers })
    }

    fn routes(&self) -> Result<String> {
        let of = |family: &str| self.node.command("ip").args([family, "route"]).run();
        Ok(of("-4")? + &of("-6")?)
    }
}

/// Pods and hosts, TCP and UDP, IPv4 and IPv6. Pods are seen under their own addresses by other pods, as their nodes by
/// hosts of other nodes.
fn reach_each_other(sites: &[&Site]) -> Result<()> {
    for from in sites {
        for to in sites.iter().filter(|to| to.node.name() != from.node.name()) {
            for way in ways_to(&to.pod) {
                let answers = await_answers(&from.pod, way);
                assert_eq!(answers.sources(), [way.same_family(&from.pod)].into(), "{way}: pod to pod");
                await_answers(&from.node, way);
            }
            for way in ways_to(&to.node) {
                let answers = await_answers(&from.pod, way);
                assert_eq!(answers.sources(), [way.same_family(&from.node)].into(), "{way}: pod to host");
            }
        }
    }
    Ok(())
}

fn ways_to(host: &Host) -> Vec<Way> {
    Way::all([host.ipv4(), host.ipv6()], PORT)
}
