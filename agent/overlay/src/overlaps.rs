//! Ranges that must not overlap: pods, Services, the host, and the network underneath (contracts N14, N23).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::units::Family;

/// Everything that has addresses, to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addressing {
    /// The ranges that hold all pods of the cluster.
    pub pod_networks: Vec<IpNet>,
    /// This node's own subnets of them, where it has any yet.
    pub own_subnets: Vec<IpNet>,
    /// The ranges of the Services (`--service-cluster-ip-range`, ServiceCIDRs).
    pub service_ranges: Vec<IpNet>,
    /// This machine's routes and addresses.
    pub host: Vec<HostNet>,
    /// Underlay addresses of nodes, with the node's name.
    pub nodes: Vec<(Arc<str>, IpAddr)>,
}

/// A network that this machine is in or has a route to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostNet {
    /// The route's destination, or the address with its prefix.
    pub net: IpNet,
    /// What it is, such as `route 10.0.0.0/16 dev eth0` or `address 192.0.2.11/24 of eth0`.
    pub what: Arc<str>,
    /// Whether podway, or the pod network it takes over, made it.
    pub ours: bool,
}

/// Two things that want the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// Of the pods or the Services.
    pub range: Claimant,
    /// What is in its way.
    pub with: Claimant,
}

/// Who claims addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimant {
    /// This node's pods.
    OwnSubnet(IpNet),
    /// The pods of the cluster.
    PodNetwork(IpNet),
    /// The Services.
    ServiceRange(IpNet),
    /// A network of this machine.
    Host {
        /// A route's destination; an address with its prefix.
        net: IpNet,
        /// What it is.
        what: Arc<str>,
    },
    /// A node, by its underlay address.
    Node {
        /// Its name.
        name: Arc<str>,
        /// Its address.
        address: IpAddr,
    },
}

/// What an overlap does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Pods work, but some addresses cannot be reached, or a subnet that is yet to be handed out will not work.
    Warning,
    /// It concerns this node's own subnet, which would take traffic away from something that has it now, or would not
    /// get its own: nothing is to be programmed.
    Error,
}

impl Overlap {
    /// Whether this node's network can be programmed all the same.
    pub fn severity(&self) -> Severity {
        match (&self.range, &self.with) {
            // A wider route goes on for all that is not this node's pods.
            (Claimant::OwnSubnet(own), Claimant::Host { net, .. }) if is_around(net, own) => {
                Severity::Warning
            }
            // Addresses of Services are translated before anything is routed: theirs works, and the pod's does not.
            (Claimant::OwnSubnet(_), Claimant::ServiceRange(_)) => Severity::Warning,
            (Claimant::OwnSubnet(_), _) => Severity::Error,
            _ => Severity::Warning,
        }
    }
}

/// Every overlap of the pods' and the Services' ranges with each other, with this machine's networks and with the
/// nodes, worst first.
///
/// A default route overlaps nothing, halved (0.0.0.0/1 and 128.0.0.0/1, as VPNs have it) or as IPv6's 2000::/3, and
/// neither do routes and addresses of ours. A route to the network of an address of this machine is not
/// named beside the address. What overlaps the own subnet is not named once more for the pod network around it.
pub fn overlaps(addressing: &Addressing) -> Vec<Overlap> {
    let own = addressing.own_subnets.iter().map(|net| Claimant::OwnSubnet(net.trunc()));
    let pods = addressing.pod_networks.iter().map(|net| Claimant::PodNetwork(net.trunc()));
    let services: Vec<Claimant> =
        addressing.service_ranges.iter().map(|net| Claimant::ServiceRange(net.trunc())).collect();
    let others = others(addressing);
    let mut found: Vec<Overlap> = Vec::new();
    for range in own.chain(pods) {
        let with: Vec<Overlap> = clashes(&range, services.iter().chain(&others)).collect();
        found.extend(with.into_iter().filter(|new| !is_named(&found, new)).collect::<Vec<_>>());
    }
    for range in &services {
        found.extend(clashes(range, &others));
    }
    found.extend(among(&addressing.pod_networks, Claimant::PodNetwork));
    found.extend(among(&addressing.service_ranges, Claimant::ServiceRange));
    found.sort_by_key(|overlap| std::cmp::Reverse(overlap.severity()));
    found
}

