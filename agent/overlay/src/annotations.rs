//! flannel's Node annotations: those of peers read, our own written byte for byte (contract N5).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::node::Node;
use crate::problem::Reason;
use crate::units::{Family, Mac, PerFamily, Vni};

/// What flannel's Node annotations begin with (contract N5).
pub const ANNOTATION_PREFIX: &str = "flannel.alpha.coreos.com/";

const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";
const VXLAN: &str = "vxlan";

/// Whether the Node takes part; flannel's peers look at no other Node.
pub(crate) fn is_managed(node: &Node) -> bool {
    node.flannel.get(MANAGED).is_some_and(|value| value == "true")
}

/// The VTEP that a peer publishes for `family`: its MAC and the address to send to.
///
/// A VNI other than ours is refused, one that is missing (flannel of old) is taken for ours.
pub(crate) fn vtep(node: &Node, vni: Vni, family: Family) -> Result<(Mac, IpAddr), Reason> {
    let backend = node.flannel.get(BACKEND_TYPE).map_or("", String::as_str);
    if backend != VXLAN {
        return Err(Reason::BackendType(backend.to_owned()));
    }
    let mac = vtep_mac(node, vni, family)?;
    let key = public_ip_key(family);
    let wrong = |why: String| Reason::Annotation { key, family, why };
    let text = node.flannel.get(key).ok_or_else(|| wrong("missing".to_owned()))?;
    let address: IpAddr = text.parse().map_err(|_| wrong(format!("`{text}` is no IP address")))?;
    if !family.has(address) {
        return Err(wrong(format!("`{text}` is no {family} address")));
    }
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(wrong(format!("`{text}` is no address of a node")));
    }
    Ok((mac, address))
}

/// The VTEP MAC that a Node publishes for `family`.
pub(crate) fn vtep_mac(node: &Node, vni: Vni, family: Family) -> Result<Mac, Reason> {
    let key = backend_data_key(family);
    let wrong = |why: String| Reason::Annotation { key, family, why };
    let text = node.flannel.get(key).ok_or_else(|| wrong("missing".to_owned()))?;
    let data: BackendData =
        serde_json::from_str(text).map_err(|error| wrong(format!("`{text}`: {error}")))?;
    match data.vni {
        Some(theirs) if theirs != vni => Err(wrong(format!("VNI {theirs}, this node has VNI {vni}"))),
        _ if !data.vtep_mac.is_unicast() => Err(wrong(format!("{} is no unicast MAC", data.vtep_mac))),
        _ => Ok(data.vtep_mac),
    }
}

/// What a node with these VTEPs publishes, keys without prefix. The address is the Node's `public-ip-overwrite`
/// where that is set.
pub(crate) fn render(
    node: &Node,
    vni: Vni,
    vteps: &PerFamily<Option<(Mac, IpAddr)>>,
) -> BTreeMap<&'static str, String> {
    let mut published = BTreeMap::from([(MANAGED, "true".to_owned()), (BACKEND_TYPE, VXLAN.to_owned())]);
    for (family, (mac, address)) in vteps.iter() {
        // flannel finds its MAC again by cutting the text at `:"`: no space, and VtepMAC last.
        published.insert(backend_data_key(family), format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#));
        let overwrite = node.flannel.get(overwrite_key(family)).filter(|text| !text.is_empty());
        published.insert(public_ip_key(family), overwrite.cloned().unwrap_or_else(|| address.to_string()));
    }
    published
}

#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: Option<Vni>,
    #[serde(rename = "VtepMAC")]
    vtep_mac: Mac,
}

fn backend_data_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "backend-data",
        Family::V6 => "backend-v6-data",
    }
}

fn public_ip_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "public-ip",
        Family::V6 => "public-ipv6",
    }
}

fn overwrite_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "public-ip-overwrite",
        Family::V6 => "public-ipv6-overwrite",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n5_annotations_are_written_byte_for_byte_as_flannel_does() {
        let vteps = PerFamily {
            v4: Some(("0a:1b:2c:3d:4e:5f".parse().unwrap(), "192.0.2.7".parse().unwrap())),
            v6: Some(("0e:1b:2c:3d:4e:5f".parse().unwrap(), "2001:db8::7".parse().unwrap())),
        };
        let published = render(&Node::default(), Vni::default(), &vteps);
        assert_eq!(
            published.into_iter().collect::<Vec<_>>(),
            [
                ("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#.to_owned()),
                ("backend-type", "vxlan".to_owned()),
                ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"0e:1b:2c:3d:4e:5f"}"#.to_owned()),
                ("kube-subnet-manager", "true".to_owned()),
                ("public-ip", "192.0.2.7".to_owned()),
                ("public-ipv6", "2001:db8::7".to_owned()),
            ]
        );
    }

    #[test]
    fn n5_without_ipv6_nothing_of_ipv6_is_written() {
        let vteps = PerFamily { v4: Some((Mac::new([2; 6]), "192.0.2.7".parse().unwrap())), v6: None };
        let published = render(&Node::default(), Vni::default(), &vteps);
        assert!(published.keys().all(|key| !key.contains("v6")), "{published:?}");
    }

    #[test]
    fn n5_the_overwrite_is_published_instead_of_the_own_address() {
        let node = node(&[("public-ip-overwrite", "203.0.113.9")]);
        let vteps = PerFamily { v4: Some((Mac::new([2; 6]), "192.0.2.7".parse().unwrap())), v6: None };
        assert_eq!(render(&node, Vni::default(), &vteps)["public-ip"], "203.0.113.9");
    }

    #[test]
    fn n5_a_peer_is_read() {
        let node = node(&[
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#),
            ("public-ip", "192.0.2.7"),
        ]);
        let (mac, address) = vtep(&node, Vni::default(), Family::V4).unwrap();
        assert_eq!((mac.to_string(), address.to_string()), ("0a:1b:2c:3d:4e:5f".into(), "192.0.2.7".into()));
    }

    #[test]
    fn n5_bad_peer_data_is_refused_naming_the_annotation() {
        let good = [
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#),
            ("public-ip", "192.0.2.7"),
        ];
        for (key, value) in [
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("backend-data", r#"{"VNI":1}"#),
            ("backend-data", r#"{"VNI":2,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"01:1b:2c:3d:4e:5f"}"#),
            ("public-ip", "worker-7"),
            ("public-ip", "2001:db8::7"),
            ("public-ip", "0.0.0.0"),
        ] {
            let mut node = node(&good);
            node.flannel.insert(key.to_owned(), value.to_owned());
            let reason = vtep(&node, Vni::default(), Family::V4).unwrap_err().to_string();
            assert!(reason.contains(key), "{reason}");
            node.flannel.remove(key);
            let reason = vtep(&node, Vni::default(), Family::V4).unwrap_err().to_string();
            assert!(reason.contains(key), "{reason}");
        }
    }

    fn node(annotations: &[(&str, &str)]) -> Node {
        let flannel =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Node { flannel, ..Node::default() }
    }
}
