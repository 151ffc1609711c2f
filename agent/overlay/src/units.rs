//! Numbers and names of the pod network that must not be mixed up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Text or a number that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUnit {
    /// A VNI has 24 bits.
    #[error("VNI {0} is above 16777215")]
    Vni(u32),
    /// Below what IPv4 asks of every link, or above what any device has.
    #[error("MTU {0} is not between 68 and 65536")]
    Mtu(u32),
    /// Not six octets in hexadecimal.
    #[error("`{0}` is not a MAC address such as 0a:1b:2c:3d:4e:5f")]
    Mac(String),
    /// The kernel takes 1 to 15 bytes without `/`, `:` and white space.
    #[error("`{0}` is no name for a network interface (1 to 15 bytes, no `/`, `:` or white space)")]
    LinkName(String),
}

/// VXLAN network identifier: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The VNI, if it fits into 24 bits.
    pub fn new(vni: u32) -> Result<Self, InvalidUnit> {
        if vni < 1 << 24 { Ok(Self(vni)) } else { Err(InvalidUnit::Vni(vni)) }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Vni {
    /// flannel's.
    fn default() -> Self {
        Self(1)
    }
}

/// Largest packet of a link, in bytes, without the link's own header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u32);

impl Mtu {
    /// The least that IPv6 works with; the kernel takes IPv6 off a device below (RFC 8200, section 5).
    pub const IPV6_MIN: Self = Self(1280);

    /// The MTU, if a device could have it.
    pub fn new(mtu: u32) -> Result<Self, InvalidUnit> {
        if (68..=65536).contains(&mtu) { Ok(Self(mtu)) } else { Err(InvalidUnit::Mtu(mtu)) }
    }

    /// The bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// What is left for the inner packet, never below the least MTU that there is.
    pub fn less(self, overhead: u32) -> Self {
        Self(self.0.saturating_sub(overhead).max(68))
    }
}

/// The kernel's number of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IfIndex(pub u32);

/// Name of a network interface, as the kernel would take it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName(Arc<str>);

impl LinkName {
    /// The name, if the kernel would take it.
    pub fn new(name: &str) -> Result<Self, InvalidUnit> {
        let refused = |c: char| c == '/' || c == ':' || c.is_whitespace();
        match name {
            "" | "." | ".." => Err(InvalidUnit::LinkName(name.to_owned())),
            _ if name.len() > 15 || name.contains(refused) => Err(InvalidUnit::LinkName(name.to_owned())),
            _ => Ok(Self(name.into())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// The address of these octets.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether one station can have it: neither a group address nor all zero (which is VXLAN's "everyone else").
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The VTEP MAC of a node that publishes none (contract N4): every node works it out alike.
    ///
    /// FNV-1a (64 bit) over the family's number (4 or 6) in one octet, the VNI in four octets big-endian, and the node
    /// name; the upper 16 bits are folded onto the lower 48; of the first octet the locally-administered bit is set
    /// and the group bit cleared.
    pub fn derived(node: &str, vni: Vni, family: Family) -> Self {
        let head = [family.number()].into_iter().chain(vni.get().to_be_bytes());
        let hash = head.chain(node.bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [_, _, a, b, c, d, e, f] = (hash ^ (hash >> 48)).to_be_bytes();
        Self([(a | 0x02) & 0xfe, b, c, d, e, f])
    }
}

impl FromStr for Mac {
    type Err = InvalidUnit;

    /// Six octets of two hexadecimal digits, between colons or hyphens.
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let invalid = || InvalidUnit::Mac(text.to_owned());
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let octets: [&str; 6] = parts.try_into().map_err(|_| invalid())?;
        let mut mac = [0; 6];
        for (octet, digits) in mac.iter_mut().zip(octets) {
            if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *octet = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// IPv4 or IPv6: of the pods, and with VXLAN of the network underneath as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Whether `address` is of this family.
    pub fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    /// The family of a network.
    pub fn of(net: &IpNet) -> Self {
        if net.addr().is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of the prefix that holds one address.
    pub fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

/// One thing for IPv4 and one for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerFamily<T> {
    /// That of IPv4.
    pub v4: T,
    /// That of IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// Makes both.
    pub fn from_fn(mut make: impl FnMut(Family) -> T) -> Self {
        Self { v4: make(Family::V4), v6: make(Family::V6) }
    }

    /// That of `family`.
    pub fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// That of `family`, to be changed.
    pub fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl<T> PerFamily<Option<T>> {
    /// Those that are there, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::BOTH.into_iter().filter_map(|family| Some((family, self.get(family).as_ref()?)))
    }
}

/// The interface of this machine that carries the encapsulated packets (contract N8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its number.
    pub index: IfIndex,
    /// Its name.
    pub name: LinkName,
    /// Its MTU, the outer one.
    pub mtu: Mtu,
    /// Its IPv4 address that peers send to.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address that peers send to.
    pub v6: Option<Ipv6Addr>,
}

impl ExternalInterface {
    /// The address that peers of `family` send to.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

impl TryFrom<u32> for Vni {
    type Error = InvalidUnit;
    fn try_from(vni: u32) -> Result<Self, InvalidUnit> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl TryFrom<u32> for Mtu {
    type Error = InvalidUnit;
    fn try_from(mtu: u32) -> Result<Self, InvalidUnit> {
        Self::new(mtu)
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidUnit;
    fn try_from(text: String) -> Result<Self, InvalidUnit> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{}", self.number())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_mac_is_read_back_as_it_is_written() {
        let mac: Mac = "0A-1b-2c-3d-4e-5f".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:1b:2c:3d:4e:5f");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in ["", "0a:1b:2c:3d:4e", "0a:1b:2c:3d:4e:5f:60", "a:1b:2c:3d:4e:5f", "+a:1b:2c:3d:4e:5f"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn derived_macs_of_5000_nodes_are_local_unicast_and_differ() {
        let macs: BTreeSet<Mac> = (0..5000)
            .flat_map(|n| Family::BOTH.map(|family| Mac::derived(&format!("node-{n}"), Vni(1), family)))
            .collect();
        assert_eq!(macs.len(), 10_000);
        assert!(macs.iter().all(|mac| mac.is_unicast() && mac.octets()[0] & 2 == 2));
    }

    /// Peers of other versions must come to the same address. The value was worked out apart from this code.
    #[test]
    fn the_derived_mac_never_changes() {
        assert_eq!(Mac::derived("worker-1", Vni(1), Family::V4).to_string(), "ce:39:a2:45:f9:83");
        assert_ne!(
            Mac::derived("worker-1", Vni(2), Family::V4),
            Mac::derived("worker-1", Vni(1), Family::V4)
        );
    }

    #[test]
    fn link_names_are_what_the_kernel_takes() {
        assert!(LinkName::new("flannel.1").is_ok());
        for bad in ["", ".", "flannel-v6.123456", "a b", "a/b", "a:b"] {
            assert!(LinkName::new(bad).is_err(), "{bad}");
        }
    }
}
