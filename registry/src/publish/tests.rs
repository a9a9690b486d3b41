use model::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::store::{EmbeddedOptions, EmbeddedStore};

async fn registry() -> (Registry, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path().join("r"), EmbeddedOptions::default()).unwrap();
    (Registry::new(Arc::new(store), "/heddle"), folder)
}

fn mark(reason: &str) -> Mark {
    Mark {
        target: MarkTarget::Node {
            name: Name::new("n1").unwrap(),
        },
        since: Timestamp(1_000),
        reason: reason.to_owned(),
    }
}

async fn stored(registry: &Registry) -> Option<Value> {
    let key = registry.keys().path(&Key::Mark(mark("").target));
    let entry = registry.store().get(&key).await.unwrap()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

#[tokio::test]
async fn draining_again_keeps_what_a_newer_version_noted() {
    let (registry, _folder) = registry().await;
    registry.mark(&mark("update")).await.unwrap();
    let mut newer = stored(&registry).await.unwrap();
    newer["ticket"] = json!("OPS-7");
    let key = registry.keys().path(&Key::Mark(mark("").target));
    let put = Txn::new().then(Op::put(key, newer.to_string().into_bytes()));
    registry.store().commit(put).await.unwrap();

    registry.mark(&mark("disk")).await.unwrap();
    let now = stored(&registry).await.unwrap();
    assert_eq!(
        (&now["reason"], &now["ticket"]),
        (&json!("disk"), &json!("OPS-7"))
    );

    assert!(registry.unmark(&mark("").target).await.unwrap());
    assert_eq!(stored(&registry).await, None);
    assert!(!registry.unmark(&mark("").target).await.unwrap());
}
