use std::collections::BTreeSet;
use std::sync::Arc;

use model::catalog::Change;
use model::endpoint::{Endpoint, EndpointId, Lifecycle, ManualEndpoint, Slice};
use model::manifest::{self, Manifest};
use model::membership::{Membership, MembershipOptions};
use model::node::{Liveness, Node, ORPHANS};
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Freshness, Identity};
use model::time::Timestamp;
use registry::publish::Orphan;

use super::collect::Due;
use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn key(text: &str) -> ServiceKey {
    text.parse().expect("a key")
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn alive(node: &str, alive: bool) -> Change {
    let liveness = alive.then(|| {
        Arc::new(Liveness {
            node: name(node),
            session: "s".into(),
            since: Timestamp(0),
            restarting_until: None,
        })
    });
    Change::Liveness(name(node), liveness)
}

fn node(text: &str) -> Change {
    Change::Node(
        name(text),
        Some(Arc::new(Node {
            name: name(text),
            addresses: vec![],
            zone: None,
            routable: vec![],
            version: "0".into(),
            capabilities: vec![ORPHANS.to_owned()],
            since: Timestamp(0),
        })),
    )
}

fn applied(yaml: &str) -> Vec<Change> {
    let manifests = manifest::parse(yaml).expect("good").into_iter();
    let changes = manifests.map(|m| match m {
        Manifest::Service(m) => Change::Service(
            m.metadata.key(),
            Some(Arc::new(Service {
                metadata: m.metadata,
                managed_by: ManagedBy::Apply,
                spec: m.spec,
            })),
        ),
        Manifest::Endpoint(m) => Change::Endpoint(
            m.metadata.key(),
            Some(Arc::new(ManualEndpoint {
                metadata: m.metadata,
                managed_by: ManagedBy::Apply,
                spec: m.spec,
            })),
        ),
    });
    changes.collect()
}

fn service(text: &str, health: &str) -> Change {
    let k = key(text);
    let yaml = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\n\
         spec: {{selector: app=x, ports: [{{name: http, port: 80}}]{health}}}\n",
        k.name, k.namespace
    );
    applied(&yaml).remove(0)
}

fn endpoint(workload: &str, health: Health, reachable: bool) -> Endpoint {
    Endpoint {
        workload: workload.into(),
        name: workload.into(),
        port: name("http"),
        generation: "g1".into(),
        local: vec!["172.17.0.2:8080".parse().expect("an address")],
        remote: Vec::from_iter(reachable.then(|| "192.0.2.2:8080".parse().expect("an address"))),
        weight: 1,
        zone: None,
        hostname: None,
        health: Fact::new(health, Timestamp(1), "as published"),
        lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
    }
}

fn slice(service: &str, node: &str, endpoints: Vec<Endpoint>) -> Change {
    let slice = Slice {
        service: key(service),
        node: name(node),
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    };
    Change::Slice(key(service), name(node), Some(Arc::new(slice)))
}

/// One node's agent without sockets or a clock.
struct World {
    own: Name,
    builder: Builder,
    membership: Membership,
    unowned: Unowned,
    collector: Collector,
    checks: Checks,
}

impl World {
    /// n1 to n4 are alive, and n4 has a slice of `shop/web`.
    fn new(own: &str, endpoints: Vec<Endpoint>) -> World {
        let mut world = World {
            own: name(own),
            builder: Builder::new(Identity {
                node: name(own),
                seed: 1,
            }),
            membership: Membership::new(name(own), MembershipOptions::default(), Timestamp(0)),
            unowned: Unowned::new(name(own)),
            collector: Collector::new(name(own), CollectOptions::default()),
            checks: Checks::new(1, 1, crate::metrics::Metrics::new()),
        };
        let nodes = ["n1", "n2", "n3", "n4"];
        let mut changes: Vec<Change> = nodes
            .iter()
            .flat_map(|n| [alive(n, true), node(n)])
            .collect();
        changes.push(service("shop/web", ""));
        changes.push(slice("shop/web", "n4", endpoints));
        world.apply(s(0), changes);
        world.builder.set_freshness(Freshness::Fresh);
        world
    }

