use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::builder::{Finding, Identity};
use super::super::tests::{alive, applied, name};
use super::super::view::EndpointView;
use super::*;
use crate::catalog::Change;
use crate::endpoint::{Findings, Found};
use crate::node::{Node, ORPHANS};
use crate::time::Timestamp;

fn db() -> ServiceKey {
    "shop/db".parse().unwrap()
}

fn manifests(health: &str) -> Vec<Change> {
    let text = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\n\
         spec: {{ports: [{{name: pg, port: 5432}}]{health}}}\n---\n\
         apiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: db-1, namespace: shop}}\n\
         spec: {{service: db, address: 192.0.2.10, ports: {{pg: 5432}}}}\n"
    );
    applied(&text)
}

fn node(node: &str, capabilities: &[&str]) -> Change {
    Change::Node(
        name(node),
        Some(Arc::new(Node {
            name: name(node),
            addresses: vec![],
            zone: None,
            routable: vec![],
            version: "0".into(),
            capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
            since: Timestamp(0),
        })),
    )
}

const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// As `own` sees it, all five nodes being alive.
fn builder(own: &str) -> Builder {
    let mut builder = Builder::new(Identity {
        node: name(own),
        seed: 1,
    });
    let nodes = NODES
        .iter()
        .flat_map(|n| [node(n, &[ORPHANS]), alive(n, true)]);
    builder.apply(1, nodes.chain(manifests("")));
    builder.set_freshness(Freshness::Fresh);
    builder
}

fn endpoint(builder: &Builder) -> EndpointView {
    let view = builder.snapshot().service(&db()).unwrap();
    view.ports[0].endpoints[0].clone()
}

/// Who checks the endpoint, as each node sees it for itself.
fn checkers(changes: &[Change]) -> Vec<&'static str> {
    let mine = |own: &&&str| {
        let mut b = builder(own);
        b.apply(2, changes.to_vec());
        endpoint(&b).unowned
    };
    NODES.iter().filter(mine).copied().collect()
}

fn fact(value: Health) -> Fact<Health> {
    Fact::new(value, Timestamp(5), format!("{value:?}"))
}

fn says(builder: &Builder, node: &str, health: Option<Health>) -> Change {
    let id = endpoint(builder).id;
    let findings = health.map(|health| {
        Arc::new(Findings {
            service: db(),
            node: name(node),
            endpoints: vec![Found::new(&id, fact(health))],
        })
    });
    Change::Findings(db(), name(node), findings)
}

#[test]
fn two_nodes_check_and_all_agree_who() {
    let first = checkers(&[]);
    assert_eq!(first.len(), CHECKERS);
    let after = checkers(&[alive(first[0], false)]);
    let others: Vec<_> = after.iter().filter(|n| **n != first[0]).collect();
    assert_eq!(others.len(), CHECKERS, "another one takes over");
    assert!(others.contains(&&first[1]), "and the one that lives stays");
}

#[test]
fn nodes_that_could_not_are_not_chosen() {
    let first = checkers(&[]);
    let after = checkers(&[node(first[0], &["tcp"])]);
    let others: Vec<_> = after.iter().filter(|n| **n != first[0]).collect();
    assert_eq!(others.len(), CHECKERS);
}

#[test]
fn nobody_checks_what_is_not_to_be_checked() {
    let unchecked = manifests(", health: none");
    assert_eq!(checkers(&unchecked), Vec::<&str>::new());
    let mut b = builder("n1");
    b.apply(2, unchecked);
    assert_eq!(endpoint(&b).health.value, Health::Passing);
}

#[test]
fn it_passes_if_any_checker_says_so_and_fails_if_all_say_that() {
    let both = checkers(&[]);
    let other = NODES.iter().find(|n| !both.contains(n)).unwrap();
    let mut b = builder(other);
    assert_eq!(
        endpoint(&b).health.value,
        Health::Unknown,
        "nobody has spoken"
    );
    let rows = [
        (Some(Health::Failing), None, Health::Failing),
        (
            Some(Health::Failing),
            Some(Health::Passing),
            Health::Passing,
        ),
        (
            Some(Health::Failing),
            Some(Health::Failing),
            Health::Failing,
        ),
        (
            Some(Health::Failing),
            Some(Health::Unknown),
            Health::Unknown,
        ),
        (
            Some(Health::Passing),
            Some(Health::Unknown),
            Health::Passing,
        ),
    ];
    for (row, (a, c, merged)) in rows.into_iter().enumerate() {
        let said = [says(&b, both[0], a), says(&b, both[1], c)];
        b.apply(2 + row as i64, said);
        assert_eq!(endpoint(&b).health.value, merged, "{a:?} and {c:?}");
    }
}

