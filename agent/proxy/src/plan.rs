//! Which rows one Service becomes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::{
    EndpointChoice, EndpointSlice, Frontend, Hairpin, Masquerade, NodeContext, ObjectName, Pool, Service,
    ServicePort, TrafficPolicy, choose_endpoints, merge_slices,
};

/// What one Service wants in the tables; other Services may want the same keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePlan {
    /// See [`crate::Rows::frontends`].
    pub frontends: BTreeMap<Frontend, Pool>,
    /// See [`crate::Rows::hairpins`].
    pub hairpins: BTreeMap<Hairpin, ()>,
    /// See [`crate::Rows::cluster_ips`].
    pub cluster_ips: BTreeMap<IpAddr, ()>,
}

/// Plans one Service with all its slices for one node.
///
/// Each clusterIP is planned on its own from the endpoints of its family (contract S2). A Service without ports has
/// no clusterIP worth rejecting at (S10).
pub fn plan_service(
    service: &Service,
    slices: &BTreeMap<&ObjectName, &EndpointSlice>,
    node: &NodeContext,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    if service.ports.is_empty() {
        return plan;
    }
    for &address in &service.cluster_ips {
        plan.cluster_ips.insert(address, ());
        for port in &service.ports {
            let merged =
                merge_slices(slices.iter().map(|(name, slice)| (*name, *slice)), port, address.is_ipv6());
            let choice = choose_endpoints(&merged, node);
            let frontend = Frontend { address, protocol: port.protocol, port: port.port };
            plan.hairpins.extend(choice.on_this_node.iter().map(|it| (hairpin(*it, port), ())));
            plan.frontends.insert(frontend, cluster_ip_pool(choice, service.internal_traffic_policy, node));
        }
    }
    plan
}

/// The verdict at a clusterIP, for every source alike: the policy decides which set counts, and an empty set is a
/// reject only if nothing is usable anywhere (contract S6, S9, S27).
fn cluster_ip_pool(choice: EndpointChoice, policy: TrafficPolicy, node: &NodeContext) -> Pool {
    let targets = match policy {
        TrafficPolicy::Cluster => choice.cluster,
        TrafficPolicy::Local => choice.local,
    };
    match (targets.is_empty(), choice.any_usable) {
        (false, _) => Pool::Balance { targets, masquerade: cluster_ip_masquerade(node) },
        (true, true) => Pool::Drop,
        (true, false) => Pool::Reject,
    }
}

/// Sources outside the pod network get the node's address, or the answer would not come back through this node
/// (contract S15); without a pod network to tell them by, nobody does (S28).
fn cluster_ip_masquerade(node: &NodeContext) -> Masquerade {
    if node.pod_networks.is_empty() { Masquerade::Never } else { Masquerade::UnlessPod }
}

fn hairpin(target: SocketAddr, port: &ServicePort) -> Hairpin {
    Hairpin { address: target.ip(), protocol: port.protocol, port: target.port() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Protocol, SlicePort};

    #[test]
    fn s9_no_usable_endpoint_anywhere_is_a_reject() {
        assert_eq!(pools(&service(), &[]), [Pool::Reject]);
    }

    #[test]
    fn s6_local_policy_without_a_local_endpoint_drops_while_others_have_one() {
        let local = Service { internal_traffic_policy: TrafficPolicy::Local, ..service() };
        assert_eq!(pools(&local, &["other"]), [Pool::Drop]);
        assert_eq!(pools(&local, &[]), [Pool::Reject]);
        assert_eq!(pools(&local, &["other", "here"]), [balance(&["10.1.0.1:8080"])]);
    }

    #[test]
    fn s2_each_family_has_its_own_endpoints() {
        let dual = Service { cluster_ips: vec![ip("10.96.0.1"), ip("fd00::1")], ..service() };
        assert_eq!(pools(&dual, &["here"]), [balance(&["10.1.0.0:8080"]), Pool::Reject]);
    }

    #[test]
    fn s15_hairpin_rows_are_the_endpoints_on_this_node() {
        let plan = plan(&service(), &["other", "here"]);
        let here = Hairpin { address: ip("10.1.0.1"), protocol: Protocol::Tcp, port: 8080 };
        assert_eq!(plan.hairpins, BTreeMap::from([(here, ())]));
    }

    #[test]
    fn s28_without_a_pod_network_nothing_is_masqueraded() {
        let nowhere = NodeContext { pod_networks: vec![], ..node() };
        let name = ObjectName::new("shop", "web-1");
        let slice = slice(&["here"]);
        let plan = plan_service(&service(), &BTreeMap::from([(&name, &slice)]), &nowhere);
        let pool = plan.frontends.into_values().next().unwrap();
        assert!(matches!(pool, Pool::Balance { masquerade: Masquerade::Never, .. }));
    }

    #[test]
    fn s10_a_service_without_ports_has_no_rows() {
        let portless = Service { ports: vec![], ..service() };
        assert_eq!(plan(&portless, &["here"]), ServicePlan::default());
    }

    fn plan(service: &Service, nodes: &[&str]) -> ServicePlan {
        let name = ObjectName::new("shop", "web-1");
        plan_service(service, &BTreeMap::from([(&name, &slice(nodes))]), &node())
    }

    fn pools(service: &Service, nodes: &[&str]) -> Vec<Pool> {
        plan(service, nodes).frontends.into_values().collect()
    }

    fn node() -> NodeContext {
        NodeContext { name: "here".into(), zone: None, pod_networks: vec!["10.1.0.0/16".parse().unwrap()] }
    }

    fn service() -> Service {
        Service {
            created: 0,
            cluster_ips: vec![ip("10.96.0.1")],
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
            internal_traffic_policy: TrafficPolicy::Cluster,
        }
    }

    fn slice(nodes: &[&str]) -> EndpointSlice {
        let endpoint = |(host, node): (usize, &&str)| Endpoint {
            address: ip(&format!("10.1.0.{host}")),
            node: Some((*node).into()),
            ready: true,
            serving: true,
            terminating: false,
            zone_hints: vec![],
            node_hints: vec![],
        };
        EndpointSlice {
            service: ObjectName::new("shop", "web"),
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: nodes.iter().enumerate().map(endpoint).collect(),
            created: 0,
        }
    }

    fn balance(targets: &[&str]) -> Pool {
        let targets = targets.iter().map(|it| it.parse().unwrap()).collect();
        Pool::Balance { targets, masquerade: Masquerade::UnlessPod }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
