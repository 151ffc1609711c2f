//! The fixed rules: texts with the family and the masquerade mark filled in.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// The bit that says "masquerade this connection", shared with nobody (contract S38); kube-proxy's default.
pub const DEFAULT_MARK: u32 = 0x4000;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    /// An address's.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv6() { Self::Ip6 } else { Self::Ip }
    }

    /// The word in rules and table names.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// Its iptables of the kind that nft does not reach.
    pub(crate) fn iptables_legacy(self) -> &'static str {
        match self {
            Self::Ip => "iptables-legacy",
            Self::Ip6 => "ip6tables-legacy",
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

/// What of podway a table belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Services,
    Network,
}

/// Whose table that is, given as `ip podway`; `None` if it is not podway's.
pub(crate) fn half_of(table: &str) -> Option<Half> {
    match table.split_once(' ') {
        Some(("ip" | "ip6", SERVICES)) => Some(Half::Services),
        Some(("inet", NETWORK)) => Some(Half::Network),
        _ => None,
    }
}

/// The rules of one family's table of Services.
pub(crate) fn services(family: Family, mark: u32) -> String {
    include_str!("schema/services.nft")
        .replace("IP ", &format!("{} ", family.word()))
        .replace("ADDRESS", family.address_type())
        .replace("MARK", &format!("{mark:#x}"))
}

/// How masqueraded connections get their ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ports {
    /// At random, so that two nodes that masquerade alike do not collide.
    #[default]
    Random,
    /// The pod's own where it is free.
    Kept,
}

/// The rules of the pod network's table.
pub(crate) fn network(mark: u32, ports: Ports) -> String {
    let masquerade = match ports {
        Ports::Random => "masquerade fully-random",
        Ports::Kept => "masquerade",
    };
    include_str!("schema/network.nft")
        .replace("MARK", &format!("{mark:#x}"))
        .replace("MASQUERADE", masquerade)
}

/// What a chain of a schema must look like in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    /// Whether it hangs on a hook.
    pub(crate) base: bool,
    /// The number of its rules.
    pub(crate) rules: usize,
}

/// The chains that a text of rules makes.
pub(crate) fn chains(rules: &str) -> BTreeMap<&str, Shape> {
    let mut chains: BTreeMap<&str, Shape> = BTreeMap::new();
    let mut within = None;
    for line in rules.lines().map(str::trim) {
        match line.strip_prefix("chain ").and_then(|it| it.strip_suffix(" {")) {
            Some(name) => {
                chains.insert(name, Shape::default());
                within = Some(name);
            }
            None if line == "}" => within = None,
            None if line.is_empty() || line.starts_with('#') => {}
            None => {
                let Some(chain) = within.and_then(|name| chains.get_mut(name)) else { continue };
                match line.starts_with("type ") {
                    true => chain.base = true,
                    false => chain.rules += 1,
                }
            }
        }
    }
    chains
}

/// Identifies a text of rules from one version of podway to the next.
pub(crate) fn generation(rules: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    rules.hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        let network = network(DEFAULT_MARK, Ports::Kept);
        for family in Family::ALL {
            let text = services(family, DEFAULT_MARK);
            let lines = text.lines().chain(network.lines());
            let code = lines.filter(|line| !line.trim_start().starts_with('#'));
            for line in code {
                assert!(!["IP ", "ADDRESS", "MARK", "MASQ"].iter().any(|word| line.contains(word)), "{line}");
            }
            assert!(text.contains(&format!("table {} podway {{", family.word())));
        }
    }

    #[test]
    fn another_mark_or_choice_of_ports_is_another_generation() {
        let makes = [(0x4000, Ports::Random), (0x8000, Ports::Random), (0x4000, Ports::Kept)];
        let makes: BTreeSet<u32> = makes.map(|(mark, ports)| generation(&network(mark, ports))).into();
        assert_eq!(makes.len(), 3);
    }

    #[test]
    fn the_chains_of_a_text_are_counted() {
        let text = network(DEFAULT_MARK, Ports::Random);
        let chains = chains(&text);
        assert_eq!(chains["postrouting"], Shape { base: true, rules: 3 });
        assert_eq!(chains["postrouting-4"], Shape { base: false, rules: 5 });
        assert_eq!(chains.len(), 3);
    }
}
