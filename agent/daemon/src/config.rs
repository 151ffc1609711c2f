//! The daemon's configuration: one YAML file, `PODWAY_*` variables over it, flags over those.
//!
//! The documented file with every field and its default is `manifests/config.yaml`; `podway config` prints it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use podway_cluster::{EtcdConfig, SourceConfig};
pub(crate) use podway_overlay::AssignMode;
use serde::Deserialize;
use serde_json::Value;

use crate::net_conf;
use crate::overrides::{self, Override};

/// The documented configuration file, every field at its default.
pub(crate) const DOCUMENTED: &str = include_str!("../../../manifests/config.yaml");

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// This node's name in the cluster; empty = the host name, lower-cased.
    pub node_name: String,
    /// What translates Service addresses.
    pub dataplane: Dataplane,
    /// Where the cluster state comes from.
    pub source: SourceConfig,
    /// The pod network.
    pub network: NetworkConfig,
    /// The Services.
    pub services: ServicesConfig,
    /// The eBPF dataplane.
    pub ebpf: EbpfConfig,
    /// Health, metrics and the commands that ask the daemon.
    pub status: StatusConfig,
    /// This machine, to tell it from another one with the same node name: a file that no other machine has.
    pub machine_id_file: PathBuf,
    /// The log.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            dataplane: Dataplane::default(),
            source: SourceConfig::default(),
            network: NetworkConfig::default(),
            services: ServicesConfig::default(),
            ebpf: EbpfConfig::default(),
            status: StatusConfig::default(),
            machine_id_file: "/etc/machine-id".into(),
            log: LogConfig::default(),
        }
    }
}

/// Who translates Service addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dataplane {
    /// nftables, packet by packet.
    #[default]
    Nftables,
    /// eBPF, at connect(), with nftables for whatever does not pass there.
    Ebpf,
}

/// `network`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NetworkConfig {
    /// Whether podway runs the pod network.
    pub enabled: bool,
    /// A file or folder of Nodes in place of the source's (store `static`); empty = the source's.
    pub nodes: PathBuf,
    /// flannel's etcd in place of the source's Nodes (store `etcd`), if it has endpoints.
    pub etcd: EtcdConfig,
    /// flannel's net-conf.json, whose content goes over `pod_networks`, `backend` and `assign`; empty = none.
    pub net_conf: PathBuf,
    /// The ranges that hold all pods of the cluster, at most one a family; a pod is whoever has an address in them.
    #[serde(deserialize_with = "one_or_more")]
    pub pod_networks: Vec<IpNet>,
    /// How nodes get their subnets where nobody else gives them.
    pub assign: AssignConfig,
    /// How packets reach other nodes.
    pub backend: Backend,
    /// Peers that need no router in between are reached without VXLAN.
    pub direct_routing: bool,
    /// Names or addresses of the interface that other nodes are reached by; the first that is there counts. Empty =
    /// the one with the Node's address, else that of the default route.
    #[serde(deserialize_with = "one_or_more")]
    pub interface: Vec<String>,
    /// Patterns for its addresses or, if none matches, its name.
    #[serde(deserialize_with = "one_or_more")]
    pub interface_regex: Vec<String>,
    /// An address: the interface is the one that leads there.
    pub interface_can_reach: String,
    /// The IPv4 address that peers are told, where it is not that of the interface; alone it selects the interface.
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    #[serde(rename = "publicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// The VXLAN network identifier, 1 to 16777215; a link's name has it, which leaves 9999 with IPv6 pods.
    pub vni: u32,
    /// The VXLAN UDP port.
    pub port: u16,
    /// The MTU between the nodes; 0 = the interface's.
    pub mtu: u32,
    /// Whether VXLAN links learn where MACs are from the packets they receive; flannel's option.
    pub learning: bool,
    /// Whether VXLAN packets carry the Group Based Policy; flannel's option.
    pub gbp: bool,
    /// Who computes the checksums of encapsulated packets.
    pub checksum_offload: ChecksumOffload,
    /// Whether pods get the node's address towards everything outside the pod network.
    pub masquerade: bool,
    /// Whether the ports of masqueraded connections are chosen at random.
    pub masquerade_random: bool,
    /// Destinations outside the pod network for which pods keep their address.
    #[serde(rename = "nonMasqueradeCIDRs", deserialize_with = "one_or_more")]
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// Whether pod traffic is let through other programs' forward chains that drop by policy.
    pub forward_accept: bool,
    /// Whether packets to unused addresses of the own subnet end here.
    pub blackhole_route: bool,
    /// Whether the Node's condition NetworkUnavailable is written.
    pub node_condition: bool,
    /// What the Node annotations begin with.
    pub annotation_prefix: String,
    /// Where flannel's CNI plugin looks for this node's subnet; empty = not written.
    pub subnet_file: PathBuf,
    /// The CNI plugin's installation.
    pub cni: CniConfig,
}