#[test]
fn what_is_known_outlives_its_checkers_until_others_have_spoken() {
    let both = checkers(&[]);
    let other = NODES.iter().find(|n| !both.contains(n)).unwrap();
    let mut b = builder(other);
    let said = both.iter().map(|n| says(&b, n, Some(Health::Passing)));
    b.apply(2, said.collect::<Vec<_>>());
    b.apply(3, both.iter().map(|n| alive(n, false)));
    assert_eq!(
        endpoint(&b).health.value,
        Health::Passing,
        "both went at once"
    );
    let next: Vec<&str> = b
        .checkers
        .as_ref()
        .unwrap()
        .highest(format!("{}/{}", db(), endpoint(&b).id).as_bytes(), CHECKERS)
        .into_iter()
        .map(Name::as_str)
        .map(|n| *NODES.iter().find(|m| **m == n).unwrap())
        .collect();
    b.apply(4, [says(&b, next[0], Some(Health::Failing))]);
    assert_eq!(
        endpoint(&b).health.value,
        Health::Passing,
        "one has yet to speak"
    );
    b.apply(5, [says(&b, next[1], Some(Health::Failing))]);
    assert_eq!(
        endpoint(&b).health.value,
        Health::Failing,
        "those who are gone count no more"
    );
}

#[test]
fn a_checker_that_is_displaced_goes_on_until_its_successor_has_spoken() {
    let both = checkers(&[]);
    let without: Vec<Change> = vec![alive(both[0], false)];
    let stand_in = *checkers(&without)
        .iter()
        .find(|n| !both.contains(n))
        .unwrap();
    let mut b = builder(stand_in);
    b.apply(2, without);
    assert!(endpoint(&b).unowned);
    b.apply(
        3,
        [
            says(&b, stand_in, Some(Health::Passing)),
            says(&b, both[1], Some(Health::Failing)),
        ],
    );
    b.apply(4, [alive(both[0], true)]);
    assert!(
        endpoint(&b).unowned,
        "the one that came back has not spoken"
    );
    assert_eq!(endpoint(&b).health.value, Health::Passing);
    b.apply(5, [says(&b, both[0], Some(Health::Passing))]);
    assert!(!endpoint(&b).unowned);
    assert_eq!(endpoint(&b).health.value, Health::Passing);
}

#[test]
fn while_the_registry_is_lost_this_nodes_own_checks_count() {
    let both = checkers(&[]);
    let mut b = builder(both[0]);
    let said: Vec<Change> = both
        .iter()
        .map(|n| says(&b, n, Some(Health::Passing)))
        .collect();
    b.apply(2, said);
    let finding = Finding {
        service: db(),
        id: endpoint(&b).id,
        health: Some(fact(Health::Failing)),
    };
    b.apply_findings([finding]);
    assert_eq!(
        endpoint(&b).health.value,
        Health::Passing,
        "the other one still says so"
    );
    b.set_freshness(Freshness::Stale);
    assert_eq!(
        endpoint(&b).health.value,
        Health::Failing,
        "who knows what it says now"
    );
    b.set_freshness(Freshness::Fresh);
    assert_eq!(endpoint(&b).health.value, Health::Passing);
}

proptest! {
    /// Over all that five nodes may have said and whoever is alive: all nodes see the same health, at least one of those
    /// alive checks, and a pass is never invented.
    #[test]
    fn all_nodes_see_the_same(
        said in proptest::collection::btree_map(0usize..5, 0u8..3, 0..5),
        dead in proptest::collection::btree_set(0usize..5, 0..4),
    ) {
        let living: Vec<&str> = (0..5).filter(|n| !dead.contains(n)).map(|n| NODES[n]).collect();
        let mut seen: BTreeMap<&str, (Health, bool)> = BTreeMap::new();
        for own in &living {
            let mut b = builder(own);
            let mut changes: Vec<Change> = said
                .iter()
                .map(|(n, health)| {
                    let health = [Health::Unknown, Health::Passing, Health::Failing][usize::from(*health)];
                    says(&b, NODES[*n], Some(health))
                })
                .collect();
            changes.extend(dead.iter().map(|n| alive(NODES[*n], false)));
            b.apply(2, changes);
            seen.insert(own, (endpoint(&b).health.value, endpoint(&b).unowned));
        }
        let healths: std::collections::BTreeSet<_> = seen.values().map(|(h, _)| format!("{h:?}")).collect();
        prop_assert_eq!(healths.len(), 1, "{:?}", seen);
        let checking = seen.values().filter(|(_, checks)| *checks).count();
        prop_assert!(checking >= living.len().min(CHECKERS), "{:?}", seen);
        let passing = seen.values().any(|(h, _)| *h == Health::Passing);
        prop_assert!(!passing || said.values().any(|h| *h == 1));
    }
}
