//! Pods that a container runtime attaches by the plugin and the configuration that the daemon installed, and how their
//! packets leave the cluster (N7, N10, N11).

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use podway_suites::{Cluster, Member, SOON, Way, await_answers, netns, wait_until_network_stands};
use podway_testkit::{Host, Transport, eventually, in_lab, reference};
use serde_json::{Value, json};

use crate::{PORT, await_in_subnet_env, run, start};

#[test]
fn n11_the_configuration_comes_when_the_network_works_and_pods_attached_by_it_reach_each_other() {
    in_lab("overlay-cni", |lab| {
        let cluster = Cluster::over(lab, podway_suites::Source::Directory)?;
        let nodes =
            [Runtime::new(cluster.unpublished_member(1)?)?, Runtime::new(cluster.unpublished_member(2)?)?];
        let [one, two] = &nodes;
        let podway = start(&one.member, &one.settings())?;
        eventually(SOON, "the plugin is installed", || match one.folder.join("bin/podway").exists() {
            true => Ok(()),
            false => Err("not yet"),
        });
        podway.wait_for_log("there is no such Node", SOON)?;
        assert!(!one.conflist().exists(), "before the network works");
        for node in &nodes {
            cluster.publish(node.member.name(), node.member.manifest())?;
        }
        wait_until_network_stands(&podway)?;
        let _other = run(&two.member, &two.settings())?;
        for node in &nodes {
            eventually(SOON, "the configuration", || match fs::read_to_string(node.conflist()) {
                Ok(text) => serde_json::from_str::<Value>(&text).map_err(Into::into),
                Err(error) => Err(anyhow!(error)),
            });
        }

        let (client, web) = (one.member.sandbox("client")?, two.member.sandbox("web")?);
        let (client_at, web_at) = (one.attach(&client, &[])?, two.attach(&web, &[18080])?);
        assert_eq!(client_at, ["10.77.1.2".parse::<IpAddr>()?, "fd77:0:0:1::2".parse()?]);
        let _server = web.serve("web", PORT)?;
        for way in Way::all(web_at.iter().copied(), PORT) {
            let answers = await_answers(&client, way);
            let own = client_at.iter().copied().find(|own| own.is_ipv4() == way.address.is_ipv4());
            assert_eq!(answers.sources(), own.into_iter().collect(), "{way}");
            await_answers(&one.member, way);
            await_answers(&two.member, way);
        }
        let _host_server = one.member.serve("host", PORT)?;
        for way in crate::ways_to(&one.member) {
            await_answers(&client, way);
        }
        for address in [two.member.ipv4_at(18080), two.member.ipv6_at(18080)] {
            await_answers(&client, Way { transport: Transport::Tcp, address });
        }
        Ok(())
    });
}

#[test]
fn n11_where_there_is_no_portmap_pods_are_attached_and_the_log_says_what_is_missing() {
    in_lab("overlay-cni-bare", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let one = Runtime::new(one)?;
        fs::remove_file(one.folder.join("bin/portmap"))?;
        let podway = run(&one.member, &one.settings())?;
        podway.wait_for_log("plugin portmap is not installed: hostPort has no effect", SOON)?;
        let pod = one.member.sandbox("pod")?;
        let addresses = one.attach(&pod, &[])?;
        let _server = pod.serve("pod", PORT)?;
        Way::all(addresses, PORT).into_iter().for_each(|way| drop(await_answers(&one.member, way)));
        Ok(())
    });
}

#[test]
fn n7_pods_that_come_after_a_change_of_the_mtu_have_the_new_one() {
    in_lab("overlay-cni-mtu", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let one = Runtime::new(one)?;
        let _podway = run(&one.member, &one.settings())?;
        let (before, after) = (one.member.sandbox("before")?, one.member.sandbox("after")?);
        one.attach(&before, &[])?;
        one.member.ip("link set eth0 mtu 1400")?;
        await_in_subnet_env(&one.member, "FLANNEL_MTU=1330")?;
        one.attach(&after, &[])?;
        assert_eq!(crate::link(&before, "eth0")?["mtu"], 1430);
        assert_eq!(crate::link(&after, "eth0")?["mtu"], 1330);
        Ok(())
    });
}

