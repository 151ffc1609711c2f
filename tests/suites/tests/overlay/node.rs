//! What podway leaves on its own node: files, system settings, and what stays when it stops (N9, N19, N20, N22).

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};
use podway_suites::{Cluster, KernelState, Member, SOON, Source, await_answers};
use podway_testkit::{Host, Lab, Pod, Probe, Process, eventually, in_lab, manifests};
use serde_json::Value;

use crate::{PORT, link, reaches, run, ways_to};

#[test]
fn n9_subnet_env_is_flannels_byte_for_byte() {
    in_lab("overlay-subnet-env", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let path = one.subnet_file()?;
        for (settings, expected) in [
            (
                &[][..],
                "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.1.1/24\nFLANNEL_IPV6_NETWORK=fd77::/48\n\
                 FLANNEL_IPV6_SUBNET=fd77:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
            ),
            (
                &["network.podNetworks=[10.77.0.0/16]", "network.masquerade=false"],
                "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.1.1/24\nFLANNEL_MTU=1450\n\
                 FLANNEL_IPMASQ=false\n",
            ),
        ] {
            let podway = run(&one, settings)?;
            eventually(SOON, "subnet.env as flannel writes it", || match fs::read_to_string(&path) {
                Ok(text) if text == expected => Ok(()),
                Ok(text) => Err(anyhow!(text)),
                Err(error) => Err(error.into()),
            });
            assert!(podway.stop()?.success());
            assert_eq!(fs::read_to_string(&path)?, expected, "it stays");
        }
        Ok(())
    });
}

#[test]
fn n9_whoever_reads_subnet_env_while_it_changes_sees_the_old_one_or_the_new_one() {
    in_lab("overlay-subnet-whole", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let _podway = run(&one, &[])?;
        let path = one.subnet_file()?;
        let text = fs::read_to_string(&path)?;
        let whole = [text.clone(), text.replace("FLANNEL_MTU=1430", "FLANNEL_MTU=1330")];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    seen.insert(fs::read_to_string(&path).unwrap_or_else(|error| error.to_string()));
                }
                seen
            });
            let changed = ["1330", "1430", "1330"].into_iter().try_for_each(|inner| {
                one.ip(&format!("link set eth0 mtu {}", if inner == "1330" { 1400 } else { 1500 }))?;
                crate::await_in_subnet_env(&one, &format!("FLANNEL_MTU={inner}"))
            });
            done.store(true, Ordering::Relaxed);
            let seen = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            changed?;
            assert_eq!(seen, whole.into());
            Ok(())
        })
    });
}

#[test]
fn n19_forwarding_is_switched_on_and_strict_reverse_path_filters_let_the_overlay_through() {
    in_lab("overlay-sysctls", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        for member in [&one, &two] {
            member.sysctl("net.ipv4.conf.all.rp_filter", "1")?;
            member.sysctl("net.ipv4.conf.default.rp_filter", "1")?;
            member.sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
        }
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        for member in [&one, &two] {
            member.sysctl("net.ipv4.ip_forward", "0")?;
            member.sysctl("net.ipv6.conf.all.forwarding", "0")?;
        }
        let _podways = (run(&one, &[])?, run(&two, &[])?);
        reaches(&client, &web);
        let setting = |key: &str| -> Result<String> {
            let path = format!("/proc/sys/{}", key.replace('.', "/"));
            Ok(one.command("cat").arg(path).run()?.trim().to_owned())
        };
        assert_eq!(setting("net.ipv4.ip_forward")?, "1");
        assert_eq!(setting("net.ipv6.conf.all.forwarding")?, "1");
        assert_eq!(setting("net.ipv4.conf.all.rp_filter")?, "1", "the administrator's");
        assert_eq!(setting("net.ipv4.conf.eth0.rp_filter")?, "1", "the administrator's");
        // A host reaches a remote pod with the link's address, which strict filters take for a stranger's.
        for way in ways_to(&web) {
            await_answers(&one, way);
        }
        Ok(())
    });
}

