//! Writing what [`crate::export`] gave, into an empty registry or beside what is there.
//!
//! Everything is read, checked and compared first; a single mistake or conflict, and nothing is written. What fits into one
//! transaction is written all or nothing. More is written in batches, each of them whole and a service always together with
//! its virtual IPs; one that is interrupted is finished by importing the same again.

mod document;
#[cfg(test)]
mod tests;
mod vips;

use std::collections::{BTreeMap, BTreeSet};

use model::name::ServiceKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::export::{kind_of, normal, over, shown, vip_owner};
use crate::layout::Key;
use crate::resources::Action;
use crate::store::{Compare, Entry, Limits, Op, Outcome, StoreError, Txn};
use crate::{Registry, record};
use document::Item;
use vips::Vips;

/// What to do beside writing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    /// Say what would be done, and write nothing.
    pub dry_run: bool,
    /// Write over what is there and differs.
    pub replace: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// One for each document, in their order.
    pub items: Vec<ImportedItem>,
    /// How many transactions it took; none when all was there already.
    pub transactions: usize,
}

/// What was done with one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportedItem {
    /// `Service`, `VirtualIP` and so on.
    pub kind: String,
    /// `namespace/name`, or what else the kind is named by.
    pub name: String,
    /// What was done.
    pub action: Action,
}

