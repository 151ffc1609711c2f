//! Steps as netlink requests.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podway_overlay::{Family, IfIndex, LinkName, Mac, Mtu, Route, Tunnel, VxlanLink, Whose};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan};

use crate::{LINK_ALIAS, ROUTE_PROTOCOL};

/// A request and its flags.
pub(crate) type Request = (RouteNetlinkMessage, u16);

/// Longer than two requests can take.
const STEPPING_STONE_SECONDS: u32 = 10;

const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
const CHANGE: u16 = 0;

/// The link down and without mark: the kernel takes an alias only afterwards.
pub(crate) fn add_link(name: &LinkName, link: &VxlanLink) -> Request {
    let builder = LinkVxlan::new(name.as_str(), link.vni.get())
        .dev(link.lower.0)
        .port(link.port)
        .learning(link.learning)
        .mtu(link.mtu.get())
        .address(link.mac.octets().to_vec());
    let builder = if link.gbp { builder.gbp() } else { builder };
    let builder = match link.local {
        IpAddr::V4(address) => builder.local(address),
        IpAddr::V6(address) => builder.local6(address),
    };
    (RouteNetlinkMessage::NewLink(builder.build()), ADD)
}

/// Makes the link ours.
pub(crate) fn mark(index: IfIndex) -> Request {
    change(LinkUnspec::new_with_index(index.0).alias(LINK_ALIAS))
}

/// The ends of the tunnels are set first, by the kernel's own order (rtnl_newlink).
pub(crate) fn set_link(
    index: IfIndex,
    mtu: Option<Mtu>,
    mac: Option<Mac>,
    tunnel: Option<&Tunnel>,
    release: bool,
) -> Request {
    let mut builder = LinkUnspec::new_with_index(index.0).alias(LINK_ALIAS);
    if let Some(tunnel) = tunnel {
        builder = builder.append_extra_attribute(LinkAttribute::LinkInfo(ends(tunnel)));
    }
    if release {
        builder = builder.nocontroller();
    }
    if let Some(mtu) = mtu {
        builder = builder.mtu(mtu.get());
    }
    if let Some(mac) = mac {
        builder = builder.address(mac.octets().to_vec());
    }
    change(builder)
}

fn ends(tunnel: &Tunnel) -> Vec<LinkInfo> {
    let local = match tunnel.local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    let ends = vec![
        InfoVxlan::Id(tunnel.vni.get()),
        InfoVxlan::Link(tunnel.lower.0),
        local,
        InfoVxlan::Learning(tunnel.learning),
    ];
    vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(ends))]
}

pub(crate) fn link_up(index: IfIndex) -> Request {
    change(LinkUnspec::new_with_index(index.0).up())
}

pub(crate) fn remove_link(index: IfIndex) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    (RouteNetlinkMessage::DelLink(message), CHANGE)
}

/// Without duplicate address detection: nobody else can have the first address of this node's subnet, and until it
/// is done the address would not serve as a source.
pub(crate) fn add_address(index: IfIndex, address: &IpNet) -> Request {
    let mut message = address_message(index, address);
    message.header.flags = AddressHeaderFlags::Permanent;
    if Family::of(address) == Family::V6 {
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    (RouteNetlinkMessage::NewAddress(message), ADD)
}

pub(crate) fn remove_address(index: IfIndex, address: &IpNet) -> Request {
    (RouteNetlinkMessage::DelAddress(address_message(index, address)), CHANGE)
}

pub(crate) fn set_neighbour(index: IfIndex, address: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour(index, address);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    (RouteNetlinkMessage::NewNeighbour(message), SET)
}

pub(crate) fn remove_neighbour(index: IfIndex, address: IpAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(neighbour(index, address)), CHANGE)
}

pub(crate) fn set_fdb(index: IfIndex, mac: Mac, underlay: IpAddr) -> Request {
    (RouteNetlinkMessage::NewNeighbour(fdb(index, mac, underlay)), SET)
}

pub(crate) fn remove_fdb(index: IfIndex, mac: Mac, underlay: IpAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(fdb(index, mac, underlay)), CHANGE)
}

