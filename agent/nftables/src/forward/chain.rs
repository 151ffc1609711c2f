//! One forward chain of somebody else: what it does, and what must change in it. Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::ChainName;
use crate::listing::ListedRule;

/// By this comment our rules are known in a chain of others. iptables shows it as its own kind of comment.
const COMMENT: &str = "podway";

/// Which way a pod's packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// It comes from the pod.
    From,
    /// It goes to the pod.
    To,
}

/// Packets that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pass {
    /// Which address counts.
    pub(super) direction: Direction,
    /// Where it must be.
    pub(super) network: IpNet,
}

impl Pass {
    /// Both directions of each network.
    pub(super) fn all(networks: &[IpNet]) -> BTreeSet<Self> {
        let networks = IpNet::aggregate(&networks.to_vec());
        let both = |network| [Direction::From, Direction::To].map(|direction| Self { direction, network });
        networks.into_iter().flat_map(both).collect()
    }

    pub(super) fn family(&self) -> &'static str {
        if self.network.addr().is_ipv6() { "ip6" } else { "ip" }
    }

    /// In nft's words: `ip saddr 10.77.0.0/16`.
    pub(super) fn condition(&self) -> String {
        let field = match self.direction {
            Direction::From => "saddr",
            Direction::To => "daddr",
        };
        format!("{} {field} {}", self.family(), self.network)
    }
}

/// What a rule does with packets, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sort {
    /// Accepts these, all of them.
    Accepts(Pass),
    /// Drops or rejects whatever comes.
    Drops,
    /// Sends whatever comes to another chain.
    Leads(String),
    /// Something else, or something on a condition.
    Other,
}

impl Sort {
    pub(super) fn leads_to(self) -> Option<String> {
        match self {
            Self::Leads(chain) => Some(chain),
            _ => None,
        }
    }
}

/// Reads a rule of others. What is not understood is a condition.
pub(super) fn sort(rule: &ListedRule) -> Sort {
    let mut decisive = rule.expr.iter().filter(|statement| !is_noise(statement));
    match (decisive.next(), decisive.next(), decisive.next()) {
        (Some(verdict), None, _) => verdict_sort(verdict),
        (Some(condition), Some(verdict), None) if verdict.get("accept").is_some() => {
            read_pass(condition).map_or(Sort::Other, Sort::Accepts)
        }
        _ => Sort::Other,
    }
}

/// Statements that neither decide nor restrict.
fn is_noise(statement: &Value) -> bool {
    let comment = || statement["xt"]["type"] == "match" && statement["xt"]["name"] == "comment";
    statement.get("counter").is_some() || statement.get("log").is_some() || comment()
}

fn verdict_sort(verdict: &Value) -> Sort {
    let xt_target = (verdict["xt"]["type"] == "target").then(|| verdict["xt"]["name"].as_str()).flatten();
    if verdict.get("drop").is_some() || verdict.get("reject").is_some() || xt_target == Some("REJECT") {
        return Sort::Drops;
    }
    let target = verdict.get("jump").or(verdict.get("goto")).and_then(|it| it["target"].as_str());
    target.map_or(Sort::Other, |chain| Sort::Leads(chain.to_owned()))
}

fn read_pass(condition: &Value) -> Option<Pass> {
    let condition = condition.get("match").filter(|it| it["op"] == "==")?;
    let payload = condition["left"].get("payload")?;
    let direction = match payload["field"].as_str()? {
        "saddr" => Direction::From,
        "daddr" => Direction::To,
        _ => return None,
    };
    let right = &condition["right"];
    let network = match right.as_str() {
        Some(address) => IpNet::from(address.parse::<std::net::IpAddr>().ok()?),
        None => {
            let (address, length) = (right["prefix"]["addr"].as_str()?, right["prefix"]["len"].as_u64()?);
            IpNet::new(address.parse().ok()?, u8::try_from(length).ok()?).ok()?
        }
    };
    let pass = Pass { direction, network };
    (payload["protocol"] == pass.family()).then_some(pass)
}

/// What must change in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    insert: BTreeSet<Pass>,
    delete: Vec<u64>,
}

