//! Leases in flannel's etcd store: one key and value for each node (contract N3).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::node::Node;
use crate::units::{Family, Mac, PerFamily, Vni};

/// What stands for the IPv4 subnet of a node that has none: flannel's keys always begin with one.
const NO_IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// The subnets of one node, as its key under `<prefix>/subnets/` names them: `10.77.12.0-24`, in dual-stack
/// `10.77.12.0-24&fd77:0:0:c::-64`, with IPv6 alone `0.0.0.0-0&fd77:0:0:c::-64` (flannel, pkg/subnet/subnet.go).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseKey(pub PerFamily<Option<IpNet>>);

/// The subnet of a node, and how its pods are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The key without `<prefix>/subnets/`, as it stands in the store.
    pub key: Arc<str>,
    /// The subnets that the key names.
    pub subnets: PerFamily<Option<IpNet>>,
    /// The value.
    pub attributes: LeaseAttributes,
    /// Whether the key has no lease in etcd, and so never runs out.
    pub reservation: bool,
}

/// The value of a lease's key. Its JSON is flannel's, byte for byte (flannel, pkg/lease/lease.go).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseAttributes {
    /// Where packets for the node's IPv4 pods are sent to; a missing one is written as 0.0.0.0.
    pub public_ip: Option<Ipv4Addr>,
    /// Where packets for its IPv6 pods are sent to.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`, `host-gw`; empty in a reservation that no node has taken yet.
    pub backend_type: String,
    /// JSON text, such as `{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}`; none with host-gw. What is not JSON is not
    /// written.
    pub backend_data: Option<String>,
    /// The same for IPv6 pods.
    pub backend_v6_data: Option<String>,
}

/// Why a key below `<prefix>/subnets/` is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The key names no subnet.
    #[error("not a subnet such as 10.77.12.0-24 or 10.77.12.0-24&fd77:0:0:c::-64")]
    Key,
    /// The value is no JSON object.
    #[error("the value is no JSON object: {0}")]
    Value(String),
    /// One field of the value is wrong.
    #[error("{field}: {cause}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        cause: String,
    },
}

impl Lease {
    /// Reads a key (without `<prefix>/subnets/`) and its value.
    ///
    /// # Errors
    /// For what flannel passes over too: other keys, values that are not what they should be.
    pub fn parse(key: &str, value: &str, reservation: bool) -> Result<Self, LeaseError> {
        let LeaseKey(subnets) = key.parse()?;
        Ok(Self { key: key.into(), subnets, attributes: LeaseAttributes::parse(value)?, reservation })
    }

    /// Whether a node has taken it: a reservation may stand before its node does.
    pub fn is_taken(&self) -> bool {
        !self.attributes.backend_type.is_empty()
    }

    /// The lease as a peer, named by its key.
    pub fn node(&self) -> Node {
        self.attributes.node(self.key.clone(), &self.subnets)
    }
}

