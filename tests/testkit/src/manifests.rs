//! Kubernetes objects as the tests write them, printed as YAML documents: for a directory of manifests, or to be applied
//! to a control plane. Several are put together by printing one after the other: `format!("{node}{service}{slices}")`.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::node::Pod;

/// A Node; see [`node`].
#[derive(Debug, Clone)]
pub struct Node(Value);

/// A Service; see [`service`].
#[derive(Debug, Clone)]
pub struct Service(Value);

/// The EndpointSlices of a Service; see [`slices`].
#[derive(Debug, Clone)]
pub struct Slices {
    template: Value,
    endpoints: Vec<(IpAddr, Value)>,
    /// Where the endpoints of the latest call begin, which a condition applies to.
    latest: usize,
}

/// A Node without addresses and podCIDRs.
pub fn node(name: &str) -> Node {
    let metadata = json!({ "name": name, "labels": { "kubernetes.io/hostname": name } });
    Node(json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata }))
}

/// A Service of type ClusterIP in the namespace `default`, without addresses and ports.
pub fn service(name: &str) -> Service {
    let metadata = json!({ "name": name, "namespace": "default" });
    Service(json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": { "ports": [] } }))
}

/// Two EndpointSlices of a Service in the namespace `default`, one for each family, called `NAME-ipv4` and `NAME-ipv6`.
/// Both are printed even when empty, so that applying them takes endpoints away that are no longer listed.
pub fn slices(service: &str) -> Slices {
    let template = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": service,
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "ports": [],
    });
    Slices { template, endpoints: Vec::new(), latest: 0 }
}

impl Node {
    /// `spec.podCIDRs`, and the first as `spec.podCIDR`.
    pub fn pod_cidrs(mut self, cidrs: impl IntoIterator<Item = impl ToString>) -> Self {
        let cidrs = strings(cidrs);
        put(&mut self.0, "/spec/podCIDR", cidrs.first().cloned().unwrap_or_default());
        self.set("/spec/podCIDRs", cidrs)
    }

    /// Adds InternalIPs, such as the addresses of a [`Host`](crate::Host).
    pub fn internal_ips(mut self, addresses: impl IntoIterator<Item = impl ToString>) -> Self {
        for address in addresses {
            let address = json!({ "type": "InternalIP", "address": address.to_string() });
            push(&mut self.0, "/status/addresses", address);
        }
        self
    }

    /// The label `topology.kubernetes.io/zone`.
    pub fn zone(self, zone: &str) -> Self {
        self.set("/metadata/labels/topology.kubernetes.io~1zone", zone)
    }

    /// Sets anything else by its JSON pointer, such as `/metadata/annotations/flannel.alpha.coreos.com~1public-ip`.
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        put(&mut self.0, pointer, value.into());
        self
    }
}

impl Service {
    /// `spec.clusterIPs`, one address for each family, with the fields that the API server derives from them.
    pub fn cluster_ips(mut self, addresses: impl IntoIterator<Item = impl ToString>) -> Self {
        let addresses = strings(addresses);
        let families: Vec<&str> = addresses.iter().filter_map(Value::as_str).map(family_of).collect();
        put(&mut self.0, "/spec/ipFamilies", json!(families));
        put(
            &mut self.0,
            "/spec/ipFamilyPolicy",
            if families.len() > 1 { "RequireDualStack" } else { "SingleStack" }.into(),
        );
        put(&mut self.0, "/spec/clusterIP", addresses.first().cloned().unwrap_or_default());
        self.set("/spec/clusterIPs", addresses)
    }

    /// Adds a TCP port.
    pub fn tcp(self, name: &str, port: u16, target_port: u16) -> Self {
        self.port(json!({ "name": name, "protocol": "TCP", "port": port, "targetPort": target_port }))
    }

    /// Adds a UDP port.
    pub fn udp(self, name: &str, port: u16, target_port: u16) -> Self {
        self.port(json!({ "name": name, "protocol": "UDP", "port": port, "targetPort": target_port }))
    }

    /// Sets anything else by its JSON pointer, such as `/spec/internalTrafficPolicy`.
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        put(&mut self.0, pointer, value.into());
        self
    }

    fn port(mut self, port: Value) -> Self {
        push(&mut self.0, "/spec/ports", port);
        self
    }
}

impl Slices {
    /// Another name than the Service's, for Services with more slices than these.
    pub fn named(self, name: &str) -> Self {
        self.set("/metadata/name", name)
    }

    /// Adds a TCP port.
    pub fn tcp(self, name: &str, port: u16) -> Self {
        self.port(json!({ "name": name, "protocol": "TCP", "port": port }))
    }

    /// Adds a UDP port. The API server takes each name once.
    pub fn udp(self, name: &str, port: u16) -> Self {
        self.port(json!({ "name": name, "protocol": "UDP", "port": port }))
    }

