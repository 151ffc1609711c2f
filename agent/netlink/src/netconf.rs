//! Notifications of changed kernel settings, which netlink-packet-route does not read (linux/netconf.h).

use podway_overlay::{Family, IfIndex};
use rtnetlink::packet_core::NlasIterator;

/// RTM_NEWNETCONF.
pub(crate) const NEW: u16 = 80;

/// RTM_DELNETCONF: the settings of a link that is gone.
pub(crate) const GONE: u16 = 81;

const AF_INET6: u8 = 10;
/// The family, padded.
const HEADER: usize = 4;
const IFINDEX: u16 = 1;
const FORWARDING: u16 = 2;
const RP_FILTER: u16 = 3;
const ALL_LINKS: i32 = -1;

/// A setting of one link, or of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setting {
    pub(crate) family: Family,
    attribute: u16,
    pub(crate) link: Option<IfIndex>,
}

/// The setting that a notification tells, with whether its value keeps packets from being forwarded.
///
/// Nothing if it tells others besides: that is how the kernel greets a new link, for IPv6 without the reverse path
/// filter (NETCONFA_ALL in inet_netconf_fill_devconf and inet6_netconf_fill_devconf). Nor what is told of links to come.
pub(crate) fn read(payload: &[u8]) -> Option<(Setting, bool)> {
    let family = if *payload.first()? == AF_INET6 { Family::V6 } else { Family::V4 };
    let (mut index, mut told) = (None, Vec::new());
    for attribute in NlasIterator::new(payload.get(HEADER..)?) {
        let attribute = attribute.ok()?;
        let Ok(value) = <[u8; 4]>::try_from(attribute.value()) else { continue };
        let value = i32::from_ne_bytes(value);
        match attribute.kind() {
            IFINDEX => index = Some(value),
            kind => told.push((kind, value)),
        }
    }
    let link = match index? {
        ALL_LINKS => None,
        index => Some(IfIndex(u32::try_from(index).ok()?)),
    };
    let (attribute, harmful) = match told[..] {
        [(FORWARDING, value)] => (FORWARDING, value == 0),
        // 1 is strict: a packet must come from where one to its source would go.
        [(RP_FILTER, value)] => (RP_FILTER, value == 1),
        _ => return None,
    };
    Some((Setting { family, attribute, link }, harmful))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MC_FORWARDING: u16 = 4;
    const PROXY_NEIGH: u16 = 5;

    fn message(family: u8, attributes: &[(u16, i32)]) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        for (kind, value) in attributes {
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn n13_forwarding_and_strict_filtering_are_told_apart_from_a_new_links_greeting() {
        let setting = |family, attribute, link| Setting { family, attribute, link };
        let off = message(2, &[(IFINDEX, -1), (FORWARDING, 0)]);
        assert_eq!(read(&off), Some((setting(Family::V4, FORWARDING, None), true)));
        let on = message(10, &[(IFINDEX, 3), (FORWARDING, 1)]);
        assert_eq!(read(&on), Some((setting(Family::V6, FORWARDING, Some(IfIndex(3))), false)));
        let strict = message(2, &[(IFINDEX, 3), (RP_FILTER, 1)]);
        assert_eq!(read(&strict), Some((setting(Family::V4, RP_FILTER, Some(IfIndex(3))), true)));
        let greeting = message(2, &[(IFINDEX, 3), (FORWARDING, 0), (RP_FILTER, 1)]);
        assert_eq!(read(&greeting), None);
        let greeting = message(10, &[(IFINDEX, 3), (FORWARDING, 0), (MC_FORWARDING, 0), (PROXY_NEIGH, 0)]);
        assert_eq!(read(&greeting), None);
        let default = message(2, &[(IFINDEX, -2), (FORWARDING, 0)]);
        assert_eq!(read(&default), None);
    }

    #[test]
    fn a_notification_that_is_cut_off_says_nothing() {
        let whole = message(2, &[(IFINDEX, -1), (FORWARDING, 0)]);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
    }
}
