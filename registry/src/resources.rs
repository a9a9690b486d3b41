//! Applying and deleting what users define: services and endpoints made by hand.
//!
//! A service is written together with its virtual IP in one transaction, so that there is never one without the other. The
//! owner decides who may write: apply and files beat labels, a file's resource is changed through its file.
//!
//! # Layout
//! - [`mod@self`]: planning and committing
//! - `addresses`: which virtual IPs are given up and taken
//! - `outcome`: what was done, or why not
//! - `unused`: services of labels that nobody asks for any more

mod addresses;
mod outcome;
mod unused;

use model::endpoint::ManualEndpoint;
use model::manifest::Manifest;
use model::name::ServiceKey;
use model::service::{ManagedBy, Metadata, Service};
use model::time::Timestamp;
use serde::{Deserialize, Serialize};

use addresses::Addresses;
pub use outcome::{Action, Applied, ApplyError, ApplyOptions};

use crate::Registry;
use crate::layout::Key;
use crate::record;
use crate::store::{Compare, Entry, Op, Outcome, Retry, Txn};

/// Somebody else's write succeeds for each try that fails; many that want the last free addresses fail often.
const TRIES: u32 = 32;
/// Writes of one resource at most: a service, and for each family an address that it takes and one that it gives up.
const MAX_OPS: usize = 5;

/// One resource's part of a transaction.
struct Planned {
    applied: Applied,
    txn: Txn,
    /// Writes the record as it is, where it has not changed.
    touch: Option<Op>,
    service: Option<PlannedService>,
}

/// A service before and after.
struct PlannedService {
    before: Option<Service>,
    after: Service,
}

