//! Answers as JSON, in the form of the caller's version.

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::Spoken;
use crate::error::Error;
use crate::outcome::{Ip, Outcome};
use crate::version::Version;

/// The specification's error structure.
pub(crate) fn error(version: Version, error: &Error) -> String {
    let mut reply = json!({ "cniVersion": version.as_str(), "code": error.code(), "msg": error.to_string() });
    let details = error.details();
    if !details.is_empty() {
        reply["details"] = Value::String(details);
    }
    print(&reply)
}

/// What VERSION answers; its input may be empty.
pub(crate) fn versions(input: &[u8]) -> Result<String, Error> {
    let spoken = if input.is_empty() { Spoken::default() } else { Spoken::read(input)? };
    let spoken = spoken.cni_version.unwrap_or_else(|| Version::LATEST.to_string());
    let supported = Version::ALL.map(Version::as_str);
    Ok(print(&json!({ "cniVersion": spoken, "supportedVersions": supported })))
}

/// An ADD's result: before 1.0.0 each address says its family, and only 1.1.0 has the interfaces' MTU.
pub(crate) fn result(version: Version, outcome: &Outcome) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Reply<'a> {
        cni_version: &'static str,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }
    let mut outcome = outcome.clone();
    for interface in outcome.interfaces.iter_mut().filter(|_| version < Version::V1_1_0) {
        (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
    }
    for ip in &mut outcome.ips {
        ip.version = family(ip).filter(|_| version < Version::V1_0_0);
    }
    print(&Reply { cni_version: version.as_str(), outcome: &outcome })
}

fn family(ip: &Ip) -> Option<String> {
    Some(if ip.address.addr().is_ipv4() { "4" } else { "6" }.to_owned())
}

fn print(reply: &impl Serialize) -> String {
    serde_json::to_string_pretty(reply).map(|text| text + "\n").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Interface, Route};

    fn outcome() -> Outcome {
        let interface = Interface { name: "eth0".into(), mtu: Some(1450), ..Interface::default() };
        let ip = |address: &str| Ip {
            version: None,
            address: address.parse().unwrap(),
            gateway: None,
            interface: Some(0),
        };
        let route = Route { dst: "0.0.0.0/0".parse().unwrap(), gw: None, rest: serde_json::Map::new() };
        Outcome {
            interfaces: vec![interface],
            ips: vec![ip("10.0.0.2/32"), ip("fd::2/128")],
            routes: vec![route],
            dns: None,
        }
    }

    fn reply(version: Version) -> Value {
        serde_json::from_str(&result(version, &outcome())).unwrap()
    }

    #[test]
    fn n11_results_have_the_form_of_each_version() {
        for version in Version::ALL {
            let reply = reply(version);
            assert_eq!(reply["cniVersion"], version.as_str());
            let families = [&reply["ips"][0]["version"], &reply["ips"][1]["version"]];
            match version < Version::V1_0_0 {
                true => assert_eq!(families, ["4", "6"]),
                false => assert_eq!(families, [&Value::Null, &Value::Null]),
            }
            assert_eq!(reply["interfaces"][0]["mtu"].is_null(), version < Version::V1_1_0, "{version}");
            let read: Outcome = serde_json::from_value(reply).unwrap();
            assert_eq!(read.ips[1].address, outcome().ips[1].address, "a result is read back");
        }
    }
}
