//! What flannel's flags mean in podway's configuration.

use anyhow::{Result, bail};
use serde_json::Value;

use super::Note;
use super::args::Flags;
use super::flags::FLAGS;
use crate::overrides::Override;

/// What flannel takes for an hour, and less than the lease lasts (flannel, main.go).
const RENEW_MARGINS: std::ops::Range<i64> = 1..24 * 60;

/// Flags that only count with subnets from Nodes, and those that only count with subnets from etcd.
const OF_KUBE: [&str; 5] = [
    "kube-annotation-prefix",
    "kube-api-url",
    "kubeconfig-file",
    "net-config-path",
    "set-node-network-unavailable",
];
const OF_ETCD: [&str; 8] = [
    "etcd-cafile",
    "etcd-certfile",
    "etcd-endpoints",
    "etcd-keyfile",
    "etcd-password",
    "etcd-prefix",
    "etcd-username",
    "subnet-lease-renew-margin",
];

/// The configuration's fields that flannel's flags decide. The network half alone runs, with the stock CNI plugin.
///
/// # Errors
/// A value that flannel would end for. What podway's own configuration refuses is refused when the fields are read.
pub(crate) fn overrides(flags: &Flags) -> Result<Vec<Override>> {
    let mut fields = Fields { flags, overrides: Vec::new() };
    fields.put("services.enabled", "flanneld", false);
    fields.put("status.metricsAddress", "flanneld", "");
    fields.put("network.cni.binDirectory", "flanneld", "");
    fields.put("network.cni.confDirectory", "flanneld", "");
    fields.put("status.healthAddress", "healthz-port", health_address(flags)?);
    fields.put("log.level", "v", if flags.number("v") < 2 { "info" } else { "debug" });
    fields.interface();
    fields.put("network.masquerade", "ip-masq", flags.switch("ip-masq"));
    let random = !flags.switch("ip-masq-fully-random-disable");
    fields.put("network.masqueradeRandom", "ip-masq-fully-random-disable", random);
    fields.put("network.forwardAccept", "iptables-forward-rules", flags.switch("iptables-forward-rules"));
    fields.put("network.blackholeRoute", "ip-blackhole-route", flags.switch("ip-blackhole-route"));
    fields.text("network.subnetFile", "subnet-file");
    let margin = flags.number("subnet-lease-renew-margin");
    if !RENEW_MARGINS.contains(&margin) {
        bail!("{}: {margin} is not from 1 to 1439", fields.origin("subnet-lease-renew-margin"));
    }
    match flags.switch("kube-subnet-mgr") {
        true => fields.kube()?,
        false => fields.etcd(margin),
    }
    Ok(fields.overrides)
}

/// Which of the flags that were given have no effect, and why.
pub(crate) fn notes(flags: &Flags) -> Vec<Note> {
    let (kept, others) = match flags.switch("kube-subnet-mgr") {
        true => ("kube-subnet-mgr takes subnets from Nodes", &OF_ETCD[..]),
        false => ("without kube-subnet-mgr subnets come from etcd", &OF_KUBE[..]),
    };
    let idle = FLAGS.iter().filter_map(|flag| {
        let origin = flags.origin(flag.name)?;
        let why = flag.idle.or_else(|| others.contains(&flag.name).then_some(kept))?;
        Some(Note::Idle(format!("{origin} has no effect: {why}")))
    });
    let stray = flags.stray.as_ref().map(|word| {
        Note::Wrong(format!("{word:?} is no flag: it and what follows it has no effect (write --FLAG=VALUE)"))
    });
    idle.chain(stray).collect()
}

struct Fields<'a> {
    flags: &'a Flags,
    overrides: Vec<Override>,
}

