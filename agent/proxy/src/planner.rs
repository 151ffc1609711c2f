//! From events to changes of rows, at a cost that follows the change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_reconcile::{Claims, Delta, diff};

use crate::{
    EndpointSlice, Frontend, Hairpin, NodeContext, ObjectName, Pool, RowDelta, Rows, Service, ServicePlan,
    plan_service,
};

/// A change of the cluster. `None`: the object is gone, or no longer to be proxied.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A Service appeared, changed or went.
    Service(ObjectName, Option<Service>),
    /// An EndpointSlice appeared, changed or went.
    EndpointSlice(ObjectName, Option<EndpointSlice>),
    /// The node that is planned for changed.
    Node(NodeContext),
}

/// Keeps the cluster's Services and what they have become.
///
/// [`Planner::apply`] only takes note; [`Planner::replan`] plans what was touched since and returns the rows that
/// differ. However events are ordered and grouped, the rows end as they would from scratch (property-tested below).
#[derive(Debug, Default)]
pub struct Planner {
    node: NodeContext,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Slices by the Service they belong to, also of Services that are not known (yet).
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    dirty: BTreeSet<ObjectName>,
    /// Under which age each Service holds its rows: one that was made anew has another.
    owners: BTreeMap<ObjectName, Owner>,
    frontends: Claims<Frontend, Owner, Pool>,
    hairpins: Claims<Hairpin, Owner, ()>,
    cluster_ips: Claims<IpAddr, Owner, ()>,
    pod_networks: BTreeMap<IpNet, ()>,
}

/// Orders Services that claim the same row: the oldest wins, then the first by name (contract S29).
type Owner = (i64, ObjectName);

impl Planner {
    /// Takes note of one event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(name, service) => {
                match service {
                    Some(service) => self.services.insert(name.clone(), service),
                    None => self.services.remove(&name),
                };
                self.dirty.insert(name);
            }
            Event::EndpointSlice(name, slice) => self.apply_slice(name, slice),
            Event::Node(node) => self.apply_node(node),
        }
    }

    fn apply_node(&mut self, node: NodeContext) {
        let seen_by_services =
            |it: &NodeContext| (it.name.clone(), it.zone.clone(), it.pod_networks.is_empty());
        if seen_by_services(&node) != seen_by_services(&self.node) {
            self.dirty.extend(self.services.keys().cloned());
        }
        self.node = node;
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<EndpointSlice>) {
        if let Some(old) = self.slices.remove(&name) {
            if let Some(siblings) = self.slices_of.get_mut(&old.service) {
                siblings.remove(&name);
                if siblings.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            self.dirty.insert(old.service);
        }
        if let Some(slice) = slice {
            self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
            self.dirty.insert(slice.service.clone());
            self.slices.insert(name, slice);
        }
    }

    /// Plans every Service touched since the last call and returns the rows that changed.
    pub fn replan(&mut self) -> RowDelta {
        let mut delta = RowDelta::default();
        let dirty = std::mem::take(&mut self.dirty);
        for name in dirty {
            let owner = self.services.get(&name).map(|service| (service.created, name.clone()));
            let held_as = self.owners.remove(&name);
            if let Some(old) = held_as.filter(|old| Some(old) != owner.as_ref()) {
                self.claim(&old, ServicePlan::default(), &mut delta);
            }
            if let (Some(owner), Some(service)) = (owner, self.services.get(&name)) {
                let plan = plan_service(service, &self.slices_of(&name), &self.node);
                self.claim(&owner, plan, &mut delta);
                self.owners.insert(name, owner);
            }
        }
        let pod_networks = IpNet::aggregate(&self.node.pod_networks).into_iter().map(|it| (it, ())).collect();
        delta.pod_networks = diff(&pod_networks, &self.pod_networks);
        self.pod_networks = pod_networks;
        delta
    }

    fn slices_of(&self, service: &ObjectName) -> BTreeMap<&ObjectName, &EndpointSlice> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get_key_value(name)).collect()
    }

    fn claim(&mut self, owner: &Owner, plan: ServicePlan, delta: &mut RowDelta) {
        note(&mut delta.frontends, self.frontends.replace(owner, plan.frontends));
        note(&mut delta.hairpins, self.hairpins.replace(owner, plan.hairpins));
        note(&mut delta.cluster_ips, self.cluster_ips.replace(owner, plan.cluster_ips));
    }

    /// The rows that stand, as of the last [`Planner::replan`].
    pub fn rows(&self) -> Rows {
        Rows {
            frontends: self.frontends.iter().map(|(key, pool)| (*key, pool.clone())).collect(),
            hairpins: self.hairpins.iter().map(|(key, ())| (*key, ())).collect(),
            cluster_ips: self.cluster_ips.iter().map(|(key, ())| (*key, ())).collect(),
            pod_networks: self.pod_networks.clone(),
        }
    }

    /// Frontends that more than one Service claims, the one that has it first (contract S29).
    pub fn contested(&self) -> BTreeMap<Frontend, Vec<ObjectName>> {
        let names = |frontend| self.frontends.owners(frontend).map(|(_, name)| name.clone()).collect();
        self.frontends.contested().map(|frontend| (*frontend, names(frontend))).collect()
    }

    /// The number of Services known.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }
}

