//! Which interface carries the encapsulated packets.

use std::net::IpAddr;

use netlink_packet_route::address::AddressHeaderFlags as Flags;
use netlink_packet_route::route::RouteType;
use podway_overlay::{ExternalInterface, Family, IfIndex, LinkName, Mtu};

use crate::dump::{self, Address, Link, Routes};
use crate::error::Error;
use crate::netlink::Netlink;

/// How the external interface is chosen (contract N8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// By its name.
    Name(LinkName),
    /// The one that has this address, which is then the one that peers send to.
    Owner(IpAddr),
    /// The one that the default route leads to. With default routes in both families both must lead there.
    DefaultRoute,
}

pub(crate) async fn find(netlink: &Netlink, choice: &InterfaceChoice) -> Result<ExternalInterface, Error> {
    let links = dump::links(netlink).await?;
    let addresses = dump::addresses(netlink, None).await?;
    let link = match choice {
        InterfaceChoice::Name(name) => {
            let named = links.iter().find(|link| link.name == *name);
            named.ok_or_else(|| Error::NoInterface(name.clone()))?
        }
        InterfaceChoice::Owner(address) => {
            let owner = addresses.iter().find(|owned| owned.net.addr() == *address);
            let index = owner.ok_or(Error::NoOwner(*address))?.link;
            links.iter().find(|link| link.index == index).ok_or(Error::NoOwner(*address))?
        }
        InterfaceChoice::DefaultRoute => by_default_route(netlink, &links).await?,
    };
    let mtu =
        Mtu::new(link.mtu).map_err(|_| Error::UnusableMtu { name: link.name.clone(), mtu: link.mtu })?;
    let fixed = match choice {
        InterfaceChoice::Owner(address) => Some(*address),
        _ => None,
    };
    let (mut v4, mut v6) = (None, None);
    for family in Family::BOTH {
        let chosen = fixed.filter(|address| family.has(*address));
        match chosen.or_else(|| best_address(&addresses, link.index, family)) {
            Some(IpAddr::V4(address)) => v4 = Some(address),
            Some(IpAddr::V6(address)) => v6 = Some(address),
            None => {}
        }
    }
    Ok(ExternalInterface { index: link.index, name: link.name.clone(), mtu, v4, v6 })
}

async fn by_default_route<'a>(netlink: &Netlink, links: &'a [Link]) -> Result<&'a Link, Error> {
    let mut found = Vec::new();
    for family in Family::BOTH {
        let routes = dump::routes(netlink, family, Routes::All).await?;
        let default = routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0 && route.kind == RouteType::Unicast)
            .min_by_key(|route| route.priority);
        let hop = default.and_then(|route| route.hops.first());
        found.extend(hop.and_then(|hop| links.iter().find(|link| link.index == hop.link)));
    }
    match found[..] {
        [] => Err(Error::NoDefaultRoute),
        [v4, v6] if v4.index != v6.index => {
            Err(Error::TwoInterfaces { v4: v4.name.clone(), v6: v6.name.clone() })
        }
        [link, ..] => Ok(link),
    }
}

fn best_address(addresses: &[Address], link: IfIndex, family: Family) -> Option<IpAddr> {
    let usable = addresses.iter().filter(|address| {
        let ip = address.net.addr();
        address.link == link
            && family.has(ip)
            && !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
            && !address.flags.contains(Flags::Deprecated)
    });
    let rank = |address: &&Address| {
        // The flag of temporary IPv6 addresses is that of secondary IPv4 ones.
        let (permanent, temporary) =
            (address.flags.contains(Flags::Permanent), address.flags.contains(Flags::Secondary));
        (is_link_local(address.net.addr()), !permanent, temporary)
    };
    usable.min_by_key(rank).map(|address| address.net.addr())
}

pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
