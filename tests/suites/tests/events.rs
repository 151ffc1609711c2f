//! Kubernetes Events at a real kube-apiserver, with the rights of manifests/podway.yaml.

use std::time::Duration;

use anyhow::{Context, Result};
use podway_cluster::{EventReason, KubeConfig, Regarding, Source, SourceConfig, Wanted};
use podway_proxy::ObjectName;
use podway_testkit::{eventually, in_lab, manifests};

const SOON: Duration = Duration::from_secs(20);

const PODWAY: &str = include_str!("../../../manifests/podway.yaml");

#[test]
fn s42_a_problem_stands_where_kubectl_describe_shows_it_once_however_often_it_was_told() {
    in_lab("events", |lab| {
        let plane = lab.control_plane()?;
        plane.apply(format!(
            "{}{}",
            manifests::node("node-1"),
            manifests::service("web").tcp("http", 80, 80)
        ))?;
        let uid = plane.get("/api/v1/nodes/node-1")?["metadata"]["uid"].as_str().context("uid")?.to_owned();
        plane.apply(PODWAY)?;
        let kubeconfig = plane.service_account_kubeconfig("kube-system", "podway")?;
        let told = "subnet 10.77.1.0/24 overlaps 10.77.1.0/25 of Node b";
        plane.host().enter(|| -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let config = KubeConfig { kubeconfig: Some(kubeconfig), ..KubeConfig::default() };
                let source = Source::open(&SourceConfig::Kube(config), &Wanted::everything()).await?;
                let events = source.event_writer("node-1").context("no API server")?;
                let node = || Regarding::Node { name: "node-1".into(), uid: uid.as_str().into() };
                for _ in 0..100 {
                    events.warning(node(), EventReason::SubnetConflict, "Program", told);
                }
                events.warning(node(), EventReason::SubnetConflict, "Program", "another subnet");
                let web = Regarding::Service(ObjectName::new("default", "web"));
                events.normal(web, EventReason::ServiceConflict, "Program", &"long ".repeat(1000));
                // The writer works on this runtime.
                tokio::time::sleep(Duration::from_secs(3)).await;
                Ok(())
            })
        })??;

        let described = eventually(SOON, "the Events of the Node", || {
            let described =
                plane.kubectl(&["describe", "node", "node-1"]).map_err(|error| format!("{error:#}"))?;
            if described.contains(told) { Ok(described) } else { Err(described) }
        });
        assert_eq!(described.matches(told).count(), 1, "{described}");
        for shown in ["SubnetConflict", "Warning", "podway", "another subnet"] {
            assert!(described.contains(shown), "{shown} in {described}");
        }
        let shown = plane.kubectl(&["events", "--for", "service/web"])?;
        assert!(shown.contains("ServiceConflict") && shown.contains("long long"), "{shown}");
        Ok(())
    });
}
