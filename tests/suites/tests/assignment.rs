//! Subnets that nodes choose themselves, through a real kube-apiserver: many at once, killed at each step, against
//! other allocators, with the rights of manifests/podway.yaml.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use podway_cluster::{AssignError, KubeConfig, Source, SourceConfig, SubnetClaims, Wanted};
use podway_overlay::{AssignMode, AssignPolicy, AssignStep, Assignment, Range, Unassigned};
use podway_testkit::{ControlPlane, eventually, in_lab, manifests, reference};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// What podway may do at the API server, as users apply it.
const PODWAY: &str = include_str!("../../../manifests/podway.yaml");

/// Where claims are kept.
const NAMESPACE: &str = "podway-subnets";

/// Where podway's ServiceAccount is.
const ACCOUNT: &str = "kube-system";

#[test]
fn n2_two_hundred_nodes_that_join_in_the_same_second_get_subnets_of_their_own() {
    in_lab("assign-many", |lab| {
        let plane = with_namespace(lab.control_plane()?)?;
        let vpc = [whole("10.0.0.0/8"), whole("fd00::/8")];
        let started = std::time::Instant::now();
        let subnets = join(&plane, "vpc", 200, &vpc)?;
        println!("200 nodes in {:.1?}", started.elapsed());
        assert_all_different(&subnets, &vpc);
        assert_eq!(claims(&plane, "")?.len(), 400, "a claim for each subnet, and none besides");
        for node in nodes(&plane)? {
            let name = node["metadata"]["name"].as_str().context("name")?;
            let cidrs: Vec<IpNet> = serde_json::from_value(node["spec"]["podCIDRs"].clone())?;
            assert!(subnets.contains(&cidrs), "{name} has {cidrs:?}, which no daemon was told");
            assert_eq!(node["spec"]["podCIDR"], cidrs[0].to_string());
        }

        let (first, last) = ("172.20.1.0".parse()?, "172.20.40.0".parse()?);
        let full = [Range::new(net("172.20.0.0/16"), Some(24), Some(first), Some(last))?];
        let subnets = join(&plane, "full", 40, &full)?;
        assert_all_different(&subnets, &full);

        plane.apply(manifests::node("one-too-many"))?;
        let refused = run(&plane, async |kubeconfig| assign(kubeconfig, "one-too-many", "m", &full).await)?;
        let why = refused.unwrap_err().to_string();
        assert!(why.contains("172.20.0.0/16") && why.contains("40 are held"), "{why}");

        // Without a garbage collector the claim of the deleted Node stays, and is taken over.
        plane.delete(manifests::node("full-7"))?;
        let late = run(&plane, async |kubeconfig| assign(kubeconfig, "one-too-many", "m", &full).await)??;
        assert!(subnets.contains(&late.subnets), "{:?}", late.subnets);
        assert_eq!(claims(&plane, "podway-subnet-172-20-")?.len(), 40);

        // With one it goes by itself.
        let collector = plane.host().command(reference("kube-controller-manager")?).args([
            format!("--kubeconfig={}", plane.kubeconfig().display()),
            "--controllers=garbage-collector-controller".to_owned(),
            "--leader-elect=false".to_owned(),
        ]);
        let _collector = collector.start("garbage-collector")?;
        plane.delete(manifests::node("full-8"))?;
        eventually(SOON, "the claim of the deleted Node is gone", || {
            let left = claims(&plane, "podway-subnet-172-20-").map_err(|error| format!("{error:#}"))?;
            if left.len() == 39 { Ok(()) } else { Err(format!("{} claims", left.len())) }
        });
        Ok(())
    });
}

#[test]
fn n2_a_daemon_that_is_killed_at_any_step_finds_its_claims_again() {
    in_lab("assign-killed", |lab| {
        let plane = with_namespace(lab.control_plane()?)?;
        let ranges = [whole("10.77.0.0/16"), whole("fd77::/48")];
        let mut all = Vec::new();
        for killed_after in 0.. {
            let name = format!("killed-{killed_after}");
            plane.apply(manifests::node(&name))?;
            let (was_through, assignment) = run(&plane, async |kubeconfig| {
                let claims = open(kubeconfig, &name, "m", AssignMode::Always, &ranges).await?;
                let was_through = killed(&claims, killed_after).await?;
                anyhow::Ok((was_through, claims.assign().await?))
            })??;
            assert_eq!(
                claims_of(&plane, &name)?.len(),
                2,
                "killed after {killed_after} steps: claims are left over"
            );
            assert_eq!(pod_cidrs(&plane, &name)?, assignment.subnets);
            all.push(assignment.subnets);
            if was_through {
                assert!(killed_after >= 7, "only {killed_after} steps");
                break;
            }
        }
        assert_all_different(&all, &ranges);
        Ok(())
    });
}

