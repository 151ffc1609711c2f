//! One forward chain of somebody else: what it does, and what must change in it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;

use super::ChainName;
use crate::listing::ListedRule;

/// By this comment our rules are known in a chain of others. iptables shows it as its own kind of comment.
const COMMENT: &str = "podway";

/// So deep jumps may go: NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h.
const JUMPS: usize = 16;

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
    /// Accepts on a condition, and denies nothing.
    Allows,
    /// Accepts whatever comes.
    AcceptsAll,
    /// Drops or rejects whatever comes.
    Drops,
    /// Sends whatever comes to another chain, from where it may come back.
    Calls(String),
    /// Sends whatever comes to another chain for good.
    Leaves(String),
    /// Ends the chain for whatever comes.
    Returns,
    /// Logs or counts whatever comes, now and then or always.
    Notes,
    /// Something else, or something on a condition.
    Other,
}

impl Sort {
    pub(super) fn leads_to(&self) -> Option<&str> {
        match self {
            Self::Calls(chain) | Self::Leaves(chain) => Some(chain),
            _ => None,
        }
    }

    /// Whether it may deny some packet, there or where it is sent.
    fn may_deny(&self) -> bool {
        !matches!(self, Self::Accepts(_) | Self::Allows | Self::Notes)
    }
}

/// Reads a rule of others. What is not understood is a condition.
pub(super) fn sort(rule: &ListedRule) -> Sort {
    let decisive: Vec<&Value> = rule.expr.iter().filter(|statement| !is_noise(statement)).collect();
    match decisive[..] {
        [] => Sort::Notes,
        [limit] if limit.get("limit").is_some() => Sort::Notes,
        [verdict] => verdict_sort(verdict),
        [condition, verdict] if verdict.get("accept").is_some() => {
            read_pass(condition).map_or(Sort::Allows, Sort::Accepts)
        }
        [.., verdict] if verdict.get("accept").is_some() => Sort::Allows,
        _ => Sort::Other,
    }
}

/// Statements that neither decide nor restrict.
fn is_noise(statement: &Value) -> bool {
    let of_xt = match (statement["xt"]["type"].as_str(), statement["xt"]["name"].as_str()) {
        (Some("match"), Some(name)) => name == "comment",
        (Some("target"), Some(name)) => name == "LOG" || name == "NFLOG",
        _ => false,
    };
    of_xt || statement.get("counter").is_some() || statement.get("log").is_some()
}

fn verdict_sort(verdict: &Value) -> Sort {
    let is = |word| verdict.get(word).is_some();
    let xt_target = (verdict["xt"]["type"] == "target").then(|| verdict["xt"]["name"].as_str()).flatten();
    let target = |word| Some(verdict.get(word)?["target"].as_str()?.to_owned());
    if is("drop") || is("reject") || xt_target == Some("REJECT") {
        return Sort::Drops;
    }
    match (target("jump"), target("goto")) {
        (Some(chain), _) => Sort::Calls(chain),
        (_, Some(chain)) => Sort::Leaves(chain),
        _ if is("accept") => Sort::AcceptsAll,
        _ if is("return") => Sort::Returns,
        _ => Sort::Other,
    }
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

/// The place in a chain where a packet is dropped that no condition before it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Gate {
    /// There is none.
    #[default]
    Open,
    /// At the rule of this handle.
    Before(u64),
    /// Behind all rules.
    End,
}

/// Finds the gate of a chain with these rules and this policy, given what the rules of the chains are that it sends
/// whatever comes to. What only logs what will be dropped stands behind the gate.
pub(super) fn gate<'a>(
    rules: impl Iterator<Item = &'a ListedRule>,
    policy: Option<&str>,
    chains: &BTreeMap<String, Vec<Sort>>,
) -> Gate {
    let drops = policy == Some("drop");
    let mut notes = None;
    for rule in rules {
        let sort = sort(rule);
        match (fate(&sort, chains, 0), drops) {
            (Some(Fate::Dropped), _) | (Some(Fate::Returned), true) => {
                return Gate::Before(notes.unwrap_or(rule.handle));
            }
            (Some(Fate::Accepted | Fate::Returned), _) => return Gate::Open,
            (None, _) if sort == Sort::Notes => notes = notes.or(Some(rule.handle)),
            (None, _) => notes = None,
        }
    }
    match notes {
        _ if !drops => Gate::Open,
        Some(handle) => Gate::Before(handle),
        None => Gate::End,
    }
}

/// What becomes of a packet that no condition applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// It is up to the chain that led here, or to the policy.
    Returned,
}

