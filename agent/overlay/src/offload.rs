//! Who computes the checksums of encapsulated packets, and where the network card is known to get them wrong
//! (contract N16).

use std::fmt;

use crate::annotations;
use crate::host::Host;
use crate::node::Node;
use crate::settings::{Offload, Settings};
use crate::units::Family;

/// Drivers that are known to send VXLAN packets with wrong inner checksums: VMware's, with many versions of ESXi and
/// of the kernel (flannel issue 1279, k3s issue 5013, kURL pull request 5071).
const BREAKING_DRIVERS: [&str; 1] = ["vmxnet3"];

/// Why checksums that are left to the network card are expected to arrive wrong.
///
/// Nothing is measured: these are the two cases that users of flannel keep reporting and that can be told from here.
/// A card or firmware that breaks them in other ways is only helped by [`Offload::Off`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Breakage {
    /// Peers send to an address that is translated on the way (flannel, Documentation/troubleshooting.md, "NAT").
    Translated(String),
    /// The driver of the external interface.
    Driver(String),
}

/// Why the checksums of `family` would be wrong, if left to the network card.
pub(crate) fn breakage(host: &Host, own: &Node, family: Family) -> Option<Breakage> {
    let address = host.external.address(family)?;
    let published =
        annotations::published(own, host, family).filter(|text| annotations::differs(text, address));
    let driver = host.driver.clone().filter(|driver| BREAKING_DRIVERS.contains(&driver.as_str()));
    published.map(Breakage::Translated).or(driver.map(Breakage::Driver))
}

/// Whether checksums are to be left to the network card; `None`: as the link is set. So it is where nothing is known
/// to be wrong, for the operator may have switched them off by other means, as flannel's users do with udev.
pub(crate) fn wanted(settings: &Settings, host: &Host, own: &Node, family: Family) -> Option<bool> {
    match settings.checksum_offload {
        Offload::On => Some(true),
        Offload::Off => Some(false),
        Offload::Auto => breakage(host, own, family).map(|_| false),
    }
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Translated(address) => {
                write!(f, "peers send to {address}, which is translated on the way")
            }
            Self::Driver(driver) => write!(f, "driver {driver} is known to send wrong checksums"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Peering;
    use crate::units::{ExternalInterface, IfIndex, LinkName, Mtu};

    #[test]
    fn n16_auto_switches_offload_off_behind_a_translator_and_with_drivers_known_to_break_it() {
        let host = host();
        let translated = Node {
            flannel: [("public-ip-overwrite".to_owned(), "203.0.113.9".to_owned())].into(),
            ..Node::default()
        };
        let public =
            Host { public: crate::PerFamily { v4: Some([203, 0, 113, 9].into()), v6: None }, ..host.clone() };
        let vmware = Host { driver: Some("vmxnet3".to_owned()), ..host.clone() };
        let virtio = Host { driver: Some("virtio_net".to_owned()), ..host.clone() };
        let plain = Node::default();
        for (host, node, expected) in [
            (&host, &plain, None),
            (&virtio, &plain, None),
            (&vmware, &plain, Some(false)),
            (&host, &translated, Some(false)),
            (&public, &plain, Some(false)),
        ] {
            assert_eq!(
                wanted(&settings(Offload::Auto), host, node, Family::V4),
                expected,
                "{host:?} {node:?}"
            );
        }
        let shown = breakage(&host, &translated, Family::V4).unwrap().to_string();
        assert_eq!(shown, "peers send to 203.0.113.9, which is translated on the way");
    }

    #[test]
    fn n16_what_is_set_holds_whatever_is_known() {
        let vmware = Host { driver: Some("vmxnet3".to_owned()), ..host() };
        for (setting, expected) in [(Offload::On, true), (Offload::Off, false)] {
            let found = wanted(&settings(setting), &vmware, &Node::default(), Family::V4);
            assert_eq!(found, Some(expected));
        }
    }

    fn settings(checksum_offload: Offload) -> Settings {
        Settings { checksum_offload, ..Settings::new("a", Vec::new(), Peering::Annotated) }
    }

    fn host() -> Host {
        Host::new(ExternalInterface {
            index: IfIndex(2),
            name: LinkName::new("eth0").unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            v4: Some([192, 0, 2, 1].into()),
            v6: None,
        })
    }
}
