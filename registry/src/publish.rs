//! What nodes and operators write: slices, findings, marks and registrations; and what nodes collect of others that are gone.

use std::sync::Arc;

use model::endpoint::Findings;
use model::name::Name;
use model::workload::Registration;
use model::{Mark, MarkTarget, ServiceKey, Slice};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::layout::Key;
use crate::store::{Compare, Op, Outcome, Revision, StoreError, Txn};
use crate::{Registry, RegistryError, record};

/// How often a write that others came before is tried.
pub(crate) const TRIES: u32 = 5;

/// One slice to write, compared with what this node last wrote.
#[derive(Clone, Debug)]
pub struct SliceWrite {
    /// The service.
    pub service: ServiceKey,
    /// The node that owns the slice.
    pub node: Name,
    /// The endpoints; `None` or an empty slice removes the record.
    pub slice: Option<Slice>,
    /// The revision of the record that is replaced; `None` when there is none.
    pub replaces: Option<Revision>,
}

/// Something that a node left in the registry, as it was when it was judged to be of no use any more.
#[derive(Clone, Debug, PartialEq)]
pub enum Orphan {
    /// Its endpoints of a service.
    Slice(Arc<Slice>),
    /// What it found out about a service's endpoints that no node owns.
    Findings(Arc<Findings>),
}

impl Orphan {
    /// The node that left it.
    pub fn node(&self) -> &Name {
        match self {
            Orphan::Slice(slice) => &slice.node,
            Orphan::Findings(findings) => &findings.node,
        }
    }

    /// The service that it is about.
    pub fn service(&self) -> &ServiceKey {
        match self {
            Orphan::Slice(slice) => &slice.service,
            Orphan::Findings(findings) => &findings.service,
        }
    }

    fn key(&self) -> Key {
        let (service, node) = (self.service().clone(), self.node().clone());
        match self {
            Orphan::Slice(_) => Key::Slice(service, node),
            Orphan::Findings(_) => Key::Findings(service, node),
        }
    }

    fn is_still(&self, bytes: &[u8]) -> bool {
        match self {
            Orphan::Slice(slice) => record::decode::<Slice>(bytes).is_ok_and(|now| now == **slice),
            Orphan::Findings(findings) => {
                record::decode::<Findings>(bytes).is_ok_and(|now| now == **findings)
            }
        }
    }
}

impl Registry {
    /// Removes what a node left, unless it was changed since it was judged or the node is alive; whether it was removed.
    pub async fn collect(&self, orphan: &Orphan) -> Result<bool, StoreError> {
        let path = self.keys().path(&orphan.key());
        let Some(entry) = self.store().get(&path).await? else {
            return Ok(false);
        };
        if !orphan.is_still(&entry.value) {
            return Ok(false);
        }
        let liveness = self.keys().path(&Key::Liveness(orphan.node().clone()));
        let txn = Txn::remove(path, entry.mod_revision).when(Compare::Absent(liveness));
        let outcome = self.store().commit(txn).await?;
        Ok(matches!(outcome, Outcome::Committed(_)))
    }

    /// Writes what a node found out about endpoints that no node owns, all or none; `None` removes a record. What the
    /// registry has already is not written again. At most [`crate::store::Limits::max_ops_per_txn`] of them.
    pub async fn write_findings(
        &self,
        node: &Name,
        wishes: &[(ServiceKey, Option<Findings>)],
    ) -> Result<Outcome, StoreError> {
        let mut txn = Txn::new();
        for (service, wish) in wishes {
            let key = Key::Findings(service.clone(), node.clone());
            let path = self.keys().path(&key);
            let there = self.store().get(&path).await?;
            let is_so = match (&there, wish) {
                (None, None) => true,
                (Some(entry), Some(wish)) => {
                    record::decode::<Findings>(&entry.value).is_ok_and(|now| now == *wish)
                }
                _ => false,
            };
            if is_so {
                continue;
            }
            txn.compares.push(match &there {
                Some(entry) => Compare::Unchanged {
                    key: path.clone(),
                    mod_revision: entry.mod_revision,
                },
                None => Compare::Absent(path.clone()),
            });
            txn.ops.push(match (wish, &there) {
                (None, _) => Op::delete(path),
                (Some(wish), Some(entry)) => Op::put(path, record::replace(&entry.value, wish)),
                (Some(wish), None) => Op::put(path, record::encode(wish)),
            });
        }
        if txn.ops.is_empty() {
            return Ok(Outcome::Committed(0));
        }
        self.store().commit(txn).await
    }

