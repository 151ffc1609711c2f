//! What others wrote is read or refused, never a reason to panic; what was accepted keeps its promises.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_overlay::{BackendKind, Family, Mtu, NetConf, PerFamily, SubnetEnv};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn n9_what_is_written_is_read_back(env in subnet_env()) {
        prop_assert_eq!(SubnetEnv::parse(&env.render()), Ok(env));
    }

    #[test]
    fn n9_any_text_is_read_or_refused(lines in prop::collection::vec(env_line(), 0..8)) {
        if let Ok(env) = SubnetEnv::parse(&lines.join("\n")) {
            prop_assert!(env.subnets.iter().next().is_some());
            for (family, (network, subnet)) in env.subnets.iter() {
                prop_assert!(Family::of(network) == family && Family::of(subnet) == family);
                prop_assert!(network.trunc() == *network && subnet.trunc() == *subnet);
            }
        }
    }

    #[test]
    fn n1_any_text_is_read_or_refused(text in ".{0,80}") {
        let _ = NetConf::parse(&text);
    }

    #[test]
    fn n1_an_accepted_configuration_keeps_its_promises(text in net_conf()) {
        let Ok(conf) = NetConf::parse(&text) else { return Ok(()) };
        prop_assert!(!conf.networks().is_empty());
        for (family, asked) in conf.families.iter() {
            prop_assert!(Family::of(&asked.network) == family && asked.network == asked.network.trunc());
            prop_assert_ne!(asked.subnet_len, Some(0));
        }
        if conf.backend.kind == BackendKind::HostGw {
            prop_assert_eq!(conf.backend.port, None);
        }
        let Ok(ranges) = conf.ranges() else { return Ok(()) };
        for (family, range) in ranges.iter() {
            let asked = conf.families.get(family).unwrap();
            prop_assert_eq!(range.network(), asked.network);
            prop_assert!(asked.subnet_len.is_none_or(|len| len == range.subnet_len()));
            prop_assert!(range.subnet_len() >= range.network().prefix_len() + 2);
            let (first, last) = (range.nth(0).unwrap(), range.nth(range.count() - 1).unwrap());
            prop_assert!(range.contains(&first) && range.contains(&last) && range.network().contains(&last));
            prop_assert!(asked.subnet_min.is_none_or(|min| min == first.addr()));
            prop_assert!(asked.subnet_max.is_none_or(|max| max == last.addr()));
        }
    }
}

#[test]
fn n1_configurations_are_taken_and_refused_as_flannel_does() {
    let recorded = include_str!("recorded/net_conf.txt");
    let lines: Vec<&str> = recorded.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 200);
    for pair in lines.chunks_exact(2) {
        assert_eq!(verdict(pair[0]), pair[1].trim(), "{}", pair[0]);
    }
}

/// In the words of the recording.
fn verdict(text: &str) -> String {
    let conf = NetConf::parse(text).ok();
    let Some((conf, ranges)) = conf.and_then(|conf| conf.ranges().ok().map(|ranges| (conf, ranges))) else {
        return "refused".to_owned();
    };
    let mut words = vec!["ok".to_owned()];
    for (_, range) in ranges.iter() {
        let (first, last) = (range.nth(0).unwrap(), range.nth(range.count() - 1).unwrap());
        words.extend([range.network().to_string(), range.subnet_len().to_string()]);
        words.extend([first.addr().to_string(), last.addr().to_string()]);
    }
    words.push(match conf.backend.kind {
        BackendKind::Vxlan => "vxlan".to_owned(),
        BackendKind::HostGw => "host-gw".to_owned(),
    });
    words.join(" ")
}

fn subnet_env() -> impl Strategy<Value = SubnetEnv> {
    let some = (any::<bool>(), any::<bool>()).prop_map(|(v4, v6)| (v4 || !v6, v6));
    (some, pair(Family::V4), pair(Family::V6), 68..=65536_u32, any::<bool>()).prop_map(
        |((has_v4, has_v6), v4, v6, mtu, ip_masq)| SubnetEnv {
            subnets: PerFamily { v4: has_v4.then_some(v4), v6: has_v6.then_some(v6) },
            mtu: Mtu::new(mtu).unwrap(),
            ip_masq,
        },
    )
}

/// A pod network and a node's subnet in it.
fn pair(family: Family) -> impl Strategy<Value = (IpNet, IpNet)> {
    let most = family.host_prefix();
    (any::<u128>(), 1..=most, 0..=most).prop_map(move |(bits, len, longer)| {
        let subnet = IpNet::new(address(family, bits), len.saturating_add(longer).min(most)).unwrap();
        (IpNet::new(subnet.addr(), len).unwrap().trunc(), subnet.trunc())
    })
}

fn env_line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "FLANNEL_NETWORK",
        "FLANNEL_SUBNET",
        "FLANNEL_IPV6_NETWORK",
        "FLANNEL_IPV6_SUBNET",
        "FLANNEL_MTU",
        "FLANNEL_IPMASQ",
        "FLANNEL_",
    ]);
    let value = prop_oneof![
        pair(Family::V4).prop_map(|(_, subnet)| subnet.to_string()),
        pair(Family::V6).prop_map(|(network, subnet)| format!("{network},{subnet}")),
        any::<u32>().prop_map(|number| number.to_string()),
        "[a-z0-9./:,= ]{0,12}",
    ];
    prop_oneof![8 => (key, value).prop_map(|(key, value)| format!("{key}={value}")), 1 => ".{0,20}"]
}

/// Configurations near enough to right ones that many are.
fn net_conf() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        any::<bool>().prop_map(|on| format!(r#""EnableIPv4": {on}"#)),
        any::<bool>().prop_map(|on| format!(r#""EnableIPv6": {on}"#)),
        (0..40_u8).prop_map(|len| format!(r#""SubnetLen": {len}"#)),
        (any::<u8>(), any::<u8>()).prop_map(|(a, b)| format!(r#""SubnetMin": "10.{a}.{b}.0""#)),
        (any::<u8>(), any::<u8>()).prop_map(|(a, b)| format!(r#""subnetmax": "10.{a}.{b}.0""#)),
        (0..130_u8).prop_map(|len| format!(r#""IPv6SubnetLen": {len}"#)),
        any::<u16>().prop_map(|a| format!(r#""IPv6SubnetMin": "fd00:{a:x}::""#)),
        any::<u32>().prop_map(|vni| format!(r#""Backend": {{"Type": "vxlan", "VNI": {vni}}}"#)),
        Just(r#""Backend": {"Type": "host-gw", "Port": 1}"#.to_owned()),
        "\\PC{0,12}",
    ];
    (any::<u8>(), 0..=32_u8, 0..=128_u8, prop::collection::vec(field, 0..5)).prop_map(
        |(at, v4_len, v6_len, fields)| {
            let fields: String = fields.iter().map(|field| format!(", {field}")).collect();
            format!(r#"{{"Network": "10.{at}.0.0/{v4_len}", "IPv6Network": "fd00::/{v6_len}"{fields}}}"#)
        },
    )
}

fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(bits >> 96).unwrap()).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}
