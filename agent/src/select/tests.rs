use std::collections::BTreeSet;
use std::net::SocketAddr;

use model::endpoint::{Fact, Health};
use model::name::ServiceKey;
use model::service::{HealthPolicy, ManagedBy, Metadata, Service, ServicePort, ServiceSpec};
use model::time::Timestamp;
use model::workload::{Published, Verdict};
use proptest::prelude::*;

use super::*;
use crate::local::testing::container;
use crate::local::{Local, WorkloadKey};

fn node() -> NodeFacts {
    NodeFacts {
        name: Name::new("n1").expect("a name"),
        addresses: vec![
            "192.0.2.2".parse().expect("an address"),
            "2001:db8::2".parse().expect("an address"),
        ],
        zone: Some("eu-1a".into()),
    }
}

fn service(key: &str, selector: &str, ports: &[(&str, u16, Option<u16>)]) -> Arc<Service> {
    let key: ServiceKey = key.parse().expect("a key");
    Arc::new(Service {
        metadata: Metadata::new(key.namespace, key.name),
        managed_by: ManagedBy::Apply,
        spec: ServiceSpec {
            selector: Some(selector.parse().expect("a selector")),
            ports: ports
                .iter()
                .map(|(name, port, target)| ServicePort {
                    name: Some(Name::new(name).expect("a name")),
                    port: *port,
                    target_port: *target,
                    protocol: Default::default(),
                    node_port: None,
                    upstream_protocol: Default::default(),
                    tls: None,
                    upstream_tls: None,
                })
                .collect(),
            ..ServiceSpec::default()
        },
    })
}

fn web() -> Arc<Service> {
    service("shop/web", "app=web", &[("http", 80, None)])
}

fn key(text: &str) -> ServiceKey {
    text.parse().expect("a key")
}

