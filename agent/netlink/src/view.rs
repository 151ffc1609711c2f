//! What notifications say about the pod network, and what of it our own requests have caused.
//!
//! Touches nothing: [`crate::Watch`] reads the notifications and hands them over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::BitOrAssign;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressHeaderFlags as Flags, AddressMessage};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteFlags, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podway_overlay::{Family, IfIndex, LinkName};

use crate::asked::{Asked, Expected, Requests, Settings};
use crate::dump::{self, Address, Link, Neighbour, RouteEntry};
use crate::external::is_link_local;
use crate::netconf::Setting;
use crate::{LINK_ALIAS, ROUTE_PROTOCOL};

/// What may have changed, by somebody else's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drift {
    /// Our links and what is on them, our routes, or what stands where they belong.
    pub overlay: bool,
    /// The machine's own interfaces: index, name, MTU, up or down, addresses.
    pub interfaces: bool,
    /// The machine's own routes: where the default route leads, which peers are neighbours, what overlaps.
    pub host_routes: bool,
    /// Forwarding was switched off, or strict reverse path filtering on.
    pub settings: bool,
}

impl Drift {
    /// Anything may have changed.
    pub const EVERYTHING: Self = Self { overlay: true, interfaces: true, host_routes: true, settings: true };

    /// Whether nothing has changed.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl BitOrAssign for Drift {
    fn bitor_assign(&mut self, other: Self) {
        self.overlay |= other.overlay;
        self.interfaces |= other.interfaces;
        self.host_routes |= other.host_routes;
        self.settings |= other.settings;
    }
}

/// What tells the pod network's links and the pods' own ones from the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Followed {
    /// The names of our links; those with our mark are ours in any case.
    pub links: BTreeSet<LinkName>,
    /// Addresses and single-address routes in them are those of pods, which come and go.
    pub pod_networks: Vec<IpNet>,
}

/// The links as the notifications so far have them, and what of them is still to be judged.
///
/// What is judged is the difference between two moments at which every notification was read, since on the way from
/// one state to the next a link passes through others. Only what it lost on the way counts by itself: routes went with
/// it, and they do not come back as the link does.
#[derive(Debug, Default)]
pub(crate) struct View {
    followed: Followed,
    port: u32,
    asked: Asked,
    links: BTreeMap<IfIndex, Known>,
    /// The links that were notified.
    touched: BTreeMap<IfIndex, Touched>,
    /// Our links of which entries have changed. If the link itself is gone, its entries do not count.
    entries: BTreeSet<IfIndex>,
    /// Settings that were changed, and whether to a value that harms.
    settings: BTreeMap<Setting, bool>,
    drift: Drift,
}

#[derive(Debug, Clone)]
struct Known {
    link: Link,
    addresses: BTreeMap<IpNet, Flags>,
}

/// What happened to a link since it was last judged.
#[derive(Debug)]
struct Touched {
    /// As it was then.
    before: Option<Known>,
    /// It went down, went, or lost an address while it was up, whatever came afterwards.
    dropped: bool,
}

/// The table of this machine's own addresses (RT_TABLE_LOCAL).
const LOCAL_TABLE: u32 = 255;

/// What an interface's choice looks at.
const TELLING: Flags = Flags::Permanent.union(Flags::Secondary).union(Flags::Deprecated);

impl View {
    /// `port` is that of the socket whose requests are ours.
    pub(crate) fn new(followed: Followed, port: u32, asked: Asked) -> Self {
        Self { followed, port, asked, ..Self::default() }
    }

    /// The links anew, as they stand; nothing is judged by it.
    pub(crate) fn list(&mut self, links: Vec<Link>, addresses: Vec<Address>) {
        self.touched.clear();
        let known = |link: Link| (link.index, Known { link, addresses: BTreeMap::new() });
        self.links = links.into_iter().map(known).collect();
        for address in addresses {
            if let Some(known) = self.links.get_mut(&address.link) {
                known.addresses.insert(address.net, address.flags & TELLING);
            }
        }
    }

    pub(crate) fn follow(&mut self, followed: Followed) {
        self.followed = followed;
    }

    /// Takes note of what cannot be told, or has been missed.
    pub(crate) fn lost(&mut self) {
        self.drift = Drift::EVERYTHING;
    }

