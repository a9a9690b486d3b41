//! What nodes find out for each other, and what they collect of those that are gone, on both backends.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[macro_use]
mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::Backend;
use model::endpoint::{Endpoint, EndpointId, Fact, Findings, Found, Health, Lifecycle};
use model::node::Liveness;
use model::{Name, ServiceKey, Slice, Timestamp};
use registry::Registry;
use registry::delete_node::DeleteNodeError;
use registry::layout::Key;
use registry::publish::{Orphan, SliceWrite};
use registry::record;
use registry::store::{Lease, Op, Outcome, Txn};

both_backends! {
    a_slice_is_collected_only_as_it_was_judged_and_only_of_a_node_that_is_gone
    findings_are_written_when_they_change_and_removed_when_there_are_none
    a_node_is_deleted_with_all_that_is_its_own_and_only_once_it_is_gone
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn web() -> ServiceKey {
    "shop/web".parse().unwrap()
}

fn slice(health: Health) -> Slice {
    Slice {
        service: web(),
        node: name("n1"),
        endpoints: vec![Arc::new(Endpoint {
            hostname: None,
            workload: "w".into(),
            name: "w".into(),
            port: name("http"),
            generation: "1".into(),
            local: Vec::new(),
            remote: vec!["192.0.2.2:80".parse().unwrap()],
            weight: 1,
            zone: None,
            health: Fact::new(health, Timestamp(1), ""),
            lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
        })],
    }
}

async fn publish(registry: &Registry, slice: Slice) {
    let there = registry.stored_slice(&web(), &name("n1")).await.unwrap();
    let write = SliceWrite {
        service: web(),
        node: name("n1"),
        slice: Some(slice),
        replaces: there.map(|(revision, _)| revision),
    };
    let outcome = registry.write_slices(&[write]).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)));
}

/// For as long as its lease is there.
async fn begin_to_live(registry: &Registry) -> Lease {
    let liveness = Liveness {
        node: name("n1"),
        session: "s".into(),
        since: Timestamp(1),
        restarting_until: None,
    };
    registry
        .put_liveness(&liveness, Duration::from_secs(30))
        .await
        .unwrap()
}

async fn a_slice_is_collected_only_as_it_was_judged_and_only_of_a_node_that_is_gone(b: Backend) {
    let registry = Registry::new(b.store.clone(), "/heddle");
    let there = async || {
        let there = registry.stored_slice(&web(), &name("n1")).await.unwrap();
        there.is_some()
    };
    let judged = Orphan::Slice(Arc::new(slice(Health::Failing)));
    assert!(!registry.collect(&judged).await.unwrap(), "there is none");
    publish(&registry, slice(Health::Passing)).await;
    assert!(
        !registry.collect(&judged).await.unwrap() && there().await,
        "it was changed"
    );
    publish(&registry, slice(Health::Failing)).await;
    let lease = begin_to_live(&registry).await;
    assert!(
        !registry.collect(&judged).await.unwrap() && there().await,
        "its node is back"
    );
    lease.revoke().await.unwrap();
    assert!(registry.collect(&judged).await.unwrap());
    assert!(!there().await);
    assert!(!registry.collect(&judged).await.unwrap(), "once");
}

