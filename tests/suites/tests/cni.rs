//! podway as the CNI plugin (N11): called directly as libcni does, and through cnitool, with real namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use podway_suites::{Answer, CniNode, KernelState, SOON, Way, await_answers, netns, reaches};
use podway_testkit::{Host, Probe, Transport, in_lab};
use serde_json::{Value, json};

const PORT: u16 = 8080;

/// Longer than an answer takes on a busy machine, shorter than duplicate address detection.
const AT_ONCE: Duration = Duration::from_millis(700);

#[test]
fn n11_pods_of_one_node_and_their_host_reach_each_other_in_both_families_at_once() {
    in_lab("cni-reach", |lab| {
        let cni = CniNode::new(lab)?;
        // As on a real node: new devices look for duplicate addresses.
        cni.node().sysctl("net.ipv6.conf.default.accept_dad", "1")?;
        let pods = [cni.node().sandbox("one")?, cni.node().sandbox("two")?];
        pods.iter().try_for_each(|pod| pod.sysctl("net.ipv6.conf.default.accept_dad", "1"))?;
        let node_server = cni.node().serve("node", PORT)?;
        let answers = [cni.add(&pods[0])?, cni.add(&pods[1])?];
        let pod_server = pods[1].serve("two", PORT)?;
        for address in answers[1].addresses() {
            reaches(&pods[0], (address, PORT), AT_ONCE)?;
            reaches(cni.node(), (address, PORT), AT_ONCE)?;
        }
        for address in cni.node().addresses() {
            reaches(&pods[0], (*address, PORT), AT_ONCE)?;
        }
        drop((node_server, pod_server));
        Ok(())
    });
}

#[test]
fn n11_an_outside_host_that_is_routed_to_the_pod_reaches_it_under_its_own_address() {
    in_lab("cni-routed", |lab| {
        let cni = CniNode::new(lab)?;
        let (outside, pod) = (lab.outside("outside")?, cni.node().sandbox("web")?);
        outside.ip(&format!(
            "route add 10.77.1.0/24 via {}\nroute add fd77:0:0:1::/64 via {}",
            cni.node().ipv4(),
            cni.node().ipv6()
        ))?;
        let added = cni.add(&pod)?;
        let _server = pod.serve("web", PORT)?;
        for address in added.addresses() {
            let to = std::net::SocketAddr::from((address, PORT));
            let answers = outside.send(Probe::new(Transport::Tcp, to).count(3))?;
            assert!(answers.all_answered(), "{answers}");
            let own = if address.is_ipv4() { outside.ipv4() } else { outside.ipv6() };
            assert_eq!(answers.sources(), [own].into());
        }
        Ok(())
    });
}

#[test]
fn n11_the_result_has_interfaces_addresses_routes_and_dns_and_the_pod_has_them_too() {
    in_lab("cni-result", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        cni.node().sysctl("net.ipv4.ip_forward", "0")?;
        cni.node().sysctl("net.ipv6.conf.all.forwarding", "0")?;
        let config = cni.config(json!({ "dns": { "nameservers": ["10.96.0.10"] }, "mtu": 1400 }));
        let added = cni.call("ADD", &pod, &config)?.succeeded("ADD")?;
        let result = &added.json;
        assert_eq!(result["cniVersion"], "1.1.0");
        assert_eq!(result["dns"], json!({ "nameservers": ["10.96.0.10"] }));
        assert_eq!(
            result["ips"][0],
            json!({ "address": "10.77.1.2/32", "gateway": "10.77.1.1", "interface": 1 })
        );
        let v6 = json!({ "address": "fd77:0:0:1::2/128", "gateway": "fd77:0:0:1::1", "interface": 1 });
        assert_eq!(result["ips"][1], v6);
        let routes =
            json!([{ "dst": "0.0.0.0/0", "gw": "10.77.1.1" }, { "dst": "::/0", "gw": "fd77:0:0:1::1" }]);
        assert_eq!(result["routes"], routes);
        let sandbox = &result["interfaces"][1];
        assert_eq!((&sandbox["name"], &sandbox["sandbox"]), (&json!("eth0"), &json!(netns(&pod))));
        let links = pod.command("ip").args(["link", "show", "eth0"]).run()?;
        assert!(links.contains("mtu 1400") && links.contains(sandbox["mac"].as_str().unwrap()), "{links}");
        let on_node = cni.node().command("ip").args(["link", "show", added.link()]).run()?;
        assert!(on_node.contains("alias podway-cni podway eth0 pod"), "{on_node}");
        for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let value = cni.node().enter(|| fs::read_to_string(format!("/proc/sys/net/{sysctl}")))??;
            assert_eq!(value.trim(), "1", "{sysctl}");
        }
        Ok(())
    });
}

