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
    /// The text that makes this chain and, if it marks, the plain one it ends in. Making a chain that exists is no
    /// error, and its rules are replaced.
    pub(crate) fn text(self, family: Family, mark: u32) -> String {
        let ip = family.word();
        let table = format!("{ip} {SERVICES}");
        let count = self.count;
        let marking = match self.masquerade {
            Masquerade::Never => {
                return format!(
                    "add chain {table} {self}\nflush chain {table} {self}\n\
                     add rule {table} {self} dnat {ip} to {ip} daddr . meta l4proto . th dport . \
                     numgen random mod {count} map @endpoints\n"
                );
            }
            Masquerade::UnlessPod => {
                format!("{ip} saddr != @pod-networks meta mark set meta mark or {mark:#x}")
            }
            Masquerade::Always => format!("meta mark set meta mark or {mark:#x}"),
        };
        let plain = Self { masquerade: Masquerade::Never, count };
        format!(
            "{}add chain {table} {self}\nflush chain {table} {self}\nadd rule {table} {self} {marking}\n\
             add rule {table} {self} goto {plain}\n",
            plain.text(family, mark)
        )
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
        fn a_foreign_name_is_not(name in "[a-z-]{0,12}") {
            prop_assert!(name.parse::<Chooser>().is_err());
        }
    }
}
