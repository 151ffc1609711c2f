//! The tables of Services: adopted at the start, then changed element by element.

use std::collections::BTreeSet;

use podway_proxy::{RowDelta, Rows};
use podway_reconcile::{Delta, Recovery, diff};

use crate::adopt::{Legacy, Wanted, remove_table};
use crate::chains::Chooser;
use crate::element::{self, Elements, Key, Value};
use crate::json::{self, Listing, read_element};
use crate::process::Nft;
use crate::schema::{self, Family, SERVICES};
use crate::transaction::{Part, commands, parts};
use crate::{Error, NftProcess};

/// Keeps the Service rows of one network namespace in nftables.
///
/// Holds a mirror of the kernel's elements, so that a change costs what it touches (contract S25) and never a listing.
/// After a refusal the mirror is no longer believed: the next call looks at the kernel anew.
#[derive(Debug)]
pub struct Services<N = NftProcess> {
    nft: N,
    mark: u32,
    mirror: Option<Mirror>,
}

#[derive(Debug, Default)]
struct Mirror {
    held: Elements,
    chains: BTreeSet<(Family, Chooser)>,
}

impl<N: Nft> Services<N> {
    /// Takes over what stands: a table of this make is kept as it is, one of another make is replaced in one
    /// transaction that keeps the elements, a missing table is made (contract S24). Adds no elements.
    ///
    /// `mark` is the one bit that means "masquerade".
    pub async fn adopt(nft: N, mark: u32) -> Result<Self, Error> {
        let mut services = Self::new(nft, mark);
        services.observed().await?;
        Ok(services)
    }

    /// The same, but at the first write: tables that stand without rows let connections to Services pass untranslated,
    /// and conntrack keeps them so.
    pub fn new(nft: N, mark: u32) -> Self {
        Self { nft, mark, mirror: None }
    }

    /// The mirror, read from the kernel if there is none that can be believed.
    async fn observed(&mut self) -> Result<&mut Mirror, Error> {
        let mirror = match self.mirror.take() {
            Some(mirror) => mirror,
            None => self.observe().await?,
        };
        Ok(self.mirror.insert(mirror))
    }

    async fn observe(&mut self) -> Result<Mirror, Error> {
        let mut mirror = Mirror::default();
        for family in Family::ALL {
            let (table, mark) = (format!("{} {SERVICES}", family.word()), self.mark);
            let wanted = Wanted {
                table: &table,
                rules: &schema::services(family, mark),
                sample: &Chooser::samples().map(|it| it.text(family, mark)).concat(),
            };
            let read = |listing: &Listing| {
                let elements = listing.elements().filter_map(|(set, it)| read_element(set, it));
                let held: Elements = elements.filter(|(key, _)| key.family() == family).collect();
                let legacy = legacy(&held, family, mark);
                (held, legacy)
            };
            let held = wanted.adopt(&mut self.nft, read).await?;
            mirror.chains.extend(choosers(&held).map(|it| (family, it)));
            mirror.held.extend(held);
        }
        Ok(mirror)
    }

    /// Makes the kernel hold exactly `rows`; returns how many elements were written.
    pub async fn replace(&mut self, rows: &Rows) -> Result<usize, Error> {
        let change = diff(&element::of_rows(rows), &self.observed().await?.held);
        self.write(&change).await
    }

    /// Carries out a change of rows; returns how many elements were written. After an error the parts that were
    /// carried out stand. If it was a refusal, [`Services::replace`] mends whatever made the mirror wrong.
    pub async fn apply(&mut self, delta: &RowDelta) -> Result<usize, Error> {
        let change = element::of_delta(delta, &self.observed().await?.held);
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
        let Some(mut mirror) = self.mirror.take() else { return Ok(0) };
        let written = self.write_with(change, &mut mirror).await;
        if !matches!(&written, Err(error) if error.recovery() == Recovery::Resync) {
            self.mirror = Some(mirror);
        }
        written
    }

    async fn write_with(&mut self, change: &Delta<Key, Value>, mirror: &mut Mirror) -> Result<usize, Error> {
        self.make_chains(change, mirror).await?;
        for part in parts(change) {
            self.nft.transact(&commands(&part, &mirror.held)).await?;
            mirror.note(part);
        }
        Ok(change.len())
    }

    /// Makes the chains that the change refers to, ahead of it: without elements that lead there they do nothing.
    async fn make_chains(&mut self, change: &Delta<Key, Value>, mirror: &mut Mirror) -> Result<(), Error> {
        let wanted = change.set.iter().filter_map(|(key, value)| match value {
            Value::Choose(chooser) => Some((key.family(), *chooser)),
            _ => None,
        });
        let missing: BTreeSet<_> = wanted.filter(|it| !mirror.chains.contains(it)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text: String = missing.iter().map(|(family, chooser)| chooser.text(*family, self.mark)).collect();
        self.nft.load(&text).await?;
        mirror.chains.extend(missing);
        Ok(())
    }
}

impl Mirror {
    fn note(&mut self, part: Part) {
        for (key, value) in part {
            match value {
                Some(value) => self.held.insert(key, value),
                None => self.held.remove(&key),
            };
        }
    }
}

/// What a table of another make hands on: its elements and the chains that they lead to.
fn legacy(held: &Elements, family: Family, mark: u32) -> Legacy {
    let text = |(key, value): (&Key, &Value)| (key.set(), json::text(&json::element(key, Some(value))));
    Legacy {
        rules: choosers(held).collect::<BTreeSet<_>>().iter().map(|it| it.text(family, mark)).collect(),
        elements: held.iter().map(text).collect(),
    }
}

fn choosers(held: &Elements) -> impl Iterator<Item = Chooser> {
    held.values().filter_map(|value| match value {
        Value::Choose(chooser) => Some(*chooser),
        _ => None,
    })
}
