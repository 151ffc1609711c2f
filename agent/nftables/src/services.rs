//! The tables of Services: adopted at the start, then changed element by element.

use std::collections::{BTreeMap, BTreeSet};

use podway_proxy::{RowDelta, Rows};
use podway_reconcile::{Delta, Recovery, diff};

use crate::adopt::{Knowledge, Standing, Wanted, remove_table};
use crate::chains::Chooser;
use crate::element::{self, Elements, Key, Value};
use crate::json::{self, read_element};
use crate::listing::Listing;
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
    rules: BTreeMap<Family, Knowledge>,
}

#[derive(Debug, Default)]
struct Mirror {
    held: Elements,
    chains: BTreeSet<(Family, Chooser)>,
}

impl<N: Nft> Services<N> {
    /// Takes over what stands: a table of this make is kept as it is, one of another make is replaced in one
    /// transaction that keeps the elements, so that traffic never misses it; one that somebody damaged gets its rules
    /// back, a missing one is made (contract S24). Adds no elements.
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
        Self { nft, mark, mirror: None, rules: BTreeMap::new() }
    }

    /// To be called when somebody else changed the tables: the next call looks at them anew, and at what their
    /// rules say. Elements that are missing then come with [`Services::replace`]; [`Services::apply`] does not know of them.
    pub fn invalidate(&mut self) {
        self.mirror = None;
        for family in Family::ALL {
            self.rules.entry(family).or_default().doubt();
        }
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
            let held = self.observe_family(family).await?;
            mirror.chains.extend(choosers(&held).map(|it| (family, it)));
            mirror.held.extend(held);
        }
        self.rules.values_mut().for_each(Knowledge::settle);
        Ok(mirror)
    }

    /// Reads one table, and makes its rules as they should be.
    async fn observe_family(&mut self, family: Family) -> Result<Elements, Error> {
        let (table, mark) = (format!("{} {SERVICES}", family.word()), self.mark);
        let wanted = Wanted {
            table: &table,
            rules: &schema::services(family, mark),
            sample: &Chooser::samples().map(|it| it.text(family, mark)).concat(),
        };
        let (standing, listing) = wanted.observe(&mut self.nft).await?;
        let rules = self.rules.entry(family).or_default();
        let standing = listing.as_ref().map_or(standing, |it| rules.judge(standing, it));
        let held = listing.map(|it| elements(&it, family)).unwrap_or_default();
        let choosers: BTreeSet<Chooser> = choosers(&held).collect();
        let choosers: String = choosers.iter().map(|it| it.text(family, mark)).collect();
        match standing {
            Standing::Sound => return Ok(held),
            Standing::Damaged => {
                if self.nft.load(&format!("{}{choosers}", wanted.repair())).await.is_ok() {
                    rules.learn(&wanted, &mut self.nft).await?;
                    return Ok(held);
                }
            }
            Standing::Missing | Standing::OtherMake => {}
        }
        let text = |(key, value): (&Key, &Value)| (key.set(), json::text(&json::element(key, Some(value))));
        let handed_on: Vec<_> = held.iter().map(text).collect();
        self.nft.load(&wanted.replacement(&choosers, &handed_on)).await?;
        rules.learn(&wanted, &mut self.nft).await?;
        Ok(held)
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

fn elements(listing: &Listing, family: Family) -> Elements {
    let elements = listing.elements().filter_map(|(set, it)| read_element(set, it));
    elements.filter(|(key, _)| key.family() == family).collect()
}

fn choosers(held: &Elements) -> impl Iterator<Item = Chooser> {
    held.values().filter_map(|value| match value {
        Value::Choose(chooser) => Some(*chooser),
        _ => None,
    })
}