fn addresses(all: &[SocketAddr]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn only(service: &Service, local: &Local) -> Desired {
    let mut made = endpoints(service, local, &node());
    assert_eq!(made.faults, Vec::<String>::new());
    assert_eq!(made.endpoints.len(), 1);
    made.endpoints.remove(0)
}

#[test]
fn the_target_port_is_the_services_else_the_labels_else_the_only_exposed_one() {
    let explicit = service("shop/web", "app=web", &[("http", 80, Some(9000))]);
    for (service, label, exposed, target) in [
        (&explicit, Some("8081"), &[80, 443][..], Ok(9000)),
        (&web(), Some("8081"), &[80, 443], Ok(8081)),
        (&web(), None, &[8080], Ok(8080)),
        (&web(), None, &[80, 443], Ok(80)),
        (
            &web(),
            None,
            &[],
            Err(
                "port http: exposes no port and none is chosen: set targetPort or label heddle.port",
            ),
        ),
        (
            &web(),
            None,
            &[443, 8080],
            Err(
                "port http: exposes several ports (443, 8080) and none is chosen: set targetPort or label heddle.port",
            ),
        ),
        (
            &web(),
            Some("http"),
            &[80],
            Err("port http: label heddle.port=http: not a port from 1 to 65535"),
        ),
    ] {
        let mut labels = vec![("app", "web")];
        labels.extend(label.map(|l| ("heddle.port", l)));
        let made = endpoints(
            service,
            &container("a", "shop", 1, &labels, exposed),
            &node(),
        );
        match target {
            Ok(port) => {
                assert_eq!(
                    made.endpoints[0].endpoint.local[0].port(),
                    port,
                    "{label:?} {exposed:?}"
                );
            }
            Err(fault) => {
                assert!(made.endpoints.is_empty());
                assert_eq!(made.faults, [fault]);
            }
        }
    }
}

#[test]
fn other_nodes_are_given_what_is_published_and_never_a_local_address() {
    let published = |hosts: &[&str]| {
        let mut local = container("a", "shop", 1, &[("app", "web")], &[80]);
        local.workload.published = hosts
            .iter()
            .map(|host| Published {
                port: 80,
                host: host.parse().expect("an address"),
            })
            .collect();
        addresses(&only(&web(), &local).endpoint.remote)
    };
    assert_eq!(published(&[]), Vec::<String>::new());
    assert_eq!(
        published(&["0.0.0.0:8080", "[::]:8080"]),
        ["192.0.2.2:8080", "[2001:db8::2]:8080"]
    );
    assert_eq!(published(&["0.0.0.0:8080"]), ["192.0.2.2:8080"]);
    assert_eq!(published(&["192.0.2.77:8080"]), ["192.0.2.77:8080"]);
    assert_eq!(
        published(&["127.0.0.1:8080", "[::1]:8080"]),
        Vec::<String>::new()
    );
    let mut other_port = container("a", "shop", 1, &[("app", "web")], &[80]);
    other_port.workload.published = vec![Published {
        port: 443,
        host: "0.0.0.0:8443".parse().expect("an address"),
    }];
    assert!(only(&web(), &other_port).endpoint.remote.is_empty());
}

#[test]
fn host_networking_is_reached_at_the_nodes_addresses() {
    let mut local = container("a", "shop", 1, &[("app", "web")], &[80]);
    local.workload.host_network = true;
    local.workload.addresses = vec!["127.0.0.1".parse().expect("an address")];
    let made = only(&web(), &local);
    assert_eq!(addresses(&made.endpoint.local), ["127.0.0.1:80"]);
    assert_eq!(
        addresses(&made.endpoint.remote),
        ["192.0.2.2:80", "[2001:db8::2]:80"]
    );
}

#[test]
fn a_problem_leaves_no_endpoint_and_a_pause_a_failing_one() {
    let mut local = container("a", "shop", 1, &[("app", "web")], &[80]);
    local.paused = true;
    assert_eq!(
        only(&web(), &local).plan,
        Plan::Fixed(Health::Failing, "paused".into())
    );
    local.workload.problem = Some("it is on no network".into());
    let made = endpoints(&web(), &local, &node());
    assert_eq!((made.endpoints.len(), made.faults.len()), (0, 1));
}

#[test]
fn the_registrations_own_check_goes_before_the_services() {
    let mut local = container("a", "shop", 1, &[("app", "web")], &[80]);
    local.workload.check = Some(HealthPolicy::Disabled);
    assert!(matches!(
        only(&web(), &local).plan,
        Plan::Fixed(Health::Passing, _)
    ));
    local.workload.check = None;
    local.workload.docker_health = Some(Fact::new(Health::Failing, Timestamp(1), "exit 1"));
    assert!(matches!(
        only(&web(), &local).plan,
        Plan::Docker(Health::Failing, _)
    ));
}

fn verdict(selection: &Selection, local: &Local) -> Verdict {
    let verdicts = selection.verdicts(&local.key());
    assert_eq!(verdicts.len(), 1, "{verdicts:?}");
    verdicts[0].clone()
}

#[test]
fn every_workload_is_told_who_selects_it_or_the_closest_reason_why_nobody_does() {
    let mut selection = Selection::new(node());
    selection.put_service(&web());
    selection.put_service(&service("front/all", "tier", &[("http", 80, None)]));
    let cases = [
        ("a", "shop", ("app", "web"), "selected by `app=web`"),
        (
            "b",
            "front",
            ("app", "web"),
            "not selected: namespace is front, and shop/web selects in shop only",
        ),
        (
            "c",
            "shop",
            ("app", "db"),
            "not selected: no selector in namespace shop matches its labels",
        ),
        (
            "d",
            "else",
            ("app", "db"),
            "not selected: no service with a selector in namespace else",
        ),
    ];
    for (id, namespace, label, reason) in cases {
        let local = container(id, namespace, 1, &[label], &[80]);
        selection.put_workload(Arc::new(local.clone()));
        let verdict = verdict(&selection, &local);
        assert_eq!(verdict.reason, reason);
        assert_eq!(verdict.selected, id == "a");
    }
    let mut bad = container("e", "shop", 1, &[("app", "web")], &[]);
    bad.workload.problem = Some("it is on no network".to_owned());
    selection.put_workload(Arc::new(bad.clone()));
    let verdict = verdict(&selection, &bad);
    assert_eq!(
        (verdict.selected, verdict.reason.as_str()),
        (false, "it is on no network")
    );
}

#[test]
fn a_change_touches_only_the_services_it_concerns() {
    let mut selection = Selection::new(node());
    assert!(!selection.put_service(&web()), "nobody is selected yet");
    selection.put_service(&service("shop/db", "app=db", &[("pg", 5432, None)]));
    let a = Arc::new(container("a", "shop", 1, &[("app", "web")], &[]));
    assert_eq!(
        selection.put_workload(a.clone()),
        BTreeSet::from([key("shop/web")])
    );
    assert_eq!(
        selection.put_workload(a.clone()),
        BTreeSet::new(),
        "nothing has changed"
    );
    let moved = Arc::new(container("a", "shop", 2, &[("app", "db")], &[]));
    assert_eq!(
        selection.put_workload(moved),
        BTreeSet::from([key("shop/web"), key("shop/db")])
    );
    assert_eq!(
        selection.remove_workload(&a.key()),
        BTreeSet::from([key("shop/db")])
    );
    assert!(!selection.remove_service(&key("shop/web")));
}

#[test]
fn an_empty_selector_and_none_select_nothing() {
    let mut selection = Selection::new(node());
    let local = Arc::new(container("a", "shop", 1, &[("app", "web")], &[]));
    selection.put_workload(local.clone());
    assert!(!selection.put_service(&service("shop/all", "", &[("http", 80, None)])));
    let mut by_hand = Service::clone(&web());
    by_hand.spec.selector = None;
    assert!(!selection.put_service(&Arc::new(by_hand)));
    assert!(selection.selected_by(&local.key()).next().is_none());
}

#[derive(Clone, Debug)]
enum Step {
    PutService(usize, usize, usize),
    RemoveService(usize, usize),
    PutWorkload(usize, usize, Vec<(usize, usize)>),
    RemoveWorkload(usize),
}

const NAMESPACES: [&str; 2] = ["shop", "front"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const KEYS: [&str; 3] = ["app", "tier", "canary"];
const VALUES: [&str; 3] = ["web", "db", ""];
const SELECTORS: [&str; 8] = [
    "app=web",
    "app=web,tier=db",
    "app in (web,db)",
    "!canary",
    "tier",
    "app!=web,tier=web",
    "",
    "canary=,app",
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let labels = proptest::collection::vec((0..KEYS.len(), 0..VALUES.len()), 0..4);
    let step = prop_oneof![
        (0..2usize, 0..4usize, 0..SELECTORS.len()).prop_map(|(a, b, c)| Step::PutService(a, b, c)),
        (0..2usize, 0..4usize).prop_map(|(a, b)| Step::RemoveService(a, b)),
        (0..4usize, 0..2usize, labels).prop_map(|(a, b, c)| Step::PutWorkload(a, b, c)),
        (0..4usize).prop_map(Step::RemoveWorkload),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    /// The indices give after any history what comparing everything with everything gives.
    #[test]
    fn the_index_agrees_with_comparing_everything(steps in steps()) {
        let mut selection = Selection::new(node());
        let mut services: Vec<Arc<Service>> = Vec::new();
        let mut workloads: Vec<Arc<Local>> = Vec::new();
        for step in steps {
            match step {
                Step::PutService(ns, name, selector) => {
                    let it = service(&format!("{}/{}", NAMESPACES[ns], NAMES[name]), SELECTORS[selector], &[("http", 80, None)]);
                    services.retain(|s| s.key() != it.key());
                    selection.put_service(&it);
                    services.push(it);
                }
                Step::RemoveService(ns, name) => {
                    let it = key(&format!("{}/{}", NAMESPACES[ns], NAMES[name]));
                    services.retain(|s| s.key() != it);
                    selection.remove_service(&it);
                }
                Step::PutWorkload(id, ns, labels) => {
                    let labels: Vec<_> = labels.iter().map(|(k, v)| (KEYS[*k], VALUES[*v])).collect();
                    let it = Arc::new(container(NAMES[id], NAMESPACES[ns], 1, &labels, &[80]));
                    workloads.retain(|w| w.key() != it.key());
                    selection.put_workload(it.clone());
                    workloads.push(it);
                }
                Step::RemoveWorkload(id) => {
                    let it = WorkloadKey::container(NAMES[id]);
                    workloads.retain(|w| w.key() != it);
                    selection.remove_workload(&it);
                }
            }
            for service in &services {
                let expected: BTreeSet<Arc<str>> = workloads
                    .iter()
                    .filter(|w| w.workload.namespace == service.metadata.namespace)
                    .filter(|w| service.spec.selector.as_ref().is_some_and(|s| s.matches(&w.workload.labels)))
                    .map(|w| w.workload.id.clone())
                    .collect();
                let found: BTreeSet<Arc<str>> =
                    selection.endpoints(&service.key()).iter().map(|d| d.endpoint.workload.clone()).collect();
                prop_assert_eq!(&found, &expected);
                for workload in &workloads {
                    let selected = selection.selected_by(&workload.key()).any(|k| *k == service.key());
                    prop_assert_eq!(selected, expected.contains(&workload.workload.id));
                }
            }
        }
    }
}
