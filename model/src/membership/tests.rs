use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::node::Liveness;

const CLOCK: Timestamp = Timestamp(1_000);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn alive(node: &str) -> Change {
    liveness(node, None)
}

fn restarting(node: &str) -> Change {
    // What another machine's clock says does not matter.
    liveness(node, Some(Timestamp(-5)))
}

fn liveness(node: &str, restarting_until: Option<Timestamp>) -> Change {
    Change::Liveness(
        name(node),
        Some(Arc::new(Liveness {
            node: name(node),
            session: "s".into(),
            since: Timestamp(0),
            restarting_until,
        })),
    )
}

fn gone(node: &str) -> Change {
    Change::Liveness(name(node), None)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `n1`, whose view this is, and others up to `n<count>`, all alive.
fn nodes(count: usize) -> Membership {
    let mut m = Membership::new(name("n1"), MembershipOptions::default(), CLOCK);
    let others: Vec<Change> = (2..=count).map(|n| alive(&format!("n{n}"))).collect();
    m.observe(&others, s(0), CLOCK);
    m.take_changed();
    m
}

fn state(m: &Membership, node: &str) -> NodeState {
    m.members().get(&name(node)).unwrap().state
}

#[test]
fn one_node_that_is_lost_is_orphaned_at_once() {
    for count in [2, 3, 5] {
        let mut m = nodes(count);
        m.observe(&[gone("n2")], s(100), Timestamp(5));
        assert_eq!(state(&m, "n2"), NodeState::Orphaned, "of {count}");
        assert_eq!(m.members().get(&name("n2")).unwrap().since, Timestamp(5));
        assert_eq!(m.take_changed(), [name("n2")]);
        assert!(m.guard().is_none());
        m.observe(&[alive("n2")], s(200), CLOCK);
        assert_eq!(state(&m, "n2"), NodeState::Alive);
    }
}

#[test]
fn more_than_a_third_at_once_is_held_and_said_so() {
    let mut m = nodes(5);
    m.observe(&[gone("n4"), gone("n2"), gone("n3")], s(100), CLOCK);
    for node in ["n2", "n3", "n4"] {
        assert_eq!(state(&m, node), NodeState::Held);
    }
    assert_eq!(
        m.guard().unwrap().to_string(),
        "mass expiry held: 3 of 5 nodes lost within 10s (n2, n3, n4); their endpoints stay until their checks fail"
    );
}

#[test]
fn leases_that_end_one_after_the_other_within_one_ttl_went_together() {
    let mut m = nodes(5);
    m.observe(&[gone("n2")], s(100), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Orphaned);
    m.observe(&[gone("n3")], s(109), CLOCK);
    assert_eq!(
        (state(&m, "n2"), state(&m, "n3")),
        (NodeState::Held, NodeState::Held)
    );
    m.observe(&[gone("n4")], s(400), CLOCK);
    assert_eq!(
        state(&m, "n4"),
        NodeState::Held,
        "while it is held, whoever goes joins them"
    );
}

#[test]
fn nodes_lost_one_by_one_are_each_believed_to_be() {
    let mut m = nodes(5);
    for (n, node) in ["n2", "n3", "n4", "n5"].into_iter().enumerate() {
        m.observe(&[gone(node)], s(100 * (n as u64 + 1)), CLOCK);
        assert_eq!(state(&m, node), NodeState::Orphaned);
    }
}

/// `n1` of four, started on the catalog that it saved when all were alive.
fn restored() -> Membership {
    let mut m = Membership::new(name("n1"), MembershipOptions::default(), CLOCK);
    m.restore(&[alive("n2"), alive("n3"), alive("n4")], s(0), CLOCK);
    m
}

#[test]
fn nodes_that_went_while_this_one_was_away_are_no_mass_expiry() {
    let mut m = restored();
    m.observe(&[alive("n2"), gone("n3"), gone("n4")], s(1), CLOCK);
    m.confirm();
    assert!(m.guard().is_none());
    for node in ["n3", "n4"] {
        assert_eq!(state(&m, node), NodeState::Orphaned);
    }
}

#[test]
fn once_the_registry_was_seen_whole_losses_count_again() {
    let mut m = restored();
    m.observe(&[], s(1), CLOCK);
    m.confirm();
    m.observe(&[gone("n3"), gone("n4")], s(20), CLOCK);
    assert!(m.guard().is_some());
}

#[test]
fn a_node_that_was_deleted_is_forgotten_and_held_no_more() {
    let mut m = nodes(5);
    m.observe(&[gone("n2"), gone("n3")], s(100), CLOCK);
    m.forget(&name("n1"), s(101), CLOCK);
    m.forget(&name("n4"), s(101), CLOCK);
    assert_eq!(m.members().size(), 5, "the living stay");
    m.forget(&name("n2"), s(101), CLOCK);
    assert!(m.members().get(&name("n2")).is_none());
    assert!(m.guard().is_none(), "one of five is no mass expiry");
    assert_eq!(state(&m, "n3"), NodeState::Orphaned);
}

#[test]
fn two_nodes_are_too_few_to_tell() {
    let mut m = nodes(2);
    m.observe(&[gone("n2")], s(100), CLOCK);
    assert!(m.guard().is_none());
    let mut m = nodes(3);
    m.observe(&[gone("n2"), gone("n3")], s(100), CLOCK);
    assert!(m.guard().is_some(), "three are enough");
}

#[test]
fn the_hold_ends_when_fewer_than_a_third_are_missing() {
    let mut m = nodes(5);
    m.observe(&[gone("n2"), gone("n3"), gone("n4")], s(100), CLOCK);
    m.observe(&[alive("n2")], s(101), CLOCK);
    assert_eq!(
        state(&m, "n3"),
        NodeState::Held,
        "two of five are more than a third"
    );
    assert_eq!(m.guard().unwrap().missing, [name("n3"), name("n4")]);
    m.observe(&[alive("n4")], s(102), CLOCK);
    assert!(m.guard().is_none());
    assert_eq!(state(&m, "n3"), NodeState::Orphaned);
}

#[test]
fn the_hold_ends_at_its_bound_and_not_before() {
    let mut m = nodes(3);
    m.observe(&[gone("n2"), gone("n3")], s(100), CLOCK);
    assert_eq!(m.next_at(), Some(s(700)));
    m.tick(s(699), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Held);
    m.tick(s(700), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Orphaned);
    assert!(m.guard().is_none());
    assert_eq!(m.next_at(), None);
    m.observe(&[alive("n2"), alive("n3")], s(800), CLOCK);
    assert_eq!(state(&m, "n3"), NodeState::Alive);
}

#[test]
fn a_node_that_restarts_is_believed_for_its_grace_by_this_nodes_own_clock() {
    let mut m = nodes(3);
    m.observe(&[restarting("n2")], s(100), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Restarting);
    m.tick(s(159), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Restarting);
    m.observe(&[alive("n2")], s(159), CLOCK);
    m.tick(s(500), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Alive, "it came back");
    m.observe(&[restarting("n2")], s(600), CLOCK);
    assert_eq!(m.next_at(), Some(s(660)));
    m.tick(s(660), CLOCK);
    assert_eq!(state(&m, "n2"), NodeState::Orphaned, "it did not");
    m.observe(&[gone("n2")], s(661), CLOCK);
    assert_eq!(
        state(&m, "n2"),
        NodeState::Orphaned,
        "its key going later is no second loss"
    );
}

#[test]
fn nodes_never_seen_alive_are_orphaned_from_the_first_look_and_no_mass_expiry() {
    let mut m = Membership::new(name("n1"), MembershipOptions::default(), CLOCK);
    let node = |n: &str| {
        Change::Node(
            name(n),
            Some(Arc::new(crate::node::Node {
                name: name(n),
                addresses: vec![],
                zone: None,
                routable: vec![],
                version: "0".into(),
                capabilities: vec![],
                since: Timestamp(0),
            })),
        )
    };
    m.observe(
        &[alive("n2"), node("n2"), node("n3"), node("n4"), node("n5")],
        s(3),
        CLOCK,
    );
    assert_eq!(state(&m, "n2"), NodeState::Alive);
    assert_eq!(state(&m, "n5"), NodeState::Orphaned);
    assert!(m.guard().is_none());
    m.observe(&[Change::Node(name("n5"), None)], s(4), CLOCK);
    assert_eq!(
        state(&m, "n5"),
        NodeState::Orphaned,
        "its record is deleted, and its slices may be there"
    );
}

#[test]
fn this_node_is_alive_whatever_becomes_of_its_lease() {
    let mut m = nodes(3);
    m.observe(&[alive("n1"), gone("n1")], s(100), CLOCK);
    assert_eq!(state(&m, "n1"), NodeState::Alive);
    m.observe(&[gone("n2")], s(101), CLOCK);
    assert_eq!(
        state(&m, "n2"),
        NodeState::Orphaned,
        "its own loss does not count"
    );
}

/// What happens to nodes, one step after the other.
#[derive(Clone, Debug)]
enum Step {
    Go(BTreeSet<usize>),
    Come(BTreeSet<usize>),
    Restart(usize),
    Wait(u64),
}

fn step(nodes: usize) -> impl Strategy<Value = Step> {
    let some = || proptest::collection::btree_set(2..=nodes, 1..nodes);
    prop_oneof![
        3 => some().prop_map(Step::Go),
        3 => some().prop_map(Step::Come),
        1 => (2..=nodes).prop_map(Step::Restart),
        4 => (0u64..120_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever comes and goes: who has a key is never given up, nobody is held alone or for longer than the bound, and
    /// who stays away is orphaned in the end.
    #[test]
    fn whatever_happens_the_promises_hold(
        (count, steps) in (3usize..9).prop_flat_map(|n| (Just(n), proptest::collection::vec(step(n), 1..40)))
    ) {
        let mut m = nodes(count);
        let mut now = s(0);
        let mut keys: BTreeSet<usize> = (2..=count).collect();
        let mut restarted: BTreeSet<usize> = BTreeSet::new();
        let mut held_since: Option<Duration> = None;
        for step in steps {
            let changes: Vec<Change> = match step {
                Step::Go(nodes) => {
                    nodes.iter().for_each(|n| { keys.remove(n); restarted.remove(n); });
                    nodes.iter().map(|n| gone(&format!("n{n}"))).collect()
                }
                Step::Come(nodes) => {
                    keys.extend(&nodes);
                    nodes.iter().for_each(|n| { restarted.remove(n); });
                    nodes.iter().map(|n| alive(&format!("n{n}"))).collect()
                }
                Step::Restart(n) => {
                    keys.insert(n);
                    restarted.insert(n);
                    vec![restarting(&format!("n{n}"))]
                }
                Step::Wait(ms) => {
                    // Time passes as the writer lets it pass: every deadline is met.
                    let until = now + Duration::from_millis(ms);
                    while let Some(at) = m.next_at().filter(|at| *at <= until) {
                        m.tick(at, CLOCK);
                        prop_assert!(m.next_at() != Some(at), "a deadline that is met is over");
                    }
                    now = until;
                    vec![]
                }
            };
            m.observe(&changes, now, CLOCK);
            m.tick(now, CLOCK);
            held_since = m.guard().map(|_| held_since.unwrap_or(now));
            for n in 2..=count {
                let state = state(&m, &format!("n{n}"));
                let has_key = keys.contains(&n);
                prop_assert_eq!(state == NodeState::Alive, has_key && !restarted.contains(&n), "n{} is {}", n, state);
                prop_assert!(state != NodeState::Restarting || restarted.contains(&n));
                prop_assert!(state != NodeState::Held || m.guard().is_some());
            }
            prop_assert_eq!(state(&m, "n1"), NodeState::Alive);
            if let Some(guard) = m.guard() {
                prop_assert!(guard.of >= MIN_NODES && guard.missing.len() * 3 >= guard.of);
                prop_assert!(now - held_since.unwrap_or(now) < MembershipOptions::default().hold);
            }
        }
        // Long enough for every grace and hold.
        for deadline in [s(700), s(1400)] {
            let until = now + deadline;
            m.tick(until, CLOCK);
        }
        prop_assert!(m.guard().is_none());
        prop_assert!(m.members().values().all(|member| matches!(member.state, NodeState::Alive | NodeState::Orphaned)));
    }
}
