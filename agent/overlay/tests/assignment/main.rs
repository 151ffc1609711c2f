//! Model checking of the assignment of subnets (contract N2): every order of every request of several daemons, with
//! faults at each step, for small clusters; random ones for larger clusters.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod world;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use ipnet::IpNet;
use podway_overlay::{AssignMode, Range, Unassigned};
use proptest::prelude::*;

use self::world::{Action, World};

/// Daemons that get in each other's way try again for ever, with new versions of objects each time: what begins after
/// so many versions is not followed further.
const MOST_OBJECTS: u32 = 9;

/// From one in so many states, all is let come to rest, which costs as much as fifty states.
const SETTLED: usize = 8;

/// Looks at every state that can be reached from a world with so many faults.
struct Explorer {
    /// What may go wrong, besides daemons that are killed.
    faults: fn(&World) -> Vec<Action>,
    most_faults: u8,
    /// By their hashes: a hundred thousand worlds are large.
    seen: BTreeSet<u64>,
}

impl Explorer {
    fn explore(
        faults: fn(&World) -> Vec<Action>,
        most_faults: u8,
        start: World,
        each: impl Fn(&World),
    ) -> usize {
        let mut explorer = Self { faults, most_faults, seen: BTreeSet::new() };
        let mut open = vec![(start, 0, Path(None))];
        while let Some((world, faults, path)) = open.pop() {
            if let Err(why) = world.check() {
                panic!("{why}\n{:#?}\n{world:#?}", path.actions());
            }
            if !explorer.seen.insert(hash(&(&world, faults))) {
                continue;
            }
            if explorer.seen.len().is_multiple_of(SETTLED) {
                each(&world);
            }
            if world.objects() > MOST_OBJECTS {
                continue;
            }
            for (action, is_fault) in explorer.actions(&world, faults) {
                let mut next = world.clone();
                next.act(action);
                open.push((next, faults + u8::from(is_fault), path.and(action)));
            }
        }
        explorer.seen.len()
    }

    fn actions(&self, world: &World, faults: u8) -> Vec<(Action, bool)> {
        let daemons = 0..world.daemons.len();
        let mut actions: Vec<(Action, bool)> = daemons.map(|at| (Action::Step(at), false)).collect();
        actions.extend((0..world.late()).map(|at| (Action::Arrive(at), false)));
        if faults < self.most_faults {
            actions.extend((self.faults)(world).into_iter().map(|action| (action, true)));
        }
        actions.retain(|(action, _)| world.allows(*action));
        actions
    }
}

/// How a state was reached, shared with those that were reached from the same one.
#[derive(Clone)]
struct Path(Option<Rc<(Action, Path)>>);

impl Path {
    fn and(&self, action: Action) -> Self {
        Self(Some(Rc::new((action, self.clone()))))
    }

    /// The last one first.
    fn actions(&self) -> Vec<Action> {
        std::iter::successors(self.0.as_ref(), |step| step.1.0.as_ref()).map(|step| step.0).collect()
    }
}

