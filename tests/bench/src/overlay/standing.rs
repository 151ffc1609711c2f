//! What stands in a node's kernel for each peer, by the kernel's own notifications: nobody who asks for whole tables
//! slows the daemon down, and no table is taken for all three.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use podway_testkit::Node;

use super::peers;

/// `RTMGRP_NEIGH`, to which FDB entries belong, and `RTMGRP_IPV4_ROUTE` (linux/rtnetlink.h).
const GROUPS: u32 = 0x4 | 0x40;

/// Room for all that 5,000 peers bring if this program does not get to read meanwhile: 15,000 messages, each of which
/// the kernel counts with more than a KiB.
const RECEIVE_BUFFER: usize = 64 << 20;

/// The caller looks at the daemon as often.
const PATIENCE: TimeVal = TimeVal::new(0, 100_000);

/// A kind of entry that each peer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Neighbours,
    Fdb,
    Routes,
}

/// How many entries there are a peer.
const TABLES: usize = 3;

/// Listens to the kernel of a node.
pub(super) struct Standing {
    socket: Socket,
    buffer: Vec<u8>,
    wanted: u16,
    entries: BTreeSet<(Table, u16)>,
    first: Option<Instant>,
}

impl Standing {
    /// Begins with a kernel that has nothing of any of the first `wanted` peers.
    pub(super) fn listen(node: &Node, wanted: u16) -> Result<Self> {
        let socket = node.enter(socket)?.context("listen to the kernel")?;
        Ok(Self { socket, buffer: Vec::new(), wanted, entries: BTreeSet::new(), first: None })
    }

    /// Waits a moment for the next change. When the first entry of any table stood, and when all entries of all tables
    /// did; `None` if that is still to come.
    pub(super) fn next(&mut self) -> Result<Option<(Instant, Instant)>> {
        self.buffer.clear();
        self.buffer.reserve(1 << 16);
        match self.socket.recv(&mut self.buffer, 0) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            received => received.context("the kernel's notifications were not read in time")?,
        };
        let now = Instant::now();
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer)?;
        if let NetlinkPayload::InnerMessage(message) = message.payload {
            self.note(&message);
        }
        if !self.entries.is_empty() {
            self.first.get_or_insert(now);
        }
        let all = self.entries.len() == TABLES * usize::from(self.wanted);
        Ok(self.first.filter(|_| all).map(|first| (first, now)))
    }

    /// How many of how many entries stand.
    pub(super) fn progress(&self) -> String {
        let of = |table| self.entries.iter().filter(|(found, _)| *found == table).count();
        let [neighbours, fdb, routes] = [Table::Neighbours, Table::Fdb, Table::Routes].map(of);
        format!("{neighbours} neighbours, {fdb} FDB entries and {routes} routes of {} peers", self.wanted)
    }

    fn note(&mut self, message: &RouteNetlinkMessage) {
        let (stands, entry) = match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => (true, neighbour_of(neighbour)),
            RouteNetlinkMessage::DelNeighbour(neighbour) => (false, neighbour_of(neighbour)),
            RouteNetlinkMessage::NewRoute(route) => (true, route_of(route)),
            RouteNetlinkMessage::DelRoute(route) => (false, route_of(route)),
            _ => return,
        };
        let Some(entry) = entry.filter(|(_, peer)| *peer < self.wanted) else { return };
        match stands {
            true => self.entries.insert(entry),
            false => self.entries.remove(&entry),
        };
    }
}

fn socket() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &PATIENCE)?;
    socket.bind(&SocketAddr::new(0, GROUPS))?;
    Ok(socket)
}

/// Both have the peer's MAC: neighbours by the address of its subnet, FDB entries by the MAC.
fn neighbour_of(message: &NeighbourMessage) -> Option<(Table, u16)> {
    let table = match message.header.family {
        AddressFamily::Bridge => Table::Fdb,
        _ => Table::Neighbours,
    };
    let peer = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => peers::of_mac(mac),
        _ => None,
    });
    peer.map(|peer| (table, peer))
}

fn route_of(message: &RouteMessage) -> Option<(Table, u16)> {
    let peer = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(subnet)) => peers::of_subnet(*subnet),
        _ => None,
    });
    peer.filter(|_| message.header.destination_prefix_length == 24).map(|peer| (Table::Routes, peer))
}

/// Time from one to the other, which is never nothing: ratios are made of it.
pub(super) fn between(first: Instant, last: Instant) -> Duration {
    last.duration_since(first).max(Duration::from_nanos(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(family: AddressFamily, mac: [u8; 6]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        message
    }

    fn route(subnet: [u8; 4], length: u8) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.destination_prefix_length = length;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(subnet.into()))];
        message
    }

    fn standing() -> Standing {
        let socket = Socket::new(NETLINK_ROUTE).unwrap();
        Standing { socket, buffer: Vec::new(), wanted: 300, entries: BTreeSet::new(), first: None }
    }

    #[test]
    fn a_peer_needs_an_entry_of_each_table_and_others_entries_are_not_counted() {
        use RouteNetlinkMessage::{DelRoute, NewNeighbour, NewRoute};
        let mut standing = standing();
        for message in [
            NewNeighbour(neighbour(AddressFamily::Inet, [10, 0, 0, 0, 1, 2])),
            NewNeighbour(neighbour(AddressFamily::Bridge, [10, 0, 0, 0, 1, 2])),
            NewRoute(route([10, 1, 2, 0], 24)),
            // Twice the same, another node's MAC, a host route, a peer of a larger cluster.
            NewRoute(route([10, 1, 2, 0], 24)),
            NewNeighbour(neighbour(AddressFamily::Inet, [10, 9, 0, 0, 1, 2])),
            NewRoute(route([10, 1, 2, 0], 32)),
            NewRoute(route([10, 250, 1, 0], 24)),
        ] {
            standing.note(&message);
        }
        let entries = [Table::Neighbours, Table::Fdb, Table::Routes].map(|table| (table, 258));
        assert_eq!(standing.entries, entries.into());
        standing.note(&DelRoute(route([10, 1, 2, 0], 24)));
        assert_eq!(standing.progress(), "1 neighbours, 1 FDB entries and 0 routes of 300 peers");
    }

    #[test]
    fn no_time_is_nothing() {
        let now = Instant::now();
        assert!(between(now, now) > Duration::ZERO);
    }
}
