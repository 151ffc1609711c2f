//! EndpointSlices: which belong to a Service, and their ports and endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use podway_proxy::{Endpoint, EndpointSlice, ObjectName, SlicePort};

use super::field::{self, Notes};
use super::{Decode, Decoded, Key, Nameless, created, has_label, label, object_name};
use crate::Event;
use crate::manifest::{self, HEADLESS, Named, SERVICE_NAME};

impl Decode for manifest::EndpointSlice {
    fn key(&self) -> Result<Key, Nameless> {
        Ok(Key::EndpointSlice(object_name(&self.metadata)?))
    }

    fn decode(&self) -> Result<Decoded, Nameless> {
        let name = object_name(&self.metadata)?;
        let key = Key::EndpointSlice(name.clone());
        let mut notes = Notes::of(&key);
        let headless = has_label(&self.metadata, HEADLESS);
        let slice = if headless { None } else { slice(self, &name, &mut notes) };
        let problems = notes.into_problems();
        Ok(Decoded { event: Event::EndpointSlice(name, slice), problems, key })
    }
}

/// The slice, unless it holds names or belongs to no Service (S2).
fn slice(
    manifest: &manifest::EndpointSlice,
    name: &ObjectName,
    notes: &mut Notes<'_>,
) -> Option<EndpointSlice> {
    let is_of_family: fn(&IpAddr) -> bool = match manifest.address_type.as_deref() {
        Some("IPv4") => IpAddr::is_ipv4,
        Some("IPv6") => IpAddr::is_ipv6,
        Some("FQDN") => {
            notes.add("addressType", "FQDN is not served; slice ignored");
            return None;
        }
        other => {
            let other = other.unwrap_or_default();
            notes.add("addressType", format!("{other:?} is neither IPv4 nor IPv6; slice ignored"));
            return None;
        }
    };
    let Some(service) = label(&manifest.metadata, SERVICE_NAME) else {
        notes.add(format!("metadata.labels[{SERVICE_NAME}]"), "missing; slice ignored");
        return None;
    };
    Some(EndpointSlice {
        service: ObjectName::new(name.namespace(), service),
        ports: ports(manifest, notes),
        endpoints: endpoints(manifest, is_of_family, notes),
        created: created(&manifest.metadata),
    })
}

/// Ports with a number; one without means "all ports" and is not proxied (S3).
fn ports(manifest: &manifest::EndpointSlice, notes: &mut Notes<'_>) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (index, written) in manifest.ports.iter().flatten().enumerate() {
        let Some(number) = written.port.filter(|number| *number != 0) else { continue };
        let path = |field: &str| format!("ports[{index}].{field}");
        let name = field::port_name(written.name.as_deref());
        match (field::port(number), field::protocol(written.protocol.as_deref())) {
            (Err(message), _) => notes.add(path("port"), message),
            (_, Err(message)) => notes.add(path("protocol"), message),
            (Ok(port), Ok(protocol)) => ports.push(SlicePort { name, protocol, port }),
        }
    }
    ports
}

/// Endpoints whose first address is one of the slice's family; further addresses are not looked at (S3).
fn endpoints(
    manifest: &manifest::EndpointSlice,
    is_of_family: fn(&IpAddr) -> bool,
    notes: &mut Notes<'_>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for (index, written) in manifest.endpoints.iter().flatten().enumerate() {
        let Some(text) = written.addresses.as_ref().and_then(|addresses| addresses.first()) else {
            notes.add(format!("endpoints[{index}].addresses"), "empty; endpoint skipped");
            continue;
        };
        match field::address(text) {
            Ok(ip) if is_of_family(&ip) => endpoints.push(endpoint(written, ip)),
            Ok(_) => notes.add(
                format!("endpoints[{index}].addresses[0]"),
                format!("{text:?} is not of the slice's addressType; endpoint skipped"),
            ),
            Err(message) => notes.add(format!("endpoints[{index}].addresses[0]"), message),
        }
    }
    endpoints
}

/// Conditions by S4: ready and serving unless said otherwise, terminating only when said.
fn endpoint(written: &manifest::Endpoint, address: IpAddr) -> Endpoint {
    let conditions = written.conditions.as_ref();
    let hints = written.hints.as_ref();
    Endpoint {
        address,
        node: written.node_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        zone_hints: names(hints.and_then(|hints| hints.for_zones.as_deref())),
        node_hints: names(hints.and_then(|hints| hints.for_nodes.as_deref())),
    }
}

fn names(written: Option<&[Named]>) -> Vec<Arc<str>> {
    let names = written.unwrap_or_default().iter();
    names.map(|named| named.name.as_deref().unwrap_or_default().into()).collect()
}
