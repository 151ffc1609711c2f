//! The FORWARD chain of iptables-legacy, which lives beside nftables and can only be looked at. Pure.

use std::collections::BTreeSet;

use super::ForwardProblem;
use super::chain::{Direction, Pass};
use crate::schema::Family;

/// What stands in the way of these packets, given what `iptables-legacy -S FORWARD` prints; nothing printed means that
/// the program is not there.
pub(super) fn problem(family: Family, listing: &str, passes: &BTreeSet<Pass>) -> Option<ForwardProblem> {
    let program = family.iptables_legacy();
    let certainty = match listing.trim() {
        "" => "may drop",
        listing if listing.lines().any(drops) => "drops",
        _ => return None,
    };
    let allowed: BTreeSet<Pass> =
        listing.lines().take_while(|line| !is_last_word(line)).filter_map(pass).collect();
    let missing = passes.difference(&allowed).filter(|it| it.family() == family);
    let commands: Vec<String> =
        missing.map(|it| format!("{program} -I FORWARD {} -j ACCEPT", option(it))).collect();
    let remedy = commands.join("; ");
    (!remedy.is_empty()).then_some(ForwardProblem::Legacy { program, certainty, remedy })
}

fn drops(line: &str) -> bool {
    line.trim() == "-P FORWARD DROP" || is_last_word(line)
}

fn is_last_word(line: &str) -> bool {
    let target = line.trim().strip_prefix("-A FORWARD -j ");
    target.is_some_and(|it| it == "DROP" || it.starts_with("REJECT"))
}

fn option(pass: &Pass) -> String {
    match pass.direction {
        Direction::From => format!("-s {}", pass.network),
        Direction::To => format!("-d {}", pass.network),
    }
}

/// Reads `-A FORWARD -s 10.77.0.0/16 -m comment --comment "any" -j ACCEPT`.
fn pass(line: &str) -> Option<Pass> {
    let (option, rest) = line.trim().strip_prefix("-A FORWARD ")?.split_once(' ')?;
    let direction = match option {
        "-s" => Direction::From,
        "-d" => Direction::To,
        _ => return None,
    };
    let (network, rest) = rest.split_once(' ')?;
    let plain = rest == "-j ACCEPT"
        || rest.strip_prefix("-m comment --comment ").is_some_and(|it| commented(it) == Some("-j ACCEPT"));
    plain.then_some(Pass { direction, network: network.parse().ok()? })
}

/// What follows a comment, quoted or not.
fn commented(text: &str) -> Option<&str> {
    let (_, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted.split_once("\" ")?,
        None => text.split_once(' ')?,
    };
    Some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_open_chain_is_no_problem() {
        assert_eq!(of("-P FORWARD ACCEPT\n-A FORWARD -i docker0 -j DROP\n"), None);
        let allowed = "-P FORWARD DROP\n-A FORWARD -s 10.77.0.0/16 -j ACCEPT\n\
                       -A FORWARD -d 10.77.0.0/16 -m comment --comment \"our pods\" -j ACCEPT\n";
        assert_eq!(of(allowed), None);
    }

    #[test]
    fn the_rules_that_are_missing_are_named() {
        let half = "-P FORWARD DROP\n-A FORWARD -s 10.77.0.0/16 -j ACCEPT\n";
        let told = of(half).unwrap().to_string();
        assert!(
            told.ends_with("allow them there: iptables-legacy -I FORWARD -d 10.77.0.0/16 -j ACCEPT"),
            "{told}"
        );
        assert!(told.contains("iptables-legacy drops pods' packets"), "{told}");
    }

    #[test]
    fn an_accept_behind_a_reject_or_on_a_condition_does_not_count() {
        let late = "-P FORWARD ACCEPT\n-A FORWARD -s 10.77.0.0/16 -i eth0 -j ACCEPT\n\
                    -A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -d 10.77.0.0/16 -j ACCEPT\n";
        let told = of(late).unwrap().to_string();
        assert!(told.contains("-s 10.77.0.0/16 -j") && told.contains("-d 10.77.0.0/16 -j"), "{told}");
    }

    #[test]
    fn a_chain_that_cannot_be_looked_at_may_drop() {
        assert!(of("").unwrap().to_string().contains("may drop"));
    }

    proptest! {
        #[test]
        fn whatever_it_prints_is_read(listing in "(-[AP] FORWARD [-sdj\" a-zA-Z0-9./]{0,30}\n){0,4}") {
            of(&listing);
        }
    }

    fn of(listing: &str) -> Option<ForwardProblem> {
        problem(Family::Ip, listing, &Pass::all(&["10.77.0.0/16".parse().unwrap()]))
    }
}
