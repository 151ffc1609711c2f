//! A watcher's events, folded into ours.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;

use crate::decode::{Decode, Key};
use crate::{Event, Kind, Problem};

/// What is known of one kind: of each object its name and the version that was told, and nothing else.
///
/// Pure: the watcher's events go in, ours come out. A list that is repeated after the watch was lost tells only of
/// what has changed meanwhile.
#[derive(Debug)]
pub(super) struct Fold {
    kind: Kind,
    /// Objects that are out there.
    told: BTreeMap<Key, Option<Version>>,
    /// Objects that the present list has shown so far; none between lists.
    listed: Option<BTreeSet<Key>>,
    is_synced: bool,
}

/// A `resourceVersion`: a number, of which only equality matters.
type Version = u64;

impl Fold {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, told: BTreeMap::new(), listed: Some(BTreeSet::new()), is_synced: false }
    }

    /// Whether a list is under way, or still to come.
    pub(super) fn is_listing(&self) -> bool {
        self.listed.is_some()
    }

    /// The events that follow from a watcher's event.
    pub(super) fn apply<K: Decode + kube::Resource>(&mut self, event: watcher::Event<K>) -> Vec<Event> {
        match event {
            watcher::Event::Init => {
                self.listed = Some(BTreeSet::new());
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                if let (Ok(key), Some(listed)) = (object.key(), &mut self.listed) {
                    listed.insert(key);
                }
                self.present(&object)
            }
            watcher::Event::InitDone => self.list_done(),
            watcher::Event::Apply(object) => self.present(&object),
            watcher::Event::Delete(object) => {
                object.key().ok().and_then(|key| self.gone(&key)).into_iter().collect()
            }
        }
    }

    fn present<K: Decode + kube::Resource>(&mut self, object: &K) -> Vec<Event> {
        let decoded = match object.decode() {
            Ok(decoded) => decoded,
            Err(nameless) => return vec![Event::Problem(unnamed(self.kind, &nameless.to_string()))],
        };
        let version = version(object.meta());
        if version.is_some() && self.told.get(&decoded.key) == Some(&version) {
            return Vec::new();
        }
        let mut events: Vec<Event> = decoded.problems.into_iter().map(Event::Problem).collect();
        if decoded.event == decoded.key.gone() {
            events.extend(self.gone(&decoded.key));
        } else {
            self.told.insert(decoded.key, version);
            events.push(decoded.event);
        }
        events
    }

    fn gone(&mut self, key: &Key) -> Option<Event> {
        self.told.remove(key).map(|_| key.gone())
    }

    /// What a complete list did not show is gone.
    fn list_done(&mut self) -> Vec<Event> {
        let listed = self.listed.take().unwrap_or_default();
        let vanished: Vec<Key> = self.told.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        let mut events: Vec<Event> = vanished.iter().filter_map(|key| self.gone(key)).collect();
        if !self.is_synced {
            self.is_synced = true;
            events.push(Event::Synced(self.kind));
        }
        events
    }
}

fn version(metadata: &ObjectMeta) -> Option<Version> {
    metadata.resource_version.as_ref()?.parse().ok()
}

fn unnamed(kind: Kind, message: &str) -> Problem {
    Problem { subject: format!("{kind:?} without a name"), field: String::new(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::manifest::Service;

    fn service(name: u8, version: u64) -> Service {
        let metadata = json!({"name": format!("s{name}"), "resourceVersion": version.to_string()});
        // Every third version is one that is not to be looked at.
        let cluster_ip = if version.is_multiple_of(3) { "None" } else { "10.96.0.1" };
        let spec = json!({"clusterIP": cluster_ip, "ports": [{"port": version}]});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn any_event() -> impl Strategy<Value = watcher::Event<Service>> {
        let object = (0u8..4, 1u64..9).prop_map(|(name, version)| service(name, version));
        prop_oneof![
            1 => Just(watcher::Event::Init),
            1 => Just(watcher::Event::InitDone),
            3 => object.clone().prop_map(watcher::Event::InitApply),
            3 => object.clone().prop_map(watcher::Event::Apply),
            1 => object.prop_map(watcher::Event::Delete),
        ]
    }

    proptest! {
        #[test]
        fn after_a_complete_list_what_was_told_in_sum_is_that_list(
            before in prop::collection::vec(any_event(), 0..20),
            list in prop::collection::btree_map(0u8..4, 1u64..9, 0..4),
        ) {
            let mut fold = Fold::new(Kind::Service);
            let listed = list.iter().map(|(name, version)| watcher::Event::InitApply(service(*name, *version)));
            let complete = std::iter::once(watcher::Event::Init).chain(listed).chain([watcher::Event::InitDone]);
            let (mut world, mut synced) = (BTreeMap::new(), 0);
            for event in before.into_iter().chain(complete).flat_map(|event| fold.apply(event)) {
                match event {
                    Event::Service(name, Some(service)) => {
                        world.insert(name.name().to_owned(), u64::from(service.ports[0].port));
                    }
                    Event::Service(name, None) => prop_assert!(world.remove(name.name()).is_some(), "gone twice"),
                    Event::Synced(_) => synced += 1,
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let proxied = list.into_iter().filter(|(_, version)| !version.is_multiple_of(3));
            let expected: BTreeMap<_, _> = proxied.map(|(name, version)| (format!("s{name}"), version)).collect();
            prop_assert_eq!(world, expected);
            prop_assert_eq!(synced, 1);
        }
    }
}