#[test]
fn n2_subnets_that_somebody_else_writes_at_any_step_count_and_own_claims_are_let_go() {
    in_lab("assign-foreign", |lab| {
        let plane = with_namespace(lab.control_plane()?)?;
        let ranges = [whole("10.77.0.0/16")];
        for step in 0.. {
            let name = format!("foreign-{step}");
            let foreign = net(&format!("10.99.{step}.0/24"));
            plane.apply(manifests::node(&name))?;
            let (was_through, assigned) = run(&plane, async |kubeconfig| {
                let claims = open(kubeconfig, &name, "m", AssignMode::Always, &ranges).await?;
                let mut attempt = claims.assigner();
                for _ in 0..step {
                    let AssignStep::Ask(request) = attempt.step() else { return anyhow::Ok((true, None)) };
                    attempt.apply(claims.ask(&request).await?);
                }
                let written = allocate(&plane, &name, &foreign).is_ok();
                while let AssignStep::Ask(request) = attempt.step() {
                    attempt.apply(claims.ask(&request).await?);
                }
                let AssignStep::Finished(result) = attempt.step() else { bail!("not through") };
                anyhow::Ok((false, Some((written, result?))))
            })??;
            let Some((written, assignment)) = assigned else { break };
            assert!(!was_through);
            let expected = pod_cidrs(&plane, &name)?;
            assert_eq!(assignment.subnets, expected, "after {step} steps");
            assert_eq!(written, expected == [foreign], "whoever writes first wins");
            let names: Vec<String> = claims_of(&plane, &name)?;
            assert_eq!(names, [podway_overlay::claim_name(&expected[0])], "after {step} steps");
        }

        // A subnet of the range that a Node got before podway came is gone around, though nobody claims it.
        let (first, last) = ("10.78.1.0".parse()?, "10.78.2.0".parse()?);
        let tiny = [Range::new(net("10.78.0.0/16"), Some(24), Some(first), Some(last))?];
        plane.apply(format!("{}{}", manifests::node("old"), manifests::node("new")))?;
        allocate(&plane, "old", &net("10.78.1.0/24"))?;
        let assignment = run(&plane, async |kubeconfig| assign(kubeconfig, "new", "m", &tiny).await)??;
        assert_eq!(assignment.subnets, [net("10.78.2.0/24")]);

        // Mode auto leaves the next Node to whoever gave that one its subnet, and says so.
        plane.apply(manifests::node("next"))?;
        let waiting = run(&plane, async |kubeconfig| {
            let claims = open(kubeconfig, "next", "m", AssignMode::Auto, &ranges).await?;
            anyhow::Ok(claims.assign().await)
        })??;
        assert!(
            matches!(waiting, Err(AssignError::Unassigned(Unassigned::OthersAssign { .. }))),
            "{waiting:?}"
        );
        Ok(())
    });
}

#[test]
fn n2_of_two_machines_with_one_name_one_is_served_and_the_other_is_told_what_to_do() {
    in_lab("assign-twins", |lab| {
        let plane = with_namespace(lab.control_plane()?)?;
        let ranges = [whole("10.77.0.0/16")];
        for round in 0..5 {
            let name = format!("twin-{round}");
            plane.apply(manifests::node(&name))?;
            let results = run(&plane, async |kubeconfig| {
                tokio::join!(
                    until_decided(kubeconfig, &name, "machine-1", &ranges),
                    until_decided(kubeconfig, &name, "machine-2", &ranges),
                )
            })?;
            let refusal = match results {
                (Ok(_), Err(error)) | (Err(error), Ok(_)) => error.to_string(),
                other => panic!("{other:?}"),
            };
            for named in [&*name, "machine-1", "machine-2", "another node name"] {
                assert!(refusal.contains(named), "{refusal}");
            }
            assert_eq!(claims_of(&plane, &name)?.len(), 1);
            let (_, command) = refusal.split_once("kubectl ").context("no command")?;
            plane.kubectl(&command.split(' ').collect::<Vec<_>>())?;
            let loser = if refusal.contains("(this one is machine-1)") { "machine-1" } else { "machine-2" };
            let taken_over =
                run(&plane, async |kubeconfig| assign(kubeconfig, &name, loser, &ranges).await)??;
            assert_eq!(
                taken_over.subnets,
                pod_cidrs(&plane, &name)?,
                "the same subnet, on the machine that is left"
            );
        }
        Ok(())
    });
}

