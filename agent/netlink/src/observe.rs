//! What of the pod network is in the kernel.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use netlink_packet_route::route::{RouteProtocol, RouteType};
use podway_overlay::{
    Family, FdbKey, IfIndex, LinkKind, LinkName, LinkState, Mtu, NeighbourKey, Observed, Route, Sought,
    Sysctl,
};

use crate::dump::{self, Hop, Link, RouteEntry, Routes};
use crate::error::Error;
use crate::external::is_link_local;
use crate::netlink::Netlink;
use crate::render::default_priority;
use crate::{LINK_ALIAS, ROUTE_PROTOCOL};

pub(crate) async fn observe(netlink: &Netlink, sought: &Sought) -> Result<Observed, Error> {
    let links = dump::links(netlink).await?;
    let all: BTreeMap<IfIndex, LinkName> = links.iter().map(|link| (link.index, link.name.clone())).collect();
    let mut observed = Observed::default();
    for link in links.iter().filter(|link| is_ours(link) || sought.links.contains(&link.name)) {
        add_link(netlink, link, &mut observed).await?;
        add_rows(netlink, link, &mut observed).await?;
    }
    for family in Family::BOTH {
        for entry in dump::routes(netlink, family, Routes::OfProtocol(ROUTE_PROTOCOL)).await? {
            if entry.kind == RouteType::BlackHole {
                observed.blackholes.insert(entry.destination);
            }
            let Some(hop) = entry.only_hop().filter(|_| is_plain(&entry)) else { continue };
            if let Some(route) = all.get(&hop.link).and_then(|link| route(hop, link)) {
                observed.rows.routes.insert(entry.destination, route);
                observed.altered_routes.extend(entry.altered.then_some(entry.destination));
            }
        }
        read_sysctl(Sysctl::Forwarding(family), &mut observed);
        let settings = sought.external.clone().into_iter().chain(LinkName::new("default").ok());
        settings.for_each(|of| read_sysctl(Sysctl::LinkForwarding(family, of), &mut observed));
    }
    for of in ["all", "default"].into_iter().filter_map(|of| LinkName::new(of).ok()) {
        read_sysctl(Sysctl::RpFilter(of), &mut observed);
    }
    for entry in dump::routes(netlink, Family::V6, Routes::OfProtocol(RouteProtocol::Ra.into())).await? {
        let learnt = entry.hops.iter().filter(|_| entry.destination.prefix_len() == 0);
        for link in learnt.filter_map(|hop| all.get(&hop.link)) {
            read_sysctl(Sysctl::KeepRa(link.clone()), &mut observed);
        }
    }
    Ok(observed)
}

pub(crate) fn is_ours(link: &Link) -> bool {
    link.alias.as_deref() == Some(LINK_ALIAS)
}

/// The path of a kernel setting. `/proc/sys/net` shows the namespace of the thread that looks.
pub(crate) fn sysctl_path(sysctl: &Sysctl) -> String {
    Path::new("/proc/sys").join(sysctl.path()).display().to_string()
}

async fn add_link(netlink: &Netlink, link: &Link, observed: &mut Observed) -> Result<(), Error> {
    let addresses = dump::addresses(netlink, Some(link.index)).await?;
    let lasting = addresses
        .iter()
        .filter(|address| Family::of(&address.net) == Family::V4 || !is_link_local(address.net.addr()));
    let unusable = |_| Error::UnusableMtu { name: link.name.clone(), mtu: link.mtu };
    let state = LinkState {
        index: link.index,
        kind: link.kind.clone(),
        mtu: Mtu::new(link.mtu).map_err(unusable)?,
        mac: link.mac,
        up: link.up,
        enslaved: link.controller.is_some(),
        ours: is_ours(link),
        addresses: lasting.map(|address| address.net).collect(),
        offload: netlink.ethtool().and_then(|ethtool| ethtool.offload(link.index).ok()),
    };
    observed.links.insert(link.name.clone(), state);
    read_sysctl(Sysctl::AcceptRa(link.name.clone()), observed);
    read_sysctl(Sysctl::RpFilter(link.name.clone()), observed);
    for family in Family::BOTH {
        read_sysctl(Sysctl::LinkForwarding(family, link.name.clone()), observed);
    }
    Ok(())
}

/// The entries on a link, and the routes that flannel left there. Entries of a link that is no VXLAN link are not
/// ours, whatever its name.
async fn add_rows(netlink: &Netlink, link: &Link, observed: &mut Observed) -> Result<(), Error> {
    if !matches!(link.kind, LinkKind::Vxlan(_)) {
        return Ok(());
    }
    let rows = &mut observed.rows;
    for (address, mac) in dump::neighbours(netlink, link.index).await? {
        rows.neighbours.insert(NeighbourKey { link: link.name.clone(), address }, mac);
    }
    for (underlay, mac) in dump::fdb(netlink, link.index).await? {
        let key = FdbKey { link: link.name.clone(), mac };
        if let Some(further) = rows.fdb.insert(key.clone(), underlay) {
            observed.further_fdb.insert((key, further));
        }
    }
    for family in Family::BOTH {
        for entry in dump::routes(netlink, family, Routes::OfLink(link.index)).await? {
            if let Some(hop) = flannels_hop(&entry)
                && let Some(route) = route(hop, &link.name)
            {
                observed.flannel_routes.insert(entry.destination, route);
            }
        }
    }
    Ok(())
}

/// Whether it can be ours, which have no metric or type of service of their own: another one is somebody's beside it.
pub(crate) fn is_plain(entry: &RouteEntry) -> bool {
    entry.tos == 0 && entry.priority == default_priority(&entry.destination)
}

/// flannel's routes have no number of their own, but a shape: the gateway is the first address of the subnet.
pub(crate) fn flannels_hop(entry: &RouteEntry) -> Option<&Hop> {
    let of_flannel = |hop: &&Hop| hop.onlink && hop.via == Some(entry.destination.network());
    entry.only_hop().filter(of_flannel).filter(|_| entry.protocol == RouteProtocol::Boot)
}

fn route(hop: &Hop, link: &LinkName) -> Option<Route> {
    Some(Route { via: hop.via?, link: link.clone(), onlink: hop.onlink })
}

/// What would only be better otherwise, and cannot be changed, is not looked at: a container's /proc/sys is read-only,
/// and the same step would come up for ever.
fn read_sysctl(sysctl: Sysctl, observed: &mut Observed) {
    let path = sysctl_path(&sysctl);
    if matches!(sysctl, Sysctl::AcceptRa(_) | Sysctl::RpFilter(_)) && is_read_only(&path) {
        return;
    }
    if let Ok(value) = fs::read_to_string(path) {
        observed.sysctls.insert(sysctl, value.trim().to_owned());
    }
}

fn is_read_only(path: &str) -> bool {
    let opened = fs::OpenOptions::new().write(true).open(path);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}