#[test]
fn n10_masqueraded_pods_get_a_random_port_or_keep_theirs_and_multicast_keeps_its_address() {
    in_lab("overlay-ports", |lab| {
        let (_cluster, [one]) = Cluster::of_nodes(lab)?;
        let (outside, client) = (lab.outside("outside")?, one.pod("client")?);
        let as_node = lab.counter("as-node", "ip saddr 192.0.2.11 ip daddr 239.1.2.3")?;
        let multicast = lab.counter("multicast", "ip saddr 10.77.1.99 ip daddr 239.1.2.3")?;
        let mut port = 40_000;
        for (setting, kept) in
            [("network.masqueradeRandom=true", false), ("network.masqueradeRandom=false", true)]
        {
            let podway = run(&one, &[setting])?;
            for (to, own) in [(outside.ipv4(), one.ipv4()), (outside.ipv6(), one.ipv6())] {
                // Another port each time: entries of connection tracking outlive podway, and a process that another
                // test starts in this moment holds our sockets until it becomes its program.
                port += 1;
                let seen = seen_as(&client, port, &outside, to)?;
                assert_eq!((seen.ip(), seen.port() == port), (own, kept), "{setting}: {seen}");
            }
            drop(podway);
        }
        let _podway = run(&one, &[])?;
        // The kernel sends to a group over the device of the source address, and forwards none of what pods send.
        one.ip("addr add 10.77.1.99/32 dev eth0")?;
        one.enter(|| UdpSocket::bind(("10.77.1.99", 0))?.send_to(b"to a group", ("239.1.2.3", 9)))??;
        eventually(SOON, "a datagram from the address of the pod network", || match multicast.packets()? {
            0 => Err(anyhow!("none, but as the node: {}", as_node.packets()?)),
            _ => Ok(()),
        });
        Ok(())
    });
}

/// The address that a datagram of a pod from this port has outside.
fn seen_as(client: &Host, port: u16, outside: &Host, to: IpAddr) -> Result<SocketAddr> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let server = outside.enter(|| UdpSocket::bind((to, port)))??;
    server.set_read_timeout(Some(SOON))?;
    let sender = client.enter(|| UdpSocket::bind((any, port)))??;
    sender.send_to(b"who am I?", (to, port))?;
    Ok(server.recv_from(&mut [0; 64])?.1)
}

/// A node with a container runtime's folders.
struct Runtime {
    member: Member,
    folder: PathBuf,
    settings: [String; 2],
}

impl Runtime {
    fn new(member: Member) -> Result<Self> {
        let folder = member.folder()?;
        for name in ["bin", "net.d", "cni"] {
            fs::create_dir_all(folder.join(name))?;
        }
        symlink(reference("portmap")?, folder.join("bin/portmap"))?;
        let settings = [("binDirectory", "bin"), ("confDirectory", "net.d")]
            .map(|(field, name)| format!("network.cni.{field}={}", folder.join(name).display()));
        Ok(Self { member, folder, settings })
    }

    /// The settings by which podway installs its plugin and configuration here.
    fn settings(&self) -> [&str; 2] {
        self.settings.each_ref().map(String::as_str)
    }

    fn conflist(&self) -> PathBuf {
        self.folder.join("net.d/10-podway.conflist")
    }

    /// Attaches a pod as a runtime does, through libcni, with these ports of the host; returns the pod's addresses.
    fn attach(&self, pod: &Host, host_ports: &[u16]) -> Result<Vec<IpAddr>> {
        let script = "mkdir -p /var/lib/cni && mount --bind \"$1\" /var/lib/cni && shift && exec \"$@\"";
        let command = self.member.command("unshare").args(["--mount", "sh", "-c", script, "sh"]);
        let command = command.arg(self.folder.join("cni")).arg(reference("cnitool")?);
        let command = command.args(["add", "podway", &netns(pod)]);
        let command =
            command.env("CNI_PATH", self.folder.join("bin")).env("NETCONFPATH", self.folder.join("net.d"));
        let mapped = |port: &u16| json!({ "hostPort": port, "containerPort": PORT, "protocol": "tcp" });
        let mappings: Vec<Value> = host_ports.iter().map(mapped).collect();
        let output = command.env("CAP_ARGS", json!({ "portMappings": mappings }).to_string()).output()?;
        if !output.status.success() {
            bail!("cnitool add: {}{}", output.stdout, output.stderr);
        }
        let result: Value = serde_json::from_str(&output.stdout).context(output.stdout)?;
        let ips = result["ips"].as_array().context("no addresses")?;
        ips.iter()
            .map(|ip| {
                Ok(ip["address"].as_str().and_then(|it| it.split('/').next()).context("none")?.parse()?)
            })
            .collect()
    }
}