fn hash(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn broken_requests(world: &World) -> Vec<Action> {
    let each = |at| [Action::Kill(at), Action::LoseAnswer(at), Action::Delay(at), Action::Restart(at)];
    (0..world.daemons.len()).flat_map(each).collect()
}

fn nodes_come_and_go(world: &World) -> Vec<Action> {
    let mut actions = broken_requests(world);
    actions.extend([Action::DeleteNode("a"), Action::CreateNode("a"), Action::Collect]);
    actions
}

fn an_administrator_meddles(world: &World) -> Vec<Action> {
    let mut actions = broken_requests(world);
    actions.extend(world.claims.keys().map(|subnet| Action::DeleteClaim(*subnet)));
    actions
}

fn another_allocator(world: &World) -> Vec<Action> {
    let subnets = ["10.77.1.0/24", "10.77.2.0/24", "10.77.2.0/25"].map(|subnet| subnet.parse().unwrap());
    let daemons = 0..world.daemons.len();
    let mut actions: Vec<Action> = daemons.flat_map(|at| [Action::Kill(at), Action::Delay(at)]).collect();
    actions.extend(["a", "b"].iter().flat_map(|node| subnets.map(|subnet| Action::Allocate(node, subnet))));
    actions
}

#[test]
fn n2_two_nodes_never_hold_one_subnet_whichever_request_is_lost_or_late_and_both_get_one_in_the_end() {
    let start = World::default().machine("a", "m1", AssignMode::Always, &[subnets(2)]).machine(
        "b",
        "m2",
        AssignMode::Always,
        &[subnets(2)],
    );
    let states = Explorer::explore(broken_requests, 2, start, |world| {
        assert_all_served(world, true);
    });
    assert!(states > 1_000, "{states} states");
}

#[test]
fn n2_two_machines_with_one_name_are_never_both_served_and_one_of_them_is() {
    let start = World::default().machine("a", "m1", AssignMode::Always, &[subnets(2)]).machine(
        "a",
        "m2",
        AssignMode::Always,
        &[subnets(2)],
    );
    let states = Explorer::explore(broken_requests, 2, start, |world| {
        let settled = assert_all_served(world, true);
        let refused = settled.daemons.iter().filter(|it| it.programs.is_none()).collect::<Vec<_>>();
        assert_eq!(refused.len(), 1);
        assert!(
            matches!(refused[0].refusal, Some(Unassigned::OtherMachine { .. })),
            "{:?}",
            refused[0].refusal
        );
    });
    assert!(states > 1_000, "{states} states");
}

#[test]
fn n2_what_deleted_nodes_held_is_free_again_with_and_without_a_garbage_collector() {
    let start = World::default().machine("a", "m1", AssignMode::Always, &[subnets(2)]).machine(
        "b",
        "m2",
        AssignMode::Always,
        &[subnets(2)],
    );
    let states = Explorer::explore(nodes_come_and_go, 2, start, |world| {
        assert_all_served(world, false);
        assert_all_served(world, true);
    });
    assert!(states > 1_000, "{states} states");
}

#[test]
fn n2_claims_that_an_administrator_deletes_do_not_let_two_nodes_hold_one_subnet() {
    let start = World::default().machine("a", "m1", AssignMode::Always, &[subnets(2)]).machine(
        "b",
        "m2",
        AssignMode::Always,
        &[subnets(2)],
    );
    let states = Explorer::explore(an_administrator_meddles, 2, start, |_| {});
    assert!(states > 1_000, "{states} states");
}

#[test]
fn n2_another_allocator_and_podway_never_make_two_machines_hold_one_subnet() {
    let start = World::default().machine("a", "m1", AssignMode::Always, &[subnets(2)]).machine(
        "b",
        "m2",
        AssignMode::Auto,
        &[subnets(2)],
    );
    let states = Explorer::explore(another_allocator, 2, start, |_| {});
    assert!(states > 1_000, "{states} states");
}

#[test]
fn n2_daemons_that_are_told_different_subnet_lengths_never_hold_overlapping_subnets() {
    let finer =
        Range::new(net("10.77.0.0/22"), Some(25), address("10.77.1.0"), address("10.77.2.128")).unwrap();
    let start = World::default().machine("a", "m1", AssignMode::Always, &[subnets(2)]).machine(
        "b",
        "m2",
        AssignMode::Always,
        &[finer],
    );
    let states = Explorer::explore(broken_requests, 2, start, |_| {});
    assert!(states > 1_000, "{states} states");
}

/// Whoever gives a Node its subnet goes first in mode `auto`; where nobody does, podway assigns without being told.
#[test]
fn n2_mode_auto_assigns_where_nobody_else_does_and_waits_where_somebody_does() {
    let world = World::default()
        .machine("a", "m1", AssignMode::Auto, &[subnets(2)])
        .machine("b", "m2", AssignMode::Auto, &[subnets(2)])
        .machine("c", "m3", AssignMode::Never, &[subnets(2)]);
    let mut alone = world.clone();
    alone.settle(false);
    assert_eq!(alone.served(), ["a", "b"].into());
    assert!(matches!(alone.daemons[2].refusal, Some(Unassigned::LeftToOthers(_))));

    let mut beside_another = world;
    beside_another.act(Action::Allocate("a", net("10.77.1.0/24")));
    beside_another.settle(false);
    assert_eq!(beside_another.served(), ["a"].into());
    assert!(matches!(beside_another.daemons[1].refusal, Some(Unassigned::OthersAssign { .. })));
    beside_another.act(Action::Allocate("b", net("10.77.2.0/24")));
    beside_another.act(Action::Allocate("c", net("10.77.3.0/24")));
    beside_another.settle(false);
    assert_eq!(beside_another.served(), ["a", "b", "c"].into());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Four Nodes and five machines, both families, in a range that is just large enough.
    #[test]
    fn n2_any_cluster_with_any_faults_holds_no_subnet_twice_and_serves_every_node_in_the_end(
        actions in prop::collection::vec(any_action(), 0..300),
        is_collected in any::<bool>(),
    ) {
        let v6 = Range::new(net("fd77::/61"), Some(64), None, address("fd77:0:0:4::")).unwrap();
        let machines = [("a", "m1"), ("b", "m2"), ("c", "m3"), ("d", "m4"), ("a", "m5")];
        let mut world = machines.into_iter().fold(World::default(), |world, (name, machine)| {
            world.machine(name, machine, AssignMode::Always, &[subnets(4), v6])
        });
        for action in actions {
            world.act(action);
            prop_assert_eq!(world.check(), Ok(()));
        }
        for name in ["a", "b", "c", "d"] {
            world.act(Action::CreateNode(name));
        }
        world.settle(is_collected);
        prop_assert_eq!(world.check(), Ok(()));
        prop_assert_eq!(world.served(), ["a", "b", "c", "d"].into(), "{:#?}", world);
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    let machine = 0..5usize;
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    prop_oneof![
        60 => machine.clone().prop_map(Action::Step),
        2 => machine.clone().prop_map(Action::Kill),
        2 => machine.clone().prop_map(Action::LoseAnswer),
        2 => machine.clone().prop_map(Action::Delay),
        3 => (0..3usize).prop_map(Action::Arrive),
        2 => machine.prop_map(Action::Restart),
        1 => name.clone().prop_map(Action::DeleteNode),
        3 => name.prop_map(Action::CreateNode),
        1 => Just(Action::Collect),
    ]
}

/// Rests with a machine at every Node.
#[track_caller]
fn assert_all_served(world: &World, is_collected: bool) -> World {
    let mut settled = world.clone();
    settled.settle(is_collected);
    settled.check().unwrap();
    let nodes: BTreeSet<&str> = settled.nodes.keys().copied().collect();
    assert_eq!(settled.served(), nodes, "from {world:#?}\nto {settled:#?}");
    settled
}

/// A range with so many subnets to hand out.
fn subnets(count: u8) -> Range {
    let last = format!("10.77.{count}.0");
    let len = if count < 4 { 22 } else { 20 };
    let network = IpNet::new(net("10.77.0.0/16").addr(), len).unwrap();
    Range::new(network, Some(24), address("10.77.1.0"), address(&last)).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> Option<std::net::IpAddr> {
    Some(text.parse().unwrap())
}