    /// Adds the addresses of a pod as ready endpoints.
    pub fn pod(self, pod: &Pod) -> Self {
        self.endpoint(pod.addresses(), pod.node_name())
    }

    /// Adds addresses on a node as ready endpoints, each to the slice of its family.
    pub fn endpoint(mut self, addresses: &[IpAddr], node: &str) -> Self {
        self.latest = self.endpoints.len();
        for address in addresses {
            let conditions = json!({ "ready": true, "serving": true, "terminating": false });
            let endpoint =
                json!({ "addresses": [address.to_string()], "nodeName": node, "conditions": conditions });
            self.endpoints.push((*address, endpoint));
        }
        self
    }

    /// The endpoint added last is not ready.
    pub fn not_ready(self) -> Self {
        self.of_latest("/conditions", json!({ "ready": false, "serving": false, "terminating": false }))
    }

    /// The endpoint added last is terminating and still serving.
    pub fn terminating(self) -> Self {
        self.of_latest("/conditions", json!({ "ready": false, "serving": true, "terminating": true }))
    }

    /// Sets anything else of the endpoint added last by its JSON pointer, such as `/hints`.
    pub fn of_latest(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        for (_, endpoint) in &mut self.endpoints[self.latest..] {
            put(endpoint, pointer, value.clone());
        }
        self
    }

    /// Sets anything else of both slices by its JSON pointer, such as `/metadata/namespace`.
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        put(&mut self.template, pointer, value.into());
        self
    }

    fn port(mut self, port: Value) -> Self {
        push(&mut self.template, "/ports", port);
        self
    }

    fn of_family(&self, is_of_family: fn(&IpAddr) -> bool, address_type: &str) -> Value {
        let own = self.endpoints.iter().filter(|(address, _)| is_of_family(address));
        let endpoints: Vec<Value> = own.map(|(_, endpoint)| endpoint.clone()).collect();
        let mut slice = self.template.clone();
        let name = slice["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        put(&mut slice, "/metadata/name", format!("{name}-{}", address_type.to_lowercase()).into());
        put(&mut slice, "/addressType", address_type.into());
        put(&mut slice, "/endpoints", endpoints.into());
        slice
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        document(&self.0, f)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        document(&self.0, f)
    }
}

impl fmt::Display for Slices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        document(&self.of_family(IpAddr::is_ipv4, "IPv4"), f)?;
        document(&self.of_family(IpAddr::is_ipv6, "IPv6"), f)
    }
}

fn document(object: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let yaml = serde_saphyr::to_string(object).map_err(|_| fmt::Error)?;
    writeln!(f, "---\n{}", yaml.trim_end())
}

fn strings(values: impl IntoIterator<Item = impl ToString>) -> Vec<Value> {
    values.into_iter().map(|value| Value::from(value.to_string())).collect()
}

fn family_of(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

/// Sets what a JSON pointer names, with the objects on the way there.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for key in pointer.split('/').skip(1) {
        place = &mut place[key.replace("~1", "/").replace("~0", "~")];
    }
    *place = value;
}

/// Appends to the list that a JSON pointer names; a missing one is created.
fn push(object: &mut Value, pointer: &str, value: Value) {
    match object.pointer_mut(pointer) {
        Some(Value::Array(list)) => list.push(value),
        _ => put(object, pointer, json!([value])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reads_like_one() {
        let node = node("node-1")
            .pod_cidrs(["10.244.1.0/24"])
            .internal_ips(["192.0.2.11", "2001:db8::11"])
            .zone("a");
        let expected = "\
---
apiVersion: v1
kind: Node
metadata:
  labels:
    kubernetes.io/hostname: node-1
    topology.kubernetes.io/zone: a
  name: node-1
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs:
  - 10.244.1.0/24
status:
  addresses:
  - address: \"192.0.2.11\"
    type: InternalIP
  - address: 2001:db8::11
    type: InternalIP
";
        assert_eq!(node.to_string(), expected);
    }

    #[test]
    fn every_endpoint_is_in_the_slice_of_its_family() {
        let addresses = ["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let yaml = slices("web").tcp("http", 8080).endpoint(&addresses, "node-1").terminating().to_string();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
        let seen: Vec<_> = documents
            .iter()
            .map(|slice| (slice["metadata"]["name"].as_str(), slice["endpoints"][0]["addresses"][0].as_str()))
            .collect();
        assert_eq!(seen, [(Some("web-ipv4"), Some("10.244.1.2")), (Some("web-ipv6"), Some("fd00::2"))]);
        assert_eq!(documents[1]["endpoints"][0]["conditions"]["terminating"], true);
    }

    #[test]
    fn a_service_names_the_families_of_its_addresses() {
        let yaml = service("web").cluster_ips(["fd00::10", "10.96.0.10"]).tcp("http", 80, 8080).to_string();
        let service: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
        assert_eq!(service["spec"]["clusterIP"], "fd00::10");
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 8080);
    }
}
