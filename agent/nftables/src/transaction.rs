//! From a change of elements to nft transactions, in an order that leaves no moment without an answer.

use std::borrow::Cow;
use std::collections::BTreeMap;

use nftables::schema::{NfCmd, NfListObject, NfObject, Nftables};
use podway_reconcile::Delta;

use crate::element::{Elements, Key, Value};
use crate::json;
use crate::schema::Family;

/// Elements in one transaction at most: nft then stays at 16 MB of memory, where 100,000 at once take 300 MB.
const CHUNK: usize = 5_000;

/// One transaction's part of a change: keys with their new value, `None` to remove them.
pub(crate) type Part = Vec<(Key, Option<Value>)>;

/// Splits a change so that a packet finds its way whenever it comes.
///
/// Slots come first, then the frontends, then the addresses at which everything else is refused, and what is no longer
/// referred to goes last. Slots go in a part of their own: a packet looks up its frontend before its slot, and a
/// transaction may come between the two, so a slot must outlive the frontend that counted it. Otherwise a change of up
/// to [`CHUNK`] elements is one part.
pub(crate) fn parts(change: &Delta<Key, Value>) -> Vec<Part> {
    let (mut verdicts, mut addresses, mut ordered) = (Part::new(), Part::new(), Part::new());
    for (key, value) in &change.set {
        let stage = match key {
            Key::ServiceIp(_) | Key::NoEndpoints(_) => &mut verdicts,
            Key::ClusterIp(_) => &mut addresses,
            Key::Endpoint(..) | Key::Hairpin(_) | Key::PodNetwork(_) => &mut ordered,
        };
        stage.push((*key, Some(*value)));
    }
    let (mut slots, mut others) = (Part::new(), Part::new());
    for key in &change.remove {
        let stage = match key {
            Key::ServiceIp(_) | Key::NoEndpoints(_) => &mut verdicts,
            Key::Endpoint(..) => &mut slots,
            Key::ClusterIp(_) | Key::Hairpin(_) | Key::PodNetwork(_) => &mut others,
        };
        stage.push((*key, None));
    }
    // A frontend that turns from one verdict to the other does so within one part, or with the new one first.
    verdicts.sort_by_key(|(key, value)| (frontend_of(key), value.is_none()));
    ordered.extend(verdicts.into_iter().chain(addresses).chain(others));
    ordered.chunks(CHUNK).chain(slots.chunks(CHUNK)).map(<[_]>::to_vec).collect()
}

fn frontend_of(key: &Key) -> Option<podway_proxy::Frontend> {
    match key {
        Key::ServiceIp(at) | Key::NoEndpoints(at) | Key::Endpoint(at, _) => Some(*at),
        Key::Hairpin(_) | Key::ClusterIp(_) | Key::PodNetwork(_) => None,
    }
}

/// nft's commands for one part, given what the kernel holds: nft has no "replace", so an element that stands is
/// deleted and added, within the transaction.
pub(crate) fn commands(part: &Part, held: &Elements) -> Nftables<'static> {
    let deleted =
        part.iter().filter(|(key, _)| held.contains_key(key)).map(|(key, _)| (key, json::element(key, None)));
    let added = part.iter().filter_map(|(key, value)| Some((key, json::element(key, Some(value.as_ref()?)))));
    let deletions = by_set(deleted).into_iter().map(|it| NfCmd::Delete(NfListObject::Element(it)));
    let deletions: Vec<_> = deletions.collect();
    let additions = by_set(added).into_iter().map(|it| NfCmd::Add(NfListObject::Element(it)));
    let objects: Vec<_> = deletions.into_iter().chain(additions).map(NfObject::CmdObject).collect();
    Nftables { objects: Cow::Owned(objects) }
}

fn by_set<'k>(
    elements: impl Iterator<Item = (&'k Key, nftables::expr::Expression<'static>)>,
) -> Vec<nftables::schema::Element<'static>> {
    let mut sets: BTreeMap<(Family, &str), (&Key, Vec<_>)> = BTreeMap::new();
    for (key, element) in elements {
        sets.entry((key.family(), key.set())).or_insert_with(|| (key, Vec::new())).1.push(element);
    }
    sets.into_values().map(|(key, elements)| json::elements_of(key, elements)).collect()
}
