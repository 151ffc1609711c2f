//! Which interface reaches the other nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::address::AddressHeaderFlags as Flags;
use netlink_packet_route::route::RouteType;
use podway_overlay::{ExternalInterface, Family, IfIndex, Mtu, PerFamily};
use regex::Regex;

use crate::dump::{self, Address, Link, RouteEntry, Routes};
use crate::error::Error;
use crate::netlink::Netlink;
use crate::observe::is_ours;

/// How the external interface is chosen, in flannel's order (contract N8; flannel, main.go and pkg/ipmatch).
///
/// Where `interfaces`, `patterns` or `can_reach` say something, they are tried in this order, and it is an error if
/// none of them leads to an interface; `public` is then published and selects nothing. Else the owner of `public` is
/// meant; else, which flannel does not look at, the owner of one of `node_addresses`; else the default route's
/// interface. With both families on, both default routes must lead to the same one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceChoice {
    /// The families of the pod networks.
    pub families: BTreeSet<Family>,
    /// Names or addresses of interfaces.
    pub interfaces: Vec<String>,
    /// Regular expressions: each is tried on the addresses of every interface first, then on their names. With both
    /// families on, an interface must have an address of either that matches.
    pub patterns: Vec<String>,
    /// The interface is the one that leads to this address, with the source address that the route says.
    pub can_reach: Option<IpAddr>,
    /// The addresses that peers are to be told. The Node's annotations `node-public-ip(v6)` go before the
    /// configuration ([`podway_overlay::Node::public_ip`]).
    pub public: PerFamily<Option<IpAddr>>,
    /// The addresses of this machine's Node.
    pub node_addresses: Vec<IpAddr>,
}

/// What is looked at.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// The main table, ours included.
    pub(crate) routes: PerFamily<Vec<RouteEntry>>,
    /// The interfaces of the default routes.
    default: PerFamily<Option<IfIndex>>,
    /// The interface that leads to the address to be reached, and the source address.
    reach: Option<(IfIndex, Option<IpAddr>)>,
}

/// An interface, and its addresses where more than the interface was said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    link: IfIndex,
    fixed: PerFamily<Option<IpAddr>>,
}

/// Reads what a choice is made by.
pub(crate) async fn look(netlink: &Netlink, choice: &InterfaceChoice) -> Result<Facts, Error> {
    let mut facts = Facts {
        links: dump::links(netlink).await?,
        addresses: dump::addresses(netlink, None).await?,
        ..Facts::default()
    };
    for family in Family::BOTH {
        let routes = dump::routes(netlink, family, Routes::All).await?;
        *facts.default.get_mut(family) = default_route(&routes);
        *facts.routes.get_mut(family) = routes;
    }
    if let Some(address) = choice.can_reach {
        facts.reach = dump::way_to(netlink, address).await?;
    }
    Ok(facts)
}

fn default_route(routes: &[RouteEntry]) -> Option<IfIndex> {
    let default = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0 && route.kind == RouteType::Unicast)
        .min_by_key(|route| route.priority);
    default.and_then(|route| route.hops.first()).map(|hop| hop.link)
}

/// Of the interfaces that the choice leads to, the first with a usable address of every family, else the first.
pub(crate) fn resolve(choice: &InterfaceChoice, facts: &Facts) -> Result<ExternalInterface, Error> {
    let candidates = match choice.is_explicit() {
        true => facts.named(choice)?,
        false => vec![facts.by_default(choice)?],
    };
    let complete = |candidate: &&Candidate| {
        choice.families.iter().all(|family| facts.address(candidate, *family).is_some())
    };
    let chosen = candidates.iter().find(complete).or(candidates.first());
    facts.describe(chosen.ok_or_else(|| facts.no_match(choice))?)
}

impl InterfaceChoice {
    fn is_explicit(&self) -> bool {
        !self.interfaces.is_empty() || !self.patterns.is_empty() || self.can_reach.is_some()
    }

