//! The contract's lines on what an object means.

use std::net::IpAddr;

use podway_overlay::Node;
use podway_proxy::{EndpointSlice, Protocol, Service, TrafficPolicy};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Decode;
use crate::{Event, manifest};

#[test]
fn s1_a_service_without_a_cluster_ip_of_ours_is_not_looked_at() {
    let proxied = json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1"}});
    assert!(service(&proxied).0.is_some());
    let labelled =
        |label: &str| json!({"metadata": {"name": "a", "labels": {label: ""}}, "spec": proxied["spec"]});
    assert_eq!(service(&labelled("service.kubernetes.io/service-proxy-name")), (None, vec![]));
    assert!(
        service(&labelled("service.kubernetes.io/headless")).0.is_some(),
        "that label is for slices only"
    );
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": ""}),
        json!({"clusterIP": null, "clusterIPs": []}),
        json!({"clusterIPs": ["None"]}),
        json!({"type": "ExternalName", "clusterIP": "10.96.0.1"}),
        Value::Null,
    ] {
        let object = json!({"metadata": {"name": "a"}, "spec": spec});
        assert_eq!(service(&object), (None, vec![]), "{object}");
    }
}

#[test]
fn s1_a_headless_slice_is_not_looked_at() {
    let mut object = a_slice(json!([{"addresses": ["10.0.0.1"]}]));
    object["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    assert_eq!(slice(&object), (None, vec![]));
}

#[test]
fn s2_ip_families_say_which_cluster_ips_count() {
    let ips = |spec: Value| {
        let (service, problems) = service(&json!({"metadata": {"name": "a"}, "spec": spec}));
        (service.map(|service| service.cluster_ips).unwrap_or_default(), problems)
    };
    let dual = ["10.96.0.1", "fd00::1"];
    assert_eq!(ips(json!({"clusterIPs": dual, "ipFamilies": ["IPv4", "IPv6"]})), (addresses(&dual), vec![]));
    assert_eq!(ips(json!({"clusterIPs": dual, "ipFamilies": ["IPv4"]})), (addresses(&dual[..1]), vec![]));
    assert_eq!(
        ips(json!({"clusterIPs": dual, "ipFamilies": ["IPv6", "IPv6"]})),
        (
            addresses(&dual[1..]),
            vec![
                r#"spec.clusterIPs[0]: "10.96.0.1" is not of the family that spec.ipFamilies names; skipped"#
                    .into()
            ]
        )
    );
    assert_eq!(ips(json!({"clusterIP": "fd00::1"})), (addresses(&dual[1..]), vec![]), "an old API server's");
}

#[test]
fn s2_slices_of_names_or_without_a_service_are_ignored_with_a_problem() {
    let mut names = a_slice(json!([{"addresses": ["a.example"]}]));
    names["addressType"] = json!("FQDN");
    assert_eq!(slice(&names), (None, vec!["addressType: FQDN is not served; slice ignored".into()]));
    let mut stray = a_slice(json!([]));
    stray["metadata"]["labels"] = json!({});
    assert_eq!(
        slice(&stray),
        (None, vec!["metadata.labels[kubernetes.io/service-name]: missing; slice ignored".into()])
    );
}

#[test]
fn s2_a_slice_belongs_to_the_service_of_its_label_in_its_namespace() {
    let slice = slice(&a_slice(json!([]))).0.unwrap();
    assert_eq!(slice.service.to_string(), "shop/web");
}

#[test]
fn s3_only_the_first_address_counts_and_ports_without_a_number_are_passed_over() {
    let mut object =
        a_slice(json!([{"addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": "n1"}, {"addresses": []}]));
    object["ports"] = json!([{"port": null, "name": "all"}, {"port": 0}, {"port": 8080, "name": "http"}]);
    let (slice, problems) = slice(&object);
    let slice = slice.unwrap();
    assert_eq!(
        slice.endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>(),
        addresses(&["10.0.0.1"])
    );
    assert_eq!(slice.endpoints[0].node.as_deref(), Some("n1"));
    assert_eq!(slice.ports.iter().map(|port| (&*port.name, port.port)).collect::<Vec<_>>(), [("http", 8080)]);
    assert_eq!(problems, ["endpoints[1].addresses: empty; endpoint skipped"]);
}

#[test]
fn s4_conditions_are_ready_and_serving_unless_said_otherwise() {
    let conditions = |value: Value| {
        let object = a_slice(json!([{"addresses": ["10.0.0.1"], "conditions": value}]));
        let endpoint = slice(&object).0.unwrap().endpoints.remove(0);
        (endpoint.ready, endpoint.serving, endpoint.terminating)
    };
    assert_eq!(conditions(Value::Null), (true, true, false));
    assert_eq!(conditions(json!({})), (true, true, false));
    assert_eq!(conditions(json!({"ready": false, "terminating": true})), (false, true, true));
    assert_eq!(conditions(json!({"ready": null, "serving": false})), (true, false, false));
}

#[test]
fn s8_hints_are_kept() {
    let hints = json!({"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "n1"}]});
    let object = a_slice(json!([{"addresses": ["10.0.0.1"], "hints": hints}]));
    let endpoint = slice(&object).0.unwrap().endpoints.remove(0);
    assert_eq!(endpoint.zone_hints, ["z1".into(), "z2".into()]);
    assert_eq!(endpoint.node_hints, ["n1".into()]);
}

#[test]
fn s33_invalid_fields_are_skipped_singly_naming_object_and_field() {
    let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
        "clusterIPs": ["010.096.0.01", "10.96.0.300", "fd00::1", "fd00::2"],
        "internalTrafficPolicy": "Sometimes",
        "ports": [
            {"port": 0}, {"port": 65536}, {"port": 80, "protocol": "ICMP"}, {"port": 80}, {"port": 80},
            {"port": 80, "protocol": "UDP"},
        ],
    }});
    let (decoded, problems) = service(&object);
    let decoded = decoded.unwrap();
    assert_eq!(decoded.cluster_ips, addresses(&["10.96.0.1", "fd00::1"]));
    assert_eq!(decoded.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(
        decoded.ports.iter().map(|port| (port.protocol, port.port)).collect::<Vec<_>>(),
        [(Protocol::Tcp, 80), (Protocol::Udp, 80)]
    );
    assert_eq!(
        problems,
        [
            r#"spec.clusterIPs[1]: "10.96.0.300" is no IP address; skipped"#,
            r#"spec.clusterIPs[3]: "fd00::2" is the second address of its family; skipped"#,
            "spec.ports[0].port: 0 is not within 1 to 65535; port skipped",
            "spec.ports[1].port: 65536 is not within 1 to 65535; port skipped",
            r#"spec.ports[2].protocol: "ICMP" is none of TCP, UDP, SCTP; port skipped"#,
            "spec.ports[4].port: 80/tcp is there already; port skipped",
            r#"spec.internalTrafficPolicy: "Sometimes" is neither Cluster nor Local; taken as Cluster"#,
        ]
    );
    let subject = &decode::<manifest::Service>(&object).unwrap().problems[0].subject;
    assert_eq!(subject, "Service shop/web");
}

#[test]
fn s33_bad_endpoints_leave_the_others() {
    let (slice, problems) = slice(&a_slice(json!([
        {"addresses": ["10.0.0.x"]}, {"addresses": ["fd00::1"]}, {"addresses": null}, {"addresses": ["010.0.0.9"]},
    ])));
    assert_eq!(
        slice.unwrap().endpoints.iter().map(|it| it.address).collect::<Vec<_>>(),
        addresses(&["10.0.0.9"])
    );
    assert_eq!(
        problems,
        [
            r#"endpoints[0].addresses[0]: "10.0.0.x" is no IP address; skipped"#,
            r#"endpoints[1].addresses[0]: "fd00::1" is not of the slice's addressType; endpoint skipped"#,
            "endpoints[2].addresses: empty; endpoint skipped",
        ]
    );
}

#[test]
fn s34_the_api_servers_defaults_are_filled_in() {
    let written =
        json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    let service = service(&written).0.unwrap();
    assert_eq!(service.cluster_ips, addresses(&["10.96.0.1"]));
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!((&*service.ports[0].name, service.ports[0].protocol), ("", Protocol::Tcp));
    assert_eq!(service.created, 0);
    let Event::Service(name, _) = decode::<manifest::Service>(&written).unwrap().event else {
        panic!("a Service")
    };
    assert_eq!(name.to_string(), "default/web");

    let mut object = a_slice(json!([]));
    object["ports"] = json!([{"port": 8080}]);
    let slice = slice(&object).0.unwrap();
    assert_eq!((&*slice.ports[0].name, slice.ports[0].protocol), ("", Protocol::Tcp));
}

#[test]
fn s35_internal_addresses_come_before_external_ones() {
    let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
    let (node, problems) = node(&json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "status": {"addresses": [
            address("Hostname", "n1"), address("ExternalIP", "203.0.113.1"), address("InternalIP", "192.0.2.1"),
            address("InternalIP", "here"), address("InternalIP", "fd00::1"),
        ]},
    }));
    assert_eq!(node.addresses, addresses(&["192.0.2.1", "fd00::1", "203.0.113.1"]));
    assert_eq!(node.zone.as_deref(), Some("z1"));
    assert_eq!(problems, [r#"status.addresses[3].address: "here" is no IP address; skipped"#]);
}

#[test]
fn n2_pod_cidrs_come_before_the_single_one() {
    let cidrs = |spec: Value| {
        let (node, problems) = node(&json!({"metadata": {"name": "n1"}, "spec": spec}));
        (node.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), problems)
    };
    assert_eq!(cidrs(json!({"podCIDR": "10.244.1.0/24"})), (vec!["10.244.1.0/24".into()], vec![]));
    assert_eq!(
        cidrs(json!({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.1.7/24", "fd00::/64", "10.0.0.0/+8"]})),
        (
            vec!["10.244.1.0/24".into(), "fd00::/64".into()],
            vec![r#"spec.podCIDRs[2]: "10.0.0.0/+8" is no CIDR; skipped"#.into()]
        )
    );
    assert_eq!(cidrs(Value::Null), (vec![], vec![]));
}

#[test]
fn n5_flannels_annotations_are_kept_as_they_stand() {
    let (node, problems) = node(&json!({"metadata": {"name": "n1", "annotations": {
        "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"0a:1b:2c:3d:4e:5f\"}",
        "flannel.alpha.coreos.com/public-ip": null,
        "node.alpha.kubernetes.io/ttl": "0",
    }}}));
    let kept: Vec<_> = node.flannel.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(kept, [("backend-data", "{\"VNI\":1,\"VtepMAC\":\"0a:1b:2c:3d:4e:5f\"}"), ("public-ip", "")]);
    assert_eq!(problems, [""; 0]);
}

#[test]
fn creation_is_read_in_seconds() {
    let metadata = json!({"name": "a", "creationTimestamp": "2024-05-01T00:00:01Z"});
    let object = json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}});
    assert_eq!(service(&object).0.unwrap().created, 1_714_521_601);
}

#[test]
fn an_object_without_a_usable_name_is_refused() {
    for metadata in
        [json!({}), json!({"name": ""}), json!({"name": "a/b"}), json!({"name": "a", "namespace": "x/y"})]
    {
        assert!(decode::<manifest::Service>(&json!({"metadata": metadata})).is_err(), "{metadata}");
    }
}

proptest! {
    #[test]
    fn any_value_in_any_field_is_decoded_or_refused_without_a_panic(
        values in prop::collection::vec(any_value(), 12),
    ) {
        let value = |index: usize| values[index].clone();
        let metadata = json!({"name": "a", "namespace": value(0), "labels": value(1), "annotations": value(2)});
        let spec = json!({
            "type": value(3), "clusterIP": value(4), "clusterIPs": [value(5), value(6)], "ipFamilies": [value(7)],
            "ports": [{"port": value(8), "protocol": value(9), "name": value(10)}], "podCIDRs": [value(11)],
            "internalTrafficPolicy": value(3),
        });
        let endpoints = json!([{"addresses": [value(4)], "conditions": value(5), "hints": value(6)}, value(7)]);
        let status = json!({"addresses": [{"type": "InternalIP", "address": value(8)}]});
        let object = json!({
            "metadata": metadata, "spec": spec, "status": status, "addressType": "IPv4", "endpoints": endpoints,
            "ports": spec["ports"],
        });
        let _ = decode::<manifest::Service>(&object);
        let _ = decode::<manifest::EndpointSlice>(&object);
        let _ = decode::<manifest::Node>(&object);
        let cidrs = json!({"metadata": {"name": value(0)}, "spec": {"cidrs": [value(1), value(2)]}});
        let _ = decode::<manifest::ServiceCidr>(&cidrs);
    }

    #[test]
    fn any_text_in_any_text_field_costs_that_field_only(texts in prop::collection::vec(any_text(), 5)) {
        let object = json!({"metadata": {"name": "a"}, "spec": {
            "clusterIPs": ["10.96.0.1", texts[0]], "internalTrafficPolicy": texts[1],
            "ports": [{"port": 80}, {"port": 81, "protocol": texts[2]}],
        }});
        let (service, _) = service(&object);
        let service = service.unwrap();
        prop_assert_eq!(service.cluster_ips[0], "10.96.0.1".parse::<IpAddr>().unwrap());
        prop_assert_eq!(service.ports[0].port, 80);
        let object = a_slice(json!([{"addresses": [texts[3]]}, {"addresses": ["10.0.0.1"], "nodeName": texts[4]}]));
        let last = slice(&object).0.unwrap().endpoints.pop().unwrap();
        prop_assert_eq!(last.address, "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[0-9a-f.:/]{0,18}", ".{0,8}", Just("None".to_owned()), Just("IPv6".to_owned())]
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn a_slice(endpoints: Value) -> Value {
    json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": null,
    })
}

fn decode<T: Decode + serde::de::DeserializeOwned>(object: &Value) -> Result<super::Decoded, String> {
    let manifest: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    manifest.decode().map_err(|error| error.to_string())
}

fn service(object: &Value) -> (Option<Service>, Vec<String>) {
    let decoded = decode::<manifest::Service>(object).unwrap();
    let Event::Service(_, service) = decoded.event else { panic!("not a Service") };
    (service, decoded.problems.iter().map(shown).collect())
}

fn slice(object: &Value) -> (Option<EndpointSlice>, Vec<String>) {
    let decoded = decode::<manifest::EndpointSlice>(object).unwrap();
    let Event::EndpointSlice(_, slice) = decoded.event else { panic!("not an EndpointSlice") };
    (slice, decoded.problems.iter().map(shown).collect())
}

fn node(object: &Value) -> (Node, Vec<String>) {
    let decoded = decode::<manifest::Node>(object).unwrap();
    let Event::Node(_, Some(node)) = decoded.event else { panic!("not a Node") };
    (node, decoded.problems.iter().map(shown).collect())
}

fn shown(problem: &crate::Problem) -> String {
    format!("{}: {}", problem.field, problem.message)
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