    fn apply(&mut self, now: Duration, changes: Vec<Change>) {
        self.membership.observe(&changes, now, Timestamp(0));
        let changed = self.membership.take_changed();
        self.builder.set_members(&self.membership, changed);
        self.builder.apply(1, changes);
        self.follow(now);
    }

    fn follow(&mut self, now: Duration) -> Vec<Finding> {
        let (snapshot, catalog) = (
            self.builder.snapshot().clone(),
            self.builder.catalog().clone(),
        );
        self.unowned
            .follow(&snapshot, &catalog, &mut self.checks, now)
    }

    fn turn(&mut self, workload: &str, health: Health, now: Duration) {
        let key = self.check(workload);
        let fact = Fact::new(health, Timestamp(2), "as found");
        assert!(self.unowned.found(key, fact, now).is_some());
    }

    fn check(&self, workload: &str) -> CheckKey {
        CheckKey {
            service: key("shop/web"),
            id: EndpointId {
                workload: workload.into(),
                port: name("http"),
                generation: "g1".into(),
            },
            unowned: true,
        }
    }

    fn due(&mut self, now: Duration) -> Vec<Due> {
        let (snapshot, catalog) = (
            self.builder.snapshot().clone(),
            self.builder.catalog().clone(),
        );
        self.collector
            .judge(&snapshot, &catalog, &self.unowned, now)
            .0
    }

    /// This node's place in the line of those that may collect `shop/web` of n4.
    fn rank(&self) -> u32 {
        let caretakers = self.builder.snapshot().caretakers(&self.own);
        let rank = caretakers
            .rank(b"shop/web/n4", &self.own)
            .expect("it is alive");
        u32::try_from(rank).expect("a few")
    }
}

/// The node that is to collect what n4 left.
fn first_in_line() -> &'static str {
    let dead = |own: &str| {
        let mut w = World::new(own, vec![endpoint("a", Health::Passing, true)]);
        w.apply(s(10), vec![alive("n4", false)]);
        w.rank() == 0
    };
    ["n1", "n2", "n3"]
        .into_iter()
        .find(|n| dead(n))
        .expect("one of them")
}

#[test]
fn a_slice_is_collected_once_all_its_endpoints_have_failed_for_long_enough() {
    let both = vec![
        endpoint("a", Health::Passing, true),
        endpoint("b", Health::Passing, true),
    ];
    let mut w = World::new(first_in_line(), both);
    w.apply(s(10), vec![alive("n4", false)]);
    w.turn("a", Health::Failing, s(20));
    assert!(w.due(s(1000)).is_empty(), "b passes");
    w.turn("b", Health::Failing, s(1000));
    assert!(w.due(s(1059)).is_empty());
    let due = w.due(s(1060));
    let [
        Due {
            orphan: Orphan::Slice(slice),
            reason,
        },
    ] = due.as_slice()
    else {
        panic!("{due:?}")
    };
    assert_eq!((&slice.node, slice.endpoints.len()), (&name("n4"), 2));
    assert_eq!(reason, "all 2 endpoints have failed their checks for 60s");
    w.turn("a", Health::Passing, s(1061));
    assert!(w.due(s(2000)).is_empty(), "it recovered");
}

#[test]
fn nobody_collects_what_belongs_to_a_node_that_is_alive_or_held_or_can_not_be_seen() {
    let mut w = World::new(first_in_line(), vec![endpoint("a", Health::Failing, true)]);
    assert!(w.due(s(5000)).is_empty(), "alive");
    let mut others: Vec<Change> = ["n1", "n2", "n3", "n4"]
        .iter()
        .map(|n| alive(n, false))
        .collect();
    others.retain(|c| !matches!(c, Change::Liveness(n, _) if *n == w.own));
    w.apply(s(10_000), others);
    assert!(w.builder.snapshot().guard.is_some());
    w.follow(s(10_000));
    assert!(w.due(s(10_500)).is_empty(), "held");
    let mut w = World::new(first_in_line(), vec![endpoint("a", Health::Failing, true)]);
    w.apply(s(10), vec![alive("n4", false)]);
    w.builder.set_freshness(Freshness::Stale);
    assert!(w.due(s(5000)).is_empty(), "the registry is lost");
    w.builder.set_freshness(Freshness::Fresh);
    assert_eq!(w.due(s(5000)).len(), 1);
    w.apply(s(5001), vec![alive("n4", true)]);
    assert!(w.due(s(6000)).is_empty(), "it is back");
}

