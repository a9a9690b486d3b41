use std::sync::Arc;

use model::catalog::{Catalog, Change};
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::service::{ManagedBy, Metadata, Service};
use model::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::local::Local;
use crate::local::testing::container;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn read(pairs: &[(&str, &str)], exposed: &[u16]) -> Wishes {
    Wishes::read(&labels(pairs), &name("shop"), exposed)
}

fn service(wishes: &Wishes) -> &LabelService {
    wishes.service.as_ref().expect("labels that make a service")
}

#[test]
fn a_service_is_made_of_its_name_and_a_port() {
    let wishes = read(
        &[
            ("heddle.service", "web"),
            ("heddle.port", "8080"),
            ("heddle.protocol", "http"),
            ("heddle.vip-port", "80"),
            ("heddle.node-port", "30080"),
            ("heddle.health.path", "/healthz"),
            ("heddle.weight", "5"),
            ("heddle.recovery", "restart"),
            ("heddle.vip", "fd00:96::55, 10.96.5.5"),
        ],
        &[],
    );
    assert_eq!(wishes.warnings, Vec::<String>::new());
    assert_eq!((wishes.port, wishes.weight), (Some(Ok(8080)), 5));
    let made = wishes.service.expect("a service");
    assert_eq!(made.key.to_string(), "shop/web");
    let spec = made.spec.expect("good labels");
    assert_eq!(
        spec.selector.map(|s| s.to_string()),
        Some("heddle.service=web".into())
    );
    assert_eq!(
        spec.recovery,
        Some(Box::<model::service::Recovery>::default())
    );
    let vips: Vec<String> = spec.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["10.96.5.5", "fd00:96::55"]);
    let port = &spec.ports[0];
    assert_eq!(
        (port.port, port.target_port, port.node_port),
        (80, None, Some(30080))
    );
    assert_eq!(port.protocol, Protocol::Http);
    assert!(matches!(
        spec.health,
        Some(HealthPolicy::Check(HealthCheck { http: Some(_), .. }))
    ));
}

#[test]
fn a_compose_container_is_enabled_under_its_compose_service() {
    let wishes = read(
        &[
            ("heddle.enable", "true"),
            ("com.docker.compose.service", "web_front"),
            ("com.docker.compose.project", "shop"),
        ],
        &[8080],
    );
    let made = service(&wishes);
    assert_eq!(made.key.to_string(), "shop/web-front");
    let spec = made.spec.as_ref().expect("good labels");
    assert_eq!(
        spec.selector.as_ref().map(ToString::to_string).as_deref(),
        Some("com.docker.compose.service=web_front,heddle.enable=true")
    );
    assert_eq!(spec.ports[0].port, 8080);
    assert!(read(&[("heddle.enable", "false")], &[80]).service.is_none());
}

#[test]
fn bad_labels_are_named_and_cost_only_what_they_are_for() {
    for (pairs, exposed, warning) in [
        (
            &[("heddle.service", "Web")][..],
            &[80][..],
            "label heddle.service: `Web` is not a valid name",
        ),
        (
            &[("heddle.service", "web")],
            &[],
            "needs a port, and none is exposed: set label heddle.port",
        ),
        (
            &[("heddle.service", "web")],
            &[80, 443],
            "exposes several ports (80, 443) and none is chosen: set targetPort or label heddle.port",
        ),
        (
            &[("heddle.service", "web"), ("heddle.port", "http")],
            &[],
            "label heddle.port=http: not a port from 1 to 65535",
        ),
        (
            &[("heddle.service", "web"), ("heddle.protocol", "udp")],
            &[53],
            "label heddle.protocol=udp: not one of tcp, http",
        ),
        (
            &[("heddle.service", "web"), ("heddle.health.path", "healthz")],
            &[53],
            "label heddle.health.path: a path starts with `/`",
        ),
        (
            &[("heddle.service", "web"), ("heddle.recovery", "reboot")],
            &[53],
            "label heddle.recovery=reboot: the only action is restart",
        ),
        (
            &[("heddle.service", "web"), ("heddle.vip", "10.96.5")],
            &[53],
            "label heddle.vip=10.96.5: not an IP address",
        ),
        (
            &[
                ("heddle.service", "web"),
                ("heddle.vip", "10.96.5.5,10.96.5.6"),
            ],
            &[53],
            "label heddle.vip: a service has at most one IPv4 and one IPv6 address",
        ),
        (
            &[("heddle.weight", "900")],
            &[],
            "label heddle.weight=900: not a number from 0 to 256",
        ),
        (
            &[("heddle.prot", "80")],
            &[],
            "unknown label heddle.prot: do you mean heddle.port?",
        ),
        (
            &[("heddle.enable", "yes")],
            &[],
            "label heddle.enable=yes: neither true nor false",
        ),
        (
            &[("heddle.enable", "true")],
            &[80],
            "names no service outside of Compose: set heddle.service",
        ),
    ] {
        let wishes = read(pairs, exposed);
        assert_eq!(wishes.warnings.len(), 1, "{pairs:?}: {:?}", wishes.warnings);
        assert!(
            wishes.warnings[0].contains(warning),
            "{:?} has no {warning}",
            wishes.warnings
        );
        assert_eq!(wishes.weight, 1);
    }
}

