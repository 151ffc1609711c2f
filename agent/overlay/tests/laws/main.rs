//! What holds for any Nodes in any order: incremental equals scratch, the steps reach the plan, and no route ever
//! stands without the entries that it needs.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod contention;
mod host;
mod standing;
mod steps;
mod world;

use crate::world::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Scratch: each Node's own history since it came or was last without fault, one Node after the other.
    #[test]
    fn n17_incremental_equals_scratch(settings in any_settings(), events in events()) {
        let mut overlay = Overlay::new(settings.clone()).unwrap();
        overlay.set_host(host(1500));
        let (mut nodes, mut facts, mut services) = (BTreeMap::<_, Vec<_>>::new(), host(1500), false);
        for event in &events {
            match event {
                Event::Services(present) => services = *present,
                Event::Node(at, shape) => {
                    let history = nodes.entry(*at).or_default();
                    if shape.as_ref().is_none_or(|shape| !shape.slip) {
                        history.clear();
                    }
                    history.push(shape.clone());
                }
                Event::Host(mtu, neighbours) => facts = host_with(*mtu, *neighbours),
                Event::Drain => {}
            }
            feed(&mut overlay, event);
        }
        let mut scratch = Overlay::new(settings).unwrap();
        scratch.set_host(facts);
        feed(&mut scratch, &Event::Services(services));
        for (at, history) in nodes {
            history.into_iter().for_each(|shape| feed(&mut scratch, &Event::Node(at, shape)));
        }
        prop_assert_eq!(overlay.plan(), scratch.plan());
        prop_assert_eq!(overlay.annotations(), scratch.annotations());
    }

    /// The rules of contracts N14 and N23 once more, by comparing each Node with every other.
    #[test]
    fn n14_n23_of_nodes_that_contend_only_the_first_is_routed_and_no_route_takes_a_nodes_address(shapes in prop::collection::vec(prop::option::of(shape()), 6)) {
        let mut overlay = overlay();
        for (at, shape) in shapes.iter().enumerate() {
            feed(&mut overlay, &Event::Node(at, shape.clone()));
        }
        let claims: Vec<(&str, IpNet, u8, IpAddr)> = NAMES
            .iter()
            .zip(&shapes)
            .filter(|(name, _)| **name != OWN)
            .filter_map(|(name, shape)| {
                let routable = |shape: &&Shape| shape.managed && !shape.host_gw && !shape.slip;
                let shape = shape.as_ref().filter(routable)?;
                Some((*name, subnet4(shape)?, shape.mac, underlay(shape.underlay, Family::V4)))
            })
            .collect();
        let own = shapes[3].as_ref().and_then(subnet4);
        let own_mac = shapes[3].as_ref().map(|shape| if shape.managed { mac(shape.mac, 4) } else { own_device_mac() });
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let addresses: Vec<IpAddr> = claims.iter().map(|(_, _, _, address)| *address).collect();
        let admitted: Vec<_> = claims
            .into_iter()
            .filter(|(_, subnet, at, address)| {
                own.is_some_and(|own| !overlap(&own, subnet) && !own.contains(address))
                    && own_mac != Some(mac(*at, 4))
            })
            .map(|(name, subnet, at, _)| (name, subnet, at))
            .collect();
        let comes_first = |(name, subnet, at): &(&str, IpNet, u8), (other, theirs, mac): &(&str, IpNet, u8)| {
            let longer = overlap(theirs, subnet) && theirs.prefix_len() > subnet.prefix_len();
            longer || other < name && (theirs == subnet || mac == at)
        };
        let expected: BTreeSet<IpNet> = admitted
            .iter()
            .filter(|claim| !admitted.iter().any(|other| comes_first(claim, other)))
            .map(|(_, subnet, _)| *subnet)
            .filter(|subnet| !addresses.iter().any(|address| subnet.contains(address)))
            .collect();
        let routed: BTreeSet<IpNet> =
            overlay.plan().rows.routes.into_keys().filter(|subnet| subnet.addr().is_ipv4()).collect();
        prop_assert_eq!(routed, expected);
    }

    #[test]
    fn n6_the_steps_reach_the_plan_and_no_live_peer_is_ever_cut_off(
        settings in any_settings(), first in events(), second in events(),
    ) {
        let mut kernel = FakeKernel::default();
        let mut overlay = Overlay::new(settings).unwrap();
        overlay.set_host(host(1500));
        for event in first.iter().chain([&Event::Drain]).chain(&second).chain([&Event::Drain]) {
            if !matches!(event, Event::Drain) {
                feed(&mut overlay, event);
                continue;
            }
            let before = kernel.observe().rows;
            let ops = match overlay.changes() {
                Some(ops) => ops,
                None => overlay.reconcile(&kernel.observe()),
            };
            let plan = overlay.plan();
            let remade = ops.iter().any(|op| matches!(op, Op::RemoveLink { .. } | Op::SetLink { mac: Some(_), .. }));
            for op in &ops {
                kernel.run(op).map_err(|refusal| TestCaseError::fail(format!("{op:?}: {refusal}")))?;
                if !remade {
                    let now = kernel.observe().rows;
                    prop_assert_eq!(uncovered(&now), vec![], "after {:?} of {:?}", op, ops);
                    prop_assert_eq!(cut_off(&before, &now, &plan.rows), vec![], "after {:?} of {:?}", op, ops);
                }
            }
            let observed = kernel.observe();
            let planned = |family: Family| plan.held.get(family).is_none();
            let routes: BTreeMap<_, _> =
                observed.rows.routes.clone().into_iter().filter(|(subnet, _)| planned(Family::of(subnet))).collect();
            prop_assert_eq!(routes, plan.rows.routes.clone());
            let blackholes: BTreeSet<_> =
                observed.blackholes.iter().copied().filter(|subnet| planned(Family::of(subnet))).collect();
            prop_assert_eq!(blackholes, plan.blackholes.clone());
            for (name, link) in &plan.links {
                let state = &observed.links[name];
                prop_assert!(state.up && state.ours && state.mismatch(link).is_none());
                prop_assert_eq!(&state.kind, &LinkKind::Vxlan(VxlanState::from(link)));
                prop_assert_eq!((state.mtu, state.mac), (link.mtu, Some(link.mac)));
                prop_assert_eq!(&state.addresses, &BTreeSet::from([IpNet::from(link.address)]));
            }
            prop_assert_eq!(overlay.reconcile(&observed), vec![], "a second pass");
            prop_assert_eq!(overlay.changes(), Some(vec![]));
        }
    }

    #[test]
    fn n17_a_change_of_one_peer_touches_that_peer_only(host in 1u8..=249, to in 1u8..=249) {
        let mut overlay = overlay();
        feed(&mut overlay, &Event::Node(3, Some(Shape { managed: true, slip: false, host_gw: false, v4: Some((0, 24)), v6: Some(0), mac: 0, underlay: 0 })));
        for n in 1..=249u8 {
            overlay.apply(&peer(n).name.clone(), Some(&peer(n)));
        }
        let mut kernel = FakeKernel::default();
        for op in overlay.reconcile(&kernel.observe()) {
            kernel.run(&op).unwrap();
        }
        prop_assert_eq!(kernel.observe().rows.routes.len(), 249);
        let mut changed = peer(host);
        changed.flannel.insert("public-ip".to_owned(), format!("198.51.100.{to}"));
        overlay.apply(&changed.name.clone(), Some(&changed));
        let key = FdbKey { link: LinkName::new("flannel.1").unwrap(), mac: mac(host, 4) };
        prop_assert_eq!(overlay.changes(), Some(vec![Op::SetFdb(key, Ipv4Addr::new(198, 51, 100, to).into())]));
    }
}