#[test]
fn n11_every_version_back_to_0_3_1_is_answered_in_its_form() {
    in_lab("cni-versions", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let config = cni.config(json!({ "cniVersion": version }));
            let added = cni.call("ADD", &pod, &config)?.succeeded(version)?;
            assert_eq!(added.json["cniVersion"], version);
            let old = version < "1.0.0";
            assert_eq!(
                added.json["ips"][1]["version"],
                if old { json!("6") } else { Value::Null },
                "{version}"
            );
            if version >= "0.4.0" {
                let config = cni.config(json!({ "cniVersion": version, "prevResult": added.json }));
                cni.call("CHECK", &pod, &config)?.succeeded("CHECK")?;
            }
            cni.call("DEL", &pod, &config)?.succeeded("DEL")?;
        }
        let refused = cni.call("ADD", &pod, &cni.config(json!({ "cniVersion": "0.2.0" })))?;
        assert_eq!((refused.success, refused.code()), (false, 1), "{refused:?}");
        Ok(())
    });
}

#[test]
fn n11_200_parallel_adds_give_200_addresses_of_each_family_and_every_pod_reaches_the_host() {
    in_lab("cni-parallel", |lab| {
        let cni = CniNode::new(lab)?;
        let pods: Vec<Host> =
            (0..200).map(|n| cni.node().sandbox(&format!("p{n}"))).collect::<Result<_>>()?;
        let before = KernelState::read(cni.node())?;
        let _server = cni.node().serve("node", PORT)?;
        let added: Vec<Answer> = all_at_once(&pods, |pod| cni.add(pod))?;
        let addresses: BTreeSet<IpAddr> = added.iter().flat_map(Answer::addresses).collect();
        assert_eq!(addresses.len(), 400);
        assert_eq!(cni.reserved()?, addresses);
        for pod in &pods {
            reaches(pod, (cni.node().ipv4(), PORT), SOON)?;
            reaches(pod, (cni.node().ipv6(), PORT), SOON)?;
        }
        all_at_once(&pods, |pod| cni.del(pod))?;
        assert_eq!(cni.reserved()?, BTreeSet::new());
        before.await_again_on(cni.node());
        Ok(())
    });
}

#[test]
fn n11_an_add_killed_at_any_moment_is_cleaned_up_by_del_and_by_gc() {
    in_lab("cni-kill-add", |lab| {
        let cni = CniNode::new(lab)?;
        let (pod, other) = (cni.node().sandbox("pod")?, cni.node().sandbox("other")?);
        let config = cni.config(Value::Null);
        let kept = cni.add(&other)?;
        let before = KernelState::read(cni.node())?;
        let held: BTreeSet<IpAddr> = kept.addresses().into_iter().collect();
        for round in 0..45 {
            let add = cni.command("ADD", &pod, &config)?.start("add")?;
            std::thread::sleep(Duration::from_micros(500 * round));
            add.kill9()?;
            if round % 3 == 0 {
                // A runtime that does not know how far the last one came.
                let again = cni.call("ADD", &pod, &config)?;
                assert!(again.success || again.code() == 102, "{again:?}");
            }
            if round % 2 == 0 {
                cni.del(&pod)?
            } else {
                cni.gc(&[&other])?.succeeded("GC").map(|_| ())?
            }
            assert_eq!(cni.reserved()?, held, "round {round}");
            before.await_again_on(cni.node());
            let links = pod.command("ip").args(["-brief", "link"]).run()?;
            assert!(!links.contains("eth0"), "round {round}: {links}");
        }
        Ok(())
    });
}

