//! The embedded backend against a model of it: any sequence of transactions gives the same.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
mod harness;

use std::collections::BTreeMap;

use harness::{apply, registry_file, within};
use proptest::prelude::*;
use registry::store::{
    Change, Compare, EmbeddedOptions, EmbeddedStore, Entry, Op, Outcome, Revision, Store, Txn,
    Watch, WatchEvent,
};

fn open(dir: &tempfile::TempDir) -> EmbeddedStore {
    EmbeddedStore::open(registry_file(dir), EmbeddedOptions::default()).expect("it opens")
}

/// Few keys, so that transactions meet.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["/a", "/a/", "/a/b", "/a/bc", "/b", "/b/c", "/é"])
        .prop_map(str::to_owned)
}

/// `Unchanged` takes the revision of an earlier transaction, counted back from the newest.
#[derive(Debug, Clone)]
enum Condition {
    Absent(String),
    Exists(String),
    Unchanged(String, i64),
}

#[derive(Debug, Clone)]
struct Step {
    conditions: Vec<Condition>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
}

fn step() -> impl Strategy<Value = Step> {
    let condition = prop_oneof![
        key().prop_map(Condition::Absent),
        key().prop_map(Condition::Exists),
        (key(), 0..6_i64).prop_map(|(key, back)| Condition::Unchanged(key, back)),
    ];
    let write = (
        key(),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
    );
    (
        prop::collection::vec(condition, 0..2),
        prop::collection::btree_map(key(), write, 0..4),
    )
        .prop_map(|(conditions, writes)| Step {
            conditions,
            writes: writes.into_values().collect(),
        })
}

/// What a store is, in the fewest words.
#[derive(Default)]
struct Model {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
}

impl Model {
    fn commit(&mut self, txn: &Txn) -> Outcome {
        let current = |key: &str| self.entries.get(key).map(|e| e.mod_revision);
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => current(key).is_none(),
            Compare::Exists(key) => current(key).is_some(),
            Compare::Unchanged { key, mod_revision } => current(key) == Some(*mod_revision),
        };
        if !txn.compares.iter().all(holds) {
            return Outcome::Conflict;
        }
        let revision = self.revision + 1;
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    let created = self
                        .entries
                        .get(key)
                        .map_or(revision, |e| e.create_revision);
                    self.entries.insert(
                        key.clone(),
                        Entry {
                            key: key.clone(),
                            value: value.clone(),
                            create_revision: created,
                            mod_revision: revision,
                        },
                    );
                    self.revision = revision;
                }
                Op::Delete { key } => {
                    if self.entries.remove(key).is_some() {
                        self.revision = revision;
                    }
                }
            }
        }
        Outcome::Committed(self.revision)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_sequence_of_transactions_does_what_the_model_does(
        steps in prop::collection::vec(step(), 1..30),
        reopen_after in 0..30_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a folder");
            let mut store = open(&dir);
            let mut model = Model { revision: 1, ..Model::default() };
            let (mut replayed, mut told) = (BTreeMap::new(), 0);
            let mut watch = store.watch("/a/", 0).await.unwrap();
            for (n, step) in steps.iter().enumerate() {
                if n == reopen_after {
                    replay(&mut watch, &mut replayed, &mut told, model.revision).await;
                    store.close().await;
                    store = open(&dir);
                    watch = store.watch("/a/", model.revision).await.unwrap();
                }
                let compares = step.conditions.iter().map(|c| match c.clone() {
                    Condition::Absent(key) => Compare::Absent(key),
                    Condition::Exists(key) => Compare::Exists(key),
                    Condition::Unchanged(key, back) => {
                        Compare::Unchanged { key, mod_revision: model.revision - back }
                    }
                });
                let ops = step.writes.iter().map(|(key, value)| match value {
                    Some(value) => Op::put(key.clone(), value.clone()),
                    None => Op::delete(key.clone()),
                });
                let txn = Txn { compares: compares.collect(), ops: ops.collect() };
                prop_assert_eq!(store.commit(txn.clone()).await.unwrap(), model.commit(&txn));
                let listing = store.list("").await.unwrap();
                prop_assert_eq!(listing.revision, model.revision);
                prop_assert!(listing.entries.iter().eq(model.entries.values()));
            }
            replay(&mut watch, &mut replayed, &mut told, model.revision).await;
            let under: Vec<_> = store.list("/a/").await.unwrap().entries;
            prop_assert_eq!(replayed.into_values().collect::<Vec<_>>(), under);
            Ok(())
        })?;
    }
}

async fn replay(
    watch: &mut Watch,
    entries: &mut BTreeMap<String, Entry>,
    told: &mut Revision,
    until: Revision,
) {
    while *told < until {
        let event = within(watch.next()).await.unwrap();
        *told = event.revision();
        if let WatchEvent::Changes { revision, changes } = event {
            assert!(
                changes
                    .iter()
                    .map(Change::mod_revision)
                    .all(|r| r == revision)
            );
            apply(entries, changes);
        }
    }
}
