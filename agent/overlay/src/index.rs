//! Which nodes want something that only one of them can have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::peer::Vtep;
use crate::units::{Family, Mac};

/// Subnets, MACs and underlay addresses, each with the nodes that claim it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    subnets: BTreeMap<IpNet, BTreeSet<Arc<str>>>,
    macs: BTreeMap<(Family, Mac), BTreeSet<Arc<str>>>,
    underlays: BTreeMap<IpAddr, BTreeSet<Arc<str>>>,
}

impl Index {
    pub(crate) fn insert(&mut self, node: &Arc<str>, vtep: &Vtep) {
        self.subnets.entry(vtep.subnet).or_default().insert(node.clone());
        self.underlays.entry(vtep.underlay).or_default().insert(node.clone());
        if let Some(key) = mac_key(vtep) {
            self.macs.entry(key).or_default().insert(node.clone());
        }
    }

    pub(crate) fn remove(&mut self, node: &Arc<str>, vtep: &Vtep) {
        drop_claim(&mut self.subnets, &vtep.subnet, node);
        drop_claim(&mut self.underlays, &vtep.underlay, node);
        if let Some(key) = mac_key(vtep) {
            drop_claim(&mut self.macs, &key, node);
        }
    }

    /// Every claim on addresses of `subnet`: those inside it and those around it. Costs as much as there are such
    /// claims, plus one look-up for each bit of the prefix.
    pub(crate) fn overlapping(&self, subnet: IpNet) -> impl Iterator<Item = (IpNet, &Arc<str>)> {
        let around = (0..subnet.prefix_len()).filter_map(move |length| {
            let wider = IpNet::new(subnet.addr(), length).ok()?.trunc();
            self.subnets.get_key_value(&wider)
        });
        around.flat_map(|(net, nodes)| nodes.iter().map(|node| (*net, node))).chain(self.inside(subnet))
    }

    /// Every claim on `subnet` itself or a part of it: those on all of it first, each by name.
    pub(crate) fn inside(&self, subnet: IpNet) -> impl Iterator<Item = (IpNet, &Arc<str>)> {
        // Sorted by address, then length: what begins inside the subnet is inside it, save for wider ones that begin
        // with it, which sort before it.
        let inside =
            self.subnets.range(subnet..).take_while(move |(other, _)| subnet.contains(&other.addr()));
        inside.flat_map(|(net, nodes)| nodes.iter().map(|node| (*net, node)))
    }

    /// Every node that claims this VTEP's MAC.
    pub(crate) fn same_mac(&self, vtep: &Vtep) -> impl Iterator<Item = &Arc<str>> {
        mac_key(vtep).and_then(|key| self.macs.get(&key)).into_iter().flatten()
    }

    /// The least underlay address in `net`, with the first node that has it.
    pub(crate) fn first_underlay_in(&self, net: &IpNet) -> Option<(IpAddr, &Arc<str>)> {
        let (address, nodes) = self.underlays.range(net.network()..=net.broadcast()).next()?;
        Some((*address, nodes.first()?))
    }

    /// Every node whose underlay address is in `net`.
    pub(crate) fn underlays_in(&self, net: &IpNet) -> impl Iterator<Item = &Arc<str>> {
        self.underlays.range(net.network()..=net.broadcast()).flat_map(|(_, nodes)| nodes)
    }
}

fn mac_key(vtep: &Vtep) -> Option<(Family, Mac)> {
    Some((Family::of(&vtep.subnet), vtep.mac?))
}

fn drop_claim<K: Ord>(claims: &mut BTreeMap<K, BTreeSet<Arc<str>>>, key: &K, node: &Arc<str>) {
    let Some(nodes) = claims.get_mut(key) else { return };
    nodes.remove(node);
    if nodes.is_empty() {
        claims.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn overlapping_finds_what_a_look_at_every_subnet_finds(
            subnets in prop::collection::vec((0u8..32, 24u8..=32), 0..12),
            asked in (0u8..32, 24u8..=32),
        ) {
            let net = |(host, length): (u8, u8)| -> IpNet {
                IpNet::new([10, 0, 0, host].into(), length).unwrap().trunc()
            };
            let mut index = Index::default();
            let mut every = BTreeSet::new();
            for (at, subnet) in subnets.into_iter().map(net).enumerate() {
                let name: Arc<str> = at.to_string().into();
                let octet = u8::try_from(at).unwrap();
                let mac = Some(Mac::new([2, 0, 0, 0, 0, octet]));
                index.insert(&name, &Vtep { subnet, mac, underlay: [192, 0, 2, octet].into() });
                every.insert((subnet, name));
            }
            let asked = net(asked);
            let found: BTreeSet<_> = index.overlapping(asked).map(|(net, name)| (net, name.clone())).collect();
            let expected: BTreeSet<_> = every
                .into_iter()
                .filter(|(net, _)| net.contains(&asked) || asked.contains(net))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