#[test]
fn what_can_not_be_checked_waits_ten_times_as_long_and_what_passes_a_day() {
    let mut w = World::new(first_in_line(), vec![endpoint("a", Health::Passing, false)]);
    w.apply(s(10), vec![alive("n4", false)]);
    assert!(w.due(s(10)).is_empty());
    assert!(w.due(s(609)).is_empty());
    let due = w.due(s(610));
    assert!(
        due[0].reason.contains("1 can't be checked from here"),
        "{due:?}"
    );
    let mut w = World::new(first_in_line(), vec![endpoint("a", Health::Passing, true)]);
    w.apply(s(10), vec![alive("n4", false)]);
    let day = 24 * 60 * 60;
    assert!(w.due(s(10)).is_empty());
    assert!(w.due(s(9 + day)).is_empty());
    assert_eq!(w.due(s(10 + day)).len(), 1);
}

#[test]
fn one_node_collects_and_the_others_wait_in_line_in_case_it_does_not() {
    let mut turns = BTreeSet::new();
    for own in ["n1", "n2", "n3"] {
        let mut w = World::new(own, vec![endpoint("a", Health::Failing, true)]);
        w.apply(s(10), vec![alive("n4", false)]);
        let at = s(70) + s(600) * w.rank();
        assert!(w.due(at - s(1)).is_empty());
        assert_eq!(w.due(at).len(), 1, "{own}");
        turns.insert(w.rank());
    }
    assert_eq!(turns, BTreeSet::from([0, 1, 2]));
}

#[test]
fn checks_of_lost_nodes_begin_and_end_with_the_loss() {
    let mut w = World::new("n1", vec![endpoint("a", Health::Passing, true)]);
    assert!(w.unowned.services.is_empty());
    w.apply(s(10), vec![alive("n4", false)]);
    assert_eq!(
        w.checks.fact(&w.check("a")).map(|f| f.value),
        Some(Health::Passing)
    );
    w.turn("a", Health::Failing, s(11));
    let catalog = w.builder.catalog().clone();
    assert!(
        w.unowned.unpublished(&catalog, &w.checks).is_empty(),
        "told to nobody else"
    );
    w.apply(s(20), vec![alive("n4", true)]);
    assert!(w.unowned.services.is_empty());
    assert!(w.checks.fact(&w.check("a")).is_none());
}

fn by_hand(service: &str) -> Vec<Change> {
    let k = key(service);
    let yaml = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {ns}}}\n\
         spec: {{ports: [{{name: pg, port: 5432}}]}}\n---\n\
         apiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: db-1, namespace: {ns}}}\n\
         spec: {{service: {}, address: 192.0.2.10, ports: {{pg: 5432}}}}\n",
        k.name,
        k.name,
        ns = k.namespace
    );
    applied(&yaml)
}

impl World {
    fn unpublished(&mut self) -> BTreeMap<ServiceKey, Option<Findings>> {
        let catalog = self.builder.catalog().clone();
        self.unowned.unpublished(&catalog, &self.checks)
    }

    /// The id of the endpoint made by hand, and whether this node checks it.
    fn db(&self) -> (EndpointId, bool) {
        let view = self
            .builder
            .snapshot()
            .service(&key("shop/db"))
            .expect("it is there");
        let endpoint = &view.ports[0].endpoints[0];
        (endpoint.id.clone(), endpoint.unowned)
    }