    /// What was asked for, in words.
    fn tried(&self) -> Vec<String> {
        let interfaces = self.interfaces.iter().map(|name| format!("interface {name}"));
        let patterns = self.patterns.iter().map(|pattern| format!("pattern `{pattern}`"));
        let reach = self.can_reach.map(|address| format!("the way to {address}"));
        interfaces.chain(patterns).chain(reach).collect()
    }
}

impl Facts {
    fn named(&self, choice: &InterfaceChoice) -> Result<Vec<Candidate>, Error> {
        let mut candidates: Vec<Candidate> = Vec::new();
        candidates.extend(choice.interfaces.iter().filter_map(|text| self.by_name_or_address(text)));
        for pattern in &choice.patterns {
            let regex = Regex::new(pattern)
                .map_err(|cause| Error::Pattern { pattern: pattern.clone(), cause: cause.to_string() })?;
            candidates.extend(self.by_pattern(&regex, &choice.families));
        }
        let reach = self.reach.filter(|_| choice.can_reach.is_some());
        candidates.extend(reach.map(|(link, source)| Candidate { link, fixed: fixed(source) }));
        Ok(candidates)
    }

    fn by_default(&self, choice: &InterfaceChoice) -> Result<Candidate, Error> {
        let public = PerFamily::from_fn(|family| {
            choice.public.get(family).filter(|_| choice.families.contains(&family))
        });
        if public != PerFamily::default() {
            return self.owner_of_both(public);
        }
        if let Some(owner) = choice.node_addresses.iter().find_map(|address| self.owner(*address)) {
            return Ok(owner);
        }
        let mut links = choice.families.iter().filter_map(|family| *self.default.get(*family));
        let Some(link) = links.next() else {
            return Err(Error::NoDefaultRoute { interfaces: self.listing() });
        };
        if let Some(other) = links.find(|other| *other != link) {
            let name = |index| self.name(index);
            return Err(Error::TwoInterfaces { by: "the default routes", v4: name(link), v6: name(other) });
        }
        Ok(Candidate { link, fixed: PerFamily::default() })
    }

    fn owner_of_both(&self, public: PerFamily<Option<IpAddr>>) -> Result<Candidate, Error> {
        let mut owners = Vec::new();
        for (_, address) in public.iter() {
            let missing = || Error::NoOwner { address: *address, interfaces: self.listing() };
            owners.push(self.owner(*address).ok_or_else(missing)?.link);
        }
        match owners[..] {
            [v4, v6] if v4 != v6 => {
                Err(Error::TwoInterfaces { by: "the public addresses", v4: self.name(v4), v6: self.name(v6) })
            }
            [link, ..] => Ok(Candidate { link, fixed: public }),
            [] => Err(Error::NoDefaultRoute { interfaces: self.listing() }),
        }
    }

    fn by_name_or_address(&self, text: &str) -> Option<Candidate> {
        if let Ok(address) = text.parse() {
            return self.owner(address);
        }
        let link = self.links.iter().find(|link| link.name.as_str() == text)?;
        Some(Candidate { link: link.index, fixed: PerFamily::default() })
    }

    fn by_pattern(&self, regex: &Regex, families: &BTreeSet<Family>) -> Option<Candidate> {
        let others = || self.links.iter().filter(|link| !is_ours(link));
        let by_address = others().find_map(|link| {
            let matching = |family| {
                let mut usable = self.usable(link.index, family).into_iter();
                usable.find(|address| regex.is_match(&address.to_string()))
            };
            let fixed = PerFamily::from_fn(|family| matching(family).filter(|_| families.contains(&family)));
            let every = families.iter().all(|family| fixed.get(*family).is_some());
            every.then_some(Candidate { link: link.index, fixed })
        });
        let by_name = || others().find(|link| regex.is_match(link.name.as_str()));
        by_address.or_else(|| Some(Candidate { link: by_name()?.index, fixed: PerFamily::default() }))
    }

    fn owner(&self, address: IpAddr) -> Option<Candidate> {
        let owned = self.addresses.iter().find(|owned| owned.net.addr() == address)?;
        Some(Candidate { link: owned.link, fixed: fixed(Some(address)) })
    }