/// Plans a chain with these rules so that what is `wanted` passes before anything is dropped unconditionally. Rules of
/// others that let it pass will do; rules of ours that are not wanted, come twice or come too late go.
pub(super) fn plan<'a>(rules: impl Iterator<Item = &'a ListedRule>, wanted: &BTreeSet<Pass>) -> Plan {
    let mut plan = Plan { insert: wanted.clone(), delete: Vec::new() };
    let mut dropped = false;
    for rule in rules {
        let sort = sort(rule);
        let of_use = match &sort {
            Sort::Accepts(pass) => !dropped && plan.insert.remove(pass),
            _ => false,
        };
        if !of_use && rule.comment.as_deref() == Some(COMMENT) {
            plan.delete.push(rule.handle);
        }
        dropped |= sort == Sort::Drops;
    }
    plan
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.insert.len() + self.delete.len()
    }

    /// As nft takes it.
    pub(super) fn render(&self, chain: &ChainName) -> String {
        let delete = |handle: &u64| format!("delete rule {chain} handle {handle}\n");
        let insert = |pass: &Pass| {
            format!("insert rule {chain} {} counter accept comment \"{COMMENT}\"\n", pass.condition())
        };
        let deletions = self.delete.iter().map(delete);
        deletions.chain(self.insert.iter().map(insert)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_firewalls_end_with_is_a_drop() {
        let log = json!({"log": {"prefix": "forward"}});
        let counter = json!({"counter": {"packets": 1, "bytes": 2}});
        let of_iptables = json!({"xt": {"type": "target", "name": "REJECT"}});
        for verdict in [json!({"drop": null}), json!({"reject": {"type": "icmpx"}}), of_iptables] {
            assert_eq!(sort(&rule(1, &[counter.clone(), log.clone(), verdict])), Sort::Drops);
        }
    }

    #[test]
    fn a_drop_on_a_condition_is_none() {
        let invalid = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}});
        let unknown = json!({"xt": null});
        for condition in [invalid, unknown, json!("ip saddr 1.2.3.4"), json!(null)] {
            assert_eq!(sort(&rule(1, &[condition, json!({"drop": null})])), Sort::Other);
        }
    }

    #[test]
    fn an_unconditional_jump_is_followed() {
        let jump = json!({"jump": {"target": "LOGDROP"}});
        assert_eq!(sort(&rule(1, &[jump])).leads_to().as_deref(), Some("LOGDROP"));
    }

    #[test]
    fn rules_are_put_where_there_are_none_and_left_where_they_are() {
        let wanted = Pass::all(&["10.77.0.0/16".parse().unwrap()]);
        let first = plan([].iter(), &wanted);
        assert_eq!(first.len(), 2);
        let held = [ours(1, "saddr"), ours(2, "daddr"), rule(3, &[json!({"drop": null})])];
        assert!(plan(held.iter(), &wanted).is_empty());
    }

    #[test]
    fn a_rule_that_comes_too_late_or_twice_or_for_nothing_goes() {
        let wanted = Pass::all(&["10.77.0.0/16".parse().unwrap()]);
        let drop = rule(1, &[json!({"drop": null})]);
        let late = plan([drop, ours(2, "saddr"), ours(3, "daddr")].iter(), &wanted);
        assert_eq!((late.delete, late.insert.len()), (vec![2, 3], 2));
        let twice = plan([ours(1, "saddr"), ours(2, "saddr"), ours(3, "daddr")].iter(), &wanted);
        assert_eq!((twice.delete, twice.insert.len()), (vec![2], 0));
        let nothing = plan([ours(1, "saddr")].iter(), &BTreeSet::new());
        assert_eq!(nothing.delete, [1]);
    }

    #[test]
    fn a_rule_of_others_that_does_the_same_will_do_and_is_never_deleted() {
        let wanted = Pass::all(&["10.77.0.0/16".parse().unwrap()]);
        let mut theirs = ours(7, "saddr");
        theirs.comment = None;
        assert_eq!(plan([theirs.clone()].iter(), &wanted).insert.len(), 1);
        assert!(plan([theirs].iter(), &BTreeSet::new()).is_empty());
    }

    fn ours(handle: u64, field: &str) -> ListedRule {
        let left = json!({"payload": {"protocol": "ip", "field": field}});
        let right = json!({"prefix": {"addr": "10.77.0.0", "len": 16}});
        let condition = json!({"match": {"op": "==", "left": left, "right": right}});
        let counter = json!({"counter": {"packets": 0, "bytes": 0}});
        let expr = vec![condition, counter, json!({"accept": null})];
        ListedRule { comment: Some(COMMENT.to_owned()), ..rule(handle, &expr) }
    }

    fn rule(handle: u64, expr: &[Value]) -> ListedRule {
        ListedRule { chain: "FORWARD".to_owned(), handle, comment: None, expr: expr.to_vec() }
    }
}
