//! The shop as its manifests describe it, and the edits that the demo makes to them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// The cluster's manifests at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shop {
    pub(crate) nodes: Manifest,
    pub(crate) pods: Manifest,
    pub(crate) services: Manifest,
    pub(crate) slices: Manifest,
}

/// One file of manifests.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) file: &'static str,
    pub(crate) text: String,
    pub(crate) documents: Vec<Value>,
}

/// A Node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) internal_ips: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<String>,
}

/// A Pod.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// A Service with its one port.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// In lower case: `tcp`, `udp`.
    pub(crate) protocol: String,
    pub(crate) port: u16,
}

/// An address behind a Service.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) service: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) address: SocketAddr,
}

impl Shop {
    /// The shop of manifests/demo.
    pub(crate) fn embedded() -> Result<Self> {
        Ok(Self {
            nodes: Manifest::read("nodes.yaml", include_str!("../../../manifests/demo/nodes.yaml"))?,
            pods: Manifest::read("pods.yaml", include_str!("../../../manifests/demo/pods.yaml"))?,
            services: Manifest::read("services.yaml", include_str!("../../../manifests/demo/services.yaml"))?,
            slices: Manifest::read(
                "endpointslices.yaml",
                include_str!("../../../manifests/demo/endpointslices.yaml"),
            )?,
        })
    }

    /// All files, Nodes first.
    pub(crate) fn manifests(&self) -> [&Manifest; 4] {
        [&self.nodes, &self.pods, &self.services, &self.slices]
    }

    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        self.nodes.objects::<raw::Node>()?.into_iter().map(raw::Node::read).collect()
    }

    pub(crate) fn pods(&self) -> Result<Vec<Pod>> {
        self.pods.objects::<raw::Pod>()?.into_iter().map(raw::Pod::read).collect()
    }

    pub(crate) fn services(&self) -> Result<Vec<Service>> {
        self.services.objects::<raw::Service>()?.into_iter().map(raw::Service::read).collect()
    }

    pub(crate) fn service(&self, name: &str) -> Result<Service> {
        let service = self.services()?.into_iter().find(|service| service.name == name);
        service.with_context(|| format!("no Service {name} in services.yaml"))
    }

    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let slices: Vec<raw::EndpointSlice> = self.slices.objects()?;
        slices.into_iter().map(raw::EndpointSlice::read).collect::<Result<Vec<_>>>().map(|all| all.concat())
    }

    /// Without the endpoints that a pod is.
    pub(crate) fn without_endpoints_of(&self, pod: &str) -> Result<Self> {
        self.without_endpoints(|endpoint| endpoint["targetRef"]["name"] == pod)
    }

    /// Without the endpoints on a node; its Node stays.
    pub(crate) fn without_endpoints_on(&self, node: &str) -> Result<Self> {
        self.without_endpoints(|endpoint| endpoint["nodeName"] == node)
    }

    /// Without a Node and the endpoints there.
    pub(crate) fn without_node(&self, node: &str) -> Result<Self> {
        let mut documents = self.nodes.documents.clone();
        documents.retain(|document| document["metadata"]["name"] != node);
        Ok(Self { nodes: self.nodes.with(documents)?, ..self.without_endpoints_on(node)? })
    }

    fn without_endpoints(&self, is_gone: impl Fn(&Value) -> bool) -> Result<Self> {
        let mut documents = self.slices.documents.clone();
        for document in &mut documents {
            if let Some(endpoints) = document["endpoints"].as_array_mut() {
                endpoints.retain(|endpoint| !is_gone(endpoint));
            }
        }
        Ok(Self { slices: self.slices.with(documents)?, ..self.clone() })
    }
}

impl Manifest {
    fn read(file: &'static str, text: &str) -> Result<Self> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).with_context(|| format!("read manifests/demo/{file}"))?;
        let documents = documents.into_iter().filter(|document| !document.is_null()).collect();
        Ok(Self { file, text: text.to_owned(), documents })
    }

    fn with(&self, documents: Vec<Value>) -> Result<Self> {
        let text = documents.iter().map(document).collect::<Result<String>>()?;
        Ok(Self { file: self.file, text, documents })
    }

    fn objects<T: for<'de> Deserialize<'de>>(&self) -> Result<Vec<T>> {
        let read = |document: &Value| serde_json::from_value(document.clone());
        let objects = self.documents.iter().map(read).collect::<Result<_, _>>();
        objects.with_context(|| format!("read manifests/demo/{}", self.file))
    }
}

/// An object as a YAML document.
pub(crate) fn document(object: &Value) -> Result<String> {
    let yaml = serde_saphyr::to_string(object).context("write YAML")?;
    Ok(format!("---\n{}\n", yaml.trim_end()))
}

impl Service {
    /// Its address and port, IPv4.
    pub(crate) fn ipv4(&self) -> Result<SocketAddr> {
        self.of_family(IpAddr::is_ipv4)
    }

    /// Its address and port, IPv6.
    pub(crate) fn ipv6(&self) -> Result<SocketAddr> {
        self.of_family(IpAddr::is_ipv6)
    }

    fn of_family(&self, is_of_family: fn(&IpAddr) -> bool) -> Result<SocketAddr> {
        let address = self.cluster_ips.iter().find(|address| is_of_family(address));
        let address = address.with_context(|| format!("Service {} lacks a family", self.name))?;
        Ok((*address, self.port).into())
    }
}

