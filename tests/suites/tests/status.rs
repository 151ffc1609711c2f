//! What an operator, a kubelet and Prometheus see of podway: `podway nodes`, `podway status`, health, metrics.

use std::net::TcpListener;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use podway_suites::{Cluster, Dataplane, Member, SOON, Source};
use podway_testkit::{Output, in_lab, within};
use serde_json::{Value, json};

const HEALTH: &str = "http://127.0.0.1:10256";
const METRICS: &str = "http://127.0.0.1:10249/metrics";

#[test]
fn x5_nodes_and_status_show_peers_as_they_come_and_go() {
    in_lab("status-nodes", |lab| {
        let (cluster, [one, two]) = Cluster::of_nodes::<2>(lab)?;
        let before = ask(&one, "nodes", &[])?;
        assert_eq!(before.status.code(), Some(3), "{}", before.stderr);
        assert!(before.stderr.contains("no podway runs on this node"), "{}", before.stderr);

        let _podway = one.podway(Dataplane::Nftables)?;
        let table = ask(&one, "nodes", &[])?.stdout;
        assert_eq!(
            table.lines().next().map(|head| head.split_whitespace().collect::<Vec<_>>()),
            Some(vec!["NAME", "SUBNET", "BACKEND", "VIA", "MTU", "AGE", "STATUS"])
        );
        let peer = table.lines().find(|line| line.starts_with(two.name())).context("no line of the peer")?;
        let [v4, v6] = two.subnets();
        for part in [&format!("{v4},{v6}"), "vxlan", &two.ipv4().to_string(), "1430", "Programmed"] {
            assert!(peer.contains(part), "{part} in {peer}");
        }
        let own = node_of(&nodes(&one)?, one.name())?;
        assert_eq!(own["backend"], "local");

        let status = ask(&one, "status", &[])?;
        assert_eq!(status.status.code(), Some(0), "{}", status.stdout);
        for part in ["Pod network:", "programmed", "Services:", "Interface:", "10.77.1.0/24", "Peers:"] {
            assert!(status.stdout.contains(part), "{part} in {}", status.stdout);
        }

        cluster.withdraw(two.name())?;
        within(SOON, "the peer has left the list", || match node_of(&nodes(&one)?, two.name()) {
            Err(_) => Ok(()),
            Ok(node) => bail!("{node}"),
        })?;
        cluster.publish("stranger", two.manifest().pod_cidrs(["10.99.9.0/24"]))?;
        within(SOON, "a subnet outside of the ranges is a problem", || {
            let status: Value = serde_json::from_str(&ask(&one, "status", &["-o", "json"])?.stdout)?;
            let reasons = status["problems"].as_array().context("no problems")?;
            match reasons.iter().any(|problem| problem["reason"] == "SubnetOutside") {
                true => Ok(()),
                false => Err(anyhow!("{status}")),
            }
        })?;
        assert_eq!(ask(&one, "status", &[])?.status.code(), Some(4), "a problem is not all well");
        Ok(())
    });
}

