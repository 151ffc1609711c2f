//! flannel's Node annotations: those of peers read, our own written byte for byte (contract N5).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::host::Host;
use crate::node::Node;
use crate::problem::Reason;
use crate::settings::{Backend, Settings};
use crate::units::{Family, Mac, PerFamily, Vni};

/// What flannel's Node annotations begin with (contract N5).
pub const ANNOTATION_PREFIX: &str = "flannel.alpha.coreos.com/";

const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";

/// Whether the Node takes part; flannel's peers look at no other Node.
pub(crate) fn is_managed(node: &Node) -> bool {
    node.flannel.get(MANAGED).is_some_and(|value| value == "true")
}

/// What a peer publishes for `family`: with VXLAN its VTEP's MAC, and the address to send to.
///
/// A backend or VNI other than ours is refused; a VNI that is missing (flannel of old) is taken for ours.
pub(crate) fn vtep(
    node: &Node,
    settings: &Settings,
    family: Family,
) -> Result<(Option<Mac>, IpAddr), Reason> {
    let found = node.flannel.get(BACKEND_TYPE).map_or("", String::as_str);
    if found != settings.backend.as_str() {
        return Err(Reason::BackendType { found: found.to_owned(), wanted: settings.backend });
    }
    let mac = match settings.backend {
        Backend::Vxlan => Some(vtep_mac(node, settings.vni, family)?),
        Backend::HostGw => None,
    };
    let key = public_ip_key(family);
    let text = node.flannel.get(key).ok_or_else(|| wrong(key, family, "missing".to_owned()))?;
    Ok((mac, node_address(key, text, family)?))
}

/// The address that the operator tells this machine to publish, or to find its interface by: annotation
/// `node-public-ip(v6)`.
pub(crate) fn node_public_ip(node: &Node, family: Family) -> Result<Option<IpAddr>, Reason> {
    let key = node_public_ip_key(family);
    let text = node.flannel.get(key).filter(|text| !text.is_empty());
    text.map(|text| node_address(key, text, family)).transpose()
}

/// The address that the operator tells this machine to publish instead of its own, as it does behind a translator of
/// addresses: annotation `public-ip(v6)-overwrite`.
fn overwrite(node: &Node, family: Family) -> Option<&String> {
    node.flannel.get(overwrite_key(family)).filter(|text| !text.is_empty())
}

/// The VTEP MAC that a Node publishes for `family`.
pub(crate) fn vtep_mac(node: &Node, vni: Vni, family: Family) -> Result<Mac, Reason> {
    let key = backend_data_key(family);
    let wrong = |why: String| wrong(key, family, why);
    let text = node.flannel.get(key).ok_or_else(|| wrong("missing".to_owned()))?;
    let data: BackendData =
        serde_json::from_str(text).map_err(|error| wrong(format!("`{text}`: {error}")))?;
    match data.vni {
        Some(theirs) if theirs != vni => Err(wrong(format!("VNI {theirs}, this node has VNI {vni}"))),
        _ if !data.vtep_mac.is_unicast() => Err(wrong(format!("{} is no unicast MAC", data.vtep_mac))),
        _ => Ok(data.vtep_mac),
    }
}

/// What a node publishes that is reached so, keys without prefix: per family with VXLAN its VTEP's MAC, and its address.
///
/// host-gw has `backend-data` too, and it is `null` (flannel, pkg/subnet/kube/kube.go).
pub(crate) fn render(
    settings: &Settings,
    reached: &PerFamily<Option<(Option<Mac>, String)>>,
) -> BTreeMap<&'static str, String> {
    let mut published =
        BTreeMap::from([(MANAGED, "true".to_owned()), (BACKEND_TYPE, settings.backend.as_str().to_owned())]);
    for (family, (mac, address)) in reached.iter() {
        // flannel finds its MAC again by cutting the text at `:"`: no space, and VtepMAC last.
        let data = match mac {
            Some(mac) => format!(r#"{{"VNI":{},"VtepMAC":"{mac}"}}"#, settings.vni),
            None => "null".to_owned(),
        };
        published.insert(backend_data_key(family), data);
        published.insert(public_ip_key(family), address.clone());
    }
    published
}

/// The address of `family` that peers are told: the operator's, else the interface's.
pub(crate) fn published(node: &Node, host: &Host, family: Family) -> Option<String> {
    let own = || host.published(family).map(|address| address.to_string());
    overwrite(node, family).cloned().or_else(own)
}

/// Whether what is published is another address than this; one address of IPv6 can be written in many ways.
pub(crate) fn differs(published: &str, address: IpAddr) -> bool {
    published.parse() != Ok(address)
}

/// An address under which a node can be reached.
fn node_address(key: &'static str, text: &str, family: Family) -> Result<IpAddr, Reason> {
    let wrong = |why: String| wrong(key, family, why);
    let address: IpAddr = text.parse().map_err(|_| wrong(format!("`{text}` is no IP address")))?;
    if !family.has(address) {
        return Err(wrong(format!("`{text}` is no {family} address")));
    }
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(wrong(format!("`{text}` is no address of a node")));
    }
    Ok(address)
}

