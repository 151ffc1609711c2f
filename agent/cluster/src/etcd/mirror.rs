//! What is known of the keys below `subnets/`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podway_overlay::{Lease, LeaseError};

use super::store::{Change, Entry};

/// The keys, as of a list and the changes after it.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    known: BTreeMap<Arc<str>, Known>,
    /// Of the last list. A watch may still tell what it has already.
    listed: i64,
    changed: BTreeSet<Arc<str>>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// etcd's revision that wrote it.
    pub(super) revision: i64,
    /// etcd's number of its lease; 0 is none.
    pub(super) lease_id: i64,
    pub(super) lease: Result<Lease, LeaseError>,
}

impl Mirror {
    /// Takes a list for all there is. It was asked for after everything that is known, so it holds even where its
    /// revisions are lower: etcd may have lost its store, or got an old one back.
    pub(super) fn replace(&mut self, entries: Vec<Entry>, revision: i64) {
        let before = std::mem::take(&mut self.known);
        self.known = entries.into_iter().map(|entry| (entry.key.clone(), Known::read(&entry))).collect();
        let differs = |key: &&Arc<str>| !says_the_same(self.known.get(*key), before.get(*key));
        let changed: Vec<_> = before.keys().chain(self.known.keys()).filter(differs).cloned().collect();
        self.changed.extend(changed);
        self.listed = revision;
    }

    /// Takes note of a change, unless it is older than what is known.
    pub(super) fn apply(&mut self, change: Change) {
        let (key, revision) = match &change {
            Change::Put(entry) => (&entry.key, entry.revision),
            Change::Deleted(key, revision) => (key, *revision),
        };
        let known = self.known.get(key).map_or(0, |known| known.revision);
        if revision <= self.listed || revision <= known {
            return;
        }
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Deleted(key, _) => self.remove(&key),
        }
    }

    /// Takes note of what was written.
    pub(super) fn put(&mut self, entry: Entry) {
        let known = Known::read(&entry);
        if !says_the_same(Some(&known), self.known.get(&entry.key)) {
            self.changed.insert(entry.key.clone());
        }
        self.known.insert(entry.key, known);
    }

    /// Takes note of what was deleted.
    pub(super) fn remove(&mut self, key: &Arc<str>) {
        self.known.remove(key);
        self.changed.insert(key.clone());
    }

    pub(super) fn get(&self, key: &str) -> Option<&Known> {
        self.known.get(key)
    }

    /// Those that can be read.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.known.values().filter_map(|known| known.lease.as_ref().ok()).cloned().collect()
    }

    /// The keys whose values changed since the last call; a renewal changes none.
    pub(super) fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.changed)
    }

    /// Has a key looked at again though it did not change.
    pub(super) fn touch(&mut self, key: &Arc<str>) {
        self.changed.insert(key.clone());
    }
}

impl Known {
    fn read(entry: &Entry) -> Self {
        let lease = Lease::parse(&entry.key, &entry.value, entry.lease == 0);
        Self { revision: entry.revision, lease_id: entry.lease, lease }
    }
}

/// Whether two states of a key say the same, whenever they were written.
fn says_the_same(one: Option<&Known>, other: Option<&Known>) -> bool {
    one.map(|known| &known.lease) == other.map(|known| &known.lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = ["10.77.1.0-24", "10.77.2.0-24"];

    fn entry(key: &str, number: u8, revision: i64) -> Entry {
        let value = format!(r#"{{"PublicIP":"192.0.2.{number}","BackendType":"vxlan"}}"#);
        Entry { key: key.into(), value, lease: 7, revision }
    }

    fn changed(mirror: &mut Mirror) -> Vec<Arc<str>> {
        mirror.take_changed().into_iter().collect()
    }

    #[test]
    fn n3_a_renewal_changes_nothing_and_a_new_value_its_key_alone() {
        let mut mirror = Mirror::default();
        mirror.replace(KEYS.map(|key| entry(key, 1, 5)).into(), 10);
        assert_eq!(changed(&mut mirror).len(), 2);
        mirror.apply(Change::Put(entry(KEYS[0], 1, 11)));
        assert_eq!(changed(&mut mirror), []);
        assert_eq!(mirror.get(KEYS[0]).unwrap().revision, 11);
        mirror.apply(Change::Put(entry(KEYS[1], 2, 12)));
        assert_eq!(changed(&mut mirror), [KEYS[1].into()]);
    }

    #[test]
    fn n3_a_repeated_list_ends_in_what_was_missed() {
        let mut mirror = Mirror::default();
        mirror.replace(KEYS.map(|key| entry(key, 1, 5)).into(), 10);
        changed(&mut mirror);
        mirror.replace(vec![entry(KEYS[1], 1, 20)], 30);
        assert_eq!(changed(&mut mirror), [KEYS[0].into()]);
        assert!(mirror.get(KEYS[0]).is_none());
    }

    #[test]
    fn n3_a_watch_that_lags_behind_a_list_changes_nothing() {
        let mut mirror = Mirror::default();
        mirror.replace(vec![entry(KEYS[0], 3, 9)], 10);
        changed(&mut mirror);
        mirror.apply(Change::Put(entry(KEYS[0], 2, 8)));
        mirror.apply(Change::Put(entry(KEYS[1], 2, 8)));
        mirror.apply(Change::Deleted(KEYS[0].into(), 7));
        assert_eq!(changed(&mut mirror), []);
        assert_eq!(mirror.leases().len(), 1);
    }

    #[test]
    fn n3_after_a_lost_store_the_lower_revisions_count() {
        let mut mirror = Mirror::default();
        mirror.replace(KEYS.map(|key| entry(key, 1, 500)).into(), 1000);
        mirror.replace(Vec::new(), 1);
        assert_eq!((changed(&mut mirror).len(), mirror.leases().len()), (2, 0));
        mirror.apply(Change::Put(entry(KEYS[0], 1, 2)));
        assert_eq!(mirror.leases().len(), 1);
    }
}
