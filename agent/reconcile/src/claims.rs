//! A table whose keys may be wanted by several owners at once.

use std::collections::{BTreeMap, BTreeSet};

/// Which value stands for a key when several owners claim it: that of the least owner.
///
/// The winner depends only on the claims that stand, never on the order in which they came, so a restarted daemon
/// finds the same one (contract S29). Two Services that share an endpoint hold one hairpin row together in the same
/// way: it goes when the last claim goes.
#[derive(Debug, Clone)]
pub struct Claims<K, O, V> {
    /// Sorted by owner. A vector, because nearly every key has one claim and there may be 100,000 keys.
    by_key: BTreeMap<K, Vec<(O, V)>>,
    by_owner: BTreeMap<O, Vec<K>>,
    contested: BTreeSet<K>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), by_owner: BTreeMap::new(), contested: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, O: Ord + Clone, V: PartialEq + Clone> Claims<K, O, V> {
    /// Replaces everything that `owner` claims and returns each key whose standing value changed, with its new value
    /// (`None`: nobody claims it any more).
    ///
    /// Costs work in proportion to the owner's old and new claims, whatever the size of the table (contract S25).
    pub fn replace(&mut self, owner: &O, wanted: BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
        let mut changed = BTreeMap::new();
        for key in self.by_owner.remove(owner).unwrap_or_default() {
            if !wanted.contains_key(&key) {
                self.set(owner, key, None, &mut changed);
            }
        }
        if !wanted.is_empty() {
            self.by_owner.insert(owner.clone(), wanted.keys().cloned().collect());
        }
        for (key, value) in wanted {
            self.set(owner, key, Some(value), &mut changed);
        }
        changed
    }

    fn set(&mut self, owner: &O, key: K, value: Option<V>, changed: &mut BTreeMap<K, Option<V>>) {
        let before = self.get(&key).cloned();
        let claims = self.by_key.entry(key.clone()).or_default();
        let place = claims.binary_search_by(|(holder, _)| holder.cmp(owner));
        match (place, value) {
            (Ok(at), Some(value)) => claims[at].1 = value,
            (Ok(at), None) => drop(claims.remove(at)),
            (Err(at), Some(value)) => claims.insert(at, (owner.clone(), value)),
            (Err(_), None) => {}
        }
        match claims.len() {
            0 => drop(self.by_key.remove(&key)),
            1 => drop(self.contested.remove(&key)),
            _ => drop(self.contested.insert(key.clone())),
        }
        let after = self.get(&key);
        if before.as_ref() != after {
            changed.insert(key, after.cloned());
        }
    }

    /// The standing value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)?.first().map(|(_, value)| value)
    }

    /// Every owner that claims `key`, the winner first.
    pub fn owners(&self, key: &K) -> impl Iterator<Item = &O> {
        self.by_key.get(key).into_iter().flatten().map(|(owner, _)| owner)
    }

    /// The keys that more than one owner claims.
    pub fn contested(&self) -> impl Iterator<Item = &K> {
        self.contested.iter()
    }

    /// The standing table, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.by_key.iter().filter_map(|(key, claims)| Some((key, &claims.first()?.1)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_least_owner_wins_and_the_next_takes_over() {
        let mut claims = Claims::default();
        assert_eq!(claims.replace(&2, BTreeMap::from([("a", "two")])), BTreeMap::from([("a", Some("two"))]));
        assert_eq!(claims.replace(&1, BTreeMap::from([("a", "one")])), BTreeMap::from([("a", Some("one"))]));
        assert_eq!(claims.owners(&"a").copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(claims.replace(&1, BTreeMap::new()), BTreeMap::from([("a", Some("two"))]));
        assert_eq!(claims.replace(&2, BTreeMap::new()), BTreeMap::from([("a", None)]));
    }

    #[test]
    fn a_claim_that_loses_changes_nothing() {
        let mut claims = Claims::default();
        claims.replace(&1, BTreeMap::from([("a", "one")]));
        assert!(claims.replace(&2, BTreeMap::from([("a", "two")])).is_empty());
    }

    proptest! {
        #[test]
        fn changes_add_up_to_the_standing_table(
            steps in prop::collection::vec((0u8..4, prop::collection::btree_map(0u8..6, 0u8..3, 0..4)), 0..30)
        ) {
            let mut claims = Claims::default();
            let mut mirror = BTreeMap::new();
            let mut last = BTreeMap::new();
            for (owner, wanted) in steps {
                last.insert(owner, wanted.clone());
                for (key, value) in claims.replace(&owner, wanted) {
                    match value {
                        Some(value) => { mirror.insert(key, value); }
                        None => { mirror.remove(&key); }
                    }
                }
            }
            let mut scratch = BTreeMap::new();
            for wanted in last.values() {
                for (key, value) in wanted {
                    scratch.entry(*key).or_insert(*value);
                }
            }
            let claimants = |key: &u8| last.values().filter(|wanted| wanted.contains_key(key)).count();
            prop_assert!(claims.contested().eq(scratch.keys().filter(|key| claimants(key) > 1)));
            prop_assert_eq!(&mirror, &scratch);
            prop_assert_eq!(claims.iter().map(|(k, v)| (*k, *v)).collect::<BTreeMap<_, _>>(), scratch);
        }
    }
}