    fn address(&self, candidate: &Candidate, family: Family) -> Option<IpAddr> {
        let best = || self.usable(candidate.link, family).into_iter().next();
        candidate.fixed.get(family).or_else(best)
    }

    /// The addresses of a link that peers could send to, the best first: global before link-local, permanent before
    /// dynamic, lasting before temporary; never a deprecated one (flannel, pkg/ip/iface.go).
    fn usable(&self, link: IfIndex, family: Family) -> Vec<IpAddr> {
        let usable = |address: &&Address| {
            let ip = address.net.addr();
            address.link == link
                && family.has(ip)
                && !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
                && !address.flags.contains(Flags::Deprecated)
        };
        let mut found: Vec<&Address> = self.addresses.iter().filter(usable).collect();
        found.sort_by_key(|address| {
            // The flag of temporary IPv6 addresses is that of secondary IPv4 ones.
            let (permanent, temporary) =
                (address.flags.contains(Flags::Permanent), address.flags.contains(Flags::Secondary));
            (is_link_local(address.net.addr()), !permanent, temporary)
        });
        found.into_iter().map(|address| address.net.addr()).collect()
    }

    fn describe(&self, chosen: &Candidate) -> Result<ExternalInterface, Error> {
        let link = self.links.iter().find(|link| link.index == chosen.link);
        let link = link.ok_or_else(|| Error::Vanished { interfaces: self.listing() })?;
        let mtu =
            Mtu::new(link.mtu).map_err(|_| Error::UnusableMtu { name: link.name.clone(), mtu: link.mtu })?;
        let (mut v4, mut v6) = (None, None);
        for family in Family::BOTH {
            match self.address(chosen, family) {
                Some(IpAddr::V4(address)) => v4 = Some(address),
                Some(IpAddr::V6(address)) => v6 = Some(address),
                None => {}
            }
        }
        Ok(ExternalInterface { index: link.index, name: link.name.clone(), mtu, v4, v6 })
    }

    fn no_match(&self, choice: &InterfaceChoice) -> Error {
        Error::NoInterface { tried: choice.tried().join(", "), interfaces: self.listing() }
    }

