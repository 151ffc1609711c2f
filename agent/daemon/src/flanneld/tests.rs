//! Each flag, and the configuration that it leads to.

use std::path::Path;

use podway_cluster::EtcdConfig;

use super::*;
use podway_overlay::AssignMode;

use crate::config::{AssignConfig, NetworkConfig, ServicesConfig, StatusConfig};

#[test]
fn x6_the_stock_manifests_line_runs_the_network_half_alone() {
    let config = config("--ip-masq --kube-subnet-mgr");
    assert!(!config.services.enabled && config.network.enabled);
    assert_eq!(config.source, SourceConfig::Kube(KubeConfig::default()));
    let stock = NetworkConfig {
        net_conf: "/etc/kube-flannel/net-conf.json".into(),
        ..NetworkConfig { assign: never(), ..NetworkConfig::default() }
    };
    assert_eq!(config.network, stock);
    assert_eq!((config.status.health_address.as_str(), config.status.metrics_address.as_str()), ("", ""));
    assert_eq!(config.log.level, "info");
}

#[test]
fn x6_without_kube_subnet_mgr_subnets_come_from_etcd() {
    let config = config("");
    assert_eq!(config.network.etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(
        config.network.etcd,
        EtcdConfig { endpoints: config.network.etcd.endpoints.clone(), ..EtcdConfig::default() }
    );
    assert_eq!(config.network.net_conf, Path::new(""));
    assert!(!config.network.masquerade, "flannel masquerades only when told to");
}

#[test]
fn n21_etcds_flags() {
    let config = config(
        "--etcd-endpoints=https://192.0.2.1:2379,https://192.0.2.2:2379 --etcd-prefix=/atomic.io/network --etcd-keyfile=/k \
         --etcd-certfile=/c --etcd-cafile=/ca --etcd-username=u --etcd-password=007 --subnet-lease-renew-margin=1439",
    );
    assert_eq!(
        config.network.etcd,
        EtcdConfig {
            endpoints: vec!["https://192.0.2.1:2379".to_owned(), "https://192.0.2.2:2379".to_owned()],
            prefix: "/atomic.io/network".to_owned(),
            key_file: "/k".into(),
            cert_file: "/c".into(),
            ca_file: "/ca".into(),
            username: "u".to_owned(),
            password: "007".to_owned(),
            renew_margin: 1439,
        }
    );
}

#[test]
fn n21_the_api_servers_flags() {
    let config = config(
        "--kube-subnet-mgr --kubeconfig-file=/k --kube-api-url=https://192.0.2.1:6443 --net-config-path=/n.json \
         --kube-annotation-prefix=example.com/blue --set-node-network-unavailable=false",
    );
    let api_server = KubeConfig {
        kubeconfig: Some("/k".into()),
        server: Some("https://192.0.2.1:6443".to_owned()),
        ..KubeConfig::default()
    };
    assert_eq!(config.source, SourceConfig::Kube(api_server));
    assert_eq!(config.network.net_conf, Path::new("/n.json"));
    assert_eq!(config.network.annotation_prefix, "example.com/blue-");
    assert!(!config.network.node_condition);
    assert!(config.network.etcd.endpoints.is_empty());
}

#[test]
fn n21_the_interfaces_flags() {
    let network = config(
        "--iface=eth1 --iface 192.0.2.7 --iface-regex=[a-z]+ --iface-regex ^192\\. --iface-can-reach=192.0.2.1 \
         --public-ip=203.0.113.9 --public-ipv6=2001:db8::9",
    )
    .network;
    assert_eq!(network.interface, ["eth1", "192.0.2.7"]);
    assert_eq!(network.interface_regex, ["[a-z]+", "^192\\."]);
    assert_eq!(network.interface_can_reach, "192.0.2.1");
    assert_eq!(network.public_ip, Some("203.0.113.9".parse().unwrap()));
    assert_eq!(network.public_ipv6, Some("2001:db8::9".parse().unwrap()));
}

#[test]
fn n21_the_rules_flags() {
    let network = config(
        "--ip-masq --ip-masq-fully-random-disable --iptables-forward-rules=false --ip-blackhole-route --subnet-file=/s.env",
    )
    .network;
    assert!(
        network.masquerade
            && !network.masquerade_random
            && !network.forward_accept
            && network.blackhole_route
    );
    assert_eq!(network.subnet_file, Path::new("/s.env"));
}

#[test]
fn n21_the_health_port() {
    for (line, address) in [
        ("--healthz-port=8081", "0.0.0.0:8081"),
        ("--healthz-port=8081 --healthz-ip=::", "[::]:8081"),
        ("--healthz-port=-1", ""),
    ] {
        let status = StatusConfig {
            health_address: address.to_owned(),
            metrics_address: String::new(),
            ..StatusConfig::default()
        };
        assert_eq!(config(line).status, status, "{line}");
    }
}

#[test]
fn n21_the_log_level() {
    for (line, level) in [("--v=1", "info"), ("-v 2", "debug"), ("-v=10", "debug")] {
        assert_eq!(config(line).log.level, level, "{line}");
    }
}

#[test]
fn n21_values_that_flannel_ends_for_are_named() {
    for (line, said) in [
        ("--subnet-lease-renew-margin=0", "--subnet-lease-renew-margin: 0"),
        ("--subnet-lease-renew-margin=1440", "--subnet-lease-renew-margin: 1440"),
        ("--public-ip=eth0", "--public-ip: network.publicIp"),
        ("--public-ip=2001:db8::1", "--public-ip: network.publicIp"),
        ("--public-ipv6=192.0.2.1", "--public-ipv6: network.publicIPv6"),
        ("--kube-subnet-mgr --kube-annotation-prefix=a/b/c", "--kube-annotation-prefix"),
        ("--healthz-port=65536", "--healthz-port: 65536"),
    ] {
        let error = format!("{:#}", started(line, &[]).unwrap_err());
        assert!(error.starts_with(said), "{line}: {error}");
    }
    let error = format!("{:#}", started("", &[("FLANNELD_PUBLIC_IP", "eth0")]).unwrap_err());
    assert!(error.starts_with("FLANNELD_PUBLIC_IP: network.publicIp"), "{error}");
}

#[test]
fn n21_what_has_no_effect_is_named_once() {
    let line = "--kube-subnet-mgr --iptables-resync=9 --vmodule=a=1 --etcd-prefix=/x --logtostderr --iface=eth0 x --v=9";
    let notes = started(line, &[("EVENT_QUEUE_DEPTH", "1")]).unwrap().notes;
    let texts: Vec<&str> = notes
        .iter()
        .map(|note| match note {
            Note::Idle(text) | Note::Wrong(text) => text.as_str(),
        })
        .collect();
    let beginnings = [
        "EVENT_QUEUE_DEPTH has no effect",
        "--etcd-prefix has no effect: kube-subnet-mgr",
        "--iptables-resync has no effect",
        "--logtostderr has no effect",
        "--vmodule has no effect",
        "\"x\" is no flag",
    ];
    assert_eq!(texts.len(), beginnings.len(), "{texts:?}");
    for (text, beginning) in texts.iter().zip(beginnings) {
        assert!(text.starts_with(beginning), "{text}");
    }
}

#[test]
fn n21_variables_count_where_flags_do_not_and_podways_own_go_over_both() {
    let variables = [
        ("FLANNELD_KUBE_SUBNET_MGR", "true"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_IFACE", "eth1"),
        ("PODWAY_NETWORK_SUBNET_FILE", "/elsewhere"),
        ("NODE_NAME", "Node-7"),
    ];
    let config = started("--iface=eth0 --subnet-file=/s.env", &variables).unwrap().config;
    assert_eq!(config.network.assign, never());
    assert!(config.network.masquerade);
    assert_eq!(config.network.interface, ["eth0"]);
    assert_eq!(config.network.subnet_file, Path::new("/elsewhere"));
    assert_eq!(config.node_name, "node-7");
}

#[test]
fn n21_the_stock_daemon_set_names_its_pod_and_not_its_node() {
    let pod = [("POD_NAME", "kube-flannel-ds-x"), ("POD_NAMESPACE", "kube-flannel")];
    let of_pod = ("kube-flannel".to_owned(), "kube-flannel-ds-x".to_owned());
    assert_eq!(started("--kube-subnet-mgr", &pod).unwrap().pod, Some(of_pod));
    assert_eq!(started("", &pod).unwrap().pod, None, "etcd knows nodes by their addresses");
    let named = started("--kube-subnet-mgr", &[pod[0], pod[1], ("NODE_NAME", "node-1")]).unwrap();
    assert_eq!((named.pod, named.config.node_name.as_str()), (None, "node-1"));
}

#[test]
fn x6_services_are_left_to_whoever_serves_them() {
    assert_eq!(config("").services, ServicesConfig { enabled: false, ..ServicesConfig::default() });
}

fn config(line: &str) -> Config {
    started(line, &[]).unwrap().config
}

fn started(line: &str, variables: &[(&str, &str)]) -> Result<Start> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let flags = match args::parse(&words) {
        Ok(Asked::Run(flags)) => flags,
        other => panic!("{line}: {other:?}"),
    };
    start(flags, &variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn never() -> AssignConfig {
    AssignConfig { mode: AssignMode::Never, ..AssignConfig::default() }
}
