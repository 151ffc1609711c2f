//! The pod network of one node, kept up to date event by event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::annotations;
use crate::host::{Host, RoutingTable};
use crate::index::Index;
use crate::local::{Base, Local};
use crate::node::Node;
use crate::observed::{Observed, Sought};
use crate::offload::{self, Breakage};
use crate::ops::{self, Op};
use crate::peer::{Reading, Vtep};
use crate::plan::{Held, Masquerade, OverlayPlan, Path, Rows, Way};
use crate::problem::{Problem, Reason};
use crate::settings::{Backend, Offload, Peering, Settings, SettingsError};
use crate::subnet_env::SubnetEnv;
use crate::units::{Family, IfIndex, LinkName, Mtu, PerFamily};

/// Every Node that was heard of, and the pod network that follows from them.
///
/// A Node's event costs work in proportion to that Node and those that contend with it, whatever the size of the
/// cluster (contract N17). What follows depends only on the Nodes that stand, never on the order of their events, save
/// for one thing: where a Node's annotations are at fault while it stands with its subnet, what they said last of that
/// family without fault holds on (contract N5). So a slip costs no peer its place before this machine starts anew.
///
/// Where two Nodes claim addresses or a MAC that only one can have, this machine's own Node wins; then, of unequal
/// subnets, the longer prefix, so that one Node with a wide subnet costs no other Node its place; then, of equal subnets
/// and of equal MACs, the lesser name. The other is left out for that family, with a problem (contract N14). A Node that
/// loses against another peer still stands in the way of further ones: two faults never make a route. One that loses
/// against this machine's own part stands in nobody's way.
///
/// A subnet with a node's underlay address in it is not routed, whoever has it: the route would take what is meant for
/// that node, while without it only the subnet's pods are missing (contract N23).
#[derive(Debug, Clone)]
pub struct Overlay {
    settings: Settings,
    names: PerFamily<Option<LinkName>>,
    host: Option<Host>,
    routes: RoutingTable,
    own: Option<Node>,
    local: Local,
    readings: BTreeMap<Arc<str>, Reading>,
    index: Index,
    standing: BTreeMap<Arc<str>, Standing>,
    /// Addresses of Services, whose overlaps are named.
    service_ranges: Vec<IpNet>,
    /// What is wrong, of the Nodes with which something is.
    faults: BTreeMap<Arc<str>, Vec<Reason>>,
    /// What the peers touched since the last [`Self::changes`] had in the kernel; `None` when that is not known.
    before: Option<BTreeMap<Arc<str>, PerFamily<Option<Way>>>>,
}

