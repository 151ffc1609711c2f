//! Elements to nft's JSON and back: two inverse functions for keys, two for values.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nftables::expr::{Expression, NamedExpression, Prefix};
use nftables::schema::Element;
use nftables::stmt::JumpTarget;
use nftables::types::NfFamily;
use podway_proxy::{Frontend, Hairpin, Protocol};

use crate::element::{Key, Value};
use crate::schema::{Family, SERVICES};

type Json = Expression<'static>;

/// An element of a set of ours as nft takes it: the key, and in a map the value.
pub(crate) fn element(key: &Key, value: Option<&Value>) -> Json {
    match value.and_then(render_value) {
        Some(value) => Expression::List(vec![render_key(key), value]),
        None => render_key(key),
    }
}

/// An element as text, for what has to go with a text of rules.
pub(crate) fn text(element: &Json) -> String {
    match element {
        Expression::String(text) => text.to_string(),
        Expression::Number(number) => number.to_string(),
        Expression::List(pair) => pair.iter().map(text).collect::<Vec<_>>().join(" : "),
        Expression::Named(NamedExpression::Concat(parts)) => {
            parts.iter().map(text).collect::<Vec<_>>().join(" . ")
        }
        Expression::Named(NamedExpression::Prefix(Prefix { addr, len })) => format!("{}/{len}", text(addr)),
        Expression::Verdict(nftables::expr::Verdict::Goto(JumpTarget { target })) => format!("goto {target}"),
        // Nothing else is ever made here.
        _ => String::new(),
    }
}

/// The command argument that holds `elements` of the set that `key` is in.
pub(crate) fn elements_of(key: &Key, elements: Vec<Json>) -> Element<'static> {
    let family = match key.family() {
        Family::Ip => NfFamily::IP,
        Family::Ip6 => NfFamily::IP6,
    };
    Element { family, table: SERVICES.into(), name: key.set().into(), elem: Cow::Owned(elements) }
}

/// Reads an element of the set `set`; `None` for what podway did not write.
pub(crate) fn read_element(set: &str, element: &Json) -> Option<(Key, Value)> {
    let (key, value) = match element {
        Expression::List(pair) => match pair.as_slice() {
            [key, value] => (key, read_value(value)?),
            _ => return None,
        },
        key => (key, Value::Present),
    };
    Some((read_key(set, key)?, value))
}

fn render_key(key: &Key) -> Json {
    match key {
        Key::ServiceIp(at) | Key::NoEndpoints(at) => concat(frontend(at)),
        Key::Endpoint(at, slot) => {
            concat(vec![address(at.address), port(at.port), Expression::Number((*slot).into())])
        }
        Key::Hairpin(at) => {
            let ends = [address(at.address), address(at.address)];
            concat(ends.into_iter().chain([protocol(at.protocol), port(at.port)]).collect())
        }
        Key::ClusterIp(ip) => address(*ip),
        Key::PodNetwork(network) => prefix(network),
    }
}

fn read_key(set: &str, key: &Json) -> Option<Key> {
    match (set, key) {
        ("cluster-ips", key) => read_address(key).map(Key::ClusterIp),
        ("pod-networks", key) => read_prefix(key).map(Key::PodNetwork),
        (set, Expression::Named(NamedExpression::Concat(parts))) => read_concat(set, parts),
        _ => None,
    }
}

fn read_concat(set: &str, parts: &[Json]) -> Option<Key> {
    let frontend = |ip, proto, number| {
        Some(Frontend {
            address: read_address(ip)?,
            protocol: read_protocol(proto)?,
            port: read_number(number)?,
        })
    };
    match (set, parts) {
        ("service-ips", [ip, proto, number]) => frontend(ip, proto, number).map(Key::ServiceIp),
        ("no-endpoints", [ip, proto, number]) => frontend(ip, proto, number).map(Key::NoEndpoints),
        (set, [ip, number, slot]) => {
            let protocol = set.strip_suffix("-endpoints")?.parse().ok()?;
            let at = Frontend { address: read_address(ip)?, protocol, port: read_number(number)? };
            Some(Key::Endpoint(at, read_number(slot)?))
        }
        ("hairpins", [source, ip, proto, number]) if source == ip => {
            let Frontend { address, protocol, port } = frontend(ip, proto, number)?;
            Some(Key::Hairpin(Hairpin { address, protocol, port }))
        }
        _ => None,
    }
}

fn render_value(value: &Value) -> Option<Json> {
    let goto = |target: String| {
        Some(Expression::Verdict(nftables::expr::Verdict::Goto(JumpTarget { target: target.into() })))
    };
    match value {
        Value::Present => None,
        Value::Choose(chooser) => goto(chooser.to_string()),
        Value::Refuse => goto("refuse".to_owned()),
        Value::Discard => goto("discard".to_owned()),
        Value::Target(target) => Some(concat(vec![address(target.ip()), port(target.port())])),
    }
}

