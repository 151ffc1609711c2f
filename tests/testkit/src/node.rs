//! Nodes and their pods.

use std::net::IpAddr;
use std::ops::Deref;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::cgroup;
use crate::host::Host;
use crate::namespace::Namespace;

/// MTU of the pods' devices: an underlay of 1500 minus VXLAN over IPv6 (70), so that it fits either family.
pub const POD_MTU: u32 = 1430;

/// The subnets that pod addresses without a prefix length are taken to come from.
const SUBNET_V4: u8 = 24;
const SUBNET_V6: u8 = 64;

/// A node: a [`Host`] on the underlay that has pods.
#[derive(Debug, Clone)]
pub struct Node {
    host: Host,
}

/// A pod: a [`Host`] behind a node, connected as the CNI plugin `ptp` does it.
#[derive(Debug, Clone)]
pub struct Pod {
    host: Host,
    node: Host,
}

impl Node {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    /// Adds a pod with these addresses, one of each family at most, as `10.244.1.5` or `10.244.1.5/24`.
    ///
    /// As with `ptp`: a veth pair, the first address of the node's subnet on the node's side as a host address, a route
    /// from there to each pod address, and all of the pod's routes through that gateway. Forwarding is switched on for
    /// the families used.
    pub fn pod(&self, name: &str, addresses: impl IntoIterator<Item = impl ToString>) -> Result<Pod> {
        let addresses = addresses.into_iter().map(|address| in_subnet(&address.to_string()));
        let addresses: Vec<IpNet> = addresses.collect::<Result<_>>()?;
        let site = &self.host.site;
        let _standing = site.standing()?;
        let namespace = site.namespace(name)?;
        let cgroup = self.host.cgroup.join(name);
        cgroup::create(&cgroup)?;
        self.forward(&addresses)?;
        connect(&self.host.namespace, &namespace, name, &addresses)?;
        let addresses = addresses.iter().map(IpNet::addr).collect();
        let host = Host { site: site.clone(), name: name.to_owned(), namespace, cgroup, addresses };
        Ok(Pod { host, node: self.host.clone() })
    }

    /// Adds a pod without a network, as it is before a container runtime calls the CNI plugin: a namespace that has its
    /// loopback device alone. Its path is `/run/netns/` with [`Host::netns`].
    pub fn sandbox(&self, name: &str) -> Result<Host> {
        let site = &self.host.site;
        let _standing = site.standing()?;
        let namespace = site.namespace(name)?;
        let cgroup = self.host.cgroup.join(name);
        cgroup::create(&cgroup)?;
        Ok(Host { site: site.clone(), name: name.to_owned(), namespace, cgroup, addresses: Vec::new() })
    }

    /// Removes the node and its pods, with everything that runs there. The handles of its pods are of no use then.
    pub fn remove(self) -> Result<()> {
        let Host { site, name, namespace, cgroup, .. } = self.host;
        let _standing = site.standing()?;
        let pods = cgroup::children(&cgroup)?;
        cgroup::remove(&cgroup)?;
        for pod in pods {
            site.namespace_of(&pod).delete()?;
        }
        // At once, unlike what goes with the namespace: a new node may want the name.
        site.underlay.ip(&format!("link del {name}"))?;
        namespace.delete()
    }

    /// Takes the node off the underlay as if its cable were pulled.
    pub fn unplug(&self) -> Result<()> {
        self.host.site.underlay.ip(&format!("link set {} down", self.host.name))
    }

    /// Undoes [`Node::unplug`].
    pub fn plug(&self) -> Result<()> {
        self.host.site.underlay.ip(&format!("link set {} up", self.host.name))
    }

    /// Makes its `eth0` anew, after that was removed; the addresses are the same, the MAC and the number are not.
    pub fn reconnect(&self) -> Result<()> {
        let mut standing = self.host.site.standing()?;
        let number = standing.number(&self.host.name)?;
        self.host.site.connect(&self.host.name, &self.host.namespace, number).map(drop)
    }

    fn forward(&self, addresses: &[IpNet]) -> Result<()> {
        for address in addresses {
            match address {
                IpNet::V4(_) => self.host.sysctl("net.ipv4.ip_forward", "1")?,
                IpNet::V6(_) => self.host.sysctl("net.ipv6.conf.all.forwarding", "1")?,
            }
        }
        Ok(())
    }
}

impl Pod {
    /// The name of the pod's device on the node.
    pub fn node_device(&self) -> String {
        device(&self.host.name)
    }

    /// The node that the pod is on.
    pub fn node_name(&self) -> &str {
        &self.node.name
    }

    /// Removes the pod, with everything that runs there.
    pub fn remove(self) -> Result<()> {
        let _standing = self.host.site.standing()?;
        cgroup::remove(&self.host.cgroup)?;
        self.node.ip(&format!("link del {}", self.node_device()))?;
        self.host.namespace.delete()
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Same steps as `cmdAdd` in containernetworking/plugins, plugins/main/ptp/ptp.go.
fn connect(node: &Namespace, pod: &Namespace, name: &str, addresses: &[IpNet]) -> Result<()> {
    let device = device(name);
    let mut on_node = format!(
        "link add {device} mtu {POD_MTU} type veth peer name eth0 mtu {POD_MTU} netns {}\n",
        pod.name()
    );
    let mut in_pod = String::from("link set eth0 up\n");
    on_node += &format!("link set {device} up\n");
    for subnet in addresses {
        let (address, gateway, host) = (subnet.addr(), gateway(subnet), subnet.max_prefix_len());
        let nodad = if subnet.addr().is_ipv6() { "nodad" } else { "" };
        on_node += &format!("addr add {gateway}/{host} dev {device} {nodad}\n");
        on_node += &format!("route add {address}/{host} dev {device}\n");
        in_pod += &format!("addr add {subnet} dev eth0 noprefixroute {nodad}\n");
        in_pod += &format!("route add {gateway}/{host} dev eth0 src {address}\n");
        in_pod += &format!("route add {} via {gateway} src {address}\n", subnet.trunc());
        in_pod += &format!("route add default via {gateway}\n");
    }
    node.ip(&on_node)?;
    pod.ip(&in_pod)
}

fn in_subnet(address: &str) -> Result<IpNet> {
    if address.contains('/') {
        return address.parse().with_context(|| format!("{address} is not an address with a prefix length"));
    }
    let address: IpAddr = address.parse().with_context(|| format!("{address} is not an address"))?;
    let length = if address.is_ipv4() { SUBNET_V4 } else { SUBNET_V6 };
    Ok(IpNet::new(address, length)?)
}

/// The first address of the subnet.
fn gateway(subnet: &IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => IpAddr::from((u32::from(network) + 1).to_be_bytes()),
        IpAddr::V6(network) => IpAddr::from((u128::from(network) + 1).to_be_bytes()),
    }
}

/// `veth` and eight hexadecimal digits, as the CNI plugins name it, from the pod's name (FNV-1a).
fn device(pod: &str) -> String {
    let hash =
        pod.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("veth{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_first_address_of_the_subnet() {
        let gateway_of = |address| gateway(&in_subnet(address).unwrap()).to_string();
        assert_eq!(gateway_of("10.244.1.77"), "10.244.1.1");
        assert_eq!(gateway_of("10.244.1.77/26"), "10.244.1.65");
        assert_eq!(gateway_of("fd00:10:244:1::77"), "fd00:10:244:1::1");
    }
}