/// What is in nobody's power to move: this machine's networks and the nodes.
fn others(addressing: &Addressing) -> Vec<Claimant> {
    let hosts = || addressing.host.iter().filter(|host| !host.ours && !is_default_route(&host.net));
    let addressed: BTreeSet<IpNet> =
        hosts().filter(|host| is_address(&host.net)).map(|host| host.net.trunc()).collect();
    let mut routed = BTreeSet::new();
    let named = hosts()
        .filter(|HostNet { net, .. }| is_address(net) || (!addressed.contains(net) && routed.insert(*net)));
    let nodes = addressing.nodes.iter();
    named
        .map(|host| Claimant::Host { net: host.net, what: host.what.clone() })
        .chain(nodes.map(|(name, address)| Claimant::Node { name: name.clone(), address: *address }))
        .collect()
}

fn clashes<'a>(
    range: &Claimant,
    with: impl IntoIterator<Item = &'a Claimant>,
) -> impl Iterator<Item = Overlap> {
    with.into_iter()
        .filter(|with| overlap(&range.net(), &with.net()))
        .map(|with| Overlap { range: range.clone(), with: with.clone() })
}

/// Whether it is about a pod network whose subnet of this node has the same in its way.
fn is_named(found: &[Overlap], new: &Overlap) -> bool {
    let Claimant::PodNetwork(network) = &new.range else { return false };
    found.iter().any(|known| known.with == new.with && network.contains(&known.range.net()))
}

/// Overlaps within one kind.
fn among(nets: &[IpNet], claim: fn(IpNet) -> Claimant) -> impl Iterator<Item = Overlap> {
    nets.iter().enumerate().flat_map(move |(at, net)| {
        let later = nets.iter().skip(at + 1).filter(|later| overlap(net, later));
        later.map(move |later| Overlap { range: claim(net.trunc()), with: claim(later.trunc()) })
    })
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether this is a network around `subnet`, and not an address in it.
fn is_around(net: &IpNet, subnet: &IpNet) -> bool {
    net.trunc() != *subnet && net.contains(subnet) && !(is_address(net) && subnet.contains(&net.addr()))
}

/// A route's destination has no host bits.
fn is_address(net: &IpNet) -> bool {
    net.addr() != net.network()
}

fn is_default_route(net: &IpNet) -> bool {
    let all_unicast = Family::of(net) == Family::V6 && net.to_string() == "2000::/3";
    net.prefix_len() <= 1 || all_unicast
}

impl Claimant {
    /// The addresses, as a network without host bits.
    pub fn net(&self) -> IpNet {
        match self {
            Self::OwnSubnet(net)
            | Self::PodNetwork(net)
            | Self::ServiceRange(net)
            | Self::Host { net, .. } => net.trunc(),
            Self::Node { address, .. } => IpNet::from(*address),
        }
    }
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnSubnet(net) => write!(f, "this node's subnet {net}"),
            Self::PodNetwork(net) => write!(f, "pod network {net}"),
            Self::ServiceRange(net) => write!(f, "Service range {net}"),
            Self::Host { what, .. } => what.fmt(f),
            Self::Node { name, address } => write!(f, "address {address} of Node {name}"),
        }
    }
}

impl fmt::Display for Overlap {
    /// What overlaps what, what comes of it, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (range, with) = (self.range.net(), self.with.net());
        let verb = if range == with {
            "is the same as"
        } else if with.contains(&range) {
            "lies within"
        } else {
            "contains"
        };
        write!(f, "{} {verb} {}: {}", self.range, self.with, self.advice())
    }
}

