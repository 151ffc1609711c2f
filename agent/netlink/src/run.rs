//! Carries out steps.

use std::collections::{BTreeMap, BTreeSet};
use std::{fs, io, mem};

use ipnet::IpNet;
use nix::errno::Errno;
use podway_overlay::{
    Family, FdbKey, IfIndex, LinkKind, LinkName, NeighbourKey, Op, Route, Sysctl, VxlanLink, VxlanState,
};

use crate::ROUTE_PROTOCOL;
use crate::dump::{self, Link, Routes};
use crate::error::{Error, PortUser};
use crate::netlink::Netlink;
use crate::observe::sysctl_path;
use crate::render::{self, Request};

/// Requests under way at once. The kernel answers each with up to a kilobyte of its receive buffer, of which a socket
/// has 208 KiB by default.
const BATCH: usize = 64;

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
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    /// The step.
    pub op: Op,
    /// Why.
    pub error: Error,
}

impl Report {
    /// Whether the kernel is as all steps say.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.skipped.is_empty()
    }
}

pub(crate) async fn run(netlink: &Netlink, ops: &[Op]) -> Report {
    let mut run =
        Run { netlink, indexes: BTreeMap::new(), broken: Broken::default(), report: Report::default() };
    for group in ops.chunk_by(|a, b| is_row(a) && mem::discriminant(a) == mem::discriminant(b)) {
        for batch in group.chunks(BATCH) {
            run.batch(batch).await;
        }
    }
    run.report
}

/// Steps of one kind on entries have nothing to do with each other.
fn is_row(op: &Op) -> bool {
    matches!(
        op,
        Op::SetNeighbour(..)
            | Op::RemoveNeighbour(_)
            | Op::SetFdb(..)
            | Op::RemoveFdb(..)
            | Op::SetRoute(..)
            | Op::RemoveRoute(..)
    )
}

struct Run<'a> {
    netlink: &'a Netlink,
    indexes: BTreeMap<LinkName, IfIndex>,
    broken: Broken,
    report: Report,
}