impl Fields<'_> {
    fn put(&mut self, field: &'static str, flag: &str, value: impl Into<Value>) {
        let origin = self.origin(flag);
        self.overrides.push(Override::of(origin, field, value.into()));
    }

    fn text(&mut self, field: &'static str, flag: &str) {
        self.put(field, flag, self.flags.text(flag));
    }

    fn origin(&self, flag: &str) -> String {
        self.flags.origin(flag).unwrap_or(flag).to_owned()
    }

    /// An empty `--public-ip` is none.
    fn interface(&mut self) {
        self.put("network.interface", "iface", self.flags.texts("iface"));
        self.put("network.interfaceRegex", "iface-regex", self.flags.texts("iface-regex"));
        self.text("network.interfaceCanReach", "iface-can-reach");
        for (field, flag) in [("network.publicIp", "public-ip"), ("network.publicIPv6", "public-ipv6")] {
            if !self.flags.text(flag).is_empty() {
                self.text(field, flag);
            }
        }
    }

    /// Subnets from the Nodes: only those that others assign, with the rights that flannel's manifest gives.
    fn kube(&mut self) -> Result<()> {
        for (field, flag) in
            [("source.kube.kubeconfig", "kubeconfig-file"), ("source.kube.server", "kube-api-url")]
        {
            if !self.flags.text(flag).is_empty() {
                self.text(field, flag);
            }
        }
        self.put("network.assign.mode", "kube-subnet-mgr", "never");
        self.text("network.netConf", "net-config-path");
        let prefix = annotation_prefix(self.flags.text("kube-annotation-prefix"));
        let Some(prefix) = prefix else {
            let origin = self.origin("kube-annotation-prefix");
            bail!("{origin}: must be as in example.com/ or example.com/name, in small letters");
        };
        self.put("network.annotationPrefix", "kube-annotation-prefix", prefix);
        let condition = self.flags.switch("set-node-network-unavailable");
        self.put("network.nodeCondition", "set-node-network-unavailable", condition);
        Ok(())
    }

    fn etcd(&mut self, margin: i64) {
        let endpoints: Vec<&str> = self.flags.text("etcd-endpoints").split(',').collect();
        self.put("network.etcd.endpoints", "etcd-endpoints", endpoints);
        self.put("network.etcd.renewMargin", "subnet-lease-renew-margin", margin);
        for (field, flag) in [
            ("network.etcd.prefix", "etcd-prefix"),
            ("network.etcd.keyFile", "etcd-keyfile"),
            ("network.etcd.certFile", "etcd-certfile"),
            ("network.etcd.caFile", "etcd-cafile"),
            ("network.etcd.username", "etcd-username"),
            ("network.etcd.password", "etcd-password"),
        ] {
            self.text(field, flag);
        }
    }
}

/// Empty, unless there is a port.
fn health_address(flags: &Flags) -> Result<String> {
    let (address, port) = (flags.text("healthz-ip"), flags.number("healthz-port"));
    if port > i64::from(u16::MAX) {
        bail!("{}: {port} is no port", flags.origin("healthz-port").unwrap_or("healthz-port"));
    }
    Ok(match port {
        ..=0 => String::new(),
        port if address.contains(':') => format!("[{address}]:{port}"),
        port => format!("{address}:{port}"),
    })
}

/// What the annotations begin with (flannel, pkg/subnet/kube/annotations.go): a domain with a dot, a slash, and then
/// nothing or a word and a dash.
fn annotation_prefix(text: &str) -> Option<String> {
    let (domain, word) = text.split_once('/').unwrap_or((text, ""));
    let of_words =
        |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    let labels: Vec<&str> = domain.split('.').collect();
    let is_domain = labels.len() > 1 && labels.iter().all(|label| !label.is_empty() && of_words(label));
    let dash = if word.is_empty() || word.ends_with('-') { "" } else { "-" };
    (is_domain && of_words(word)).then(|| format!("{domain}/{word}{dash}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n5_the_annotation_prefix_ends_as_flannels_does() {
        for (given, prefix) in [
            ("flannel.alpha.coreos.com", Some("flannel.alpha.coreos.com/")),
            ("flannel.alpha.coreos.com/", Some("flannel.alpha.coreos.com/")),
            ("example.com/blue", Some("example.com/blue-")),
            ("example.com/blue-", Some("example.com/blue-")),
            ("example.com/a/b", None),
            ("example", None),
            ("Example.com", None),
            ("example..com", None),
            ("", None),
        ] {
            assert_eq!(annotation_prefix(given).as_deref(), prefix, "{given}");
        }
    }
}
