//! Addresses as the Kubernetes API lets them through.

use std::net::{IpAddr, Ipv4Addr};

/// Reads an IP address; leading zeros in an IPv4 part are decimal, as in Kubernetes' `netutils.ParseIPSloppy`
/// (contract S33): old clusters hold such objects, and newer API servers keep them.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parts.next().and_then(parse_decimal)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

fn parse_decimal(part: &str) -> Option<u8> {
    let digits_only = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    digits_only.then(|| part.trim_start_matches('0')).and_then(|digits| match digits {
        "" => Some(0),
        digits => digits.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn s33_leading_zeros_are_decimal() {
        assert_eq!(parse_ip("010.000.0.08"), Some("10.0.0.8".parse().unwrap()));
        assert_eq!(parse_ip("fd00::1"), Some("fd00::1".parse().unwrap()));
        for bad in ["", "10.0.0", "10.0.0.0.1", "256.0.0.1", "+1.0.0.0", " 10.0.0.1", "a.b.c.d", "1..2.3"] {
            assert_eq!(parse_ip(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,24}") {
            parse_ip(&text);
        }

        #[test]
        fn padded_and_plain_addresses_are_the_same(octets: [u8; 4], zeros in 0usize..4) {
            let padded = octets.map(|octet| format!("{}{octet}", "0".repeat(zeros))).join(".");
            prop_assert_eq!(parse_ip(&padded), Some(Ipv4Addr::from(octets).into()));
        }
    }
}
