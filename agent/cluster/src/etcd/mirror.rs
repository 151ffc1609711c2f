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

#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) entry: Entry,
    pub(super) lease: Result<Lease, LeaseError>,
}

impl Mirror {
    /// Takes a list for all there is.
    pub(super) fn replace(&mut self, entries: Vec<Entry>, revision: i64) {
        let mut gone: BTreeSet<Arc<str>> = self.known.keys().cloned().collect();
        for entry in entries {
            gone.remove(&entry.key);
            self.put(entry);
        }
        for key in gone {
            // Written after the list was made.
            if self.known.get(&key).is_some_and(|known| known.entry.revision <= revision) {
                self.known.remove(&key);
                self.changed.insert(key);
            }
        }
        self.listed = self.listed.max(revision);
    }

    /// Takes note of a change, unless it is older than what is known.
    pub(super) fn apply(&mut self, change: Change) {
        let (key, revision) = match &change {
            Change::Put(entry) => (&entry.key, entry.revision),
            Change::Deleted(key, revision) => (key, *revision),
        };
        let known = self.known.get(key).map_or(0, |known| known.entry.revision);
        if revision <= self.listed || revision <= known {
            return;
        }
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Deleted(key, _) => {
                self.known.remove(&key);
                self.changed.insert(key);
            }
        }
    }

    /// Takes note of what was written.
    pub(super) fn put(&mut self, entry: Entry) {
        let known = self.known.get(&entry.key);
        if known.is_some_and(|known| known.entry.revision >= entry.revision) {
            return;
        }
        let lease = Lease::parse(&entry.key, &entry.value, entry.lease == 0);
        self.changed.insert(entry.key.clone());
        self.known.insert(entry.key.clone(), Known { entry, lease });
    }

    /// Forgets a key that we deleted.
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

    /// The keys that changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.changed)
    }

    /// Has a key looked at again though it did not change.
    pub(super) fn touch(&mut self, key: &Arc<str>) {
        self.changed.insert(key.clone());
    }
}
