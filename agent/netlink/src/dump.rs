//! Lists of what the kernel has, filtered by the kernel and decoded into plain rows.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RoutePreference,
    RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podway_overlay::{Family, IfIndex, LinkKind, LinkName, Mac, VxlanState};

use crate::error::Error;
use crate::netlink::Netlink;

/// A link of any sort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: IfIndex,
    pub(crate) name: LinkName,
    pub(crate) alias: Option<String>,
    pub(crate) kind: LinkKind,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
    /// The bridge, bond or VRF that it is in.
    pub(crate) controller: Option<IfIndex>,
}

/// An address of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) link: IfIndex,
    pub(crate) net: IpNet,
    pub(crate) flags: AddressHeaderFlags,
}

/// An ARP, ND or FDB entry. An FDB entry's address is that of the tunnel's other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neighbour {
    pub(crate) link: IfIndex,
    pub(crate) is_fdb: bool,
    pub(crate) address: Option<IpAddr>,
    pub(crate) mac: Option<Mac>,
    /// It is in the table of the bridge that the link is in, not in the link's own.
    pub(crate) is_bridges: bool,
    state: u16,
}

impl Neighbour {
    /// The state is a set of flags: `bridge fdb add` sets more than the one that makes an entry permanent.
    pub(crate) fn is_permanent(&self) -> bool {
        self.state & u16::from(NeighbourState::Permanent) != 0
    }
}

/// A route of whatever type.
#[derive(Debug, Clone)]
pub(crate) struct RouteEntry {
    pub(crate) table: u32,
    pub(crate) destination: IpNet,
    pub(crate) kind: RouteType,
    pub(crate) protocol: RouteProtocol,
    pub(crate) priority: u32,
    pub(crate) tos: u8,
    /// It has attributes that none of ours has, such as an MTU, a source address or an end.
    pub(crate) altered: bool,
    /// One, several of a multipath route, or none where packets end here or the hops are an object of their own.
    pub(crate) hops: Vec<Hop>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hop {
    pub(crate) via: Option<IpAddr>,
    pub(crate) link: IfIndex,
    pub(crate) onlink: bool,
}

impl RouteEntry {
    /// The hop of a unicast route that has one, as all of ours to peers have.
    pub(crate) fn only_hop(&self) -> Option<&Hop> {
        match (self.kind, &self.hops[..]) {
            (RouteType::Unicast, [hop]) => Some(hop),
            _ => None,
        }
    }
}

/// Which routes to list. The kernel sees to it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Routes {
    All,
    OfProtocol(u8),
    OfLink(IfIndex),
}

pub(crate) async fn links(netlink: &Netlink) -> Result<Vec<Link>, Error> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let listed = netlink.dump(RouteNetlinkMessage::GetLink(request)).await;
    let listed = listed.map_err(|cause| Error::refused("list links", cause))?;
    Ok(listed.into_iter().filter_map(link).collect())
}

pub(crate) async fn addresses(netlink: &Netlink, of: Option<IfIndex>) -> Result<Vec<Address>, Error> {
    let mut request = AddressMessage::default();
    request.header.index = of.map_or(0, |index| index.0);
    let listed = netlink.dump(RouteNetlinkMessage::GetAddress(request)).await;
    let listed = listed.map_err(|cause| Error::refused("list addresses", cause))?;
    let all = listed.into_iter().filter_map(address);
    Ok(all.filter(|address| of.is_none_or(|index| address.link == index)).collect())
}

/// Permanent ARP and ND entries of one link.
pub(crate) async fn neighbours(netlink: &Netlink, of: IfIndex) -> Result<Vec<(IpAddr, Mac)>, Error> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        request.attributes.push(NeighbourAttribute::IfIndex(of.0));
        let listed = netlink.dump(RouteNetlinkMessage::GetNeighbour(request)).await;
        let listed = listed.map_err(|cause| Error::refused("list neighbours", cause))?;
        all.extend(listed.into_iter().filter_map(|message| permanent(message, of)));
    }
    Ok(all)
}

/// Permanent forwarding entries of one VXLAN link.
pub(crate) async fn fdb(netlink: &Netlink, of: IfIndex) -> Result<Vec<(IpAddr, Mac)>, Error> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    request.header.ifindex = of.0;
    let listed = netlink.dump(RouteNetlinkMessage::GetNeighbour(request)).await;
    let listed = listed.map_err(|cause| Error::refused("list FDB entries", cause))?;
    Ok(listed.into_iter().filter_map(|message| permanent(message, of)).collect())
}

