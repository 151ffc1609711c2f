//! The network configuration on standard input.

use std::net::IpAddr;
use std::path::PathBuf;

use podway_overlay::Mtu;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::error::Error;
use crate::outcome::{Dns, Outcome};
use crate::version::Version;

/// Where the daemon writes by default, as flannel does.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIRECTORY: &str = "/var/lib/cni/podway";
/// host-local's default.
const HOST_LOCAL_DIRECTORY: &str = "/var/lib/cni/networks";

/// A network configuration whose values are good.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// The file with the node's subnet.
    pub(crate) subnet_file: PathBuf,
    /// Where reservations are kept.
    pub(crate) data_directory: PathBuf,
    /// Where host-local keeps its reservations: those of the network that podway follows on a node.
    pub(crate) host_local_directory: PathBuf,
    /// Instead of the one in the subnet file.
    pub(crate) mtu: Option<Mtu>,
    pub(crate) dns: Option<Dns>,
    /// The result of the plugins before this one, or of the ADD that CHECK is about.
    pub(crate) previous: Option<Outcome>,
    /// Addresses that the pod is to have.
    pub(crate) wanted: Vec<IpAddr>,
    /// GC: what stays. Without a list nothing does: libcni leaves it out when it has removed all attachments.
    pub(crate) valid: Vec<Attachment>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    name: Option<String>,
    subnet_file: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    host_local_dir: Option<PathBuf>,
    mtu: Option<u32>,
    dns: Option<Dns>,
    prev_result: Option<Outcome>,
    runtime_config: RuntimeConfig,
    args: Args,
    ipam: Option<Value>,
    ip_masq: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
    /// Drafts of the specification called it so; libcni sends both.
    #[serde(rename = "cni.dev/attachments")]
    valid_of_drafts: Option<Vec<Attachment>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: RuntimeConfig,
}

/// Only the version: what else there is depends on it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spoken {
    pub(crate) cni_version: Option<String>,
}

impl Spoken {
    pub(crate) fn read(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(undecodable)
    }

    /// A configuration without a version is one of 0.1.0.
    pub(crate) fn version(self) -> Result<Version, Error> {
        let wanted = self.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
        Version::parse(&wanted).ok_or(Error::IncompatibleVersion { wanted })
    }
}

impl Network {
    /// Reads a configuration; `requested` are the addresses that `CNI_ARGS` asks for.
    pub(crate) fn read(text: &[u8], requested: Vec<String>) -> Result<Self, Error> {
        let wire: Wire = serde_json::from_slice(text).map_err(undecodable)?;
        wire.refuse_unsupported()?;
        let name = wire.name.unwrap_or_default();
        if !is_identifier(&name) {
            return Err(Error::Config(format!(
                "name {name:?} is not letters, digits, and . _ - after the first"
            )));
        }
        let wanted = [requested, wire.runtime_config.ips, wire.args.cni.ips];
        Ok(Self {
            subnet_file: wire.subnet_file.unwrap_or_else(|| SUBNET_FILE.into()),
            data_directory: wire.data_dir.unwrap_or_else(|| DATA_DIRECTORY.into()),
            host_local_directory: wire.host_local_dir.unwrap_or_else(|| HOST_LOCAL_DIRECTORY.into()),
            mtu: mtu(wire.mtu)?,
            dns: wire.dns.filter(|dns| !dns.is_empty()),
            previous: wire.prev_result,
            wanted: wanted.into_iter().flatten().map(|text| address(&text)).collect::<Result<_, _>>()?,
            valid: wire.valid.or(wire.valid_of_drafts).unwrap_or_default(),
            name,
        })
    }
}

impl Wire {
    /// What other plugins take and what would be done differently here, silently, if it were passed over.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        let masquerade = self.ip_masq.as_ref().filter(|value| **value != Value::Bool(false));
        for (field, value) in [("ipam", self.ipam.as_ref()), ("ipMasq", masquerade)] {
            let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
            if let Some(value) = value.filter(|value| !empty(value)) {
                return Err(Error::UnsupportedField { field, value: value.to_string() });
            }
        }
        Ok(())
    }
}

/// What the specification allows in names of networks and containers.
pub(crate) fn is_identifier(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(rest)
}

/// 0 is what plugins in Go take for none.
fn mtu(mtu: Option<u32>) -> Result<Option<Mtu>, Error> {
    let given = mtu.filter(|mtu| *mtu != 0);
    given.map(|mtu| Mtu::new(mtu).map_err(|error| Error::Config(format!("mtu: {error}")))).transpose()
}

/// With or without a prefix length.
fn address(text: &str) -> Result<IpAddr, Error> {
    let address = text.split('/').next().unwrap_or_default();
    address.parse().map_err(|_| Error::Config(format!("the requested address {text:?} is none")))
}

#[allow(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn undecodable(error: serde_json::Error) -> Error {
    Error::Decode { what: "the network configuration".to_owned(), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Network, Error> {
        Network::read(text.as_bytes(), Vec::new())
    }

    #[test]
    fn n11_defaults() {
        let network =
            read(r#"{"cniVersion":"1.0.0","name":"podway","type":"podway","mtu":0,"ipam":{}}"#).unwrap();
        assert_eq!(network.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(network.data_directory, PathBuf::from("/var/lib/cni/podway"));
        assert_eq!((network.mtu, network.previous, network.wanted), (None, None, vec![]));
    }

    #[test]
    fn n11_requested_addresses_come_from_three_places() {
        let text = r#"{"name":"n","args":{"cni":{"ips":["10.0.0.9/24"]}},"runtimeConfig":{"ips":["fd::9"]}}"#;
        let network = Network::read(text.as_bytes(), vec!["10.0.0.8".into()]).unwrap();
        let wanted: Vec<String> = network.wanted.iter().map(IpAddr::to_string).collect();
        assert_eq!(wanted, ["10.0.0.8", "fd::9", "10.0.0.9"]);
        assert!(Network::read(text.as_bytes(), vec!["10.0.0".into()]).is_err());
    }

    #[test]
    fn n11_gc_takes_the_drafts_key_and_no_list() {
        let both = r#"{"name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],
                       "cni.dev/attachments":[{"containerID":"a","ifname":"eth0"}]}"#;
        assert_eq!(read(both).unwrap().valid, [Attachment { container: "a".into(), ifname: "eth0".into() }]);
        assert_eq!(read(r#"{"name":"n","cni.dev/attachments":null}"#).unwrap().valid, []);
    }

    proptest! {
        #[test]
        fn any_input_is_read_or_refused(text in "\\PC*") {
            let _ = Spoken::read(text.as_bytes());
            let _ = read(&text);
        }

        #[test]
        fn any_value_in_any_field_is_read_or_refused(
            field in prop::sample::select(vec![
                "name", "subnetFile", "dataDir", "mtu", "dns", "prevResult", "runtimeConfig", "args", "ipam", "ipMasq",
                "cni.dev/valid-attachments",
            ]),
            value in prop::sample::select(vec![
                "null", "0", "-1", "1e999", "\"\"", "\"x\"", "[]", "{}", "[{}]", "{\"ips\":[{}]}", "{\"cni\":7}", "true",
            ]),
        ) {
            let _ = read(&format!("{{\"name\":\"n\",\"{field}\":{value}}}"));
        }
    }
}
