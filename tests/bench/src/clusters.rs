//! The clusters that are measured with, as manifests.

use std::net::{IpAddr, Ipv4Addr};

use podway_testkit::{Host, manifests};

/// How many Services the large cluster has.
pub(crate) const SERVICES: u16 = 1000;

/// How many endpoints each of them has.
pub(crate) const ENDPOINTS: u16 = 4;

/// The pod network of every cluster here but the demo's.
pub(crate) const POD_NETWORK: &str = "10.244.0.0/16";

/// The pod networks of the demo's cluster, as a list for `network.podNetworks`.
pub(crate) const DEMO_POD_NETWORKS: &str = r#"[10.77.0.0/16, "fd77::/48"]"#;

/// The demo's three nodes and four Services, both families.
pub(crate) const DEMO: [(&str, &str); 3] = [
    ("nodes.yaml", include_str!("../../../manifests/demo/nodes.yaml")),
    ("services.yaml", include_str!("../../../manifests/demo/services.yaml")),
    ("endpointslices.yaml", include_str!("../../../manifests/demo/endpointslices.yaml")),
];

/// A Node with the subnet 10.244.`number`.0/24, and an annotation as every kubelet sets one: flanneld ends without.
pub(crate) fn node(host: &Host, number: u8) -> String {
    let node = manifests::node(host.name()).pod_cidrs([format!("10.244.{number}.0/24")]);
    node.internal_ips(host.addresses())
        .set("/metadata/annotations/node.alpha.kubernetes.io~1ttl", "0")
        .to_string()
}

/// The Services of the large cluster with one port each, and their EndpointSlices; IPv4.
pub(crate) fn services() -> impl Iterator<Item = String> {
    (0..SERVICES).map(|number| {
        let name = format!("app-{number}");
        let cluster_ip = nth([10, 96, 1, 0], number);
        let service = manifests::service(&name).cluster_ips([cluster_ip]).tcp("http", 80, 8080);
        let slices = (0..ENDPOINTS).fold(manifests::slices(&name).tcp("http", 8080), |slices, endpoint| {
            let pod = nth([10, 244, 0, 0], number * ENDPOINTS + endpoint);
            slices.endpoint(&[IpAddr::from(pod)], "node-1")
        });
        format!("{service}{slices}")
    })
}

/// The address `number` after `first`, leaving out those that end in 0 or 255.
fn nth(first: [u8; 4], number: u16) -> Ipv4Addr {
    let number = u32::from(number);
    Ipv4Addr::from_bits(u32::from_be_bytes(first) + number / 254 * 256 + number % 254 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_run_over_the_last_byte() {
        let at = |number| nth([10, 96, 1, 0], number).to_string();
        assert_eq!((at(0), at(253), at(254)), ("10.96.1.1".into(), "10.96.1.254".into(), "10.96.2.1".into()));
    }
}
