//! Carries out steps.

use std::collections::BTreeMap;
use std::{fs, io, mem};

use ipnet::IpNet;
use netlink_packet_route::route::{RouteProtocol, RouteType};
use nix::errno::Errno;
use podway_overlay::{
    Family, IfIndex, LinkKind, LinkName, Op, PerFamily, Route, Sysctl, VxlanLink, VxlanState, WhyRemoved,
};

use crate::ROUTE_PROTOCOL;
use crate::batch;
use crate::broken::{Broken, link_of};
use crate::dump::{self, Link, RouteEntry, Routes};
use crate::error::{Error, PortUser};
use crate::netlink::Netlink;
use crate::observe::{flannels_hop, is_plain, sysctl_path};
use crate::render::{self, Request};

/// What came of the steps.
#[derive(Debug, Default)]
pub struct Report {
    /// Steps after which the kernel is as they say, whether or not anything had to change.
    pub done: usize,
    /// Steps that failed.
    pub failures: Vec<Failure>,
    /// Steps that were left out, because one that they build on had failed: a route without its entries, or the
    /// removal of what may still be in use.
    pub skipped: Vec<Op>,
    /// Steps that failed without harm: the pod network works, though not quite as it should.
    pub warnings: Vec<Failure>,
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    /// The step.
    pub op: Op,
    /// Why.
    pub error: Error,
}

pub(crate) async fn run(netlink: &Netlink, ops: &[Op]) -> Report {
    let mut run = Run {
        netlink,
        indexes: BTreeMap::new(),
        routes: PerFamily::default(),
        asked_for: 0,
        broken: Broken::default(),
        report: Report::default(),
    };
    for group in ops.chunk_by(|a, b| a.is_row() && mem::discriminant(a) == mem::discriminant(b)) {
        for batch in group.chunks(batch::LARGEST) {
            run.batch(batch).await;
        }
    }
    run.report
}

/// To list thousands of routes takes as long as to ask for some dozens.
const AT_MOST_ASKED_FOR: usize = 32;

struct Run<'a> {
    netlink: &'a Netlink,
    indexes: BTreeMap<LinkName, IfIndex>,
    /// The routes that stood when many had been in the way: one list serves a whole run.
    routes: PerFamily<Option<BTreeMap<IpNet, Vec<RouteEntry>>>>,
    /// How many of them the kernel was asked for one by one.
    asked_for: usize,
    broken: Broken,
    report: Report,
}