impl LeaseAttributes {
    /// What a node with these VTEPs publishes.
    pub fn vxlan(vni: Vni, vteps: &PerFamily<Option<(Mac, IpAddr)>>) -> Self {
        let addresses = PerFamily::from_fn(|family| vteps.get(family).map(|(_, address)| address));
        // The form of the text is that of the annotations.
        let told = |family| vteps.get(family).map(|(mac, _)| format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#));
        Self {
            backend_data: told(Family::V4),
            backend_v6_data: told(Family::V6),
            ..Self::of("vxlan", &addresses)
        }
    }

    /// What a node publishes that is reached by plain routes to these addresses.
    pub fn host_gw(addresses: &PerFamily<Option<IpAddr>>) -> Self {
        Self::of("host-gw", addresses)
    }

    /// Reads a value as Go would: keys in any case, others ignored, each may be missing.
    ///
    /// # Errors
    /// When it is no object, naming the field when only that is wrong.
    pub fn parse(value: &str) -> Result<Self, LeaseError> {
        let fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(value).map_err(|error| LeaseError::Value(error.to_string()))?;
        let text =
            |name| field::<Box<RawValue>>(&fields, name).map(|data| data.map(|data| data.get().to_owned()));
        Ok(Self {
            public_ip: field::<Ipv4Addr>(&fields, "PublicIP")?.filter(|address| !address.is_unspecified()),
            public_ipv6: field::<Ipv6Addr>(&fields, "PublicIPv6")?
                .filter(|address| !address.is_unspecified()),
            backend_type: field(&fields, "BackendType")?.unwrap_or_default(),
            backend_data: text("BackendData")?,
            backend_v6_data: text("BackendV6Data")?,
        })
    }

    /// The value, in the order and the spacing of Go's encoder.
    pub fn render(&self) -> String {
        let raw = |text: &Option<String>| RawValue::from_string(text.clone()?).ok();
        let value = Value {
            public_ip: self.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: self.public_ipv6,
            backend_type: &self.backend_type,
            backend_data: raw(&self.backend_data),
            backend_v6_data: raw(&self.backend_v6_data),
        };
        serde_json::to_string(&value).unwrap_or_default()
    }

    /// Whether both speak for one node: they have the same IPv4 address, or the same IPv6 address where the other has
    /// no IPv4 one.
    pub fn is_of_the_node_of(&self, other: &Self) -> bool {
        match (other.public_ip, other.public_ipv6) {
            (Some(v4), _) => self.public_ip == Some(v4),
            (None, Some(v6)) => self.public_ipv6 == Some(v6),
            (None, None) => false,
        }
    }

    /// The Node that would say the same by its annotations.
    pub fn node(&self, name: Arc<str>, subnets: &PerFamily<Option<IpNet>>) -> Node {
        let public = [self.public_ip.map(IpAddr::V4), self.public_ipv6.map(IpAddr::V6)];
        let annotations = [
            ("kube-subnet-manager", Some("true".to_owned())),
            ("backend-type", Some(self.backend_type.clone())),
            ("backend-data", self.backend_data.clone()),
            ("backend-v6-data", self.backend_v6_data.clone()),
            ("public-ip", self.public_ip.map(|address| address.to_string())),
            ("public-ipv6", self.public_ipv6.map(|address| address.to_string())),
        ];
        Node {
            name,
            uid: Arc::default(),
            addresses: public.into_iter().flatten().collect(),
            pod_cidrs: subnets.iter().map(|(_, subnet)| *subnet).collect(),
            zone: None,
            flannel: annotations
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                .collect(),
        }
    }

    fn of(backend: &str, addresses: &PerFamily<Option<IpAddr>>) -> Self {
        let mut attributes = Self { backend_type: backend.to_owned(), ..Self::default() };
        for (_, address) in addresses.iter() {
            match address {
                IpAddr::V4(address) => attributes.public_ip = Some(*address),
                IpAddr::V6(address) => attributes.public_ipv6 = Some(*address),
            }
        }
        attributes
    }
}

impl FromStr for LeaseKey {
    type Err = LeaseError;

