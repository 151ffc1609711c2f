//! Which subnet a node is to take from flannel's etcd store, worked out from what is held there (contract N3).

use ipnet::IpNet;

use crate::lease::{Lease, LeaseAttributes};
use crate::range::{self, Range};
use crate::units::{Family, PerFamily};

/// One out of so many free subnets is taken at random, so that nodes that join together seldom want the same
/// (flannel, pkg/subnet/etcd/local_manager.go).
const CANDIDATES: usize = 100;

/// What a node wants: a subnet of each family that has a range.
#[derive(Debug, Clone, Copy)]
pub struct Acquisition<'a> {
    /// What subnets are taken from.
    pub ranges: &'a PerFamily<Option<Range>>,
    /// What the node will publish.
    pub attributes: &'a LeaseAttributes,
    /// The subnets it had before, as subnet.env or its own memory has them.
    pub previous: &'a PerFamily<Option<IpNet>>,
}

/// The next step towards a subnet. Each is to be carried out only if the store is still as it was listed; if it is
/// not, list and decide again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Take over the lease or reservation that has this node's address; a reservation stays one.
    Reuse(&'a Lease),
    /// Delete the lease that has this node's address and does not go with the ranges, then decide again.
    Delete(&'a Lease),
    /// Create a key for the subnets that the node had before.
    Take(PerFamily<Option<IpNet>>),
    /// Create a key for these free subnets.
    Create(PerFamily<Option<IpNet>>),
    /// All subnets of this family are held.
    Exhausted(Family),
}

impl Acquisition<'_> {
    /// Decides in flannel's order:
    /// 1. A lease with this node's address: reused if it goes with the ranges, else deleted. The address is the IPv4
    ///    one; the IPv6 one where there is no other. Unlike flannel, one that fits is found behind one that does not,
    ///    and a reservation is never deleted.
    /// 2. The previous subnets, if they go with the ranges and nobody holds any part of them.
    /// 3. One of the first 100 free subnets, from SubnetMin upwards, of each family by itself.
    ///
    /// `random` is any number, to choose by.
    pub fn decide<'a>(&self, leases: &'a [Lease], random: u64) -> Decision<'a> {
        let own = || leases.iter().filter(|lease| lease.attributes.is_of_the_node_of(self.attributes));
        if let Some(lease) = own().find(|lease| self.fits(&lease.subnets)) {
            return Decision::Reuse(lease);
        }
        if let Some(stale) = own().find(|lease| !lease.reservation) {
            return Decision::Delete(stale);
        }
        if self.fits(self.previous) && !leases.iter().any(|lease| overlap(&lease.subnets, self.previous)) {
            return Decision::Take(*self.previous);
        }
        self.candidate(leases, random)
    }

    /// Whether subnets are what the ranges ask for: of the same families, of the right length, between the bounds.
    pub fn fits(&self, subnets: &PerFamily<Option<IpNet>>) -> bool {
        let fits = |family: Family| match (self.ranges.get(family), subnets.get(family)) {
            (Some(range), Some(subnet)) => range.contains(subnet),
            (range, subnet) => range.is_none() && subnet.is_none(),
        };
        self.ranges.iter().next().is_some() && Family::BOTH.into_iter().all(fits)
    }

    fn candidate(&self, leases: &[Lease], random: u64) -> Decision<'static> {
        let mut subnets = PerFamily::default();
        for (family, range) in self.ranges.iter() {
            let free = free(range, leases.iter().filter_map(|lease| *lease.subnets.get(family)));
            // Halves of the number, so that the families are chosen independently.
            let random = match family {
                Family::V4 => random & 0xffff_ffff,
                Family::V6 => random >> 32,
            };
            let Ok(place) = usize::try_from(random % (free.len() as u64).max(1)) else { continue };
            match free.get(place) {
                Some(subnet) => *subnets.get_mut(family) = Some(*subnet),
                None => return Decision::Exhausted(family),
            }
        }
        Decision::Create(subnets)
    }
}

/// Whether a family has addresses in common.
pub(crate) fn overlap(one: &PerFamily<Option<IpNet>>, other: &PerFamily<Option<IpNet>>) -> bool {
    Family::BOTH.into_iter().any(|family| match (one.get(family), other.get(family)) {
        (Some(one), Some(other)) => one.contains(&other.network()) || other.contains(&one.network()),
        _ => false,
    })
}