proptest! {
    #[test]
    fn arbitrary_labels_never_panic(
        pairs in proptest::collection::btree_map(
            proptest::sample::select(KNOWN.iter().map(|k| (*k).to_owned()).chain(["heddle.".to_owned(), "\u{0}".to_owned(), COMPOSE_SERVICE.to_owned()]).collect::<Vec<_>>()),
            "(true|[0-9]{0,7}|.{0,100}|/.{0,20})", 0..8),
        exposed in proptest::collection::vec(1u16.., 0..3),
    ) {
        let wishes = Wishes::read(&pairs, &name("shop"), &exposed);
        prop_assert!(wishes.weight <= 256);
        for warning in &wishes.warnings {
            prop_assert!(!warning.chars().any(char::is_control), "{warning:?}");
        }
    }
}

fn local(id: &str, started: i64, pairs: &[(&str, &str)]) -> Arc<Local> {
    Arc::new(container(id, "shop", started, pairs, &[]))
}

fn written(catalog: &mut Catalog, spec: ServiceSpec, managed_by: ManagedBy) {
    let key = ServiceKey::new(name("shop"), name("web"));
    let service = Service {
        metadata: Metadata::new(name("shop"), name("web")),
        managed_by,
        spec,
    };
    catalog.apply(Change::Service(key, Some(Arc::new(service))));
}

fn web() -> ServiceKey {
    ServiceKey::new(name("shop"), name("web"))
}

const OLD: &[(&str, &str)] = &[("heddle.service", "web"), ("heddle.port", "8080")];
const NEW: &[(&str, &str)] = &[
    ("heddle.service", "web"),
    ("heddle.port", "8080"),
    ("heddle.protocol", "http"),
];

#[test]
fn the_oldest_container_decides_and_the_others_are_told() {
    let mut table = Table::default();
    let mut catalog = Catalog::default();
    let (old, new) = (local("old", 1000, OLD), local("new", 2000, NEW));
    table.put(&new);
    assert_eq!(table.put(&old), [web()]);
    let wanted = table
        .wanted(&web(), &catalog, &name("n1"))
        .expect("it is absent");
    assert_eq!(wanted.spec.ports[0].protocol, Protocol::Tcp);
    written(&mut catalog, wanted.spec, ManagedBy::Labels);
    assert_eq!(
        table.wanted(&web(), &catalog, &name("n1")),
        None,
        "it is as it should be"
    );
    assert_eq!(table.verdict(&old, &catalog), None);
    let verdict = table.verdict(&new, &catalog).expect("it disagrees");
    assert!(
        verdict.contains("made of the labels of old, which is older"),
        "{verdict}"
    );
    table.remove(&old.key());
    let wanted = table
        .wanted(&web(), &catalog, &name("n1"))
        .expect("the younger one is the oldest now");
    assert_eq!(wanted.spec.ports[0].protocol, Protocol::Http);
}

#[test]
fn an_older_container_of_another_node_decides() {
    let mut table = Table::default();
    let mut catalog = Catalog::default();
    let theirs = local("theirs", 1000, OLD)
        .wishes
        .service
        .clone()
        .expect("a service")
        .spec;
    written(
        &mut catalog,
        theirs.expect("good labels"),
        ManagedBy::Labels,
    );
    let endpoint = Endpoint {
        workload: "theirs".into(),
        name: "theirs".into(),
        port: name("tcp"),
        generation: format!("{}/172.17.0.2:8080", Timestamp(1000)).into(),
        local: Vec::new(),
        remote: Vec::new(),
        weight: 1,
        zone: None,
        hostname: None,
        health: Fact::new(Health::Passing, Timestamp(0), ""),
        lifecycle: Fact::new(Lifecycle::Running, Timestamp(0), ""),
    };
    let slice = Slice {
        service: web(),
        node: name("n2"),
        endpoints: vec![Arc::new(endpoint)],
    };
    catalog.apply(Change::Slice(web(), name("n2"), Some(Arc::new(slice))));
    let younger = local("younger", 2000, NEW);
    table.put(&younger);
    assert_eq!(table.wanted(&web(), &catalog, &name("n1")), None);
    let verdict = table.verdict(&younger, &catalog).expect("it disagrees");
    assert!(
        verdict.contains("older container of another node"),
        "{verdict}"
    );
    table.put(&local("elder", 500, NEW));
    assert!(table.wanted(&web(), &catalog, &name("n1")).is_some());
}

#[test]
fn a_manifest_wins() {
    let mut table = Table::default();
    let mut catalog = Catalog::default();
    let container = local("a", 1000, OLD);
    table.put(&container);
    let spec = ServiceSpec {
        selector: Some("app=web".parse().expect("a selector")),
        ..ServiceSpec::default()
    };
    written(&mut catalog, spec, ManagedBy::Apply);
    assert_eq!(table.wanted(&web(), &catalog, &name("n1")), None);
    let verdict = table
        .verdict(&container, &catalog)
        .expect("it is not selected");
    assert_eq!(
        verdict,
        "service shop/web is managed by apply, not by labels: its selector `app=web` does not match"
    );
}
