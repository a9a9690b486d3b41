use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::catalog::Change;
use crate::endpoint::{Endpoint, Fact, Health, Lifecycle, ManualEndpoint, Slice, State};
use crate::manifest::{self, Manifest};
use crate::mark::{Mark, MarkTarget};
use crate::membership::{Membership, MembershipOptions};
use crate::node::{Liveness, Node};
use crate::service::{ManagedBy, Service};
use crate::time::Timestamp;

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

pub(super) fn applied(yaml: &str) -> Vec<Change> {
    let manifests = manifest::parse(yaml).unwrap().into_iter();
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

fn service(key_text: &str, spec: &str) -> Change {
    let k = key(key_text);
    let text = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\nspec: {spec}\n",
        k.name, k.namespace
    );
    applied(&text).remove(0)
}

fn endpoint(workload: &str, health: Health, lifecycle: Lifecycle) -> Endpoint {
    Endpoint {
        workload: workload.into(),
        name: workload.into(),
        port: name("http"),
        generation: "g1".into(),
        local: vec!["172.17.0.2:8080".parse().unwrap()],
        remote: vec!["192.0.2.2:32768".parse().unwrap()],
        weight: 1,
        zone: None,
        hostname: None,
        health: Fact::new(health, Timestamp(1), "because"),
        lifecycle: Fact::new(lifecycle, Timestamp(1), ""),
    }
}

fn slice(service: &str, node: &str, endpoints: Vec<Endpoint>) -> Change {
    let slice = Slice {
        service: key(service),
        node: name(node),
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    };
    let slice = (!slice.endpoints.is_empty()).then(|| Arc::new(slice));
    Change::Slice(key(service), name(node), slice)
}