#[test]
fn n2_s42_the_rights_of_manifests_podway_yaml_are_enough_to_assign_and_no_more_than_that() {
    in_lab("assign-rights", |lab| {
        let plane = lab.control_plane()?;
        let ranges = [whole("10.77.0.0/16"), whole("fd77::/48")];
        plane.apply(format!("{}{}", manifests::node("node-1"), manifests::node("given")))?;
        allocate(&plane, "given", &net("10.77.9.0/24"))?;
        let account = plane.service_account_kubeconfig(ACCOUNT, "podway")?;
        let assign = |name| {
            let account = account.clone();
            run(&plane, async move |_| assign(&account, name, "m", &ranges).await)
        };
        let refused = assign("node-1")?.unwrap_err().to_string();
        assert!(refused.contains("Node node-1") && refused.contains("forbidden"), "{refused}");

        // As before podway claimed subnets: with the right to read Nodes only.
        plane.kubectl(&["create", "clusterrole", "nodes", "--verb=get,list", "--resource=nodes"])?;
        let account_name = format!("--serviceaccount={ACCOUNT}:podway");
        plane.kubectl(&["create", "clusterrolebinding", "nodes", "--clusterrole=nodes", &account_name])?;
        let given = eventually(SOON, "the right to read Nodes", || assign("given").and_then(|it| it));
        assert_eq!(given.subnets, [net("10.77.9.0/24")]);
        assert!(given.unguarded.context("claimed without the right to")?.contains("leases"));
        plane.kubectl(&["delete", "clusterrolebinding", "nodes"])?;

        plane.apply(PODWAY)?;
        let assignment = eventually(SOON, "the rights of podway", || assign("node-1").and_then(|it| it));
        assert_eq!(assignment.subnets.len(), 2);
        assert_eq!(assign("given")??.unguarded, None, "now it is claimed");
        for (verb, group, resource, namespace, is_allowed) in [
            ("create", "coordination.k8s.io", "leases", NAMESPACE, true),
            ("delete", "coordination.k8s.io", "leases", NAMESPACE, true),
            ("update", "coordination.k8s.io", "leases", NAMESPACE, false),
            ("deletecollection", "coordination.k8s.io", "leases", NAMESPACE, false),
            ("create", "coordination.k8s.io", "leases", "kube-node-lease", false),
            // Leader locks are there.
            ("patch", "coordination.k8s.io", "leases", "kube-system", false),
            ("delete", "coordination.k8s.io", "leases", "kube-system", false),
            ("delete", "coordination.k8s.io", "leases", "default", false),
            ("patch", "", "nodes", "", true),
            ("update", "", "nodes", "", false),
            ("delete", "", "nodes", "", false),
            ("create", "events.k8s.io", "events", "default", true),
            ("patch", "events.k8s.io", "events", "default", true),
            ("delete", "events.k8s.io", "events", "default", false),
            ("list", "events.k8s.io", "events", "default", false),
        ] {
            let allowed = may(&plane, verb, group, resource, namespace)?;
            assert_eq!(allowed, is_allowed, "{verb} {resource} in {namespace:?}");
        }
        Ok(())
    });
}

