//! The chains that exist once a number of endpoints, made when that number first occurs.
//!
//! `numgen … mod N` wants a constant N, hence a chain for each N; not one for each Service.

use std::fmt;
use std::str::FromStr;

use podway_proxy::Masquerade;

use crate::schema::{Family, SERVICES};

/// Chooses one of `count` slots, after marking the connections that are to be masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chooser {
    pub(crate) masquerade: Masquerade,
    pub(crate) count: u16,
}

impl Chooser {
    /// One of each kind, by whose text the making of these chains can be told from another version's.
    pub(crate) fn samples() -> [Self; 3] {
        [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always]
            .map(|masquerade| Self { masquerade, count: 2 })
    }

    /// The text that makes this chain and, if it marks, the plain one it ends in. Making a chain that exists is no
    /// error, and its rules are replaced.
    pub(crate) fn text(self, family: Family, mark: u32) -> String {
        let (ip, count) = (family.word(), self.count);
        let rules = match self.masquerade {
            Masquerade::Never => ["tcp", "udp", "sctp"].map(|protocol| {
                format!("dnat {ip} to {ip} daddr . {protocol} dport . numgen random mod {count} map @{protocol}-endpoints")
            }).to_vec(),
            Masquerade::UnlessPod => {
                let mark = format!("{ip} saddr != @pod-networks meta mark set meta mark or {mark:#x}");
                vec![mark, format!("goto {}", self.plain())]
            }
            Masquerade::Always => {
                vec![format!("meta mark set meta mark or {mark:#x}"), format!("goto {}", self.plain())]
            }
        };
        let chain = format!("{ip} {SERVICES} {self}");
        let first = match self.masquerade {
            Masquerade::Never => String::new(),
            _ => self.plain().text(family, mark),
        };
        let rules: String = rules.iter().map(|rule| format!("add rule {chain} {rule}\n")).collect();
        format!("{first}add chain {chain}\nflush chain {chain}\n{rules}")
    }

    /// The number of rules in its chain.
    pub(crate) fn rule_count(self) -> usize {
        match self.masquerade {
            Masquerade::Never => 3,
            Masquerade::UnlessPod | Masquerade::Always => 2,
        }
    }

    fn plain(self) -> Self {
        Self { masquerade: Masquerade::Never, ..self }
    }
}

impl fmt::Display for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.masquerade {
            Masquerade::Never => "pick",
            Masquerade::UnlessPod => "unless-pod",
            Masquerade::Always => "always",
        };
        write!(f, "{kind}-{}", self.count)
    }
}

impl FromStr for Chooser {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let (kind, count) = name.rsplit_once('-').ok_or(())?;
        let masquerade = match kind {
            "pick" => Masquerade::Never,
            "unless-pod" => Masquerade::UnlessPod,
            "always" => Masquerade::Always,
            _ => return Err(()),
        };
        Ok(Self { masquerade, count: count.parse().map_err(drop)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_read_back(kind in 0usize..3, count: u16) {
            let masquerade = [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always][kind];
            let chooser = Chooser { masquerade, count };
            prop_assert_eq!(chooser.to_string().parse(), Ok(chooser));
        }

        #[test]
        fn its_rules_are_counted(kind in 0usize..3) {
            let chooser = Chooser::samples()[kind];
            let text = chooser.text(Family::Ip, 1);
            let own = format!("add rule ip podway {chooser} ");
            prop_assert_eq!(text.matches(&own).count(), chooser.rule_count());
        }

        #[test]
        fn a_foreign_name_is_not(name in "[a-z-]{0,12}") {
            prop_assert!(name.parse::<Chooser>().is_err());
        }
    }
}
