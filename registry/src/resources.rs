//! Applying and deleting what users define: services and endpoints made by hand.
//!
//! A service is written together with its virtual IP in one transaction, so that there is never one without the other. The
//! owner decides who may write: apply and files beat labels, a file's resource is changed through its file.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::endpoint::ManualEndpoint;
use model::manifest::Manifest;
use model::name::ServiceKey;
use model::net::IpNet;
use model::service::{ManagedBy, Metadata, Service};
use model::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Registry;
use crate::follow::vips_in;
use crate::layout::Key;
use crate::record::{self, RecordError};
use crate::store::{Compare, Entry, Op, Outcome, Retry, StoreError, Txn};
use crate::vips::{self, VipRecord};

const TRIES: u32 = 8;

/// What was done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It was another one before.
    Configured,
    /// It was the same already; nothing was written.
    Unchanged,
    /// It is gone.
    Deleted,
}

impl Action {
    /// As the command line prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Created => "created",
            Action::Configured => "configured",
            Action::Unchanged => "unchanged",
            Action::Deleted => "deleted",
        }
    }
}

/// What was done with which resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// `Service` or `Endpoint`.
    pub kind: String,
    /// `namespace/name`.
    pub key: ServiceKey,
    /// What was done.
    pub action: Action,
    /// The virtual IPs that a service got with this write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// The resource before, as JSON; for `--diff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
    /// The resource after, as JSON; for `--diff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<serde_json::Value>,
    /// What the user should know although it worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Why resources were not written. Nothing was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store failed.
    #[error("registry can't be read or written")]
    Store(#[from] StoreError),
    /// The manifest names an older `resourceVersion` than the registry has.
    #[error("{kind} {key} was changed meanwhile: it has resourceVersion {current}, not {given}")]
    Stale {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
        /// What the manifest says.
        given: i64,
        /// What the registry has; 0 when it has none.
        current: i64,
    },
    /// Somebody else owns it.
    #[error("{kind} {key} is managed by {owner}: {mend}")]
    Owned {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
        /// Who owns it.
        owner: ManagedBy,
        /// What to do instead.
        mend: &'static str,
    },
    /// It is not there.
    #[error("{kind} {key} does not exist")]
    NotFound {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
    },
    /// More than one transaction can hold.
    #[error(
        "{count} resources at once are too many to be written all or nothing: apply at most {limit} at a time"
    )]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many new services fit at least.
        limit: usize,
    },
    /// The record that is there can't be read, so it is not overwritten.
    #[error(
        "{kind} {key} is in the registry in a form that this version can't read: delete it first"
    )]
    Unreadable {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// Others wrote at the same time, again and again.
    #[error("others keep writing the same resources: gave up after {TRIES} tries")]
    Contended,
}

/// What to do beside writing.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// Who writes.
    pub manager: ManagedBy,
    /// Where virtual IPs come from.
    pub ranges: Vec<IpNet>,
    /// Say what would be done, and write nothing.
    pub dry_run: bool,
}

/// One resource's part of a transaction.
struct Planned {
    applied: Applied,
    txn: Txn,
}

