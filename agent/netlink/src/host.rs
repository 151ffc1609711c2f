//! What this machine contributes to the pod network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use netlink_packet_route::route::RouteType;
use podway_overlay::{Family, Host, HostRoute, IfIndex, LinkKind, LinkName, PerFamily, Settings};

use crate::ROUTE_PROTOCOL;
use crate::dump::{self, Link, RouteEntry, Routes};
use crate::error::Error;
use crate::external::{self, InterfaceChoice};
use crate::netlink::Netlink;
use crate::observe::is_ours;

pub(crate) async fn observe(
    netlink: &Netlink,
    choice: &InterfaceChoice,
    settings: &Settings,
) -> Result<Host, Error> {
    let external = external::find(netlink, choice).await?;
    let links = dump::links(netlink).await?;
    let mut routes = Vec::new();
    for family in Family::BOTH.into_iter().filter(|family| settings.has(*family)) {
        let listed = dump::routes(netlink, family, Routes::All).await?;
        routes.extend(machines_own(&listed, &links, settings));
    }
    Ok(Host {
        public: choice.public,
        device_macs: device_macs(&links, settings),
        routes,
        driver: driver(&external.name),
        ..Host::new(external)
    })
}

/// The routes that are neither ours nor on a VXLAN link of the pod network.
fn machines_own(listed: &[RouteEntry], links: &[Link], settings: &Settings) -> Vec<HostRoute> {
    let overlay: BTreeSet<LinkName> =
        Family::BOTH.into_iter().filter_map(|family| settings.link_name(family).ok()).collect();
    let names: BTreeMap<IfIndex, &LinkName> = links
        .iter()
        .filter(|link| !is_ours(link) && !overlay.contains(&link.name))
        .map(|link| (link.index, &link.name))
        .collect();
    let foreign = listed.iter().filter(|entry| u8::from(entry.protocol) != ROUTE_PROTOCOL);
    foreign.flat_map(|entry| ways(entry, &names)).collect()
}

fn ways(entry: &RouteEntry, names: &BTreeMap<IfIndex, &LinkName>) -> Vec<HostRoute> {
    let (destination, metric) = (entry.destination, entry.priority);
    if entry.kind != RouteType::Unicast || entry.hops.is_empty() {
        return vec![HostRoute { destination, metric, via: None, link: None }];
    }
    let hops = entry.hops.iter().filter_map(|hop| {
        let link = Some((hop.link, (*names.get(&hop.link)?).clone()));
        Some(HostRoute { destination, metric, via: hop.via, link })
    });
    hops.collect()
}

fn device_macs(links: &[Link], settings: &Settings) -> PerFamily<Option<podway_overlay::Mac>> {
    PerFamily::from_fn(|family| {
        let name = settings.link_name(family).ok()?;
        let link = links.iter().find(|link| link.name == name)?;
        let vxlan = matches!(link.kind, LinkKind::Vxlan(_));
        link.mac.filter(|mac| vxlan && mac.is_unicast())
    })
}

/// The driver of an interface; virtual ones have none.
fn driver(interface: &LinkName) -> Option<String> {
    let path = Path::new("/sys/class/net").join(interface.as_str()).join("device/driver");
    let driver = fs::read_link(path).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}
