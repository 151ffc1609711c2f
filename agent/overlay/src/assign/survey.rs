//! All claims and all Nodes at one time: which subnets are in use, and which can be had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Claim, NodeSubnets};
use crate::range::Range;

/// What the lists showed, claims first and Nodes thereafter: a claim whose Node is missing is that of a deleted one.
pub(super) struct Survey<'a> {
    own: &'a str,
    claims: &'a [Claim],
    nodes: BTreeMap<&'a str, &'a NodeSubnets>,
}

/// What is in the way of a subnet.
pub(super) enum Obstacle {
    /// Another Node has an overlapping subnet.
    Node(Arc<str>),
    /// Another Node claims one and may yet get it.
    Claim,
}

/// How a subnet can be had.
#[derive(Debug, PartialEq)]
pub(super) enum Vacancy<'a> {
    /// By creating its claim.
    Free(IpNet),
    /// By deleting a claim that nobody can use any more, first.
    Stale(&'a Claim),
}

impl<'a> Survey<'a> {
    /// `own` is the uid of this machine's Node.
    pub(super) fn new(own: &'a str, claims: &'a [Claim], nodes: &'a [NodeSubnets]) -> Self {
        Self { own, claims, nodes: nodes.iter().map(|node| (&*node.uid, node)).collect() }
    }

    /// What keeps the own Node from a subnet that it claims, or was given.
    pub(super) fn obstacle(&self, subnet: &IpNet) -> Option<Obstacle> {
        let has = |node: &&NodeSubnets| node.pod_cidrs.iter().any(|theirs| overlap(theirs, subnet));
        if let Some(node) = self.others().find(has) {
            return Some(Obstacle::Node(node.name.clone()));
        }
        let mut claims = self.claims.iter().filter(|claim| *claim.node_uid != *self.own);
        claims.any(|claim| overlap(&claim.subnet, subnet) && !self.is_stale(claim)).then_some(Obstacle::Claim)
    }

    /// The claim for exactly this subnet.
    pub(super) fn claim(&self, subnet: &IpNet) -> Option<&'a Claim> {
        self.claims.iter().find(|claim| claim.subnet == *subnet)
    }

    /// Whether nobody will ever use the claim: its Node is deleted, or has subnets, which never change, and this is
    /// none of them.
    pub(super) fn is_stale(&self, claim: &Claim) -> bool {
        match self.nodes.get(&*claim.node_uid) {
            None => *claim.node_uid != *self.own,
            Some(node) => !node.pod_cidrs.is_empty() && !node.pod_cidrs.contains(&claim.subnet),
        }
    }

    /// A subnet of `range` that can be had, looking upwards from this place and round: a free one, else one with a
    /// stale claim.
    pub(super) fn vacancy(&self, range: &Range, from: u128) -> Option<Vacancy<'a>> {
        let (stale, live): (Vec<&Claim>, Vec<&Claim>) =
            self.claims.iter().partition(|claim| self.is_stale(claim));
        let cidrs = self.others().flat_map(|node| &node.pod_cidrs);
        let mut in_use: Vec<IpNet> = live.iter().map(|claim| claim.subnet).chain(cidrs.copied()).collect();
        let used = Occupied::new(&in_use);
        in_use.extend(stale.iter().map(|claim| claim.subnet));
        if let Some(subnet) = Occupied::new(&in_use).vacancy(range, from) {
            return Some(Vacancy::Free(subnet));
        }
        let subnet = used.vacancy(range, from)?;
        Some(self.claim(&subnet).map_or(Vacancy::Free(subnet), Vacancy::Stale))
    }

    /// How many subnets of the range others hold or claim, each by its own size.
    pub(super) fn held(&self, range: &Range) -> usize {
        let live = self.claims.iter().filter(|claim| !self.is_stale(claim)).map(|claim| claim.subnet);
        let cidrs = self.others().flat_map(|node| node.pod_cidrs.iter().copied());
        live.chain(cidrs).filter(|subnet| overlap(&range.network(), subnet)).collect::<BTreeSet<_>>().len()
    }

    fn others(&self) -> impl Iterator<Item = &'a NodeSubnets> {
        self.nodes.values().copied().filter(|node| *node.uid != *self.own)
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Addresses in use: the last one of each stretch, by the first one.
struct Occupied(BTreeMap<IpAddr, IpAddr>);

impl Occupied {
    fn new(subnets: &[IpNet]) -> Self {
        let stretches = IpNet::aggregate(&subnets.to_vec()).into_iter();
        Self(stretches.map(|subnet| (subnet.network(), subnet.broadcast())).collect())
    }

