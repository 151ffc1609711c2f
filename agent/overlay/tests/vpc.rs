//! Plans for a VPC: what is promised is there, nothing overlaps, and what is refused is impossible (contract N23).

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_overlay::{
    Addressing, Family, PerFamily, VpcError, VpcNote, VpcPlan, VpcRequest, overlaps, plan_vpc, vpc_notes,
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn n23_a_plan_holds_what_was_asked_and_overlaps_nothing(request in request()) {
        let Ok(plans) = plan_vpc(&request) else { return Ok(()) };
        for (family, plan) in plans.iter() {
            let vpc = request.vpc.get(family).unwrap().trunc();
            prop_assert_eq!(plan.vpc, vpc);
            let network = plan.range.network();
            prop_assert!(vpc.contains(&network) && vpc.contains(&plan.services));
            prop_assert!(!meet(&network, &plan.services));
            for reserved in &request.reserved {
                prop_assert!(!meet(&network, reserved) && !meet(&plan.services, reserved), "{reserved}");
            }
            let room = plan.room();
            prop_assert!(room.nodes >= request.nodes.into());
            prop_assert!(room.pods_per_node >= request.pods_per_node.into());
            prop_assert!(room.services >= request.services.into());
        }
        let addressing = Addressing {
            pod_networks: plans.iter().map(|(_, plan)| plan.range.network()).collect(),
            service_ranges: plans.iter().map(|(_, plan)| plan.services).collect(),
            ..Addressing::default()
        };
        prop_assert_eq!(overlaps(&addressing), []);
    }

    /// Each figure counted again from the addresses themselves.
    #[test]
    fn n23_figures_of_growth_are_true(request in request()) {
        let Ok(plans) = plan_vpc(&request) else { return Ok(()) };
        for (_, plan) in plans.iter() {
            let most = plan.vpc.max_prefix_len();
            let subnets = power(plan.range.subnet_len() - plan.range.network().prefix_len());
            prop_assert_eq!(plan.room().nodes, subnets - 1);
            prop_assert_eq!(plan.room().pods_per_node, power(most - plan.range.subnet_len()) - 3);
            prop_assert_eq!(plan.room().services, power(most - plan.services.prefix_len()) - 2);
            if let Some(widened) = plan.widened() {
                prop_assert!(widened.network().contains(&plan.range.network()));
                prop_assert!(widened.count() > plan.range.count());
                prop_assert!(plan.vpc.contains(&widened.network()) && !meet(&widened.network(), &plan.services));
                prop_assert!(!request.reserved.iter().any(|reserved| meet(reserved, &widened.network())));
            }
            for cut in plan.other_cuts(request.nodes, request.pods_per_node) {
                prop_assert!(cut.count() >= request.nodes.into());
                prop_assert!(power(most - cut.subnet_len()) >= u128::from(request.pods_per_node) + 3);
            }
            for free in plan.free() {
                prop_assert!(plan.vpc.contains(&free) && !meet(&free, &plan.range.network()));
                prop_assert!(!meet(&free, &plan.services));
                prop_assert!(!request.reserved.iter().any(|reserved| meet(reserved, &free)));
            }
        }
    }

    /// Every address of the VPC is in the pod network, the Service range, reserved, or free.
    #[test]
    fn n23_the_whole_vpc_is_accounted_for(request in request(), at in any::<u128>()) {
        let Ok(plans) = plan_vpc(&request) else { return Ok(()) };
        for (family, plan) in plans.iter() {
            let inside = at & (power(plan.vpc.max_prefix_len() - plan.vpc.prefix_len()) - 1);
            let address = address(family, bits(plan.vpc.addr()) + inside);
            let reserved = plan.reserved.iter().filter(|net| net.contains(&address)).count();
            let free = plan.free().iter().filter(|net| net.contains(&address)).count();
            let ours = [plan.range.network(), plan.services].iter().filter(|net| net.contains(&address)).count();
            prop_assert_eq!(reserved.min(1) + free + ours, 1, "{}", address);
        }
    }

    /// The least ranges that hold what is asked are tried at every place.
    #[test]
    fn n23_what_is_refused_is_impossible_and_what_would_fit_fits(request in small_request()) {
        let vpc = request.vpc.v4.unwrap();
        let possible = fits_somewhere(&request, vpc);
        match plan_vpc(&request) {
            Ok(_) => prop_assert!(possible),
            Err(VpcError::DoesNotFit(shortfall)) => {
                prop_assert!(!possible);
                for room in &shortfall.fits {
                    let less = VpcRequest {
                        nodes: u64::try_from(room.nodes).unwrap(),
                        pods_per_node: u64::try_from(room.pods_per_node).unwrap(),
                        services: u64::try_from(room.services).unwrap(),
                        ..request.clone()
                    };
                    prop_assert!(plan_vpc(&less).is_ok(), "{room}");
                }
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn n23_a_vpc_of_8_bits_with_reserved_networks() {
    let request =
        VpcRequest { reserved: nets(&["10.0.0.0/16", "10.64.0.0/10"]), ..asked("10.0.0.0/8", 1000, 110) };
    let plan = plan_v4(&request);
    assert_eq!(plan.range.network(), net("10.8.0.0/13"));
    assert_eq!(plan.range.subnet_len(), 25);
    assert_eq!(plan.services.prefix_len(), 16);
    assert_eq!((plan.room().nodes, plan.room().pods_per_node, plan.room().services), (4095, 125, 65_534));
    let cuts: Vec<(u8, u128)> =
        plan.other_cuts(1000, 110).iter().map(|cut| (cut.subnet_len(), cut.count())).collect();
    assert_eq!(cuts, [(24, 2047), (23, 1023)]);
    let plans = PerFamily { v4: Some(plan), v6: None };
    assert_eq!(vpc_notes(&request, &plans), []);
}

#[test]
fn n23_services_leave_the_pod_network_room_to_be_widened() {
    let plan = plan_v4(&asked("10.0.0.0/8", 1000, 110));
    assert_eq!(plan.range.network(), net("10.0.0.0/13"));
    assert_eq!(plan.services, net("10.255.0.0/16"));
    assert_eq!(plan.widened().unwrap().network(), net("10.0.0.0/9"));
}

#[test]
fn n23_nodes_get_a_64_of_ipv6_while_there_are_enough_of_them() {
    let v6 = |vpc: &str, nodes| {
        let request =
            VpcRequest { vpc: PerFamily { v4: None, v6: Some(net(vpc)) }, ..asked("10.0.0.0/8", nodes, 110) };
        let plans = plan_vpc(&request).unwrap();
        let notes = vpc_notes(&request, &plans);
        (plans.v6.unwrap(), notes)
    };
    let (plan, _) = v6("fd00:10::/48", 1000);
    assert_eq!((plan.range.network(), plan.range.subnet_len()), (net("fd00:10::/52"), 64));
    assert_eq!(plan.services.prefix_len(), 112);
    let (plan, notes) = v6("fd00:10::/56", 1000);
    assert_eq!(plan.range.subnet_len(), 80);
    assert!(notes.contains(&VpcNote::LongSubnets(80)));
}

#[test]
fn n23_growth_gives_way_before_the_request_does() {
    let request = asked("10.0.0.0/16", 200, 110);
    let plan = plan_v4(&request);
    assert!(plan.room().nodes >= 200 && plan.room().nodes < 800);
    let notes = vpc_notes(&request, &PerFamily { v4: Some(plan), v6: None });
    assert!(notes.iter().any(|note| matches!(note, VpcNote::LessGrowth { asked: 4, .. })), "{notes:?}");
}

#[test]
fn n23_what_does_not_fit_is_refused_with_what_would() {
    let request = VpcRequest { reserved: nets(&["10.0.0.0/21"]), ..asked("10.0.0.0/20", 1000, 110) };
    let error = plan_vpc(&request).unwrap_err().to_string();
    assert_eq!(
        error,
        "10.0.0.0/20 does not hold 1000 nodes with 110 pods each and 10000 Services: that takes a /15 for pods and a /18 \
         for Services, and the largest part that is not reserved is 10.0.8.0/21. Give a larger range, or ask for less of \
         everything"
    );
    let fewer = VpcRequest { services: 200, ..request };
    let error = plan_vpc(&fewer).unwrap_err().to_string();
    assert!(error.contains("What would fit: 7 nodes with 110 pods each and 200 Services"), "{error}");
}

#[test]
fn n23_senseless_requests_are_refused() {
    let error = |request: VpcRequest| plan_vpc(&request).unwrap_err().to_string();
    assert_eq!(error(asked("10.0.0.0/8", 0, 110)), "nodes must be at least 1");
    assert_eq!(error(asked("10.0.0.0/8", 1, 0)), "pods per node must be at least 1");
    let none = VpcRequest { vpc: PerFamily::default(), ..asked("10.0.0.0/8", 1, 1) };
    assert_eq!(error(none), "no VPC range is given, neither IPv4 nor IPv6");
    let services = VpcRequest { services: 1 << 20, ..asked("10.0.0.0/8", 1, 1) };
    assert!(error(services).contains("at most 1048574"));
    let all = VpcRequest { reserved: nets(&["10.0.0.0/7"]), ..asked("10.0.0.0/8", 1, 1) };
    assert!(error(all).contains("all of it is reserved"));
    let most = VpcRequest { growth: u64::MAX, ..asked("10.0.0.0/8", u64::MAX, u64::MAX) };
    assert!(error(most).contains("more than there are addresses"));
}

#[test]
fn n23_what_an_operator_should_know_is_noted() {
    let request = VpcRequest {
        vpc: PerFamily { v4: Some(net("172.16.0.0/12")), v6: Some(net("2a00::/20")) },
        reserved: nets(&["172.16.0.0/16", "172.16.0.0/17", "192.168.0.0/16"]),
        ..asked("10.0.0.0/8", 20_000, 10)
    };
    let plans = plan_vpc(&request).unwrap();
    let notes: Vec<String> = vpc_notes(&request, &plans).iter().map(ToString::to_string).collect();
    for expected in [
        "IPv4: no room for 4 times the nodes and Services",
        "more than 16 bits longer than",
        "2a00::/20 is not a private range",
        "nothing in 2a00::/20 is reserved",
        "reserved 192.168.0.0/16 lies in no range of the VPC",
        "reserved 172.16.0.0/17 overlaps reserved 172.16.0.0/16",
    ] {
        assert!(notes.iter().any(|note| note.contains(expected)), "{expected}: {notes:#?}");
    }
}

#[test]
fn n23_dockers_network_is_avoided_where_there_is_room_elsewhere() {
    let request = VpcRequest { reserved: nets(&["172.16.0.0/16"]), ..asked("172.16.0.0/12", 500, 110) };
    let plans = plan_vpc(&request).unwrap();
    assert_eq!(vpc_notes(&request, &plans), []);
    let plan = plans.v4.unwrap();
    assert_eq!((plan.range.network(), plan.services), (net("172.20.0.0/14"), net("172.19.0.0/16")));
    assert!(plan.free().contains(&net("172.17.0.0/16")));
    let request = asked("172.17.0.0/16", 200, 110);
    let plans = plan_vpc(&request).unwrap();
    let notes = vpc_notes(&request, &plans);
    assert!(notes.contains(&VpcNote::Docker(plans.v4.unwrap().range.network())), "{notes:?}");
}

fn request() -> impl Strategy<Value = VpcRequest> {
    let families =
        (prop::option::of((any::<u128>(), 4..=28_u8)), prop::option::of((any::<u128>(), 8..=112_u8)));
    let numbers = (1..3000_u64, 1..600_u64, 1..40_000_u64, 1..10_u64);
    let reserved = prop::collection::vec((any::<u128>(), 0..=12_u8), 0..6);
    (families, numbers, reserved).prop_map(
        |((v4, v6), (nodes, pods_per_node, services, growth), reserved)| {
            let vpc =
                PerFamily { v4: v4.map(|it| vpc(Family::V4, it)), v6: v6.map(|it| vpc(Family::V6, it)) };
            let whole: Vec<IpNet> = vpc.iter().map(|(_, vpc)| *vpc).collect();
            let reserved = reserved
                .into_iter()
                .zip(whole.iter().cycle())
                .map(|((at, longer), vpc)| inside(vpc, at, longer))
                .collect();
            VpcRequest { vpc, nodes, pods_per_node, services, growth, reserved }
        },
    )
}

/// On the edge of what fits.
fn small_request() -> impl Strategy<Value = VpcRequest> {
    let numbers = (1..40_u64, 1..40_u64, 1..300_u64);
    let reserved = prop::collection::vec((any::<u128>(), 1..=5_u8), 0..4);
    (any::<u128>(), 18..=24_u8, numbers, reserved).prop_map(
        |(at, len, (nodes, pods_per_node, services), reserved)| {
            let vpc = vpc(Family::V4, (at, len));
            let reserved = reserved.into_iter().map(|(at, longer)| inside(&vpc, at, longer)).collect();
            let vpc = PerFamily { v4: Some(vpc), v6: None };
            VpcRequest { vpc, nodes, pods_per_node, services, growth: 4, reserved }
        },
    )
}

/// Whether the least pod network and the least Service range go anywhere at all.
fn fits_somewhere(request: &VpcRequest, vpc: IpNet) -> bool {
    let subnet = (2..32).find(|bits| power(*bits) >= u128::from(request.pods_per_node) + 3).unwrap();
    let nodes = (2..32).find(|bits| power(*bits) > u128::from(request.nodes)).unwrap();
    let services = (4..32).find(|bits| power(*bits) >= u128::from(request.services) + 2).unwrap();
    let is_free = |net: &IpNet| !request.reserved.iter().any(|reserved| meet(reserved, net));
    let places = |bits: u8| {
        let all = 32_u8.checked_sub(bits).and_then(|len| vpc.subnets(len).ok());
        all.into_iter().flatten().filter(is_free).collect::<Vec<IpNet>>()
    };
    let services = places(services);
    places(subnet + nodes).iter().any(|pods| services.iter().any(|services| !meet(pods, services)))
}

fn asked(vpc: &str, nodes: u64, pods_per_node: u64) -> VpcRequest {
    VpcRequest {
        vpc: PerFamily { v4: Some(net(vpc)), v6: None },
        nodes,
        pods_per_node,
        services: 10_000,
        growth: 4,
        reserved: Vec::new(),
    }
}

fn plan_v4(request: &VpcRequest) -> VpcPlan {
    plan_vpc(request).unwrap().v4.unwrap()
}

fn vpc(family: Family, (at, len): (u128, u8)) -> IpNet {
    IpNet::new(address(family, at), len).unwrap()
}

fn inside(vpc: &IpNet, at: u128, longer: u8) -> IpNet {
    let host = at & (power(vpc.max_prefix_len() - vpc.prefix_len()) - 1);
    let len = vpc.prefix_len().saturating_add(longer).min(vpc.max_prefix_len());
    IpNet::new(address(Family::of(vpc), bits(vpc.network()) + host), len).unwrap()
}

fn meet(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn power(bits: u8) -> u128 {
    1_u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(bits & u128::from(u32::MAX)).unwrap()).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