impl Overlay {
    /// The pod network before any Node is known.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        if settings.pod_networks.is_empty() {
            return Err(SettingsError::NoPodNetwork);
        }
        let mut names = PerFamily::default();
        let vxlan = settings.backend == Backend::Vxlan;
        for family in Family::BOTH.into_iter().filter(|family| vxlan && settings.has(*family)) {
            *names.get_mut(family) = Some(settings.link_name(family)?);
        }
        let mut overlay = Self {
            settings,
            names,
            host: None,
            routes: RoutingTable::default(),
            own: None,
            local: Local::default(),
            readings: BTreeMap::new(),
            index: Index::default(),
            standing: BTreeMap::new(),
            service_ranges: Vec::new(),
            faults: BTreeMap::new(),
            before: None,
        };
        overlay.relocate();
        Ok(overlay)
    }

    /// The names of our links.
    pub fn link_names(&self) -> BTreeSet<LinkName> {
        self.names.iter().map(|(_, name)| name.clone()).collect()
    }

    /// What to observe.
    pub fn sought(&self) -> Sought {
        Sought { links: self.link_names(), external: self.external() }
    }

    /// Takes facts about this machine. If they change a link, [`Self::changes`] asks for a look at the kernel; if only
    /// its routes differ, the peers whose addresses those routes lead to are judged again (contract N6).
    ///
    /// A MAC that a VXLAN link once had is remembered: should somebody remove the link, or its lower interface, it is
    /// made again with the same MAC (contract N13).
    pub fn set_host(&mut self, mut host: Host) {
        if let Some(before) = &self.host {
            let known = before.device_macs;
            host.device_macs =
                PerFamily::from_fn(|family| host.device_macs.get(family).or(*known.get(family)));
            if renumbered(before, &host) {
                self.before = None;
            }
        }
        let before = std::mem::replace(&mut self.routes, RoutingTable::of(&host.routes));
        let changed = before.differences(&self.routes).flat_map(|net| self.index.underlays_in(net));
        let changed: BTreeSet<Arc<str>> = changed.filter(|_| self.looks_at_routes()).cloned().collect();
        self.host = Some(host);
        self.relocate();
        changed.iter().for_each(|name| self.judge(name));
    }

    /// Takes the addresses of Services. They change no route: nodes among them are a problem.
    pub fn set_service_ranges(&mut self, ranges: &[IpNet]) {
        self.service_ranges = ranges.to_vec();
    }

    /// Takes the event that the Node `name` is now `node`, or gone.
    pub fn apply(&mut self, name: &Arc<str>, node: Option<&Node>) {
        if *name == self.settings.node {
            self.own = node.cloned();
            return self.relocate();
        }
        let reading = node.map(|node| {
            let mut reading = Reading::of(&self.settings, node);
            if let Some(before) = self.readings.get(name) {
                reading.keep(before, &self.settings, node);
            }
            reading
        });
        if self.readings.get(name) == reading.as_ref() {
            return;
        }
        let mut touched = BTreeSet::from([name.clone()]);
        if let Some(old) = self.readings.remove(name) {
            old.vteps.iter().for_each(|(_, vtep)| self.index.remove(name, vtep));
            self.collect_rivals(&old, &mut touched);
        }
        if let Some(new) = reading {
            self.collect_rivals(&new, &mut touched);
            new.vteps.iter().for_each(|(_, vtep)| self.index.insert(name, vtep));
            self.readings.insert(name.clone(), new);
        }
        touched.iter().for_each(|name| self.judge(name));
    }

    /// What the kernel should hold.
    pub fn plan(&self) -> OverlayPlan {
        let mut plan = OverlayPlan {
            pod_networks: self.settings.pod_networks.clone(),
            external: self.external(),
            ..OverlayPlan::default()
        };
        for family in Family::BOTH.into_iter().filter(|family| self.settings.has(*family)) {
            let Some(base) = self.local.bases.get(family) else {
                *plan.held.get_mut(family) = Some(Held { link: self.names.get(family).clone() });
                continue;
            };
            if let Base::Vxlan { name, link } = base {
                plan.links.insert(name.clone(), link.clone());
            }
            plan.forwarding.insert(family);
            plan.blackholes.extend(self.local.subnets.get(family).filter(|_| self.settings.blackhole));
        }
        self.standing.values().for_each(|standing| add_rows(&mut plan.rows, &standing.ways));
        plan.problems = self.problems();
        plan
    }

    /// The steps from what the kernel holds to the plan. From here on [`Self::changes`] takes these steps as done.
    pub fn reconcile(&mut self, observed: &Observed) -> Vec<Op> {
        self.before = Some(BTreeMap::new());
        ops::diff(&self.plan(), observed)
    }

    /// The steps that became necessary since the last call, or since [`Self::reconcile`].
    ///
    /// `None`: what the kernel holds is not known; observe and [`Self::reconcile`]. So it is at first, after
    /// [`Self::invalidate`], and when a link of this machine changes.
    pub fn changes(&mut self) -> Option<Vec<Op>> {
        let before = std::mem::take(self.before.as_mut()?);
        let (mut wanted, mut found) = (Rows::default(), Rows::default());
        for (name, ways) in &before {
            add_rows(&mut found, ways);
            if let Some(standing) = self.standing.get(name) {
                add_rows(&mut wanted, &standing.ways);
            }
        }
        Some(ops::rows(&wanted, &found))
    }

    /// The peers that the next [`Self::changes`] concerns; `None` when it may be all of them.
    pub fn touched(&self) -> Option<Vec<Arc<str>>> {
        self.before.as_ref().map(|before| before.keys().cloned().collect())
    }

    /// The names of the peers, whether anything leads to them or not.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.readings.keys()
    }

    /// How packets reach the pods of a peer; none for a family that has no place in the pod network.
    pub fn path(&self, peer: &str) -> PerFamily<Option<Path>> {
        match self.standing.get(peer) {
            Some(standing) => PerFamily::from_fn(|family| standing.ways.get(family).as_ref().map(Path::of)),
            None => PerFamily::default(),
        }
    }

    /// The MTU of the pods, once the interface is known.
    pub fn pod_mtu(&self) -> Option<Mtu> {
        Some(self.settings.inner_mtu(self.host.as_ref()?.external.mtu))
    }

    /// Notes that the kernel may not hold what it was given: a step failed, or somebody else changed something.
    pub fn invalidate(&mut self) {
        self.before = None;
    }

    /// What is wrong with which Node, in the order of their names. Costs as much as there are problems.
    pub fn problems(&self) -> Vec<Problem> {
        let all =
            self.faults.iter().flat_map(|(node, reasons)| reasons.iter().map(move |reason| (node, reason)));
        let faults = all.map(|(node, reason)| Problem { node: node.clone(), reason: reason.clone() });
        let mut problems: Vec<Problem> = faults.chain(self.among_services()).collect();
        problems.sort();
        problems
    }

    /// Why the checksums of encapsulated packets are left to the kernel though nobody said so (contract N16).
    pub fn offload_breakage(&self) -> Option<Breakage> {
        let (Some(host), Some(own), Offload::Auto) = (&self.host, &self.own, self.settings.checksum_offload)
        else {
            return None;
        };
        self.local.bases.iter().find_map(|(family, base)| match base {
            Base::Vxlan { .. } => offload::breakage(host, own, family),
            Base::HostGw { .. } => None,
        })
    }

    /// flannel's annotations that this machine's Node should have and has not, keys without the prefix (contract
    /// N5). To be written once the links stand. None where peers do not read annotations.
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let (Some(host), Some(own), Peering::Annotated) = (&self.host, &self.own, self.settings.peering)
        else {
            return BTreeMap::new();
        };
        let reached = PerFamily::from_fn(|family| {
            let base = self.local.bases.get(family).as_ref()?;
            Some((base.mac(), annotations::published(own, host, family)?))
        });
        if reached == PerFamily::default() {
            return BTreeMap::new();
        }
        let mut wanted = annotations::render(&self.settings, &reached);
        wanted.retain(|key, value| own.flannel.get(*key) != Some(value));
        wanted
    }

    /// What the rules that masquerade pod traffic must know; `None` while no subnet of this machine is known: then
    /// the rules that stand are to stay, as the links do (contract N20).
    pub fn masquerade(&self) -> Option<Masquerade> {
        let own_subnets: Vec<IpNet> = self.local.subnets.iter().map(|(_, subnet)| *subnet).collect();
        let pod_networks = self.settings.pod_networks.clone();
        (!own_subnets.is_empty()).then_some(Masquerade { pod_networks, own_subnets })
    }

    /// The content of `subnet.env`, once this machine's subnet and interface are known.
    pub fn subnet_env(&self, ip_masq: bool) -> Option<SubnetEnv> {
        let host = self.host.as_ref()?;
        if self.local.subnets == PerFamily::default() {
            return None;
        }
        let mtu = self.settings.inner_mtu(host.external.mtu);
        Some(SubnetEnv::new(&self.settings, &self.local.subnets, mtu, ip_masq))
    }

    fn external(&self) -> Option<LinkName> {
        self.host.as_ref().map(|host| host.external.name.clone())
    }

    /// Works out this machine's own part anew; if more of it differs than what is wrong with it, every peer is judged
    /// again.
    fn relocate(&mut self) {
        let local = Local::of(&self.settings, &self.names, self.host.as_ref(), self.own.as_ref());
        if local == self.local {
            return;
        }
        note_faults(&mut self.faults, &self.settings.node, local.reasons.iter());
        let same = (&local.subnets, &local.bases) == (&self.local.subnets, &self.local.bases);
        self.local = local;
        if same {
            return;
        }
        self.before = None;
        let names: Vec<_> = self.readings.keys().cloned().collect();
        names.iter().for_each(|name| self.judge(name));
    }

    /// Ranges of Services with a peer's address in them: of each the first, however many there are.
    fn among_services(&self) -> impl Iterator<Item = Problem> {
        self.service_ranges.iter().filter_map(|range| {
            let (address, node) = self.index.first_underlay_in(range)?;
            let reason = Reason::AddressInServiceRange { address, range: *range };
            Some(Problem { node: node.clone(), reason })
        })
    }

    fn collect_rivals(&self, reading: &Reading, rivals: &mut BTreeSet<Arc<str>>) {
        for (_, vtep) in reading.vteps.iter() {
            rivals.extend(self.index.overlapping(vtep.subnet).map(|(_, name)| name.clone()));
            rivals.extend(self.index.same_mac(vtep).cloned());
            // Subnets lie in pod networks, and seldom does a node.
            let underlay = IpNet::from(vtep.underlay);
            if self.settings.network_of(&underlay).is_some() {
                rivals.extend(self.index.overlapping(underlay).map(|(_, name)| name.clone()));
            }
        }
    }

    /// Decides anew what of a Node stands, and remembers what stood before.
    fn judge(&mut self, name: &Arc<str>) {
        let reading = self.readings.get(name);
        let standing = reading.map(|reading| self.verdict(name, reading));
        let reasons = reading.into_iter().flat_map(|reading| &reading.reasons);
        let reasons = reasons.chain(standing.iter().flat_map(|standing| &standing.reasons));
        note_faults(&mut self.faults, name, reasons);
        let old = match standing {
            Some(standing) => self.standing.insert(name.clone(), standing),
            None => self.standing.remove(name),
        };
        if let Some(before) = &mut self.before {
            before.entry(name.clone()).or_insert_with(|| old.unwrap_or_default().ways);
        }
    }

    fn verdict(&self, name: &Arc<str>, reading: &Reading) -> Standing {
        let mut standing = Standing::default();
        for (family, vtep) in reading.vteps.iter() {
            let objection = self.local.objection(&self.settings.node, family, vtep);
            let way = match objection.or_else(|| self.rival(name, family, vtep)) {
                None => self.local.way(&self.settings, &self.routes, family, vtep),
                Some(reason) => Err(reason),
            };
            match way {
                Ok(way) => *standing.ways.get_mut(family) = way,
                Err(reason) => standing.reasons.push(reason),
            }
        }
        standing
    }

    /// Whether another peer comes first, or would be cut off.
    fn rival(&self, name: &Arc<str>, family: Family, vtep: &Vtep) -> Option<Reason> {
        let subnet = vtep.subnet;
        let first = |theirs: &IpNet, other: &Arc<str>| *theirs != subnet || other < name;
        let taken = self
            .index
            .inside(subnet)
            .find(|(theirs, other)| first(theirs, other) && self.is_admitted(other, family));
        if let Some((theirs, by)) = taken {
            return Some(Reason::SubnetTaken { subnet, by: by.clone(), theirs });
        }
        if let Some((address, of)) = self.index.first_underlay_in(&subnet) {
            return Some(Reason::SubnetCovers { subnet, address, of: of.clone() });
        }
        let by = self.index.same_mac(vtep).find(|other| *other < name && self.is_admitted(other, family))?;
        Some(Reason::MacTaken { mac: vtep.mac?, by: by.clone() })
    }

    /// Whether this machine's own part leaves a peer its place.
    fn is_admitted(&self, peer: &Arc<str>, family: Family) -> bool {
        let vtep = self.readings.get(peer).and_then(|reading| reading.vteps.get(family).as_ref());
        vtep.is_some_and(|vtep| self.local.objection(&self.settings.node, family, vtep).is_none())
    }

    /// Whether the way to a peer depends on the machine's own routes.
    fn looks_at_routes(&self) -> bool {
        self.settings.direct_routing || self.settings.backend == Backend::HostGw
    }
}

