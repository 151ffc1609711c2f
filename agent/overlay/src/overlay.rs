//! The pod network of one node, kept up to date event by event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::annotations;
use crate::index::Index;
use crate::node::Node;
use crate::observed::Observed;
use crate::ops::{self, Op};
use crate::peer::{self, Reading, Vtep};
use crate::plan::{Masquerade, OverlayPlan, Rows, VxlanLink};
use crate::problem::{Problem, Reason};
use crate::settings::{Peering, Settings, SettingsError};
use crate::subnet_env::SubnetEnv;
use crate::units::{ExternalInterface, Family, LinkName, Mac, Mtu, PerFamily};

/// What this machine contributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The interface that carries the encapsulated packets.
    pub external: ExternalInterface,
    /// MACs of VXLAN links that stand already ([`Observed::device_macs`]).
    pub device_macs: PerFamily<Option<Mac>>,
}

/// Every Node that was heard of, and the pod network that follows from them.
///
/// A Node's event costs work in proportion to that Node and those that contend with it, whatever the size of the
/// cluster (contract N17). What follows depends only on the Nodes that stand, never on the order of their events.
///
/// Where two Nodes claim addresses or a MAC that only one can have, this machine's own Node wins, then the one with
/// the lesser name; the other is left out for that family, with a problem (contract N14). A Node that loses still
/// stands in the way of Nodes with greater names: two faults never make a route.
#[derive(Debug, Clone)]
pub struct Overlay {
    settings: Settings,
    names: PerFamily<Option<LinkName>>,
    host: Option<Host>,
    own: Option<Node>,
    local: Local,
    readings: BTreeMap<Arc<str>, Reading>,
    index: Index,
    standing: BTreeMap<Arc<str>, Standing>,
    /// What the peers touched since the last [`Self::changes`] had in the kernel; `None` when that is not known.
    before: Option<BTreeMap<Arc<str>, PerFamily<Option<Vtep>>>>,
}

