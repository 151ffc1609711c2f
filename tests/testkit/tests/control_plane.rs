//! A real API server on the underlay.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use podway_testkit::{POD_CIDRS, eventually, in_lab, manifests, reference};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn objects_are_applied_with_their_status_and_deleted() {
    in_lab("plane-objects", |lab| {
        let node = lab.node("node-1")?;
        let plane = lab.control_plane()?;
        let web = node.pod("web-1", ["10.244.1.2", "fd00:10:244:1::2"])?;
        let service =
            manifests::service("web").cluster_ips(["10.96.0.10", "fd00:10:96::10"]).tcp("http", 80, 8080);
        let object = manifests::node("node-1").pod_cidrs(["10.244.1.0/24"]).internal_ips(node.addresses());
        let slices = manifests::slices("web").tcp("http", 8080).pod(&web);
        plane.apply(format!("{object}{service}{slices}"))?;

        let seen = plane.get("/api/v1/nodes/node-1")?;
        assert_eq!(seen["spec"]["podCIDRs"], json!(["10.244.1.0/24"]));
        assert_eq!(seen["status"]["addresses"][1]["address"], "2001:db8::11");
        assert_eq!(plane.get("/api/v1/namespaces/default/services/web")?["spec"]["clusterIP"], "10.96.0.10");
        let slice = plane.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-ipv6")?;
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["fd00:10:244:1::2"]));

        plane.apply(manifests::slices("web").tcp("http", 8080))?;
        let slice = plane.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-ipv6")?;
        assert_eq!(slice["endpoints"], Value::Null);
        plane.delete(&service)?;
        let error = plane.get("/api/v1/namespaces/default/services/web").unwrap_err().to_string();
        assert!(error.contains("404"), "{error}");
        Ok(())
    });
}

#[test]
fn a_node_reaches_the_api_server_with_the_kubeconfig_of_a_service_account_and_rbac_holds() {
    in_lab("plane-rbac", |lab| {
        let node = lab.node("node-1")?;
        let plane = lab.control_plane()?;
        let kubeconfig = plane.service_account_kubeconfig("kube-system", "podway")?;
        let list = || {
            node.command(reference("kubectl")?).env("KUBECONFIG", &kubeconfig).args(["get", "nodes"]).output()
        };
        let refused = list()?;
        assert!(refused.stderr.contains("system:serviceaccount:kube-system:podway"), "{}", refused.stderr);
        plane.kubectl(&["create", "clusterrole", "nodes", "--verb=list", "--resource=nodes"])?;
        let binding = ["create", "clusterrolebinding", "nodes", "--clusterrole=nodes"];
        plane.kubectl(&[&binding[..], &["--serviceaccount=kube-system:podway"]].concat())?;
        eventually(SOON, "the right to list nodes", || {
            let output = list().map_err(|error| format!("{error:#}"))?;
            if output.status.success() { Ok(()) } else { Err(output.stderr) }
        });
        Ok(())
    });
}

#[test]
fn a_rust_client_on_a_node_trusts_the_api_server() {
    in_lab("plane-client", |lab| {
        let node = lab.node("node-1")?;
        let plane = lab.control_plane()?;
        plane.apply(manifests::node("node-1"))?;
        let kubeconfig = plane.kubeconfig();
        let names = node.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(node_names(&kubeconfig))
        })??;
        assert_eq!(names, ["node-1"]);
        Ok(())
    });
}

async fn node_names(kubeconfig: &Path) -> Result<Vec<String>> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let nodes: kube::Api<Node> = kube::Api::all(kube::Client::try_from(config)?);
    let listed = nodes.list(&ListParams::default()).await?;
    Ok(listed.into_iter().filter_map(|node| node.metadata.name).collect())
}

#[test]
fn the_api_server_comes_back_with_its_data() {
    in_lab("plane-restart", |lab| {
        let plane = lab.control_plane()?;
        plane.apply(manifests::node("node-1"))?;
        plane.stop()?;
        assert!(plane.get("/api/v1/nodes/node-1").is_err());
        plane.start()?;
        assert_eq!(plane.get("/api/v1/nodes/node-1")?["metadata"]["name"], "node-1");
        Ok(())
    });
}

#[test]
fn the_controller_manager_gives_nodes_their_pod_cidrs() {
    in_lab("plane-cidrs", |lab| {
        let plane = lab.control_plane()?;
        plane.apply(format!("{}{}", manifests::node("node-1"), manifests::node("node-2")))?;
        plane.allocate_pod_cidrs()?;
        let ranges: Vec<ipnet::IpNet> =
            POD_CIDRS.split(',').map(|range| range.parse()).collect::<Result<_, _>>()?;
        for node in ["node-1", "node-2"] {
            eventually(SOON, "podCIDRs of both families", || {
                let seen =
                    plane.get(&format!("/api/v1/nodes/{node}")).map_err(|error| format!("{error:#}"))?;
                let cidrs: Vec<ipnet::IpNet> =
                    serde_json::from_value(seen["spec"]["podCIDRs"].clone()).map_err(|_| seen.to_string())?;
                let fit =
                    cidrs.len() == 2 && ranges.iter().zip(&cidrs).all(|(range, cidr)| range.contains(cidr));
                if fit { Ok(()) } else { Err(seen["spec"].to_string()) }
            });
        }
        Ok(())
    });
}