/// What such a rule decides; `None` if the next one does.
fn fate(sort: &Sort, chains: &BTreeMap<String, Vec<Sort>>, depth: usize) -> Option<Fate> {
    let within = |chain: &String| {
        let rules = chains.get(chain).filter(|_| depth < JUMPS).map(Vec::as_slice).unwrap_or_default();
        rules.iter().find_map(|it| fate(it, chains, depth + 1)).unwrap_or(Fate::Returned)
    };
    match sort {
        Sort::Drops => Some(Fate::Dropped),
        Sort::AcceptsAll => Some(Fate::Accepted),
        Sort::Returns => Some(Fate::Returned),
        Sort::Leaves(chain) => Some(within(chain)),
        Sort::Calls(chain) => Some(within(chain)).filter(|fate| *fate != Fate::Returned),
        Sort::Accepts(_) | Sort::Allows | Sort::Notes | Sort::Other => None,
    }
}

/// What must change in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    gate: Gate,
    add: BTreeSet<Pass>,
    delete: Vec<u64>,
}

/// Plans a chain with these rules so that what is `wanted` passes its gate, and only the gate: ours stand behind every
/// rule of others that may deny something. Rules of others that let it pass will do; rules of ours that are not wanted,
/// come twice or stand elsewhere go.
pub(super) fn plan<'a>(
    rules: impl Iterator<Item = &'a ListedRule>,
    gate: Gate,
    wanted: &BTreeSet<Pass>,
) -> Plan {
    let rules: Vec<(&ListedRule, Sort)> = rules.map(|rule| (rule, sort(rule))).collect();
    let at_gate = rules.iter().position(|(rule, _)| gate == Gate::Before(rule.handle));
    let (ahead, _) = rules.split_at(at_gate.unwrap_or(rules.len()));
    let ours_from = ahead.iter().rposition(|(_, sort)| sort.may_deny()).map_or(0, |at| at + 1);
    let mut plan = Plan { gate, add: wanted.clone(), delete: Vec::new() };
    for (at, (rule, sort)) in rules.iter().enumerate() {
        let is_ours = rule.comment.as_deref() == Some(COMMENT);
        let holds = at < ahead.len() && (at >= ours_from || !is_ours);
        let of_use = match sort {
            Sort::Accepts(pass) => holds && plan.add.remove(pass),
            _ => false,
        };
        if is_ours && !of_use {
            plan.delete.push(rule.handle);
        }
    }
    plan
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.add.len() + self.delete.len()
    }

    /// Whether it names rules by their handles.
    pub(super) fn names_rules(&self) -> bool {
        !self.delete.is_empty() || matches!(self.gate, Gate::Before(_))
    }

    /// As nft takes it.
    pub(super) fn render(&self, chain: &ChainName) -> String {
        let delete = |handle: &u64| format!("delete rule {chain} handle {handle}\n");
        let add =
            |pass: &Pass| format!("{} counter accept comment \"{COMMENT}\"\n", self.gate.rule(chain, pass));
        let deletions = self.delete.iter().map(delete);
        deletions.chain(self.add.iter().map(add)).collect()
    }
}

