//! flannel's network configuration, `net-conf.json`, as it stands in a ConfigMap or in etcd (contract N1).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::range::{Range, RangeError};
use crate::units::{Family, InvalidUnit, Mtu, PerFamily, Vni};

/// What net-conf.json says, flannel's defaults in the place of what it does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// Of each family that is on (`EnableIPv4`, `EnableIPv6`), its range as it was asked for.
    pub families: PerFamily<Option<NetConfRange>>,
    /// `EnableNFTables`.
    pub enable_nftables: bool,
    /// `Backend`.
    pub backend: NetConfBackend,
}

/// One family's range. flannel's kube store looks at the network alone, so the rest is checked only by
/// [`NetConf::ranges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfRange {
    /// `Network` or `IPv6Network`, host bits zero.
    pub network: IpNet,
    /// `SubnetLen` or `IPv6SubnetLen`; 0 is none.
    pub subnet_len: Option<u8>,
    /// `SubnetMin` or `IPv6SubnetMin`; the unspecified address is none.
    pub subnet_min: Option<IpAddr>,
    /// `SubnetMax` or `IPv6SubnetMax`; the unspecified address is none.
    pub subnet_max: Option<IpAddr>,
}

/// `Backend`: how packets reach other nodes. What belongs to VXLAN is at its default with host-gw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConfBackend {
    /// `Type`.
    pub kind: BackendKind,
    /// `VNI`.
    pub vni: Vni,
    /// `Port`; 0 is none.
    pub port: Option<u16>,
    /// `MTU`, the outer one; 0 is none.
    pub mtu: Option<Mtu>,
    /// `GBP`.
    pub gbp: bool,
    /// `Learning`.
    pub learning: bool,
    /// `DirectRouting`.
    pub direct_routing: bool,
}

/// The backends there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendKind {
    /// In UDP packets from node to node.
    #[default]
    Vxlan,
    /// As they are, by routes.
    HostGw,
}

/// What makes a net-conf.json useless; fields have the names of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetConfError {
    /// The text is no JSON object.
    #[error("net-conf.json: {0}")]
    Json(String),
    /// A value of the wrong type or form.
    #[error("{field}: {value} is not {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What stands there, as JSON.
        value: String,
        /// What should.
        expected: &'static str,
    },
    /// A number out of bounds.
    #[error("{field}: {error}")]
    Unit {
        /// The field.
        field: &'static str,
        /// The bounds.
        error: InvalidUnit,
    },
    /// A family is on and has no range.
    #[error("{field} is missing while {switch} is true")]
    NoNetwork {
        /// `Network` or `IPv6Network`.
        field: &'static str,
        /// `EnableIPv4` or `EnableIPv6`.
        switch: &'static str,
    },
    /// Both families are off.
    #[error("EnableIPv4 and EnableIPv6 are both false: there is no pod network")]
    NoFamily,
    /// A `Backend` that does not say which.
    #[error("Backend.Type is missing: vxlan or host-gw")]
    NoBackendType,
    /// One of flannel's backends that podway does not have.
    #[error("Backend.Type: `{0}` is not supported: use vxlan or host-gw")]
    BackendType(String),
    /// A range that cannot be cut into the subnets that were asked for.
    #[error(transparent)]
    Range(#[from] RangeError),
}

impl NetConf {
    /// Reads net-conf.json as flannel does: keys in any case, the last of several alike, unknown ones ignored, `null`
    /// as if it were not there. Without a `Backend` it is VXLAN, where flannel takes `udp`, which is long gone.
    ///
    /// # Errors
    /// Text that is no JSON object, a value of the wrong type or family, a family that is on without a range, a
    /// backend that podway does not have. The subnets' bounds are for [`NetConf::ranges`] to check.
    pub fn parse(text: &str) -> Result<Self, NetConfError> {
        let object: Object =
            serde_json::from_str(text).map_err(|error| NetConfError::Json(error.to_string()))?;
        let on = PerFamily {
            v4: object.flag("EnableIPv4")?.unwrap_or(true),
            v6: object.flag("EnableIPv6")?.unwrap_or(false),
        };
        if !on.v4 && !on.v6 {
            return Err(NetConfError::NoFamily);
        }
        let range = |family| on.get(family).then(|| object.range(Keys::of(family))).transpose();
        Ok(Self {
            families: PerFamily { v4: range(Family::V4)?, v6: range(Family::V6)? },
            enable_nftables: object.flag("EnableNFTables")?.unwrap_or(false),
            backend: backend(object.get("Backend"))?,
        })
    }

    /// The ranges of the families that are on, IPv4 first.
    pub fn networks(&self) -> Vec<IpNet> {
        self.families.iter().map(|(_, range)| range.network).collect()
    }

