//! `PODWAY_*` variables and `--set` flags: single fields put over the configuration file.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::config::read_yaml;

/// Every field that can be set singly; its variable is `PODWAY_` and the path in capitals, parts joined by `_`.
const FIELDS: &[&str] = &[
    "nodeName",
    "dataplane",
    "source.kube.kubeconfig",
    "source.kube.server",
    "source.kube.tokenFile",
    "source.kube.caFile",
    "source.kube.insecure",
    "source.directory.path",
    "network.enabled",
    "network.nodes",
    "network.etcd.endpoints",
    "network.etcd.prefix",
    "network.etcd.keyFile",
    "network.etcd.certFile",
    "network.etcd.caFile",
    "network.etcd.username",
    "network.etcd.password",
    "network.etcd.renewMargin",
    "network.netConf",
    "network.podNetworks",
    "network.assign.mode",
    "network.assign.namespace",
    "network.assign.subnetLen",
    "network.assign.subnetMin",
    "network.assign.subnetMax",
    "network.assign.ipv6SubnetLen",
    "network.assign.ipv6SubnetMin",
    "network.assign.ipv6SubnetMax",
    "network.backend",
    "network.directRouting",
    "network.interface",
    "network.interfaceRegex",
    "network.interfaceCanReach",
    "network.publicIp",
    "network.publicIPv6",
    "network.vni",
    "network.port",
    "network.mtu",
    "network.learning",
    "network.gbp",
    "network.checksumOffload",
    "network.masquerade",
    "network.masqueradeRandom",
    "network.nonMasqueradeCIDRs",
    "network.forwardAccept",
    "network.blackholeRoute",
    "network.nodeCondition",
    "network.annotationPrefix",
    "network.subnetFile",
    "network.cni.binDirectory",
    "network.cni.confDirectory",
    "services.enabled",
    "services.masqueradeBit",
    "ebpf.cgroup",
    "ebpf.pinDirectory",
    "status.healthAddress",
    "status.metricsAddress",
    "status.socket",
    "machineIdFile",
    "log.level",
    "log.format",
];

/// Fields whose value is text even when it looks like something else.
const TEXT: &[&str] = &[
    "nodeName",
    "source.kube.kubeconfig",
    "source.kube.server",
    "source.kube.tokenFile",
    "source.kube.caFile",
    "source.directory.path",
    "network.nodes",
    "network.etcd.prefix",
    "network.etcd.keyFile",
    "network.etcd.certFile",
    "network.etcd.caFile",
    "network.etcd.username",
    "network.etcd.password",
    "network.netConf",
    "network.assign.namespace",
    "network.interfaceCanReach",
    "network.annotationPrefix",
    "network.subnetFile",
    "network.cni.binDirectory",
    "network.cni.confDirectory",
    "ebpf.cgroup",
    "ebpf.pinDirectory",
    "status.healthAddress",
    "status.metricsAddress",
    "status.socket",
    "machineIdFile",
    "log.level",
];

/// `PODWAY_*` variables that are not fields.
const NOT_FIELDS: &[&str] = &["PODWAY_CONFIG"];

/// One field with its new value.
#[derive(Debug, Clone)]
pub(crate) struct Override {
    /// Where it was set, for errors.
    pub origin: String,
    path: &'static str,
    value: Value,
}

impl Override {
    /// Every setting in the environment: `NODE_NAME`, as DaemonSets set it from spec.nodeName, then each `PODWAY_*` in
    /// the order of names.
    pub(crate) fn from_environment() -> Result<Vec<Self>> {
        let node_name = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
        let node_name = node_name.map(|name| Self::new("variable NODE_NAME".to_owned(), "nodeName", &name));
        let mut variables: Vec<(String, String)> =
            std::env::vars().filter(|(name, _)| name.starts_with("PODWAY_")).collect();
        variables.sort();
        let settings =
            variables.iter().filter_map(|(name, value)| Self::from_variable(name, value).transpose());
        node_name.into_iter().chain(settings).collect()
    }

