//! Nodes, machines and kernels that the laws are tried on.

pub(crate) use std::collections::{BTreeMap, BTreeSet};
pub(crate) use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
pub(crate) use std::sync::Arc;

pub(crate) use ipnet::IpNet;
pub(crate) use podway_overlay::{
    Backend, ExternalInterface, FakeKernel, Family, FdbKey, Host, HostRoute, IfIndex, LinkKind, LinkName,
    Mac, Mtu, NeighbourKey, Node, Op, Overlay, Peering, PerFamily, Reason, Route, Rows, Settings, Sysctl,
    VxlanState, removal,
};
pub(crate) use proptest::prelude::*;

pub(crate) const OWN: &str = "m";
pub(crate) const NAMES: [&str; 6] = ["a", "b", "c", OWN, "x", "y"];

/// What one Node may say; small ranges, so that Nodes contend.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) managed: bool,
    /// The IPv4 address that it publishes cannot be read.
    pub(crate) slip: bool,
    pub(crate) host_gw: bool,
    pub(crate) v4: Option<(u8, u8)>,
    pub(crate) v6: Option<u8>,
    pub(crate) mac: u8,
    pub(crate) underlay: u8,
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Node(usize, Option<Shape>),
    /// The external interface's MTU, and which underlay addresses are neighbours', a bit for each.
    Host(u32, u8),
    /// Whether Services have the range that holds the nodes' addresses.
    Services(bool),
    Drain,
}

/// An overlay with DirectRouting and one peer, and the kernel that has it.
pub(crate) fn direct_peer(n: u8, neighbours: u8) -> (Overlay, FakeKernel) {
    let settings = Settings { direct_routing: true, ..settings() };
    let (mut overlay, mut kernel) = (Overlay::new(settings).unwrap(), FakeKernel::default());
    overlay.set_host(host_with(1500, neighbours));
    feed(&mut overlay, &own_event());
    overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    assert_eq!(kernel.observe().rows.routes.len(), 1);
    (overlay, kernel)
}

pub(crate) fn with_peer(n: u8) -> (Overlay, FakeKernel) {
    let (mut overlay, mut kernel) = (overlay(), FakeKernel::default());
    feed(&mut overlay, &own_event());
    overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
    for op in overlay.reconcile(&kernel.observe()) {
        kernel.run(&op).unwrap();
    }
    assert_eq!(kernel.observe().rows.routes.len(), 1);
    (overlay, kernel)
}

pub(crate) fn own_event() -> Event {
    Event::Node(
        3,
        Some(Shape {
            managed: true,
            slip: false,
            host_gw: false,
            v4: Some((0, 24)),
            v6: Some(0),
            mac: 0,
            underlay: 0,
        }),
    )
}

/// Routes whose gateway has no MAC, or whose MAC leads nowhere.
pub(crate) fn uncovered(rows: &Rows) -> Vec<IpNet> {
    let covered = |route: &Route| {
        if !route.onlink {
            return Some(route.via);
        }
        let key = NeighbourKey { link: route.link.clone(), address: route.via };
        let mac = rows.neighbours.get(&key)?;
        rows.fdb.get(&FdbKey { link: route.link.clone(), mac: *mac }).copied()
    };
    rows.routes.iter().filter(|(_, route)| covered(route).is_none()).map(|(subnet, _)| *subnet).collect()
}

/// Subnets that were and will be routed, but are not now.
pub(crate) fn cut_off(before: &Rows, now: &Rows, wanted: &Rows) -> Vec<IpNet> {
    let stays = before.routes.keys().filter(|subnet| wanted.routes.contains_key(subnet));
    stays.filter(|subnet| !now.routes.contains_key(subnet)).copied().collect()
}

pub(crate) fn kind(op: &Op) -> &'static str {
    match op {
        Op::AddLink { .. } => "AddLink",
        Op::SetLink { .. } => "SetLink",
        Op::LinkUp(_) => "LinkUp",
        Op::RemoveLink { .. } => "RemoveLink",
        Op::SetSysctl(_) => "SetSysctl",
        Op::AddAddress(..) => "AddAddress",
        Op::RemoveAddress(..) => "RemoveAddress",
        Op::SetNeighbour(..) => "SetNeighbour",
        Op::RemoveNeighbour(_) => "RemoveNeighbour",
        Op::SetFdb(..) => "SetFdb",
        Op::RemoveFdb(..) => "RemoveFdb",
        Op::SetRoute(..) => "SetRoute",
        Op::RemoveRoute(..) => "RemoveRoute",
        Op::SetBlackhole(_) => "SetBlackhole",
        Op::RemoveBlackhole(_) => "RemoveBlackhole",
        Op::SetOffload(..) => "SetOffload",
    }
}

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0..NAMES.len(), prop::option::weighted(0.8, shape())).prop_map(|(at, shape)| Event::Node(at, shape)),
        2 => (prop_oneof![Just(1400), Just(1500)], any::<u8>())
            .prop_map(|(mtu, neighbours)| Event::Host(mtu, neighbours)),
        1 => any::<bool>().prop_map(Event::Services),
        2 => Just(Event::Drain),
    ];
    prop::collection::vec(event, 0..25)
}

pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    let v4 =
        prop::option::weighted(0.9, (0u8..6, prop_oneof![4 => Just(24u8), 1 => Just(23), 1 => Just(25)]));
    let v6 = prop::option::of(0u8..5);
    let bools = (prop::bool::weighted(0.9), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    // Some have an address in what may be a node's subnet.
    let underlay = prop_oneof![8 => 1u8..6, 1 => 250u8..];
    (bools, v4, v6, 0u8..8, underlay).prop_map(|((managed, host_gw, slip), v4, v6, mac, underlay)| Shape {
        managed,
        slip,
        host_gw,
        v4,
        v6,
        mac,
        underlay,
    })
}

/// VXLAN with and without DirectRouting, and host-gw.
pub(crate) fn any_settings() -> impl Strategy<Value = Settings> {
    let backend = prop_oneof![3 => Just(Backend::Vxlan), 1 => Just(Backend::HostGw)];
    (backend, any::<bool>(), any::<bool>()).prop_map(|(backend, direct_routing, blackhole)| Settings {
        backend,
        direct_routing,
        blackhole,
        ..settings()
    })
}

pub(crate) fn overlay() -> Overlay {
    let mut overlay = Overlay::new(settings()).unwrap();
    overlay.set_host(host(1500));
    overlay
}

pub(crate) fn settings() -> Settings {
    let networks = vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()];
    Settings::new(OWN, networks, Peering::Annotated)
}

pub(crate) fn host(mtu: u32) -> Host {
    host_with(mtu, 0)
}

/// A machine on which the underlay addresses 192.0.2.n and 2001:db8::n are neighbours' if bit n is set, and behind
/// a router otherwise.
pub(crate) fn host_with(mtu: u32, neighbours: u8) -> Host {
    let external = ExternalInterface {
        index: IfIndex(2),
        name: LinkName::new("eth0").unwrap(),
        mtu: Mtu::new(mtu).unwrap(),
        v4: Some(Ipv4Addr::new(192, 0, 2, 250)),
        v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x250)),
    };
    let device_macs = PerFamily { v4: Some(own_device_mac()), v6: None };
    let routes = (0..8).flat_map(|n| {
        let address = |text: String| -> IpAddr { text.parse().unwrap() };
        let via = |router: &str| (neighbours & (1 << n) == 0).then(|| address(router.to_owned()));
        [
            host_route(address(format!("192.0.2.{n}")), via("192.0.2.254")),
            host_route(address(format!("2001:db8::{n}")), via("2001:db8::254")),
        ]
    });
    Host { device_macs, routes: routes.collect(), ..Host::new(external) }
}

pub(crate) fn host_route(address: IpAddr, via: Option<IpAddr>) -> HostRoute {
    let link = Some((IfIndex(2), LinkName::new("eth0").unwrap()));
    HostRoute { destination: address.into(), metric: 0, via, link }
}

pub(crate) fn own_device_mac() -> Mac {
    Mac::new([0x0a, 0, 0, 0, 0xee, 0xee])
}

pub(crate) fn feed(overlay: &mut Overlay, event: &Event) {
    match event {
        Event::Node(at, shape) => {
            let name: Arc<str> = NAMES[*at].into();
            let node = shape.as_ref().map(|shape| node(&name, shape));
            overlay.apply(&name, node.as_ref());
        }
        Event::Host(mtu, neighbours) => overlay.set_host(host_with(*mtu, *neighbours)),
        Event::Services(present) => {
            let ranges = ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap());
            overlay.set_service_ranges(if *present { &ranges } else { &[] });
        }
        Event::Drain => {}
    }
}

/// From 250 on, addresses of pods.
pub(crate) fn underlay(n: u8, family: Family) -> IpAddr {
    let text = match (family, n) {
        (Family::V4, 250..) => format!("10.244.{}.200", n - 250),
        (Family::V4, _) => format!("192.0.2.{n}"),
        (Family::V6, 250..) => format!("fd00:0:0:{}::200", n - 250),
        (Family::V6, _) => format!("2001:db8::{n}"),
    };
    text.parse().unwrap()
}

pub(crate) fn node(name: &str, shape: &Shape) -> Node {
    let v6 = shape.v6.map(|at| format!("fd00:0:0:{at}::/64").parse().unwrap());
    let mut node = Node {
        name: name.into(),
        pod_cidrs: subnet4(shape).into_iter().chain(v6).collect(),
        ..Node::default()
    };
    if shape.managed {
        node.flannel = [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", if shape.host_gw { "host-gw" } else { "vxlan" }.to_owned()),
            ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(shape.mac, 4))),
            ("backend-v6-data", format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(shape.mac, 6))),
            (
                "public-ip",
                if shape.slip { "oops".to_owned() } else { underlay(shape.underlay, Family::V4).to_string() },
            ),
            ("public-ipv6", underlay(shape.underlay, Family::V6).to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    }
    node
}

pub(crate) fn peer(n: u8) -> Node {
    node(
        &format!("peer-{n}"),
        &Shape {
            managed: true,
            slip: false,
            host_gw: false,
            v4: Some((n, 24)),
            v6: None,
            mac: n,
            underlay: n,
        },
    )
}

pub(crate) fn subnet4(shape: &Shape) -> Option<IpNet> {
    let (at, length) = shape.v4?;
    Some(IpNet::new([10, 244, at, 0].into(), length).unwrap().trunc())
}

pub(crate) fn mac(at: u8, family: u8) -> Mac {
    Mac::new([0x0a, 0, 0, 0, family - 4, at])
}
