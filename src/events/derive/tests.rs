use std::sync::Arc;

use super::*;
use model::endpoint::{
    Endpoint, EndpointId, Fact, Findings, Found, Health, Lifecycle, ManualEndpoint,
    ManualEndpointSpec, Slice,
};
use model::manifest::{self, Manifest};
use model::service::{ManagedBy, Metadata};
use model::{Liveness, Node};

const NOW: Timestamp = Timestamp(1_000_000);

fn n(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn web() -> ServiceKey {
    ServiceKey::new(n("shop"), n("web"))
}

/// What a change tells, as `Reason name: message`, with the catalog taking it over.
fn told(catalog: &mut Catalog, change: Change) -> Vec<String> {
    let events = events(catalog, change, None);
    events
        .iter()
        .map(|e| format!("{} {}: {}", e.reason, e.name, e.message))
        .collect()
}

fn events(catalog: &mut Catalog, change: Change, not_before: Option<Timestamp>) -> Vec<Event> {
    let mut admit = |_, _: &'static str| true;
    let mut news = News::new(NOW, not_before, &mut admit);
    derive(catalog, &change, &mut news);
    catalog.apply(change.clone());
    let events = news.events;
    let mut again = News::new(NOW, None, &mut admit);
    derive(catalog, &change, &mut again);
    assert!(again.events.is_empty(), "told twice: {:?}", again.events);
    events
}

fn service(spec: &str) -> Service {
    let text = format!(
        "{{apiVersion: heddle/v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {spec}}}"
    );
    let Manifest::Service(m) = manifest::parse(&text).unwrap().remove(0) else {
        panic!("a service");
    };
    let mut metadata = m.metadata;
    metadata.uid = Some("u1".into());
    metadata.generation = Some(1);
    metadata.creation_timestamp = Some(Timestamp(500));
    Service {
        metadata,
        managed_by: ManagedBy::Apply,
        spec: m.spec,
    }
}

fn put(service: &Service) -> Change {
    Change::Service(service.key(), Some(Arc::new(service.clone())))
}

#[test]
fn a_service_is_created_changed_and_deleted() {
    let mut catalog = Catalog::default();
    let mut service = service("{selector: app=web, ports: [{port: 80, targetPort: 8080}]}");
    let created = events(&mut catalog, put(&service), None);
    assert_eq!(created[0].at, Timestamp(500), "the record says when");
    assert_eq!(
        created[0].message,
        "made by apply: selects app=web; ports 80/tcp to 8080"
    );
    service.spec.selector = Some("app=web,tier=front".parse().unwrap());
    service.spec.ports[0].port = 81;
    service.metadata.generation = Some(2);
    assert_eq!(
        told(&mut catalog, put(&service)),
        [
            "ServiceChanged web: generation 2: ports changed; selector was app=web, is app=web,tier=front"
        ]
    );
    service.managed_by = ManagedBy::Labels;
    service.metadata.labels.insert("team".into(), "a".into());
    assert_eq!(
        told(&mut catalog, put(&service)),
        ["ServiceChanged web: generation 2: managed by labels (before: apply); labels changed"]
    );
    service.metadata.resource_version = Some(77);
    assert!(
        told(&mut catalog, put(&service)).is_empty(),
        "a rewrite is no news"
    );
    service.metadata.uid = Some("u2".into());
    assert!(
        told(&mut catalog, put(&service))[0].starts_with("ServiceCreated web: made anew by labels")
    );
    assert_eq!(
        told(&mut catalog, Change::Service(web(), None)),
        ["ServiceDeleted web: deleted; it was managed by labels"]
    );
}

#[test]
fn a_virtual_ip_is_given_moved_and_released() {
    let mut catalog = Catalog::default();
    told(&mut catalog, put(&service("{ports: [{port: 80}]}")));
    let ip: IpAddr = "10.96.0.20".parse().unwrap();
    let db = ServiceKey::new(n("shop"), n("db"));
    assert_eq!(
        told(&mut catalog, Change::Vip(ip, Some(web()))),
        ["VipAssigned web: virtual IP 10.96.0.20"]
    );
    assert_eq!(
        told(&mut catalog, Change::Vip(ip, Some(db))),
        [
            "VipReleased web: virtual IP 10.96.0.20 belongs to shop/db now",
            "VipAssigned db: virtual IP 10.96.0.20, which shop/web had before"
        ]
    );
    assert!(
        told(&mut catalog, Change::Vip(ip, None)).is_empty(),
        "it went with its service"
    );
    told(&mut catalog, Change::Vip(ip, Some(web())));
    assert_eq!(
        told(&mut catalog, Change::Vip(ip, None)),
        ["VipReleased web: virtual IP 10.96.0.20 given up"]
    );
}

fn endpoint(workload: &str) -> Endpoint {
    Endpoint {
        workload: workload.into(),
        name: format!("shop_{workload}").into(),
        port: n("http"),
        generation: "g1".into(),
        local: vec!["172.17.0.2:8080".parse().unwrap()],
        remote: Vec::new(),
        weight: 1,
        zone: None,
        hostname: None,
        health: Fact::new(Health::Unknown, Timestamp(10), "not checked yet"),
        lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
    }
}

fn slice(endpoints: &[Endpoint]) -> Change {
    let slice = (!endpoints.is_empty()).then(|| {
        Arc::new(Slice {
            service: web(),
            node: n("n1"),
            endpoints: endpoints.iter().cloned().map(Arc::new).collect(),
        })
    });
    Change::Slice(web(), n("n1"), slice)
}

fn alive(catalog: &mut Catalog) {
    catalog.apply(Change::Liveness(n("n1"), Some(Arc::new(life("s1", None)))));
}

fn life(session: &str, restarting_until: Option<i64>) -> Liveness {
    Liveness {
        node: n("n1"),
        session: session.into(),
        since: Timestamp(50),
        restarting_until: restarting_until.map(Timestamp),
    }
}

#[test]
fn an_endpoint_goes_through_its_life() {
    let mut catalog = Catalog::default();
    alive(&mut catalog);
    told(
        &mut catalog,
        put(&service("{selector: app=web, ports: [{port: 80}]}")),
    );
    let mut a = endpoint("a");
    let added = events(&mut catalog, slice(&[a.clone()]), None);
    assert_eq!(added.len(), 1);
    assert_eq!(added[0].name, "web/shop_a:http");
    assert_eq!(added[0].namespace, Some(n("shop")));
    assert_eq!(added[0].node, Some(n("n1")));
    assert_eq!(
        (added[0].reason.as_str(), added[0].message.as_str()),
        ("EndpointAdded", "on n1 at 172.17.0.2:8080")
    );

    a.health = Fact::new(Health::Passing, Timestamp(20), "GET /: 200");
    let ready = events(&mut catalog, slice(&[a.clone()]), None);
    assert_eq!(ready[0].at, Timestamp(20), "the fact's own time");
    assert_eq!(ready[0].message, "GET /: 200");

    a.health = Fact::new(Health::Failing, Timestamp(30), "connection refused");
    assert_eq!(
        told(&mut catalog, slice(&[a.clone()])),
        ["EndpointUnhealthy web/shop_a:http: fails its checks: connection refused"]
    );
    a.health.reason = "no answer within 1s".into();
    assert!(told(&mut catalog, slice(&[a.clone()])).is_empty());

    a.lifecycle = Fact::new(Lifecycle::Terminating, Timestamp(40), "SIGTERM");
    assert_eq!(
        told(&mut catalog, slice(&[a.clone()])),
        ["EndpointDraining web/shop_a:http: gets no new work: SIGTERM"]
    );
    a.lifecycle = Fact::new(Lifecycle::Running, Timestamp(1), "");
    let restored = events(&mut catalog, slice(&[a.clone()]), None);
    assert_eq!(restored[0].reason, "EndpointRestored");
    assert_eq!(restored[0].at, NOW);

    a.name = "shop_b".into();
    a.weight = 0;
    a.remote = vec!["192.0.2.1:80".parse().unwrap()];
    assert_eq!(
        told(&mut catalog, slice(&[a.clone()])),
        [
            "EndpointRenamed web/shop_b:http: shop_a is called shop_b now",
            "EndpointChanged web/shop_b:http: remote address was none, is 192.0.2.1:80; weight was 1, is 0"
        ]
    );
}

#[test]
fn a_restarted_container_is_a_new_generation_with_a_state_of_its_own() {
    let mut catalog = Catalog::default();
    alive(&mut catalog);
    let mut a = endpoint("a");
    told(&mut catalog, slice(&[a.clone()]));
    a.generation = "g2".into();
    a.lifecycle.since = Timestamp(60);
    a.health = Fact::new(Health::Passing, Timestamp(70), "");
    let restarted = events(&mut catalog, slice(&[a.clone()]), None);
    let reasons: Vec<&str> = restarted.iter().map(|e| e.reason.as_str()).collect();
    assert_eq!(reasons, ["EndpointRestarted", "EndpointReady"]);
    assert_eq!(restarted[0].at, Timestamp(60));
    assert_eq!(restarted[0].message, "a new generation: g2 (before: g1)");
}

#[test]
fn an_endpoint_that_shows_up_in_a_later_state_tells_it() {
    let mut catalog = Catalog::default();
    let mut a = endpoint("a");
    a.health = Fact::new(Health::Passing, Timestamp(20), "");
    a.lifecycle = Fact::new(Lifecycle::Terminating, Timestamp(25), "SIGTERM");
    let lines = told(&mut catalog, slice(&[a]));
    let reasons: Vec<&str> = lines.iter().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(
        reasons,
        ["EndpointAdded", "EndpointReady", "EndpointDraining"]
    );
}

#[test]
fn an_endpoint_goes_by_its_owner_with_its_service_or_as_an_orphan() {
    let mut a = endpoint("a");
    a.lifecycle = Fact::new(Lifecycle::Terminating, Timestamp(40), "SIGTERM");
    let b = endpoint("b");
    let mut catalog = Catalog::default();
    alive(&mut catalog);
    told(
        &mut catalog,
        put(&service("{selector: app=web, ports: [{port: 80}]}")),
    );
    told(&mut catalog, slice(&[a.clone(), b.clone()]));
    assert_eq!(
        told(&mut catalog, slice(std::slice::from_ref(&b))),
        ["EndpointGone web/shop_a:http: taken away by n1: SIGTERM"]
    );
    catalog.apply(Change::Liveness(n("n1"), None));
    assert_eq!(
        told(&mut catalog, slice(&[])),
        ["EndpointCollected web/shop_b:http: collected: n1, which it was on, is lost"]
    );
    alive(&mut catalog);
    told(&mut catalog, slice(&[b]));
    told(&mut catalog, Change::Service(web(), None));
    assert_eq!(
        told(&mut catalog, slice(&[])),
        ["EndpointGone web/shop_b:http: went with its service"]
    );
}

#[test]
fn an_endpoint_made_by_hand_is_told_with_what_its_checkers_find() {
    let mut catalog = Catalog::default();
    for node in ["n1", "n2"] {
        let mut life = life("s", None);
        life.node = n(node);
        catalog.apply(Change::Liveness(n(node), Some(Arc::new(life))));
    }
    let key = ServiceKey::new(n("shop"), n("db-1"));
    let mut manual = ManualEndpoint {
        metadata: Metadata::new(n("shop"), n("db-1")),
        managed_by: ManagedBy::Apply,
        spec: ManualEndpointSpec {
            service: n("web"),
            address: "192.0.2.10".parse().unwrap(),
            ports: [(n("http"), 80)].into(),
            weight: 1,
            zone: None,
            hostname: None,
        },
    };
    let put = |m: &ManualEndpoint| Change::Endpoint(key.clone(), Some(Arc::new(m.clone())));
    assert_eq!(
        told(&mut catalog, put(&manual)),
        ["EndpointAdded web/db-1: made by apply at 192.0.2.10 with ports 80"]
    );
    manual.spec.weight = 5;
    assert_eq!(
        told(&mut catalog, put(&manual)),
        ["EndpointChanged web/db-1: weight is 5"]
    );
    let found = |node: &str, value, reason: &str| {
        let id = EndpointId {
            workload: "db-1".into(),
            port: n("http"),
            generation: "7".into(),
        };
        let findings = Findings {
            service: web(),
            node: n(node),
            endpoints: vec![Found::new(&id, Fact::new(value, Timestamp(90), reason))],
        };
        Change::Findings(web(), n(node), Some(Arc::new(findings)))
    };
    assert_eq!(
        told(&mut catalog, found("n1", Health::Passing, "connected")),
        ["EndpointReady web/db-1:http: connected"]
    );
    assert!(told(&mut catalog, found("n2", Health::Passing, "")).is_empty());
    assert!(
        told(&mut catalog, found("n1", Health::Failing, "refused")).is_empty(),
        "n2 still reaches it"
    );
    assert_eq!(
        told(&mut catalog, found("n2", Health::Failing, "refused")),
        ["EndpointUnhealthy web/db-1:http: fails its checks: refused"]
    );
    assert_eq!(
        told(&mut catalog, Change::Endpoint(key.clone(), None)),
        ["EndpointGone web/db-1: deleted; it was managed by apply"]
    );
}

#[test]
fn a_node_joins_restarts_is_lost_and_comes_back() {
    let mut catalog = Catalog::default();
    let mut node = Node {
        name: n("n1"),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        zone: None,
        routable: Vec::new(),
        version: "0.1.0".into(),
        capabilities: Vec::new(),
        since: Timestamp(40),
    };
    let put = |node: &Node| Change::Node(n("n1"), Some(Arc::new(node.clone())));
    let live = |l: Option<Liveness>| Change::Liveness(n("n1"), l.map(Arc::new));
    assert_eq!(
        told(&mut catalog, put(&node)),
        ["NodeJoined n1: joined at 192.0.2.1 with version 0.1.0"]
    );
    assert_eq!(
        told(&mut catalog, live(Some(life("s1", None)))),
        ["NodeAlive n1: alive"]
    );
    assert_eq!(
        told(&mut catalog, live(Some(life("s1", Some(61_000))))),
        [
            "NodeRestarting n1: goes down on purpose; its endpoints are believed until 1970-01-01T00:01:01Z"
        ]
    );
    assert_eq!(
        told(&mut catalog, live(Some(life("s2", None)))),
        ["NodeAlive n1: alive again after a planned restart"]
    );
    assert_eq!(
        told(&mut catalog, live(Some(life("s3", None)))),
        ["NodeAlive n1: started anew, without having said that it would stop"]
    );
    assert!(told(&mut catalog, live(None))[0].starts_with("NodeLost n1: its lease ended"));
    told(&mut catalog, live(Some(life("s3", Some(61_000)))));
    assert!(told(&mut catalog, live(None))[0].starts_with("NodeLost n1: did not come back"));
    node.version = "0.2.0".into();
    node.zone = Some("eu".into());
    assert_eq!(
        told(&mut catalog, put(&node)),
        ["NodeChanged n1: version was 0.1.0, is 0.2.0; zone was none, is eu"]
    );
    assert_eq!(
        told(&mut catalog, Change::Node(n("n1"), None)),
        ["NodeRemoved n1: its record was deleted"]
    );
}

#[test]
fn marks_name_what_people_call_their_targets() {
    let mut catalog = Catalog::default();
    told(&mut catalog, slice(&[endpoint("a")]));
    let mark = |target: &MarkTarget, reason: &str| {
        let mark = Mark {
            target: target.clone(),
            since: Timestamp(2000),
            reason: reason.into(),
        };
        Change::Mark(target.clone(), Some(Arc::new(mark)))
    };
    let workload = MarkTarget::Workload {
        node: n("n1"),
        workload: "a".into(),
    };
    let drained = events(&mut catalog, mark(&workload, "kernel update"), None);
    assert_eq!(drained[0].name, "shop_a");
    assert_eq!(drained[0].namespace, Some(n("shop")));
    assert_eq!(drained[0].at, Timestamp(2000));
    assert_eq!(drained[0].message, "gets no new work: kernel update");
    assert!(told(&mut catalog, mark(&workload, "kernel update")).is_empty());
    assert_eq!(
        told(&mut catalog, Change::Mark(workload, None)),
        ["WorkloadUndrained shop_a: gets work again; it was drained since 1970-01-01T00:00:02Z"]
    );
    let endpoint = MarkTarget::Endpoint {
        service: web(),
        workload: "a".into(),
        port: n("http"),
    };
    assert_eq!(
        told(&mut catalog, mark(&endpoint, "")),
        ["EndpointDrained web/shop_a:http: gets no new work: an operator asked for it"]
    );
    let unknown = MarkTarget::Endpoint {
        service: web(),
        workload: "zz".into(),
        port: n("http"),
    };
    assert!(told(&mut catalog, mark(&unknown, ""))[0].starts_with("EndpointDrained web/zz:http"));
    let node = MarkTarget::Node { name: n("n1") };
    assert!(told(&mut catalog, mark(&node, "x"))[0].starts_with("NodeDrained n1"));
}

#[test]
fn registrations_and_the_mesh_are_told() {
    let mut catalog = Catalog::default();
    let record = |ports: &str| {
        let text = format!(r#"{{"id":"pg","namespace":"shop","ports":{ports}}}"#);
        Arc::new(RegistrationRecord {
            registration: serde_json::from_str(&text).unwrap(),
            create_revision: 7,
        })
    };
    let put = |r| Change::Registration(n("n1"), n("pg"), r);
    assert_eq!(
        told(&mut catalog, put(Some(record("[5432]")))),
        ["WorkloadRegistered pg: registered on n1 with ports 5432"]
    );
    assert_eq!(
        told(&mut catalog, put(Some(record("[5432, 9187]")))),
        ["WorkloadChanged pg: ports was 5432, is 5432, 9187"]
    );
    assert_eq!(
        told(&mut catalog, put(None)),
        ["WorkloadDeregistered pg: taken off n1"]
    );
    let mut mesh = Mesh::default();
    let change = |mesh: &Mesh| Change::Mesh(Some(Arc::new(mesh.clone())));
    assert_eq!(
        told(&mut catalog, change(&mesh)),
        ["MeshChanged mesh: virtual IPs out of 10.96.0.0/16, DNS zone heddle.internal"]
    );
    mesh.zone = "example.internal".into();
    assert_eq!(
        told(&mut catalog, change(&mesh)),
        ["MeshChanged mesh: zone was heddle.internal, is example.internal"]
    );
}

#[test]
fn at_first_sight_only_what_happened_since_is_news() {
    let mut catalog = Catalog::default();
    let old = events(
        &mut catalog,
        put(&service("{ports: [{port: 80}]}")),
        Some(Timestamp(501)),
    );
    assert!(old.is_empty());
    let mut catalog = Catalog::default();
    let new = events(
        &mut catalog,
        put(&service("{ports: [{port: 80}]}")),
        Some(Timestamp(500)),
    );
    assert_eq!(new.len(), 1);
    let undated = Change::Vip("10.96.0.20".parse().unwrap(), Some(web()));
    assert!(events(&mut catalog, undated, Some(Timestamp(500))).is_empty());
}

#[test]
fn what_is_not_admitted_is_not_written_out() {
    let mut asked = Vec::new();
    let mut admit = |_, reason: &'static str| {
        asked.push(reason);
        false
    };
    let mut news = News::new(NOW, None, &mut admit);
    let all: Vec<Endpoint> = (0..50).map(|i| endpoint(&format!("w{i:02}"))).collect();
    derive(&Catalog::default(), &slice(&all), &mut news);
    assert!(news.events.is_empty());
    assert_eq!(asked, ["EndpointAdded"; 50]);
}