impl Run<'_> {
    /// Sends the requests of the batch together, then looks at the answers.
    async fn batch(&mut self, ops: &[Op]) {
        let (mut pending, mut requests) = (Vec::new(), Vec::new());
        for op in ops {
            if self.broken.blocks(op) {
                self.broken.note(op);
                self.report.skipped.push(op.clone());
                continue;
            }
            self.broken.seen(op);
            tracing::debug!(%op, "step");
            match self.request(op).await {
                Ok(Some(request)) => {
                    pending.push(op);
                    requests.push(request);
                }
                Ok(None) => self.report.done += 1,
                Err(error) => self.fail(op, error),
            }
        }
        let answers = match self.netlink.send(requests).await {
            Ok(answers) => answers,
            // Whatever came of the others, no answer can be told from another any more.
            Err(cause) => pending.iter().map(|_| Err(again(&cause))).collect(),
        };
        for (op, answer) in pending.into_iter().zip(answers) {
            let result = match answer {
                Ok(()) => self.finish(op).await,
                Err(error) => self.second_try(op, error).await,
            };
            match result {
                Ok(()) => self.report.done += 1,
                Err(error) => self.fail(op, error),
            }
        }
    }

    fn fail(&mut self, op: &Op, error: Error) {
        if is_harmless(op) {
            match error.is_read_only() {
                true => tracing::debug!("{error}"),
                false => tracing::warn!("{error}"),
            }
            return self.report.warnings.push(Failure { op: op.clone(), error });
        }
        self.broken.note(op);
        self.report.failures.push(Failure { op: op.clone(), error });
    }

    /// The request for a step; `None` if there is nothing to ask of the kernel.
    async fn request(&mut self, op: &Op) -> Result<Option<Request>, Error> {
        let link = match op {
            Op::AddLink { name, link } => return Ok(Some(render::add_link(name, link))),
            Op::SetSysctl(sysctl) => return write_sysctl(sysctl).map(|()| None),
            Op::SetBlackhole(subnet) => return Ok(Some(render::set_blackhole(subnet))),
            Op::RemoveBlackhole(subnet) => return Ok(Some(render::remove_blackhole(subnet))),
            op => link_of(op),
        };
        let Some(link) = link else { return Ok(None) };
        let Some(index) = self.index(link).await? else {
            return match is_removal(op) {
                true => Ok(None),
                false => Err(Error::NoLink { operation: op.to_string(), link: link.clone() }),
            };
        };
        if let Op::SetOffload(_, on) = op {
            return self.set_offload(op, index, *on).map(|()| None);
        }
        Ok(request_on(op, index))
    }

    fn set_offload(&self, op: &Op, link: IfIndex, on: bool) -> Result<(), Error> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let set =
            self.netlink.ethtool().ok_or_else(unsupported).and_then(|ethtool| ethtool.set_offload(link, on));
        set.map_err(|cause| Error::refused(op, cause))
    }

    async fn index(&mut self, link: &LinkName) -> Result<Option<IfIndex>, Error> {
        if !self.indexes.contains_key(link) {
            let links = dump::links(self.netlink).await?;
            self.indexes = links.into_iter().map(|link| (link.name, link.index)).collect();
        }
        Ok(self.indexes.get(link).copied())
    }

    /// What a step needs besides its request.
    async fn finish(&mut self, op: &Op) -> Result<(), Error> {
        match op {
            Op::AddLink { name, .. } => {
                self.indexes.clear();
                let Some(index) = self.index(name).await? else {
                    return Err(Error::NoLink { operation: op.to_string(), link: name.clone() });
                };
                self.ask(op, render::mark(index)).await
            }
            Op::RemoveLink { name, why } => {
                self.indexes.clear();
                match why {
                    WhyRemoved::CleanUp => {}
                    why => tracing::warn!("link {name} is removed with all that is on it: {why}"),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Looks closer at a refusal: what is there already or gone already is as wanted, and what
    /// has nothing to do with rights, a port in use and a route of somebody else are worth a name.
    async fn second_try(&mut self, op: &Op, cause: io::Error) -> Result<(), Error> {
        let refusal = Refusal::of(&cause);
        match (op, refusal) {
            (op, Refusal::Missing) if is_removal(op) => Ok(()),
            (Op::AddAddress(..), Refusal::Exists) => Ok(()),
            (Op::SetRoute(subnet, route), Refusal::Exists) => self.replace_route(op, subnet, route).await,
            (Op::SetRoute(subnet, route), Refusal::Invalid) => {
                self.replace_plain_route(op, subnet, route, cause).await
            }
            (Op::AddLink { name, link }, Refusal::Exists) => self.explain_link(op, name, link, cause).await,
            (Op::AddLink { link, .. }, Refusal::Forbidden) => self.explain_ipv6(op, link, cause).await,
            (Op::SetLink { name, tunnel: Some(_), .. }, _) => self.give_up(op, name, cause).await,
            (Op::LinkUp(name), Refusal::InUse) => self.explain_port(op, name, cause).await,
            _ => Err(Error::refused(op, cause)),
        }
    }

    /// A kernel that cannot change a link in place has it made again, by the steps that follow upon this failure.
    async fn give_up(&mut self, op: &Op, name: &LinkName, cause: io::Error) -> Result<(), Error> {
        let refused = Error::refused(op, cause);
        let Some(index) = self.index(name).await? else { return Err(refused) };
        let why = WhyRemoved::Unfit(refused.to_string());
        let removal = Op::RemoveLink { name: name.clone(), why };
        self.netlink.asked().note(std::slice::from_ref(&removal));
        self.ask(&removal, render::remove_link(index)).await?;
        self.finish(&removal).await?;
        Err(refused)
    }

    /// The link may be there as wanted, left by an earlier try; else another one has the VNI on this port.
    async fn explain_link(
        &mut self,
        op: &Op,
        name: &LinkName,
        link: &VxlanLink,
        cause: io::Error,
    ) -> Result<(), Error> {
        let links = dump::links(self.netlink).await?;
        let wanted = VxlanState::from(link);
        if links.iter().any(|other| other.name == *name && other.kind == LinkKind::Vxlan(wanted.clone())) {
            return self.finish(op).await;
        }
        let taken = links.iter().find(|other| match &other.kind {
            LinkKind::Vxlan(found) => {
                other.name != *name && (found.vni, found.port) == (wanted.vni, wanted.port)
            }
            LinkKind::Other(_) => false,
        });
        match taken {
            Some(other) => Err(port_in_use(op, link.port, PortUser::Link(other.name.clone()), cause)),
            None => Err(Error::refused(op, cause)),
        }
    }

    /// The kernel answers EPERM, as if rights were missing, where the lower interface has IPv6 switched off.
    async fn explain_ipv6(&self, op: &Op, link: &VxlanLink, cause: io::Error) -> Result<(), Error> {
        let links = dump::links(self.netlink).await?;
        let lower =
            links.into_iter().find(|other| other.index == link.lower).filter(|_| link.local.is_ipv6());
        let off = |name: &LinkName| {
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
        };
        match lower.map(|lower| lower.name).filter(off) {
            Some(interface) => Err(Error::Ipv6Off { operation: op.to_string(), interface, cause }),
            None => Err(Error::refused(op, cause)),
        }
    }

    /// A VXLAN link shares its port with links of the same modes only.
    async fn explain_port(&self, op: &Op, name: &LinkName, cause: io::Error) -> Result<(), Error> {
        let links = dump::links(self.netlink).await?;
        let Some(port) = links.iter().find(|link| link.name == *name).and_then(vxlan_port) else {
            return Err(Error::refused(op, cause));
        };
        let other = links.iter().find(|link| link.name != *name && link.up && vxlan_port(link) == Some(port));
        let by = other.map_or(PortUser::Unknown, |link| PortUser::Link(link.name.clone()));
        Err(port_in_use(op, port, by, cause))
    }

    /// Replaces a route of ours, or one on the link where ours belongs; never one of somebody else.
    async fn replace_route(&mut self, op: &Op, subnet: &IpNet, route: &Route) -> Result<(), Error> {
        let Some(index) = self.index(&route.link).await? else {
            return Err(Error::NoLink { operation: op.to_string(), link: route.link.clone() });
        };
        // The kernel has one, for it refused ours: if the list has none, the list is old.
        let mut routes = self.routes_to(subnet).await?;
        if !routes.iter().any(is_plain) {
            *self.routes.get_mut(Family::of(subnet)) = None;
            routes = self.routes_to(subnet).await?;
        }
        let foreign = |entry: &&RouteEntry| is_plain(entry) && !self.is_replaceable(entry, route, index);
        if let Some(entry) = routes.iter().find(foreign) {
            return Err(Error::ForeignRoute { subnet: *subnet, found: self.describe(entry) });
        }
        self.ask(op, render::replace_route(index, subnet, route)).await
    }

    /// The kernel takes no IPv6 gateway for one that is on our link while another link has the route to it, which is
    /// just the one to be replaced where a peer stops being a neighbour (ip6_route_check_nh_onlink). A longer route to
    /// the gateway alone lets it pass, and goes again; should we not get that far, it expires.
    async fn replace_plain_route(
        &mut self,
        op: &Op,
        subnet: &IpNet,
        route: &Route,
        cause: io::Error,
    ) -> Result<(), Error> {
        let ours = |entry: &RouteEntry| u8::from(entry.protocol) == ROUTE_PROTOCOL;
        if !route.onlink || !self.routes_to(subnet).await?.iter().any(ours) {
            return self.explain_gateway(op, subnet, cause).await;
        }
        let Some(index) = self.index(&route.link).await? else {
            return Err(Error::NoLink { operation: op.to_string(), link: route.link.clone() });
        };
        self.ask(op, render::set_stepping_stone(index, route.via)).await?;
        let replaced = self.replace_route(op, subnet, route).await;
        self.ask(op, render::remove_stepping_stone(index, route.via)).await?;
        replaced
    }

    /// The kernel takes no IPv6 gateway for one that is on our link if another link has a route to it.
    async fn explain_gateway(&mut self, op: &Op, subnet: &IpNet, cause: io::Error) -> Result<(), Error> {
        match self.routes_to(subnet).await?.iter().find(|entry| u8::from(entry.protocol) != ROUTE_PROTOCOL) {
            Some(entry) => Err(Error::ForeignRoute { subnet: *subnet, found: self.describe(entry) }),
            None => Err(Error::refused(op, cause)),
        }
    }

    /// The routes to this very destination, whatever their metric; at least the one that is in the way of ours.
    ///
    /// The kernel is asked for it alone, so that a change costs the same whatever the number of routes (contract N17);
    /// for a list where that does not tell, and where many are in the way.
    async fn routes_to(&mut self, subnet: &IpNet) -> Result<Vec<RouteEntry>, Error> {
        let family = Family::of(subnet);
        if self.routes.get(family).is_none() && self.asked_for < AT_MOST_ASKED_FOR {
            self.asked_for += 1;
            let found = dump::route_to(self.netlink, subnet).await?;
            let tells = |entry: &RouteEntry| {
                entry.destination == *subnet && is_plain(entry) && entry.only_hop().is_some()
            };
            if let Some(entry) = found.filter(tells) {
                return Ok(vec![entry]);
            }
        }
        if self.routes.get(family).is_none() {
            let mut routes: BTreeMap<IpNet, Vec<RouteEntry>> = BTreeMap::new();
            for entry in dump::routes(self.netlink, family, Routes::All).await? {
                routes.entry(entry.destination).or_default().push(entry);
            }
            *self.routes.get_mut(family) = Some(routes);
        }
        let routes = self.routes.get(family).as_ref();
        Ok(routes.and_then(|routes| routes.get(subnet)).cloned().unwrap_or_default())
    }

    fn describe(&self, entry: &RouteEntry) -> String {
        let mut words = match entry.kind {
            RouteType::Unicast => Vec::new(),
            kind => vec![format!("{kind:?}").to_lowercase()],
        };
        for hop in &entry.hops {
            words.extend(hop.via.map(|via| format!("via {via}")));
            let link = self.indexes.iter().find(|(_, index)| **index == hop.link);
            words.push(format!("dev {}", link.map_or("?", |(name, _)| name.as_str())));
        }
        words.push(format!("protocol {}", u8::from(entry.protocol)));
        words.join(" ")
    }

    /// Whether the route is ours, or may be one of flannel's: those have the protocol of routes of which nobody said
    /// whose they are, and lead the very way that ours is to lead, or stand on the VXLAN link where ours belongs or
    /// flannel's did.
    fn is_replaceable(&self, entry: &RouteEntry, wanted: &Route, link: IfIndex) -> bool {
        if u8::from(entry.protocol) == ROUTE_PROTOCOL {
            return true;
        }
        let Some(hop) = entry.only_hop().filter(|_| entry.protocol == RouteProtocol::Boot) else {
            return false;
        };
        let flannels = || {
            let name = self.indexes.iter().find(|(_, index)| **index == hop.link);
            flannels_hop(entry).is_some()
                && name.is_some_and(|(name, _)| name.as_str().starts_with("flannel"))
        };
        let on_ours = wanted.onlink && hop.link == link;
        on_ours || (hop.link == link && hop.via == Some(wanted.via)) || flannels()
    }

    async fn ask(&self, op: &Op, request: Request) -> Result<(), Error> {
        let answer = self.netlink.send(vec![request]).await.and_then(|answers| answers.into_iter().collect());
        answer.map_err(|cause| Error::refused(op, cause))
    }
}

/// The classes of refusal that mean something to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Missing,
    Exists,
    InUse,
    Forbidden,
    Invalid,
    Other,
}

impl Refusal {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EEXIST) => Self::Exists,
            Some(Errno::EPERM) => Self::Forbidden,
            Some(Errno::EINVAL) => Self::Invalid,
            Some(Errno::EADDRINUSE) => Self::InUse,
            Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL) => Self::Missing,
            _ => Self::Other,
        }
    }
}

