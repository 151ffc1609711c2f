//! What the operator decides about the pod network.

use std::sync::Arc;

use ipnet::IpNet;

use crate::units::{Family, LinkName, Mtu, Vni};

/// UDP port of VXLAN: the kernel's own default, which flannel uses too.
pub const DEFAULT_PORT: u16 = 8472;

/// The pod network as configured; the same on every node, except for the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of this machine's Node.
    pub node: Arc<str>,
    /// flannel's `Network` and `IPv6Network`. A family is on when it has one (contract N1).
    pub pod_networks: Vec<IpNet>,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port of VXLAN.
    pub port: u16,
    /// The outer MTU; that of the external interface when not set (contract N7).
    pub mtu: Option<Mtu>,
    /// Where the peers' VTEPs are to be read.
    pub peering: Peering,
    /// How packets reach other nodes.
    pub backend: Backend,
    /// With VXLAN: peers that are neighbours are reached by plain routes (contract N6).
    pub direct_routing: bool,
    /// Whether the VXLAN links learn FDB entries from what they receive.
    pub learning: bool,
    /// Whether the VXLAN links carry group policy marks (the GBP extension).
    pub gbp: bool,
    /// Who computes the checksums of encapsulated packets (contract N16).
    pub checksum_offload: Offload,
    /// Whether packets to unused addresses of the own subnet end here (contract N22).
    pub blackhole: bool,
}

/// How packets reach other nodes (contract N6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Backend {
    /// In VXLAN packets.
    #[default]
    Vxlan,
    /// As they are, by routes; all nodes are neighbours.
    HostGw,
}

impl Backend {
    /// flannel's word for it, in its annotations and its net-conf.json.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// Who computes the checksums of encapsulated packets (contract N16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// Whatever the link is set to, unless the checksums are known to be broken here: then the kernel.
    #[default]
    Auto,
    /// The network card.
    On,
    /// The kernel.
    Off,
}

/// Where the VTEP of a peer is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peering {
    /// From flannel's annotations (store `kube`); a Node without them is not a peer yet (contract N5).
    Annotated,
    /// From flannel's annotations where a Node has them, else worked out from the Node: [`crate::Mac::derived`] and
    /// the Node's first address of the family, InternalIP before ExternalIP (store `static`, contract N4).
    Derived,
}

/// Settings with which no pod network can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Neither family is on.
    #[error("no pod network is configured, neither IPv4 nor IPv6")]
    NoPodNetwork,
    /// The VNI makes the link's name longer than the kernel takes.
    #[error(
        "VNI {vni} makes the name of link {stem}.{vni} too long: with {family} pods it can be at most {most}"
    )]
    Name {
        /// The configured VNI.
        vni: Vni,
        /// The family whose link it is.
        family: Family,
        /// The name up to the VNI.
        stem: &'static str,
        /// The largest VNI whose name fits.
        most: u32,
    },
}

impl Settings {
    /// Settings with flannel's defaults.
    pub fn new(node: &str, pod_networks: Vec<IpNet>, peering: Peering) -> Self {
        let pod_networks = pod_networks.iter().map(IpNet::trunc).collect();
        Self {
            node: node.into(),
            pod_networks,
            vni: Vni::default(),
            port: DEFAULT_PORT,
            mtu: None,
            peering,
            backend: Backend::default(),
            direct_routing: false,
            learning: false,
            gbp: false,
            checksum_offload: Offload::default(),
            blackhole: false,
        }
    }

    /// Whether pods have addresses of `family`.
    pub fn has(&self, family: Family) -> bool {
        self.pod_networks.iter().any(|net| Family::of(net) == family)
    }

    /// The first pod network that `subnet` lies in.
    pub fn network_of(&self, subnet: &IpNet) -> Option<&IpNet> {
        self.pod_networks.iter().find(|net| net.contains(subnet))
    }

    /// The name of the family's VXLAN link, as flannel has it (contract N6).
    pub fn link_name(&self, family: Family) -> Result<LinkName, SettingsError> {
        let (stem, most) = match family {
            Family::V4 => ("flannel", 9_999_999),
            Family::V6 => ("flannel-v6", 9_999),
        };
        let too_long = |_| SettingsError::Name { vni: self.vni, family, stem, most };
        LinkName::new(&format!("{stem}.{}", self.vni)).map_err(too_long)
    }

    /// The MTU of the pods and of the VXLAN links (contract N7). Without VXLAN it is the outer one.
    ///
    /// Outer IPv4 takes 50 bytes (20 IP, 8 UDP, 8 VXLAN, 14 Ethernet), outer IPv6 20 more. In dual-stack a pod has
    /// one MTU for both, so the smaller one holds for both.
    pub fn inner_mtu(&self, external: Mtu) -> Mtu {
        let overhead = match self.backend {
            Backend::HostGw => 0,
            Backend::Vxlan if self.has(Family::V6) => 70,
            Backend::Vxlan => 50,
        };
        self.mtu.unwrap_or(external).less(overhead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(networks: &[&str]) -> Settings {
        let networks = networks.iter().map(|net| net.parse().unwrap()).collect();
        Settings::new("a", networks, Peering::Annotated)
    }

    #[test]
    fn n7_ipv4_takes_50_bytes_ipv6_70_and_dual_stack_the_smaller_mtu() {
        let outer = Mtu::new(1500).unwrap();
        for (networks, mtu) in [
            (&["10.244.0.0/16"][..], 1450),
            (&["fd00::/48"][..], 1430),
            (&["10.244.0.0/16", "fd00::/48"][..], 1430),
        ] {
            assert_eq!(settings(networks).inner_mtu(outer).get(), mtu, "{networks:?}");
        }
    }

    #[test]
    fn n7_a_configured_mtu_is_the_outer_one() {
        let jumbo = Settings { mtu: Some(Mtu::new(9000).unwrap()), ..settings(&["10.244.0.0/16"]) };
        assert_eq!(jumbo.inner_mtu(Mtu::new(1500).unwrap()).get(), 8950);
    }

    #[test]
    fn n7_without_vxlan_pods_have_the_outer_mtu() {
        for networks in [&["10.244.0.0/16"][..], &["10.244.0.0/16", "fd00::/48"]] {
            let host_gw = Settings { backend: Backend::HostGw, ..settings(networks) };
            assert_eq!(host_gw.inner_mtu(Mtu::new(1500).unwrap()).get(), 1500);
        }
    }

    #[test]
    fn n6_links_have_flannels_names() {
        let both = settings(&["10.244.0.0/16", "fd00::/48"]);
        assert_eq!(both.link_name(Family::V4).unwrap().as_str(), "flannel.1");
        assert_eq!(both.link_name(Family::V6).unwrap().as_str(), "flannel-v6.1");
    }

    #[test]
    fn a_vni_too_long_for_the_links_name_is_refused_with_the_largest_that_fits() {
        for (networks, family, most) in
            [(["10.244.0.0/16"], Family::V4, 9_999_999), (["fd00::/48"], Family::V6, 9_999)]
        {
            let with_vni = |vni| Settings { vni: Vni::new(vni).unwrap(), ..settings(&networks) };
            assert_eq!(with_vni(most).link_name(family).unwrap().as_str().len(), 15);
            let text = with_vni(most + 1).link_name(family).unwrap_err().to_string();
            let end = format!("too long: with {family} pods it can be at most {most}");
            assert!(text.starts_with(&format!("VNI {}", most + 1)) && text.ends_with(&end), "{text}");
        }
    }
}
