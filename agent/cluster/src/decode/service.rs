//! Services: which are proxied, and their addresses and ports.

use std::net::IpAddr;

use podway_proxy::{Service, ServicePort, TrafficPolicy};

use super::field::{self, Notes};
use super::{Decode, Decoded, Key, Nameless, created, has_label, object_name};
use crate::Event;
use crate::manifest::{self, SERVICE_PROXY_NAME, ServiceSpec};

impl Decode for manifest::Service {
    fn key(&self) -> Result<Key, Nameless> {
        Ok(Key::Service(object_name(&self.metadata)?))
    }

    fn decode(&self) -> Result<Decoded, Nameless> {
        let name = object_name(&self.metadata)?;
        let key = Key::Service(name.clone());
        let mut notes = Notes::of(&key);
        let service = proxied(self).and_then(|spec| service(self, spec, &mut notes));
        let problems = notes.into_problems();
        Ok(Decoded { event: Event::Service(name, service), problems, key })
    }
}

/// The spec, unless the Service is somebody else's, an ExternalName or has no clusterIP (S1).
fn proxied(manifest: &manifest::Service) -> Option<&ServiceSpec> {
    let spec = manifest.spec.as_ref()?;
    let elsewhere = has_label(&manifest.metadata, SERVICE_PROXY_NAME);
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    let has_address = !matches!(cluster_ip(spec), "" | "None");
    (!elsewhere && !external_name && has_address).then_some(spec)
}

fn service(manifest: &manifest::Service, spec: &ServiceSpec, notes: &mut Notes<'_>) -> Option<Service> {
    let cluster_ips = cluster_ips(spec, notes);
    let ports = ports(spec, notes);
    let internal_traffic_policy = internal_traffic_policy(spec, notes);
    let created = created(&manifest.metadata);
    (!cluster_ips.is_empty()).then_some(Service { created, cluster_ips, ports, internal_traffic_policy })
}

/// `clusterIP`, else the first of `clusterIPs`, else empty.
fn cluster_ip(spec: &ServiceSpec) -> &str {
    let first = || spec.cluster_ips.as_ref()?.first().map(String::as_str);
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    single.or_else(first).unwrap_or_default()
}

/// At most one address a family: `clusterIPs`, else `clusterIP` alone. `ipFamilies`, where given, says which of
/// them count and as what; where not, each counts as what it is (S2, S34).
fn cluster_ips(spec: &ServiceSpec, notes: &mut Notes<'_>) -> Vec<IpAddr> {
    let mut chosen: Vec<IpAddr> = Vec::new();
    for (field, text, family) in written_addresses(spec, notes) {
        let ip = match field::address(text) {
            Ok(ip) => ip,
            Err(message) => {
                notes.add(field, message);
                continue;
            }
        };
        if family.is_some_and(|family| family != Family::of(ip)) {
            notes.add(field, format!("{text:?} is not of the family that spec.ipFamilies names; skipped"));
        } else if chosen.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            notes.add(field, format!("{text:?} is the second address of its family; skipped"));
        } else {
            chosen.push(ip);
        }
    }
    chosen
}

/// The addresses that count, each with its field's path and the family it is declared as.
fn written_addresses<'a>(
    spec: &'a ServiceSpec,
    notes: &mut Notes<'_>,
) -> Vec<(String, &'a str, Option<Family>)> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let addresses = match spec.cluster_ips.as_deref() {
        None | Some([]) => vec![("spec.clusterIP".to_owned(), cluster_ip(spec))],
        Some(ips) => {
            let path = |index| format!("spec.clusterIPs[{index}]");
            ips.iter().enumerate().map(|(index, ip)| (path(index), ip.as_str())).collect()
        }
    };
    if families.is_empty() {
        return addresses.into_iter().map(|(field, ip)| (field, ip, None)).collect();
    }
    let mut declared = Vec::new();
    for (index, ((field, ip), family)) in addresses.into_iter().zip(families).enumerate() {
        match Family::named(family) {
            Some(family) => declared.push((field, ip, Some(family))),
            None => notes.add(
                format!("spec.ipFamilies[{index}]"),
                format!("{family:?} is neither IPv4 nor IPv6; its clusterIP is skipped"),
            ),
        }
    }
    declared
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn named(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

fn ports(spec: &ServiceSpec, notes: &mut Notes<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, written) in spec.ports.iter().flatten().enumerate() {
        let path = |field: &str| format!("spec.ports[{index}].{field}");
        let name = field::port_name(written.name.as_deref());
        match (field::port(written.port.unwrap_or_default()), field::protocol(written.protocol.as_deref())) {
            (Err(message), _) => notes.add(path("port"), message),
            (_, Err(message)) => notes.add(path("protocol"), message),
            (Ok(port), Ok(protocol)) => {
                if ports.iter().any(|other| (other.protocol, other.port) == (protocol, port)) {
                    notes.add(path("port"), format!("{port}/{protocol} is there already; port skipped"));
                } else {
                    ports.push(ServicePort { name, protocol, port });
                }
            }
        }
    }
    ports
}

fn internal_traffic_policy(spec: &ServiceSpec, notes: &mut Notes<'_>) -> TrafficPolicy {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let message = format!("{other:?} is neither Cluster nor Local; taken as Cluster");
            notes.add("spec.internalTrafficPolicy", message);
            TrafficPolicy::Cluster
        }
    }
}