    /// A slice's record with its revision, before the first write after a start. One that can't be read is none, but has a
    /// revision all the same.
    pub async fn stored_slice(
        &self,
        service: &ServiceKey,
        node: &Name,
    ) -> Result<Option<(Revision, Option<Slice>)>, StoreError> {
        let path = self.keys().path(&Key::Slice(service.clone(), node.clone()));
        let entry = self.store().get(&path).await?;
        Ok(entry.map(|entry| (entry.mod_revision, record::decode(&entry.value).ok())))
    }

    /// Writes slices, all or none; at most [`crate::store::Limits::max_ops_per_txn`] of them.
    ///
    /// [`Outcome::Conflict`] means that one of them is not what `replaces` says: read its revision again.
    pub async fn write_slices(&self, writes: &[SliceWrite]) -> Result<Outcome, StoreError> {
        let mut txn = Txn::new();
        for write in writes {
            let path = self
                .keys()
                .path(&Key::Slice(write.service.clone(), write.node.clone()));
            txn.compares.push(match write.replaces {
                Some(mod_revision) => Compare::Unchanged {
                    key: path.clone(),
                    mod_revision,
                },
                None => Compare::Absent(path.clone()),
            });
            txn.ops.push(match &write.slice {
                Some(slice) if !slice.endpoints.is_empty() => Op::put(path, record::encode(slice)),
                _ => Op::delete(path),
            });
        }
        self.store().commit(txn).await
    }

    /// Drains a target. Draining what is drained already changes its reason.
    pub async fn mark(&self, mark: &Mark) -> Result<(), RegistryError> {
        let key = Key::Mark(mark.target.clone());
        self.put(&key, mark, &format!("mark of {}", mark.target))
            .await
    }

    /// Takes a mark away; whether there was one.
    pub async fn unmark(&self, target: &MarkTarget) -> Result<bool, RegistryError> {
        let key = Key::Mark(target.clone());
        self.remove(&key, &format!("mark of {target}")).await
    }

    /// Registers a process or VM on a node, or changes it.
    pub async fn register(
        &self,
        node: &Name,
        registration: &Registration,
    ) -> Result<(), RegistryError> {
        let key = Key::Registration(node.clone(), registration.id.clone());
        let what = format!("registration {}", registration.id);
        self.put(&key, registration, &what).await
    }

    /// Takes a registration away; whether there was one.
    pub async fn deregister(&self, node: &Name, id: &Name) -> Result<bool, RegistryError> {
        let key = Key::Registration(node.clone(), id.clone());
        self.remove(&key, &format!("registration {id}")).await
    }

    /// Creates a record or writes over the one that was read, keeping what a newer version added to it.
    async fn put<T: Serialize + DeserializeOwned>(
        &self,
        key: &Key,
        record: &T,
        what: &str,
    ) -> Result<(), RegistryError> {
        let path = self.keys().path(key);
        for _ in 0..TRIES {
            let txn = match self.store().get(&path).await? {
                None => Txn::create(path.clone(), record::encode(record)),
                Some(entry) => {
                    let bytes = record::rewrite(&entry.value, record).map_err(|source| {
                        RegistryError::Record {
                            key: path.clone(),
                            source,
                        }
                    })?;
                    Txn::update(path.clone(), entry.mod_revision, bytes)
                }
            };
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(());
            }
        }
        Err(contended(what))
    }

    /// Removes the record that was read; whether there was one.
    async fn remove(&self, key: &Key, what: &str) -> Result<bool, RegistryError> {
        let path = self.keys().path(key);
        for _ in 0..TRIES {
            let Some(entry) = self.store().get(&path).await? else {
                return Ok(false);
            };
            let txn = Txn::remove(path.clone(), entry.mod_revision);
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(true);
            }
        }
        Err(contended(what))
    }
}

pub(crate) fn contended(what: &str) -> RegistryError {
    RegistryError::Contended {
        what: what.to_owned(),
        tries: TRIES,
    }
}

#[cfg(test)]
mod tests;