/// `network.assign`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AssignConfig {
    /// Whether podway gives this node subnets that the cluster does not (contract N2).
    pub mode: AssignMode,
    /// The namespace of the Leases that subnets are claimed by; one of their own, as every node may delete what is there.
    pub namespace: String,
    /// Length of a node's IPv4 subnet; 0 = 24, or two more than the range's where that is too long.
    pub subnet_len: u8,
    /// The first and the last IPv4 subnet to hand out, by their first address; by default the second and the last.
    pub subnet_min: Option<Ipv4Addr>,
    /// See `subnet_min`.
    pub subnet_max: Option<Ipv4Addr>,
    /// The same for IPv6; 0 = 64.
    #[serde(rename = "ipv6SubnetLen")]
    pub ipv6_subnet_len: u8,
    /// See `subnet_min`.
    #[serde(rename = "ipv6SubnetMin")]
    pub ipv6_subnet_min: Option<Ipv6Addr>,
    /// See `subnet_min`.
    #[serde(rename = "ipv6SubnetMax")]
    pub ipv6_subnet_max: Option<Ipv6Addr>,
}

impl Default for AssignConfig {
    fn default() -> Self {
        Self {
            mode: AssignMode::Auto,
            namespace: "podway-subnets".to_owned(),
            subnet_len: 0,
            subnet_min: None,
            subnet_max: None,
            ipv6_subnet_len: 0,
            ipv6_subnet_min: None,
            ipv6_subnet_max: None,
        }
    }
}

/// `network.backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// In VXLAN packets.
    #[default]
    Vxlan,
    /// As they are, by routes; all nodes on one link.
    HostGw,
}

/// `network.checksumOffload` (contract N16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ChecksumOffload {
    /// The network card, unless it is known to break them.
    #[default]
    Auto,
    /// The network card.
    On,
    /// The kernel.
    Off,
}

impl<'de> Deserialize<'de> for ChecksumOffload {
    /// `on` and `off` without quotes are booleans to YAML 1.1.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(true) => Ok(Self::On),
            Value::Bool(false) => Ok(Self::Off),
            Value::String(word) if word == "on" => Ok(Self::On),
            Value::String(word) if word == "off" => Ok(Self::Off),
            Value::String(word) if word == "auto" => Ok(Self::Auto),
            other => Err(serde::de::Error::custom(format!("{other} is not auto, on or off"))),
        }
    }
}

/// `network.cni`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct CniConfig {
    /// Where the plugin is installed, such as /opt/cni/bin; empty = not installed.
    pub bin_directory: PathBuf,
    /// Where the network configuration is written once the network works, such as /etc/cni/net.d; empty = not written.
    pub conf_directory: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            nodes: PathBuf::new(),
            etcd: EtcdConfig::default(),
            net_conf: PathBuf::new(),
            pod_networks: vec![IpNet::new_assert(Ipv4Addr::new(10, 244, 0, 0).into(), 16)],
            assign: AssignConfig::default(),
            backend: Backend::Vxlan,
            direct_routing: false,
            interface: Vec::new(),
            interface_regex: Vec::new(),
            interface_can_reach: String::new(),
            public_ip: None,
            public_ipv6: None,
            vni: 1,
            port: 8472,
            mtu: 0,
            learning: false,
            gbp: false,
            checksum_offload: ChecksumOffload::Auto,
            masquerade: true,
            masquerade_random: true,
            non_masquerade_cidrs: Vec::new(),
            forward_accept: true,
            blackhole_route: false,
            node_condition: true,
            annotation_prefix: "flannel.alpha.coreos.com/".to_owned(),
            subnet_file: "/run/flannel/subnet.env".into(),
            cni: CniConfig::default(),
        }
    }
}

/// `services`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ServicesConfig {
    /// Whether podway runs the Services.
    pub enabled: bool,
    /// The bit of the packet mark that means "masquerade", 0 to 31; kube-proxy's default.
    pub masquerade_bit: u8,
}

impl Default for ServicesConfig {
    fn default() -> Self {
        Self { enabled: true, masquerade_bit: 14 }
    }
}

