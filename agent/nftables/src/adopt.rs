//! Taking over a table that stands, whichever podway made it.

use crate::Error;
use crate::json::Listing;
use crate::process::Nft;
use crate::schema::generation;

/// A table as this podway wants it, but for its elements.
pub(crate) struct Wanted<'a> {
    /// Family and name.
    pub(crate) table: &'a str,
    /// The schema.
    pub(crate) rules: &'a str,
    /// Rules that the schema does not show and that make a table another one nevertheless.
    pub(crate) sample: &'a str,
}

/// What a table of another make hands on to this one.
#[derive(Default)]
pub(crate) struct Legacy {
    /// Text of rules that elements refer to.
    pub(crate) rules: String,
    /// Sets with an element each, as nft reads it.
    pub(crate) elements: Vec<(&'static str, String)>,
}

impl Wanted<'_> {
    /// Lists the table, for `read` to make a mirror of and to say what is worth handing on.
    ///
    /// A table of another make (its set `schema` holds another hash, or it has none) is replaced in one transaction by
    /// one with these rules and what was handed on, so that traffic never misses it. A missing one is made. As that is
    /// one transaction for all elements, nft needs about 3 KB of memory each; it happens once an upgrade.
    pub(crate) async fn adopt<N: Nft, M: Default>(
        &self,
        nft: &mut N,
        read: impl Fn(&Listing) -> (M, Legacy),
    ) -> Result<M, Error> {
        let listing = match nft.list_table(self.table).await? {
            Some(text) => Some(Listing::read(&format!("list table {}", self.table), &text)?),
            None => None,
        };
        let (mirror, legacy) = listing.as_ref().map(read).unwrap_or_default();
        let generation = generation(&[self.rules, self.sample].concat());
        if listing.and_then(|it| it.generation()) != Some(generation) {
            nft.load(&self.replacement(&legacy, generation)).await?;
        }
        Ok(mirror)
    }

    fn replacement(&self, legacy: &Legacy, generation: u32) -> String {
        let table = self.table;
        let mut text = format!("add table {table}\ndelete table {table}\n{}\n{}", self.rules, legacy.rules);
        for (set, element) in &legacy.elements {
            text.push_str(&format!("add element {table} {set} {{ {element} }}\n"));
        }
        text.push_str(&format!("add element {table} schema {{ {generation} }}\n"));
        text
    }
}

/// Removes a table if it is there. `add` makes `delete` succeed either way, in one transaction.
pub(crate) async fn remove_table<N: Nft>(nft: &mut N, table: &str) -> Result<(), Error> {
    nft.load(&format!("add table {table}\ndelete table {table}\n")).await
}
