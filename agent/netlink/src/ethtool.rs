//! Checksum offload of a link, by ethtool's netlink interface (contract N16).
//!
//! Encoded here: the `ethtool` crate reads features but cannot set them, and brings a second netlink stack along.
//! Numbers and layout: Linux, include/uapi/linux/ethtool_netlink.h and Documentation/networking/ethtool-netlink.rst.

use std::io;

use podway_overlay::IfIndex;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NlasIterator};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// The feature that hands the checksums of any protocol to the network card.
const FEATURE: &[u8] = b"tx-checksum-ip-generic\0";

const NESTED: u16 = 1 << 15;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_HEADER_FLAGS: u16 = 3;
const ETHTOOL_FLAG_OMIT_REPLY: u32 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// Lengths of the headers of netlink, generic netlink and an error's code.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// A generic netlink socket that speaks to ethtool. The kernel answers each request before its send returns.
#[derive(Debug)]
pub(crate) struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    /// In the caller's network namespace. Fails where the kernel has no such interface (before Linux 5.6).
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let answer = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
        let family = values(&answer, CTRL_ATTR_FAMILY_ID).next().and_then(|value| value.try_into().ok());
        let family = family.map(u16::from_ne_bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { socket, family })
    }

    /// Whether checksums of what the link sends are left to the network card.
    pub(crate) fn offload(&self, link: IfIndex) -> io::Result<bool> {
        let request = header(link, 0);
        let answer = ask(&self.socket, self.family, ETHTOOL_MSG_FEATURES_GET, &request)?;
        let bits = values(&answer, ETHTOOL_A_FEATURES_ACTIVE)
            .flat_map(|active| collect(&active, ETHTOOL_A_BITSET_BITS))
            .flat_map(|bits| collect(&bits, ETHTOOL_A_BITSET_BITS_BIT));
        let mut names = bits.flat_map(|bit| collect(&bit, ETHTOOL_A_BITSET_BIT_NAME));
        Ok(names.any(|name| name == FEATURE))
    }

    /// Leaves the checksums to the network card, or to the kernel.
    pub(crate) fn set_offload(&self, link: IfIndex, on: bool) -> io::Result<()> {
        let mut bit = attribute(ETHTOOL_A_BITSET_BIT_NAME, FEATURE);
        if on {
            bit.extend(attribute(ETHTOOL_A_BITSET_BIT_VALUE, &[]));
        }
        let bits = attribute(ETHTOOL_A_BITSET_BITS_BIT | NESTED, &bit);
        let set = attribute(ETHTOOL_A_BITSET_BITS | NESTED, &bits);
        let mut request = header(link, ETHTOOL_FLAG_OMIT_REPLY);
        request.extend(attribute(ETHTOOL_A_FEATURES_WANTED | NESTED, &set));
        ask(&self.socket, self.family, ETHTOOL_MSG_FEATURES_SET, &request).map(drop)
    }
}

fn header(link: IfIndex, flags: u32) -> Vec<u8> {
    let mut header = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &link.0.to_ne_bytes());
    header.extend(attribute(ETHTOOL_A_HEADER_FLAGS, &flags.to_ne_bytes()));
    attribute(ETHTOOL_A_FEATURES_HEADER | NESTED, &header)
}

/// The attributes of the answer; none if it is a bare acknowledgement.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + GENERIC_HEADER + attributes.len()).map_err(io::Error::other)?;
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    socket.send(&request, 0)?;
    let mut answer = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let kind = bytes.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        if kind != Some(NLMSG_ERROR) {
            answer = bytes.get(HEADER + GENERIC_HEADER..).unwrap_or_default().to_vec();
            continue;
        }
        let code =
            bytes.get(HEADER..HEADER + 4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
        return match code {
            Some(0) => Ok(answer),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        };
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The values of the attributes of this kind.
fn values(attributes: &[u8], kind: u16) -> impl Iterator<Item = Vec<u8>> {
    let all = NlasIterator::new(attributes).filter_map(Result::ok);
    all.filter(move |attribute| attribute.kind() == kind).map(|attribute| attribute.value().to_vec())
}

fn collect(attributes: &[u8], kind: u16) -> Vec<Vec<u8>> {
    values(attributes, kind).collect()
}