#[test]
fn n15_readyz_turns_with_the_first_programming_and_metrics_count() {
    in_lab("status-health", |lab| {
        let cluster = Cluster::over(lab, Source::Directory)?;
        let (one, two) = (cluster.unpublished_member(1)?, cluster.member(2)?);
        let podway = one.podway_command("run", Dataplane::Nftables)?.start("podway")?;
        within(SOON, "it answers, healthy and not ready", || {
            let (healthz, _) = get(&one, &format!("{HEALTH}/healthz"))?;
            let (readyz, why) = get(&one, &format!("{HEALTH}/readyz"))?;
            match (healthz, readyz) {
                (200, 503) if why.contains("network: is not programmed yet") => Ok(()),
                other => Err(anyhow!("{other:?} {why}")),
            }
        })?;
        cluster.publish(one.name(), one.manifest())?;
        within(SOON, "it is ready", || match get(&one, &format!("{HEALTH}/readyz"))? {
            (200, _) => Ok(()),
            other => Err(anyhow!("{other:?}")),
        })?;
        let (_, body) = get(&one, &format!("{HEALTH}/livez"))?;
        let health: Value = serde_json::from_str(&body)?;
        assert_eq!((&health["live"], &health["healthy"]), (&Value::Bool(true), &Value::Bool(true)));

        within(SOON, "the peer is counted", || {
            let (status, metrics) = get(&one, METRICS)?;
            let value = sample(&metrics, "podway_network_peers{backend=\"vxlan\"}");
            match (status, value) {
                (200, Some(1.0)) => Ok(()),
                other => Err(anyhow!("{other:?} {metrics}")),
            }
        })?;
        let (_, metrics) = get(&one, METRICS)?;
        assert_eq!(sample(&metrics, "podway_network_routes"), Some(2.0), "{metrics}");
        assert!(sample(&metrics, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6));
        assert!(sample(&metrics, "podway_services_ready") == Some(1.0), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"));
        assert_eq!(get(&one, &format!("{HEALTH}/metrics"))?.0, 404, "metrics are for their own address");

        one.ip("route del 10.77.2.0/24")?;
        within(SOON, "the repair is counted", || {
            let (_, metrics) = get(&one, METRICS)?;
            match sample(&metrics, "podway_network_repairs_total{kind=\"route\"}") {
                Some(1.0) => Ok(()),
                _ => Err(anyhow!(metrics)),
            }
        })?;
        drop((podway, two));
        Ok(())
    });
}

#[test]
fn s24_an_api_server_that_is_away_stands_in_the_status_until_it_answers_and_nothing_is_unhealthy() {
    in_lab("status-away", |lab| {
        let cluster = Cluster::over(lab, Source::Kube)?;
        let (one, two) = (cluster.member(1)?, cluster.member(2)?);
        let _podway = one.podway(Dataplane::Nftables)?;
        let status =
            || -> Result<Value> { Ok(serde_json::from_str(&ask(&one, "status", &["-o", "json"])?.stdout)?) };
        let before = status()?;
        assert_eq!((&before["why"], &before["own"]["store"]), (&json!([]), &json!("kube")), "{before}");
        cluster.control_plane().stop()?;
        within(SOON, "it is named", || match status()? {
            away if away["why"].to_string().contains("API server https://") => Ok(()),
            other => Err(anyhow!("{other}")),
        })?;
        let away = ask(&one, "status", &[])?;
        assert_eq!(away.status.code(), Some(4), "{}", away.stdout);
        for page in ["healthz", "readyz", "livez"] {
            assert_eq!(get(&one, &format!("{HEALTH}/{page}"))?.0, 200, "{page}");
        }
        assert!(get(&one, METRICS)?.1.contains("podway_server_lost_seconds{server=\"API server https://"));
        cluster.control_plane().start()?;
        within(2 * SOON, "it answers again", || match status()? {
            back if back["why"] == json!([]) => Ok(()),
            other => Err(anyhow!("{other}")),
        })?;
        drop(two);
        Ok(())
    });
}

#[test]
fn n15_a_taken_address_is_told_and_taken_up_when_it_is_free() {
    in_lab("status-bind", |lab| {
        let (_, [one]) = Cluster::of_nodes::<1>(lab)?;
        let taken = one.enter(|| TcpListener::bind("0.0.0.0:10256"))??;
        let podway = one.podway(Dataplane::Nftables)?;
        podway.wait_for_log("status.healthAddress: cannot listen", SOON)?;
        drop(taken);
        podway.wait_for_log("status.healthAddress: listens now", SOON + Duration::from_secs(5))?;
        assert_eq!(get(&one, &format!("{HEALTH}/healthz"))?.0, 200);
        Ok(())
    });
}

#[test]
fn x5_a_second_daemon_on_a_node_is_told_and_a_dead_ones_socket_is_replaced() {
    in_lab("status-twice", |lab| {
        let (_, [one]) = Cluster::of_nodes::<1>(lab)?;
        let first = one.podway(Dataplane::Nftables)?;
        let second = one.podway_command("run", Dataplane::Nftables)?.start("second")?;
        second.wait_for_log("another podway already runs on this node", SOON)?;
        second.stop()?;
        assert_eq!(ask(&one, "nodes", &[])?.status.code(), Some(0), "the first still answers");

        first.kill9()?;
        assert!(one.folder()?.join("podway.sock").exists());
        assert_eq!(ask(&one, "nodes", &[])?.status.code(), Some(3));
        let _third = one.podway(Dataplane::Nftables)?;
        assert_eq!(ask(&one, "nodes", &[])?.status.code(), Some(0));
        Ok(())
    });
}

/// `podway SUBCOMMAND` on the node, whatever its exit status.
fn ask(member: &Member, subcommand: &str, arguments: &[&str]) -> Result<Output> {
    member.podway_command(subcommand, Dataplane::Nftables)?.args(arguments).output()
}

fn nodes(member: &Member) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&ask(member, "nodes", &["-o", "json"])?.stdout)?)
}

fn node_of(nodes: &[Value], name: &str) -> Result<Value> {
    nodes.iter().find(|node| node["name"] == name).cloned().with_context(|| format!("no {name}"))
}

/// Status and body of a page, as curl gets it on the node.
fn get(member: &Member, page: &str) -> Result<(u16, String)> {
    let output = member.command("curl").args(["-s", "-m", "5", "-w", "\n%{http_code}", page]).output()?;
    require_success(output.status, page)?;
    let (body, status) = output.stdout.rsplit_once('\n').context("no status")?;
    Ok((status.trim().parse()?, body.to_owned()))
}

fn require_success(status: ExitStatus, page: &str) -> Result<()> {
    if !status.success() {
        bail!("curl {page}: {status}");
    }
    Ok(())
}

/// The value of a sample by its whole name.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