pub(crate) async fn routes(
    netlink: &Netlink,
    family: Family,
    which: Routes,
) -> Result<Vec<RouteEntry>, Error> {
    tracing::trace!(%family, ?which, "list routes");
    let mut request = RouteMessage::default();
    request.header.address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    match which {
        Routes::All => {}
        Routes::OfProtocol(protocol) => request.header.protocol = protocol.into(),
        Routes::OfLink(index) => request.attributes.push(RouteAttribute::Oif(index.0)),
    }
    match netlink.dump(RouteNetlinkMessage::GetRoute(request)).await {
        Ok(listed) => {
            let wanted = |route: &RouteEntry| match which {
                Routes::All => true,
                Routes::OfProtocol(protocol) => u8::from(route.protocol) == protocol,
                Routes::OfLink(index) => route.hops.iter().any(|hop| hop.link == index),
            };
            Ok(listed.into_iter().filter_map(route).filter(wanted).collect())
        }
        // A namespace that never had a route has no table either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(Error::refused(format!("list {family} routes"), cause)),
    }
}

/// The route of the main table by which packets to the end of `subnet` leave, which may have another destination. `None` if there
/// is none, or none that the kernel tells of: it keeps those to itself that lead nowhere.
pub(crate) async fn route_to(netlink: &Netlink, subnet: &IpNet) -> Result<Option<RouteEntry>, Error> {
    tracing::trace!(%subnet, "look a route up");
    // The last address of the subnet: there may be routes to the first one alone, as to a gateway.
    let mut request = request_for(subnet.broadcast());
    request.header.flags = RouteFlags::FibMatch;
    match netlink.ask(RouteNetlinkMessage::GetRoute(request)).await {
        Ok(found) => Ok(found.and_then(route)),
        Err(error) if unreachable(&error) => Ok(None),
        Err(cause) => Err(Error::refused(format!("look up the route to {subnet}"), cause)),
    }
}

/// The link and source address by which packets to `address` leave, as the kernel decides; `None` if they do not.
pub(crate) async fn way_to(
    netlink: &Netlink,
    address: IpAddr,
) -> Result<Option<(IfIndex, Option<IpAddr>)>, Error> {
    let request = request_for(address);
    let message = match netlink.ask(RouteNetlinkMessage::GetRoute(request)).await {
        Ok(Some(RouteNetlinkMessage::NewRoute(message))) => message,
        Ok(_) => return Ok(None),
        Err(error) if unreachable(&error) => return Ok(None),
        Err(cause) => return Err(Error::refused(format!("find the way to {address}"), cause)),
    };
    let link = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(IfIndex(*index)),
        _ => None,
    });
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => route_address(address),
        _ => None,
    });
    Ok(link.map(|link| (link, source)))
}

fn request_for(address: IpAddr) -> RouteMessage {
    let mut request = RouteMessage::default();
    request.header.address_family =
        if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    request.header.destination_prefix_length = IpNet::from(address).prefix_len();
    request.attributes.push(RouteAttribute::Destination(address.into()));
    request
}

fn unreachable(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL))
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => read_link(message),
        _ => None,
    }
}

pub(crate) fn read_link(message: LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: IfIndex(message.header.index),
        name: message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => LinkName::new(name).ok(),
            _ => None,
        })?,
        alias: None,
        kind: LinkKind::Other("plain".to_owned()),
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        controller: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(IfIndex(index)),
            LinkAttribute::Address(octets) => link.mac = mac(&octets),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(&infos),
            _ => {}
        }
    }
    Some(link)
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let name = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match (name, data) {
        (Some(InfoKind::Vxlan), Some(data)) => LinkKind::Vxlan(vxlan(data)),
        (Some(kind), _) => LinkKind::Other(kind.to_string()),
        (None, _) => LinkKind::Other("plain".to_owned()),
    }
}