#[test]
fn n2_s42_without_the_right_to_patch_nodes_given_subnets_are_claimed_and_only_assigning_is_refused() {
    in_lab("assign-status", |lab| {
        let plane = lab.control_plane()?;
        let ranges = [whole("10.77.0.0/16")];
        plane.apply(PODWAY)?;
        plane.kubectl(&["delete", "clusterrolebinding,clusterrole", "podway-assign-subnets"])?;
        plane.apply(format!("{}{}", manifests::node("bare"), manifests::node("given")))?;
        allocate(&plane, "given", &net("10.77.9.0/24"))?;
        let account = plane.service_account_kubeconfig(ACCOUNT, "podway")?;
        let assign = |name| {
            let account = account.clone();
            run(&plane, async move |_| assign(&account, name, "m", &ranges).await)
        };
        let given = eventually(SOON, "the rights of podway", || match assign("given").and_then(|it| it) {
            Ok(given) if given.unguarded.is_none() => Ok(given),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(given.subnets, [net("10.77.9.0/24")]);
        let node = plane.get("/api/v1/nodes/given")?;
        assert!(node["metadata"]["annotations"]["podway/subnet-claims"].is_string(), "{node}");
        let refused = assign("bare")?.unwrap_err().to_string();
        assert!(refused.contains("patching Node bare") && refused.contains("forbidden"), "{refused}");
        assert!(!may(&plane, "patch", "", "nodes", "")?);
        Ok(())
    });
}

#[test]
fn n2_without_the_namespace_for_claims_given_subnets_are_used_and_it_is_named() {
    in_lab("assign-nowhere", |lab| {
        let plane = lab.control_plane()?;
        let ranges = [whole("10.77.0.0/16")];
        plane.apply(format!("{}{}", manifests::node("bare"), manifests::node("given")))?;
        allocate(&plane, "given", &net("10.77.9.0/24"))?;
        let assign = |name| run(&plane, async |kubeconfig| assign(kubeconfig, name, "m", &ranges).await);
        let given = assign("given")??;
        assert_eq!(given.subnets, [net("10.77.9.0/24")]);
        for why in [given.unguarded.context("claimed nowhere")?, assign("bare")?.unwrap_err().to_string()] {
            assert!(why.contains(&format!("namespaces \"{NAMESPACE}\" not found")), "{why}");
        }
        Ok(())
    });
}

fn with_namespace(plane: ControlPlane) -> Result<ControlPlane> {
    let metadata = json!({ "name": NAMESPACE });
    plane.apply(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }))?;
    Ok(plane)
}

/// Applies the Nodes, then lets all of them ask for subnets at once, each with a connection of its own.
fn join(plane: &ControlPlane, prefix: &str, count: usize, ranges: &[Range]) -> Result<Vec<Vec<IpNet>>> {
    let names: Vec<String> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    plane.apply(names.iter().map(|name| manifests::node(name).to_string()).collect::<String>())?;
    let ranges = ranges.to_vec();
    run(plane, async |kubeconfig| {
        let mut joining = tokio::task::JoinSet::new();
        for name in names {
            let (kubeconfig, ranges) = (kubeconfig.to_owned(), ranges.clone());
            joining.spawn(async move { until_assigned(&kubeconfig, &name, &ranges).await });
        }
        let mut all = Vec::new();
        while let Some(assignment) = joining.join_next().await {
            all.push(assignment??.subnets);
        }
        Ok(all)
    })?
}

/// As a daemon does: whatever fails is tried again.
async fn until_assigned(kubeconfig: &Path, name: &str, ranges: &[Range]) -> Result<Assignment> {
    let claims = open(kubeconfig, name, name, AssignMode::Always, ranges).await?;
    let mut last = None;
    for attempt in 0..20 {
        match claims.assign().await {
            Ok(assignment) => return Ok(assignment),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(50 << attempt.min(5))).await;
    }
    Err(last.context("never tried")?.into())
}

/// Until it is served, or another machine is.
async fn until_decided(
    kubeconfig: &Path,
    name: &str,
    machine: &str,
    ranges: &[Range],
) -> Result<Assignment, AssignError> {
    let claims = open(kubeconfig, name, machine, AssignMode::Always, ranges).await.unwrap();
    loop {
        match claims.assign().await {
            Err(AssignError::Unassigned(Unassigned::Contended { .. })) => {}
            decided => return decided,
        }
    }
}

async fn assign(kubeconfig: &Path, name: &str, machine: &str, ranges: &[Range]) -> Result<Assignment> {
    Ok(open(kubeconfig, name, machine, AssignMode::Always, ranges).await?.assign().await?)
}

