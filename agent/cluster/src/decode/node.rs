//! Nodes: addresses, pod networks, zone and what flannel has written on them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podway_overlay::Node;

use super::field::{self, Notes};
use super::{Decode, Decoded, Key, Nameless, label, plain_name};
use crate::Event;
use crate::manifest::{self, ZONE};

impl Decode for manifest::Node {
    fn key(&self) -> Result<Key, Nameless> {
        Ok(Key::Node(plain_name(&self.metadata)?.into()))
    }

    fn decode(&self) -> Result<Decoded, Nameless> {
        let name: Arc<str> = plain_name(&self.metadata)?.into();
        let key = Key::Node(name.clone());
        let mut notes = Notes::of(&key);
        let node = Node {
            name: name.clone(),
            uid: self.metadata.uid.as_deref().unwrap_or_default().into(),
            addresses: addresses(self, &mut notes),
            pod_cidrs: pod_cidrs(self, &mut notes),
            zone: label(&self.metadata, ZONE).map(Arc::from),
            flannel: flannel(self),
        };
        let problems = notes.into_problems();
        Ok(Decoded { event: Event::Node(name, Some(node)), problems, key })
    }
}

/// Every InternalIP, then every ExternalIP, each in the order of the object (S35).
fn addresses(manifest: &manifest::Node, notes: &mut Notes<'_>) -> Vec<IpAddr> {
    let written = manifest.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut addresses = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (index, entry) in written.iter().enumerate() {
            if entry.type_.as_deref() != Some(wanted) {
                continue;
            }
            match field::address(entry.address.as_deref().unwrap_or_default()) {
                Ok(ip) => addresses.push(ip),
                Err(message) => notes.add(format!("status.addresses[{index}].address"), message),
            }
        }
    }
    addresses
}

/// `podCIDRs`, else `podCIDR`; empty while none is assigned.
fn pod_cidrs(manifest: &manifest::Node, notes: &mut Notes<'_>) -> Vec<IpNet> {
    let Some(spec) = &manifest.spec else { return Vec::new() };
    let written: Vec<(String, &str)> = match spec.pod_cidrs.as_deref() {
        None | Some([]) => {
            spec.pod_cidr.iter().map(|cidr| ("spec.podCIDR".to_owned(), cidr.as_str())).collect()
        }
        Some(cidrs) => {
            let path = |index| format!("spec.podCIDRs[{index}]");
            cidrs.iter().enumerate().map(|(index, cidr)| (path(index), cidr.as_str())).collect()
        }
    };
    let mut cidrs = Vec::new();
    for (path, text) in written.into_iter().filter(|(_, text)| !text.is_empty()) {
        match field::network(text) {
            Ok(cidr) => cidrs.push(cidr),
            Err(message) => notes.add(path, message),
        }
    }
    cidrs
}

/// Annotations under flannel's prefix, without it (N5).
fn flannel(manifest: &manifest::Node) -> BTreeMap<String, String> {
    let prefix = manifest::annotation_prefix();
    let annotations = manifest.metadata.annotations.iter().flatten();
    let ours = annotations.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
    ours.map(|(key, value)| (key.to_owned(), value.clone())).collect()
}
