//! An attachment: one interface of one container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::messages::Link;

/// What identifies an attachment within a network. Its order is of no meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    /// `CNI_IFNAME`: the interface's name in the pod.
    pub(crate) ifname: String,
}

/// An attachment of a container that has a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) attachment: Attachment,
    /// `CNI_NETNS`.
    pub(crate) netns: PathBuf,
}

/// The kernel's limit for an alias (`IFALIASZ`).
const ALIAS: usize = 255;

impl Attachment {
    /// The name of the veth pair's end on the node: `veth` and eleven hexadecimal digits of the FNV-1a hash of all that
    /// identifies the attachment. It follows from the attachment alone, so that DEL finds it when all else is lost; at
    /// 44 bits, two of a thousand pods meet once in 30 million nodes, and the second ADD is refused.
    pub(crate) fn link(&self, network: &str) -> String {
        let bytes = [network, &self.container, &self.ifname].into_iter().flat_map(|part| {
            // No part contains NUL.
            part.bytes().chain([0])
        });
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        format!("veth{:011x}", (hash ^ (hash >> 44)) & 0xfff_ffff_ffff)
    }

    /// Whether a link of the name [`Attachment::link`] is this attachment's: it has its mark, or none yet, as an ADD
    /// leaves it that was killed.
    pub(crate) fn may_be(&self, network: &str, link: &Link) -> bool {
        link.alias.as_ref().map_or(link.veth, |alias| *alias == self.alias(network))
    }

    /// The mark that a finished veth pair has on the node, by which GC knows it and `ip link` shows whose it is.
    pub(crate) fn alias(&self, network: &str) -> String {
        let mut alias = format!("{}{} {}", alias_prefix(network), self.ifname, self.container);
        alias.truncate(ALIAS);
        alias
    }
}

/// What the aliases of a network's veth pairs begin with.
pub(crate) fn alias_prefix(network: &str) -> String {
    format!("podway-cni {network} ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment { container: container.into(), ifname: ifname.into() }
    }

    #[test]
    fn the_name_on_the_node_is_a_device_name_and_stays_what_it_was() {
        let link = attachment("a", "eth0").link("podway");
        assert_eq!(link.len(), 15);
        assert_eq!(link, "vethba180053a00", "a change loses the links of running pods");
        assert_ne!(link, attachment("a", "eth1").link("podway"));
        assert_ne!(link, attachment("a", "eth0").link("other"));
        assert_ne!(attachment("ae", "th0").link("n"), attachment("a", "eth0").link("n"));
    }

    #[test]
    fn the_alias_names_network_interface_and_container() {
        assert_eq!(attachment("abc", "eth0").alias("podway"), "podway-cni podway eth0 abc");
        assert_eq!(attachment(&"x".repeat(400), "eth0").alias("podway").len(), 255);
    }
}