fn add_rows(rows: &mut Rows, ways: &PerFamily<Option<Way>>) {
    ways.iter().for_each(|(_, way)| rows.insert(way));
}

/// Sorted, and gone with the last reason, so that a look at all of them costs no more than there are.
fn note_faults<'a>(
    faults: &mut BTreeMap<Arc<str>, Vec<Reason>>,
    name: &Arc<str>,
    reasons: impl Iterator<Item = &'a Reason>,
) {
    let mut reasons: Vec<Reason> = reasons.cloned().collect();
    reasons.sort();
    match reasons.is_empty() {
        true => drop(faults.remove(name)),
        false => drop(faults.insert(name.clone(), reasons)),
    }
}

/// What of a Node has a place in the pod network.
#[derive(Debug, Clone, Default)]
struct Standing {
    ways: PerFamily<Option<Way>>,
    reasons: Vec<Reason>,
}

/// Whether a link that routes lead through is not the one of that name any more: the kernel dropped what was on it.
fn renumbered(before: &Host, after: &Host) -> bool {
    let indexes = |host: &Host| -> BTreeMap<LinkName, IfIndex> {
        let links = host.routes.iter().filter_map(|route| route.link.clone());
        links.map(|(index, name)| (name, index)).collect()
    };
    let before = indexes(before);
    indexes(after).iter().any(|(name, index)| before.get(name).is_some_and(|before| before != index))
}