fn read_value(value: &Json) -> Option<Value> {
    match value {
        Expression::Verdict(nftables::expr::Verdict::Goto(JumpTarget { target })) => match target.as_ref() {
            "refuse" => Some(Value::Refuse),
            "discard" => Some(Value::Discard),
            name => name.parse().ok().map(Value::Choose),
        },
        Expression::Named(NamedExpression::Concat(parts)) => match parts.as_slice() {
            [ip, number] => Some(Value::Target(SocketAddr::new(read_address(ip)?, read_number(number)?))),
            _ => None,
        },
        _ => None,
    }
}

fn frontend(at: &Frontend) -> Vec<Json> {
    vec![address(at.address), protocol(at.protocol), port(at.port)]
}

fn concat(parts: Vec<Json>) -> Json {
    Expression::Named(NamedExpression::Concat(parts))
}

fn address(ip: IpAddr) -> Json {
    Expression::String(ip.to_string().into())
}

fn read_address(json: &Json) -> Option<IpAddr> {
    match json {
        Expression::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn protocol(protocol: Protocol) -> Json {
    Expression::String(protocol.as_str().into())
}

fn read_protocol(json: &Json) -> Option<Protocol> {
    match json {
        Expression::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn port(port: u16) -> Json {
    Expression::Number(port.into())
}

fn read_number(json: &Json) -> Option<u16> {
    match json {
        Expression::Number(number) => u16::try_from(*number).ok(),
        _ => None,
    }
}

/// A network, in an interval set.
pub(crate) fn prefix(network: &IpNet) -> Json {
    let addr = Box::new(address(network.network()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: network.prefix_len().into() }))
}

/// Reads what [`prefix`] wrote; nft lists a network of one address as that address.
pub(crate) fn read_prefix(json: &Json) -> Option<IpNet> {
    match json {
        Expression::Named(NamedExpression::Prefix(Prefix { addr, len })) => {
            IpNet::new(read_address(addr)?, u8::try_from(*len).ok()?).ok()
        }
        json => read_address(json).map(IpNet::from),
    }
}

#[cfg(test)]
mod tests {
    use podway_proxy::Masquerade;
    use proptest::prelude::*;

    use super::*;
    use crate::chains::Chooser;

    proptest! {
        #[test]
        fn what_is_rendered_is_read_back((key, value) in key_and_value()) {
            let text = serde_json::to_string(&element(&key, Some(&value))).unwrap();
            let json: Json = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read_element(key.set(), &json), Some((key, value)));
        }

        #[test]
        fn what_others_wrote_is_read_or_passed_over(set in "[a-z-]{0,12}", text in "[\\[\\]{}\":a-z0-9,]{0,40}") {
            if let Ok(json) = serde_json::from_str(&text) {
                read_element(&set, &json);
            }
        }
    }

    fn key_and_value() -> impl Strategy<Value = (Key, Value)> {
        let chooser = (any::<bool>(), any::<u16>()).prop_map(|(always, count)| {
            Value::Choose(Chooser {
                masquerade: if always { Masquerade::Always } else { Masquerade::UnlessPod },
                count,
            })
        });
        let frontend = (any::<IpAddr>(), 0usize..3, any::<u16>()).prop_map(|(address, protocol, port)| {
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][protocol];
            Frontend { address, protocol, port }
        });
        let hairpin = |at: Frontend| Hairpin { address: at.address, protocol: at.protocol, port: at.port };
        let network = (any::<IpAddr>(), 0u8..=32).prop_map(|(ip, len)| IpNet::new(ip, len).unwrap().trunc());
        prop_oneof![
            (frontend.clone(), chooser).prop_map(|(at, value)| (Key::ServiceIp(at), value)),
            (frontend.clone(), any::<bool>()).prop_map(|(at, drop)| (
                Key::NoEndpoints(at),
                if drop { Value::Discard } else { Value::Refuse }
            )),
            (frontend.clone(), any::<u16>(), any::<IpAddr>(), any::<u16>()).prop_map(
                |(at, slot, ip, port)| {
                    (Key::Endpoint(at, slot), Value::Target(SocketAddr::new(ip, port)))
                }
            ),
            frontend.clone().prop_map(move |at| (Key::Hairpin(hairpin(at)), Value::Present)),
            frontend.prop_map(|at| (Key::ClusterIp(at.address), Value::Present)),
            network.prop_map(|network| (Key::PodNetwork(network), Value::Present)),
        ]
    }
}