async fn findings_are_written_when_they_change_and_removed_when_there_are_none(b: Backend) {
    let registry = Registry::new(b.store.clone(), "/heddle");
    let id = EndpointId {
        workload: "db-1".into(),
        port: name("pg"),
        generation: "g".into(),
    };
    let found = |health| Findings {
        service: web(),
        node: name("n1"),
        endpoints: vec![Found::new(&id, Fact::new(health, Timestamp(1), "because"))],
    };
    let write = async |findings: Option<Findings>| {
        let wish = [(web(), findings)];
        match registry.write_findings(&name("n1"), &wish).await.unwrap() {
            Outcome::Committed(revision) => revision,
            Outcome::Conflict => panic!("nobody else writes"),
        }
    };
    assert_eq!(
        write(None).await,
        0,
        "nothing is there, and nothing written"
    );
    assert!(write(Some(found(Health::Passing))).await > 0);
    assert_eq!(write(Some(found(Health::Passing))).await, 0);

    // What a newer version noted beside it stays.
    let path = registry.keys().path(&Key::Findings(web(), name("n1")));
    let entry = b.store.get(&path).await.unwrap().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
    value["latency"] = "3ms".into();
    let txn = Txn::new().then(Op::put(path.clone(), value.to_string().into_bytes()));
    b.store.commit(txn).await.unwrap();
    assert!(write(Some(found(Health::Failing))).await > 0);
    let entry = b.store.get(&path).await.unwrap().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
    assert_eq!(value["latency"], "3ms");
    let read: Findings = record::decode(&entry.value).unwrap();
    assert_eq!(read, found(Health::Failing));

    assert!(write(None).await > 0);
    assert!(b.store.get(&path).await.unwrap().is_none());
}

async fn a_node_is_deleted_with_all_that_is_its_own_and_only_once_it_is_gone(b: Backend) {
    let registry = Registry::new(b.store.clone(), "/heddle");
    let put = async |below: &str| {
        let txn = Txn::new().then(Op::put(format!("/heddle/v1/{below}"), b"{}".to_vec()));
        b.store.commit(txn).await.unwrap();
    };
    let stay = [
        "marks/endpoint/shop/web/w/http",
        "nodes/n2",
        "services/shop/web",
        "slices/shop/web/n2",
    ];
    for below in stay {
        put(below).await;
    }
    for below in [
        "nodes/n1",
        "findings/shop/db/n1",
        "marks/node/n1",
        "marks/workload/n1/w",
        "registrations/n1/pg",
    ] {
        put(below).await;
    }
    // More than one transaction holds.
    for n in 0..200 {
        put(&format!("slices/shop/s{n}/n1")).await;
    }
    let lease = begin_to_live(&registry).await;
    let refused = registry.delete_node(&name("n1")).await;
    assert!(
        matches!(refused, Err(DeleteNodeError::Alive { .. })),
        "{refused:?}"
    );
    lease.revoke().await.unwrap();
    assert_eq!(registry.delete_node(&name("n1")).await.unwrap(), 205);
    let left = b.store.list("/heddle/v1/").await.unwrap().entries;
    let left: Vec<&str> = (left.iter())
        .filter_map(|entry| entry.key.strip_prefix("/heddle/v1/"))
        .collect();
    assert_eq!(left, stay);
    let again = registry.delete_node(&name("n1")).await;
    assert!(
        matches!(again, Err(DeleteNodeError::NotFound { .. })),
        "{again:?}"
    );
}

/// As format 1 writes it: nodes of other versions read it.
#[test]
fn the_record_of_findings_stays_as_it_is() {
    const GOLDEN: &str = r#"{"endpoints":[{"generation":"uid/192.0.2.10:5432","health":{"reason":"connects","since":"1970-01-01T00:00:00.001Z","value":"passing"},"port":"pg","workload":"db-1"}],"formatVersion":1,"node":"n1","service":"shop/web"}"#;
    let findings = Findings {
        service: web(),
        node: name("n1"),
        endpoints: vec![Found {
            workload: "db-1".into(),
            port: name("pg"),
            generation: "uid/192.0.2.10:5432".into(),
            health: Fact::new(Health::Passing, Timestamp(1), "connects"),
        }],
    };
    let read: Findings = record::decode(GOLDEN.as_bytes()).unwrap();
    assert_eq!(read, findings);
    let value: serde_json::Value = serde_json::from_slice(&record::encode(&findings)).unwrap();
    assert_eq!(
        value,
        serde_json::from_str::<serde_json::Value>(GOLDEN).unwrap()
    );
}