impl Run<'_> {
    /// Sends every request of the batch, then looks at the answers.
    async fn batch(&mut self, ops: &[Op]) {
        let mut pending = Vec::new();
        for op in ops {
            if self.broken.blocks(op) {
                self.broken.note(op);
                self.report.skipped.push(op.clone());
                continue;
            }
            self.broken.seen(op);
            tracing::debug!(%op, "step");
            match self.request(op).await {
                Ok(Some(request)) => pending.push((op, self.netlink.send(request.0, request.1))),
                Ok(None) => self.report.done += 1,
                Err(error) => self.fail(op, error),
            }
        }
        for (op, answer) in pending {
            let result = match answer.wait().await {
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
        self.broken.note(op);
        self.report.failures.push(Failure { op: op.clone(), error });
    }

    /// The request for a step; `None` if there is nothing to ask of the kernel.
    async fn request(&mut self, op: &Op) -> Result<Option<Request>, Error> {
        let link = match op {
            Op::AddLink { name, link } => return Ok(Some(render::add_link(name, link))),
            Op::SetSysctl(sysctl) => return write(sysctl).map(|()| None),
            op => link_of(op),
        };
        let Some(link) = link else { return Ok(None) };
        let Some(index) = self.index(link).await? else {
            return match is_removal(op) {
                true => Ok(None),
                false => Err(Error::NoLink { operation: op.to_string(), link: link.clone() }),
            };
        };
        Ok(request_on(op, index))
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
                self.ask(op, render::set_link(index, None, None)).await
            }
            Op::RemoveLink { .. } => {
                self.indexes.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Looks closer at a refusal: what is there already or gone already is as wanted, and a port in use or a route
    /// of somebody else is worth a name.
    async fn second_try(&mut self, op: &Op, source: io::Error) -> Result<(), Error> {
        let refusal = Refusal::of(&source);
        match (op, refusal) {
            (op, Refusal::Missing) if is_removal(op) => Ok(()),
            (Op::AddAddress(..), Refusal::Exists) => Ok(()),
            (Op::SetRoute(subnet, route), Refusal::Exists) => self.replace_route(op, subnet, route).await,
            (Op::AddLink { name, link }, Refusal::Exists) => self.explain_link(op, name, link, source).await,
            (Op::LinkUp(name), Refusal::InUse) => self.explain_port(op, name, source).await,
            _ => Err(Error::refused(op, source)),
        }
    }

    /// The link may be there as wanted, left by an earlier try; else another one has the VNI on this port.
    async fn explain_link(
        &mut self,
        op: &Op,
        name: &LinkName,
        link: &VxlanLink,
        source: io::Error,
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
            Some(other) => Err(port_in_use(op, link.port, PortUser::Link(other.name.clone()), source)),
            None => Err(Error::refused(op, source)),
        }
    }

    /// A VXLAN link shares its port with links of the same modes only.
    async fn explain_port(&self, op: &Op, name: &LinkName, source: io::Error) -> Result<(), Error> {
        let links = dump::links(self.netlink).await?;
        let Some(port) = links.iter().find(|link| link.name == *name).and_then(vxlan_port) else {
            return Err(Error::refused(op, source));
        };
        let other = links.iter().find(|link| link.name != *name && link.up && vxlan_port(link) == Some(port));
        let by = other.map_or(PortUser::Unknown, |link| PortUser::Link(link.name.clone()));
        Err(port_in_use(op, port, by, source))
    }

    /// Replaces a route of ours, or one on the link where ours belongs; never one of somebody else.
    async fn replace_route(&mut self, op: &Op, subnet: &IpNet, route: &Route) -> Result<(), Error> {
        let Some(index) = self.index(&route.link).await? else {
            return Err(Error::NoLink { operation: op.to_string(), link: route.link.clone() });
        };
        let routes = dump::routes(self.netlink, Family::of(subnet), Routes::All).await?;
        let foreign = routes.iter().find(|hop| {
            hop.destination == *subnet
                && hop.priority == default_priority(subnet)
                && hop.link != index
                && u8::from(hop.protocol) != ROUTE_PROTOCOL
        });
        if let Some(hop) = foreign {
            let via = hop.via.map_or(String::new(), |via| format!("via {via} "));
            let link = self.indexes.iter().find(|(_, index)| **index == hop.link);
            let dev = link.map_or("?", |(name, _)| name.as_str());
            let found = format!("{via}dev {dev} protocol {}", u8::from(hop.protocol));
            return Err(Error::ForeignRoute { subnet: *subnet, found });
        }
        self.ask(op, render::replace_route(index, subnet, route)).await
    }

    async fn ask(&self, op: &Op, request: Request) -> Result<(), Error> {
        let answer = self.netlink.send(request.0, request.1).wait().await;
        answer.map_err(|source| Error::refused(op, source))
    }
}

/// What failed, and therefore what must not be built on it.
#[derive(Debug, Default)]
struct Broken {
    links: BTreeSet<LinkName>,
    neighbours: BTreeSet<NeighbourKey>,
    fdb: BTreeSet<FdbKey>,
    /// Links on which something was to be set and was not: nothing is removed from them.
    unsettled: BTreeSet<LinkName>,
    /// The FDB entry that each neighbour of this run needs.
    needs: BTreeMap<NeighbourKey, FdbKey>,
}

impl Broken {
    fn seen(&mut self, op: &Op) {
        if let Op::SetNeighbour(key, mac) = op {
            self.needs.insert(key.clone(), FdbKey { link: key.link.clone(), mac: *mac });
        }
    }

    fn blocks(&self, op: &Op) -> bool {
        if link_of(op).is_some_and(|link| self.links.contains(link)) {
            return true;
        }
        match op {
            Op::SetNeighbour(key, mac) => self.fdb.contains(&FdbKey { link: key.link.clone(), mac: *mac }),
            Op::SetRoute(_, route) => {
                let key = NeighbourKey { link: route.link.clone(), address: route.via };
                self.neighbours.contains(&key)
                    || self.needs.get(&key).is_some_and(|fdb| self.fdb.contains(fdb))
            }
            Op::RemoveNeighbour(NeighbourKey { link, .. }) | Op::RemoveFdb(FdbKey { link, .. }, _) => {
                self.unsettled.contains(link)
            }
            _ => false,
        }
    }

    fn note(&mut self, op: &Op) {
        match op {
            Op::AddLink { name, .. } | Op::LinkUp(name) | Op::RemoveLink { name, .. } => {
                self.links.insert(name.clone());
            }
            Op::SetNeighbour(key, _) => {
                self.neighbours.insert(key.clone());
                self.unsettled.insert(key.link.clone());
            }
            Op::SetFdb(key, _) => {
                self.fdb.insert(key.clone());
                self.unsettled.insert(key.link.clone());
            }
            Op::SetRoute(_, route) => drop(self.unsettled.insert(route.link.clone())),
            _ => {}
        }
    }
}

/// The classes of refusal that mean something to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Missing,
    Exists,
    InUse,
    Other,
}

impl Refusal {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EEXIST) => Self::Exists,
            Some(Errno::EADDRINUSE) => Self::InUse,
            Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL) => Self::Missing,
            _ => Self::Other,
        }
    }
}

