//! How to look around in a demo that stays up.

use anyhow::{Context, Result};
use console::style;
use podway_testkit::{Host, binary, reference};

use crate::cluster::Cluster;
use crate::stage::Stage;

/// Prints commands to paste.
pub(crate) fn print(stage: &Stage<'_>) -> Result<()> {
    println!("\n{}", style("To look around").cyan().bold());
    for (what, commands) in commands(stage)? {
        println!("  {what}");
        commands.iter().for_each(|command| println!("    {}", style(command).bold()));
    }
    Ok(())
}

fn commands(stage: &Stage<'_>) -> Result<Vec<(&'static str, Vec<String>)>> {
    let (probe, podway) = (binary("podway-probe")?, binary("podway")?);
    let (probe, podway) = (probe.display(), podway.display());
    let (web, prices) = (stage.shop.service("web")?, stage.shop.service("prices")?);
    let (shopper, node) = (stage.shopper().netns(), stage.shoppers_node().netns());
    let daemon = &stage.podways[stage.shoppers_node().name()];
    let id = daemon.id().context("podway does not run")?;
    let config = daemon.config()?;
    let in_shopper = format!("ip netns exec {shopper} {probe} send");
    let in_node = format!("ip netns exec {node}");
    Ok(vec![
        (
            "send requests from a pod, and see who answers",
            vec![
                format!("{in_shopper} tcp {} --count 100 --summary", web.ipv4()?),
                format!("{in_shopper} udp {} --count 100 --summary", prices.ipv6()?),
            ],
        ),
        (
            "what podway made on a node: Services, pod network",
            vec![
                format!("{in_node} nft list table ip podway"),
                format!("{in_node} nft list table inet podway-network"),
                format!("ip -n {node} route show proto 105; ip -n {node} -d link show flannel.1"),
                format!("bridge -n {node} fdb show dev flannel.1"),
            ],
        ),
        ("change the cluster, and send again", edit(&stage.cluster)?),
        ("what podway says of it", vec![format!("tail -f {}/*.podway.log", stage.lab.logs().display())]),
        (
            "stop podway on a node, and start it with the other dataplane",
            vec![
                format!("kill {id}"),
                in_cgroup(
                    stage.shoppers_node(),
                    &format!("{podway} run --config {} --dataplane ebpf", config.display()),
                ) + " &",
                in_cgroup(stage.shopper(), &format!("{probe} send tcp {} --count 4", web.ipv4()?)),
            ],
        ),
        (
            "all namespaces: nodes, pods and the wire between them",
            vec!["ip netns list | grep pw-demo".to_owned()],
        ),
        ("remove it all", vec!["cargo xtask demo --remove".to_owned()]),
    ])
}

/// A command that runs where the lab's own programs do: in the host's cgroup, which eBPF programs are attached to, and
/// which ends with the lab. `ip netns exec` will not do, as it hides the cgroups below /sys.
fn in_cgroup(host: &Host, command: &str) -> String {
    let (cgroup, namespace) = (host.cgroup().display(), host.netns());
    format!("sh -c 'echo $$ > {cgroup}/cgroup.procs; exec nsenter --net=/run/netns/{namespace} {command}'")
}

fn edit(cluster: &Cluster) -> Result<Vec<String>> {
    match cluster {
        Cluster::Directory(folder) => {
            Ok(vec![format!("${{EDITOR:-vi}} {}/endpointslices.yaml", folder.path().display())])
        }
        Cluster::Kube(plane) => {
            let kubectl = format!(
                "ip netns exec {} {} --kubeconfig {} -n shop",
                plane.host().netns(),
                reference("kubectl")?.display(),
                plane.kubeconfig().display()
            );
            Ok(vec![
                format!("{kubectl} get nodes,services,endpointslices"),
                format!("{kubectl} edit endpointslice web-ipv4"),
            ])
        }
    }
}
