//! ADD: a veth pair with a routed end on the node, as the plugin `ptp` makes it.
//!
//! ```text
//!  node                                                pod
//!  vethXXXXXXXXXXX  10.77.1.1/32  ───────────────────  eth0  10.77.1.5/32
//!  10.77.1.5 dev vethXXXXXXXXXXX                       10.77.1.1 dev eth0 scope link
//!                                                      default via 10.77.1.1
//! ```
//!
//! The gateway is the first address of the node's subnet, on every pod's link alike. A pod has no neighbour but the
//! node: all it sends is routed there, also to pods beside it.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_overlay::Mtu;

use crate::addresses::gateway;
use crate::attachment::Pod;
use crate::config::Network;
use crate::error::Error;
use crate::inside::Namespace;
use crate::messages::{Link, add_address, add_route, add_veth, link_up, set_alias};
use crate::netlink::{Netlink, Step};
use crate::outcome::{Interface, Ip, Outcome, Route};
use crate::store::Store;
use crate::subnet::NodeSubnets;
use crate::{del, host_local, sysctl};

/// What an attachment consists of before it is made.
struct Plan<'a> {
    network: &'a Network,
    pod: &'a Pod,
    /// The link's name on the node.
    link: String,
    mtu: Mtu,
    ways: Vec<Way>,
}

/// A pod's address with the gateway of its subnet.
struct Way {
    address: IpAddr,
    gateway: IpAddr,
}

/// Attaches the pod. Fails if it is attached already, or if a link that is not its own has its name; what a killed ADD
/// left is replaced. On a failure nothing is left.
pub(crate) fn add(network: &Network, pod: &Pod) -> Result<Outcome, Error> {
    let node = NodeSubnets::read(&network.subnet_file)?;
    let namespace = Namespace::open(&pod.netns)?;
    let mut host = Netlink::open()?;
    let link = pod.attachment.link(&network.name);
    let addresses = reserve(network, pod, &node.subnets, &mut host, &link)?;
    let ways = node.subnets.iter().zip(addresses);
    let ways = ways.map(|(subnet, address)| Way { address, gateway: gateway(subnet) }).collect();
    let plan = Plan { network, pod, link, mtu: network.mtu.unwrap_or(node.mtu), ways };
    let made = plan.make(&mut host, &namespace);
    if made.is_err() {
        // What cannot be undone now stays reserved, so that DEL or GC finds it.
        let _ = del::detach(network, &pod.attachment, &mut host);
    }
    made
}

fn reserve(
    network: &Network,
    pod: &Pod,
    subnets: &[IpNet],
    host: &mut Netlink,
    link: &str,
) -> Result<Vec<IpAddr>, Error> {
    let mut store = Store::open(network)?;
    if let Some(found) = host.link(link)? {
        if found.alias == Some(pod.attachment.alias(&network.name)) {
            let addresses = store.reservations.of(&pod.attachment).unwrap_or_default().to_vec();
            let (container, ifname) = (pod.attachment.container.clone(), pod.attachment.ifname.clone());
            return Err(Error::Attached { container, ifname, addresses });
        }
        if !pod.attachment.may_be(&network.name, &found) {
            let owner = found.alias.unwrap_or_default();
            return Err(Error::LinkTaken { link: link.to_owned(), owner });
        }
        host.delete_link(link)?;
    }
    store.reservations.avoid(host_local::held(&network.host_local_directory)?);
    let addresses = store.reservations.reserve(&pod.attachment, subnets, &network.wanted)?;
    store.save()?;
    Ok(addresses)
}

impl Plan<'_> {
    /// The alias comes last: a link without one is the leftover of an ADD that did not end.
    fn make(&self, host: &mut Netlink, namespace: &Namespace) -> Result<Outcome, Error> {
        let ifname = &self.pod.attachment.ifname;
        host.run(vec![add_veth(&self.link, ifname, namespace, self.mtu)])?;
        let on_node = self.found(host.link(&self.link)?, &self.link)?;
        self.connect_node(host, &on_node)?;
        let in_pod = namespace.inside(|| self.connect_pod())?;
        host.run(vec![set_alias(&on_node, self.pod.attachment.alias(&self.network.name))])?;
        Ok(self.outcome(&on_node, &in_pod).after(self.network.previous.clone()))
    }

    fn connect_node(&self, host: &mut Netlink, link: &Link) -> Result<(), Error> {
        if self.has_ipv6() {
            sysctl::settle_ipv6(&self.link)?;
        }
        let addresses: Vec<IpAddr> = self.ways.iter().map(|way| way.address).collect();
        sysctl::forward(&addresses)?;
        let ways = self.ways.iter().flat_map(|way| {
            [add_address(link, way.gateway), add_route(link, way.address.into(), None, None)]
        });
        host.run([link_up(link)].into_iter().chain(ways).collect())
    }

    /// To be called inside the pod's namespace.
    fn connect_pod(&self) -> Result<Link, Error> {
        let ifname = &self.pod.attachment.ifname;
        let mut pod = Netlink::open()?;
        let link = self.found(pod.link(ifname)?, ifname)?;
        if self.has_ipv6() {
            sysctl::admit_ipv6(ifname)?;
        }
        let ways = self.ways.iter().flat_map(|way| way.steps_in_pod(&link));
        pod.run([link_up(&link)].into_iter().chain(ways).collect())?;
        Ok(link)
    }

    fn has_ipv6(&self) -> bool {
        self.ways.iter().any(|way| way.address.is_ipv6())
    }

    /// A link that was made a moment ago.
    fn found(&self, link: Option<Link>, name: &str) -> Result<Link, Error> {
        let gone = || std::io::Error::other("it has been removed by someone else");
        link.ok_or_else(|| Error::kernel(format!("look up {name}"))(gone()))
    }

    fn outcome(&self, on_node: &Link, in_pod: &Link) -> Outcome {
        let interface = |link: &Link, sandbox| Interface {
            name: link.name.clone(),
            mac: link.mac.map(|mac| mac.to_string()),
            mtu: Some(self.mtu.get()),
            sandbox,
            ..Interface::default()
        };
        let sandbox = self.pod.netns.display().to_string();
        let ip = |way: &Way| Ip {
            version: None,
            address: way.address.into(),
            gateway: Some(way.gateway),
            interface: Some(1),
        };
        Outcome {
            interfaces: vec![interface(on_node, None), interface(in_pod, Some(sandbox))],
            ips: self.ways.iter().map(ip).collect(),
            routes: self.ways.iter().map(Way::default_route).collect(),
            dns: self.network.dns.clone(),
        }
    }
}

impl Way {
    fn steps_in_pod(&self, link: &Link) -> [Step; 3] {
        [
            add_address(link, self.address),
            add_route(link, self.gateway.into(), None, Some(self.address)),
            add_route(link, everywhere(self.gateway), Some(self.gateway), None),
        ]
    }

    fn default_route(&self) -> Route {
        Route { dst: everywhere(self.gateway), gw: Some(self.gateway), rest: serde_json::Map::new() }
    }
}

/// The network of all addresses of the family.
fn everywhere(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}