async fn open(
    kubeconfig: &Path,
    name: &str,
    machine: &str,
    mode: AssignMode,
    ranges: &[Range],
) -> Result<SubnetClaims> {
    let config = KubeConfig { kubeconfig: Some(kubeconfig.to_owned()), ..KubeConfig::default() };
    let source = Source::open(&SourceConfig::Kube(config), &Wanted::everything()).await?;
    let policy = AssignPolicy {
        node: name.into(),
        machine: machine.into(),
        mode,
        ranges: ranges.to_vec(),
        namespace: NAMESPACE.into(),
    };
    source.subnet_claims(policy).context("no API server")
}

/// Gives up after so many steps: the answer to the last one is lost. Whether it was through by then.
async fn killed(claims: &SubnetClaims, steps: usize) -> Result<bool> {
    let mut attempt = claims.assigner();
    for _ in 0..steps {
        match attempt.step() {
            AssignStep::Ask(request) => attempt.apply(claims.ask(&request).await?),
            AssignStep::Finished(_) => return Ok(true),
        }
    }
    Ok(false)
}

/// Runs `work` with the administrator's kubeconfig, in the control plane's namespace.
fn run<T: Send, F: Future<Output = T>>(
    plane: &ControlPlane,
    work: impl FnOnce(&'static Path) -> F + Send,
) -> Result<T> {
    // Futures that borrow their argument cannot be named; a path more or less does no harm here.
    let kubeconfig: &'static PathBuf = Box::leak(Box::new(plane.kubeconfig()));
    plane.host().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        anyhow::Ok(runtime.block_on(work(kubeconfig)))
    })?
}

/// Writes podCIDRs as a controller manager does.
fn allocate(plane: &ControlPlane, node: &str, subnet: &IpNet) -> Result<()> {
    let patch = json!({ "spec": { "podCIDR": subnet, "podCIDRs": [subnet] } });
    plane.request("PATCH", &format!("/api/v1/nodes/{node}"), &patch).map(drop)
}

fn pod_cidrs(plane: &ControlPlane, node: &str) -> Result<Vec<IpNet>> {
    Ok(serde_json::from_value(plane.get(&format!("/api/v1/nodes/{node}"))?["spec"]["podCIDRs"].clone())?)
}

fn nodes(plane: &ControlPlane) -> Result<Vec<Value>> {
    items(&plane.get("/api/v1/nodes")?)
}

/// The names of claims that begin so.
fn claims(plane: &ControlPlane, prefix: &str) -> Result<Vec<String>> {
    let leases = items(&plane.get(&format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"))?)?;
    let names = leases.iter().filter_map(|lease| lease["metadata"]["name"].as_str());
    let ours = names.filter(|name| name.starts_with("podway-subnet-") && name.starts_with(prefix));
    Ok(ours.map(str::to_owned).collect())
}

/// The names of the claims for one Node.
fn claims_of(plane: &ControlPlane, node: &str) -> Result<Vec<String>> {
    let leases = items(&plane.get(&format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"))?)?;
    let ours = leases.iter().filter(|lease| lease["metadata"]["annotations"]["podway/node"] == node);
    Ok(ours.filter_map(|lease| lease["metadata"]["name"].as_str()).map(str::to_owned).collect())
}

fn items(list: &Value) -> Result<Vec<Value>> {
    Ok(list["items"].as_array().context("no list")?.clone())
}

/// Whether RBAC lets podway's ServiceAccount do this.
fn may(plane: &ControlPlane, verb: &str, group: &str, resource: &str, namespace: &str) -> Result<bool> {
    let attributes = json!({ "verb": verb, "group": group, "resource": resource, "namespace": namespace });
    let user = format!("system:serviceaccount:{ACCOUNT}:podway");
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": { "user": user, "resourceAttributes": attributes },
    });
    let answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)?;
    answer["status"]["allowed"].as_bool().context("no answer")
}

/// One subnet of each range for everybody, and nobody has what overlaps another's.
#[track_caller]
fn assert_all_different(all: &[Vec<IpNet>], ranges: &[Range]) {
    let mut seen = BTreeSet::new();
    for subnets in all {
        assert_eq!(subnets.len(), ranges.len(), "{subnets:?}");
        for (subnet, range) in subnets.iter().zip(ranges) {
            assert!(range.contains(subnet), "{subnet} is not one of {range:?}");
            assert!(seen.insert(*subnet), "{subnet} is held twice");
        }
    }
}

fn whole(network: &str) -> Range {
    Range::new(net(network), None, None, None).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