#[test]
fn n11_a_del_killed_at_any_moment_is_completed_by_the_next_del_or_gc() {
    in_lab("cni-kill-del", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let before = KernelState::read(cni.node())?;
        let config = cni.config(Value::Null);
        for round in 0..30 {
            cni.add(&pod)?;
            let del = cni.command("DEL", &pod, &config)?.start("del")?;
            std::thread::sleep(Duration::from_millis(round));
            del.kill9()?;
            if round % 2 == 0 {
                cni.del(&pod)?
            } else {
                cni.gc(&[])?.succeeded("GC").map(|_| ())?
            }
            assert_eq!(cni.reserved()?, BTreeSet::new(), "round {round}");
            before.await_again_on(cni.node());
        }
        Ok(())
    });
}

#[test]
fn n11_an_add_that_fails_leaves_nothing() {
    in_lab("cni-undo", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let taken = "route add 10.77.1.2/32 dev eth0";
        cni.node().ip(taken)?;
        let before = KernelState::read(cni.node())?;
        let refused = cni.call("ADD", &pod, &cni.config(Value::Null))?;
        let text = refused.json.to_string();
        assert!(refused.code() == 103 && text.contains("10.77.1.2") && text.contains("exists"), "{text}");
        assert_eq!(cni.reserved()?, BTreeSet::new());
        before.await_again_on(cni.node());
        let added = cni.add(&pod)?;
        assert_eq!(added.addresses()[0].to_string(), "10.77.1.3", "the next try has the next address");
        let own = pod.name().to_owned();
        cni.del(&pod)?;
        pod.ip("link add eth0 type veth peer name eth1")?;
        let refused = cni.call("ADD", &pod, &cni.config(Value::Null))?;
        assert!(!refused.success && refused.json.to_string().contains("eth0"), "{own}: {refused:?}");
        assert_eq!(cni.reserved()?, BTreeSet::new());
        before.await_again_on(cni.node());
        Ok(())
    });
}

#[test]
fn n11_an_add_for_a_pod_that_is_attached_is_refused_and_harms_nothing() {
    in_lab("cni-twice", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let added = cni.add(&pod)?;
        let state = KernelState::read(cni.node())?;
        let refused = cni.call("ADD", &pod, &cni.config(Value::Null))?;
        assert_eq!(refused.code(), 102, "{refused:?}");
        assert!(refused.json.to_string().contains("10.77.1.2"), "{refused:?}");
        assert_eq!(cni.reserved()?, added.addresses().into_iter().collect());
        state.assert_same(&KernelState::read(cni.node())?);
        Ok(())
    });
}

#[test]
fn n11_a_link_of_the_pods_name_that_is_anothers_is_neither_replaced_nor_deleted() {
    in_lab("cni-foreign", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let link = cni.add(&pod)?.link().to_owned();
        cni.del(&pod)?;
        let another = format!("link add {link} type veth peer name other0\nlink set {link} alias other");
        let bridge = format!("link del {link}\nlink add {link} type bridge");
        for (stranger, named) in [(another, "other"), (bridge, "no veth")] {
            cni.node().ip(&stranger)?;
            let state = KernelState::read(cni.node())?;
            let refused = cni.call("ADD", &pod, &cni.config(Value::Null))?;
            let text = refused.json.to_string();
            assert!(refused.code() == 106 && text.contains(&link) && text.contains(named), "{text}");
            cni.del(&pod)?;
            cni.gc(&[])?.succeeded("GC")?;
            assert_eq!(cni.reserved()?, BTreeSet::new());
            state.assert_same(&KernelState::read(cni.node())?);
        }
        // What an ADD left that was killed has no alias yet.
        cni.node().ip(&format!("link del {link}\nlink add {link} type veth peer name other0"))?;
        cni.add(&pod)?;
        Ok(())
    });
}

#[test]
fn n11_del_succeeds_again_and_without_the_namespace_and_frees_the_addresses() {
    in_lab("cni-del", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let before = KernelState::read(cni.node())?;
        cni.add(&pod)?;
        cni.del(&pod)?;
        cni.del(&pod)?;
        before.await_again_on(cni.node());
        cni.add(&pod)?;
        cni.node().command("ip").args(["netns", "del", pod.netns()]).run()?;
        let missing = cni.call("ADD", &pod, &cni.config(Value::Null))?;
        assert_eq!(missing.code(), 3, "{missing:?}");
        cni.del(&pod)?;
        cni.del(&pod)?;
        assert_eq!(cni.reserved()?, BTreeSet::new());
        before.await_again_on(cni.node());
        Ok(())
    });
}