fn request_on(op: &Op, index: IfIndex) -> Option<Request> {
    Some(match op {
        Op::SetLink { mtu, mac, .. } => render::set_link(index, *mtu, *mac),
        Op::LinkUp(_) => render::link_up(index),
        Op::RemoveLink { .. } => render::remove_link(index),
        Op::AddAddress(_, address) => render::add_address(index, address),
        Op::RemoveAddress(_, address) => render::remove_address(index, address),
        Op::SetNeighbour(key, mac) => render::set_neighbour(index, key.address, *mac),
        Op::RemoveNeighbour(key) => render::remove_neighbour(index, key.address),
        Op::SetFdb(key, underlay) => render::set_fdb(index, key.mac, *underlay),
        Op::RemoveFdb(key, underlay) => render::remove_fdb(index, key.mac, *underlay),
        Op::SetRoute(subnet, route) => render::add_route(index, subnet, route),
        Op::RemoveRoute(subnet, route) => render::remove_route(index, subnet, route),
        Op::AddLink { .. } | Op::SetSysctl(_) => return None,
    })
}

fn link_of(op: &Op) -> Option<&LinkName> {
    match op {
        Op::AddLink { name, .. } | Op::SetLink { name, .. } | Op::RemoveLink { name, .. } => Some(name),
        Op::LinkUp(link) | Op::AddAddress(link, _) | Op::RemoveAddress(link, _) => Some(link),
        Op::SetNeighbour(key, _) | Op::RemoveNeighbour(key) => Some(&key.link),
        Op::SetFdb(key, _) | Op::RemoveFdb(key, _) => Some(&key.link),
        Op::SetRoute(_, route) | Op::RemoveRoute(_, route) => Some(&route.link),
        Op::SetSysctl(Sysctl::AcceptRa(link)) => Some(link),
        Op::SetSysctl(Sysctl::Forwarding(_)) => None,
    }
}

fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::RemoveLink { .. }
            | Op::RemoveAddress(..)
            | Op::RemoveNeighbour(_)
            | Op::RemoveFdb(..)
            | Op::RemoveRoute(..)
    )
}

/// A kernel without IPv6 takes no router advertisements either.
fn write(sysctl: &Sysctl) -> Result<(), Error> {
    let path = sysctl_path(sysctl);
    let value = sysctl.wanted();
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && matches!(sysctl, Sysctl::AcceptRa(_)) => {
            Ok(())
        }
        result => result.map_err(|source| Error::Sysctl { path, value, source }),
    }
}

/// The metric of a route that was given none.
fn default_priority(subnet: &IpNet) -> u32 {
    match Family::of(subnet) {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

fn vxlan_port(link: &Link) -> Option<u16> {
    match &link.kind {
        LinkKind::Vxlan(found) => Some(found.port),
        LinkKind::Other(_) => None,
    }
}

fn port_in_use(op: &Op, port: u16, by: PortUser, source: io::Error) -> Error {
    Error::PortInUse { operation: op.to_string(), port, by, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n14_no_route_is_set_without_its_entries_and_nothing_is_removed_meanwhile() {
        let (neighbour, fdb, route) = peer(2);
        for failed in [&neighbour, &fdb] {
            let mut broken = Broken::default();
            [&neighbour, &fdb].into_iter().for_each(|op| broken.seen(op));
            assert!(!broken.blocks(&route));
            broken.note(failed);
            assert!(broken.blocks(&route), "{failed}");
            let (other_neighbour, other_fdb, other_route) = peer(3);
            for other in [other_neighbour, other_fdb, other_route] {
                assert!(!broken.blocks(&other), "another peer goes on: {other}");
            }
            let Op::SetNeighbour(key, _) = &neighbour else { panic!("a neighbour") };
            assert!(broken.blocks(&Op::RemoveNeighbour(key.clone())));
        }
    }

    #[test]
    fn a_neighbour_keeps_its_mac_while_the_fdb_does_not_know_the_new_one() {
        let (neighbour, fdb, _) = peer(2);
        let mut broken = Broken::default();
        broken.note(&fdb);
        assert!(broken.blocks(&neighbour));
    }

    #[test]
    fn a_link_that_fails_takes_its_steps_along_and_no_others() {
        let (neighbour, fdb, route) = peer(2);
        let mut broken = Broken::default();
        broken.note(&Op::LinkUp(link("flannel.1")));
        assert!([neighbour, fdb, route].iter().all(|op| broken.blocks(op)));
        assert!(!broken.blocks(&Op::LinkUp(link("flannel-v6.1"))));
        assert!(!broken.blocks(&Op::SetSysctl(Sysctl::Forwarding(Family::V4))));
    }

    fn peer(n: u8) -> (Op, Op, Op) {
        let (link, mac) = (link("flannel.1"), podway_overlay::Mac::new([2, 0, 0, 0, 0, n]));
        let via = [10, 244, n, 0].into();
        (
            Op::SetNeighbour(NeighbourKey { link: link.clone(), address: via }, mac),
            Op::SetFdb(FdbKey { link: link.clone(), mac }, [192, 0, 2, n].into()),
            Op::SetRoute(IpNet::from(via), Route { via, link, onlink: true }),
        )
    }

    fn link(name: &str) -> LinkName {
        LinkName::new(name).unwrap()
    }
}