    fn vacancy(&self, range: &Range, from: u128) -> Option<IpNet> {
        self.between(range, from, range.count()).or_else(|| self.between(range, 0, from))
    }

    fn between(&self, range: &Range, mut place: u128, end: u128) -> Option<IpNet> {
        while place < end {
            let subnet = range.nth(place)?;
            let below = self.0.range(..=subnet.broadcast()).next_back();
            match below.filter(|(_, last)| **last >= subnet.network()) {
                None => return Some(subnet),
                Some((_, last)) => place = range.place(*last).map_or(end, |occupied| occupied + 1),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn claim(subnet: &str, node_uid: &str) -> Claim {
        let (uid, version, machine) = (format!("{subnet} {node_uid}").into(), "1".into(), "".into());
        Claim { subnet: net(subnet), uid, version, node_uid: node_uid.into(), machine }
    }

    fn node(uid: &str, cidrs: &[&str]) -> NodeSubnets {
        let pod_cidrs = cidrs.iter().map(|cidr| net(cidr)).collect();
        NodeSubnets { name: uid.into(), uid: uid.into(), pod_cidrs, ..NodeSubnets::default() }
    }

    #[test]
    fn n2_a_nearly_full_range_gives_its_last_subnet_whatever_the_place_that_is_looked_from() {
        let range = Range::new(net("10.0.0.0/8"), Some(24), None, None).unwrap();
        let holes = [net("10.200.7.0/24")];
        let claims: Vec<Claim> = range
            .subnets()
            .filter(|subnet| !holes.contains(subnet))
            .map(|subnet| claim(&subnet.to_string(), "x"))
            .collect();
        let nodes = [node("x", &[]), node("own", &[])];
        let survey = Survey::new("own", &claims, &nodes);
        for from in [0, 51_206, 51_207, 65_534] {
            assert_eq!(survey.vacancy(&range, from), Some(Vacancy::Free(holes[0])), "{from}");
        }
    }

    #[test]
    fn n2_a_huge_foreign_subnet_is_passed_in_one_step() {
        let range = Range::new(net("fd00::/8"), None, None, None).unwrap();
        let nodes = [node("x", &["fd00::/9"])];
        let survey = Survey::new("own", &[], &nodes);
        assert_eq!(survey.vacancy(&range, 0), Some(Vacancy::Free(net("fd80::/64"))));
        let whole = [node("x", &["fd00::/8"])];
        assert_eq!(Survey::new("own", &[], &whole).vacancy(&range, 7), None);
    }

    #[test]
    fn n2_claims_of_deleted_nodes_and_of_nodes_with_other_subnets_are_used_last() {
        let range = Range::new(net("10.77.0.0/22"), Some(24), None, None).unwrap();
        let claims = [claim("10.77.1.0/24", "gone"), claim("10.77.2.0/24", "x"), claim("10.77.3.0/24", "y")];
        let nodes = [node("x", &["10.99.0.0/24"]), node("y", &[]), node("own", &[])];
        let survey = Survey::new("own", &claims, &nodes);
        assert_eq!(survey.vacancy(&range, 0), Some(Vacancy::Stale(&claims[0])));
        assert_eq!(survey.vacancy(&range, 1), Some(Vacancy::Stale(&claims[1])));
        assert_eq!(survey.vacancy(&range, 2), Some(Vacancy::Stale(&claims[0])), "y may yet get its own");
        assert_eq!(
            Survey::new("own", &claims[1..], &nodes).vacancy(&range, 1),
            Some(Vacancy::Free(net("10.77.1.0/24")))
        );
    }

    #[test]
    fn n2_subnets_of_another_size_are_in_the_way_by_claim_and_by_node() {
        let claims = [claim("10.77.2.0/25", "x"), claim("10.77.3.0/25", "gone")];
        let nodes = [node("x", &[]), node("y", &["10.77.4.0/23"]), node("own", &["10.77.9.0/24"])];
        let survey = Survey::new("own", &claims, &nodes);
        assert!(matches!(survey.obstacle(&net("10.77.2.0/24")), Some(Obstacle::Claim)));
        assert!(matches!(survey.obstacle(&net("10.77.5.0/24")), Some(Obstacle::Node(name)) if *name == *"y"));
        assert!(survey.obstacle(&net("10.77.3.0/24")).is_none(), "nobody uses that claim any more");
        assert!(survey.obstacle(&net("10.77.9.0/24")).is_none(), "its own");
    }
}
