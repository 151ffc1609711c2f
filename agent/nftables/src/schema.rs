//! The fixed rules: texts with the family and the masquerade mark filled in.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The bit that says "masquerade this connection", shared with nobody (contract S38); kube-proxy's default.
pub const DEFAULT_MARK: u32 = 0x4000;

/// An address family with its own table of Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Ip,
    Ip6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    pub(crate) fn of(ipv6: bool) -> Self {
        if ipv6 { Self::Ip6 } else { Self::Ip }
    }

    /// The word in rules and table names.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::Ip => "ipv4_addr",
            Self::Ip6 => "ipv6_addr",
        }
    }
}

/// The name of the tables of Services.
pub(crate) const SERVICES: &str = "podway";
/// The name of the pod network's table, of family inet.
pub(crate) const NETWORK: &str = "podway-network";

/// The rules of one family's table of Services.
pub(crate) fn services(family: Family, mark: u32) -> String {
    include_str!("schema/services.nft")
        .replace("IP ", &format!("{} ", family.word()))
        .replace("ADDRESS", family.address_type())
        .replace("MARK", &format!("{mark:#x}"))
}

/// The rules of the pod network's table.
pub(crate) fn network(mark: u32) -> String {
    include_str!("schema/network.nft").replace("MARK", &format!("{mark:#x}"))
}

/// Identifies a text of rules from one version of podway to the next.
pub(crate) fn generation(rules: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    rules.hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        for family in Family::ALL {
            let text = services(family, DEFAULT_MARK);
            let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
            for line in code {
                assert!(!["IP ", "ADDRESS", "MARK"].iter().any(|word| line.contains(word)), "{line}");
            }
            assert!(text.contains(&format!("table {} podway {{", family.word())));
        }
    }

    #[test]
    fn another_mark_is_another_generation() {
        assert_ne!(generation(&network(0x4000)), generation(&network(0x8000)));
    }
}
