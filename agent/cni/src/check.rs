//! CHECK: whether a pod's network is still as ADD left it, as far as `prevResult` says so: what a later plugin of the
//! chain took away or changed, its result does not show.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::addresses::gateway;
use crate::attachment::Pod;
use crate::config::Network;
use crate::error::Error;
use crate::inside::Namespace;
use crate::messages::{Hop, Link};
use crate::netlink::Netlink;
use crate::outcome::{Interface, Ip, Outcome};
use crate::store::Store;

/// What is wrong, in words.
type Findings = Vec<String>;

/// Fails with all that is missing or altered.
pub(crate) fn check(network: &Network, pod: &Pod) -> Result<(), Error> {
    let Some(result) = &network.previous else {
        return Err(Error::Config("prevResult is missing, which CHECK is about".to_owned()));
    };
    let namespace = Namespace::open(&pod.netns)?;
    let expected = Expected::of(network, pod, result)?;
    let mut findings = reservation(network, pod, &expected)?;
    findings.extend(expected.on_node(network, pod)?);
    findings.extend(namespace.inside(|| expected.in_pod())?);
    if findings.is_empty() { Ok(()) } else { Err(Error::Altered(findings)) }
}

/// What of the result is about this attachment's interface.
struct Expected<'a> {
    interface: &'a Interface,
    ips: Vec<&'a Ip>,
    /// Routes of the result through a gateway of ours.
    routes: Vec<(IpNet, IpAddr)>,
}

impl<'a> Expected<'a> {
    fn of(network: &Network, pod: &Pod, result: &'a Outcome) -> Result<Self, Error> {
        let (ifname, netns) = (&pod.attachment.ifname, pod.netns.display().to_string());
        let is_ours = |interface: &&Interface| {
            interface.name == *ifname && interface.sandbox.as_deref() == Some(netns.as_str())
        };
        let Some(index) = result.interfaces.iter().position(|interface| is_ours(&interface)) else {
            let cause = format!("prevResult has no interface {ifname} in {netns}");
            return Err(Error::Config(format!("network {}: {cause}", network.name)));
        };
        let ips: Vec<&Ip> = result.ips.iter().filter(|ip| ip.interface == Some(index)).collect();
        let gateways: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.gateway).collect();
        let routes = result.routes.iter().filter_map(|route| Some((route.dst, route.gw?)));
        let routes = routes.filter(|(_, via)| gateways.contains(via)).collect();
        Ok(Self { interface: &result.interfaces[index], ips, routes })
    }

    fn on_node(&self, network: &Network, pod: &Pod) -> Result<Findings, Error> {
        let mut host = Netlink::open()?;
        let name = pod.attachment.link(&network.name);
        let Some(link) = host.link(&name)? else {
            return Ok(vec![format!("{name} on the node is gone")]);
        };
        let mut findings = down(&link, "on the node");
        let (addresses, routes) = (host.addresses(&link)?, host.routes()?);
        for ip in &self.ips {
            let gateway = ip.gateway.unwrap_or_else(|| gateway(&ip.address));
            if !addresses.contains(&gateway) {
                findings.push(format!("the gateway {gateway} is not on {name}"));
            }
            let pod = ip.address.addr();
            if !has_route(&routes, &link, pod.into(), None) {
                findings.push(format!("the node has no route to {pod} over {name}"));
            }
        }
        Ok(findings)
    }

    /// To be called inside the pod's namespace.
    fn in_pod(&self) -> Result<Findings, Error> {
        let mut pod = Netlink::open()?;
        let name = &self.interface.name;
        let Some(link) = pod.link(name)? else {
            return Ok(vec![format!("{name} in the pod is gone")]);
        };
        let mut findings = down(&link, "in the pod");
        let mac = link.mac.map(|mac| mac.to_string());
        if let Some(expected) = self.interface.mac.as_ref().filter(|expected| mac.as_ref() != Some(expected))
        {
            findings.push(format!("{name} has the MAC {} instead of {expected}", mac.unwrap_or_default()));
        }
        let (addresses, routes) = (pod.addresses(&link)?, pod.routes()?);
        for address in self.ips.iter().map(|ip| ip.address.addr()).filter(|ip| !addresses.contains(ip)) {
            findings.push(format!("the address {address} is not on {name}"));
        }
        for (to, via) in &self.routes {
            if !has_route(&routes, &link, *to, Some(*via)) {
                findings.push(format!("the pod has no route to {to} via {via}"));
            }
            if !has_route(&routes, &link, (*via).into(), None) {
                findings.push(format!("the pod has no route to its gateway {via}"));
            }
        }
        Ok(findings)
    }
}

fn reservation(network: &Network, pod: &Pod, expected: &Expected<'_>) -> Result<Findings, Error> {
    let store = Store::open(network)?;
    let held = store.reservations.of(&pod.attachment).unwrap_or_default();
    let addresses = expected.ips.iter().map(|ip| ip.address.addr());
    let lost = addresses.filter(|address| !held.contains(address));
    Ok(lost.map(|address| format!("the address {address} is not reserved for this pod")).collect())
}

fn down(link: &Link, place: &str) -> Findings {
    if link.up { Vec::new() } else { vec![format!("{} {place} is down", link.name)] }
}

fn has_route(routes: &[Hop], link: &Link, destination: IpNet, via: Option<IpAddr>) -> bool {
    routes.contains(&Hop { destination, link: link.index, via })
}