impl Registry {
    /// Creates or replaces resources, all or none.
    pub async fn apply(
        &self,
        manifests: &[Manifest],
        options: &ApplyOptions,
    ) -> Result<Vec<Applied>, ApplyError> {
        for _ in 0..TRIES {
            let (done, txn) = self.plan_all(manifests, options).await?;
            let limit = self.store().limits().max_ops_per_txn;
            if txn.ops.len().max(txn.compares.len()) > limit {
                return Err(ApplyError::TooMany {
                    count: manifests.len(),
                    limit: self.apply_limit(),
                });
            }
            if txn.ops.is_empty() || options.dry_run {
                return Ok(done);
            }
            match self.store().commit(txn).await {
                Ok(Outcome::Committed(_)) => return Ok(done),
                // Somebody wrote meanwhile, or the outcome is open: plan again from what is there now.
                Ok(Outcome::Conflict) => {}
                Err(error) if error.retry() == Retry::ReadFirst => {
                    tracing::debug!(%error, "apply's outcome is open; reading again");
                    let (now, _) = self.plan_all(manifests, options).await?;
                    if now.iter().all(|one| one.action == Action::Unchanged) {
                        return Ok(done);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApplyError::Contended)
    }

    /// How many resources fit surely into one [`Registry::apply`].
    pub fn apply_limit(&self) -> usize {
        self.store().limits().max_ops_per_txn / MAX_OPS
    }

    /// What is to be written, and what will have been done then.
    async fn plan_all(
        &self,
        manifests: &[Manifest],
        options: &ApplyOptions,
    ) -> Result<(Vec<Applied>, Txn), ApplyError> {
        let mut all = Vec::with_capacity(manifests.len());
        for manifest in manifests {
            all.push(self.plan(manifest, options).await?);
        }
        let specs = manifests.iter().filter_map(|manifest| match manifest {
            Manifest::Service(m) => Some(&m.spec),
            Manifest::Endpoint(_) => None,
        });
        let mut addresses = Addresses::new(self, &options.ranges, specs);
        // All that is given up first: one may take what another of the same apply gives up.
        let mut kept = Vec::new();
        for planned in &mut all {
            let Some(PlannedService { before, after }) = &planned.service else {
                continue;
            };
            let key = &planned.applied.key;
            let mut mine = addresses.of(key, before.as_ref(), &after.spec).await?;
            let released = addresses.release(&mut mine, &after.spec).await?;
            kept.push((mine, released));
        }
        let services = all.iter_mut().filter(|planned| planned.service.is_some());
        for (planned, (mine, released)) in services.zip(kept) {
            let Some(PlannedService { after, .. }) = &planned.service else {
                continue;
            };
            let key = planned.applied.key.clone();
            let changed = addresses.take(&key, &mine, &after.spec).await?;
            planned.applied.vips = changed.taken;
            planned.applied.warning = changed.warning;
            if released || !planned.applied.vips.is_empty() {
                if planned.applied.action == Action::Unchanged {
                    planned.applied.action = Action::Configured;
                }
                // Of two that change a service's addresses at once, one must see the other.
                planned.txn.ops.extend(planned.touch.take());
            }
        }
        let mut txn = Txn::new();
        let mut done = Vec::with_capacity(all.len());
        for mut planned in all {
            txn.compares.append(&mut planned.txn.compares);
            txn.ops.append(&mut planned.txn.ops);
            done.push(planned.applied);
        }
        addresses.into_txn(&mut txn);
        Ok((done, txn))
    }

    async fn plan(
        &self,
        manifest: &Manifest,
        options: &ApplyOptions,
    ) -> Result<Planned, ApplyError> {
        let key = manifest.key();
        match manifest {
            Manifest::Service(m) => {
                let path = self.keys().path(&Key::Service(key.clone()));
                let entry = self.store().get(&path).await?;
                let before: Option<Service> = read("Service", &key, entry.as_ref())?;
                let owner = before.as_ref().map(|s| &s.managed_by);
                check(manifest, &key, entry.as_ref(), owner, options)?;
                let mut after = Service {
                    metadata: m.metadata.clone(),
                    managed_by: options.manager.clone(),
                    spec: m.spec.clone(),
                };
                let known = before.as_ref().map(|s| (&s.metadata, s.spec == after.spec));
                complete(&mut after.metadata, known);
                let mut planned = plan_record("Service", &key, path, entry, &before, &after);
                planned.service = Some(PlannedService { before, after });
                Ok(planned)
            }
            Manifest::Endpoint(m) => {
                let path = self.keys().path(&Key::Endpoint(key.clone()));
                let entry = self.store().get(&path).await?;
                let before: Option<ManualEndpoint> = read("Endpoint", &key, entry.as_ref())?;
                let owner = before.as_ref().map(|s| &s.managed_by);
                check(manifest, &key, entry.as_ref(), owner, options)?;
                let mut after = ManualEndpoint {
                    metadata: m.metadata.clone(),
                    managed_by: options.manager.clone(),
                    spec: m.spec.clone(),
                };
                let known = before.as_ref().map(|s| (&s.metadata, s.spec == after.spec));
                complete(&mut after.metadata, known);
                Ok(plan_record("Endpoint", &key, path, entry, &before, &after))
            }
        }
    }

    /// Deletes a service with its virtual IPs.
    pub async fn delete_service(
        &self,
        key: &ServiceKey,
        manager: &ManagedBy,
    ) -> Result<Applied, ApplyError> {
        self.delete("Service", key, Key::Service(key.clone()), manager)
            .await
    }

    /// Deletes an endpoint made by hand.
    pub async fn delete_endpoint(
        &self,
        key: &ServiceKey,
        manager: &ManagedBy,
    ) -> Result<Applied, ApplyError> {
        self.delete("Endpoint", key, Key::Endpoint(key.clone()), manager)
            .await
    }

    async fn delete(
        &self,
        kind: &'static str,
        key: &ServiceKey,
        record_key: Key,
        manager: &ManagedBy,
    ) -> Result<Applied, ApplyError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Owner {
            managed_by: ManagedBy,
        }
        let path = self.keys().path(&record_key);
        for _ in 0..TRIES {
            let Some(entry) = self.store().get(&path).await? else {
                return Err(ApplyError::NotFound {
                    kind,
                    key: key.clone(),
                });
            };
            // What can't be read has no owner who could object: deleting it is how it is mended.
            if let Ok(Owner { managed_by }) = record::decode(&entry.value) {
                may_write(kind, key, &managed_by, manager)?;
            }
            let mut txn = Txn::remove(path.clone(), entry.mod_revision);
            if kind == "Service" {
                let service = record::decode(&entry.value).ok();
                addresses::release_all(self, key, service.as_ref(), &mut txn).await?;
            }
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(Applied {
                    kind: kind.to_owned(),
                    key: key.clone(),
                    action: Action::Deleted,
                    vips: Vec::new(),
                    before: None,
                    after: None,
                    warning: None,
                });
            }
        }
        Err(ApplyError::Contended)
    }
}

fn read<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    key: &ServiceKey,
    entry: Option<&Entry>,
) -> Result<Option<T>, ApplyError> {
    entry
        .map(|entry| record::decode(&entry.value))
        .transpose()
        .map_err(|source| ApplyError::Unreadable {
            kind,
            key: key.clone(),
            source,
        })
}