    /// Lengths end at 31 and 127, as flannel reads them. Host bits stay.
    fn from_str(text: &str) -> Result<Self, LeaseError> {
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let (address, len) = net::<Ipv4Addr>(v4, 31).ok_or(LeaseError::Key)?;
        let v4 = Ipv4Net::new(address, len).ok().filter(|net| *net != NO_IPV4).map(IpNet::V4);
        let v6 = match v6.map(|v6| net::<Ipv6Addr>(v6, 127).ok_or(LeaseError::Key)).transpose()? {
            Some((address, len)) => Ipv6Net::new(address, len).ok().map(IpNet::V6),
            None => None,
        };
        // A length of 0 would hold every address there is.
        let useless = |subnet: &IpNet| subnet.prefix_len() == 0;
        if v4.or(v6).is_none() || [v4, v6].iter().flatten().any(useless) {
            return Err(LeaseError::Key);
        }
        Ok(Self(PerFamily { v4, v6 }))
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.0.v4.unwrap_or(NO_IPV4.into());
        write!(f, "{}-{}", v4.addr(), v4.prefix_len())?;
        match self.0.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

/// The order of the fields is that of flannel's struct.
#[derive(Serialize)]
struct Value<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<Box<RawValue>>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<Box<RawValue>>,
}

/// The field of this name, else the one that differs in case only.
fn field<T: DeserializeOwned>(
    fields: &BTreeMap<String, &RawValue>,
    name: &'static str,
) -> Result<Option<T>, LeaseError> {
    let other_case = || fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let Some(value) = fields.get(name).or_else(other_case) else { return Ok(None) };
    serde_json::from_str(value.get())
        .map_err(|error| LeaseError::Field { field: name, cause: format!("`{value}`: {error}") })
}

fn net<A: FromStr>(text: &str, longest: u8) -> Option<(A, u8)> {
    let (address, len) = text.rsplit_once('-')?;
    let digits = !len.is_empty() && len.bytes().all(|digit| digit.is_ascii_digit());
    let len = len.parse().ok().filter(|len| digits && *len <= longest)?;
    Some((address.parse().ok()?, len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VXLAN: &str = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}}"#;
    const DUAL: &str = r#"{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:1b:2c:3d:4e:5f"}}"#;
    const HOST_GW: &str = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw"}"#;

    #[test]
    fn n3_values_are_flannels_byte_for_byte() {
        let v4 = ("0a:1b:2c:3d:4e:5f".parse().unwrap(), "192.0.2.7".parse().unwrap());
        let v6 = ("0e:1b:2c:3d:4e:5f".parse().unwrap(), "2001:db8::7".parse().unwrap());
        let vxlan = |v6| LeaseAttributes::vxlan(Vni::default(), &PerFamily { v4: Some(v4), v6 });
        assert_eq!(vxlan(None).render(), VXLAN);
        assert_eq!(vxlan(Some(v6)).render(), DUAL);
        let host_gw = LeaseAttributes::host_gw(&PerFamily { v4: Some(v4.1), v6: None });
        assert_eq!(host_gw.render(), HOST_GW);
    }

    #[test]
    fn n3_keys_are_flannels_byte_for_byte() {
        for text in ["10.77.12.0-24", "10.77.12.0-24&fd77:0:0:c::-64", "0.0.0.0-0&fd77:0:0:c::-64"] {
            assert_eq!(text.parse::<LeaseKey>().unwrap().to_string(), text);
        }
        let LeaseKey(subnets) = "0.0.0.0-0&fd77:0:0:c::-64".parse().unwrap();
        assert_eq!(subnets, PerFamily { v4: None, v6: Some("fd77:0:0:c::/64".parse().unwrap()) });
    }

    #[test]
    fn n3_other_keys_are_no_leases() {
        for text in [
            "",
            "config",
            "10.77.12.0",
            "10.77.12.0-32",
            "10.77.12.0-+24",
            "10.77.12.0-",
            "10.77.12-24",
            "0.0.0.0-0",
            "10.0.0.0-0",
            "10.77.12.0-24&",
            "10.77.12.0-24&fd77::-128",
            "10.77.12.0-24&::-0",
            "10.77.12.0-24&fd77::-64&fd77::-64",
            "fd77::-64",
        ] {
            assert_eq!(text.parse::<LeaseKey>(), Err(LeaseError::Key), "{text}");
        }
    }

    #[test]
    fn n3_values_are_read_as_go_reads_them() {
        let attributes = LeaseAttributes::parse(
            r#" { "publicip": "192.0.2.7", "Other": [1], "backendTYPE": "host-gw", "BackendData": null } "#,
        );
        assert_eq!(attributes.unwrap().render(), HOST_GW);
        assert_eq!(LeaseAttributes::parse("{}").unwrap(), LeaseAttributes::default());
    }

    #[test]
    fn n3_wrong_values_name_the_field() {
        for (value, named) in [
            (r#"{"PublicIP":"worker-7"}"#, "PublicIP: `\"worker-7\"`"),
            (r#"{"PublicIP":"2001:db8::7"}"#, "PublicIP"),
            (r#"{"PublicIPv6":"192.0.2.7"}"#, "PublicIPv6"),
            (r#"{"BackendType":7}"#, "BackendType: `7`"),
            ("null", "no JSON object"),
            ("", "no JSON object"),
        ] {
            let error = Lease::parse("10.77.12.0-24", value, false).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn n3_a_lease_is_a_peer_like_an_annotated_node() {
        let lease = Lease::parse("10.77.12.0-24&fd77:0:0:c::-64", DUAL, false).unwrap();
        let node = lease.node();
        assert_eq!(&*node.name, "10.77.12.0-24&fd77:0:0:c::-64");
        let subnets: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(subnets, ["10.77.12.0/24", "fd77:0:0:c::/64"]);
        let told: Vec<(&str, &str)> =
            node.flannel.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            told,
            [
                ("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#),
                ("backend-type", "vxlan"),
                ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"0e:1b:2c:3d:4e:5f"}"#),
                ("kube-subnet-manager", "true"),
                ("public-ip", "192.0.2.7"),
                ("public-ipv6", "2001:db8::7"),
            ]
        );
    }

    fn subnets() -> impl Strategy<Value = PerFamily<Option<IpNet>>> {
        let v4 = (any::<u32>(), 1..=31_u8).prop_map(|(bits, len)| (Ipv4Addr::from(bits), len));
        let v6 = (any::<u128>(), 1..=127_u8).prop_map(|(bits, len)| (Ipv6Addr::from(bits), len));
        (proptest::option::of(v4), proptest::option::of(v6))
            .prop_filter("none", |(v4, v6)| v4.is_some() || v6.is_some())
            .prop_map(|(v4, v6)| PerFamily {
                v4: v4.map(|(address, len)| Ipv4Net::new(address, len).unwrap().into()),
                v6: v6.map(|(address, len)| Ipv6Net::new(address, len).unwrap().into()),
            })
    }

    fn attributes() -> impl Strategy<Value = LeaseAttributes> {
        let json = || proptest::option::of(r#"\{"VNI":[1-9]{1,7},"VtepMAC":"[0-9a-f:]{0,17}"\}"#);
        let v4 = proptest::option::of((1..u32::MAX).prop_map(Ipv4Addr::from));
        let v6 = proptest::option::of((1..u128::MAX).prop_map(Ipv6Addr::from));
        (v4, v6, ".{0,9}", json(), json()).prop_map(
            |(public_ip, public_ipv6, backend_type, backend_data, backend_v6_data)| LeaseAttributes {
                public_ip,
                public_ipv6,
                backend_type,
                backend_data,
                backend_v6_data,
            },
        )
    }

    proptest! {
        #[test]
        fn n3_what_is_rendered_is_read_back(subnets in subnets(), attributes in attributes()) {
            let key = LeaseKey(subnets);
            prop_assert_eq!(key.to_string().parse::<LeaseKey>(), Ok(key));
            prop_assert_eq!(LeaseAttributes::parse(&attributes.render()), Ok(attributes));
        }

        #[test]
        fn n3_no_text_breaks_the_reader(key in ".*", value in ".*", like in "[0-9.]{0,12}-?[0-9]{0,4}&?[0-9a-f:]{0,12}-?[0-9]{0,4}") {
            let _ = Lease::parse(&key, &value, true);
            let _ = Lease::parse(&like, &value, true);
            let _ = LeaseAttributes::parse(&format!(r#"{{"PublicIP":"{value}","BackendData":{key}}}"#));
        }
    }
}
