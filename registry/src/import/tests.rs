use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::store::{
    EmbeddedOptions, EmbeddedStore, Lease, Limits, Listing, Revision, Store, Watch,
};
use serde_json::json;

/// A registry with a mesh of 10.96.0.0/16, and the folder that it lives in.
async fn registry() -> (Registry, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path().join("r"), EmbeddedOptions::default()).unwrap();
    let registry = Registry::new(Arc::new(store), "/heddle");
    registry
        .mesh(&crate::join::MeshWish::default())
        .await
        .unwrap();
    (registry, folder)
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "heddle/v1", "kind": "Service", "managedBy": "apply",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "generation": 3},
        "spec": {"selector": "app=web", "ports": [{"name": "http", "port": port, "protocol": "http"}]},
    })
}

/// The same, with two services: web has 10.96.1.1, and db 10.96.1.2.
async fn registry_with_web_and_db() -> (Registry, tempfile::TempDir) {
    let (registry, folder) = registry().await;
    let there = vec![
        service("web", 80),
        vip("10.96.1.1", "shop/web"),
        service("db", 80),
        vip("10.96.1.2", "shop/db"),
    ];
    registry.import(there, WRITE).await.unwrap();
    (registry, folder)
}

fn vip(address: &str, service: &str) -> Value {
    json!({"apiVersion": "heddle/v1", "kind": "VirtualIP", "address": address, "service": service})
}

fn registration(id: &str) -> Value {
    json!({"apiVersion": "heddle/v1", "kind": "Registration", "node": "n1", "id": id, "namespace": "shop", "labels": {}, "ports": [80]})
}

fn mark() -> Value {
    json!({
        "apiVersion": "heddle/v1", "kind": "Mark", "reason": "update", "since": "2026-03-01T12:00:00Z",
        "target": {"kind": "node", "name": "n1"},
    })
}

const WRITE: ImportOptions = ImportOptions {
    dry_run: false,
    replace: false,
};
const REPLACE: ImportOptions = ImportOptions {
    dry_run: false,
    replace: true,
};