impl Gate {
    /// The command that puts a rule for these packets there, up to its verdict.
    pub(super) fn rule(self, chain: &ChainName, pass: &Pass) -> String {
        let condition = pass.condition();
        match self {
            Self::Before(handle) => format!("insert rule {chain} handle {handle} {condition}"),
            Self::Open | Self::End => format!("add rule {chain} {condition}"),
        }
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
    fn only_an_accept_on_a_condition_and_a_note_deny_nothing() {
        let limit = json!({"limit": {"rate": 5, "per": "minute"}});
        let log = json!({"xt": {"type": "target", "name": "LOG"}});
        assert_eq!(sort(&rule(1, &[limit, log.clone()])), Sort::Notes);
        let interface =
            json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}});
        assert_eq!(sort(&rule(1, &[interface.clone(), json!({"accept": null})])), Sort::Allows);
        for harmful in [vec![interface, log], vec![jump("DOCKER-USER")], vec![json!({"return": null})]] {
            assert!(sort(&rule(1, &harmful)).may_deny(), "{harmful:?}");
        }
    }

    #[test]
    fn the_gate_is_where_a_packet_is_dropped_that_no_condition_applies_to() {
        let (drop, accept) = (rule(2, &[json!({"drop": null})]), rule(2, &[json!({"accept": null})]));
        assert_eq!(gate_of(&[denial(1), drop.clone()], "accept"), Gate::Before(2));
        assert_eq!(gate_of(&[denial(1), drop], "drop"), Gate::Before(2));
        assert_eq!(gate_of(&[denial(1)], "drop"), Gate::End);
        assert_eq!(gate_of(&[denial(1)], "accept"), Gate::Open);
        assert_eq!(gate_of(&[denial(1), accept], "drop"), Gate::Open);
        let back = rule(2, &[json!({"return": null})]);
        assert_eq!(gate_of(&[denial(1), back.clone()], "drop"), Gate::Before(2));
        assert_eq!(gate_of(&[denial(1), back], "accept"), Gate::Open);
    }

    #[test]
    fn the_gate_is_before_a_jump_to_where_everything_is_dropped_and_behind_any_other() {
        for (target, handle) in
            [("LOGDROP", Some(1)), ("DOCKER-USER", None), ("allow-all", None), ("absent", None)]
        {
            let expected = match (handle, target) {
                (Some(handle), _) => Gate::Before(handle),
                (None, "allow-all") => Gate::Open,
                (None, _) => Gate::End,
            };
            assert_eq!(gate_of(&[rule(1, &[jump(target)])], "drop"), expected, "{target}");
        }
        let goto = rule(1, &[json!({"goto": {"target": "DOCKER-USER"}})]);
        assert_eq!(
            gate_of(std::slice::from_ref(&goto), "drop"),
            Gate::Before(1),
            "nothing behind it is reached"
        );
        assert_eq!(gate_of(&[goto], "accept"), Gate::Open);
    }

    #[test]
    fn what_logs_all_that_will_be_dropped_does_not_log_what_passes() {
        let log = rule(2, &[json!({"log": {"prefix": "FINAL_REJECT: "}})]);
        let reject = rule(3, &[json!({"reject": {"type": "icmpx"}})]);
        assert_eq!(gate_of(&[denial(1), log.clone(), reject], "accept"), Gate::Before(2));
        assert_eq!(gate_of(&[denial(1), log.clone()], "drop"), Gate::Before(2));
        assert_eq!(gate_of(&[log, denial(3)], "drop"), Gate::End);
    }

    #[test]
    fn rules_are_put_where_there_are_none_and_left_at_the_gate() {
        let wanted = wanted();
        assert_eq!(plan([].iter(), Gate::End, &wanted).len(), 2);
        let held = [denial(4), ours(1, "saddr"), ours(2, "daddr"), rule(3, &[json!({"drop": null})])];
        assert!(plan(held.iter(), Gate::Before(3), &wanted).is_empty());
    }

    #[test]
    fn a_rule_that_comes_too_late_or_twice_or_for_nothing_goes() {
        let wanted = wanted();
        let drop = rule(1, &[json!({"drop": null})]);
        let late = plan([drop, ours(2, "saddr"), ours(3, "daddr")].iter(), Gate::Before(1), &wanted);
        assert_eq!((late.delete, late.add.len()), (vec![2, 3], 2));
        let twice = [ours(1, "saddr"), ours(2, "saddr"), ours(3, "daddr")];
        let twice = plan(twice.iter(), Gate::End, &wanted);
        assert_eq!((twice.delete, twice.add.len()), (vec![2], 0));
        let nothing = plan([ours(1, "saddr")].iter(), Gate::Open, &BTreeSet::new());
        assert_eq!(nothing.delete, [1]);
    }

    #[test]
    fn ours_move_behind_what_may_deny_and_let_what_only_accepts_stand_there() {
        let held = [ours(1, "saddr"), denial(2), ours(3, "daddr")];
        let moved = plan(held.iter(), Gate::End, &wanted());
        assert_eq!((moved.delete, moved.add.len()), (vec![1], 1));
        let accept = rule(
            4,
            &[
                json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "a"}}),
                json!({"accept": null}),
            ],
        );
        let held = [denial(2), ours(1, "saddr"), ours(3, "daddr"), accept];
        assert!(plan(held.iter(), Gate::End, &wanted()).is_empty());
    }

    #[test]
    fn a_rule_of_others_that_does_the_same_will_do_and_is_never_deleted() {
        let wanted = wanted();
        let mut theirs = ours(7, "saddr");
        theirs.comment = None;
        assert_eq!(plan([theirs.clone(), denial(8)].iter(), Gate::End, &wanted).add.len(), 1);
        assert!(plan([theirs].iter(), Gate::Open, &BTreeSet::new()).is_empty());
    }

    fn wanted() -> BTreeSet<Pass> {
        Pass::all(&["10.77.0.0/16".parse().unwrap()])
    }

    fn gate_of(rules: &[ListedRule], policy: &str) -> Gate {
        let chains = [
            ("LOGDROP", vec![Sort::Other, Sort::Calls("deeper".to_owned())]),
            ("deeper", vec![Sort::Drops]),
            ("DOCKER-USER", vec![Sort::Other, Sort::Returns, Sort::Drops]),
            ("allow-all", vec![Sort::AcceptsAll, Sort::Drops]),
        ];
        gate(rules.iter(), Some(policy), &chains.map(|(name, sorts)| (name.to_owned(), sorts)).into())
    }

    fn jump(target: &str) -> Value {
        json!({"jump": {"target": target}})
    }

    fn denial(handle: u64) -> ListedRule {
        let right = json!("10.77.1.5");
        let left = json!({"payload": {"protocol": "ip", "field": "daddr"}});
        rule(handle, &[json!({"match": {"op": "==", "left": left, "right": right}}), json!({"drop": null})])
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