/// Why nothing, or not all, was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Documents that can't be imported by anybody; nothing was written.
    #[error("documents refused, nothing was changed")]
    Documents {
        /// One line each.
        errors: Vec<String>,
    },
    /// The registry has something else; nothing was written.
    #[error("the registry has something else, nothing was changed (--replace writes over it)")]
    Conflicts {
        /// One line each.
        conflicts: Vec<String>,
    },
    /// The registry failed before anything was written.
    #[error("registry can't be read or written, nothing was changed")]
    Store(#[from] StoreError),
    /// Somebody else wrote at the same time.
    #[error(
        "others wrote the same at the same time: {written} of {count} resources are written (import again to finish)"
    )]
    Changed {
        /// Resources of the batches that were written.
        written: usize,
        /// All that were to be written.
        count: usize,
    },
    /// The registry failed on the way; the batch that failed may have been written all the same.
    #[error(
        "registry failed: {written} of {count} resources are written for sure (import again to finish)"
    )]
    Interrupted {
        /// Resources of the batches that were written.
        written: usize,
        /// All that were to be written.
        count: usize,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// How often an import begins anew that met others' writes before its first was done, as on a node that just joined.
const TRIES: u32 = 5;

/// What is written together or not at all.
#[derive(Default)]
struct Unit {
    txn: Txn,
    resources: usize,
}

struct Plan {
    items: Vec<ImportedItem>,
    units: Vec<Unit>,
}

impl Registry {
    /// Writes exported documents.
    pub async fn import(
        &self,
        documents: Vec<Value>,
        options: ImportOptions,
    ) -> Result<Imported, ImportError> {
        let items =
            document::read_all(documents).map_err(|errors| ImportError::Documents { errors })?;
        let mut tries = 0;
        loop {
            let plan = self.plan_import(&items, options).await?;
            match self.write_plan(plan, options).await {
                // Nothing is written, so that all is as if it had begun a moment later.
                Err(ImportError::Changed { written: 0, .. }) if tries < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    async fn write_plan(
        &self,
        plan: Plan,
        options: ImportOptions,
    ) -> Result<Imported, ImportError> {
        let count = plan.units.iter().map(|unit| unit.resources).sum();
        let batches = pack(plan.units, self.store().limits());
        let transactions = batches.len();
        let mut written = 0;
        for batch in batches {
            if options.dry_run {
                break;
            }
            match self.store().commit(batch.txn).await {
                Ok(Outcome::Committed(_)) => written += batch.resources,
                Ok(Outcome::Conflict) => return Err(ImportError::Changed { written, count }),
                Err(source) => {
                    return Err(ImportError::Interrupted {
                        written,
                        count,
                        source,
                    });
                }
            }
        }
        Ok(Imported {
            items: plan.items,
            transactions,
        })
    }

    async fn plan_import(
        &self,
        items: &[Item],
        options: ImportOptions,
    ) -> Result<Plan, ImportError> {
        let keys = self.keys();
        let there: BTreeMap<String, Entry> = self
            .entries(|key| kind_of(key).is_some())
            .await?
            .into_iter()
            .map(|(_, entry)| (entry.key.clone(), entry))
            .collect();

        let mut conflicts = Vec::new();
        let vips = Vips::new(keys, items, &there);
        vips.check_ranges(items)?;
        let mut units: Vec<Unit> = Vec::new();
        // Where the unit of a service is, for its virtual IPs to join it.
        let mut of_service: BTreeMap<ServiceKey, usize> = BTreeMap::new();
        let mut released = BTreeSet::new();
        let mut done = Vec::with_capacity(items.len());
        for item in items {
            let path = keys.path(&item.key);
            let before = there.get(&path);
            let name = format!("{} {}", item.kind, shown(&item.key));
            let mut paths = Vec::new();
            let action = match before {
                None => Action::Created,
                Some(entry) => match normal(&item.key, &entry.value) {
                    Ok(value) if value == item.value => Action::Unchanged,
                    Ok(value) => {
                        differences("", &value, &item.value, &mut paths);
                        Action::Configured
                    }
                    Err(_) if options.replace => Action::Configured,
                    Err(error) => {
                        conflicts.push(format!(
                            "{name} is there in a form that can't be read: {error}"
                        ));
                        continue;
                    }
                },
            };
            let mut unit = Unit::default();
            if action != Action::Unchanged {
                unit = write(&item.key, path, before, &item.value);
            }
            if let (Key::Vip(ip), Some(service)) = (&item.key, &item.vip_of) {
                let others = vips.others(*ip, service);
                if options.replace {
                    conflicts.extend(vips.robbed(*ip, service));
                    for (other, entry) in others {
                        if released.insert(other) {
                            unit.txn = release(unit.txn, keys.path(&Key::Vip(other)), entry);
                        }
                    }
                } else {
                    conflicts.extend(others.iter().map(|(other, _)| {
                        format!("VirtualIP {ip}: service {service} has {other}")
                    }));
                }
            }
            if action == Action::Configured
                && let Some(conflict) = differs(item, before, &paths, options.replace)
            {
                conflicts.push(format!("{name} {conflict}"));
            }
            done.push(ImportedItem {
                kind: item.kind.to_owned(),
                name: shown(&item.key),
                action,
            });
            let service = match &item.key {
                Key::Service(key) => Some(key),
                _ => item.vip_of.as_ref(),
            };
            match service {
                Some(service) => match of_service.get(service) {
                    Some(at) => units[*at].join(unit),
                    None => {
                        of_service.insert(service.clone(), units.len());
                        units.push(unit);
                    }
                },
                None => units.push(unit),
            }
        }
        if !conflicts.is_empty() {
            return Err(ImportError::Conflicts { conflicts });
        }
        units.retain(|unit| !unit.txn.ops.is_empty());
        Ok(Plan { items: done, units })
    }
}

fn write(key: &Key, path: String, before: Option<&Entry>, value: &Value) -> Unit {
    let compare = match before {
        None => Compare::Absent(path.clone()),
        Some(entry) => Compare::Unchanged {
            key: path.clone(),
            mod_revision: entry.mod_revision,
        },
    };
    let bytes = match before {
        None => record::encode(value),
        Some(entry) => over(key, &entry.value, value),
    };
    let txn = Txn::new().when(compare).then(Op::put(path, bytes));
    Unit { txn, resources: 1 }
}

/// Why what is there may not be written over.
fn differs(item: &Item, before: Option<&Entry>, paths: &[String], replace: bool) -> Option<String> {
    match &item.key {
        // Running nodes have taken their routes and rules from it.
        Key::Mesh => Some(
            "differs, and is never replaced: start the node on an empty registry with [mesh] as exported, and import then"
                .to_owned(),
        ),
        _ if replace => None,
        Key::Vip(_) => {
            let owner = before.and_then(|entry| vip_owner(&entry.value));
            match owner {
                Some(owner) if Some(&owner) != item.vip_of.as_ref() => {
                    Some(format!("is held by service {owner}"))
                }
                _ => Some("differs".to_owned()),
            }
        }
        _ => Some(match paths {
            [a, b, c, _, ..] => format!("differs in {a}, {b}, {c} and more"),
            some => format!("differs in {}", some.join(", ")),
        }),
    }
}

/// The paths of what is not the same.
fn differences(path: &str, a: &Value, b: &Value, paths: &mut Vec<String>) {
    let (Value::Object(old), Value::Object(new)) = (a, b) else {
        if a != b {
            paths.push(path.trim_start_matches('.').to_owned());
        }
        return;
    };
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        differences(&format!("{path}.{key}"), &of(old), &of(new), paths);
    }
}

fn release(txn: Txn, path: String, entry: &Entry) -> Txn {
    txn.when(Compare::Unchanged {
        key: path.clone(),
        mod_revision: entry.mod_revision,
    })
    .then(Op::delete(path))
}

impl Unit {
    fn join(&mut self, mut other: Unit) {
        self.txn.compares.append(&mut other.txn.compares);
        self.txn.ops.append(&mut other.txn.ops);
        self.resources += other.resources;
    }

    fn bytes(&self) -> usize {
        let compares: usize = self.txn.compares.iter().map(|c| c.key().len()).sum();
        let ops = self.txn.ops.iter().map(|op| match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        });
        compares + ops.sum::<usize>()
    }
}

/// As few transactions as the order allows.
fn pack(units: Vec<Unit>, limits: Limits) -> Vec<Unit> {
    let mut batches: Vec<Unit> = Vec::new();
    for unit in units {
        let fits = batches.last().is_some_and(|last| {
            let most = |unit: &Unit| unit.txn.ops.len().max(unit.txn.compares.len());
            most(last) + most(&unit) <= limits.max_ops_per_txn
                && last.bytes() + unit.bytes() <= limits.max_txn_bytes
        });
        match batches.last_mut() {
            Some(last) if fits => last.join(unit),
            _ => batches.push(unit),
        }
    }
    batches
}