#[test]
fn n11_a_small_subnet_is_exhausted_with_its_counts_and_status_says_so() {
    in_lab("cni-exhausted", |lab| {
        let cni = CniNode::new(lab)?;
        cni.subnets(&["10.77.1.1/29", "fd77:0:0:1::1/64"])?;
        let pods: Vec<Host> = (0..6).map(|n| cni.node().sandbox(&format!("p{n}"))).collect::<Result<_>>()?;
        for pod in &pods[..5] {
            cni.ask("STATUS", &cni.config(Value::Null))?.succeeded("STATUS")?;
            cni.add(pod)?;
        }
        let refused = cni.call("ADD", &pods[5], &cni.config(Value::Null))?;
        let text = refused.json.to_string();
        assert!(refused.code() == 100 && text.contains("all 5 addresses of 10.77.1.0/29"), "{text}");
        assert_eq!(cni.reserved()?.len(), 10, "no IPv6 address without an IPv4 one");
        let status = cni.ask("STATUS", &cni.config(Value::Null))?;
        assert!(status.code() == 50 && status.json.to_string().contains("10.77.1.0/29"), "{status:?}");
        cni.del(&pods[2])?;
        assert_eq!(cni.add(&pods[5])?.addresses()[0].to_string(), "10.77.1.4");
        Ok(())
    });
}

#[test]
fn n11_without_a_subnet_file_status_is_50_and_add_asks_to_try_again() {
    in_lab("cni-status", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        fs::remove_file(cni.subnet_file())?;
        let status = cni.ask("STATUS", &cni.config(Value::Null))?;
        assert!(status.code() == 50 && status.json.to_string().contains("subnet.env"), "{status:?}");
        assert_eq!(cni.call("ADD", &pod, &cni.config(Value::Null))?.code(), 11);
        cni.del(&pod)?;
        cni.subnets(&["10.77.9.1/24"])?;
        cni.ask("STATUS", &cni.config(Value::Null))?.succeeded("STATUS")?;
        let added = cni.add(&pod)?;
        assert_eq!(added.addresses(), ["10.77.9.2".parse::<IpAddr>()?], "one family, and the new subnet");
        Ok(())
    });
}

#[test]
fn n11_check_finds_whatever_of_the_pods_network_is_gone() {
    in_lab("cni-check", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let without = cni.call("CHECK", &pod, &cni.config(Value::Null))?;
        assert_eq!(without.code(), 7, "prevResult is missing: {without:?}");
        let node = cni.node();
        let breaks: [(&Host, &str, &str); 7] = [
            (node, "route del V4", "no route to V4 over LINK"),
            (node, "route del V6", "no route to V6 over LINK"),
            (node, "addr del 10.77.1.1/32 dev LINK", "the gateway 10.77.1.1 is not on LINK"),
            (&pod, "addr del V6/128 dev eth0", "the address V6 is not on eth0"),
            (&pod, "route del default via 10.77.1.1", "no route to 0.0.0.0/0 via 10.77.1.1"),
            (&pod, "link set eth0 address 02:00:00:00:00:01", "the MAC 02:00:00:00:00:01 instead of"),
            (&pod, "link set eth0 down", "eth0 in the pod is down"),
        ];
        for (host, breakage, finding) in breaks {
            let added = cni.add(&pod)?;
            let config = cni.config(json!({ "prevResult": added.json }));
            cni.call("CHECK", &pod, &config)?.succeeded("CHECK")?;
            let [v4, v6] = [0, 1].map(|family| added.addresses()[family].to_string());
            let filled =
                |text: &str| text.replace("LINK", added.link()).replace("V4", &v4).replace("V6", &v6);
            host.ip(&filled(breakage))?;
            let check = cni.call("CHECK", &pod, &config)?;
            let found = check.json["details"].as_str().unwrap_or_default();
            assert!(check.code() == 104 && found.contains(&filled(finding)), "{breakage}: {check:?}");
            cni.del(&pod)?;
        }
        let config = cni.config(json!({ "prevResult": cni.add(&pod)?.json }));
        cni.gc(&[])?.succeeded("GC")?;
        let check = cni.call("CHECK", &pod, &config)?.json.to_string();
        assert!(check.contains("is gone") && check.contains("not reserved"), "{check}");
        Ok(())
    });
}