/// Refused with EEXIST if any route has the destination: whose it is must be looked at before it is replaced.
pub(crate) fn add_route(index: IfIndex, subnet: &IpNet, route: &Route) -> Request {
    (RouteNetlinkMessage::NewRoute(new_route(index, subnet, route)), ADD)
}

pub(crate) fn replace_route(index: IfIndex, subnet: &IpNet, route: &Route) -> Request {
    (RouteNetlinkMessage::NewRoute(new_route(index, subnet, route)), SET)
}

/// By its protocol and metric: others may have routes that lead the same way. IPv4 takes metric 0 for any, but comes
/// upon the least one first (fib_table_delete).
pub(crate) fn remove_route(index: IfIndex, subnet: &IpNet, route: &Route, whose: Whose) -> Request {
    let mut message = route_message(index, subnet, route);
    message.header.scope = RouteScope::NoWhere;
    message.header.protocol = match whose {
        Whose::Ours => ROUTE_PROTOCOL.into(),
        Whose::Flannels => RouteProtocol::Boot,
    };
    message.attributes.push(RouteAttribute::Priority(default_priority(subnet)));
    (RouteNetlinkMessage::DelRoute(message), CHANGE)
}

/// Of the greatest metric, so that any other route to the subnet comes before, as that of a bridge of pods does; the
/// routes to single pods are longer anyway.
pub(crate) fn set_blackhole(subnet: &IpNet) -> Request {
    let mut message = blackhole(subnet);
    message.header.protocol = ROUTE_PROTOCOL.into();
    (RouteNetlinkMessage::NewRoute(message), SET)
}

pub(crate) fn remove_blackhole(subnet: &IpNet) -> Request {
    let mut message = blackhole(subnet);
    message.header.protocol = ROUTE_PROTOCOL.into();
    message.header.scope = RouteScope::NoWhere;
    (RouteNetlinkMessage::DelRoute(message), CHANGE)
}

/// A route to one address of the link, which expires.
pub(crate) fn set_stepping_stone(index: IfIndex, address: IpAddr) -> Request {
    let mut message = stepping_stone(index, address);
    message.header.protocol = ROUTE_PROTOCOL.into();
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Expires(STEPPING_STONE_SECONDS));
    (RouteNetlinkMessage::NewRoute(message), SET)
}

pub(crate) fn remove_stepping_stone(index: IfIndex, address: IpAddr) -> Request {
    let mut message = stepping_stone(index, address);
    message.header.scope = RouteScope::NoWhere;
    (RouteNetlinkMessage::DelRoute(message), CHANGE)
}

fn stepping_stone(index: IfIndex, address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = IpNet::from(address).prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.push(RouteAttribute::Oif(index.0));
    message
}

fn blackhole(subnet: &IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(subnet.addr());
    message.header.destination_prefix_length = subnet.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::BlackHole;
    message.attributes.push(RouteAttribute::Destination(subnet.network().into()));
    message.attributes.push(RouteAttribute::Priority(u32::MAX));
    message
}

fn change(builder: LinkMessageBuilder<LinkUnspec>) -> Request {
    (RouteNetlinkMessage::NewLink(builder.build()), CHANGE)
}

fn address_message(index: IfIndex, address: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index.0;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

fn neighbour(index: IfIndex, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index.0;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn fdb(index: IfIndex, mac: Mac, underlay: IpAddr) -> NeighbourMessage {
    let mut message = neighbour(index, underlay);
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message
}

fn new_route(index: IfIndex, subnet: &IpNet, route: &Route) -> RouteMessage {
    let mut message = route_message(index, subnet, route);
    message.header.protocol = ROUTE_PROTOCOL.into();
    message.header.kind = RouteType::Unicast;
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message
}

fn route_message(index: IfIndex, subnet: &IpNet, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(subnet.addr());
    message.header.destination_prefix_length = subnet.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes.push(RouteAttribute::Destination(subnet.network().into()));
    message.attributes.push(RouteAttribute::Gateway(route.via.into()));
    message.attributes.push(RouteAttribute::Oif(index.0));
    message
}

/// The metric of a route that was given none.
pub(crate) fn default_priority(subnet: &IpNet) -> u32 {
    match Family::of(subnet) {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