fn wrong(key: &'static str, family: Family, why: String) -> Reason {
    Reason::Annotation { key, family, why, kept: false }
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

fn node_public_ip_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "node-public-ip",
        Family::V6 => "node-public-ipv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Peering;
    use crate::units::{ExternalInterface, IfIndex, LinkName, Mtu};

    #[test]
    fn n5_annotations_are_written_byte_for_byte_as_flannel_does() {
        let reached = PerFamily {
            v4: Some((Some("0a:1b:2c:3d:4e:5f".parse().unwrap()), "192.0.2.7".to_owned())),
            v6: Some((Some("0e:1b:2c:3d:4e:5f".parse().unwrap()), "2001:db8::7".to_owned())),
        };
        let published = render(&settings(Backend::Vxlan), &reached);
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
        let reached = PerFamily { v4: Some((Some(MAC), "192.0.2.7".to_owned())), v6: None };
        let published = render(&settings(Backend::Vxlan), &reached);
        assert!(published.keys().all(|key| !key.contains("v6")), "{published:?}");
    }

    #[test]
    fn n5_without_ipv4_nothing_of_ipv4_is_written() {
        let reached = PerFamily { v4: None, v6: Some((Some(MAC), "2001:db8::7".to_owned())) };
        let published = render(&settings(Backend::Vxlan), &reached);
        let keys: Vec<_> = published.into_keys().collect();
        assert_eq!(keys, ["backend-type", "backend-v6-data", "kube-subnet-manager", "public-ipv6"]);
    }

    #[test]
    fn n5_host_gw_has_null_for_backend_data() {
        let reached = PerFamily {
            v4: Some((None, "192.0.2.7".to_owned())),
            v6: Some((None, "2001:db8::7".to_owned())),
        };
        let published = render(&settings(Backend::HostGw), &reached);
        assert_eq!(published["backend-type"], "host-gw");
        assert_eq!((&*published["backend-data"], &*published["backend-v6-data"]), ("null", "null"));
        assert_eq!(published["public-ip"], "192.0.2.7");
    }

    #[test]
    fn n5_the_overwrite_is_published_instead_of_the_own_address() {
        let node =
            node(&[("public-ip-overwrite", "203.0.113.9"), ("public-ipv6-overwrite", "2001:db8:9::9")]);
        let mut host = Host::new(ExternalInterface {
            index: IfIndex(2),
            name: LinkName::new("eth0").unwrap(),
            mtu: Mtu::IPV6_MIN,
            v4: Some([192, 0, 2, 7].into()),
            v6: Some("2001:db8::7".parse().unwrap()),
        });
        let both =
            |node: &Node, host: &Host| Family::BOTH.map(|family| published(node, host, family).unwrap());
        assert_eq!(both(&node, &host), ["203.0.113.9", "2001:db8:9::9"]);
        assert_eq!(both(&Node::default(), &host), ["192.0.2.7", "2001:db8::7"]);
        host.public.v4 = Some([198, 51, 100, 1].into());
        assert_eq!(both(&Node::default(), &host), ["198.51.100.1", "2001:db8::7"]);
        assert_eq!(both(&node, &host), ["203.0.113.9", "2001:db8:9::9"]);
    }

    #[test]
    fn one_address_written_in_two_ways_is_one() {
        let address = "2001:db8::7".parse().unwrap();
        assert!(!differs("2001:0DB8:0::0007", address) && !differs("2001:db8::7", address));
        assert!(differs("2001:db8::8", address) && differs("worker-7", address));
    }

    #[test]
    fn n8_the_nodes_own_choice_of_address_is_read() {
        let node = node(&[("node-public-ip", "203.0.113.9"), ("node-public-ipv6", "here")]);
        assert_eq!(node_public_ip(&node, Family::V4), Ok(Some("203.0.113.9".parse().unwrap())));
        let text = node_public_ip(&node, Family::V6).unwrap_err().to_string();
        assert!(text.contains("node-public-ipv6") && text.contains("`here`"), "{text}");
        assert_eq!(node_public_ip(&Node::default(), Family::V4), Ok(None));
    }

    #[test]
    fn n5_a_peer_is_read() {
        let node = node(&[
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#),
            ("public-ip", "192.0.2.7"),
        ]);
        let (mac, address) = vtep(&node, &settings(Backend::Vxlan), Family::V4).unwrap();
        let shown = (mac.unwrap().to_string(), address.to_string());
        assert_eq!(shown, ("0a:1b:2c:3d:4e:5f".into(), "192.0.2.7".into()));
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
            let reason = vtep(&node, &settings(Backend::Vxlan), Family::V4).unwrap_err().to_string();
            assert!(reason.contains(key), "{reason}");
            node.flannel.remove(key);
            let reason = vtep(&node, &settings(Backend::Vxlan), Family::V4).unwrap_err().to_string();
            assert!(reason.contains(key), "{reason}");
        }
    }

    #[test]
    fn n5_a_peer_of_host_gw_needs_no_mac_and_one_of_another_backend_is_refused() {
        let mut node =
            node(&[("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", "192.0.2.7")]);
        let read = |node: &Node| vtep(node, &settings(Backend::HostGw), Family::V4);
        assert_eq!(read(&node), Ok((None, "192.0.2.7".parse().unwrap())));
        node.flannel.insert("backend-type".to_owned(), "vxlan".to_owned());
        let text = read(&node).unwrap_err().to_string();
        assert!(text.contains("`vxlan`, not `host-gw`"), "{text}");
    }

    const MAC: Mac = Mac::new([2; 6]);

    fn settings(backend: Backend) -> Settings {
        Settings { backend, ..Settings::new("a", Vec::new(), Peering::Annotated) }
    }

    fn node(annotations: &[(&str, &str)]) -> Node {
        let flannel =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Node { flannel, ..Node::default() }
    }
}
