//! A range as large as a VPC, cut into node subnets of one size (contract N1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::units::Family;

/// The range that all pods of one family have their addresses from, and the subnets of it that nodes can get.
///
/// Subnets are counted from the range's own network address: number 0 begins there. flannel leaves it out unless told
/// otherwise, so the first one to be handed out is number 1 (flannel, pkg/subnet/config.go).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    network: IpNet,
    subnet_len: u8,
    min: u128,
    max: u128,
}

/// What makes a range useless, each naming the field of flannel's net-conf.json.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// There is no room for four subnets that hold a pod each.
    #[error(
        "{six}Network {0} is too small: it must hold four node subnets of at least four addresses",
        six = six(.0.addr())
    )]
    TooSmall(IpNet),
    /// The subnets would be as large as the range, or too small for pods.
    #[error(
        "{0}SubnetLen {len} does not go with {0}Network {network}: it must be from {least} to {most}",
        six(.network.addr())
    )]
    SubnetLen {
        /// The range.
        network: IpNet,
        /// What was asked.
        len: u8,
        /// The least that holds four subnets.
        least: u8,
        /// The most that holds four addresses.
        most: u8,
    },
    /// A bound is no address of the range.
    #[error("{0}{field} {address} is outside of {0}Network {network}", six(.network.addr()))]
    Outside {
        /// `SubnetMin` or `SubnetMax`, of whichever family.
        field: &'static str,
        /// What was asked.
        address: IpAddr,
        /// The range.
        network: IpNet,
    },
    /// A bound lies inside a subnet, not at its beginning.
    #[error("{}{field} {address} is not the first address of a subnet of length {len}", six(*.address))]
    NotAligned {
        /// `SubnetMin` or `SubnetMax`, of whichever family.
        field: &'static str,
        /// What was asked.
        address: IpAddr,
        /// Length of the subnets.
        len: u8,
    },
    /// Nothing lies between the bounds.
    #[error("{0}SubnetMin {min} lies behind {0}SubnetMax {max}", six(*.min))]
    Empty {
        /// The lower bound.
        min: IpAddr,
        /// The upper bound.
        max: IpAddr,
    },
}

impl Range {
    /// Cuts `network` (its host bits do not count) into subnets of `subnet_len`, or of flannel's default: 24 (IPv6: 64)
    /// where at least four fit, else two bits more than the network has. `min` and `max` are the first addresses of
    /// the first and the last subnet to hand out; by default the second one, and the last.
    ///
    /// # Errors
    /// As flannel's etcd store has them: fewer than four subnets, fewer than four addresses in each, bounds that are
    /// outside or not at a subnet's beginning.
    pub fn new(
        network: IpNet,
        subnet_len: Option<u8>,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
    ) -> Result<Self, RangeError> {
        let network = network.trunc();
        let (usual, most) = match Family::of(&network) {
            Family::V4 => (24, 30),
            Family::V6 => (64, 126),
        };
        let least = network.prefix_len() + 2;
        if least > most {
            return Err(RangeError::TooSmall(network));
        }
        let len = subnet_len.unwrap_or(if least <= usual { usual } else { least });
        if !(least..=most).contains(&len) {
            return Err(RangeError::SubnetLen { network, len, least, most });
        }
        let last = u128::MAX >> (128 - u32::from(len - network.prefix_len()));
        let mut range = Self { network, subnet_len: len, min: 1, max: last };
        if let Some(address) = min {
            range.min = range.bound("SubnetMin", address)?;
        }
        if let Some(address) = max {
            range.max = range.bound("SubnetMax", address)?;
        }
        match range.min <= range.max {
            true => Ok(range),
            false => {
                let at = |number| range.subnet(number).addr();
                Err(RangeError::Empty { min: at(range.min), max: at(range.max) })
            }
        }
    }

