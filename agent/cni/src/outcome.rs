//! What an ADD results in.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Interfaces, addresses and routes of a pod: read from `prevResult` in any version's form, written by
/// [`reply::result`](crate::reply::result) in the caller's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outcome {
    #[serde(deserialize_with = "or_none")]
    pub(crate) interfaces: Vec<Interface>,
    #[serde(deserialize_with = "or_none")]
    pub(crate) ips: Vec<Ip>,
    #[serde(deserialize_with = "or_none")]
    pub(crate) routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<Dns>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
    /// Since version 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// The network namespace's path; none on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "socketPath")]
    pub(crate) socket_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "pciID")]
    pub(crate) pci_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ip {
    /// "4" or "6"; before version 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    pub(crate) address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// What else another plugin said of its route.
    #[serde(flatten)]
    pub(crate) rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Outcome {
    /// This result after one of plugins that ran before: theirs come first, and theirs is the DNS if none is ours.
    pub(crate) fn after(self, previous: Option<Self>) -> Self {
        let Some(mut all) = previous else { return self };
        let offset = all.interfaces.len();
        let moved = |ip: Ip| Ip { interface: ip.interface.map(|index| index + offset), ..ip };
        all.interfaces.extend(self.interfaces);
        all.ips.extend(self.ips.into_iter().map(moved));
        all.routes.extend(self.routes);
        all.dns = self.dns.or(all.dns);
        all
    }
}

/// Plugins in Go write `null` for an empty list.
fn or_none<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_a_previous_result_is_kept_and_ours_follows() {
        let previous = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"lo"}],"ips":[{"address":"127.0.0.1/8","interface":0}],
                           "routes":null,"dns":{"search":["a"]}}"#;
        let ours = r#"{"interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/32","interface":0}]}"#;
        let ours: Outcome = serde_json::from_str(ours).unwrap();
        let all = ours.after(Some(serde_json::from_str(previous).unwrap()));
        let interfaces: Vec<&str> = all.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(interfaces, ["lo", "eth0"]);
        assert_eq!(all.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [Some(0), Some(1)]);
        assert_eq!(all.dns.unwrap().search, ["a"]);
    }
}