fn request_on(op: &Op, index: IfIndex) -> Option<Request> {
    Some(match op {
        Op::SetLink { mtu, mac, tunnel, release, .. } => {
            render::set_link(index, *mtu, *mac, tunnel.as_ref(), *release)
        }
        Op::LinkUp(_) => render::link_up(index),
        Op::RemoveLink { .. } => render::remove_link(index),
        Op::AddAddress(_, address) => render::add_address(index, address),
        Op::RemoveAddress(_, address) => render::remove_address(index, address),
        Op::SetNeighbour(key, mac) => render::set_neighbour(index, key.address, *mac),
        Op::RemoveNeighbour(key) => render::remove_neighbour(index, key.address),
        Op::SetFdb(key, underlay) => render::set_fdb(index, key.mac, *underlay),
        Op::RemoveFdb(key, underlay) => render::remove_fdb(index, key.mac, *underlay),
        Op::SetRoute(subnet, route) => render::add_route(index, subnet, route),
        Op::RemoveRoute(subnet, route, whose) => render::remove_route(index, subnet, route, *whose),
        Op::AddLink { .. }
        | Op::SetSysctl(_)
        | Op::SetOffload(..)
        | Op::SetBlackhole(_)
        | Op::RemoveBlackhole(_) => return None,
    })
}

fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::RemoveLink { .. }
            | Op::RemoveAddress(..)
            | Op::RemoveNeighbour(_)
            | Op::RemoveFdb(..)
            | Op::RemoveRoute(..)
            | Op::RemoveBlackhole(_)
    )
}

/// What goes wrong if router advertisements are taken on a VXLAN link is nothing as long as no peer sends any; a strict
/// reverse path filter drops only what comes another way than it would go; checksums are right with most cards.
fn is_harmless(op: &Op) -> bool {
    matches!(op, Op::SetSysctl(Sysctl::AcceptRa(_) | Sysctl::RpFilter(_)) | Op::SetOffload(..))
}

/// The same error once more.
fn again(cause: &io::Error) -> io::Error {
    match cause.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(cause.kind(), cause.to_string()),
    }
}

/// A kernel without IPv6, or without the interface, takes no router advertisements either.
fn write_sysctl(sysctl: &Sysctl) -> Result<(), Error> {
    let path = sysctl_path(sysctl);
    let value = sysctl.wanted();
    match fs::write(&path, value) {
        Ok(()) => {
            match sysctl {
                Sysctl::AcceptRa(_) | Sysctl::RpFilter(_) => {}
                Sysctl::Forwarding(_) | Sysctl::LinkForwarding(..) => tracing::info!("{path} is now {value}"),
                Sysctl::KeepRa(link) => tracing::info!(
                    "{path} is now {value}: {link} keeps its default route when forwarding is switched on"
                ),
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !matches!(sysctl, Sysctl::Forwarding(_)) => {
            Ok(())
        }
        Err(cause) => Err(Error::Sysctl { path, value, cause }),
    }
}

fn vxlan_port(link: &Link) -> Option<u16> {
    match &link.kind {
        LinkKind::Vxlan(found) => Some(found.port),
        LinkKind::Other(_) => None,
    }
}

fn port_in_use(op: &Op, port: u16, by: PortUser, cause: io::Error) -> Error {
    Error::PortInUse { operation: op.to_string(), port, by, cause }
}
