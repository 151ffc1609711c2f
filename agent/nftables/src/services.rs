//! The tables of Services: adopted at the start, then changed element by element.

use std::collections::BTreeSet;

use podway_proxy::{RowDelta, Rows};
use podway_reconcile::{Delta, diff};

use crate::chains::Chooser;
use crate::element::{self, Elements, Key, Value};
use crate::json::{Listing, read_element};
use crate::process::Nft;
use crate::schema::{self, Family, SERVICES};
use crate::transaction::{Part, commands, parts};
use crate::{Error, NftProcess};

/// Keeps the Service rows of one network namespace in nftables.
///
/// Holds a mirror of the kernel's elements, so that a change costs what it touches (contract S25) and never a listing.
#[derive(Debug)]
pub struct Services<N = NftProcess> {
    nft: N,
    mark: u32,
    held: Elements,
    chains: BTreeSet<(Family, Chooser)>,
}

impl<N: Nft> Services<N> {
    /// Takes over what stands: a table of this make is kept as it is, rules of another make are replaced in one
    /// transaction that keeps the elements, a missing table is made (contract S24). Adds no elements.
    ///
    /// `mark` is the one bit that means "masquerade".
    pub async fn adopt(nft: N, mark: u32) -> Result<Self, Error> {
        let mut services = Self { nft, mark, held: Elements::new(), chains: BTreeSet::new() };
        services.observe().await?;
        Ok(services)
    }

    /// Reads the kernel anew, after a refusal that says that the mirror may be wrong.
    pub async fn observe(&mut self) -> Result<(), Error> {
        self.held.clear();
        self.chains.clear();
        for family in Family::ALL {
            let table = format!("{} {SERVICES}", family.word());
            let rules = schema::services(family, self.mark);
            let listing = match self.nft.list_table(&table).await? {
                Some(text) => Some(Listing::read(&format!("list table {table}"), &text)?),
                None => None,
            };
            if let Some(listing) = &listing {
                self.held.extend(listing.elements().filter_map(|(set, it)| read_element(set, it)));
                self.chains.extend(listing.chains().filter_map(|it| it.parse().ok()).map(|it| (family, it)));
            }
            if listing.and_then(|it| it.generation()) != Some(schema::generation(&rules)) {
                let choosers = self.chains.iter().filter(|(of, _)| *of == family);
                let choosers: String = choosers.map(|(_, chooser)| chooser.text(family, self.mark)).collect();
                self.nft.load(&schema::load(&table, &rules, &choosers)).await?;
            }
        }
        Ok(())
    }

    /// Makes the kernel hold exactly `rows`; returns how many elements were written.
    pub async fn replace(&mut self, rows: &Rows) -> Result<usize, Error> {
        let change = diff(&element::of_rows(rows), &self.held);
        self.write(&change).await
    }

    /// Carries out a change of rows; returns how many elements were written. After an error the parts that were
    /// carried out stand, and the same change can be applied again.
    pub async fn apply(&mut self, delta: &RowDelta) -> Result<usize, Error> {
        let change = element::of_delta(delta, &self.held);
        self.write(&change).await
    }

    /// The door that this writes through.
    pub fn nft_mut(&mut self) -> &mut N {
        &mut self.nft
    }

    /// Removes the tables of Services, and nothing else.
    pub async fn remove_all(nft: &mut N) -> Result<(), Error> {
        for family in Family::ALL {
            remove_table(nft, &format!("{} {SERVICES}", family.word())).await?;
        }
        Ok(())
    }

    async fn write(&mut self, change: &Delta<Key, Value>) -> Result<usize, Error> {
        self.make_chains(change).await?;
        for part in parts(change) {
            self.nft.transact(&commands(&part, &self.held)).await?;
            self.note(part);
        }
        Ok(change.len())
    }

    /// Makes the chains that the change refers to, ahead of it: without elements that lead there they do nothing.
    async fn make_chains(&mut self, change: &Delta<Key, Value>) -> Result<(), Error> {
        let wanted = change.set.iter().filter_map(|(key, value)| match value {
            Value::Choose(chooser) => Some((key.family(), *chooser)),
            _ => None,
        });
        let missing: BTreeSet<_> = wanted.filter(|it| !self.chains.contains(it)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text: String = missing.iter().map(|(family, chooser)| chooser.text(*family, self.mark)).collect();
        self.nft.load(&text).await?;
        self.chains.extend(missing);
        Ok(())
    }

    fn note(&mut self, part: Part) {
        for (key, value) in part {
            match value {
                Some(value) => self.held.insert(key, value),
                None => self.held.remove(&key),
            };
        }
    }
}

/// Removes a table if it is there. `add` makes `delete` succeed either way, in one transaction.
pub(crate) async fn remove_table<N: Nft>(nft: &mut N, table: &str) -> Result<(), Error> {
    nft.load(&format!("add table {table}\ndelete table {table}\n")).await
}
