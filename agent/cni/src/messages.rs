//! Links, addresses and routes as netlink messages.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podway_overlay::{Mac, Mtu};

use crate::error::Error;
use crate::inside::Namespace;
use crate::netlink::{Netlink, Step, is_missing};

const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
const APPEND: u16 = NLM_F_CREATE | NLM_F_APPEND;

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: Option<String>,
    pub(crate) up: bool,
    pub(crate) veth: bool,
}

/// A route of the main table with one hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) destination: IpNet,
    pub(crate) link: u32,
    pub(crate) via: Option<IpAddr>,
}

/// A veth pair: `name` here, `peer` in the other namespace.
pub(crate) fn add_veth(name: &str, peer: &str, namespace: &Namespace, mtu: Mtu) -> Step {
    let mut other = LinkMessage::default();
    other.attributes = vec![
        LinkAttribute::IfName(peer.to_owned()),
        LinkAttribute::Mtu(mtu.get()),
        LinkAttribute::NetNsFd(namespace.file.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu.get()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    let what = format!("make the veth pair {name} and, in the pod, {peer}");
    Step { what, message: RouteNetlinkMessage::NewLink(message), flags: ADD }
}

pub(crate) fn link_up(link: &Link) -> Step {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Step { what: format!("set {} up", link.name), message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

pub(crate) fn set_alias(link: &Link, alias: String) -> Step {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.attributes = vec![LinkAttribute::IfAlias(alias)];
    let what = format!("mark {}", link.name);
    Step { what, message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// Without a route to a subnet, and usable at once.
pub(crate) fn add_address(link: &Link, address: IpAddr) -> Step {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = IpNet::from(address).prefix_len();
    message.header.index = link.index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    let what = format!("add the address {address} to {}", link.name);
    Step { what, message: RouteNetlinkMessage::NewAddress(message), flags: ADD }
}

/// A route over the link: to neighbours on it if there is no gateway, and then the only one to them. Routes through a
/// gateway stand beside those that another network's plugin made in the pod, after them.
pub(crate) fn add_route(link: &Link, to: IpNet, via: Option<IpAddr>, source: Option<IpAddr>) -> Step {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.attributes.push(RouteAttribute::Oif(link.index));
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(to.network().into()));
    }
    message.attributes.extend(via.map(|via| RouteAttribute::Gateway(via.into())));
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    let what = format!("add the route to {to} over {}", link.name);
    let flags = if via.is_some() { APPEND } else { ADD };
    Step { what, message: RouteNetlinkMessage::NewRoute(message), flags }
}

impl Netlink {
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let found = self.get(&format!("look up {name}"), RouteNetlinkMessage::GetLink(message))?;
        Ok(found.and_then(link))
    }

    /// Deletes a link; one that is not there is as wanted. The other end of a veth pair, its addresses and routes go
    /// with it.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let message = RouteNetlinkMessage::DelLink(message);
        match self.run(vec![Step { what: format!("delete {name}"), message, flags: 0 }]) {
            Err(Error::Kernel { cause, .. }) if is_missing(&cause) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        Ok(self.dump("list links", message)?.into_iter().filter_map(link).collect())
    }

    /// The addresses of a link.
    pub(crate) fn addresses(&mut self, link: &Link) -> Result<Vec<IpAddr>, Error> {
        let all = self.dump("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(all.into_iter().filter_map(|message| address_on(link, message)).collect())
    }

    /// The routes of the main table, both families.
    pub(crate) fn routes(&mut self) -> Result<Vec<Hop>, Error> {
        let mut hops = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let all = self.dump("list routes", RouteNetlinkMessage::GetRoute(message))?;
            hops.extend(all.into_iter().filter_map(hop));
        }
        Ok(hops)
    }
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link =
        Link { index: message.header.index, name: String::new(), mac: None, alias: None, up, veth: false };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac::new),
            LinkAttribute::LinkInfo(parts) => link.veth = parts.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    Some(link)
}

/// The address in `message` if it is on the link: in `IFA_LOCAL` with IPv4, in `IFA_ADDRESS` with IPv6.
fn address_on(link: &Link, message: RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut found = None;
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(address),
            AddressAttribute::Address(address) => found = found.or(Some(address)),
            _ => {}
        }
    }
    found.filter(|_| message.header.index == link.index)
}

fn hop(message: RouteNetlinkMessage) -> Option<Hop> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let (mut to, mut via, mut link) = (unspecified, None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(&address)?,
            RouteAttribute::Gateway(address) => via = ip(&address),
            RouteAttribute::Oif(index) => link = Some(index),
            _ => {}
        }
    }
    let destination = IpNet::new(to, message.header.destination_prefix_length).ok()?;
    Some(Hop { destination, link: link?, via })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