    /// The whole range, host bits zero.
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Prefix length of a node's subnet.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(&self.network)
    }

    /// How many subnets can be handed out.
    pub fn count(&self) -> u128 {
        (self.max - self.min).saturating_add(1)
    }

    /// The subnet at this place among those that can be handed out, which are counted from 0; `None` behind the last.
    pub fn nth(&self, place: u128) -> Option<IpNet> {
        (place < self.count()).then(|| self.subnet(self.min + place))
    }

    /// The place of the subnet that an address lies in; `None` outside of the network and below the first one.
    pub(crate) fn place(&self, address: IpAddr) -> Option<u128> {
        self.network.contains(&address).then(|| self.number(address))?.checked_sub(self.min)
    }

    /// The subnets that can be handed out, from the first one up.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        (self.min..=self.max).map(|number| self.subnet(number))
    }

    /// Whether `subnet` is one that can be handed out.
    pub fn contains(&self, subnet: &IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len
            && subnet.trunc() == *subnet
            && self.network.contains(subnet)
            && (self.min..=self.max).contains(&self.number(subnet.addr()))
    }

    fn bound(&self, field: &'static str, address: IpAddr) -> Result<u128, RangeError> {
        if !self.network.contains(&address) {
            return Err(RangeError::Outside { field, address, network: self.network });
        }
        let number = self.number(address);
        match self.subnet(number).addr() == address {
            true => Ok(number),
            false => Err(RangeError::NotAligned { field, address, len: self.subnet_len }),
        }
    }

    /// The number of the subnet that an address of the range lies in.
    fn number(&self, address: IpAddr) -> u128 {
        (bits(address) - bits(self.network.addr())) >> self.host_bits()
    }

    fn subnet(&self, number: u128) -> IpNet {
        let first = bits(self.network.addr()) + (number << self.host_bits());
        IpNet::new(address(self.family(), first), self.subnet_len).unwrap_or(self.network)
    }

    fn host_bits(&self) -> u8 {
        self.network.max_prefix_len() - self.subnet_len
    }
}

/// What the fields of IPv6 begin with.
fn six(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "" }
}

/// The address as a number.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The number as an address.
pub(crate) fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(network: &str) -> Range {
        Range::new(network.parse().unwrap(), None, None, None).unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn n1_a_vpc_is_cut_into_subnets_of_24_and_the_first_is_left_out() {
        let vpc = range("10.0.0.0/8");
        assert_eq!(vpc.count(), 65_535);
        assert_eq!(vpc.nth(0), Some(net("10.0.1.0/24")));
        assert_eq!(vpc.nth(65_534), Some(net("10.255.255.0/24")));
        assert_eq!(vpc.nth(65_535), None);
        assert_eq!(range("fd77::/48").nth(0), Some(net("fd77:0:0:1::/64")));
        assert_eq!(range("fd00::/8").count(), (1 << 56) - 1);
    }

    #[test]
    fn n1_a_small_network_gets_subnets_of_two_bits_more() {
        for (network, len) in
            [("10.77.0.0/22", 24), ("10.77.0.0/23", 25), ("fd77::/62", 64), ("fd77::/63", 65)]
        {
            assert_eq!(range(network).subnet_len(), len, "{network}");
        }
    }

    #[test]
    fn n1_bounds_are_the_first_and_the_last_subnet() {
        let at = |text: &str| Some(text.parse().unwrap());
        let range = Range::new(net("10.77.0.0/16"), Some(24), at("10.77.0.0"), at("10.77.2.0")).unwrap();
        let all: Vec<IpNet> = range.subnets().collect();
        assert_eq!(all, [net("10.77.0.0/24"), net("10.77.1.0/24"), net("10.77.2.0/24")]);
        assert!(all.iter().all(|subnet| range.contains(subnet)));
        for outside in ["10.77.3.0/24", "10.77.1.0/25", "10.78.1.0/24", "fd77::/24"] {
            assert!(!range.contains(&net(outside)), "{outside}");
        }
    }

    #[test]
    fn n1_wrong_values_are_named() {
        let wrong = |network: &str, len, min: Option<&str>, max: Option<&str>| {
            let address = |text: &str| text.parse().unwrap();
            Range::new(net(network), len, min.map(address), max.map(address)).unwrap_err().to_string()
        };
        for (error, named) in [
            (wrong("10.77.0.0/29", None, None, None), "Network 10.77.0.0/29"),
            (wrong("10.77.0.0/16", Some(17), None, None), "SubnetLen 17"),
            (wrong("10.77.0.0/16", Some(31), None, None), "SubnetLen 31"),
            (wrong("10.77.0.0/16", None, Some("10.78.0.0"), None), "SubnetMin 10.78.0.0"),
            (wrong("10.77.0.0/16", None, None, Some("10.77.3.1")), "SubnetMax 10.77.3.1"),
            (wrong("10.77.0.0/16", None, Some("10.77.3.0"), Some("10.77.2.0")), "SubnetMin 10.77.3.0"),
            (wrong("fd77::/48", None, Some("10.77.3.0"), None), "IPv6SubnetMin 10.77.3.0"),
            (wrong("fd77::/48", Some(49), None, None), "IPv6SubnetLen 49 does not go with IPv6Network"),
        ] {
            assert!(error.contains(named), "{error}");
        }
    }
}