    /// Takes note of a notification about a request of socket `port`; 0 if it names none.
    pub(crate) fn apply(&mut self, port: u32, message: RouteNetlinkMessage) {
        let ours = port == self.port;
        match message {
            RouteNetlinkMessage::NewLink(message) => self.set_link(message),
            RouteNetlinkMessage::DelLink(message) => self.remove_link(&message),
            RouteNetlinkMessage::NewAddress(message) => self.set_address(&message),
            RouteNetlinkMessage::DelAddress(message) => self.remove_address(&message),
            RouteNetlinkMessage::NewNeighbour(message) if !ours => self.set_neighbour(port, &message),
            RouteNetlinkMessage::DelNeighbour(message) if !ours => self.remove_neighbour(&message),
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) if !ours => {
                self.note_route(&message);
            }
            _ => {}
        }
    }

    /// Takes note of changed settings.
    pub(crate) fn apply_settings(&mut self, changed: impl IntoIterator<Item = (Setting, bool)>) {
        self.settings.extend(changed);
    }

    /// Whether there is something to judge.
    pub(crate) fn is_pending(&self) -> bool {
        !(self.touched.is_empty()
            && self.entries.is_empty()
            && self.settings.is_empty()
            && self.drift.is_nothing())
    }

    /// Every notification there is has been read.
    pub(crate) fn all_read(&self) {
        self.asked.with(Requests::all_read);
    }

    /// Judges what was noted since the last time.
    pub(crate) fn judge(&mut self) -> Drift {
        let mut drift = std::mem::take(&mut self.drift);
        for (index, touched) in std::mem::take(&mut self.touched) {
            drift |= self.judge_link(&touched, self.links.get(&index));
        }
        for index in std::mem::take(&mut self.entries) {
            drift.overlay |= self.links.get(&index).is_some_and(|known| self.is_ours(known));
        }
        for (setting, harmful) in std::mem::take(&mut self.settings) {
            let of_pods = |known: &Known| !self.is_ours(known) && !self.is_hosts(known);
            let matters = setting.link.is_none_or(|link| !self.links.get(&link).is_none_or(of_pods));
            let mut networks = self.followed.pod_networks.iter();
            let has_pods = networks.any(|network| Family::of(network) == setting.family);
            drift.settings |= harmful && matters && has_pods;
        }
        drift
    }

    fn judge_link(&self, touched: &Touched, after: Option<&Known>) -> Drift {
        let before = touched.before.as_ref();
        let either = |is: &dyn Fn(&Known) -> bool| before.is_some_and(is) || after.is_some_and(is);
        if either(&|known| self.is_ours(known)) {
            let overlay = self.asked.with(|requests| is_strange(requests, before, after));
            return Drift { overlay, ..Drift::default() };
        }
        if !either(&|known| self.is_hosts(known)) {
            return Drift::default();
        }
        let interfaces = match (before, after) {
            (Some(before), Some(after)) => before.differs(after),
            _ => true,
        };
        // With a link or an address the kernel removes routes, without a word in the case of IPv4.
        let routes = touched.dropped;
        Drift { interfaces, host_routes: routes, overlay: routes, settings: false }
    }

    fn set_link(&mut self, message: LinkMessage) {
        // Those of bridges tell of a port, and are no whole links.
        if message.header.interface_family == AddressFamily::Bridge {
            return;
        }
        let Some(link) = dump::read_link(message) else { return };
        self.touch(link.index, !link.up);
        let addresses = self.links.remove(&link.index).map(|known| known.addresses).unwrap_or_default();
        self.links.insert(link.index, Known { link, addresses });
    }

    fn remove_link(&mut self, message: &LinkMessage) {
        if message.header.interface_family != AddressFamily::Bridge {
            let index = IfIndex(message.header.index);
            self.touch(index, true);
            self.links.remove(&index);
        }
    }

    fn set_address(&mut self, message: &AddressMessage) {
        let Some(address) = dump::read_address(message) else { return };
        self.touch(address.link, false);
        if let Some(known) = self.links.get_mut(&address.link) {
            known.addresses.insert(address.net, address.flags & TELLING);
        }
    }

    fn remove_address(&mut self, message: &AddressMessage) {
        let Some(address) = dump::read_address(message) else { return };
        self.touch(address.link, true);
        if let Some(known) = self.links.get_mut(&address.link) {
            known.addresses.remove(&address.net);
        }
    }

    /// Notes that a link is about to change; with `loss` to one that keeps less, if it was up.
    fn touch(&mut self, index: IfIndex, loss: bool) {
        let before = self.links.get(&index);
        let loses = loss && before.is_some_and(|known| known.link.up);
        let touched =
            self.touched.entry(index).or_insert_with(|| Touched { before: before.cloned(), dropped: false });
        touched.dropped |= loses;
    }

    /// What the kernel makes by itself is not lasting: an address that it looks for, or has looked for in vain.
    fn set_neighbour(&mut self, port: u32, message: &NeighbourMessage) {
        let entry = dump::read_neighbour(message);
        if entry.is_permanent() || port != 0 {
            self.note_entry(&entry, |link| match entry.is_fdb {
                true => Some(Expected::FdbSet(link, entry.mac?, entry.address?)),
                false => None,
            });
        }
    }

    fn remove_neighbour(&mut self, message: &NeighbourMessage) {
        let entry = dump::read_neighbour(message);
        // What the link has learnt ages.
        if entry.is_fdb && !entry.is_permanent() {
            return;
        }
        self.note_entry(&entry, |link| match entry.is_fdb {
            true => Some(Expected::FdbRemoved(link, entry.mac?, entry.address?)),
            false => Some(Expected::NeighbourRemoved(link, entry.address?)),
        });
    }

    fn note_entry(&mut self, entry: &Neighbour, expected: impl Fn(LinkName) -> Option<Expected>) {
        let Some(known) = self.links.get(&entry.link).filter(|known| self.is_ours(known)) else { return };
        if entry.is_bridges || !entry.is_fdb && entry.address.is_none_or(|address| address.is_multicast()) {
            return;
        }
        let name = &known.link.name;
        let asked_for = self.asked.with(|requests| {
            expected(name.clone()).is_some_and(|expected| requests.take(&expected))
                || !entry.is_fdb && requests.expects(&Expected::NeighboursForgotten(name.clone()))
        });
        if !asked_for {
            self.entries.insert(entry.link);
        }
    }

    fn note_route(&mut self, message: &RouteMessage) {
        let Some(route) = dump::read_route(message) else { return };
        if message.header.flags.contains(RouteFlags::Cloned) || is_by_address(&route) {
            return;
        }
        let on_ours =
            route.hops.iter().find(|hop| self.links.get(&hop.link).is_some_and(|known| self.is_ours(known)));
        let pods = self.followed.pod_networks.iter().any(|net| net.contains(&route.destination));
        let single = route.destination.prefix_len() == route.destination.max_prefix_len();
        match on_ours {
            // The kernel's own routes come and go with the addresses.
            Some(_) if route.protocol == RouteProtocol::Kernel => {}
            Some(hop) => {
                self.entries.insert(hop.link);
            }
            None if u8::from(route.protocol) == ROUTE_PROTOCOL => self.drift.overlay = true,
            None if pods && single => {}
            None => {
                self.drift.host_routes = true;
                self.drift.overlay |= pods;
            }
        }
    }

    fn is_ours(&self, known: &Known) -> bool {
        known.link.alias.as_deref() == Some(LINK_ALIAS) || self.followed.links.contains(&known.link.name)
    }

    /// Whether it is one of the machine's own interfaces: it has an address that is no pod's and leads somewhere.
    fn is_hosts(&self, known: &Known) -> bool {
        known.addresses.keys().map(IpNet::addr).any(|address| {
            let of_pods = self.followed.pod_networks.iter().any(|net| net.contains(&address));
            !(of_pods || address.is_loopback() || is_link_local(address))
        })
    }
}

