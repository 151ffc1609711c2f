//! Rows as map entries and back. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use podway_ebpf_common::{self as ebpf, FrontendKey, FrontendValue, TCP, Target, UDP, Verdict};
use podway_proxy::{Frontend, Masquerade, Pool, Protocol};

/// Protocol number of SCTP: kept in the map so that it mirrors the rows, though no program looks it up.
const SCTP: u8 = 132;

pub(crate) fn frontend_key(frontend: &Frontend) -> FrontendKey {
    let protocol = match frontend.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Sctp => SCTP,
    };
    FrontendKey::new(address_bytes(frontend.address), frontend.port.to_be_bytes(), protocol)
}

/// `None` for a protocol number that [`frontend_key`] never writes.
pub(crate) fn frontend(key: &FrontendKey) -> Option<Frontend> {
    let protocol = match key.protocol() {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        SCTP => Protocol::Sctp,
        _ => return None,
    };
    Some(Frontend { address: address(key.address()), protocol, port: u16::from_be_bytes(key.port()) })
}

/// The entry for a frontend; the targets of a balanced one fill its slots in order.
pub(crate) fn frontend_value(pool: &Pool) -> FrontendValue {
    match pool {
        Pool::Balance { targets, masquerade } => {
            let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
            FrontendValue::balance(count, stored_masquerade(*masquerade))
        }
        Pool::Reject => FrontendValue::without_targets(Verdict::Reject),
        Pool::Drop => FrontendValue::without_targets(Verdict::Drop),
    }
}

/// The pool of an entry whose slots hold `targets`.
pub(crate) fn pool(value: &FrontendValue, targets: Vec<SocketAddr>) -> Pool {
    match value.verdict() {
        Verdict::Balance => Pool::Balance { targets, masquerade: masquerade(value.masquerade()) },
        Verdict::Reject => Pool::Reject,
        Verdict::Drop => Pool::Drop,
    }
}

pub(crate) fn target(socket: &SocketAddr) -> Target {
    Target::new(address_bytes(socket.ip()), socket.port().to_be_bytes())
}

pub(crate) fn socket_address(target: &Target) -> SocketAddr {
    SocketAddr::new(address(target.address()), u16::from_be_bytes(target.port()))
}

fn stored_masquerade(masquerade: Masquerade) -> ebpf::Masquerade {
    match masquerade {
        Masquerade::Never => ebpf::Masquerade::Never,
        Masquerade::UnlessPod => ebpf::Masquerade::UnlessPod,
        Masquerade::Always => ebpf::Masquerade::Always,
    }
}

fn masquerade(stored: ebpf::Masquerade) -> Masquerade {
    match stored {
        ebpf::Masquerade::Never => Masquerade::Never,
        ebpf::Masquerade::UnlessPod => Masquerade::UnlessPod,
        ebpf::Masquerade::Always => Masquerade::Always,
    }
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => ebpf::v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A v4-mapped address is IPv4: the API server admits no v4-mapped Service or endpoint addresses.
fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ipv4_frontend_is_keyed_by_its_mapped_address_in_network_order() {
        let frontend =
            Frontend { address: "10.96.0.10".parse().unwrap(), protocol: Protocol::Tcp, port: 0x1234 };
        let key = frontend_key(&frontend);
        assert_eq!(key, FrontendKey::new(ebpf::v4_mapped([10, 96, 0, 10]), [0x12, 0x34], 6));
    }

    #[test]
    fn a_protocol_that_podway_never_writes_is_no_frontend() {
        assert_eq!(frontend(&FrontendKey::new([0; 16], [0, 80], 1)), None);
    }

    proptest! {
        #[test]
        fn rows_survive_the_maps(frontend_row in any_frontend(), pool_row in any_pool()) {
            prop_assert_eq!(frontend(&frontend_key(&frontend_row)), Some(frontend_row));
            let targets = match &pool_row {
                Pool::Balance { targets, .. } => targets.iter().map(|t| socket_address(&target(t))).collect(),
                Pool::Reject | Pool::Drop => Vec::new(),
            };
            prop_assert_eq!(pool(&frontend_value(&pool_row), targets), pool_row);
        }
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        any::<IpAddr>().prop_map(|address| address.to_canonical())
    }

    fn any_frontend() -> impl Strategy<Value = Frontend> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        (any_address(), protocol, any::<u16>()).prop_map(|(address, protocol, port)| Frontend {
            address,
            protocol,
            port,
        })
    }

    fn any_pool() -> impl Strategy<Value = Pool> {
        let masquerade =
            prop_oneof![Just(Masquerade::Never), Just(Masquerade::UnlessPod), Just(Masquerade::Always)];
        let target = (any_address(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
        prop_oneof![
            (prop::collection::vec(target, 1..5), masquerade)
                .prop_map(|(targets, masquerade)| Pool::Balance { targets, masquerade }),
            Just(Pool::Reject),
            Just(Pool::Drop),
        ]
    }
}