    fn name(&self, index: IfIndex) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| index.0.to_string(), |link| link.name.to_string())
    }

    /// What interfaces there are, with their addresses.
    fn listing(&self) -> String {
        let shown = self.links.iter().filter(|link| !is_ours(link)).map(|link| {
            let owned = self.addresses.iter().filter(|address| address.link == link.index);
            let addresses: Vec<String> = owned.map(|address| address.net.addr().to_string()).collect();
            format!("{} ({})", link.name, addresses.join(" "))
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// The one address that is known, at its family.
fn fixed(address: Option<IpAddr>) -> PerFamily<Option<IpAddr>> {
    PerFamily::from_fn(|family| address.filter(|address| family.has(*address)))
}

pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use podway_overlay::{LinkKind, LinkName};

    use super::*;

    #[test]
    fn n8_interfaces_come_before_patterns_and_these_before_the_address_to_reach() {
        let mut choice = InterfaceChoice {
            interfaces: vec!["eth9".into(), "eth2".into(), "eth0".into()],
            patterns: vec!["^eth1$".into()],
            can_reach: Some([198, 51, 100, 9].into()),
            ..v4()
        };
        assert_eq!(chosen(&choice), "eth2 203.0.113.3", "the first that is there");
        choice.interfaces = vec!["192.0.2.2".into()];
        assert_eq!(chosen(&choice), "eth0 192.0.2.2", "by an address, which is then the one to send to");
        choice.interfaces = vec!["eth9".into()];
        assert_eq!(chosen(&choice), "eth1 198.51.100.1");
        choice.patterns = vec!["wlan".into()];
        assert_eq!(chosen(&choice), "eth2 203.0.113.3", "the way to the address");
    }

    #[test]
    fn n8_a_pattern_is_tried_on_the_addresses_of_all_interfaces_then_on_their_names() {
        let pattern = |pattern: &str, families: &[Family]| {
            let families = families.iter().copied().collect();
            chosen(&InterfaceChoice {
                families,
                patterns: vec![pattern.into()],
                ..InterfaceChoice::default()
            })
        };
        assert_eq!(pattern(r"^(eth0|198\.51\.100\.1)$", &[Family::V4]), "eth1 198.51.100.1");
        assert_eq!(pattern("^eth", &[Family::V4]), "eth0 192.0.2.1");
        assert_eq!(pattern("^2001:db8:1:", &[Family::V6]), "eth1 198.51.100.1 2001:db8:1::1");
        let either = r"^(192\.0\.2\.|2001:db8:1:|198\.51\.100\.)";
        assert_eq!(pattern(either, &Family::BOTH), "eth1 198.51.100.1 2001:db8:1::1", "both addresses match");
        assert_eq!(pattern("flannel", &[Family::V4]), "no", "ours is not looked at");
    }

    #[test]
    fn n8_the_way_to_an_address_brings_its_source_along() {
        let choice = InterfaceChoice { can_reach: Some([198, 51, 100, 9].into()), ..v4() };
        let mut facts = facts();
        facts.reach = Some((IfIndex(2), Some([192, 0, 2, 2].into())));
        assert_eq!(resolve(&choice, &facts).unwrap().v4, Some([192, 0, 2, 2].into()));
        facts.reach = None;
        let text = resolve(&choice, &facts).unwrap_err().to_string();
        assert!(text.contains("the way to 198.51.100.9"), "{text}");
    }

    #[test]
    fn n8_a_public_address_alone_selects_its_owner_and_is_only_published_beside_an_interface() {
        let mut choice = v4();
        choice.public.v4 = Some([198, 51, 100, 1].into());
        assert_eq!(chosen(&choice), "eth1 198.51.100.1");
        choice.interfaces = vec!["eth0".into()];
        assert_eq!(chosen(&choice), "eth0 192.0.2.1");
        choice = v4();
        choice.public.v4 = Some([203, 0, 113, 99].into());
        let text = resolve(&choice, &facts()).unwrap_err().to_string();
        assert!(
            text.starts_with("no interface has address 203.0.113.99") && text.contains("eth0 ("),
            "{text}"
        );
        choice.families = Family::BOTH.into();
        choice.public =
            PerFamily { v4: Some([198, 51, 100, 1].into()), v6: Some("2001:db8::1".parse().unwrap()) };
        let text = resolve(&choice, &facts()).unwrap_err().to_string();
        assert!(text.starts_with("the public addresses lead to two interfaces, eth1 and eth0"), "{text}");
    }

    #[test]
    fn n8_else_the_owner_of_the_nodes_address_else_the_default_route() {
        let mut choice = v4();
        choice.node_addresses = vec![[203, 0, 113, 77].into(), [198, 51, 100, 1].into()];
        assert_eq!(chosen(&choice), "eth1 198.51.100.1");
        choice.node_addresses.clear();
        assert_eq!(chosen(&choice), "eth0 192.0.2.1");
        let text =
            resolve(&v4(), &Facts { default: PerFamily::default(), ..facts() }).unwrap_err().to_string();
        assert!(text.starts_with("no default route leads to an interface"), "{text}");
    }

    #[test]
    fn n8_in_dual_stack_both_default_routes_lead_to_one_interface() {
        let choice = InterfaceChoice { families: Family::BOTH.into(), ..InterfaceChoice::default() };
        let mut facts = facts();
        facts.default = PerFamily { v4: Some(IfIndex(2)), v6: Some(IfIndex(3)) };
        let text = resolve(&choice, &facts).unwrap_err().to_string();
        assert!(text.starts_with("the default routes lead to two interfaces, eth0 and eth1"), "{text}");
        assert_eq!(resolve(&v4(), &facts).unwrap().name.as_str(), "eth0", "the other family is off");
        facts.default.v4 = Some(IfIndex(3));
        assert_eq!(resolve(&choice, &facts).unwrap().name.as_str(), "eth1");
    }

    #[test]
    fn n8_an_interface_with_addresses_of_every_family_is_preferred() {
        let choice = InterfaceChoice {
            families: Family::BOTH.into(),
            interfaces: vec!["eth2".into(), "eth1".into()],
            ..InterfaceChoice::default()
        };
        assert_eq!(chosen(&choice), "eth1 198.51.100.1 2001:db8:1::1", "eth2 has no IPv6 address");
        let only = InterfaceChoice { interfaces: vec!["eth2".into()], ..choice };
        assert_eq!(chosen(&only), "eth2 203.0.113.3");
    }

    #[test]
    fn n8_the_best_address_is_global_permanent_and_lasting() {
        let mut facts = facts();
        let mut add = |text: &str, flags| {
            facts.addresses.insert(0, Address { link: IfIndex(2), net: text.parse().unwrap(), flags });
        };
        add("192.0.2.7/24", Flags::Permanent | Flags::Secondary);
        add("192.0.2.8/24", Flags::empty());
        add("169.254.7.7/16", Flags::Permanent);
        add("192.0.2.9/24", Flags::Permanent | Flags::Deprecated);
        assert_eq!(resolve(&v4(), &facts).unwrap().v4, Some([192, 0, 2, 1].into()));
    }

    #[test]
    fn n8_what_was_tried_and_what_there_is_are_named() {
        let choice = InterfaceChoice {
            interfaces: vec!["eth9".into()],
            patterns: vec!["^wlan".into()],
            can_reach: Some([10, 0, 0, 1].into()),
            ..v4()
        };
        let none = Facts { reach: None, ..facts() };
        assert_eq!(
            resolve(&choice, &none).unwrap_err().to_string(),
            "no interface is meant by interface eth9, pattern `^wlan`, the way to 10.0.0.1; there are: \
             eth0 (192.0.2.1 192.0.2.2 2001:db8::1), eth1 (198.51.100.1 2001:db8:1::1), eth2 (203.0.113.3)"
        );
        let bad = InterfaceChoice { patterns: vec!["eth(".into()], ..v4() };
        let text = resolve(&bad, &facts()).unwrap_err().to_string();
        assert!(text.starts_with("pattern `eth(` for the external interface: "), "{text}");
    }

    fn chosen(choice: &InterfaceChoice) -> String {
        let Ok(found) = resolve(choice, &facts()) else { return "no".to_owned() };
        let v4 = found.v4.map(|address| address.to_string());
        let v6 = found.v6.map(|address| address.to_string()).filter(|_| found.name.as_str() == "eth1");
        let words = [found.name.to_string()].into_iter().chain(v4);
        let v6 = v6.filter(|_| choice.families.contains(&Family::V6));
        words.chain(v6).collect::<Vec<_>>().join(" ")
    }

    fn v4() -> InterfaceChoice {
        InterfaceChoice { families: [Family::V4].into(), ..InterfaceChoice::default() }
    }

    /// Three interfaces and a link of ours; the default route is by eth0, the address to reach by eth2.
    fn facts() -> Facts {
        let link = |index, name: &str, alias: Option<&str>| Link {
            index: IfIndex(index),
            name: LinkName::new(name).unwrap(),
            alias: alias.map(str::to_owned),
            kind: LinkKind::Other("plain".to_owned()),
            mtu: 1500,
            mac: None,
            up: true,
            controller: None,
        };
        let address = |index, net: &str| Address {
            link: IfIndex(index),
            net: net.parse().unwrap(),
            flags: Flags::Permanent,
        };
        Facts {
            links: vec![
                link(5, "flannel.1", Some(crate::LINK_ALIAS)),
                link(2, "eth0", None),
                link(3, "eth1", None),
                link(4, "eth2", None),
            ],
            addresses: vec![
                address(2, "192.0.2.1/24"),
                address(2, "192.0.2.2/24"),
                address(2, "2001:db8::1/64"),
                address(3, "198.51.100.1/24"),
                address(3, "2001:db8:1::1/64"),
                address(4, "203.0.113.3/24"),
            ],
            routes: PerFamily::default(),
            default: PerFamily { v4: Some(IfIndex(2)), v6: Some(IfIndex(2)) },
            reach: Some((IfIndex(4), None)),
        }
    }
}
