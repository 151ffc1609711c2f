//! Which address a pod gets. Pure.
//!
//! host-local's rules: one after the other, beginning after the last one given, so that an address rests before it is
//! used again; never the network's own address, the gateway or an IPv4 broadcast address; an address is held until its
//! attachment gives it back. Beyond host-local: an attachment has its addresses of both families or none.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;
use crate::error::Error;

/// The addresses that are given away in one network on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservations {
    /// The last address that was given, one of each family at most.
    last: Vec<IpAddr>,
    reserved: Vec<Reservation>,
    /// Held by others, and kept by them.
    #[serde(skip)]
    others: BTreeSet<IpAddr>,
}

/// The addresses of one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    #[serde(flatten)]
    pub(crate) attachment: Attachment,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Reservations {
    /// The addresses that an attachment holds.
    pub(crate) fn of(&self, attachment: &Attachment) -> Option<&[IpAddr]> {
        let found = self.reserved.iter().find(|reservation| reservation.attachment == *attachment);
        found.map(|reservation| reservation.addresses.as_slice())
    }

    /// Gives none of these away until the next look.
    pub(crate) fn avoid(&mut self, others: BTreeSet<IpAddr>) {
        self.others = others;
    }

    /// Every attachment that holds addresses.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.reserved.iter().map(|reservation| &reservation.attachment)
    }

    /// Reserves one address of each subnet. Those in `wanted` are taken, the others are the next free ones; on an error
    /// nothing is reserved. An attachment that holds addresses keeps them, those that lie in a subnet.
    pub(crate) fn reserve(
        &mut self,
        attachment: &Attachment,
        subnets: &[IpNet],
        wanted: &[IpAddr],
    ) -> Result<Vec<IpAddr>, Error> {
        if let Some(stray) = wanted.iter().find(|address| !subnets.iter().any(|net| net.contains(*address))) {
            let why = "it is not in this node's subnet".to_owned();
            return Err(Error::AddressRefused { address: *stray, why });
        }
        let held = self.of(attachment).unwrap_or_default().to_vec();
        let mut chosen = Vec::new();
        for subnet in subnets {
            let of_subnet = |address: &&IpAddr| subnet.contains(*address);
            chosen.push(match (wanted.iter().find(of_subnet), held.iter().find(of_subnet)) {
                (Some(address), _) => self.free(attachment, subnet, *address)?,
                (None, Some(address)) => *address,
                (None, None) => self.next(subnet)?,
            });
        }
        self.release(attachment);
        for address in &chosen {
            self.last.retain(|last| last.is_ipv4() != address.is_ipv4());
            self.last.push(*address);
        }
        self.reserved.push(Reservation { attachment: attachment.clone(), addresses: chosen.clone() });
        Ok(chosen)
    }

    /// Gives back what an attachment holds; whether it held any.
    pub(crate) fn release(&mut self, attachment: &Attachment) -> bool {
        let before = self.reserved.len();
        self.reserved.retain(|reservation| reservation.attachment != *attachment);
        self.reserved.len() < before
    }

    /// The address that the next reservation in the subnet gets.
    pub(crate) fn next(&self, subnet: &IpNet) -> Result<IpAddr, Error> {
        let usable = usable(subnet);
        let (first, last) = (*usable.start(), *usable.end());
        let taken: BTreeSet<u128> =
            self.taken().filter(|ip| subnet.contains(*ip)).map(|ip| number(*ip)).collect();
        let given =
            self.last.iter().find(|address| subnet.contains(*address)).map(|address| number(*address));
        let start = given.and_then(|given| given.checked_add(1)).unwrap_or(first).max(first);
        let mut candidates = (start..=last).chain(first..start);
        let free = candidates.find(|candidate| !taken.contains(candidate));
        free.map(|free| address(free, subnet)).ok_or_else(|| Error::Exhausted {
            subnet: *subnet,
            usable: if usable.is_empty() { 0 } else { last - first + 1 },
            reserved: taken.len(),
        })
    }

    fn free(&self, attachment: &Attachment, subnet: &IpNet, address: IpAddr) -> Result<IpAddr, Error> {
        if !usable(subnet).contains(&number(address)) {
            let why = format!("it is the network's, the gateway's or the broadcast address of {subnet}");
            return Err(Error::AddressRefused { address, why });
        }
        if self.others.contains(&address) {
            return Err(Error::AddressRefused {
                address,
                why: "host-local has given it to a pod".to_owned(),
            });
        }
        let holder = self.reserved.iter().find(|reservation| reservation.addresses.contains(&address));
        match holder.filter(|reservation| reservation.attachment != *attachment) {
            Some(other) => {
                let Attachment { container, ifname } = &other.attachment;
                Err(Error::AddressRefused { address, why: format!("{ifname} of {container} has it") })
            }
            None => Ok(address),
        }
    }

    fn taken(&self) -> impl Iterator<Item = &IpAddr> {
        self.reserved.iter().flat_map(|reservation| &reservation.addresses).chain(&self.others)
    }
}