async fn errors(registry: &Registry, documents: Vec<Value>) -> Vec<String> {
    let before = registry.export(None).await.unwrap();
    let error = registry.import(documents, WRITE).await.unwrap_err();
    let after = registry.export(None).await.unwrap();
    assert_eq!(before.documents, after.documents, "nothing is written");
    match error {
        ImportError::Documents { errors } => errors,
        ImportError::Conflicts { conflicts } => conflicts,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_was_exported_comes_back_the_same_and_a_second_time_changes_nothing() {
    let (registry, _folder) = registry().await;
    let documents = vec![
        service("web", 80),
        vip("10.96.1.1", "shop/web"),
        registration("pg"),
        mark(),
    ];
    let imported = registry.import(documents.clone(), WRITE).await.unwrap();
    assert_eq!(imported.transactions, 1);
    assert!(imported.items.iter().all(|i| i.action == Action::Created));
    let exported = registry.export(None).await.unwrap();
    assert!(exported.unreadable.is_empty());
    assert_eq!(exported.documents[1..], documents[..], "after the mesh");
    let again = registry.import(exported.documents, WRITE).await.unwrap();
    assert_eq!(again.transactions, 0);
    assert!(again.items.iter().all(|i| i.action == Action::Unchanged));
}

#[tokio::test]
async fn a_namespace_is_exported_by_itself() {
    let (registry, _folder) = registry().await;
    let mut other = service("web", 80);
    other["metadata"]["namespace"] = "blog".into();
    let documents = vec![
        service("web", 80),
        other,
        vip("10.96.1.1", "shop/web"),
        vip("10.96.1.2", "blog/web"),
        registration("pg"),
        mark(),
    ];
    registry.import(documents.clone(), WRITE).await.unwrap();
    let shop = model::Name::new("shop").unwrap();
    let exported = registry.export(Some(&shop)).await.unwrap();
    let wanted = [&documents[0], &documents[2], &documents[4]];
    assert_eq!(exported.documents.iter().collect::<Vec<_>>(), wanted);
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let (registry, _folder) = registry().await;
    let options = ImportOptions {
        dry_run: true,
        replace: false,
    };
    let imported = registry
        .import(vec![service("web", 80)], options)
        .await
        .unwrap();
    assert_eq!(imported.items[0].action, Action::Created);
    assert_eq!(registry.export(None).await.unwrap().documents.len(), 1);
}

#[tokio::test]
async fn records_of_other_versions_are_exported_whole() {
    let (registry, _folder) = registry().await;
    let older = br#"{"formatVersion":1,"id":"pg","namespace":"shop","ports":[80]}"#;
    let newer = br#"{"formatVersion":1,"id":"ng","namespace":"shop","ports":[80],"color":"blue"}"#;
    for (id, bytes) in [("pg", &older[..]), ("ng", &newer[..])] {
        let txn = Txn::create(format!("/heddle/v1/registrations/n1/{id}"), bytes.to_vec());
        registry.store().commit(txn).await.unwrap();
    }
    let exported = registry.export(None).await.unwrap().documents;
    assert_eq!(exported[2], registration("pg"), "as this version writes it");
    assert_eq!(exported[1]["color"], "blue", "nothing is lost");
    let error = errors(&registry, exported).await;
    assert!(error[0].contains("color"), "and nothing ignored: {error:?}");
}

#[tokio::test]
async fn bad_documents_are_all_named() {
    let (registry, _folder) = registry().await;
    let mut manifest = service("a", 80);
    manifest["metadata"]["uid"].take();
    let mut unknown = service("b", 80);
    unknown["spec"]["helth"] = json!({});
    let mut ownerless = service("c", 80);
    ownerless.as_object_mut().unwrap().remove("managedBy");
    let errors = errors(
        &registry,
        vec![
            manifest,
            unknown,
            ownerless,
            json!({"apiVersion": "heddle/v1", "kind": "Slice"}),
            json!({"apiVersion": "heddle/v2", "kind": "Mark"}),
            vip("10.96.1", "shop/web"),
            service("web", 80),
            service("web", 81),
            json!(["text"]),
        ],
    )
    .await;
    let wanted = [
        "document 1, Service shop/a: metadata: has no uid",
        "document 2, Service shop/b: spec.helth: ",
        "document 3, Service shop/c: managedBy: missing",
        "document 4, Slice: kind: not one of Mesh, Service",
        "document 5, Mark: apiVersion: must be heddle/v1",
        "document 6, VirtualIP 10.96.1: address: `10.96.1` is not an IP address",
        "document 8: Service shop/web is there twice",
        "document 9: not a map",
    ];
    assert_eq!(errors.len(), wanted.len(), "{errors:#?}");
    for (error, wanted) in errors.iter().zip(wanted) {
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[tokio::test]
async fn conflicts_are_all_named_before_anything_is_written() {
    let (registry, _folder) = registry_with_web_and_db().await;
    let mesh = json!({"apiVersion": "heddle/v1", "kind": "Mesh", "vipRanges": ["10.99.0.0/16"], "zone": "heddle.internal"});
    let conflicts = errors(
        &registry,
        vec![
            mesh.clone(),
            service("web", 81),
            vip("10.96.1.2", "shop/web"),
            service("new", 80),
        ],
    )
    .await;
    assert_eq!(conflicts.len(), 4, "{conflicts:#?}");
    assert!(conflicts[0].starts_with("Mesh mesh differs, and is never replaced"));
    assert_eq!(conflicts[1], "Service shop/web differs in spec.ports");
    assert_eq!(
        conflicts[2],
        "VirtualIP 10.96.1.2: service shop/web has 10.96.1.1"
    );
    assert_eq!(
        conflicts[3],
        "VirtualIP 10.96.1.2 is held by service shop/db"
    );
    let robbed = registry
        .import(vec![vip("10.96.1.2", "shop/web")], REPLACE)
        .await;
    let Err(ImportError::Conflicts { conflicts }) = robbed else {
        panic!("{robbed:?}");
    };
    assert!(
        conflicts[0].contains("would be left without one"),
        "{conflicts:?}"
    );
    let outside = errors(&registry, vec![vip("10.97.0.1", "shop/new")]).await;
    assert!(outside[0].contains("lies outside of mesh.vip_range 10.96.0.0/16"));
}

#[tokio::test]
async fn replacing_writes_over_and_moves_addresses() {
    let (registry, _folder) = registry_with_web_and_db().await;
    let wanted = vec![
        service("db", 80),
        service("web", 81),
        vip("10.96.1.1", "shop/db"),
        vip("10.96.1.9", "shop/web"),
    ];
    let imported = registry.import(wanted.clone(), REPLACE).await.unwrap();
    let actions: Vec<Action> = imported.items.iter().map(|i| i.action).collect();
    assert_eq!(
        actions,
        [
            Action::Unchanged,
            Action::Configured,
            Action::Configured,
            Action::Created
        ]
    );
    let exported = registry.export(None).await.unwrap().documents;
    assert_eq!(exported[1..], wanted[..], "10.96.1.2 was given up");
}

#[tokio::test]
async fn replacing_keeps_what_a_newer_version_noted() {
    let (registry, _folder) = registry().await;
    let newer = br#"{"formatVersion":1,"id":"pg","namespace":"shop","ports":[81],"color":"blue"}"#;
    let txn = Txn::create("/heddle/v1/registrations/n1/pg", newer.to_vec());
    registry.store().commit(txn).await.unwrap();
    registry
        .import(vec![registration("pg")], REPLACE)
        .await
        .unwrap();
    let exported = registry.export(None).await.unwrap().documents;
    assert_eq!(exported[1]["color"], "blue");
    assert_eq!(exported[1]["ports"], json!([80]));
}

#[tokio::test]
async fn more_than_a_transaction_holds_goes_in_batches_that_keep_services_whole() {
    let (registry, _folder) = registry().await;
    let mut documents = Vec::new();
    for n in 0..300 {
        documents.push(service(&format!("s{n:03}"), 80));
    }
    for n in 0..300 {
        let ip = format!("10.96.{}.{}", 1 + n / 200, 1 + n % 200);
        documents.push(vip(&ip, &format!("shop/s{n:03}")));
    }
    // What an interrupted import left: some of it is there.
    let some = vec![documents[5].clone(), documents[305].clone()];
    registry.import(some, WRITE).await.unwrap();
    let imported = registry.import(documents.clone(), WRITE).await.unwrap();
    assert_eq!(imported.transactions, 5, "598 of 128 at most");
    let exported = registry.export(None).await.unwrap().documents;
    assert_eq!(exported.len(), 601);
    let again = registry.import(exported, WRITE).await.unwrap();
    assert_eq!(again.transactions, 0);
}

#[tokio::test]
async fn a_record_that_cant_be_read_is_named_and_the_rest_exported() {
    let (registry, _folder) = registry().await;
    registry
        .import(vec![service("web", 80)], WRITE)
        .await
        .unwrap();
    let bad = Txn::create(
        "/heddle/v1/services/shop/bad",
        b"{\"formatVersion\":9}".to_vec(),
    );
    registry.store().commit(bad).await.unwrap();
    let exported = registry.export(None).await.unwrap();
    assert_eq!(exported.documents.len(), 2);
    assert_eq!(exported.unreadable[0].key, "/heddle/v1/services/shop/bad");
    let conflicts = errors(&registry, vec![service("bad", 80)]).await;
    assert!(
        conflicts[0].contains("in a form that can't be read"),
        "{conflicts:?}"
    );
    registry
        .import(vec![service("bad", 80)], REPLACE)
        .await
        .unwrap();
}

/// A store whose first commits meet others' writes.
struct Contended {
    store: EmbeddedStore,
    conflicts: AtomicU32,
}

#[async_trait]
impl Store for Contended {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let left = self.conflicts.load(Ordering::SeqCst);
        if left > 0 {
            self.conflicts.store(left - 1, Ordering::SeqCst);
            return Ok(Outcome::Conflict);
        }
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.lease(ttl).await
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    fn name(&self) -> &'static str {
        "contended"
    }
}

#[tokio::test]
async fn an_import_that_meets_others_writes_begins_anew_but_not_for_ever() {
    for (conflicts, goes) in [(TRIES, true), (TRIES + 1, false)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let store = EmbeddedStore::open(path, EmbeddedOptions::default()).unwrap();
        let conflicts = AtomicU32::new(conflicts);
        let registry = Registry::new(Arc::new(Contended { store, conflicts }), "/heddle");
        let imported = registry.import(vec![service("web", 80)], WRITE).await;
        match imported {
            Ok(imported) => assert!(goes && imported.items[0].action == Action::Created),
            Err(ImportError::Changed {
                written: 0,
                count: 1,
            }) => assert!(!goes),
            Err(error) => panic!("{error}"),
        }
    }
}