    /// The ranges cut into subnets, checked as flannel's etcd store does. A SubnetMin behind SubnetMax, of which flannel
    /// says only later that it is out of subnets, is refused too.
    ///
    /// # Errors
    /// [`NetConfError::Range`].
    pub fn ranges(&self) -> Result<PerFamily<Option<Range>>, NetConfError> {
        let range = |asked: &Option<NetConfRange>| asked.as_ref().map(NetConfRange::range).transpose();
        Ok(PerFamily { v4: range(&self.families.v4)?, v6: range(&self.families.v6)? })
    }
}

impl NetConfRange {
    /// The range cut into subnets.
    ///
    /// # Errors
    /// What flannel's etcd store refuses: see [`Range::new`].
    pub fn range(&self) -> Result<Range, RangeError> {
        Range::new(self.network, self.subnet_len, self.subnet_min, self.subnet_max)
    }
}

/// The fields of one family's range.
struct Keys {
    family: Family,
    switch: &'static str,
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
}

impl Keys {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                family,
                switch: "EnableIPv4",
                network: "Network",
                subnet_len: "SubnetLen",
                subnet_min: "SubnetMin",
                subnet_max: "SubnetMax",
            },
            Family::V6 => Self {
                family,
                switch: "EnableIPv6",
                network: "IPv6Network",
                subnet_len: "IPv6SubnetLen",
                subnet_min: "IPv6SubnetMin",
                subnet_max: "IPv6SubnetMax",
            },
        }
    }
}

/// A JSON object whose keys count in any case.
#[derive(Default)]
struct Object(BTreeMap<String, Value>);

impl Object {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(&field.to_lowercase()).filter(|value| !value.is_null())
    }

    fn range(&self, keys: Keys) -> Result<NetConfRange, NetConfError> {
        // flannel takes 0.0.0.0/0 for "not set" (pkg/ip/ipnet.go, Empty).
        let network = self.network(keys.network, keys.family)?.filter(|network| network.prefix_len() > 0);
        Ok(NetConfRange {
            network: network
                .ok_or(NetConfError::NoNetwork { field: keys.network, switch: keys.switch })?
                .trunc(),
            subnet_len: self.number(keys.subnet_len, "a prefix length")?.filter(|len| *len != 0),
            subnet_min: self.address(keys.subnet_min, keys.family)?,
            subnet_max: self.address(keys.subnet_max, keys.family)?,
        })
    }

    fn network(&self, field: &'static str, family: Family) -> Result<Option<IpNet>, NetConfError> {
        let expected = match family {
            Family::V4 => "an IPv4 network such as 10.0.0.0/8",
            Family::V6 => "an IPv6 network such as fd00::/48",
        };
        self.read(field, expected, |value| {
            value.as_str()?.parse().ok().filter(|network| Family::of(network) == family)
        })
    }

    fn address(&self, field: &'static str, family: Family) -> Result<Option<IpAddr>, NetConfError> {
        let expected = match family {
            Family::V4 => "an IPv4 address",
            Family::V6 => "an IPv6 address",
        };
        let address: Option<IpAddr> = self.read(field, expected, |value| {
            value
                .as_str()?
                .parse()
                .ok()
                .filter(|address: &IpAddr| family.has(*address) || address.is_unspecified())
        })?;
        Ok(address.filter(|address| !address.is_unspecified()))
    }

    fn flag(&self, field: &'static str) -> Result<Option<bool>, NetConfError> {
        self.read(field, "true or false", Value::as_bool)
    }

    fn number<T: TryFrom<u64>>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, NetConfError> {
        self.read(field, expected, |value| T::try_from(value.as_u64()?).ok())
    }

    fn read<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, NetConfError> {
        let last = field.rsplit('.').next().unwrap_or(field);
        let Some(value) = self.get(last) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(NetConfError::Value { field, value: value.to_string(), expected }),
        }
    }
}

fn backend(value: Option<&Value>) -> Result<NetConfBackend, NetConfError> {
    let Some(value) = value else { return Ok(NetConfBackend::default()) };
    let object = Object::deserialize(value).map_err(|_| NetConfError::Value {
        field: "Backend",
        value: value.to_string(),
        expected: r#"an object such as {"Type": "vxlan"}"#,
    })?;
    let kind = object.read("Backend.Type", "vxlan or host-gw", |value| value.as_str().map(str::to_owned))?;
    match kind.ok_or(NetConfError::NoBackendType)? {
        kind if kind.eq_ignore_ascii_case("vxlan") => vxlan(&object),
        kind if kind.eq_ignore_ascii_case("host-gw") => {
            Ok(NetConfBackend { kind: BackendKind::HostGw, ..NetConfBackend::default() })
        }
        kind => Err(NetConfError::BackendType(kind)),
    }
}