impl Overlay {
    /// The pod network before any Node is known.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        if settings.pod_networks.is_empty() {
            return Err(SettingsError::NoPodNetwork);
        }
        let mut names = PerFamily::default();
        for family in Family::BOTH.into_iter().filter(|family| settings.has(*family)) {
            *names.get_mut(family) = Some(settings.link_name(family)?);
        }
        let mut overlay = Self {
            settings,
            names,
            host: None,
            own: None,
            local: Local::default(),
            readings: BTreeMap::new(),
            index: Index::default(),
            standing: BTreeMap::new(),
            before: None,
        };
        overlay.relocate();
        Ok(overlay)
    }

    /// The links to observe.
    pub fn link_names(&self) -> BTreeSet<LinkName> {
        self.names.iter().map(|(_, name)| name.clone()).collect()
    }

    /// Takes facts about this machine. If they change a link, [`Self::changes`] asks for a look at the kernel.
    pub fn set_host(&mut self, host: Host) {
        self.host = Some(host);
        self.relocate();
    }

    /// Takes the event that the Node `name` is now `node`, or gone.
    pub fn apply(&mut self, name: &Arc<str>, node: Option<&Node>) {
        if *name == self.settings.node {
            self.own = node.cloned();
            return self.relocate();
        }
        let reading = node.map(|node| Reading::of(&self.settings, node));
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
        let mut plan =
            OverlayPlan { pod_networks: self.settings.pod_networks.clone(), ..OverlayPlan::default() };
        for (family, name) in self.names.iter() {
            match self.local.links.get(family) {
                Some(link) => {
                    plan.links.insert(name.clone(), link.clone());
                    plan.forwarding.insert(family);
                }
                None => drop(plan.held.insert(name.clone())),
            }
        }
        self.standing.values().for_each(|standing| self.add_rows(&mut plan.rows, &standing.vteps));
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
        for (name, vteps) in &before {
            self.add_rows(&mut found, vteps);
            if let Some(standing) = self.standing.get(name) {
                self.add_rows(&mut wanted, &standing.vteps);
            }
        }
        Some(ops::rows(&wanted, &found))
    }

    /// Notes that the kernel may not hold what it was given: a step failed, or somebody else changed something.
    pub fn invalidate(&mut self) {
        self.before = None;
    }

    /// What is wrong with which Node, in the order of their names.
    pub fn problems(&self) -> Vec<Problem> {
        let own = self.local.reasons.iter().map(|reason| (&self.settings.node, reason));
        let read =
            self.readings.iter().flat_map(|(name, reading)| reading.reasons.iter().map(move |r| (name, r)));
        let lost =
            self.standing.iter().flat_map(|(name, standing)| standing.reasons.iter().map(move |r| (name, r)));
        let mut problems: Vec<Problem> = own
            .chain(read)
            .chain(lost)
            .map(|(node, reason)| Problem { node: node.clone(), reason: reason.clone() })
            .collect();
        problems.sort();
        problems
    }

    /// flannel's annotations that this machine's Node should have and has not, keys without the prefix (contract
    /// N5). To be written once the links stand. None where peers do not read annotations.
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let (Some(host), Some(own), Peering::Annotated) = (&self.host, &self.own, self.settings.peering)
        else {
            return BTreeMap::new();
        };
        let vteps = PerFamily::from_fn(|family| {
            let link = self.local.links.get(family).as_ref()?;
            Some((link.mac, host.external.address(family)?))
        });
        if vteps == PerFamily::default() {
            return BTreeMap::new();
        }
        let mut wanted = annotations::render(own, self.settings.vni, &vteps);
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

    /// Works out this machine's own part anew; if it differs, every peer is judged again.
    fn relocate(&mut self) {
        let local = Local::of(&self.settings, self.host.as_ref(), self.own.as_ref());
        if local == self.local {
            return;
        }
        self.local = local;
        self.before = None;
        let names: Vec<_> = self.readings.keys().cloned().collect();
        names.iter().for_each(|name| self.judge(name));
    }

    fn collect_rivals(&self, reading: &Reading, rivals: &mut BTreeSet<Arc<str>>) {
        for (_, vtep) in reading.vteps.iter() {
            rivals.extend(self.index.overlapping(vtep.subnet).map(|(_, name)| name.clone()));
            rivals.extend(self.index.same_mac(vtep).cloned());
        }
    }

    /// Decides anew what of a Node stands, and remembers what stood before.
    fn judge(&mut self, name: &Arc<str>) {
        let standing = self.readings.get(name).map(|reading| self.verdict(name, reading));
        let old = match standing {
            Some(standing) => self.standing.insert(name.clone(), standing),
            None => self.standing.remove(name),
        };
        if let Some(before) = &mut self.before {
            before.entry(name.clone()).or_insert_with(|| old.unwrap_or_default().vteps);
        }
    }

    fn verdict(&self, name: &Arc<str>, reading: &Reading) -> Standing {
        let mut standing = Standing::default();
        for (family, vtep) in reading.vteps.iter() {
            match self.local.objection(&self.settings.node, family, vtep).or_else(|| self.rival(name, vtep)) {
                None => *standing.vteps.get_mut(family) = Some(*vtep),
                Some(reason) => standing.reasons.push(reason),
            }
        }
        standing
    }

    /// Whether another peer comes first.
    fn rival(&self, name: &Arc<str>, vtep: &Vtep) -> Option<Reason> {
        let subnet = vtep.subnet;
        let taken =
            self.index.overlapping(subnet).filter(|(_, other)| *other < name).min_by_key(|(_, other)| *other);
        if let Some((theirs, by)) = taken {
            return Some(Reason::SubnetTaken { subnet, by: by.clone(), theirs });
        }
        let by = self.index.same_mac(vtep).find(|other| *other < name)?;
        Some(Reason::MacTaken { mac: vtep.mac, by: by.clone() })
    }

    fn add_rows(&self, rows: &mut Rows, vteps: &PerFamily<Option<Vtep>>) {
        for (family, vtep) in vteps.iter() {
            if let (Some(name), Some(_)) = (self.names.get(family), self.local.links.get(family)) {
                rows.insert(name, vtep);
            }
        }
    }
}

