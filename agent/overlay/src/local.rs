//! This machine's own part of the pod network.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::annotations;
use crate::host::{Host, RoutingTable};
use crate::node::Node;
use crate::offload;
use crate::peer::{self, Vtep};
use crate::plan::{VxlanLink, Way};
use crate::problem::Reason;
use crate::settings::{Backend, Peering, Settings};
use crate::units::{Family, LinkName, Mac, Mtu, PerFamily};

/// This machine's own part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Local {
    pub(crate) subnets: PerFamily<Option<IpNet>>,
    pub(crate) bases: PerFamily<Option<Base>>,
    pub(crate) reasons: Vec<Reason>,
}

/// What the ways to peers of one family start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// A VXLAN link.
    Vxlan { name: LinkName, link: VxlanLink },
    /// The external interface and its address.
    HostGw { interface: LinkName, address: IpAddr },
}

impl Base {
    pub(crate) fn mac(&self) -> Option<Mac> {
        match self {
            Self::Vxlan { link, .. } => Some(link.mac),
            Self::HostGw { .. } => None,
        }
    }

    fn address(&self) -> IpAddr {
        match self {
            Self::Vxlan { link, .. } => link.local,
            Self::HostGw { address, .. } => *address,
        }
    }

    /// How a peer is reached, as the machine's own routes stand.
    fn way(&self, settings: &Settings, routes: &RoutingTable, vtep: &Vtep) -> Result<Way, Reason> {
        let (subnet, underlay) = (vtep.subnet, vtep.underlay);
        match (self, vtep.mac) {
            (Self::Vxlan { name, .. }, Some(mac)) => {
                let neighbour = routes.neighbour_link(underlay).filter(|_| settings.direct_routing);
                Ok(match neighbour {
                    Some(link) => Way::Direct { subnet, link: link.clone(), via: underlay },
                    None => Way::Vxlan { subnet, link: name.clone(), mac, underlay },
                })
            }
            (Self::HostGw { interface, .. } | Self::Vxlan { name: interface, .. }, _) => {
                match routes.neighbour_link(underlay) {
                    Some(link) if link == interface => {
                        Ok(Way::Direct { subnet, link: link.clone(), via: underlay })
                    }
                    _ => Err(Reason::NoNeighbour { address: underlay, interface: interface.clone() }),
                }
            }
        }
    }
}

impl Local {
    pub(crate) fn of(
        settings: &Settings,
        names: &PerFamily<Option<LinkName>>,
        host: Option<&Host>,
        own: Option<&Node>,
    ) -> Self {
        let mut local = Self::default();
        let Some(own) = own else {
            local.reasons.push(Reason::NoNode);
            return local;
        };
        for family in Family::BOTH.into_iter().filter(|family| settings.has(*family)) {
            let subnet = match peer::subnet(settings, own, family) {
                Ok(subnet) => subnet,
                Err(reason) => {
                    local.reasons.push(reason);
                    continue;
                }
            };
            *local.subnets.get_mut(family) = Some(subnet);
            let Some(host) = host else { continue };
            local.reasons.extend(bridges_not_filtered(host, subnet));
            match base(settings, names.get(family).as_ref(), host, own, subnet) {
                Ok(base) => {
                    local.reasons.extend(address_differs(settings, host, own, base.address(), family));
                    *local.bases.get_mut(family) = Some(base);
                }
                Err(reason) => local.reasons.push(reason),
            }
        }
        local
    }

