//! What nft lists, read as far as podway wants to know it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use nftables::expr::Expression;
use serde::Deserialize;
use serde_json::Value;

use crate::Error;

/// A hash of each chain of a table. Two lists by one nft can be compared, other things cannot.
pub(crate) type Digests = BTreeMap<String, u64>;

/// A list of nft's: sets with their elements, chains and rules, everything else passed over.
///
/// The crate's own types cannot read the key types of concatenated maps, hence these slim ones around its
/// expressions.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    nftables: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    table: Option<ListedTable>,
    #[serde(alias = "map")]
    set: Option<ListedSet>,
    chain: Option<ListedChain>,
    rule: Option<ListedRule>,
}

#[derive(Debug, Deserialize)]
struct ListedTable {
    family: String,
    name: String,
    handle: u64,
}

#[derive(Debug, Deserialize)]
struct ListedSet {
    name: String,
    #[serde(default)]
    elem: Vec<Expression<'static>>,
}

/// A chain as listed.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ListedChain {
    #[serde(default)]
    pub(crate) family: String,
    #[serde(default)]
    pub(crate) table: String,
    pub(crate) name: String,
    /// Absent if the chain hangs on none.
    pub(crate) hook: Option<String>,
    pub(crate) policy: Option<String>,
}

/// A rule as listed.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ListedRule {
    #[serde(default)]
    pub(crate) chain: String,
    #[serde(default)]
    pub(crate) handle: u64,
    pub(crate) comment: Option<String>,
    /// Its statements, each an object of one field; foreign ones may be anything.
    #[serde(default)]
    pub(crate) expr: Vec<Value>,
}

impl Listing {
    pub(crate) fn read(call: &str, text: &str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|error| Error::Unreadable { call: call.to_owned(), message: error.to_string() })
    }

    /// Every set's name with each of its elements.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (&str, &Expression<'static>)> {
        let sets = self.nftables.iter().filter_map(|it| it.set.as_ref());
        sets.flat_map(|set| set.elem.iter().map(|element| (set.name.as_str(), element)))
    }

    /// The handle of a table, given as `ip filter`: another one of that name has another.
    pub(crate) fn table_handle(&self, table: &str) -> Option<u64> {
        let tables = self.nftables.iter().filter_map(|it| it.table.as_ref());
        let mut named = tables.filter(|it| table.split_once(' ') == Some((&it.family, &it.name)));
        named.next().map(|it| it.handle)
    }

    /// The chains.
    pub(crate) fn chains(&self) -> impl Iterator<Item = &ListedChain> {
        self.nftables.iter().filter_map(|it| it.chain.as_ref())
    }

    /// The rules, in their order.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &ListedRule> {
        self.nftables.iter().filter_map(|it| it.rule.as_ref())
    }

    /// Each chain with a hash of what it and its rules say, as this nft lists them.
    pub(crate) fn digests(&self) -> Digests {
        let digest = |chain: &ListedChain| {
            let mut hasher = DefaultHasher::new();
            (&chain.hook, &chain.policy).hash(&mut hasher);
            for rule in self.rules().filter(|rule| rule.chain == chain.name) {
                let says = rule.expr.iter().filter(|statement| statement.get("counter").is_none());
                says.for_each(|statement| statement.to_string().hash(&mut hasher));
                0u8.hash(&mut hasher);
            }
            (chain.name.clone(), hasher.finish())
        };
        self.chains().map(digest).collect()
    }

    /// The generation that the table was loaded with, if it is of our making.
    pub(crate) fn generation(&self) -> Option<u32> {
        self.elements().find_map(|(set, element)| match element {
            Expression::Number(number) if set == "schema" => Some(*number),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_nft_prints_is_read_or_named_unreadable(text in "[\\[\\]{}\":a-z0-9, ]{0,80}") {
            let text = format!("{{\"nftables\": [{text}]}}");
            match Listing::read("list chains", &text) {
                Ok(listing) => prop_assert!(listing.chains().count() + listing.rules().count() < 80),
                Err(error) => prop_assert!(error.to_string().contains("list chains")),
            }
        }
    }
}