fn vxlan(object: &Object) -> Result<NetConfBackend, NetConfError> {
    let whole = "a whole number";
    let vni = object.number("Backend.VNI", whole)?.map(Vni::new).transpose();
    let mtu = object.number("Backend.MTU", whole)?.filter(|mtu| *mtu != 0).map(Mtu::new).transpose();
    let unit = |field| move |error| NetConfError::Unit { field, error };
    Ok(NetConfBackend {
        kind: BackendKind::Vxlan,
        vni: vni.map_err(unit("Backend.VNI"))?.unwrap_or_default(),
        port: object.number("Backend.Port", "a UDP port")?.filter(|port| *port != 0),
        mtu: mtu.map_err(unit("Backend.MTU"))?,
        gbp: object.flag("Backend.GBP")?.unwrap_or(false),
        learning: object.flag("Backend.Learning")?.unwrap_or(false),
        direct_routing: object.flag("Backend.DirectRouting")?.unwrap_or(false),
    })
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::default();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            object.0.insert(key.to_lowercase(), value);
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n1_the_configuration_of_kube_flannel_yml_is_taken_as_it_is() {
        let text = r#"{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}"#;
        let conf = NetConf::parse(text).unwrap();
        assert_eq!(conf.networks(), [net("10.244.0.0/16")]);
        assert_eq!(conf.backend, NetConfBackend::default());
        assert_eq!(
            conf.ranges().unwrap().v4,
            Some(Range::new(net("10.244.0.0/16"), None, None, None).unwrap())
        );
    }

    #[test]
    fn n1_every_field_is_read() {
        let conf = NetConf::parse(
            r#"{"EnableIPv4": true, "EnableIPv6": true, "EnableNFTables": true,
                "Network": "10.77.3.1/16", "SubnetLen": 25, "SubnetMin": "10.77.1.0", "SubnetMax": "10.77.9.128",
                "IPv6Network": "fd77::1/48", "IPv6SubnetLen": 80, "IPv6SubnetMin": "fd77:0:0:2::",
                "IPv6SubnetMax": "fd77:0:0:9::",
                "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 9000, "GBP": true, "Learning": true,
                            "DirectRouting": true, "MacPrefix": "0E-2A"}}"#,
        );
        let v4 = range("10.77.0.0/16", Some(25), ["10.77.1.0", "10.77.9.128"]);
        let v6 = range("fd77::/48", Some(80), ["fd77:0:0:2::", "fd77:0:0:9::"]);
        let backend = NetConfBackend {
            kind: BackendKind::Vxlan,
            vni: Vni::new(7).unwrap(),
            port: Some(4789),
            mtu: Some(Mtu::new(9000).unwrap()),
            gbp: true,
            learning: true,
            direct_routing: true,
        };
        let families = PerFamily { v4: Some(v4), v6: Some(v6) };
        assert_eq!(conf, Ok(NetConf { families, enable_nftables: true, backend }));
    }

    #[test]
    fn n1_keys_count_in_any_case_the_last_of_several_alike_and_unknown_ones_not_at_all() {
        let conf = NetConf::parse(
            r#"{"NETWORK": "10.1.0.0/16", "network": "10.2.0.0/16", "Comment": [1], "subnetlen": 26, "IPV6NETWORK": null,
                "backend": {"TYPE": "VXLAN", "vni": 3, "Port": 0, "MTU": 0, "colour": "red"}}"#,
        )
        .unwrap();
        assert_eq!(conf.networks(), [net("10.2.0.0/16")]);
        assert_eq!(conf.families.v4.unwrap().subnet_len, Some(26));
        assert_eq!(conf.backend, NetConfBackend { vni: Vni::new(3).unwrap(), ..NetConfBackend::default() });
    }

    #[test]
    fn n1_what_flannel_calls_unset_is_unset() {
        let conf = NetConf::parse(
            r#"{"Network": "10.77.0.0/16", "SubnetLen": 0, "SubnetMin": "0.0.0.0", "SubnetMax": "0.0.0.0",
                "EnableIPv6": true, "IPv6Network": "fd77::/48", "IPv6SubnetMin": "::", "IPv6SubnetMax": null}"#,
        )
        .unwrap();
        for (_, range) in conf.families.iter() {
            assert_eq!((range.subnet_len, range.subnet_min, range.subnet_max), (None, None, None));
        }
    }

    #[test]
    fn n1_a_family_that_is_off_is_not_looked_at() {
        let only_v6 =
            r#"{"EnableIPv4": false, "Network": "nonsense", "EnableIPv6": true, "IPv6Network": "fd77::/48"}"#;
        assert_eq!(NetConf::parse(only_v6).unwrap().networks(), [net("fd77::/48")]);
        let only_v4 = r#"{"Network": "10.77.0.0/16", "IPv6Network": "nonsense", "IPv6SubnetLen": "x"}"#;
        assert_eq!(NetConf::parse(only_v4).unwrap().networks(), [net("10.77.0.0/16")]);
    }

    #[test]
    fn n1_host_gw_has_no_use_for_what_belongs_to_vxlan() {
        let conf =
            NetConf::parse(r#"{"Network": "10.77.0.0/16", "Backend": {"Type": "Host-GW", "VNI": "x"}}"#)
                .unwrap();
        assert_eq!(conf.backend, NetConfBackend { kind: BackendKind::HostGw, ..NetConfBackend::default() });
    }

    #[test]
    fn n1_wrong_values_are_named_by_their_field() {
        for (text, named) in [
            ("", "net-conf.json"),
            ("[]", "net-conf.json"),
            (r#"{"Network": "10.77.0.0/16",}"#, "line 1"),
            ("{}", "Network is missing while EnableIPv4"),
            (r#"{"Network": "0.0.0.0/0"}"#, "Network is missing"),
            (r#"{"EnableIPv4": false}"#, "EnableIPv4 and EnableIPv6"),
            (r#"{"EnableIPv4": "yes"}"#, "EnableIPv4: \"yes\" is not true or false"),
            (r#"{"Network": "fd77::/48"}"#, "Network: \"fd77::/48\" is not an IPv4 network"),
            (r#"{"Network": "10.77.0.0"}"#, "Network: \"10.77.0.0\" is not"),
            (&with(r#""EnableIPv6": true"#), "IPv6Network is missing while EnableIPv6"),
            (
                &with(r#""EnableIPv6": true, "IPv6Network": "10.0.0.0/8""#),
                "IPv6Network: \"10.0.0.0/8\" is not",
            ),
            (&with(r#""SubnetLen": "24""#), "SubnetLen: \"24\" is not a prefix length"),
            (&with(r#""SubnetLen": -1"#), "SubnetLen: -1"),
            (&with(r#""SubnetMin": "fd77::""#), "SubnetMin: \"fd77::\" is not an IPv4 address"),
            (&with(r#""Backend": "vxlan""#), "Backend: \"vxlan\" is not an object"),
            (&with(r#""Backend": {"VNI": 1}"#), "Backend.Type is missing"),
            (&with(r#""Backend": {"Type": "udp"}"#), "Backend.Type: `udp`"),
            (&with(r#""Backend": {"Type": "vxlan", "VNI": 16777216}"#), "Backend.VNI: VNI 16777216"),
            (&with(r#""Backend": {"Type": "vxlan", "Port": 65536}"#), "Backend.Port: 65536"),
            (&with(r#""Backend": {"Type": "vxlan", "MTU": 20}"#), "Backend.MTU: MTU 20"),
            (&with(r#""Backend": {"Type": "vxlan", "Learning": 1}"#), "Backend.Learning: 1"),
        ] {
            let error = NetConf::parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with(named) || error.contains("line 1") && named == "line 1",
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn n1_subnets_are_checked_only_when_they_are_asked_for() {
        for (fields, named) in [
            (r#""SubnetLen": 31"#, "SubnetLen 31"),
            (r#""SubnetLen": 17"#, "SubnetLen 17"),
            (r#""SubnetMin": "10.78.0.0""#, "SubnetMin 10.78.0.0"),
            (r#""SubnetMax": "10.77.3.1""#, "SubnetMax 10.77.3.1"),
            (r#""EnableIPv6": true, "IPv6Network": "fd77::/125""#, "IPv6Network fd77::/125"),
            (r#""EnableIPv6": true, "IPv6Network": "fd77::/48", "IPv6SubnetLen": 127"#, "IPv6SubnetLen 127"),
            (
                r#""EnableIPv6": true, "IPv6Network": "fd77::/48", "IPv6SubnetMin": "fd78::""#,
                "IPv6SubnetMin fd78::",
            ),
        ] {
            let conf = NetConf::parse(&with(fields)).unwrap();
            assert!(!conf.networks().is_empty());
            let error = conf.ranges().unwrap_err().to_string();
            assert!(error.starts_with(named), "{fields}: {error}");
        }
    }

    fn with(fields: &str) -> String {
        format!(r#"{{"Network": "10.77.0.0/16", {fields}}}"#)
    }

    fn range(network: &str, subnet_len: Option<u8>, [min, max]: [&str; 2]) -> NetConfRange {
        let address = |text: &str| Some(text.parse().unwrap());
        NetConfRange { network: net(network), subnet_len, subnet_min: address(min), subnet_max: address(max) }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}
