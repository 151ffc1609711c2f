//! The kernel's words on nftables: NETLINK_NETFILTER, include/uapi/linux/netfilter/nf_tables.h.
//!
//! It tells of each transaction as a whole: a message for each thing that came or went, then NFT_MSG_NEWGEN, which says
//! whose transaction it was.

use netlink_packet_core::{NLA_HEADER_SIZE, NetlinkBuffer, NlaBuffer, NlasIterator};

use super::Damage;
use crate::children::Untold;
use crate::forward::ChainName;
use crate::schema::{Half, half_of};

const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWGEN: u16 = 15;

/// The same number for chains, rules, sets, elements and what else is in a table.
const NFTA_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_GEN_PROC_NAME: u16 = 3;

const NF_INET_FORWARD: [u8; 4] = 2_u32.to_be_bytes();

/// The length of `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;

/// Gathers what others changed.
#[derive(Debug)]
pub(super) struct Messages {
    ours: Untold,
    /// Of a transaction whose author is not known yet.
    transaction: Damage,
    damage: Damage,
}

impl Messages {
    pub(super) fn of_others_than(ours: Untold) -> Self {
        Self { ours, transaction: Damage::default(), damage: Damage::default() }
    }

    pub(super) fn damage(&self) -> &Damage {
        &self.damage
    }

    pub(super) fn take(&mut self) -> Damage {
        std::mem::take(&mut self.damage)
    }

    /// Something was not received.
    pub(super) fn lost(&mut self) {
        self.damage.merge(Damage::everything());
    }

    /// Reads a datagram, which is some messages. What is not understood may be anything.
    pub(super) fn read(&mut self, mut datagram: &[u8]) {
        while !datagram.is_empty() {
            let Ok(message) = NetlinkBuffer::new_checked(datagram) else { return self.lost() };
            if message.message_type() >> 8 == NFNL_SUBSYS_NFTABLES {
                self.note(message.message_type() & 0xff, message.port_number(), message.payload());
            }
            let length = (message.length() as usize).next_multiple_of(4);
            datagram = datagram.get(length..).unwrap_or_default();
        }
    }

    fn note(&mut self, kind: u16, port: u32, payload: &[u8]) {
        let (Some(family), Some(attributes)) = (payload.first(), payload.get(NFGENMSG..)) else {
            return self.lost();
        };
        let transaction = match kind {
            NFT_MSG_NEWGEN => return self.end(port, attributes),
            kind => damage(kind, *family, attributes),
        };
        match transaction {
            Some(damage) => self.transaction.merge(damage),
            None => self.lost(),
        }
    }

    /// An nft names its socket by its process id, in the pid namespace that it is in; the message's own process id is
    /// that of the first pid namespace, which says nothing in a container.
    fn end(&mut self, port: u32, attributes: &[u8]) {
        let damage = std::mem::take(&mut self.transaction);
        let ours =
            text(attributes, NFTA_GEN_PROC_NAME).is_some_and(|name| name == "nft") && self.ours.tell(port);
        if !ours {
            self.damage.merge(damage);
        }
    }
}

/// What it means that this came or went; `None` if that cannot be told.
fn damage(kind: u16, family: u8, attributes: &[u8]) -> Option<Damage> {
    let family = match family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return Some(Damage::default()),
    };
    let table = format!("{family} {}", text(attributes, NFTA_TABLE)?);
    Some(match half_of(&table) {
        Some(Half::Services) => Damage { services: true, ..Damage::default() },
        Some(Half::Network) => Damage { network: true, ..Damage::default() },
        None => {
            let named =
                |attribute| Some([ChainName { table, name: text(attributes, attribute)?.to_owned() }].into());
            match kind {
                NFT_MSG_NEWRULE | NFT_MSG_DELRULE => {
                    Damage { chains: named(NFTA_RULE_CHAIN)?, ..Damage::default() }
                }
                // The kernel does not say on which hook a chain was that went.
                NFT_MSG_DELCHAIN => Damage { chains: named(NFTA_CHAIN_NAME)?, ..Damage::default() },
                NFT_MSG_NEWCHAIN => Damage { forward: is_on_forward(attributes), ..Damage::default() },
                _ => Damage::default(),
            }
        }
    })
}