impl Known {
    fn differs(&self, after: &Self) -> bool {
        let facts = |known: &Self| {
            let link = &known.link;
            (link.name.clone(), link.mtu, link.up, known.addresses.clone())
        };
        facts(self) != facts(after)
    }
}

/// Whether one of our links is not as it was or as we asked for it to be.
fn is_strange(requests: &mut Requests, before: Option<&Known>, after: Option<&Known>) -> bool {
    let Some(after) = after else {
        return before.is_some_and(|before| !requests.take(&Expected::LinkRemoved(before.link.name.clone())));
    };
    let name = &after.link.name;
    let unexpected = before.is_none() && !requests.take(&Expected::LinkAdded(name.clone()));
    let none = Settings::default();
    let asked = requests.links.get(name).unwrap_or(&none);
    let was = before.unwrap_or(after);
    let link = &after.link;
    let mtu = asked.mtu.unwrap_or(was.link.mtu);
    let mac = asked.mac.or(was.link.mac);
    let up = asked.up.unwrap_or(was.link.up);
    let marked = link.alias == was.link.alias || link.alias.as_deref() == Some(LINK_ALIAS);
    unexpected
        || (link.mtu, link.mac, link.up) != (mtu, mac, up)
        || !marked
        || (&link.kind, name) != (&asked.kind(&was.link.kind), &was.link.name)
        || link.controller.is_some() && link.controller != was.link.controller
        || has_strange_addresses(requests, name, &was.addresses, &after.addresses)
}

/// Link-local addresses of IPv6 are the kernel's own affair.
fn has_strange_addresses(
    requests: &Requests,
    name: &LinkName,
    before: &BTreeMap<IpNet, Flags>,
    after: &BTreeMap<IpNet, Flags>,
) -> bool {
    let asked_for = |address: &IpNet| {
        requests.links.get(name).is_some_and(|settings| settings.addresses.contains(address))
    };
    let matters = |address: &&IpNet| match address.addr() {
        IpAddr::V4(_) => true,
        address => !is_link_local(address),
    };
    let new = after.keys().filter(|address| !before.contains_key(address)).filter(matters);
    let gone = before.keys().filter(|address| !after.contains_key(address)).filter(matters);
    new.into_iter().any(|address| !asked_for(address))
        || gone
            .into_iter()
            .any(|address| !requests.expects(&Expected::AddressRemoved(name.clone(), *address)))
}

/// Routes that the kernel makes of every address: to the address itself, to broadcast and multicast addresses, to
/// link-local ones. What matters of them the addresses tell.
fn is_by_address(route: &RouteEntry) -> bool {
    let destination = route.destination.addr();
    let of_kind = matches!(
        route.kind,
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
    );
    of_kind
        || route.table == LOCAL_TABLE
        || destination.is_multicast()
        || (is_link_local(destination) && destination.is_ipv6())
}
