//! An API server, daemons that are killed and whose answers get lost, and whoever else meddles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use podway_overlay::{
    AssignAnswer, AssignMode, AssignPolicy, AssignRequest, AssignStep, Assigner, Assignment, Claim,
    NodeSubnets, Range, Unassigned,
};

/// Everything there is: compared as a whole, so that no state is looked at twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct World {
    pub(crate) nodes: BTreeMap<&'static str, NodeSubnets>,
    pub(crate) claims: BTreeMap<IpNet, Claim>,
    pub(crate) daemons: Vec<Daemon>,
    /// Requests that were given up and may still arrive, with the Node that they are about.
    late: Vec<(Arc<str>, AssignRequest)>,
    objects: u32,
}

/// A machine. What it programs stays in its kernel when the daemon dies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Daemon {
    policy: Arc<AssignPolicy>,
    seed: u64,
    attempt: Option<Assigner>,
    pub(crate) programs: Option<Programmed>,
    pub(crate) refusal: Option<Unassigned>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Programmed {
    pub(crate) node_uid: Arc<str>,
    pub(crate) subnets: Vec<IpNet>,
}

/// One thing that can happen. Numbers are places in the world's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The daemon's next request is answered; one that is through and has no subnets tries again.
    Step(usize),
    /// The daemon is killed, or the request never gets there.
    Kill(usize),
    /// The request takes effect, and the daemon never learns of it.
    LoseAnswer(usize),
    /// The request is given up, and takes effect at some later time.
    Delay(usize),
    /// A late request arrives.
    Arrive(usize),
    /// The daemon starts anew on a machine that programs subnets.
    Restart(usize),
    /// The Node is deleted, and its machine notices at some time: when its daemon reads it.
    DeleteNode(&'static str),
    /// The Node is registered, as another object under the same name.
    CreateNode(&'static str),
    /// The garbage collector takes claims of deleted Nodes.
    Collect,
    /// Another allocator gives the Node this subnet, if it has none and no other Node has it.
    Allocate(&'static str, IpNet),
    /// An administrator deletes a claim.
    DeleteClaim(IpNet),
}

impl World {
    /// Adds a machine, and its Node if there is none.
    pub(crate) fn machine(
        mut self,
        name: &'static str,
        machine: &str,
        mode: AssignMode,
        ranges: &[Range],
    ) -> Self {
        let policy = AssignPolicy {
            node: name.into(),
            machine: machine.into(),
            mode,
            ranges: ranges.to_vec(),
            namespace: "podway-subnets".into(),
        };
        let seed = self.daemons.len() as u64;
        self.daemons.push(Daemon {
            policy: Arc::new(policy),
            seed,
            attempt: None,
            programs: None,
            refusal: None,
        });
        self.act(Action::CreateNode(name));
        self
    }

    /// Whether this can happen now.
    pub(crate) fn allows(&self, action: Action) -> bool {
        let daemon = |at: usize| self.daemons.get(at);
        match action {
            Action::Step(at) => daemon(at).is_some_and(|it| it.attempt.is_some() || it.programs.is_none()),
            Action::Kill(at) => daemon(at).is_some_and(|it| it.attempt.is_some()),
            Action::LoseAnswer(at) | Action::Delay(at) => daemon(at).is_some_and(Daemon::is_writing),
            Action::Arrive(at) => at < self.late.len(),
            Action::Restart(at) => daemon(at).is_some_and(|it| it.attempt.is_none() && it.programs.is_some()),
            Action::DeleteNode(name) => self.nodes.contains_key(name),
            Action::CreateNode(name) => !self.nodes.contains_key(name),
            Action::Collect => self.claims.values().any(|claim| self.is_orphan(claim)),
            Action::Allocate(name, subnet) => {
                let is_free = |node: &NodeSubnets| node.pod_cidrs.iter().all(|cidr| !overlap(cidr, &subnet));
                self.nodes.get(name).is_some_and(|node| node.pod_cidrs.is_empty())
                    && self.nodes.values().all(is_free)
            }
            Action::DeleteClaim(subnet) => self.claims.contains_key(&subnet),
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        if !self.allows(action) {
            return;
        }
        match action {
            Action::Step(at) => self.step(at),
            Action::Kill(at) => self.daemons[at].attempt = None,
            Action::LoseAnswer(at) => {
                if let Some((node, request)) = self.daemons[at].give_up() {
                    self.serve(&node, &request);
                }
            }
            Action::Delay(at) => self.late.extend(self.daemons[at].give_up()),
            Action::Arrive(at) => {
                let (node, request) = self.late.remove(at);
                self.serve(&node, &request);
            }
            Action::Restart(at) => self.daemons[at].begin(),
            Action::DeleteNode(name) => drop(self.nodes.remove(name)),
            Action::CreateNode(name) => {
                let node =
                    NodeSubnets { name: name.into(), uid: self.new_id("node"), ..NodeSubnets::default() };
                self.nodes.insert(name, node);
            }
            Action::Collect => {
                let orphans: Vec<IpNet> = self
                    .claims
                    .values()
                    .filter(|claim| self.is_orphan(claim))
                    .map(|claim| claim.subnet)
                    .collect();
                self.claims.retain(|subnet, _| !orphans.contains(subnet));
            }
            Action::Allocate(name, subnet) => {
                self.nodes.entry(name).and_modify(|node| node.pod_cidrs = vec![subnet]);
            }
            Action::DeleteClaim(subnet) => drop(self.claims.remove(&subnet)),
        }
    }

    /// How many versions of objects there have been.
    pub(crate) fn objects(&self) -> u32 {
        self.objects
    }

    /// How many requests are on their way.
    pub(crate) fn late(&self) -> usize {
        self.late.len()
    }

    /// No two machines with existing Nodes program overlapping subnets, and each programs what its Node has.
    pub(crate) fn check(&self) -> Result<(), String> {
        let existing: BTreeMap<&str, &NodeSubnets> =
            self.nodes.values().map(|node| (&*node.uid, node)).collect();
        let mut programmed: Vec<(usize, IpNet)> = Vec::new();
        for (at, daemon) in self.daemons.iter().enumerate() {
            let Some(Programmed { node_uid, subnets }) = &daemon.programs else { continue };
            let Some(node) = existing.get(&**node_uid) else { continue };
            if node.pod_cidrs != *subnets {
                return Err(format!("machine {at} programs {subnets:?}, its Node has {:?}", node.pod_cidrs));
            }
            for subnet in subnets {
                if let Some((by, theirs)) =
                    programmed.iter().find(|(by, it)| *by != at && overlap(it, subnet))
                {
                    return Err(format!("machine {at} programs {subnet}, and machine {by} {theirs}"));
                }
                programmed.push((at, *subnet));
            }
        }
        Ok(())
    }

    /// Lets everything come to rest, without further faults. `is_collected`: with a garbage collector.
    pub(crate) fn settle(&mut self, is_collected: bool) {
        while !self.late.is_empty() {
            self.act(Action::Arrive(0));
        }
        for _ in 0..100 {
            self.notice();
            if self.daemons.iter().all(|daemon| daemon.attempt.is_none() && daemon.programs.is_some()) {
                break;
            }
            if is_collected {
                self.act(Action::Collect);
            }
            (0..self.daemons.len()).for_each(|at| self.act(Action::Step(at)));
        }
    }

    /// Whoever's Node is another one by now begins anew, as its watch tells it.
    fn notice(&mut self) {
        for daemon in &mut self.daemons {
            let uid = self.nodes.get(&*daemon.policy.node).map(|node| &node.uid);
            if daemon.attempt.is_none()
                && daemon.programs.as_ref().is_some_and(|it| Some(&it.node_uid) != uid)
            {
                daemon.begin();
            }
        }
    }

    /// The Nodes that a machine serves.
    pub(crate) fn served(&self) -> BTreeSet<&str> {
        let uids: BTreeSet<&str> =
            self.daemons.iter().filter_map(|it| Some(&*it.programs.as_ref()?.node_uid)).collect();
        self.nodes.values().filter(|node| uids.contains(&*node.uid)).map(|node| &*node.name).collect()
    }

    fn step(&mut self, at: usize) {
        let daemon = &mut self.daemons[at];
        if daemon.attempt.is_none() {
            return daemon.begin();
        }
        let Some(attempt) = &daemon.attempt else { return };
        match attempt.step() {
            AssignStep::Finished(result) => {
                daemon.attempt = None;
                daemon.refusal = result.clone().err();
                daemon.programs =
                    result.ok().map(|Assignment { node_uid, subnets, .. }| Programmed { node_uid, subnets });
            }
            AssignStep::Ask(request) => {
                let node = daemon.policy.node.clone();
                let machine = daemon.policy.machine.clone();
                let answer = self.serve_machine(&node, &machine, &request);
                if let Some(attempt) = &mut self.daemons[at].attempt {
                    attempt.apply(answer);
                }
            }
        }
    }

    /// A request that nobody waits for; a claim says which machine it is of by its daemon, found by the Node's name.
    fn serve(&mut self, sender: &Arc<str>, request: &AssignRequest) {
        let (node, machine) = sender.split_once('/').unwrap_or((sender, ""));
        self.serve_machine(&node.into(), &machine.into(), request);
    }

    fn serve_machine(
        &mut self,
        name: &Arc<str>,
        machine: &Arc<str>,
        request: &AssignRequest,
    ) -> AssignAnswer {
        match request {
            AssignRequest::Node => AssignAnswer::Node(self.nodes.get(&**name).cloned()),
            AssignRequest::Grace => AssignAnswer::Done,
            AssignRequest::ClaimsOf(uid) => AssignAnswer::Claims(
                self.claims.values().filter(|claim| claim.node_uid == *uid).cloned().collect(),
            ),
            AssignRequest::Claims => AssignAnswer::Claims(self.claims.values().cloned().collect()),
            AssignRequest::Nodes => AssignAnswer::Nodes(self.nodes.values().cloned().collect()),
            AssignRequest::Create { subnet, .. } if self.claims.contains_key(subnet) => AssignAnswer::Refused,
            AssignRequest::Create { subnet, node_uid } => {
                let (uid, version) = (self.new_id("claim"), self.new_id("version"));
                let claim = Claim {
                    subnet: *subnet,
                    uid,
                    version,
                    node_uid: node_uid.clone(),
                    machine: machine.clone(),
                };
                self.claims.insert(*subnet, claim.clone());
                AssignAnswer::Claim(claim)
            }
            AssignRequest::Touch(seen) => {
                let version = self.new_id("version");
                match self.claims.get_mut(&seen.subnet).filter(|claim| *claim == seen) {
                    Some(claim) => {
                        claim.version = version;
                        AssignAnswer::Claim(claim.clone())
                    }
                    None => AssignAnswer::Refused,
                }
            }
            AssignRequest::Delete(seen) => match self.claims.get(&seen.subnet) == Some(seen) {
                true => {
                    self.claims.remove(&seen.subnet);
                    AssignAnswer::Done
                }
                false => AssignAnswer::Refused,
            },
            AssignRequest::Write { node_uid, pod_cidrs, claims } => {
                let node = self.nodes.get_mut(&**name).filter(|node| node.uid == *node_uid);
                let Some(node) = node else { return AssignAnswer::Refused };
                if !pod_cidrs.is_empty() && !node.pod_cidrs.is_empty() && node.pod_cidrs != *pod_cidrs {
                    return AssignAnswer::Refused;
                }
                node.claims = claims.clone();
                if !pod_cidrs.is_empty() {
                    node.pod_cidrs = pod_cidrs.clone();
                    node.assigned = true;
                }
                AssignAnswer::Done
            }
        }
    }

    fn is_orphan(&self, claim: &Claim) -> bool {
        self.nodes.values().all(|node| node.uid != claim.node_uid)
    }

    fn new_id(&mut self, kind: &str) -> Arc<str> {
        self.objects += 1;
        format!("{kind}-{}", self.objects).into()
    }
}

impl Daemon {
    fn begin(&mut self) {
        self.attempt = Some(Assigner::new(self.policy.clone(), self.seed));
    }

    fn is_writing(&self) -> bool {
        let step = self.attempt.as_ref().map(Assigner::step);
        use AssignRequest::{Create, Delete, Touch, Write};
        matches!(step, Some(AssignStep::Ask(Create { .. } | Touch(_) | Delete(_) | Write { .. })))
    }

    /// The request that is under way, with its sender.
    fn give_up(&mut self) -> Option<(Arc<str>, AssignRequest)> {
        match self.attempt.take()?.step() {
            AssignStep::Ask(request) => {
                Some((format!("{}/{}", self.policy.node, self.policy.machine).into(), request))
            }
            AssignStep::Finished(_) => None,
        }
    }
}

pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