    /// Whether a peer claims what this machine has.
    pub(crate) fn objection(&self, node: &Arc<str>, family: Family, vtep: &Vtep) -> Option<Reason> {
        let subnet = vtep.subnet;
        if let Some(own) = self.subnets.get(family)
            && (own.contains(&subnet) || subnet.contains(own))
        {
            return Some(Reason::SubnetTaken { subnet, by: node.clone(), theirs: *own });
        }
        if let Some(own) = self.subnets.get(family).filter(|own| own.contains(&vtep.underlay)) {
            return Some(Reason::AddressInSubnet { address: vtep.underlay, subnet: own, of: node.clone() });
        }
        let base = self.bases.get(family).as_ref()?;
        if base.address() == vtep.underlay {
            return Some(Reason::OwnAddress(vtep.underlay));
        }
        if subnet.contains(&base.address()) {
            return Some(Reason::SubnetCovers { subnet, address: base.address(), of: node.clone() });
        }
        let mac = vtep.mac.filter(|mac| base.mac() == Some(*mac))?;
        Some(Reason::MacTaken { mac, by: node.clone() })
    }

    /// How a peer is reached; `None` while this machine has no pod network of the family.
    pub(crate) fn way(
        &self,
        settings: &Settings,
        routes: &RoutingTable,
        family: Family,
        vtep: &Vtep,
    ) -> Result<Option<Way>, Reason> {
        let base = self.bases.get(family).as_ref();
        base.map(|base| base.way(settings, routes, vtep)).transpose()
    }
}

/// Bridges of this node's pods on which Services do not work between neighbours (contract N19).
fn bridges_not_filtered(host: &Host, subnet: IpNet) -> impl Iterator<Item = Reason> {
    let here = host.unfiltered_bridges.iter().filter(move |(_, net)| subnet.contains(&net.addr()));
    here.map(move |(bridge, _)| Reason::BridgeNotFiltered { bridge: bridge.clone(), subnet })
}

/// What the ways of the subnet's family start from; `name` is that of the VXLAN link.
fn base(
    settings: &Settings,
    name: Option<&LinkName>,
    host: &Host,
    own: &Node,
    subnet: IpNet,
) -> Result<Base, Reason> {
    let (family, interface) = (Family::of(&subnet), &host.external);
    let Some(address) = interface.address(family) else {
        return Err(Reason::ExternalAddress { interface: interface.name.clone(), family });
    };
    let mtu = settings.inner_mtu(interface.mtu);
    if family == Family::V6 && mtu < Mtu::IPV6_MIN {
        return Err(Reason::MtuTooSmall(mtu));
    }
    let (Backend::Vxlan, Some(name)) = (settings.backend, name) else {
        let published =
            annotations::published(own, host, family).filter(|text| annotations::differs(text, address));
        let interface = interface.name.clone();
        return match published {
            Some(published) => Err(Reason::Translated { published, interface, external: address }),
            None => Ok(Base::HostGw { interface, address }),
        };
    };
    let link = VxlanLink {
        vni: settings.vni,
        port: settings.port,
        mtu,
        mac: own_mac(settings, host, own, family),
        local: address,
        lower: interface.index,
        address: subnet.network(),
        learning: settings.learning,
        gbp: settings.gbp,
        offload: offload::wanted(settings, host, own, family),
    };
    Ok(Base::Vxlan { name: name.clone(), link })
}

/// The own VTEP MAC (contract N6): the one that is published; else, where it will be published, that of the link
/// which stands; else the one that peers work out.
fn own_mac(settings: &Settings, host: &Host, own: &Node, family: Family) -> Mac {
    let published = match annotations::is_managed(own) {
        true => annotations::vtep_mac(own, settings.vni, family).ok(),
        false => None,
    };
    let standing = match settings.peering {
        Peering::Annotated => *host.device_macs.get(family),
        Peering::Derived => None,
    };
    published.or(standing).unwrap_or_else(|| Mac::derived(&settings.node, settings.vni, family))
}

/// Peers that read no annotations send to the Node's address: packets come in only if the interface has it.
fn address_differs(
    settings: &Settings,
    host: &Host,
    own: &Node,
    external: IpAddr,
    family: Family,
) -> Option<Reason> {
    let node = peer::address(own, family)?;
    let derived = settings.peering == Peering::Derived && !annotations::is_managed(own);
    (derived && node != external).then(|| Reason::AddressDiffers {
        node,
        interface: host.external.name.clone(),
        external,
    })
}