impl Overlap {
    fn advice(&self) -> String {
        let range = self.range.net();
        match (&self.range, &self.with) {
            (Claimant::OwnSubnet(_), Claimant::ServiceRange(services)) => format!(
                "pods and Services would have the same addresses; give the cluster a pod network outside of \
                 {services}"
            ),
            (_, Claimant::ServiceRange(services)) if !matches!(self.range, Claimant::ServiceRange(_)) => {
                format!(
                    "pods and Services could get the same addresses; move one of them, or keep node subnets out of \
                 {services} by SubnetMin and SubnetMax"
                )
            }
            (Claimant::OwnSubnet(own), Claimant::Host { net, .. }) if is_around(net, own) => {
                format!(
                    "of what it leads to, {own} cannot be reached from this node; nothing to do if nobody is there"
                )
            }
            (Claimant::OwnSubnet(_), Claimant::Host { .. }) => {
                "they would take each other's packets; remove it, or give the Node another subnet".to_owned()
            }
            (Claimant::OwnSubnet(_), Claimant::Node { .. }) => {
                "packets to that node would end in this node's pods; give this Node another subnet".to_owned()
            }
            (Claimant::PodNetwork(pods), Claimant::Host { net, .. }) if is_around(net, pods) => format!(
                "of what it leads to, node subnets of {pods} cannot be reached; nothing to do if nobody is there"
            ),
            (Claimant::PodNetwork(pods), Claimant::Host { net, .. }) => {
                let there = if pods.contains(&net.trunc()) { net.trunc() } else { net.addr().into() };
                format!(
                    "no node may get a subnet in {there}, and traffic to it is taken for pod traffic; choose \
                     another pod network, or keep {there} out by SubnetMin and SubnetMax"
                )
            }
            (Claimant::PodNetwork(_), Claimant::Node { address, .. }) => format!(
                "no node may get the subnet with {address}, and traffic to that node is taken for pod traffic; \
                 choose a pod network apart from the nodes' addresses"
            ),
            (Claimant::ServiceRange(_), Claimant::Host { .. }) => {
                format!(
                    "a Service could get an address that is in use there; choose a Service range apart from it, not {range}"
                )
            }
            (Claimant::ServiceRange(_), Claimant::Node { address, .. }) => format!(
                "a Service could get {address}; choose a Service range apart from the nodes' addresses"
            ),
            _ => "one range within another is superfluous; remove one of them".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n23_ranges_apart_from_each_other_have_no_overlap() {
        let addressing = Addressing {
            pod_networks: nets(&["10.244.0.0/16", "fd77::/48"]),
            own_subnets: nets(&["10.244.1.0/24", "fd77:0:0:1::/64"]),
            service_ranges: nets(&["10.96.0.0/12", "fd96::/112"]),
            host: vec![
                host("192.0.2.11/24", "address 192.0.2.11/24 of eth0"),
                host("fe80::1/64", "address fe80::1/64 of eth0"),
            ],
            nodes: vec![("b".into(), "192.0.2.12".parse().unwrap())],
        };
        assert_eq!(overlaps(&addressing), []);
    }

    #[test]
    fn n23_a_default_route_overlaps_nothing_however_it_is_written() {
        let routes = ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "2000::/3", "8000::/1"];
        let addressing = Addressing {
            pod_networks: nets(&["10.244.0.0/16", "2001:db8::/48"]),
            host: routes.iter().map(|net| host(net, &format!("route {net} dev eth0"))).collect(),
            ..Addressing::default()
        };
        assert_eq!(overlaps(&addressing), []);
    }

    #[test]
    fn n14_our_own_routes_and_addresses_are_no_overlap() {
        let ours = |net: &str| HostNet { ours: true, ..host(net, "ours") };
        let addressing = Addressing {
            pod_networks: nets(&["10.244.0.0/16"]),
            own_subnets: nets(&["10.244.1.0/24"]),
            host: vec![ours("10.244.2.0/24"), ours("10.244.1.0/32")],
            ..Addressing::default()
        };
        assert_eq!(overlaps(&addressing), []);
    }

    #[test]
    fn n14_a_route_into_the_own_subnet_forbids_programming_and_one_around_it_does_not() {
        let mut addressing = Addressing {
            pod_networks: nets(&["10.244.0.0/16"]),
            own_subnets: nets(&["10.244.1.0/24"]),
            host: vec![
                host("10.0.0.0/8", "route 10.0.0.0/8 via 192.0.2.1"),
                host("10.244.1.128/25", "route 10.244.1.128/25 dev tun0"),
            ],
            ..Addressing::default()
        };
        assert_eq!(
            said(&addressing),
            [
                "Error: this node's subnet 10.244.1.0/24 contains route 10.244.1.128/25 dev tun0: they would take each \
                 other's packets; remove it, or give the Node another subnet",
                "Warning: this node's subnet 10.244.1.0/24 lies within route 10.0.0.0/8 via 192.0.2.1: of what it leads \
                 to, 10.244.1.0/24 cannot be reached from this node; nothing to do if nobody is there",
            ]
        );
        addressing.host = vec![host("10.244.1.0/24", "route 10.244.1.0/24 dev docker0")];
        assert_eq!(overlaps(&addressing)[0].severity(), Severity::Error);
        assert!(said(&addressing)[0].contains("is the same as route 10.244.1.0/24 dev docker0"));
    }

    #[test]
    fn n14_an_address_of_this_machine_in_the_own_subnet_forbids_programming_whatever_its_prefix() {
        for (address, severity) in [
            ("10.244.1.7/16", Severity::Error),
            ("10.244.1.7/24", Severity::Error),
            ("10.244.9.7/16", Severity::Warning),
        ] {
            let addressing = Addressing {
                own_subnets: nets(&["10.244.1.0/24"]),
                host: vec![host("10.244.0.0/16", "route"), host(address, "address")],
                ..Addressing::default()
            };
            assert_eq!(overlaps(&addressing)[0].severity(), severity, "{address}");
        }
    }

    #[test]
    fn n23_every_pair_is_named_with_what_to_do() {
        let addressing = Addressing {
            pod_networks: nets(&["10.0.0.0/8"]),
            own_subnets: nets(&["10.97.1.0/24"]),
            service_ranges: nets(&["10.96.0.0/12"]),
            host: vec![
                host("10.0.3.7/24", "address 10.0.3.7/24 of eth0"),
                host("10.0.3.0/24", "route 10.0.3.0/24 dev eth0"),
                host("10.100.0.0/16", "route 10.100.0.0/16 dev tun0"),
            ],
            nodes: vec![
                ("b".into(), "10.0.3.8".parse().unwrap()),
                ("c".into(), "10.97.1.9".parse().unwrap()),
                ("d".into(), "192.0.2.12".parse().unwrap()),
            ],
        };
        let said = said(&addressing);
        let begin = [
            "Error: this node's subnet 10.97.1.0/24 contains address 10.97.1.9 of Node c: packets to that node",
            "Warning: this node's subnet 10.97.1.0/24 lies within Service range 10.96.0.0/12: pods and Services would",
            "Warning: pod network 10.0.0.0/8 contains address 10.0.3.7/24 of eth0: no node may get a subnet in 10.0.3.0/24",
            "Warning: pod network 10.0.0.0/8 contains route 10.100.0.0/16 dev tun0: no node may get",
            "Warning: pod network 10.0.0.0/8 contains address 10.0.3.8 of Node b: no node may get the subnet with",
            "Warning: Service range 10.96.0.0/12 contains route 10.100.0.0/16 dev tun0: a Service could get",
            "Warning: Service range 10.96.0.0/12 contains address 10.97.1.9 of Node c: a Service could get 10.97.1.9",
        ];
        assert_eq!(said.len(), begin.len(), "{said:#?}");
        for (said, begin) in said.iter().zip(begin) {
            assert!(said.starts_with(begin), "{said}");
        }
    }

    #[test]
    fn n23_without_own_subnet_all_are_warnings() {
        let addressing = Addressing {
            pod_networks: nets(&["10.0.0.0/8", "10.244.0.0/16"]),
            service_ranges: nets(&["10.96.0.0/12", "10.96.0.0/16"]),
            ..Addressing::default()
        };
        let said = said(&addressing);
        assert!(said.iter().all(|said| said.starts_with("Warning")), "{said:#?}");
        assert!(
            said.iter()
                .any(|said| said.contains("pod network 10.0.0.0/8 contains pod network 10.244.0.0/16"))
        );
        assert!(said.iter().any(|said| said.contains("Service range 10.96.0.0/12 contains Service range")));
    }

    fn said(addressing: &Addressing) -> Vec<String> {
        overlaps(addressing).iter().map(|overlap| format!("{:?}: {overlap}", overlap.severity())).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn host(net: &str, what: &str) -> HostNet {
        HostNet { net: net.parse().unwrap(), what: what.into(), ours: false }
    }
}