/// The fields that the demo reads.
mod raw {
    use super::*;

    #[derive(Deserialize)]
    pub(super) struct Metadata {
        name: String,
        #[serde(default)]
        labels: std::collections::BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    pub(super) struct Node {
        metadata: Metadata,
        spec: NodeSpec,
        status: NodeStatus,
    }

    #[derive(Deserialize)]
    struct NodeSpec {
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<String>,
    }

    #[derive(Deserialize)]
    struct NodeStatus {
        addresses: Vec<NodeAddress>,
    }

    #[derive(Deserialize)]
    struct NodeAddress {
        r#type: String,
        address: String,
    }

    impl Node {
        pub(super) fn read(self) -> Result<super::Node> {
            let internal = self.status.addresses.iter().filter(|address| address.r#type == "InternalIP");
            let internal_ips = internal.map(|address| parse(&address.address)).collect::<Result<_>>()?;
            Ok(super::Node { name: self.metadata.name, internal_ips, pod_cidrs: self.spec.pod_cidrs })
        }
    }

    #[derive(Deserialize)]
    pub(super) struct Pod {
        metadata: Metadata,
        spec: PodSpec,
        status: PodStatus,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct PodSpec {
        node_name: String,
    }

    #[derive(Deserialize)]
    struct PodStatus {
        #[serde(rename = "podIPs")]
        pod_ips: Vec<PodIp>,
    }

    #[derive(Deserialize)]
    struct PodIp {
        ip: String,
    }

    impl Pod {
        pub(super) fn read(self) -> Result<super::Pod> {
            let addresses = self.status.pod_ips.iter().map(|ip| parse(&ip.ip)).collect::<Result<_>>()?;
            Ok(super::Pod { name: self.metadata.name, node: self.spec.node_name, addresses })
        }
    }

    #[derive(Deserialize)]
    pub(super) struct Service {
        metadata: Metadata,
        spec: ServiceSpec,
    }

    #[derive(Deserialize)]
    struct ServiceSpec {
        #[serde(rename = "clusterIPs")]
        cluster_ips: Vec<String>,
        ports: [Port; 1],
    }

    #[derive(Deserialize)]
    struct Port {
        protocol: String,
        port: u16,
    }

    impl Service {
        pub(super) fn read(self) -> Result<super::Service> {
            let [Port { protocol, port }] = self.spec.ports;
            let cluster_ips = self.spec.cluster_ips.iter().map(|ip| parse(ip)).collect::<Result<_>>()?;
            let protocol = protocol.to_lowercase();
            Ok(super::Service { name: self.metadata.name, cluster_ips, protocol, port })
        }
    }

    #[derive(Deserialize)]
    pub(super) struct EndpointSlice {
        metadata: Metadata,
        ports: [Port; 1],
        endpoints: Vec<Endpoint>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Endpoint {
        addresses: [String; 1],
        node_name: String,
        target_ref: TargetRef,
    }

    #[derive(Deserialize)]
    struct TargetRef {
        name: String,
    }

    impl EndpointSlice {
        pub(super) fn read(self) -> Result<Vec<super::Endpoint>> {
            let label = self.metadata.labels.get("kubernetes.io/service-name");
            let service = label.with_context(|| format!("{} names no Service", self.metadata.name))?;
            let port = self.ports[0].port;
            let read = |Endpoint { addresses: [address], node_name, target_ref }: Endpoint| {
                Ok(super::Endpoint {
                    service: service.clone(),
                    pod: target_ref.name,
                    node: node_name,
                    address: (parse(&address)?, port).into(),
                })
            };
            self.endpoints.into_iter().map(read).collect()
        }
    }

    fn parse(address: &str) -> Result<IpAddr> {
        address.parse().with_context(|| format!("{address} is not an address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_a_pod_of_the_shop_on_its_node_at_its_address() {
        let shop = Shop::embedded().unwrap();
        let pods = shop.pods().unwrap();
        let endpoints = shop.endpoints().unwrap();
        assert_eq!(endpoints.len(), 14);
        for endpoint in endpoints {
            let pod = pods.iter().find(|pod| pod.name == endpoint.pod).unwrap();
            assert_eq!(pod.node, endpoint.node);
            assert!(pod.addresses.contains(&endpoint.address.ip()), "{endpoint:?}");
        }
    }

    #[test]
    fn a_node_goes_with_all_its_endpoints_and_nothing_else() {
        let shop = Shop::embedded().unwrap();
        let edited = shop.without_node("node-3").unwrap();
        assert_eq!(edited.nodes().unwrap().len(), 2);
        assert_eq!(edited.endpoints().unwrap().len(), 8);
        assert!(edited.endpoints().unwrap().iter().all(|endpoint| endpoint.node != "node-3"));
        assert_eq!(edited.services, shop.services);
    }

    #[test]
    fn an_edited_file_reads_back_as_edited() {
        let edited = Shop::embedded().unwrap().without_endpoints_of("web-2").unwrap();
        assert_eq!(edited.endpoints().unwrap().len(), 12);
        assert_eq!(Manifest::read(edited.slices.file, &edited.slices.text).unwrap(), edited.slices);
    }
}
