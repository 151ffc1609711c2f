//! What the kernel holds of the pod network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ops::{Sysctl, Tunnel};
use crate::plan::{FdbKey, Route, Rows, VxlanLink};
use crate::settings::Settings;
use crate::units::{Family, IfIndex, LinkName, Mac, Mtu, PerFamily};

/// What to look at besides what carries our mark.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sought {
    /// The names of our links.
    pub links: BTreeSet<LinkName>,
    /// The external interface, of which some settings matter.
    pub external: Option<LinkName>,
}

/// The kernel's state, as far as it is ours or stands where ours belongs. Nobody else's routes, links or entries are
/// in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Links that carry our mark, and links of the names that were asked for.
    pub links: BTreeMap<LinkName, LinkState>,
    /// Routes of our protocol number; permanent neighbours and FDB entries of the links above.
    pub rows: Rows,
    /// Further destinations of FDB entries that have several. A peer's has one: the kernel takes more for packets to all
    /// or to many, which nothing of ours sends.
    pub further_fdb: BTreeSet<(FdbKey, IpAddr)>,
    /// The destinations of those routes above to which somebody added something, such as an MTU or a source address.
    pub altered_routes: BTreeSet<IpNet>,
    /// Routes of our protocol number that lead nowhere.
    pub blackholes: BTreeSet<IpNet>,
    /// Routes that flannel left on the links above.
    pub flannel_routes: BTreeMap<IpNet, Route>,
    /// Values of kernel settings; one that this kernel does not have is missing. [`Sysctl::KeepRa`] is there for the
    /// interfaces to which a default route was learnt by router advertisement.
    pub sysctls: BTreeMap<Sysctl, String>,
}

/// A link as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Its number.
    pub index: IfIndex,
    /// What sort of link it is.
    pub kind: LinkKind,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its MAC; none on links that are not Ethernet.
    pub mac: Option<Mac>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is in a bridge, bond or VRF.
    pub enslaved: bool,
    /// Whether it carries our mark.
    pub ours: bool,
    /// Its addresses, link-local ones of IPv6 excepted.
    pub addresses: BTreeSet<IpNet>,
    /// Whether checksums are left to the network card (`tx-checksum-ip-generic`); `None` where that cannot be told.
    pub offload: Option<bool>,
}

/// What sort of link it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// VXLAN.
    Vxlan(VxlanState),
    /// Something else that has the name.
    Other(String),
}

/// What a VXLAN link is besides a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanState {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Address that packets are sent from.
    pub local: Option<IpAddr>,
    /// Interface that packets are sent through.
    pub lower: Option<IfIndex>,
    /// Whether it learns FDB entries from what it receives.
    pub learning: bool,
    /// Whether it carries group policy marks.
    pub gbp: bool,
    /// A mode that ours never has, such as `group` or `external`.
    pub mode: Option<&'static str>,
}

impl Observed {
    /// Whether flannel has the links back that carry our mark, or still has them: its routes are on them. podway
    /// replaces each of them when it takes a link over.
    pub fn are_flannels(&self) -> bool {
        !self.flannel_routes.is_empty()
    }

    /// The MACs of the VXLAN links that stand: a node keeps its MAC, even if the link must be made again (contract
    /// N6).
    pub fn device_macs(&self, settings: &Settings) -> PerFamily<Option<Mac>> {
        PerFamily::from_fn(|family: Family| {
            let link = self.links.get(&settings.link_name(family).ok()?)?;
            match link.kind {
                LinkKind::Vxlan(_) => link.mac.filter(|mac| mac.is_unicast()),
                LinkKind::Other(_) => None,
            }
        })
    }
}

impl From<&VxlanLink> for VxlanState {
    fn from(link: &VxlanLink) -> Self {
        Self {
            vni: link.vni.get(),
            port: link.port,
            local: Some(link.local),
            lower: Some(link.lower),
            learning: link.learning,
            gbp: link.gbp,
            mode: None,
        }
    }
}

impl LinkState {
    /// Whether its tunnels have these ends.
    pub(crate) fn has(&self, tunnel: &Tunnel) -> bool {
        match &self.kind {
            LinkKind::Vxlan(found) => {
                (found.local, found.lower, found.learning)
                    == (Some(tunnel.local), Some(tunnel.lower), tunnel.learning)
            }
            LinkKind::Other(_) => false,
        }
    }

    /// Why this link cannot become `wanted` in place, if so: its VNI, port, family, group policy or a mode that ours
    /// never has. The rest can be changed.
    pub fn mismatch(&self, wanted: &VxlanLink) -> Option<String> {
        let found = match &self.kind {
            LinkKind::Vxlan(found) => found,
            LinkKind::Other(kind) => return Some(format!("it is a {kind} link")),
        };
        if let Some(mode) = found.mode {
            return Some(format!("it has {mode}"));
        }
        let family = |address: IpAddr| if address.is_ipv4() { Family::V4 } else { Family::V6 };
        // One without local address may be of either.
        let carrier = found.local.map_or(family(wanted.local), family);
        [
            ("VNI", found.vni.to_string(), wanted.vni.to_string()),
            ("port", found.port.to_string(), wanted.port.to_string()),
            ("underlay", carrier.to_string(), family(wanted.local).to_string()),
            ("GBP", found.gbp.to_string(), wanted.gbp.to_string()),
        ]
        .into_iter()
        .find(|(_, found, wanted)| found != wanted)
        .map(|(what, found, wanted)| format!("its {what} is {found}, not {wanted}"))
    }
}