fn note<K: Ord + Clone, V: Clone>(delta: &mut Delta<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        delta.note(key, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Endpoint, Protocol, ServicePort, SlicePort, TrafficPolicy};

    proptest! {
        #[test]
        fn incremental_equals_from_scratch_for_any_order_and_grouping(
            events in prop::collection::vec((event(), any::<bool>()), 0..60)
        ) {
            let mut incremental = Planner::default();
            let mut kernel = Rows::default();
            let mut last = BTreeMap::new();
            for (event, replan_now) in events {
                last.insert(identity(&event), event.clone());
                incremental.apply(event);
                if replan_now {
                    kernel.apply(&incremental.replan());
                    prop_assert_eq!(&kernel, &incremental.rows());
                }
            }
            kernel.apply(&incremental.replan());

            let mut scratch = Planner::default();
            last.into_values().for_each(|event| scratch.apply(event));
            scratch.replan();
            prop_assert_eq!(&kernel, &scratch.rows());
            prop_assert_eq!(incremental.contested(), scratch.contested());
            prop_assert!(incremental.replan().is_empty());
        }
    }

    #[test]
    fn s25_one_endpoint_change_touches_its_own_service_only() {
        let mut planner = Planner::default();
        for n in 0..200 {
            planner.apply(Event::Service(name("svc", n), Some(service(0, n, 1))));
            planner.apply(Event::EndpointSlice(name("slice", n), Some(slice(n, 0, vec![ready(1)]))));
        }
        planner.replan();
        planner.apply(Event::EndpointSlice(name("slice", 7), Some(slice(7, 0, vec![ready(2)]))));
        let delta = planner.replan();
        assert_eq!(delta.len(), 1);
        assert_eq!(delta.frontends.set.keys().next().unwrap().address, IpAddr::from([10, 96, 0, 7]));
    }

    #[test]
    fn s3_a_slice_whose_service_label_changes_moves() {
        let mut planner = Planner::default();
        planner.apply(Event::Service(name("svc", 1), Some(service(0, 1, 1))));
        planner.apply(Event::Service(name("svc", 2), Some(service(0, 2, 1))));
        planner.apply(Event::EndpointSlice(name("slice", 1), Some(slice(1, 0, vec![ready(1)]))));
        planner.replan();
        planner.apply(Event::EndpointSlice(name("slice", 1), Some(slice(2, 0, vec![ready(1)]))));
        let delta = planner.replan();
        let pools: Vec<_> = delta.frontends.set.values().collect();
        assert!(matches!(pools[..], [Pool::Reject, Pool::Balance { .. }]), "{pools:?}");
    }

    #[test]
    fn s29_the_oldest_service_keeps_a_contested_frontend() {
        let mut planner = Planner::default();
        planner.apply(Event::Service(name("svc", 1), Some(service(50, 9, 1))));
        planner.apply(Event::Service(name("svc", 2), Some(service(40, 9, 1))));
        planner.apply(Event::EndpointSlice(name("slice", 2), Some(slice(2, 0, vec![ready(1)]))));
        planner.replan();
        let contested: Vec<_> = planner.contested().into_values().collect();
        assert_eq!(contested, [vec![name("svc", 2), name("svc", 1)]]);
        assert!(planner.rows().frontends.values().all(|pool| matches!(pool, Pool::Balance { .. })));
        planner.apply(Event::Service(name("svc", 2), None));
        assert_eq!(planner.replan().frontends.set.into_values().collect::<Vec<_>>(), [Pool::Reject]);
    }

    #[test]
    fn a_grown_pod_network_changes_its_own_row_only() {
        let mut planner = Planner::default();
        let node = |networks: &[&str]| {
            let pod_networks = networks.iter().map(|it| it.parse().unwrap()).collect();
            Event::Node(NodeContext { pod_networks, ..NodeContext::default() })
        };
        planner.apply(Event::Service(name("svc", 1), Some(service(0, 1, 1))));
        planner.apply(Event::EndpointSlice(name("slice", 1), Some(slice(1, 0, vec![ready(1)]))));
        planner.apply(node(&["10.1.0.0/24", "10.1.0.7/32"]));
        assert_eq!(planner.replan().pod_networks.set.len(), 1, "overlapping networks are one row");
        planner.apply(node(&["10.1.0.0/24", "10.2.0.0/24"]));
        assert_eq!(planner.replan().len(), 1);
    }

    fn identity(event: &Event) -> (u8, Option<ObjectName>) {
        match event {
            Event::Service(name, _) => (0, Some(name.clone())),
            Event::EndpointSlice(name, _) => (1, Some(name.clone())),
            Event::Node(_) => (2, None),
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let service =
            (0u8..4, prop::option::weighted(0.8, (0i64..3, 0u8..5, 1u16..3))).prop_map(|(n, it)| {
                Event::Service(name("svc", n), it.map(|(age, ip, ports)| service(age, ip, ports)))
            });
        let slice =
            (0u8..6, prop::option::weighted(0.8, (0u8..4, 0i64..3, prop::collection::vec(endpoint(), 0..4))))
                .prop_map(|(n, it)| {
                    let slice = it.map(|(of, age, endpoints)| slice(of, age, endpoints));
                    Event::EndpointSlice(name("slice", n), slice)
                });
        let node = (0u8..3, 0u8..3, any::<bool>()).prop_map(|(n, zone, pods)| {
            Event::Node(NodeContext {
                name: format!("node-{n}").into(),
                zone: Some(format!("zone-{zone}").into()),
                pod_networks: if pods { vec!["10.1.0.0/16".parse().unwrap()] } else { vec![] },
            })
        });
        prop_oneof![3 => service, 5 => slice, 1 => node]
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (0u8..5, 0u8..3, any::<[bool; 3]>(), prop::option::of(0u8..3)).prop_map(
            |(host, node, flags, zone)| Endpoint {
                address: [10, 1, 0, host].into(),
                node: Some(format!("node-{node}").into()),
                ready: flags[0],
                serving: flags[1],
                terminating: flags[2],
                zone_hints: zone.map(|zone| format!("zone-{zone}").into()).into_iter().collect(),
                node_hints: vec![],
            },
        )
    }

    fn ready(host: u8) -> Endpoint {
        Endpoint {
            address: [10, 1, 0, host].into(),
            node: None,
            ready: true,
            serving: true,
            terminating: false,
            zone_hints: vec![],
            node_hints: vec![],
        }
    }

    fn service(created: i64, ip: u8, ports: u16) -> Service {
        let port =
            |n| ServicePort { name: format!("port-{n}").into(), protocol: Protocol::Tcp, port: 80 + n };
        Service {
            created,
            cluster_ips: vec![[10, 96, 0, ip].into()],
            ports: (0..ports).map(port).collect(),
            internal_traffic_policy: if ip == 3 { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        }
    }

    fn slice(service: u8, created: i64, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let port =
            |n: u16| SlicePort { name: format!("port-{n}").into(), protocol: Protocol::Tcp, port: 8080 + n };
        EndpointSlice { service: name("svc", service), ports: (0..2).map(port).collect(), endpoints, created }
    }

    fn name(kind: &str, n: u8) -> ObjectName {
        ObjectName::new("shop", &format!("{kind}-{n}"))
    }
}