impl ServicesConfig {
    /// The mark with only that bit set.
    pub(crate) fn mark(&self) -> u32 {
        1 << self.masquerade_bit
    }
}

/// `ebpf`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EbpfConfig {
    /// The cgroup (v2) whose sockets are served; empty = the root of the mounted hierarchy.
    pub cgroup: PathBuf,
    /// Where programs and maps outlive the daemon, on a bpffs.
    pub pin_directory: PathBuf,
}

impl Default for EbpfConfig {
    fn default() -> Self {
        Self { cgroup: PathBuf::new(), pin_directory: "/sys/fs/bpf/podway".into() }
    }
}

/// `status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct StatusConfig {
    /// Where `/healthz`, `/livez` and `/readyz` are served; empty = nowhere. A missing port is 10256.
    pub health_address: String,
    /// Where `/metrics` is served; empty = nowhere. A missing port is 10249.
    pub metrics_address: String,
    /// The socket by which commands such as `podway nodes` ask the daemon; empty = none.
    pub socket: PathBuf,
}

impl Default for StatusConfig {
    fn default() -> Self {
        Self {
            health_address: "0.0.0.0:10256".to_owned(),
            metrics_address: "127.0.0.1:10249".to_owned(),
            socket: "/run/podway/podway.sock".into(),
        }
    }
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,podway_netlink=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads `file` (none: all defaults) and puts `overrides` over it, the last one last. An error names the file or
    /// variable and the field.
    pub(crate) fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Self> {
        let mut config = Self::written(file, overrides)?;
        config.read_net_conf()?;
        Ok(config)
    }

    /// Puts the content of `network.netConf` over the fields that say the same.
    pub(crate) fn read_net_conf(&mut self) -> Result<()> {
        net_conf::read(&mut self.network)?;
        self.check()
    }

    /// [`Config::load`] but for what `network.netConf` says.
    pub(crate) fn written(file: Option<&Path>, overrides: &[Override]) -> Result<Self> {
        let mut tree = match file {
            None => Value::Object(Default::default()),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("config {}", path.display()))?;
                read_tree(&text).with_context(|| format!("config {}", path.display()))?
            }
        };
        let base: Result<Self> = from_tree(tree.clone());
        base.with_context(|| file.map_or("config".to_owned(), |path| format!("config {}", path.display())))?;
        for change in overrides {
            overrides::apply(&mut tree, change)?;
            from_tree(tree.clone()).with_context(|| change.origin.clone())?;
        }
        let mut config = from_tree(tree)?;
        config.node_name = node_name(&config.node_name)?;
        Ok(config)
    }
}

fn read_tree(text: &str) -> Result<Value> {
    match read_yaml(text)? {
        Value::Null => Ok(Value::Object(Default::default())),
        tree @ Value::Object(_) => Ok(tree),
        _ => bail!("must be a mapping of fields"),
    }
}

/// Reads a value. An error is one line, without a picture of the text.
pub(crate) fn read_yaml(text: &str) -> Result<Value> {
    let options = serde_saphyr::options! { with_snippet: false };
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}

fn from_tree(tree: Value) -> Result<Config> {
    let config: Config = serde_path_to_error::deserialize(tree)
        .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))?;
    config.check()?;
    Ok(config)
}

impl Config {
    /// Whether the fields go together; an error names one.
    pub(crate) fn check(&self) -> Result<()> {
        let network = &self.network;
        if !(1..1 << 24).contains(&network.vni) {
            bail!("network.vni: {} is not between 1 and 16777215", network.vni);
        }
        for family in [|it: &&IpNet| it.addr().is_ipv4(), |it: &&IpNet| it.addr().is_ipv6()] {
            if network.pod_networks.iter().filter(family).count() > 1 {
                bail!("network.podNetworks: at most one range for IPv4 and one for IPv6");
            }
        }
        if network.pod_networks.is_empty() {
            bail!("network.podNetworks: must name the range that holds all pods, such as 10.244.0.0/16");
        }
        if !network.nodes.as_os_str().is_empty() && !network.etcd.endpoints.is_empty() {
            bail!(
                "network.nodes, network.etcd.endpoints: Nodes come from a file or from etcd, not from both"
            );
        }
        if network.port == 0 {
            bail!("network.port: must not be 0");
        }
        if network.mtu != 0 && !(1350..=65535).contains(&network.mtu) {
            bail!("network.mtu: {} leaves IPv6 pods no room; use 1350 to 65535, or 0", network.mtu);
        }
        if self.services.masquerade_bit > 31 {
            bail!("services.masqueradeBit: {} is not between 0 and 31", self.services.masquerade_bit);
        }
        if !network.enabled && !self.services.enabled {
            bail!("network.enabled, services.enabled: both are false, so there is nothing to do");
        }
        Ok(())
    }
}

