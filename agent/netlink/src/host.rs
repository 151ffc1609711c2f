//! What this machine contributes to the pod network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_route::route::RouteType;
use podway_overlay::{Family, Host, HostRoute, IfIndex, LinkKind, LinkName, Mac, PerFamily, Settings};

use crate::ROUTE_PROTOCOL;
use crate::dump::{Link, RouteEntry};
use crate::error::Error;
use crate::external::{self, Facts, InterfaceChoice};
use crate::netlink::Netlink;
use crate::observe::is_ours;

pub(crate) async fn observe(
    netlink: &Netlink,
    choice: &InterfaceChoice,
    settings: &Settings,
) -> Result<Host, Error> {
    let facts = external::look(netlink, choice).await?;
    let external = external::resolve(choice, &facts)?;
    let families = Family::BOTH.into_iter().filter(|family| settings.has(*family));
    let listed = families.flat_map(|family| facts.routes.get(family));
    Ok(Host {
        public: choice.public,
        device_macs: device_macs(&facts.links, settings),
        routes: machines_own(listed, &facts.links, settings),
        driver: driver(&external.name),
        unfiltered_bridges: unfiltered_bridges(&facts),
        ..Host::new(external)
    })
}

/// The routes that are neither ours nor on a VXLAN link of the pod network.
fn machines_own<'a>(
    listed: impl Iterator<Item = &'a RouteEntry>,
    links: &[Link],
    settings: &Settings,
) -> Vec<HostRoute> {
    let overlay: BTreeSet<LinkName> =
        Family::BOTH.into_iter().filter_map(|family| settings.link_name(family).ok()).collect();
    let names: BTreeMap<IfIndex, &LinkName> = links
        .iter()
        .filter(|link| !is_ours(link) && !overlay.contains(&link.name))
        .map(|link| (link.index, &link.name))
        .collect();
    let foreign = listed.filter(|entry| u8::from(entry.protocol) != ROUTE_PROTOCOL);
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

fn device_macs(links: &[Link], settings: &Settings) -> PerFamily<Option<Mac>> {
    PerFamily::from_fn(|family| {
        let name = settings.link_name(family).ok()?;
        let link = links.iter().find(|link| link.name == name)?;
        let vxlan = matches!(link.kind, LinkKind::Vxlan(_));
        link.mac.filter(|mac| vxlan && mac.is_unicast())
    })
}

/// A kernel without br_netfilter has no such setting, and netfilter sees nothing of any bridge.
fn unfiltered_bridges(facts: &Facts) -> Vec<(LinkName, IpNet)> {
    let is_on = |setting: &str| {
        let path = Path::new("/proc/sys/net/bridge").join(setting);
        fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    };
    let filtered = PerFamily { v4: is_on("bridge-nf-call-iptables"), v6: is_on("bridge-nf-call-ip6tables") };
    let on_bridges = facts.addresses.iter().filter_map(|address| {
        let link = facts.links.iter().find(|link| link.index == address.link)?;
        let is_bridge = matches!(&link.kind, LinkKind::Other(kind) if kind == "bridge");
        let unseen = is_bridge && !filtered.get(Family::of(&address.net));
        unseen.then(|| (link.name.clone(), address.net))
    });
    on_bridges.collect()
}

/// The driver of an interface; virtual ones have none.
fn driver(interface: &LinkName) -> Option<String> {
    let path = Path::new("/sys/class/net").join(interface.as_str()).join("device/driver");
    let driver = fs::read_link(path).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}