#[test]
fn n11_gc_frees_leaked_addresses_and_links_and_leaves_valid_ones_and_strangers() {
    in_lab("cni-gc", |lab| {
        let cni = CniNode::new(lab)?;
        let pods: Vec<Host> = (0..4).map(|n| cni.node().sandbox(&format!("p{n}"))).collect::<Result<_>>()?;
        cni.node().ip("link add veth0f00 type veth peer name veth0f01\nlink set veth0f00 alias other")?;
        let added: Vec<Answer> = pods.iter().map(|pod| cni.add(pod)).collect::<Result<_>>()?;
        cni.node().command("ip").args(["netns", "del", pods[0].netns()]).run()?;
        // The reservations of p1 are lost, its link is not.
        let lost = cni.config(json!({ "dataDir": lab.folder("lost")?.path() }));
        cni.ask("GC", &cni.config(json!({ "name": "other", "cni.dev/valid-attachments": [] })))?
            .succeeded("GC")?;
        assert_eq!(cni.reserved()?.len(), 8, "another network's GC");
        let mut config = lost.clone();
        config["cni.dev/valid-attachments"] =
            json!([2, 3].map(|n| { json!({ "containerID": format!("p{n}"), "ifname": "eth0" }) }));
        cni.ask("GC", &config)?.succeeded("GC")?;
        let links = cni.node().command("ip").args(["-brief", "link"]).run()?;
        for (number, stays) in [(1, false), (2, true), (3, true)] {
            assert_eq!(links.contains(added[number].link()), stays, "p{number}: {links}");
        }
        cni.gc(&[&pods[2], &pods[3]])?.succeeded("GC")?;
        let valid: BTreeSet<IpAddr> = added[2..].iter().flat_map(Answer::addresses).collect();
        assert_eq!(cni.reserved()?, valid);
        assert!(KernelState::read(cni.node())?.mentions("veth0f00"));
        let _server = pods[3].serve("p3", PORT)?;
        for address in added[3].addresses() {
            reaches(&pods[2], (address, PORT), SOON)?;
        }
        Ok(())
    });
}

#[test]
fn n11_pods_of_the_network_before_keep_their_addresses_to_themselves() {
    in_lab("cni-before", |lab| {
        let cni = CniNode::new(lab)?;
        let pods = [cni.node().sandbox("old")?, cni.node().sandbox("new")?];
        // What flannel's CNI plugin has the bridge do.
        let ranges = json!([[{ "subnet": "10.77.1.0/24" }]]);
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
            "ipam": { "type": "host-local", "dataDir": cni.host_local(), "ranges": ranges },
        });
        let old = cni.chain("ADD", &pods[0], &[bridge], &Value::Null)?;
        let old = old.addresses()[0];
        assert_eq!(old.to_string(), "10.77.1.2");
        assert_eq!(cni.add(&pods[1])?.addresses()[0].to_string(), "10.77.1.3");
        let _server = pods[0].serve("old", PORT)?;
        reaches(cni.node(), (old, PORT), SOON)
    });
}

#[test]
fn n11_a_pod_may_have_a_second_network_whose_default_route_comes_after_the_first() {
    in_lab("cni-second", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        cni.add(&pod)?;
        let first = lab.folder("second")?.path().join("subnet.env");
        fs::write(
            &first,
            fs::read_to_string(cni.subnet_file())?.replace("77.1.1", "77.9.1").replace(":1::1", ":9::1"),
        )?;
        let config = cni.config(json!({ "name": "second", "subnetFile": first }));
        let second = |verb: &str| -> Result<Answer> {
            let output = cni.command(verb, &pod, &config)?.env("CNI_IFNAME", "net1").output()?;
            Answer::of(output)?.succeeded(verb)
        };
        assert_eq!(second("ADD")?.addresses()[0].to_string(), "10.77.9.2");
        let routes = pod.command("ip").args(["route", "show", "default"]).run()?;
        let routes: Vec<&str> = routes.lines().map(str::trim).collect();
        assert_eq!(routes, ["default via 10.77.1.1 dev eth0", "default via 10.77.9.1 dev net1"]);
        second("DEL")?;
        let _server = cni.node().serve("node", PORT)?;
        reaches(&pod, (cni.node().ipv4(), PORT), SOON)?;
        reaches(&pod, (cni.node().ipv6(), PORT), SOON)
    });
}

