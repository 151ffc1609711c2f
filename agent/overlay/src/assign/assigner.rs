//! The protocol, one request at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::survey::{Obstacle, Survey, Vacancy};
use super::{
    AssignAnswer, AssignMode, AssignPolicy, AssignRequest, AssignStep, Assignment, Claim, NodeSubnets,
    Unassigned, claim_name,
};
use crate::range::Range;

/// So many subnets are tried at random; then the claims are listed. In a range that is half full this is enough for
/// fifteen nodes of sixteen.
const GUESSES: usize = 4;

/// So many creations may be refused before the caller is told to come again later.
const MOST_CREATIONS: u8 = 64;

/// So often may others change what was read before the caller is told to come again later.
const MOST_ROUNDS: u8 = 8;

/// One attempt to get this node its subnets. It keeps nothing that matters: the next attempt is a new one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Assigner {
    policy: Arc<AssignPolicy>,
    random: u64,
    has_waited: bool,
    rounds: u8,
    creations: u8,
    node: NodeSubnets,
    places: Vec<Place>,
    /// What turned out to be claimed since the claims were listed last.
    refused: BTreeSet<IpNet>,
    state: State,
}

/// A subnet that is to be held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    /// Where it is chosen from; `None` = it stands in `spec.podCIDRs` and cannot be chosen.
    range: Option<Range>,
    /// What it is, once it is chosen.
    subnet: Option<IpNet>,
    hold: Hold,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Hold {
    Nothing,
    /// A claim of this machine from an earlier attempt.
    Found(Claim),
    /// The same, after it got a new version.
    Renewed(Claim),
    Created(Claim),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum State {
    Reading,
    ListingOwn,
    LookingAtOthers,
    Waiting,
    Clearing(Vec<Claim>, Next),
    Securing,
    SurveyingClaims(Purpose),
    SurveyingNodes(Purpose, Vec<Claim>),
    Writing,
    Verifying,
    Finished(Result<Assignment, Unassigned>),
}

/// What follows when claims that are of no use are deleted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Next {
    LookAtOthers,
    Secure,
    Hold,
    Refuse(Unassigned),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Purpose {
    /// All is claimed: is nothing in the way?
    Check,
    /// What can be claimed?
    Choose,
}

impl Assigner {
    /// An attempt that chooses subnets by `seed`, which should be another one on each machine and in each attempt.
    pub fn new(policy: Arc<AssignPolicy>, seed: u64) -> Self {
        Self {
            policy,
            random: seed,
            has_waited: false,
            rounds: 0,
            creations: 0,
            node: NodeSubnets::default(),
            places: Vec::new(),
            refused: BTreeSet::new(),
            state: State::Reading,
        }
    }

    /// What to do now: the same until [`apply`](Self::apply).
    pub fn step(&self) -> AssignStep {
        let node_uid = || self.node.uid.clone();
        AssignStep::Ask(match &self.state {
            State::Reading => AssignRequest::Node,
            State::ListingOwn | State::Verifying => AssignRequest::ClaimsOf(node_uid()),
            State::LookingAtOthers | State::SurveyingNodes(..) => AssignRequest::Nodes,
            State::Waiting => AssignRequest::Grace,
            State::Clearing(claims, _) => match claims.last() {
                Some(claim) => AssignRequest::Delete(claim.clone()),
                None => AssignRequest::Node,
            },
            State::Securing => self.securing().unwrap_or(AssignRequest::Node),
            State::SurveyingClaims(_) => AssignRequest::Claims,
            State::Writing => AssignRequest::Write {
                node_uid: node_uid(),
                pod_cidrs: if self.is_given() { Vec::new() } else { self.subnets() },
                claims: self.held().map(|claim| claim.uid.clone()).collect(),
            },
            State::Finished(result) => return AssignStep::Finished(result.clone()),
        })
    }

    /// Takes the answer to what [`step`](Self::step) asks. One that does not fit the request begins everything anew.
    pub fn apply(&mut self, answer: AssignAnswer) {
        use AssignAnswer as Answer;
        match (std::mem::replace(&mut self.state, State::Reading), answer) {
            (State::Reading, Answer::Node(node)) => self.read(node),
            (State::ListingOwn, Answer::Claims(claims)) => self.found(claims),
            (State::LookingAtOthers, Answer::Nodes(nodes)) => self.looked(&nodes),
            (State::Waiting, Answer::Done) => self.has_waited = true,
            (State::Clearing(claims, next), Answer::Done | Answer::Refused) => self.cleared(claims, next),
            (State::Securing, Answer::Claim(claim)) => self.secured(claim),
            (State::Securing, Answer::Refused) => self.not_secured(),
            (State::SurveyingClaims(purpose), Answer::Claims(claims)) => {
                self.state = State::SurveyingNodes(purpose, claims);
            }
            (State::SurveyingNodes(purpose, claims), Answer::Nodes(nodes)) => {
                self.surveyed(purpose, &claims, &nodes);
            }
            (State::Writing, Answer::Done) => self.state = State::Verifying,
            (State::Verifying, Answer::Claims(claims)) => self.verified(&claims),
            (State::Finished(result), _) => self.state = State::Finished(result),
            _ => self.begin_anew(),
        }
    }

    /// The subnets that stand in the Node's `spec.podCIDRs`, whoever wrote them and whoever claims them; none if it has
    /// none, or was not read yet.
    pub fn given(&self) -> Option<Assignment> {
        self.is_given().then(|| self.assignment(self.node.pod_cidrs.clone()))
    }

    fn assignment(&self, subnets: Vec<IpNet>) -> Assignment {
        Assignment { node_uid: self.node.uid.clone(), subnets, is_new: false, unguarded: None }
    }

    fn is_given(&self) -> bool {
        !self.node.pod_cidrs.is_empty()
    }

    fn read(&mut self, node: Option<NodeSubnets>) {
        let name = self.policy.node.clone();
        let Some(node) = node else { return self.finish(Err(Unassigned::NoNode(name))) };
        self.node = node;
        if self.policy.mode != AssignMode::Never {
            self.state = State::ListingOwn;
            return;
        }
        let result = self.given().ok_or(Unassigned::LeftToOthers(name));
        self.finish(result);
    }

    /// Claims of this Node's uid: own ones are used again. What is left over is deleted if the Node has subnets; before
    /// that, a late write may still make them the Node's.
    fn found(&mut self, mut claims: Vec<Claim>) {
        claims.sort();
        self.places = match self.is_given() {
            true => self.node.pod_cidrs.iter().map(|subnet| Place::given(*subnet)).collect(),
            false => self.policy.ranges.iter().map(|range| Place::within(*range)).collect(),
        };
        let (own, others): (Vec<Claim>, Vec<Claim>) =
            claims.into_iter().partition(|claim| claim.machine == self.policy.machine);
        let mut useless = Vec::new();
        for claim in own {
            match self.places.iter_mut().find(|place| place.takes(&claim.subnet)) {
                Some(place) => {
                    *place = Place { subnet: Some(claim.subnet), hold: Hold::Found(claim), ..*place }
                }
                None if !self.node.pod_cidrs.is_empty() => useless.push(claim),
                None => {}
            }
        }
        let theirs = others.into_iter().find(|claim| self.node.pod_cidrs.contains(&claim.subnet));
        let next = match theirs {
            Some(claim) => Next::Refuse(self.other_machine(claim)),
            None if !self.is_given() && self.policy.mode == AssignMode::Auto => Next::LookAtOthers,
            None => Next::Secure,
        };
        self.clear(useless, next);
    }

    /// Whether it is podway that assigns subnets in this cluster, as far as other Nodes show.
    fn looked(&mut self, nodes: &[NodeSubnets]) {
        let mut with_subnets =
            nodes.iter().filter(|node| node.uid != self.node.uid && !node.pod_cidrs.is_empty()).peekable();
        let is_used_to = with_subnets.peek().is_some();
        match with_subnets.find(|node| !node.assigned) {
            Some(given) => {
                let (node, by) = (self.policy.node.clone(), given.name.clone());
                self.finish(Err(Unassigned::OthersAssign { node, by }));
            }
            None if is_used_to || self.has_waited => self.secure(),
            None => self.state = State::Waiting,
        }
    }

    fn clear(&mut self, useless: Vec<Claim>, next: Next) {
        if !useless.is_empty() {
            self.state = State::Clearing(useless, next);
            return;
        }
        match next {
            Next::LookAtOthers => self.state = State::LookingAtOthers,
            Next::Secure => self.secure(),
            Next::Hold => self.hold(),
            Next::Refuse(why) => self.finish(Err(why)),
        }
    }

    fn cleared(&mut self, mut claims: Vec<Claim>, next: Next) {
        claims.pop();
        self.clear(claims, next);
    }

    /// Goes on with the first place that is not secured.
    fn secure(&mut self) {
        self.state = State::Securing;
        let Some(at) = self.places.iter().position(Place::is_open) else {
            self.state = match self.is_confirmed() {
                true => return self.hold(),
                false => State::SurveyingClaims(Purpose::Check),
            };
            return;
        };
        if self.places[at].subnet.is_none() {
            self.guess(at);
        }
    }

    fn guess(&mut self, at: usize) {
        let Some(range) = self.places[at].range else { return self.begin_anew() };
        let place = self.any_place(&range);
        match range.nth(place).filter(|subnet| self.refused.len() < GUESSES && !self.refused.contains(subnet))
        {
            Some(subnet) => self.places[at].subnet = Some(subnet),
            None => self.state = State::SurveyingClaims(Purpose::Choose),
        }
    }

    fn securing(&self) -> Option<AssignRequest> {
        let place = self.places.iter().find(|place| place.is_open())?;
        match &place.hold {
            Hold::Found(claim) => Some(AssignRequest::Touch(claim.clone())),
            _ => Some(AssignRequest::Create { subnet: place.subnet?, node_uid: self.node.uid.clone() }),
        }
    }

    fn secured(&mut self, claim: Claim) {
        let Some(place) = self.places.iter_mut().find(|place| place.is_open()) else { return };
        place.hold = match place.hold {
            Hold::Found(_) => Hold::Renewed(claim),
            _ => Hold::Created(claim),
        };
        self.secure();
    }

    /// The subnet is somebody's.
    fn not_secured(&mut self) {
        let Some(place) = self.places.iter_mut().find(|place| place.is_open()) else { return };
        let subnet = match (&place.hold, place.subnet) {
            (Hold::Nothing, Some(subnet)) => subnet,
            _ => return self.begin_anew(),
        };
        self.creations += 1;
        if self.creations > MOST_CREATIONS {
            return self.contended(subnet);
        }
        if place.range.is_none() {
            self.state = State::SurveyingClaims(Purpose::Choose);
            return;
        }
        place.subnet = None;
        self.refused.insert(subnet);
        self.secure();
    }

    fn surveyed(&mut self, purpose: Purpose, claims: &[Claim], nodes: &[NodeSubnets]) {
        self.refused.clear();
        let own = self.node.uid.clone();
        let survey = Survey::new(&own, claims, nodes);
        match purpose {
            Purpose::Check => self.check(&survey),
            Purpose::Choose => self.choose(&survey, Vec::new()),
        }
    }

    /// Lets go of what overlaps another Node's, and chooses something else; what was given cannot be chosen.
    fn check(&mut self, survey: &Survey<'_>) {
        let mut dropped = Vec::new();
        for at in 0..self.places.len() {
            let place = &mut self.places[at];
            let Some(subnet) = place.subnet else { continue };
            match (survey.obstacle(&subnet), place.range) {
                (None, _) => {}
                (Some(_), Some(_)) => {
                    place.subnet = None;
                    dropped.extend(std::mem::replace(&mut place.hold, Hold::Nothing).claim());
                }
                (Some(Obstacle::Node(by)), None) => return self.taken(subnet, by),
                (Some(Obstacle::Claim), None) => return self.contended(subnet),
            }
        }
        match dropped.is_empty() {
            true => self.state = State::Writing,
            false => self.choose(survey, dropped),
        }
    }

    /// Chooses for every open place, and deletes first what is useless.
    fn choose(&mut self, survey: &Survey<'_>, mut useless: Vec<Claim>) {
        let mut next = Next::Secure;
        for at in 0..self.places.len() {
            let place = &self.places[at];
            match (place.is_open(), place.range, place.subnet) {
                (true, Some(range), None) => match survey.vacancy(&range, self.any_place(&range)) {
                    Some(Vacancy::Free(subnet)) => self.places[at].subnet = Some(subnet),
                    Some(Vacancy::Stale(claim)) => {
                        self.places[at].subnet = Some(claim.subnet);
                        useless.push(claim.clone());
                    }
                    None => next = Next::Refuse(self.exhausted(&range, survey)),
                },
                (true, None, Some(subnet)) => match survey.claim(&subnet) {
                    Some(claim) if survey.is_stale(claim) => useless.push(claim.clone()),
                    Some(claim) => return self.given_to_another(subnet, claim, survey),
                    None => {}
                },
                _ => {}
            }
        }
        self.clear(useless, next);
    }

    /// A subnet that this Node was given is claimed, and not for nothing.
    fn given_to_another(&mut self, subnet: IpNet, claim: &Claim, survey: &Survey<'_>) {
        match survey.obstacle(&subnet) {
            _ if claim.node_uid == self.node.uid && claim.machine == self.policy.machine => self.begin_anew(),
            _ if claim.node_uid == self.node.uid => {
                let why = self.other_machine(claim.clone());
                self.finish(Err(why));
            }
            Some(Obstacle::Node(by)) => self.taken(subnet, by),
            _ => self.contended(subnet),
        }
    }

    /// After the subnets were written: only what is still claimed is held.
    fn verified(&mut self, claims: &[Claim]) {
        let stands =
            |held: &Claim| claims.iter().any(|claim| claim.uid == held.uid && claim.machine == held.machine);
        if !self.held().all(stands) {
            return self.begin_anew();
        }
        let is_left_over = |claim: &&Claim| {
            claim.machine == self.policy.machine && self.held().all(|held| held.uid != claim.uid)
        };
        let useless = claims.iter().filter(is_left_over).cloned().collect();
        self.clear(useless, Next::Hold);
    }

    /// Whether the subnets were written after a survey that these very claims passed, and the claims stand still.
    fn is_confirmed(&self) -> bool {
        let noted = |place: &Place| match &place.hold {
            Hold::Renewed(claim) => self.node.claims.contains(&claim.uid),
            _ => false,
        };
        self.is_given() && self.places.iter().all(noted)
    }

    fn hold(&mut self) {
        let assignment = Assignment { is_new: !self.is_given(), ..self.assignment(self.subnets()) };
        self.finish(Ok(assignment));
    }

    fn held(&self) -> impl Iterator<Item = &Claim> {
        self.places.iter().filter_map(|place| place.hold.as_claim())
    }

    fn subnets(&self) -> Vec<IpNet> {
        self.places.iter().filter_map(|place| place.subnet).collect()
    }

    fn begin_anew(&mut self) {
        self.rounds += 1;
        self.refused.clear();
        if self.rounds > MOST_ROUNDS {
            let wanted = self
                .places
                .iter()
                .find_map(|place| place.subnet.or(place.range.map(|range| range.network())));
            return match wanted {
                Some(subnet) => self.contended(subnet),
                None => self.finish(Err(Unassigned::NoNode(self.policy.node.clone()))),
            };
        }
        self.places.clear();
        self.state = State::Reading;
    }

    fn finish(&mut self, result: Result<Assignment, Unassigned>) {
        self.state = State::Finished(result);
    }

    fn taken(&mut self, subnet: IpNet, by: Arc<str>) {
        self.finish(Err(Unassigned::Taken { node: self.policy.node.clone(), subnet, by }));
    }

    fn contended(&mut self, subnet: IpNet) {
        self.finish(Err(Unassigned::Contended { node: self.policy.node.clone(), subnet }));
    }

    fn exhausted(&self, range: &Range, survey: &Survey<'_>) -> Unassigned {
        let (node, held) = (self.policy.node.clone(), survey.held(range));
        Unassigned::Exhausted { node, range: range.network(), len: range.subnet_len(), held }
    }

    fn other_machine(&self, claim: Claim) -> Unassigned {
        Unassigned::OtherMachine {
            node: self.policy.node.clone(),
            subnet: claim.subnet,
            machine: self.policy.machine.clone(),
            namespace: self.policy.namespace.clone(),
            lease: claim_name(&claim.subnet).into(),
            holder: claim.machine,
        }
    }

    fn any_place(&mut self, range: &Range) -> u128 {
        let (high, low) = (self.draw(), self.draw());
        (u128::from(high) << 64 | u128::from(low)) % range.count()
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

impl Place {
    fn given(subnet: IpNet) -> Self {
        Self { range: None, subnet: Some(subnet), hold: Hold::Nothing }
    }

    fn within(range: Range) -> Self {
        Self { range: Some(range), subnet: None, hold: Hold::Nothing }
    }

    /// Whether an own claim for this subnet has its use here.
    fn takes(&self, subnet: &IpNet) -> bool {
        let fits = self.range.map_or(self.subnet == Some(*subnet), |range| range.contains(subnet));
        self.hold == Hold::Nothing && fits
    }

    fn is_open(&self) -> bool {
        matches!(self.hold, Hold::Nothing | Hold::Found(_))
    }
}

impl Hold {
    fn as_claim(&self) -> Option<&Claim> {
        match self {
            Self::Nothing => None,
            Self::Found(claim) | Self::Renewed(claim) | Self::Created(claim) => Some(claim),
        }
    }

    fn claim(self) -> Option<Claim> {
        match self {
            Self::Nothing => None,
            Self::Found(claim) | Self::Renewed(claim) | Self::Created(claim) => Some(claim),
        }
    }
}