#[test]
fn n20_stopped_or_killed_podway_leaves_all_and_cleanup_takes_all() {
    in_lab("overlay-stop", |lab| {
        let (_cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let (client, (web, _server)) = (one.pod("client")?, two.serving_pod("web")?);
        let before = KernelState::read(&one)?;
        let network = lab.folder("net.d")?;
        let plugins = lab.folder("bin")?;
        let settings = [
            format!("network.cni.confDirectory={}", network.path().display()),
            format!("network.cni.binDirectory={}", plugins.path().display()),
        ];
        let settings = settings.each_ref().map(String::as_str);
        let _other = run(&two, &[])?;
        let podway = run(&one, &settings)?;
        reaches(&client, &web);
        let running = (KernelState::read(&one)?, fs::read(one.subnet_file()?)?, files(network.path())?);
        assert_eq!(running.2.len(), 1, "the CNI configuration: {:?}", running.2);
        let end = |podway: Process, kill: bool| -> Result<()> {
            if kill {
                podway.kill9()?
            } else {
                podway.stop()?
            };
            running.0.assert_same(&KernelState::read(&one)?);
            assert_eq!((&running.1, &running.2), (&fs::read(one.subnet_file()?)?, &files(network.path())?));
            reaches(&client, &web);
            Ok(())
        };
        end(podway, false)?;
        end(run(&one, &settings)?, true)?;
        let cleanup = one.podway_command("cleanup", podway_suites::Dataplane::Nftables)?;
        cleanup.args(settings.iter().flat_map(|setting| ["--set", setting])).run()?;
        before.await_again_on(&one);
        assert!(!one.subnet_file()?.exists());
        assert_eq!((files(network.path())?, files(plugins.path())?), (Vec::new(), Vec::new()));
        Ok(())
    });
}

#[test]
fn n22_packets_to_unused_pod_addresses_end_at_a_blackhole_route_and_elsewhere_without_it() {
    in_lab("overlay-blackhole", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (neighbour, _server) = one.serving_pod("neighbour")?;
        let strays = [
            lab.counter("strays-v4", "ip daddr 10.77.1.250")?,
            lab.counter("strays-v6", "ip6 daddr fd77:0:0:1::250")?,
        ];
        let send = || -> Result<()> {
            for address in ["10.77.1.250:9", "[fd77:0:0:1::250]:9"] {
                client.send(Probe::udp(address).timeout(std::time::Duration::from_millis(100)))?;
            }
            Ok(())
        };
        let podway = run(&one, &[])?;
        send()?;
        for stray in &strays {
            assert!(stray.packets()? > 0, "without the route they leave by the default route");
        }
        drop(podway);
        let _podway = run(&one, &["network.blackholeRoute=true"])?;
        let before = strays.iter().map(|stray| stray.packets()).collect::<Result<Vec<_>>>()?;
        send()?;
        let after = strays.iter().map(|stray| stray.packets()).collect::<Result<Vec<_>>>()?;
        assert_eq!(before, after, "packets that left the node");
        reaches(&client, &neighbour);
        Ok(())
    });
}

#[test]
fn n6_n7_pods_of_ipv6_alone_over_nodes_of_ipv6_alone() {
    in_lab("overlay-ipv6", |lab| {
        let cluster = Cluster::over(lab, Source::Directory)?;
        let members = [cluster.unpublished_member(1)?, cluster.unpublished_member(2)?];
        for member in &members {
            member.ip(&format!("addr del {}/24 dev eth0", member.ipv4()))?;
            let node = manifests::node(member.name()).pod_cidrs([&member.subnets()[1]]);
            cluster.publish(member.name(), node.internal_ips([member.ipv6()]))?;
        }
        let [one, two] = &members;
        let (client, web) = (ipv6_pod(one, "client")?, ipv6_pod(two, "web")?);
        let _server = web.serve("web", PORT)?;
        let alone = ["network.podNetworks=[\"fd77::/48\"]"];
        let _podways = (run(one, &alone)?, run(two, &alone)?);
        reaches(&client, &web);
        assert!(lab.vxlan_packets()? > 0);
        assert_eq!(link(one, "flannel.1")?, Value::Null, "a link of IPv4");
        assert_eq!(
            fs::read_to_string(one.subnet_file()?)?,
            "FLANNEL_IPV6_NETWORK=fd77::/48\nFLANNEL_IPV6_SUBNET=fd77:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
        );
        leaves_as_its_node(lab, &client, one)
    });
}

fn leaves_as_its_node(lab: &Lab, client: &Host, node: &Host) -> Result<()> {
    let outside = lab.outside("outside")?;
    let _server = outside.serve("outside", PORT)?;
    for way in podway_suites::Way::all([outside.ipv6()], PORT) {
        assert_eq!(await_answers(client, way).sources(), [node.ipv6()].into(), "{way}");
    }
    Ok(())
}

fn ipv6_pod(member: &Member, name: &str) -> Result<Pod> {
    (**member).pod(name, [format!("fd77:0:0:{}::9", member.number())])
}

/// The names in a folder.
fn files(folder: &std::path::Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
