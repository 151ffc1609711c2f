//! A subnet as the name of a Kubernetes object.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

const PREFIX: &str = "podway-subnet-";

/// The name of the claim for a subnet: `podway-subnet-10-77-12-0-24`, `podway-subnet-fd77-0-0-c-0-0-0-0-64`. A DNS
/// label, and no two subnets have the same: IPv6 is written out, so that it has nine parts where IPv4 has five.
pub fn claim_name(subnet: &IpNet) -> String {
    let address = match subnet.addr() {
        IpAddr::V4(address) => address.octets().map(|octet| octet.to_string()).join("-"),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:x}")).join("-"),
    };
    format!("{PREFIX}{address}-{}", subnet.prefix_len())
}

/// The subnet that a claim of this name is for.
pub fn claim_subnet(name: &str) -> Option<IpNet> {
    let (address, len) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    let parts: Vec<&str> = address.split('-').collect();
    let address: IpAddr = match parts.len() {
        4 => address.replace('-', ".").parse::<Ipv4Addr>().ok()?.into(),
        8 => address.replace('-', ":").parse::<Ipv6Addr>().ok()?.into(),
        _ => return None,
    };
    let subnet = IpNet::new(address, len.parse().ok()?).ok()?;
    (claim_name(&subnet) == name).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn n2_a_subnet_is_legible_in_the_name_of_its_claim() {
        for (subnet, name) in [
            ("10.77.12.0/24", "podway-subnet-10-77-12-0-24"),
            ("fd77:0:0:c::/64", "podway-subnet-fd77-0-0-c-0-0-0-0-64"),
        ] {
            assert_eq!(claim_name(&subnet.parse().unwrap()), name);
        }
        for other in
            ["podway-subnet-10-77-12-0-024", "podway-subnet-10-77-12-0", "podway", "podway-subnet-::-64"]
        {
            assert_eq!(claim_subnet(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn n2_every_subnet_has_a_name_of_its_own_that_is_a_dns_label(
            (v4, len4, v6, len6) in (any::<u32>(), 0u8..=32, any::<u128>(), 0u8..=128),
        ) {
            let v4 = IpNet::new(Ipv4Addr::from(v4).into(), len4).unwrap().trunc();
            let v6 = IpNet::new(Ipv6Addr::from(v6).into(), len6).unwrap().trunc();
            for subnet in [v4, v6] {
                let name = claim_name(&subnet);
                prop_assert_eq!(claim_subnet(&name), Some(subnet), "another subnet would be read as itself");
                let is_plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
                prop_assert!(is_plain && name.len() <= 63, "{}", name);
            }
        }
    }
}