impl Registry {
    /// Creates or replaces resources, all or none.
    pub async fn apply(
        &self,
        manifests: &[Manifest],
        options: &ApplyOptions,
    ) -> Result<Vec<Applied>, ApplyError> {
        for _ in 0..TRIES {
            let mut taken: Option<BTreeSet<IpAddr>> = None;
            let mut all = Vec::with_capacity(manifests.len());
            for manifest in manifests {
                all.push(self.plan(manifest, options, &mut taken).await?);
            }
            let mut txn = Txn::new();
            for planned in &mut all {
                txn.compares.append(&mut planned.txn.compares);
                txn.ops.append(&mut planned.txn.ops);
            }
            let limit = self.store().limits().max_ops_per_txn;
            if txn.ops.len().max(txn.compares.len()) > limit {
                return Err(ApplyError::TooMany {
                    count: manifests.len(),
                    limit: limit / 3,
                });
            }
            let done = all.into_iter().map(|planned| planned.applied).collect();
            if txn.ops.is_empty() || options.dry_run {
                return Ok(done);
            }
            match self.store().commit(txn).await {
                Ok(Outcome::Committed(_)) => return Ok(done),
                // Somebody wrote meanwhile, or the outcome is open: plan again from what is there now.
                Ok(Outcome::Conflict) => {}
                Err(error) if error.retry() == Retry::ReadFirst => {
                    tracing::debug!(%error, "apply's outcome is open; reading again");
                    let settled = self.settled(manifests, options).await?;
                    if settled {
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
        self.store().limits().max_ops_per_txn / 3
    }

    async fn settled(
        &self,
        manifests: &[Manifest],
        options: &ApplyOptions,
    ) -> Result<bool, ApplyError> {
        let mut taken = None;
        for manifest in manifests {
            let planned = self.plan(manifest, options, &mut taken).await?;
            if planned.applied.action != Action::Unchanged {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn plan(
        &self,
        manifest: &Manifest,
        options: &ApplyOptions,
        taken: &mut Option<BTreeSet<IpAddr>>,
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
                self.plan_vips(&key, &after, &mut planned, options, taken)
                    .await?;
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

    /// Gives a service that should have virtual IPs those that it lacks, and takes those of one that turned headless.
    async fn plan_vips(
        &self,
        key: &ServiceKey,
        service: &Service,
        planned: &mut Planned,
        options: &ApplyOptions,
        taken: &mut Option<BTreeSet<IpAddr>>,
    ) -> Result<(), ApplyError> {
        let listing = match taken {
            Some(_) if planned.applied.action == Action::Created => Vec::new(),
            _ => {
                let listing = self.store().list(&self.keys().vips()).await?;
                vips_in(self.keys(), &listing.entries)
            }
        };
        let all = taken.get_or_insert_with(|| listing.iter().map(|(ip, _)| *ip).collect());
        let mine: Vec<IpAddr> = listing
            .iter()
            .filter(|(_, owner)| owner.as_ref() == Some(key))
            .map(|(ip, _)| *ip)
            .collect();
        if service.spec.headless {
            for ip in mine {
                let path = self.keys().path(&Key::Vip(ip));
                planned.txn.ops.push(Op::delete(path));
                planned.applied.action = changed(planned.applied.action);
            }
            return Ok(());
        }
        let lacking: Vec<IpNet> = options
            .ranges
            .iter()
            .filter(|range| !mine.iter().any(|ip| ip.is_ipv4() == range.addr().is_ipv4()))
            .copied()
            .collect();
        let chosen = vips::choose(key, &lacking, all);
        let wanted: BTreeSet<bool> = lacking.iter().map(|r| r.addr().is_ipv4()).collect();
        if chosen.len() < wanted.len() {
            planned.applied.warning = Some(format!(
                "{key} has no virtual IP: every address of {} is taken (make mesh.vip_range larger, or the service headless)",
                lacking
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        for ip in chosen {
            let path = self.keys().path(&Key::Vip(ip));
            let record = VipRecord {
                service: key.clone(),
            };
            planned.txn.compares.push(Compare::Absent(path.clone()));
            planned.txn.ops.push(Op::put(path, record::encode(&record)));
            planned.applied.vips.push(ip);
            planned.applied.action = changed(planned.applied.action);
            all.insert(ip);
        }
        Ok(())
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
                let listing = self.store().list(&self.keys().vips()).await?;
                for (ip, owner) in vips_in(self.keys(), &listing.entries) {
                    if owner.as_ref() == Some(key) {
                        txn.ops.push(Op::delete(self.keys().path(&Key::Vip(ip))));
                    }
                }
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

fn changed(action: Action) -> Action {
    if action == Action::Unchanged {
        Action::Configured
    } else {
        action
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
    };
    match (entry, before) {
        (Some(entry), Some(before)) => {
            planned.txn.compares.push(Compare::Unchanged {
                key: path.clone(),
                mod_revision: entry.mod_revision,
            });
            if before == after {
                planned.applied.action = Action::Unchanged;
            } else {
                planned.applied.action = Action::Configured;
                // `before` was read from these bytes, so they can be read again.
                let bytes =
                    record::rewrite(&entry.value, after).unwrap_or_else(|_| record::encode(after));
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
