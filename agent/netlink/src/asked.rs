//! What our own requests asked for, so that what the kernel tells of them is not taken for somebody else's doing.
//!
//! Most notifications name the socket whose request they come from. Those of link settings, FDB entries, IPv6
//! addresses and neighbours that go name none, as if the kernel had acted by itself (rtnetlink_event,
//! vxlan_fdb_notify, inet6_ifa_notify and neigh_cleanup_and_release pass port 0).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use podway_overlay::{LinkKind, LinkName, Mac, Op, Tunnel, VxlanState};

/// Shared by the socket that asks and the one that watches. Nothing is kept unless somebody watches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Option<Requests>>>);

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// The settings of links, as asked for last.
    pub(crate) links: BTreeMap<LinkName, Settings>,
    /// What will be notified once. The kernel does it before it answers the request.
    expected: BTreeSet<Expected>,
}

/// The settings of a link; what was never asked for is `None`.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    pub(crate) up: Option<bool>,
    pub(crate) tunnel: Option<Tunnel>,
    /// Those of IPv6 are notified when the kernel is through with them, which may be long after the request.
    pub(crate) addresses: BTreeSet<IpNet>,
}

impl Settings {
    /// What a link of this kind was asked to become.
    pub(crate) fn kind(&self, was: &LinkKind) -> LinkKind {
        match (self.tunnel, was) {
            (Some(Tunnel { local, lower, learning, .. }), LinkKind::Vxlan(found)) => {
                LinkKind::Vxlan(VxlanState {
                    local: Some(local),
                    lower: Some(lower),
                    learning,
                    ..found.clone()
                })
            }
            _ => was.clone(),
        }
    }
}

/// A notification to come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Expected {
    LinkAdded(LinkName),
    LinkRemoved(LinkName),
    AddressRemoved(LinkName, IpNet),
    /// A link with a new MAC forgets its neighbours.
    NeighboursForgotten(LinkName),
    NeighbourRemoved(LinkName, IpAddr),
    FdbSet(LinkName, Mac, IpAddr),
    FdbRemoved(LinkName, Mac, IpAddr),
}

impl Asked {
    /// From now on requests are kept.
    pub(crate) fn keep(&self) {
        self.lock().get_or_insert_default();
    }

    /// Notes steps that are about to be run.
    pub(crate) fn note(&self, ops: &[Op]) {
        if let Some(requests) = self.lock().as_mut() {
            ops.iter().for_each(|op| requests.note(op));
        }
    }

    /// Looks at what was asked for.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Requests) -> T) -> T {
        look(self.lock().get_or_insert_default())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Requests>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// Whether the notification was to come; it comes once.
    pub(crate) fn take(&mut self, expected: &Expected) -> bool {
        self.expected.remove(expected)
    }

    /// Whether the notification is to come, maybe more than once.
    pub(crate) fn expects(&self, expected: &Expected) -> bool {
        self.expected.contains(expected)
    }

    /// All notifications there are have been read: what is still expected was asked for and changed nothing.
    pub(crate) fn all_read(&mut self) {
        self.expected.clear();
    }

    fn note(&mut self, op: &Op) {
        match op {
            Op::AddLink { name, link } => {
                let (mtu, mac) = (Some(link.mtu.get()), Some(link.mac));
                self.links
                    .insert(name.clone(), Settings { mtu, mac, up: Some(false), ..Settings::default() });
                self.expected.insert(Expected::LinkAdded(name.clone()));
            }
            Op::SetLink { name, mtu, mac, tunnel, .. } => {
                let settings = self.settings(name);
                settings.tunnel = tunnel.or(settings.tunnel);
                settings.mtu = mtu.map(|mtu| mtu.get()).or(settings.mtu);
                settings.mac = mac.or(settings.mac);
                if mac.is_some() {
                    self.expected.insert(Expected::NeighboursForgotten(name.clone()));
                }
            }
            Op::LinkUp(name) => self.settings(name).up = Some(true),
            Op::RemoveLink { name, .. } => {
                self.links.remove(name);
                self.expected.insert(Expected::LinkRemoved(name.clone()));
            }
            Op::AddAddress(name, address) => {
                self.settings(name).addresses.insert(*address);
            }
            Op::RemoveAddress(name, address) => {
                self.settings(name).addresses.remove(address);
                self.expected.insert(Expected::AddressRemoved(name.clone(), *address));
            }
            Op::RemoveNeighbour(key) => {
                self.expected.insert(Expected::NeighbourRemoved(key.link.clone(), key.address));
            }
            Op::SetFdb(key, underlay) => {
                self.expected.insert(Expected::FdbSet(key.link.clone(), key.mac, *underlay));
            }
            Op::RemoveFdb(key, underlay) => {
                self.expected.insert(Expected::FdbRemoved(key.link.clone(), key.mac, *underlay));
            }
            // Told by the port, or not told at all.
            Op::SetNeighbour(..)
            | Op::SetRoute(..)
            | Op::RemoveRoute(..)
            | Op::SetBlackhole(_)
            | Op::RemoveBlackhole(_)
            | Op::SetOffload(..)
            | Op::SetSysctl(_) => {}
        }
    }

    fn settings(&mut self, name: &LinkName) -> &mut Settings {
        self.links.entry(name.clone()).or_default()
    }
}