    /// Reads `PODWAY_NETWORK_VNI` and the like; `None` for a variable with another purpose.
    pub(crate) fn from_variable(name: &str, value: &str) -> Result<Option<Self>> {
        if NOT_FIELDS.contains(&name) {
            return Ok(None);
        }
        let Some(path) = FIELDS.iter().find(|path| variable(path) == name) else {
            bail!("{name}: there is no such setting; `podway config` lists them");
        };
        Self::new(format!("variable {name}"), path, value).map(Some)
    }

    /// Reads `network.vni=7`.
    pub(crate) fn from_flag(flag: &str) -> Result<Self> {
        let (path, value) =
            flag.split_once('=').with_context(|| format!("--set {flag}: must be FIELD=VALUE"))?;
        let Some(path) = FIELDS.iter().find(|known| **known == path) else {
            bail!("--set {flag}: there is no field {path}; `podway config` lists them");
        };
        Self::new(format!("--set {flag}"), path, value)
    }

    /// A field of the configuration, with a value that needs no reading.
    pub(crate) fn of(origin: String, path: &'static str, value: Value) -> Self {
        Self { origin, path, value }
    }

    fn new(origin: String, path: &'static str, text: &str) -> Result<Self> {
        let value = match TEXT.contains(&path) {
            true => Value::String(text.to_owned()),
            false => read_yaml(text).with_context(|| origin.clone())?,
        };
        Ok(Self { origin, path, value })
    }
}

/// Puts one field over `tree`. A field of one source takes the place of another source.
pub(crate) fn apply(tree: &mut Value, change: &Override) -> Result<()> {
    let mut parts: Vec<&str> = change.path.split('.').collect();
    let Some(last) = parts.pop() else { return Ok(()) };
    let mut place = tree;
    for part in parts {
        let fields = place.as_object_mut().with_context(|| format!("{}: not a mapping", change.path))?;
        if matches!(part, "kube" | "directory") {
            fields.retain(|name, _| name == part);
        }
        let next = fields.entry(part).or_insert_with(|| Value::Object(Default::default()));
        if next.is_null() {
            *next = Value::Object(Default::default());
        }
        place = next;
    }
    let fields = place.as_object_mut().with_context(|| format!("{}: not a mapping", change.path))?;
    fields.insert(last.to_owned(), change.value.clone());
    Ok(())
}

/// A word begins at a capital after a small letter; `IPv6` is one word.
fn variable(path: &str) -> String {
    let mut name = String::from("PODWAY_");
    let mut in_word = false;
    for letter in path.replace("IPv6", "Ipv6").chars() {
        if letter.is_ascii_uppercase() && in_word {
            name.push('_');
        }
        in_word = letter.is_ascii_lowercase() || letter.is_ascii_digit();
        name.push(if letter == '.' { '_' } else { letter.to_ascii_uppercase() });
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables_follow_the_path() {
        assert_eq!(variable("source.kube.tokenFile"), "PODWAY_SOURCE_KUBE_TOKEN_FILE");
        assert_eq!(variable("network.publicIPv6"), "PODWAY_NETWORK_PUBLIC_IPV6");
        assert_eq!(variable("network.nonMasqueradeCIDRs"), "PODWAY_NETWORK_NON_MASQUERADE_CIDRS");
        assert!(Override::from_variable("PODWAY_NETWORK_VNII", "1").is_err());
        assert!(Override::from_variable("PODWAY_CONFIG", "/etc/x").unwrap().is_none());
    }

    #[test]
    fn every_field_of_the_documented_file_can_be_set_singly_and_no_other() {
        let documented: Value = serde_saphyr::from_str(crate::config::DOCUMENTED).unwrap();
        let mut documented = leaves("", &documented);
        documented.extend(["source.directory.path".to_owned()]);
        let mut fields: Vec<_> = FIELDS.iter().map(|path| (*path).to_owned()).collect();
        documented.sort();
        fields.sort();
        assert_eq!(documented, fields);
    }

    fn leaves(path: &str, value: &Value) -> Vec<String> {
        match value {
            Value::Object(fields) => fields
                .iter()
                .flat_map(|(name, value)| {
                    leaves(&[path, name].join(if path.is_empty() { "" } else { "." }), value)
                })
                .collect(),
            _ => vec![path.to_owned()],
        }
    }
}