fn is_on_forward(attributes: &[u8]) -> bool {
    let number = attribute(attributes, NFTA_CHAIN_HOOK).and_then(|hook| attribute(hook, NFTA_HOOK_HOOKNUM));
    number.is_some_and(|number| number == NF_INET_FORWARD)
}

/// An attribute's value.
fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut found = NlasIterator::new(attributes).map_while(Result::ok);
    found.find(|it| it.kind() == kind).map(value)
}

fn value(attribute: NlaBuffer<&[u8]>) -> &[u8] {
    let length = usize::from(attribute.length());
    attribute.into_inner().get(NLA_HEADER_SIZE..length).unwrap_or_default()
}

fn text(attributes: &[u8], kind: u16) -> Option<&str> {
    std::str::from_utf8(attribute(attributes, kind)?).ok().map(|it| it.trim_end_matches('\0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::children::Children;

    #[test]
    fn a_transaction_of_others_is_damage_and_one_of_ours_is_not() {
        for (port, name, harmless) in [(77, "nft\0", true), (78, "nft\0", false), (77, "firewalld\0", false)]
        {
            let ours = Children::default();
            let mut messages = Messages::of_others_than(ours.untold());
            ours.started(77);
            read_theft(&mut messages, port, name);
            assert_eq!(messages.damage().is_empty(), harmless, "{port} {name}");
            assert_eq!(messages.damage().network, !harmless, "{port} {name}");
        }
    }

    #[test]
    fn a_second_transaction_of_the_same_process_id_is_somebody_else_s() {
        let ours = Children::default();
        let mut messages = Messages::of_others_than(ours.untold());
        ours.started(77);
        read_theft(&mut messages, 77, "nft\0");
        assert!(messages.damage().is_empty());
        read_theft(&mut messages, 77, "nft\0");
        assert!(messages.damage().network);
    }

    #[test]
    fn a_chain_counts_if_it_is_on_the_forward_hook() {
        for (hook, counts) in [(2_u32, true), (1, false)] {
            let hook = attribute_bytes(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
            let chain = [(NFTA_TABLE, b"filter\0".as_slice()), (NFTA_CHAIN_HOOK, &hook)];
            let mut messages = Messages::of_others_than(Untold::default());
            messages.read(&message(NFT_MSG_NEWCHAIN, 9, 2, &chain));
            messages.read(&message(NFT_MSG_NEWGEN, 9, 0, &[]));
            assert_eq!(messages.take().forward, counts);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_says_is_read(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            Messages::of_others_than(Untold::default()).read(&datagram);
        }

        #[test]
        fn whatever_a_message_holds_is_read(kind in 0u16..40, family: u8, payload in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut messages = Messages::of_others_than(Untold::default());
            messages.read(&message(kind, 1, family, &[(1, &payload), (2, &payload), (4, &payload)]));
            messages.read(&message(NFT_MSG_NEWGEN, 1, family, &[(3, &payload)]));
        }
    }

    fn read_theft(messages: &mut Messages, port: u32, name: &str) {
        messages.read(&message(NFT_MSG_DELRULE, port, 1, &[(NFTA_TABLE, b"podway-network\0")]));
        assert!(messages.damage().is_empty(), "before it is known whose it was");
        messages.read(&message(NFT_MSG_NEWGEN, port, 0, &[(NFTA_GEN_PROC_NAME, name.as_bytes())]));
    }

    fn message(kind: u16, port: u32, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut payload = vec![family, 0, 0, 0];
        attributes.iter().for_each(|(kind, value)| payload.extend(attribute_bytes(*kind, value)));
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | kind).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend(payload);
        bytes
    }

    fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(NLA_HEADER_SIZE + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}