/// What of a Node has a place in the pod network.
#[derive(Debug, Clone, Default)]
struct Standing {
    vteps: PerFamily<Option<Vtep>>,
    reasons: Vec<Reason>,
}

/// This machine's own part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Local {
    subnets: PerFamily<Option<IpNet>>,
    links: PerFamily<Option<VxlanLink>>,
    reasons: Vec<Reason>,
}

impl Local {
    fn of(settings: &Settings, host: Option<&Host>, own: Option<&Node>) -> Self {
        let mut local = Self::default();
        let Some(own) = own else {
            local.reasons.push(Reason::NoNode);
            return local;
        };
        for family in Family::BOTH.into_iter().filter(|family| settings.has(*family)) {
            let subnet = match peer::subnet(settings, own, family) {
                Ok(subnet) => subnet,
                Err(reason) => {
                    local.reasons.push(reason);
                    continue;
                }
            };
            *local.subnets.get_mut(family) = Some(subnet);
            let Some(host) = host else { continue };
            match link(settings, host, own, family) {
                Ok(link) => {
                    local.reasons.extend(address_differs(settings, host, own, link.local, family));
                    *local.links.get_mut(family) = Some(VxlanLink { address: subnet.network(), ..link });
                }
                Err(reason) => local.reasons.push(reason),
            }
        }
        local
    }

    /// Whether a peer claims what this machine has.
    fn objection(&self, node: &Arc<str>, family: Family, vtep: &Vtep) -> Option<Reason> {
        let subnet = vtep.subnet;
        if let Some(own) = self.subnets.get(family)
            && (own.contains(&subnet) || subnet.contains(own))
        {
            return Some(Reason::SubnetTaken { subnet, by: node.clone(), theirs: *own });
        }
        let link = self.links.get(family).as_ref()?;
        if link.local == vtep.underlay {
            return Some(Reason::OwnAddress(vtep.underlay));
        }
        (link.mac == vtep.mac).then(|| Reason::MacTaken { mac: vtep.mac, by: node.clone() })
    }
}

/// The link of `family`, its address still that of the external interface.
fn link(settings: &Settings, host: &Host, own: &Node, family: Family) -> Result<VxlanLink, Reason> {
    let interface = &host.external;
    let Some(local) = interface.address(family) else {
        return Err(Reason::ExternalAddress { interface: interface.name.clone(), family });
    };
    let mtu = settings.inner_mtu(interface.mtu);
    if family == Family::V6 && mtu < Mtu::IPV6_MIN {
        return Err(Reason::MtuTooSmall(mtu));
    }
    let mac = own_mac(settings, host, own, family);
    let (vni, port, lower) = (settings.vni, settings.port, interface.index);
    Ok(VxlanLink { vni, port, mtu, mac, local, lower, address: local })
}

/// The own VTEP MAC (contract N6): the one that is published; else, where it will be published, that of the link
/// which stands; else the one that peers work out.
fn own_mac(settings: &Settings, host: &Host, own: &Node, family: Family) -> Mac {
    let published = match annotations::is_managed(own) {
        true => annotations::vtep_mac(own, settings.vni, family).ok(),
        false => None,
    };
    let standing = match settings.peering {
        Peering::Annotated => *host.device_macs.get(family),
        Peering::Derived => None,
    };
    published.or(standing).unwrap_or_else(|| Mac::derived(&settings.node, settings.vni, family))
}

/// Peers that read no annotations send to the Node's address: packets come in only if the interface has it.
fn address_differs(
    settings: &Settings,
    host: &Host,
    own: &Node,
    external: IpAddr,
    family: Family,
) -> Option<Reason> {
    let node = peer::address(own, family)?;
    let derived = settings.peering == Peering::Derived && !annotations::is_managed(own);
    (derived && node != external).then(|| Reason::AddressDiffers {
        node,
        interface: host.external.name.clone(),
        external,
    })
}