fn check(
    manifest: &Manifest,
    key: &ServiceKey,
    entry: Option<&Entry>,
    owner: Option<&ManagedBy>,
    options: &ApplyOptions,
) -> Result<(), ApplyError> {
    let kind = manifest.kind();
    let current = entry.map_or(0, |e| e.mod_revision);
    match manifest.metadata().resource_version {
        Some(given) if given != current => {
            return Err(ApplyError::Stale {
                kind,
                key: key.clone(),
                given,
                current,
            });
        }
        _ => {}
    }
    match owner {
        Some(owner) => may_write(kind, key, owner, &options.manager),
        None => Ok(()),
    }
}

fn may_write(
    kind: &'static str,
    key: &ServiceKey,
    owner: &ManagedBy,
    writer: &ManagedBy,
) -> Result<(), ApplyError> {
    let mend = match (owner, writer) {
        (a, b) if a == b => return Ok(()),
        (ManagedBy::Labels, _) => return Ok(()),
        (ManagedBy::File(_), _) => "change or remove it in the file that defines it",
        (ManagedBy::Apply, _) => "change or delete it with heddle apply and heddle delete",
    };
    Err(ApplyError::Owned {
        kind,
        key: key.clone(),
        owner: owner.clone(),
        mend,
    })
}

/// Carries over what heddle notes of a resource, or begins it; `before` says whether the spec is the same.
fn complete(after: &mut Metadata, before: Option<(&Metadata, bool)>) {
    after.resource_version = None;
    after.unused_since = None;
    match before {
        Some((before, same_spec)) => {
            after.uid = before.uid.clone();
            after.creation_timestamp = before.creation_timestamp;
            let generation = before.generation.unwrap_or(1);
            after.generation = Some(if same_spec {
                generation
            } else {
                generation + 1
            });
        }
        None => {
            after.uid = Some(new_uid());
            after.creation_timestamp = Some(Timestamp::now());
            after.generation = Some(1);
        }
    }
}

/// 128 random bits, as a UUID of version 4 (RFC 9562).
fn new_uid() -> String {
    use std::hash::{BuildHasher, RandomState};
    // RandomState draws its keys from the system; two of them hashed give 128 bits that don't repeat.
    let (a, b) = (
        RandomState::new().hash_one(Timestamp::now().0),
        RandomState::new().hash_one(std::process::id()),
    );
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 48) & 0x3fff,
        b & 0xffff_ffff_ffff
    )
}

fn plan_record<T: Serialize + serde::de::DeserializeOwned + PartialEq>(
    kind: &'static str,
    key: &ServiceKey,
    path: String,
    entry: Option<Entry>,
    before: &Option<T>,
    after: &T,
) -> Planned {
    let json = |value: &T| serde_json::to_value(value).ok();
    let mut planned = Planned {
        applied: Applied {
            kind: kind.to_owned(),
            key: key.clone(),
            action: Action::Created,
            vips: Vec::new(),
            before: before.as_ref().and_then(json),
            after: json(after),
            warning: None,
        },
        txn: Txn::new(),
        touch: None,
        service: None,
    };
    match (entry, before) {
        (Some(entry), Some(before)) => {
            planned.txn.compares.push(Compare::Unchanged {
                key: path.clone(),
                mod_revision: entry.mod_revision,
            });
            if before == after {
                planned.applied.action = Action::Unchanged;
                planned.touch = Some(Op::put(path, entry.value));
            } else {
                planned.applied.action = Action::Configured;
                let bytes = record::replace(&entry.value, after);
                planned.txn.ops.push(Op::put(path, bytes));
            }
        }
        _ => {
            planned.txn.compares.push(Compare::Absent(path.clone()));
            planned.txn.ops.push(Op::put(path, record::encode(after)));
        }
    }
    planned
}