/// The first address of the subnet, which the node answers for.
pub(crate) fn gateway(subnet: &IpNet) -> IpAddr {
    address(number(subnet.network()).saturating_add(1), subnet)
}

/// The addresses for pods; empty if the subnet is too small for any.
fn usable(subnet: &IpNet) -> RangeInclusive<u128> {
    let first = number(subnet.network()).saturating_add(2);
    let last = number(subnet.broadcast());
    match subnet {
        IpNet::V4(_) => first..=last.saturating_sub(1),
        IpNet::V6(_) => first..=last,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address of this number in the subnet's family.
fn address(number: u128, subnet: &IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attachment(number: usize) -> Attachment {
        Attachment { container: format!("c{number}"), ifname: "eth0".into() }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn given(reservations: &mut Reservations, number: usize, subnets: &[IpNet]) -> Vec<String> {
        let chosen = reservations.reserve(&attachment(number), subnets, &[]).unwrap();
        chosen.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn n11_addresses_are_given_one_after_the_other_and_rest_before_they_come_again() {
        let mut reservations = Reservations::default();
        let subnet = [net("10.77.1.0/29")];
        assert_eq!(given(&mut reservations, 0, &subnet), ["10.77.1.2"]);
        assert_eq!(given(&mut reservations, 1, &subnet), ["10.77.1.3"]);
        assert!(reservations.release(&attachment(0)));
        assert!(!reservations.release(&attachment(0)));
        for (number, address) in [(2, "10.77.1.4"), (3, "10.77.1.5"), (4, "10.77.1.6"), (5, "10.77.1.2")] {
            assert_eq!(given(&mut reservations, number, &subnet), [address]);
        }
        let error = reservations.reserve(&attachment(6), &subnet, &[]).unwrap_err();
        assert_eq!(error.to_string(), "all 5 addresses of 10.77.1.0/29 are reserved");
        assert!(error.details().starts_with("5 reservations"));
    }

    #[test]
    fn n11_both_families_or_none() {
        let mut reservations = Reservations::default();
        let both = [net("10.77.1.0/24"), net("fd77:0:0:1::/126")];
        assert_eq!(given(&mut reservations, 0, &both), ["10.77.1.2", "fd77:0:0:1::2"]);
        assert_eq!(given(&mut reservations, 1, &both), ["10.77.1.3", "fd77:0:0:1::3"]);
        let before = reservations.clone();
        assert!(reservations.reserve(&attachment(2), &both, &[]).is_err());
        assert_eq!(reservations, before);
    }

    #[test]
    fn n11_a_new_subnet_begins_at_its_first_address_whatever_is_held_in_the_old_one() {
        let mut reservations = Reservations::default();
        given(&mut reservations, 0, &[net("10.77.1.0/24")]);
        assert_eq!(given(&mut reservations, 1, &[net("10.77.9.0/24")]), ["10.77.9.2"]);
        assert_eq!(
            given(&mut reservations, 0, &[net("10.77.9.0/24")]),
            ["10.77.9.3"],
            "the old one is of no use"
        );
    }

    #[test]
    fn n11_an_attachment_that_asks_again_keeps_its_addresses() {
        let mut reservations = Reservations::default();
        let subnet = [net("10.77.1.0/24")];
        assert_eq!(given(&mut reservations, 0, &subnet), given(&mut reservations, 0, &subnet));
        assert_eq!(reservations.attachments().count(), 1);
    }

    #[test]
    fn n11_a_requested_address_is_given_or_refused_with_its_reason() {
        let mut reservations = Reservations::default();
        let subnet = [net("10.77.1.0/24")];
        let mut request = |number, address: &str| {
            let wanted = [address.parse().unwrap()];
            reservations.reserve(&attachment(number), &subnet, &wanted).map_err(|error| error.to_string())
        };
        assert_eq!(request(0, "10.77.1.9").unwrap(), ["10.77.1.9".parse::<IpAddr>().unwrap()]);
        assert!(request(1, "10.77.1.9").unwrap_err().contains("eth0 of c0 has it"));
        assert!(request(1, "10.77.2.9").unwrap_err().contains("not in this node's subnet"));
        for reserved in ["10.77.1.0", "10.77.1.1", "10.77.1.255"] {
            assert!(request(1, reserved).unwrap_err().contains("gateway"), "{reserved}");
        }
    }

    #[test]
    fn n11_what_others_hold_is_passed_over_and_counted() {
        let mut reservations = Reservations::default();
        reservations.avoid(["10.77.1.2", "10.77.1.4", "10.77.7.7"].map(|ip| ip.parse().unwrap()).into());
        let subnet = [net("10.77.1.0/29")];
        assert_eq!(given(&mut reservations, 0, &subnet), ["10.77.1.3"]);
        assert_eq!(given(&mut reservations, 1, &subnet), ["10.77.1.5"]);
        let wanted = ["10.77.1.2".parse().unwrap()];
        assert!(
            reservations
                .reserve(&attachment(2), &subnet, &wanted)
                .unwrap_err()
                .to_string()
                .contains("host-local")
        );
        assert_eq!(given(&mut reservations, 2, &subnet), ["10.77.1.6"]);
        let error = reservations.reserve(&attachment(3), &subnet, &[]).unwrap_err();
        assert!(error.details().starts_with("5 reservations"), "{}", error.details());
    }

    #[test]
    fn n11_subnets_without_room_for_a_pod_are_exhausted() {
        for subnet in
            ["10.77.1.0/30", "10.77.1.0/31", "10.77.1.0/32", "fd77::/127", "fd77::/128", "255.255.255.254/31"]
        {
            let room = Reservations::default().next(&net(subnet));
            assert_eq!(room.is_ok(), subnet.ends_with("/30"), "{subnet}: {room:?}");
        }
        let last: Vec<IpAddr> = vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()];
        let end = Reservations { last, ..Reservations::default() };
        let last_net = net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124");
        assert_eq!(end.next(&last_net).unwrap().to_string(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff2");
    }

    proptest! {
        /// However attachments come and go: no address twice, none outside of the range, and none refused while one is free.
        #[test]
        fn n11_no_address_is_held_twice(
            length in 27_u8..=31, steps in prop::collection::vec((0_usize..40, any::<bool>()), 1..200),
        ) {
            let subnet = IpNet::new("10.77.1.0".parse().unwrap(), length).unwrap();
            let usable = (1_usize << (32 - length)).saturating_sub(3);
            let mut reservations = Reservations::default();
            for (number, add) in steps {
                let attachment = attachment(number);
                let (held, had) = (reservations.attachments().count(), reservations.of(&attachment).is_some());
                if !add {
                    prop_assert_eq!(reservations.release(&attachment), had);
                    continue;
                }
                let reserved = reservations.reserve(&attachment, &[subnet], &[]);
                prop_assert_eq!(reserved.is_ok(), had || held < usable);
                let taken: Vec<&IpAddr> = reservations.taken().collect();
                prop_assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len());
                let in_range = |address: &&IpAddr| {
                    subnet.contains(*address) && **address != gateway(&subnet) && **address != subnet.network()
                        && **address != subnet.broadcast()
                };
                prop_assert!(taken.iter().all(in_range));
            }
        }
    }
}