#[test]
fn n11_a_requested_address_is_given() {
    in_lab("cni-requested", |lab| {
        let cni = CniNode::new(lab)?;
        let pods = [cni.node().sandbox("one")?, cni.node().sandbox("two")?];
        let config = cni.config(json!({ "runtimeConfig": { "ips": ["10.77.1.77/24"] } }));
        let added = cni.call("ADD", &pods[0], &config)?.succeeded("ADD")?;
        let addresses: Vec<String> = added.addresses().iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["10.77.1.77", "fd77:0:0:1::2"]);
        let taken = cni.call("ADD", &pods[1], &config)?;
        assert!(taken.code() == 101 && taken.json.to_string().contains("one"), "{taken:?}");
        Ok(())
    });
}

#[test]
fn n11_cnitool_adds_checks_and_deletes_through_libcni_and_hostport_answers() {
    in_lab("cni-cnitool", |lab| {
        let cni = CniNode::new(lab)?;
        let (outside, pod) = (lab.outside("outside")?, cni.node().sandbox("web")?);
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        cni.conflist(&json!({
            "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "podway",
            "plugins": [cni.plugin(), portmap],
        }))?;
        let mapping =
            json!({ "portMappings": [{ "hostPort": 18080, "containerPort": PORT, "protocol": "tcp" }] });
        let tool = |verb: &str| -> Result<Value> {
            let output = cni.cnitool(verb, &pod, &mapping)?;
            assert!(output.status.success(), "{verb}: {}{}", output.stdout, output.stderr);
            Ok(serde_json::from_str(&output.stdout).unwrap_or_default())
        };
        tool("status")?;
        let result = tool("add")?;
        assert_eq!(result["ips"][0]["address"], "10.77.1.2/32", "{result}");
        tool("check")?;
        let _server = pod.serve("web", PORT)?;
        for address in [cni.node().ipv4_at(18080), cni.node().ipv6_at(18080)] {
            await_answers(&outside, Way { transport: Transport::Tcp, address });
        }
        tool("del")?;
        tool("del")?;
        assert_eq!(cni.reserved()?, BTreeSet::new());
        tool("add")?;
        tool("gc")?;
        assert_eq!(cni.reserved()?, BTreeSet::new());
        Ok(())
    });
}

#[test]
fn n11_portmap_tuning_and_bandwidth_work_in_the_chain_and_check_accepts_what_they_change() {
    in_lab("cni-chain", |lab| {
        let cni = CniNode::new(lab)?;
        let pod = cni.node().sandbox("pod")?;
        let before = KernelState::read(cni.node())?;
        let chain = [
            cni.plugin(),
            json!({ "type": "tuning", "mac": "02:00:00:00:77:01", "mtu": 1300, "sysctl": { "net.core.somaxconn": "500" } }),
            json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000 }),
            json!({ "type": "portmap", "runtimeConfig": {
                "portMappings": [{ "hostPort": 18081, "containerPort": PORT, "protocol": "tcp" }],
            } }),
        ];
        let added = cni.chain("ADD", &pod, &chain, &Value::Null)?;
        assert_eq!(added.addresses().len(), 2, "{added:?}");
        assert_eq!(added.json["interfaces"][1]["mac"], "02:00:00:00:77:01");
        cni.chain("CHECK", &pod, &chain[..1], &added.json)?;
        let _server = pod.serve("pod", PORT)?;
        for address in added.addresses() {
            reaches(cni.node(), (address, PORT), SOON)?;
        }
        cni.chain("DEL", &pod, &chain, &added.json)?;
        let left = KernelState::read(cni.node())?;
        let of_ours: Vec<&str> =
            left.beyond(&before).into_iter().filter(|line| !line.contains("nft")).collect();
        assert_eq!(of_ours, Vec::<&str>::new(), "portmap's empty chains stay, nothing else");
        Ok(())
    });
}

/// Does `work` for all pods at the same time.
fn all_at_once<T: Send>(pods: &[Host], work: impl Fn(&Host) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let running: Vec<_> = pods.iter().map(|pod| scope.spawn(|| work(pod))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}
