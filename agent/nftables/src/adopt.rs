//! Taking over a table that stands, whichever podway made it and whoever has damaged it since.

use crate::chains::Chooser;
use crate::listing::{Digests, Listing};
use crate::process::Nft;
use crate::schema::{Shape, chains, generation};
use crate::{Error, json};

/// A table as this podway wants it, but for its elements.
pub(crate) struct Wanted<'a> {
    /// Family and name.
    pub(crate) table: &'a str,
    /// The schema.
    pub(crate) rules: &'a str,
    /// Rules that the schema does not show and that make a table another one nevertheless.
    pub(crate) sample: &'a str,
}

/// A table as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is none.
    Missing,
    /// Its set `schema` holds another hash, or it has none.
    OtherMake,
    /// Of this make, and somebody has taken rules or chains away, or added some.
    Damaged,
    /// As it was made.
    Sound,
}

impl Wanted<'_> {
    /// Lists the table.
    pub(crate) async fn observe<N: Nft>(&self, nft: &mut N) -> Result<(Standing, Option<Listing>), Error> {
        let Some(text) = nft.list_table(self.table).await? else { return Ok((Standing::Missing, None)) };
        let listing = Listing::read(&format!("list table {}", self.table), &text)?;
        Ok((self.standing(&listing), Some(listing)))
    }

    /// Lists the rules alone.
    pub(crate) async fn digests<N: Nft>(&self, nft: &mut N) -> Result<Digests, Error> {
        let Some(text) = nft.list_rules(self.table).await? else { return Ok(Digests::default()) };
        Ok(Listing::read(&format!("list table {}", self.table), &text)?.digests())
    }

    fn standing(&self, listing: &Listing) -> Standing {
        if listing.generation() != Some(self.generation()) {
            return Standing::OtherMake;
        }
        let rules_of = |chain: &str| listing.rules().filter(|rule| rule.chain == chain).count();
        let is_there = |(name, shape): (&str, Shape)| {
            let found = listing.chains().find(|chain| chain.name == name);
            found.is_some_and(|chain| {
                let policy = chain.policy.as_deref().unwrap_or("accept");
                chain.hook.is_some() == shape.base && policy == "accept" && rules_of(name) == shape.rules
            })
        };
        let is_whole = |chain: &str| match chain.parse::<Chooser>() {
            Ok(chooser) => rules_of(chain) == chooser.rule_count(),
            Err(()) => true,
        };
        let sound = chains(self.rules).into_iter().all(is_there)
            && listing.chains().all(|chain| is_whole(&chain.name));
        if sound { Standing::Sound } else { Standing::Damaged }
    }

    fn generation(&self) -> u32 {
        generation(&[self.rules, self.sample].concat())
    }

    /// Text that puts a table with these rules and elements in the place of whatever stands, in one transaction, so
    /// that traffic never misses it. `rules` go before the elements that refer to them. nft needs about 3 KB of memory
    /// for each element.
    pub(crate) fn replacement(&self, rules: &str, elements: &[(&str, String)]) -> String {
        let table = self.table;
        let mut text = format!("add table {table}\ndelete table {table}\n{}\n{rules}\n", self.rules);
        for (set, element) in elements {
            text.push_str(&element_line("add", table, set, element));
        }
        text.push_str(&format!("add element {table} schema {{ {} }}\n", self.generation()));
        text
    }

    /// Text that makes the chains of a table of this make as they were, and leaves its elements alone. Refused where
    /// somebody made something else under a name of ours.
    pub(crate) fn repair(&self) -> String {
        let flush = |chain: &str| format!("flush chain {} {chain}\n", self.table);
        let flushes: String = chains(self.rules).into_keys().map(flush).collect();
        // Once to have all chains, once more for their rules: a table's text adds to what stands.
        format!("{}\n{flushes}{}\n", self.rules, self.rules)
    }
}

/// What is known of a table's rules beyond their number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Knowledge {
    /// As they were listed when nobody had cause to doubt them.
    digests: Digests,
    /// Whether somebody may have changed them since.
    doubted: bool,
}

impl Knowledge {
    /// Somebody else wrote to the table.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// What is to be thought of a table that was listed: one that was made by this process and never listed since gets
    /// its rules anew when there is doubt. That one is compared next time, or two podways on one node would keep
    /// correcting each other.
    pub(crate) fn judge(&mut self, standing: Standing, listing: &Listing) -> Standing {
        let listed = listing.digests();
        match standing {
            Standing::Sound if !self.doubted => {
                self.digests = listed;
                Standing::Sound
            }
            Standing::Sound
                if listed.iter().any(|(chain, digest)| self.digests.get(chain) != Some(digest)) =>
            {
                Standing::Damaged
            }
            standing => standing,
        }
    }

    /// Learns the rules after they were written because of a doubt.
    pub(crate) async fn learn<N: Nft>(&mut self, table: &Wanted<'_>, nft: &mut N) -> Result<(), Error> {
        if self.doubted {
            self.digests = table.digests(nft).await?;
        }
        Ok(())
    }

    /// The table is as it should be.
    pub(crate) fn settle(&mut self) {
        self.doubted = false;
    }
}

/// A line that adds an element to a set or deletes it.
pub(crate) fn element_line(verb: &str, table: &str, set: &str, element: &str) -> String {
    format!("{verb} element {table} {set} {{ {element} }}\n")
}

/// A network as an element's text.
pub(crate) fn network_text(network: &ipnet::IpNet) -> String {
    json::text(&json::prefix(network))
}

/// Removes a table if it is there. `add` makes `delete` succeed either way, in one transaction.
pub(crate) async fn remove_table<N: Nft>(nft: &mut N, table: &str) -> Result<(), Error> {
    nft.load(&format!("add table {table}\ndelete table {table}\n")).await
}