    fn says(&self, node: &str, health: Health) -> Change {
        let findings = Findings {
            service: key("shop/db"),
            node: name(node),
            endpoints: vec![Found::new(
                &self.db().0,
                Fact::new(health, Timestamp(3), "found"),
            )],
        };
        Change::Findings(key("shop/db"), name(node), Some(Arc::new(findings)))
    }
}

fn with_db(own: &str) -> World {
    let mut w = World::new(own, Vec::new());
    w.apply(s(1), by_hand("shop/db"));
    w
}

/// The two nodes that check the endpoint made by hand, and another.
fn checkers() -> (Vec<&'static str>, &'static str) {
    let nodes = ["n1", "n2", "n3", "n4"];
    let (checking, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|n| with_db(n).db().1);
    (checking, others[0])
}

#[test]
fn a_checker_publishes_what_its_checks_find_and_nothing_before_or_twice() {
    let (checking, idle) = checkers();
    assert_eq!(checking.len(), 2);
    assert!(
        with_db(idle).unowned.services.is_empty(),
        "who is no checker does not check"
    );
    let mut w = with_db(checking[0]);
    assert!(w.unpublished().is_empty(), "nothing is known yet");
    let found = w.says(checking[0], Health::Passing);
    let Change::Findings(_, _, Some(findings)) = found.clone() else {
        panic!()
    };
    // As a check of the same outcome has it; the real ones run on sockets.
    w.checks.begin(
        unowned(&key("shop/db"), &w.db().0),
        match check::plan(
            None,
            None,
            "",
            &["192.0.2.10:5432".parse().expect("an address")],
        ) {
            Plan::Active(spec) => spec,
            Plan::Fixed(..) | Plan::Docker(..) => panic!("TCP is the default"),
        },
        Begin::Known(findings.endpoints[0].health.clone()),
    );
    let check = unowned(&key("shop/db"), &w.db().0);
    w.unowned
        .found(check, findings.endpoints[0].health.clone(), s(2))
        .expect("it is checked");
    let wishes = w.unpublished();
    assert_eq!(
        wishes.get(&key("shop/db")),
        Some(&Some((*findings).clone()))
    );
    w.apply(s(3), vec![found]);
    assert!(w.unpublished().is_empty(), "the registry has it");
    w.apply(
        s(4),
        vec![Change::Findings(key("shop/db"), name(checking[0]), None)],
    );
    assert_eq!(
        w.unpublished().len(),
        1,
        "what somebody removed is put back"
    );
    w.apply(s(5), vec![Change::Endpoint(key("shop/db-1"), None)]);
    w.apply(s(5), vec![lagging(&findings)]);
    assert_eq!(
        w.unpublished().get(&key("shop/db")),
        Some(&None),
        "it goes with its endpoint"
    );
}

/// What a catalog that lags behind still shows.
fn lagging(findings: &Arc<Findings>) -> Change {
    Change::Findings(
        key("shop/db"),
        findings.node.clone(),
        Some(findings.clone()),
    )
}

#[test]
fn who_takes_over_begins_with_what_was_known_and_who_is_relieved_withdraws() {
    let (checking, idle) = checkers();
    let mut w = with_db(idle);
    let said: Vec<Change> = checking
        .iter()
        .map(|n| w.says(n, Health::Passing))
        .collect();
    w.apply(s(2), said);
    assert!(w.unpublished().is_empty());
    w.apply(
        s(3),
        vec![alive(checking[0], false), alive(checking[1], false)],
    );
    let wishes = w.unpublished();
    let wish = wishes[&key("shop/db")].as_ref().expect("it checks now");
    assert_eq!(
        wish.endpoints[0].health.value,
        Health::Passing,
        "until its own checks say otherwise"
    );
    let mine = w.says(idle, Health::Passing);
    w.apply(
        s(4),
        vec![mine, alive(checking[0], true), alive(checking[1], true)],
    );
    assert!(w.unowned.services.is_empty(), "both others have spoken");
    assert_eq!(w.unpublished().get(&key("shop/db")), Some(&None));
}