pub(super) fn alive(node: &str, alive: bool) -> Change {
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

fn builder() -> Builder {
    let mut builder = Builder::new(Identity {
        node: name("n1"),
        seed: 7,
    });
    builder.apply(
        1,
        [
            alive("n1", true),
            alive("n2", true),
            service(
                "shop/web",
                "{selector: app=web, ports: [{name: http, port: 80, protocol: http}]}",
            ),
        ],
    );
    builder
}

fn port(builder: &Builder) -> Arc<PortView> {
    builder.snapshot().service(&key("shop/web")).unwrap().ports[0].clone()
}

#[test]
fn only_ready_endpoints_are_eligible() {
    let mut b = builder();
    b.apply(
        2,
        [slice(
            "shop/web",
            "n1",
            vec![
                endpoint("a", Health::Passing, Lifecycle::Running),
                endpoint("b", Health::Unknown, Lifecycle::Running),
                endpoint("c", Health::Failing, Lifecycle::Running),
                endpoint("d", Health::Passing, Lifecycle::Terminating),
            ],
        )],
    );
    let port = port(&b);
    assert_eq!(port.eligible, [0]);
    let states: Vec<State> = port.endpoints.iter().map(|e| e.state).collect();
    assert_eq!(
        states,
        [
            State::Ready,
            State::Starting,
            State::Unhealthy,
            State::Draining
        ]
    );
}

#[test]
fn when_all_are_terminating_those_that_pass_are_used() {
    let mut b = builder();
    b.apply(
        2,
        [slice(
            "shop/web",
            "n1",
            vec![
                endpoint("a", Health::Passing, Lifecycle::Terminating),
                endpoint("b", Health::Failing, Lifecycle::Terminating),
            ],
        )],
    );
    assert_eq!(port(&b).eligible, [0]);
}

#[test]
fn another_nodes_local_address_is_never_dialled() {
    let mut b = builder();
    let mut unpublished = endpoint("b", Health::Passing, Lifecycle::Running);
    unpublished.remote.clear();
    b.apply(
        2,
        [
            slice(
                "shop/web",
                "n1",
                vec![endpoint("a", Health::Passing, Lifecycle::Running)],
            ),
            slice(
                "shop/web",
                "n2",
                vec![
                    endpoint("a", Health::Passing, Lifecycle::Running),
                    unpublished,
                ],
            ),
        ],
    );
    let port = port(&b);
    assert_eq!(
        port.endpoints[0].addresses(),
        ["172.17.0.2:8080".parse().unwrap()]
    );
    assert_eq!(
        port.endpoints[1].addresses(),
        ["192.0.2.2:32768".parse().unwrap()]
    );
    assert!(port.endpoints[2].addresses().is_empty());
    assert!(
        port.endpoints[2]
            .reason
            .starts_with("unreachable: publish a port")
    );
    assert_eq!(port.eligible, [0, 1]);
}

#[test]
fn a_routable_network_lets_the_local_address_be_dialled_from_elsewhere() {
    let mut b = builder();
    let node = Node {
        name: name("n2"),
        addresses: vec![],
        zone: None,
        routable: vec!["172.17.0.0/16".parse().unwrap()],
        version: "0".into(),
        capabilities: vec![],
        since: Timestamp(0),
    };
    b.apply(
        2,
        [
            slice(
                "shop/web",
                "n2",
                vec![endpoint("a", Health::Passing, Lifecycle::Running)],
            ),
            Change::Node(name("n2"), Some(Arc::new(node))),
        ],
    );
    assert_eq!(
        port(&b).endpoints[0].addresses(),
        ["172.17.0.2:8080".parse().unwrap()]
    );
}

#[test]
fn one_change_rebuilds_one_service() {
    let mut b = builder();
    b.apply(2, [service("shop/db", "{ports: [{name: pg, port: 5432}]}")]);
    let db = b.snapshot().service(&key("shop/db")).unwrap().clone();
    b.apply(
        3,
        [slice(
            "shop/web",
            "n1",
            vec![endpoint("a", Health::Passing, Lifecycle::Running)],
        )],
    );
    assert!(Arc::ptr_eq(
        &db,
        b.snapshot().service(&key("shop/db")).unwrap()
    ));
}

#[test]
fn counters_are_carried_over_by_id_and_not_by_address() {
    let mut b = builder();
    b.apply(
        2,
        [slice(
            "shop/web",
            "n1",
            vec![endpoint("a", Health::Passing, Lifecycle::Running)],
        )],
    );
    let before = port(&b);
    let mut weightier = endpoint("a", Health::Passing, Lifecycle::Running);
    weightier.weight = 5;
    b.apply(3, [slice("shop/web", "n1", vec![weightier])]);
    let after = port(&b);
    assert!(Arc::ptr_eq(
        &before.endpoints[0].load,
        &after.endpoints[0].load
    ));
    assert!(Arc::ptr_eq(&before.load, &after.load));
    let mut restarted = endpoint("a", Health::Passing, Lifecycle::Running);
    restarted.generation = "g2".into();
    b.apply(4, [slice("shop/web", "n1", vec![restarted])]);
    assert!(!Arc::ptr_eq(
        &before.endpoints[0].load,
        &port(&b).endpoints[0].load
    ));
}

#[test]
fn a_drained_endpoint_takes_no_work_until_its_mark_goes() {
    let mut b = builder();
    b.apply(
        2,
        [slice(
            "shop/web",
            "n1",
            vec![endpoint("a", Health::Passing, Lifecycle::Running)],
        )],
    );
    let target = MarkTarget::Endpoint {
        service: key("shop/web"),
        workload: "a".into(),
        port: name("http"),
    };
    let mark = Mark {
        target: target.clone(),
        since: Timestamp(5),
        reason: "maintenance".into(),
    };
    b.apply(3, [Change::Mark(target.clone(), Some(Arc::new(mark)))]);
    let drained = port(&b);
    assert_eq!(drained.endpoints[0].state, State::Draining);
    assert!(drained.eligible.is_empty());
    assert!(
        drained.unavailable.contains("1 draining"),
        "{}",
        drained.unavailable
    );
    b.apply(4, [Change::Mark(target, None)]);
    assert_eq!(port(&b).eligible, [0]);
}

#[test]
fn endpoints_of_a_lost_node_are_checked_here_and_believed_until_then() {
    let mut b = builder();
    b.apply(
        2,
        [slice(
            "shop/web",
            "n2",
            vec![endpoint("a", Health::Passing, Lifecycle::Running)],
        )],
    );
    assert!(!b.snapshot().unowned.contains(&key("shop/web")));
    b.apply(3, [alive("n2", false)]);
    assert!(b.snapshot().unowned.contains(&key("shop/web")));
    assert_eq!(port(&b).eligible, [0]);
    let finding = Finding {
        service: key("shop/web"),
        id: port(&b).endpoints[0].id.clone(),
        health: Some(Fact::new(
            Health::Failing,
            Timestamp(9),
            "connection refused",
        )),
    };
    b.apply_findings([finding]);
    assert!(port(&b).eligible.is_empty());
    assert!(port(&b).unavailable.contains("connection refused"));
    b.apply(4, [alive("n2", true)]);
    assert_eq!(port(&b).eligible, [0], "its node's word counts again");
}

#[test]
fn an_endpoint_tells_what_is_made_of_its_node() {
    let reason_of = |changes: Vec<Change>, since: i64| {
        let mut b = builder();
        let options = MembershipOptions::default();
        let mut membership = Membership::new(name("n1"), options, Timestamp(0));
        let others = ["n2", "n3", "n4"].map(|n| alive(n, true));
        membership.observe(&others, Duration::ZERO, Timestamp(0));
        b.apply(2, others);
        let a = endpoint("a", Health::Passing, Lifecycle::Running);
        b.apply(3, [slice("shop/web", "n2", vec![a])]);
        membership.observe(&changes, Duration::from_secs(9), Timestamp(since));
        b.set_members(&membership, membership.clone().take_changed());
        b.apply(4, changes);
        assert_eq!(port(&b).eligible, [0], "it goes on taking work");
        let view = port(&b).endpoints[0].clone();
        (view.unowned, view.reason.to_string())
    };
    let restarting = Liveness {
        node: name("n2"),
        session: "s".into(),
        since: Timestamp(0),
        restarting_until: Some(Timestamp(60_000)),
    };
    let restarting = Change::Liveness(name("n2"), Some(Arc::new(restarting)));
    for (changes, unowned, reason) in [
        (vec![], false, "because"),
        (
            vec![alive("n2", false)],
            true,
            "node n2 is gone since 1970-01-01T00:00:05Z: checked from here: because",
        ),
        (
            vec![alive("n2", false), alive("n3", false)],
            true,
            "node n2 is gone since 1970-01-01T00:00:05Z, with many others: checked from here: because",
        ),
        (
            vec![restarting],
            true,
            "node n2 is restarting since 1970-01-01T00:00:05Z: checked from here: because",
        ),
    ] {
        assert_eq!(reason_of(changes, 5000), (unowned, reason.to_owned()));
    }
}

#[test]
fn nobody_is_explained() {
    let b = builder();
    assert!(
        port(&b)
            .unavailable
            .contains("no workload of namespace shop matches `app=web`")
    );
}

#[test]
fn a_deleted_service_is_gone_with_its_namespace() {
    let mut b = builder();
    assert_eq!(b.snapshot().namespaces.get(&name("shop")), Some(&1));
    b.apply(2, [Change::Service(key("shop/web"), None)]);
    assert!(b.snapshot().service(&key("shop/web")).is_none());
    assert_eq!(b.snapshot().namespaces.get(&name("shop")), None);
}

#[test]
fn a_virtual_ip_leads_to_its_port() {
    let mut b = builder();
    let vip: IpAddr = "10.96.0.7".parse().unwrap();
    b.apply(2, [Change::Vip(vip, Some(key("shop/web")))]);
    assert_eq!(b.snapshot().port_at(vip, 80).unwrap().name.as_str(), "http");
    assert_eq!(
        &*b.snapshot().service(&key("shop/web")).unwrap().vips,
        [vip]
    );
    assert!(b.snapshot().port_at(vip, 81).is_none());
    b.apply(3, [Change::Vip(vip, None)]);
    assert!(b.snapshot().port_at(vip, 80).is_none());
    assert!(
        b.snapshot()
            .service(&key("shop/web"))
            .unwrap()
            .vips
            .is_empty()
    );
}

#[test]
fn this_nodes_own_slices_come_straight_from_its_agent() {
    let mut b = builder();
    b.apply(
        2,
        [slice(
            "shop/web",
            "n1",
            vec![endpoint("a", Health::Passing, Lifecycle::Running)],
        )],
    );
    let own = Slice {
        service: key("shop/web"),
        node: name("n1"),
        endpoints: vec![Arc::new(endpoint("a", Health::Failing, Lifecycle::Running))],
    };
    b.apply_own([(key("shop/web"), Some(Arc::new(own)))]);
    assert!(
        port(&b).eligible.is_empty(),
        "the agent's word counts before the registry's"
    );
    b.apply_own([(key("shop/web"), None)]);
    assert!(port(&b).endpoints.is_empty());
}

#[test]
fn endpoints_of_a_slice_share_what_they_have_in_common() {
    let slice = Slice {
        service: key("shop/web"),
        node: name("n1"),
        endpoints: ["a", "b"]
            .map(|w| Arc::new(endpoint(w, Health::Passing, Lifecycle::Running)))
            .to_vec(),
    };
    let texts = serde_json::to_string(&slice).unwrap();
    let mut read: Slice = serde_json::from_str(&texts).unwrap();
    read.share_texts();
    assert_eq!(read, slice);
    let reasons: Vec<_> = read.endpoints.iter().map(|e| &e.health.reason).collect();
    assert!(Arc::ptr_eq(reasons[0], reasons[1]));
}
