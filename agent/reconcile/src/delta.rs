//! The difference between two tables of rows.

use std::collections::BTreeMap;

/// What turns one table into another: rows to set and keys to remove. Applying it twice is applying it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<K: Ord, V> {
    /// Rows that are new or whose value changed.
    pub set: BTreeMap<K, V>,
    /// Keys that must go, with nothing in their place.
    pub remove: std::collections::BTreeSet<K>,
}

impl<K: Ord, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { set: BTreeMap::new(), remove: Default::default() }
    }
}

impl<K: Ord + Clone, V: Clone> Delta<K, V> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// The number of rows touched.
    pub fn len(&self) -> usize {
        self.set.len() + self.remove.len()
    }

    /// Notes that `key` is now `value`, or gone; a later note on a key replaces an earlier one.
    pub fn note(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => {
                self.remove.remove(&key);
                self.set.insert(key, value);
            }
            None => {
                self.set.remove(&key);
                self.remove.insert(key);
            }
        }
    }

    /// Carries out this delta on a table.
    pub fn apply(&self, table: &mut BTreeMap<K, V>) {
        for key in &self.remove {
            table.remove(key);
        }
        table.extend(self.set.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}

/// What is left to do so that `observed` becomes `desired`.
pub fn diff<K: Ord + Clone, V: PartialEq + Clone>(
    desired: &BTreeMap<K, V>,
    observed: &BTreeMap<K, V>,
) -> Delta<K, V> {
    let set = desired
        .iter()
        .filter(|(key, value)| observed.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let remove = observed.keys().filter(|key| !desired.contains_key(key)).cloned().collect();
    Delta { set, remove }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> impl Strategy<Value = BTreeMap<u8, u8>> {
        prop::collection::btree_map(0u8..8, 0u8..3, 0..8)
    }

    proptest! {
        #[test]
        fn a_diff_leads_to_the_desired_table_and_then_is_empty(desired in table(), observed in table()) {
            let mut kernel = observed;
            let delta = diff(&desired, &kernel);
            delta.apply(&mut kernel);
            prop_assert_eq!(&kernel, &desired);
            delta.apply(&mut kernel);
            prop_assert_eq!(&kernel, &desired);
            prop_assert!(diff(&desired, &kernel).is_empty());
        }

        #[test]
        fn notes_keep_only_the_last_word(notes in prop::collection::vec((0u8..4, prop::option::of(0u8..3)), 0..12)) {
            let mut delta = Delta::default();
            let mut one_by_one = table_of_all();
            for (key, value) in notes {
                delta.note(key, value);
                match value {
                    Some(value) => { one_by_one.insert(key, value); }
                    None => { one_by_one.remove(&key); }
                }
            }
            let mut at_once = table_of_all();
            delta.apply(&mut at_once);
            prop_assert_eq!(at_once, one_by_one);
        }
    }

    fn table_of_all() -> BTreeMap<u8, u8> {
        (0..4).map(|key| (key, 9)).collect()
    }
}
