use std::sync::Arc;

use model::Timestamp;
use model::catalog::Change;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::manifest::{self, Manifest};
use model::mark::{Mark, MarkTarget};
use model::node::Liveness;
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Identity};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn endpoint(workload: &str, weight: u16, health: Health, lifecycle: Lifecycle) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        hostname: None,
        workload: workload.into(),
        name: workload.into(),
        port: name("http"),
        generation: "g1".into(),
        local: vec!["172.17.0.2:8080".parse().unwrap()],
        remote: Vec::new(),
        weight,
        zone: None,
        health: Fact::new(health, Timestamp(1), "because"),
        lifecycle: Fact::new(lifecycle, Timestamp(1), "told to end"),
    })
}

fn slice(node: &str, endpoints: Vec<Arc<Endpoint>>) -> Change {
    let service: ServiceKey = "shop/web".parse().unwrap();
    let slice = Slice {
        service: service.clone(),
        node: name(node),
        endpoints,
    };
    Change::Slice(service, name(node), Some(Arc::new(slice)))
}

fn builder(changes: Vec<Change>) -> Builder {
    let mut builder = Builder::new(Identity {
        node: name("n1"),
        seed: 7,
    });
    let manifest = "apiVersion: heddle/v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: \
                    {selector: app=web, ports: [{name: http, port: 80, protocol: http, nodePort: 30080}]}\n";
    let Some(Manifest::Service(web)) = manifest::parse(manifest).unwrap().pop() else {
        panic!("a service");
    };
    let key = web.metadata.key();
    let service = Service {
        metadata: web.metadata,
        managed_by: ManagedBy::Apply,
        spec: web.spec,
    };
    let alive = |node: &str| {
        let liveness = Liveness {
            node: name(node),
            session: "s".into(),
            since: Timestamp(0),
            restarting_until: None,
        };
        Change::Liveness(name(node), Some(Arc::new(liveness)))
    };
    let mut all = vec![
        alive("n1"),
        alive("n2"),
        Change::Service(key.clone(), Some(Arc::new(service))),
        Change::Vip("10.96.7.7".parse().unwrap(), Some(key)),
    ];
    all.extend(changes);
    builder.apply(1, all);
    builder
}

fn explained(builder: &Builder) -> PortExplanation {
    let snapshot = builder.snapshot();
    let view = snapshot.service(&"shop/web".parse().unwrap()).unwrap();
    of_port(snapshot, &view.ports[0])
}

fn removed_by(explanation: &PortExplanation) -> Vec<(String, Vec<String>, usize)> {
    let names = |r: &Removal| r.removed.iter().map(|e| e.name.clone()).collect();
    let all = explanation.filters.iter();
    all.map(|r| (r.filter.clone(), names(r), r.left)).collect()
}

#[test]
fn each_filter_tells_whom_it_removed_of_those_that_were_left() {
    let mark = Mark {
        target: MarkTarget::Workload {
            node: name("n1"),
            workload: "drained".into(),
        },
        since: Timestamp(1),
        reason: "kernel update".into(),
    };
    let here = vec![
        endpoint("good", 1, Health::Passing, Lifecycle::Running),
        endpoint("heavy", 3, Health::Passing, Lifecycle::Running),
        endpoint("drained", 1, Health::Failing, Lifecycle::Running),
        endpoint("ending", 1, Health::Passing, Lifecycle::Terminating),
        endpoint("sick", 1, Health::Failing, Lifecycle::Running),
    ];
    let there = vec![endpoint("far", 1, Health::Failing, Lifecycle::Terminating)];
    let builder = builder(vec![
        slice("n1", here),
        slice("n2", there),
        Change::Mark(mark.target.clone(), Some(Arc::new(mark))),
    ]);
    let explanation = explained(&builder);
    let names = |all: &[&str]| {
        all.iter()
            .map(|n| format!("web/{n}:http"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        removed_by(&explanation),
        [
            ("reachable".to_owned(), names(&["far"]), 5),
            ("enabled".to_owned(), names(&["drained"]), 4),
            ("running".to_owned(), names(&["ending"]), 3),
            ("passing".to_owned(), names(&["sick"]), 2),
        ]
    );
    let reasons: Vec<&str> = explanation
        .filters
        .iter()
        .map(|f| f.removed[0].reason.as_str())
        .collect();
    assert!(reasons[0].starts_with("unreachable"), "{reasons:?}");
    assert_eq!(reasons[1], "workload drained on n1 drained: kernel update");
    assert_eq!(reasons[2..], ["told to end", "because"]);
    let shares: Vec<(&str, f64)> = explanation
        .eligible
        .iter()
        .map(|c| (c.name.as_str(), c.share))
        .collect();
    assert_eq!(shares, [("web/good:http", 0.25), ("web/heavy:http", 0.75)]);
    assert!(!explanation.last_resort);
}

#[test]
fn where_all_end_those_that_still_pass_are_the_last_resort() {
    let ending = vec![
        endpoint("a", 1, Health::Passing, Lifecycle::Terminating),
        endpoint("b", 1, Health::Failing, Lifecycle::Terminating),
    ];
    let explanation = explained(&builder(vec![slice("n1", ending)]));
    assert!(explanation.last_resort);
    assert_eq!(explanation.eligible.len(), 1);
    assert_eq!(explanation.eligible[0].name, "web/a:http");
}

#[test]
fn nobody_is_explained_as_the_503_says_it() {
    let explanation = explained(&builder(Vec::new()));
    assert!(!explanation.last_resort);
    assert!(
        explanation
            .unavailable
            .contains("no workload of namespace shop matches `app=web`")
    );
}

#[test]
fn urls_lead_to_services_as_requests_do() {
    let builder = builder(Vec::new());
    let find = |url: &str| {
        let target = Target::parse(url)?;
        target.find(builder.snapshot()).map(|(how, port)| {
            assert_eq!(port.name, "http");
            how
        })
    };
    for (url, how) in [
        (
            "http://10.96.7.7/x?y",
            "10.96.7.7 is the virtual IP of service shop/web",
        ),
        (
            "10.96.7.7:80",
            "10.96.7.7 is the virtual IP of service shop/web",
        ),
        (
            "http://WEB.shop.svc.heddle.internal./",
            "web.shop.svc.heddle.internal is the name of service shop/web",
        ),
        (
            "http://127.0.0.1:30080",
            "30080 is the node port of service shop/web",
        ),
    ] {
        assert_eq!(find(url).as_deref(), Ok(how), "{url}");
    }
    for (url, why) in [
        ("http://10.96.7.7:81/", "service shop/web has no port 81"),
        ("https://10.96.7.7/", "service shop/web has no port 443"),
        ("http://10.96.9.9/", "no service has this virtual IP"),
        ("http://192.0.2.9/", "heddle has no part in this request"),
        (
            "http://db.shop.svc.heddle.internal/",
            "shop/db does not exist: NXDOMAIN",
        ),
        ("http://example.org/", "is no name of a service"),
        ("ftp://10.96.7.7/", "scheme `ftp` is neither http nor https"),
        ("/path", "it names no host"),
    ] {
        let said = find(url).unwrap_err();
        assert!(said.contains(why), "{url}: {said}");
    }
}