/// The first subnets of the range that have no address in common with one that is held. A held one is stepped over
/// as a whole, however many subnets lie in it.
fn free(range: &Range, held: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let family = range.family();
    let size = 1_u128 << (family.host_prefix() - range.subnet_len());
    let mut held: Vec<(u128, u128)> =
        held.map(|net| (range::bits(net.network()), range::bits(net.broadcast()))).collect();
    held.sort_unstable();
    let (mut held, mut held_to) = (held.into_iter().peekable(), None);
    let mut free = Vec::new();
    let mut next = range.nth(0).map(|first| range::bits(first.addr()));
    while let Some(first) = next.filter(|_| free.len() < CANDIDATES) {
        let subnet = IpNet::new(range::address(family, first), range.subnet_len());
        let Some(subnet) = subnet.ok().filter(|subnet| range.contains(subnet)) else { break };
        while let Some((_, end)) = held.next_if(|(start, _)| *start < first + size) {
            held_to = held_to.max(Some(end));
        }
        next = match held_to.filter(|end| *end >= first) {
            Some(end) => (end / size + 1).checked_mul(size),
            None => {
                free.push(subnet);
                first.checked_add(size)
            }
        };
    }
    free
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::lease::LeaseKey;

    const OWN: &str = "192.0.2.7";

    fn lease(key: &str, address: &str) -> Lease {
        Lease::parse(key, &format!(r#"{{"PublicIP":"{address}","BackendType":"vxlan"}}"#), false).unwrap()
    }

    fn reservation(key: &str, address: &str) -> Lease {
        Lease { reservation: true, ..lease(key, address) }
    }

    fn key(text: &str) -> PerFamily<Option<IpNet>> {
        text.parse::<LeaseKey>().unwrap().0
    }

    /// Decides for a node with [`OWN`] in 10.77.0.0/16, with an IPv6 range too if `dual`.
    struct Node {
        ranges: PerFamily<Option<Range>>,
        previous: PerFamily<Option<IpNet>>,
        attributes: LeaseAttributes,
    }

    impl Node {
        fn new(ranges: &[&str]) -> Self {
            let mut node = Self {
                ranges: PerFamily::default(),
                previous: PerFamily::default(),
                attributes: LeaseAttributes {
                    public_ip: Some(OWN.parse().unwrap()),
                    public_ipv6: Some("2001:db8::7".parse().unwrap()),
                    ..LeaseAttributes::default()
                },
            };
            for network in ranges {
                let range = Range::new(network.parse().unwrap(), None, None, None).unwrap();
                *node.ranges.get_mut(range.family()) = Some(range);
            }
            node
        }

        fn before(mut self, text: &str) -> Self {
            self.previous = key(text);
            self
        }

        fn decide<'a>(&self, leases: &'a [Lease], random: u64) -> Decision<'a> {
            let Self { ranges, previous, attributes } = self;
            Acquisition { ranges, attributes, previous }.decide(leases, random)
        }
    }

    #[test]
    fn n3_the_lease_with_our_address_comes_first_then_the_previous_subnet_then_a_new_one() {
        let node = Node::new(&["10.77.0.0/16"]).before("10.77.3.0-24");
        let leases = [lease("10.77.1.0-24", "192.0.2.8"), lease("10.77.2.0-24", OWN)];
        assert_eq!(node.decide(&leases, 0), Decision::Reuse(&leases[1]));
        assert_eq!(node.decide(&leases[..1], 0), Decision::Take(key("10.77.3.0-24")));
        let taken = [lease("10.77.1.0-24", "192.0.2.8"), lease("10.77.3.0-24", "192.0.2.9")];
        assert_eq!(node.decide(&taken, 0), Decision::Create(key("10.77.2.0-24")));
        assert_eq!(
            node.decide(&taken, 99),
            Decision::Create(key("10.77.102.0-24")),
            "the hundredth free one"
        );
        assert_eq!(node.decide(&taken, 100), Decision::Create(key("10.77.2.0-24")));
    }

    #[test]
    fn n3_a_lease_that_does_not_go_with_the_ranges_is_deleted_and_a_reservation_is_not() {
        let node = Node::new(&["10.77.0.0/16"]);
        for stale in ["10.78.1.0-24", "10.77.1.0-25", "10.77.1.0-24&fd77:0:0:1::-64", "10.77.0.0-24"] {
            let leases = [lease(stale, OWN)];
            assert_eq!(node.decide(&leases, 0), Decision::Delete(&leases[0]), "{stale}");
            assert!(matches!(node.decide(&[reservation(stale, OWN)], 0), Decision::Create(_)), "{stale}");
        }
        let both = [lease("10.77.1.0-25", OWN), reservation("10.77.9.0-24", OWN)];
        assert_eq!(node.decide(&both, 0), Decision::Reuse(&both[1]));
    }

    #[test]
    fn n3_the_previous_subnet_must_go_with_the_ranges_and_be_free_altogether() {
        for (previous, held) in [
            ("10.77.3.0-25", "10.77.1.0-24"),
            ("10.78.3.0-24", "10.77.1.0-24"),
            ("10.77.3.0-24&fd77:0:0:3::-64", "10.77.1.0-24"),
            ("10.77.3.0-24", "10.77.3.128-25"),
            ("10.77.3.0-24", "10.77.2.0-23"),
        ] {
            let leases = [lease(held, "192.0.2.8")];
            let decision = Node::new(&["10.77.0.0/16"]).before(previous).decide(&leases, 0);
            assert!(matches!(decision, Decision::Create(_)), "{previous} beside {held}: {decision:?}");
        }
    }

    #[test]
    fn n3_switching_ipv6_on_or_off_gives_another_subnet() {
        let leases = [lease("10.77.1.0-24", OWN)];
        let node = Node::new(&["10.77.0.0/16", "fd77::/48"]).before("10.77.1.0-24");
        assert_eq!(node.decide(&leases, 0), Decision::Delete(&leases[0]));
        assert_eq!(node.decide(&[], 5 << 32), Decision::Create(key("10.77.1.0-24&fd77:0:0:6::-64")));
    }

    #[test]
    fn n3_ipv6_alone_is_known_by_its_ipv6_address_and_no_ipv4_subnet_is_in_the_way() {
        let mut node = Node::new(&["fd77::/48"]);
        node.attributes.public_ip = None;
        let mut theirs = lease("0.0.0.0-0&fd77:0:0:1::-64", "0.0.0.0");
        let leases = [theirs.clone(), lease("10.77.1.0-24", "192.0.2.9")];
        assert_eq!(node.decide(&leases, 0), Decision::Create(key("0.0.0.0-0&fd77:0:0:2::-64")));
        theirs.attributes.public_ipv6 = node.attributes.public_ipv6;
        let ours = [theirs];
        assert_eq!(node.decide(&ours, 0), Decision::Reuse(&ours[0]));
    }

    #[test]
    fn n3_without_a_free_subnet_it_says_so() {
        let node = Node::new(&["10.77.0.0/22"]);
        let leases = [lease("10.77.1.0-24", "192.0.2.1"), reservation("10.77.2.0-23", "192.0.2.2")];
        assert_eq!(node.decide(&leases, 7), Decision::Exhausted(Family::V4));
        let dual = Node::new(&["10.77.0.0/16", "fd77::/62"]);
        let all = [lease("10.77.1.0-24&fd77::-62", "192.0.2.1")];
        assert_eq!(dual.decide(&all, 7), Decision::Exhausted(Family::V6));
    }

    #[test]
    fn n3_a_huge_lease_is_stepped_over_at_once() {
        let leases = [lease("10.77.1.0-24&fd00::-9", "192.0.2.8")];
        let decision = Node::new(&["10.77.0.0/16", "fd00::/8"]).decide(&leases, 0);
        assert_eq!(decision, Decision::Create(key("10.77.2.0-24&fd80::-64")));
    }

    proptest! {
        /// Nodes that come one after another never get what overlaps, and get all there is.
        #[test]
        fn n3_no_subnet_is_given_twice_and_none_is_left_over(
            randoms in prop::collection::vec(any::<u64>(), 80),
            foreign in prop::collection::btree_set((0..64_u32, 22..=28_u8), 0..6),
        ) {
            let node = Node::new(&["10.77.0.0/18"]);
            let mut leases: Vec<Lease> = foreign
                .iter()
                .map(|(n, len)| reservation(&format!("10.77.{n}.0-{len}"), "198.51.100.1"))
                .collect();
            let blocked: BTreeSet<u32> = (1..64)
                .filter(|n| leases.iter().any(|lease| overlap(&lease.subnets, &key(&format!("10.77.{n}.0-24")))))
                .collect();
            let mut given = 0;
            for random in randoms {
                match node.decide(&leases, random) {
                    Decision::Create(subnets) => {
                        prop_assert!(!leases.iter().any(|lease| overlap(&lease.subnets, &subnets)));
                        leases.push(lease(&LeaseKey(subnets).to_string(), "198.51.100.2"));
                        given += 1;
                    }
                    other => prop_assert_eq!(other, Decision::Exhausted(Family::V4)),
                }
            }
            prop_assert_eq!(given, 63 - blocked.len());
        }
    }
}