fn vxlan(data: &[InfoVxlan]) -> VxlanState {
    let mut state =
        VxlanState { vni: 0, port: 0, local: None, lower: None, learning: false, gbp: false, mode: None };
    for value in data {
        match value {
            InfoVxlan::Id(vni) => state.vni = *vni,
            InfoVxlan::Port(port) => state.port = *port,
            InfoVxlan::Local(address) => state.local = Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => state.local = Some(IpAddr::V6(*address)),
            InfoVxlan::Link(index) => state.lower = Some(IfIndex(*index)).filter(|index| index.0 != 0),
            InfoVxlan::Learning(learning) => state.learning = *learning,
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) => state.mode = Some("a group or default remote"),
            InfoVxlan::CollectMetadata(true) => state.mode = Some("external mode"),
            InfoVxlan::L2Miss(true) | InfoVxlan::L3Miss(true) => state.mode = Some("miss notifications"),
            InfoVxlan::Proxy(true) | InfoVxlan::Rsc(true) => state.mode = Some("proxy mode"),
            InfoVxlan::Vnifilter(true) => state.mode = Some("a VNI filter"),
            InfoVxlan::Gbp => state.gbp = true,
            InfoVxlan::Gpe => state.mode = Some("GPE"),
            _ => {}
        }
    }
    state
}

fn address(message: RouteNetlinkMessage) -> Option<Address> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => read_address(&message),
        _ => None,
    }
}

pub(crate) fn read_address(message: &AddressMessage) -> Option<Address> {
    // On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where there is one, is ours.
    let (mut own, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    let net = IpNet::new(own.or(other)?, message.header.prefix_len).ok()?;
    Some(Address { link: IfIndex(message.header.index), net, flags: message.header.flags })
}

fn permanent(message: RouteNetlinkMessage, of: IfIndex) -> Option<(IpAddr, Mac)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let entry = read_neighbour(&message);
    (entry.link == of && entry.is_permanent()).then_some((entry.address?, entry.mac?))
}

pub(crate) fn read_neighbour(message: &NeighbourMessage) -> Neighbour {
    let mut entry = Neighbour {
        link: IfIndex(message.header.ifindex),
        is_fdb: message.header.family == AddressFamily::Bridge,
        address: None,
        mac: None,
        is_bridges: false,
        state: u16::from(message.header.state),
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => entry.address = neighbour_address(address),
            NeighbourAttribute::LinkLayerAddress(octets) => entry.mac = mac(octets),
            NeighbourAttribute::Controller(_) => entry.is_bridges = true,
            _ => {}
        }
    }
    entry
}

/// FDB entries come as bare octets, for their family is that of bridges.
fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(IpAddr::V4(*address)),
        NeighbourAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        NeighbourAddress::Other(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(&octets[..]).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(&octets[..]).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

fn route(message: RouteNetlinkMessage) -> Option<RouteEntry> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    read_route(&message).filter(|route| route.table == u32::from(RouteHeader::RT_TABLE_MAIN))
}

/// `None` for routes of other families than IPv4 and IPv6.
pub(crate) fn read_route(message: &RouteMessage) -> Option<RouteEntry> {
    let header = &message.header;
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut destination, mut priority, mut hops) = (unspecified(family), 0, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Priority(metric) => priority = *metric,
            RouteAttribute::Oif(link) => {
                let onlink = header.flags.contains(RouteFlags::Onlink);
                hops.push(Hop { via: gateway(&message.attributes), link: IfIndex(*link), onlink });
            }
            RouteAttribute::MultiPath(several) => hops.extend(several.iter().map(|hop| Hop {
                via: gateway(&hop.attributes),
                link: IfIndex(hop.interface_index),
                onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
            })),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    let (kind, protocol, tos) = (header.kind, header.protocol, header.tos);
    let altered = message.attributes.iter().any(is_additional);
    Some(RouteEntry { table, destination, kind, protocol, priority, tos, altered, hops })
}

/// Whether an attribute is neither of those that our requests have nor one that the kernel adds to every route.
fn is_additional(attribute: &RouteAttribute) -> bool {
    match attribute {
        RouteAttribute::Table(_)
        | RouteAttribute::Destination(_)
        | RouteAttribute::Gateway(_)
        | RouteAttribute::Oif(_)
        | RouteAttribute::Priority(_) => false,
        RouteAttribute::Preference(preference) => *preference != RoutePreference::Medium,
        RouteAttribute::CacheInfo(cache) => cache.expires != 0,
        _ => true,
    }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => route_address(address),
        _ => None,
    })
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn mac(octets: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(octets).ok().map(Mac::new)
}