/// A list, or what would be its only entry. An empty text is an empty list.
fn one_or_more<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: serde::de::DeserializeOwned,
    D: serde::Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Array(entries) => entries
            .into_iter()
            .enumerate()
            .map(|(at, entry)| {
                serde_json::from_value(entry)
                    .map_err(|error| serde::de::Error::custom(format!("entry {at}: {error}")))
            })
            .collect(),
        Value::Null => Ok(Vec::new()),
        Value::String(entry) if entry.is_empty() => Ok(Vec::new()),
        entry => Ok(vec![serde_json::from_value(entry).map_err(serde::de::Error::custom)?]),
    }
}

/// Trimmed and lower-cased as kubelet does (contract S40).
fn node_name(configured: &str) -> Result<String> {
    let name = match configured.trim() {
        "" => nix::unistd::gethostname().context("host name")?.to_string_lossy().trim().to_lowercase(),
        name => name.to_lowercase(),
    };
    if name.is_empty() {
        bail!("nodeName: this host has no name; set nodeName");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_the_defaults() {
        let documented: Config = from_tree(read_tree(DOCUMENTED).unwrap()).unwrap();
        assert_eq!(documented, Config::default());
    }

    #[test]
    fn n16_on_and_off_are_words_although_yaml_has_them_for_booleans() {
        for (word, offload) in
            [("auto", ChecksumOffload::Auto), ("on", ChecksumOffload::On), ("off", ChecksumOffload::Off)]
        {
            let text = format!("network: {{checksumOffload: {word}}}");
            assert_eq!(read(&text).unwrap().network.checksum_offload, offload, "{word}");
        }
        let error = read("network: {checksumOffload: never}").unwrap_err();
        assert!(error.contains("network.checksumOffload") && error.contains("auto, on or off"), "{error}");
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let error = read("network:\n  vnii: 7\n").unwrap_err();
        assert!(error.contains("network") && error.contains("vnii") && error.contains("vni"), "{error}");
    }

    #[test]
    fn text_that_is_no_yaml_is_named_by_line_in_one_line() {
        let error = read("network: [\n").unwrap_err();
        assert!(error.contains("line 1") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_path() {
        for (text, path) in [
            ("network: {port: many}", "network.port"),
            ("network: {vni: 0}", "network.vni"),
            ("network: {mtu: 500}", "network.mtu"),
            ("network: {podNetworks: [10.0.0.0/40]}", "network.podNetworks: entry 0"),
            ("network: {podNetworks: []}", "network.podNetworks"),
            ("network: {podNetworks: [10.0.0.0/16, 10.1.0.0/16]}", "network.podNetworks"),
            ("dataplane: magic", "dataplane"),
            ("services: {masqueradeBit: 32}", "services.masqueradeBit"),
            ("source: {directory: {}}", "source.directory"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(path), "{text}: {error}");
        }
    }

    #[test]
    fn variables_go_over_the_file_and_flags_over_both() {
        let changes = [
            Override::from_variable("PODWAY_NETWORK_VNI", "9").unwrap().unwrap(),
            Override::from_variable("PODWAY_SOURCE_DIRECTORY_PATH", "/manifests").unwrap().unwrap(),
            Override::from_flag("network.vni=10").unwrap(),
            Override::from_flag("nodeName=7").unwrap(),
            Override::from_flag("network.podNetworks=10.0.0.0/8").unwrap(),
        ];
        let config = Config::load(None, &changes).unwrap();
        assert_eq!((config.network.vni, config.node_name.as_str()), (10, "7"));
        assert_eq!(config.network.pod_networks, ["10.0.0.0/8".parse().unwrap()]);
        assert!(matches!(config.source, SourceConfig::Directory(_)));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let changes = [Override::from_variable("PODWAY_NETWORK_PORT", "x").unwrap().unwrap()];
        let error = format!("{:#}", Config::load(None, &changes).unwrap_err());
        assert!(error.contains("PODWAY_NETWORK_PORT") && error.contains("network.port"), "{error}");
    }

    fn read(text: &str) -> Result<Config, String> {
        read_tree(text).and_then(from_tree).map_err(|error| format!("{error:#}"))
    }
}
