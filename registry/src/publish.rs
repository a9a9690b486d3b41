//! What nodes and operators write: slices, marks and registrations.

use model::name::Name;
use model::workload::Registration;
use model::{Mark, MarkTarget, ServiceKey, Slice};

use crate::layout::Key;
use crate::store::{Compare, Op, Outcome, Revision, StoreError, Txn};
use crate::{Registry, RegistryError, record};

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

impl Registry {
    /// The revision of a slice's record, for the first write after a start.
    pub async fn slice_revision(
        &self,
        service: &ServiceKey,
        node: &Name,
    ) -> Result<Option<Revision>, StoreError> {
        let path = self.keys().path(&Key::Slice(service.clone(), node.clone()));
        Ok(self
            .store()
            .get(&path)
            .await?
            .map(|entry| entry.mod_revision))
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
    pub async fn mark(&self, mark: &Mark) -> Result<(), StoreError> {
        let path = self.keys().path(&Key::Mark(mark.target.clone()));
        let txn = Txn::new().then(Op::put(path, record::encode(mark)));
        self.store().commit(txn).await.map(|_| ())
    }

    /// Takes a mark away; whether there was one.
    pub async fn unmark(&self, target: &MarkTarget) -> Result<bool, StoreError> {
        let path = self.keys().path(&Key::Mark(target.clone()));
        let there = self.store().get(&path).await?.is_some();
        if there {
            self.store()
                .commit(Txn::new().then(Op::delete(path)))
                .await?;
        }
        Ok(there)
    }

    /// Registers a process or VM on a node, or changes it.
    pub async fn register(
        &self,
        node: &Name,
        registration: &Registration,
    ) -> Result<(), RegistryError> {
        let path = self
            .keys()
            .path(&Key::Registration(node.clone(), registration.id.clone()));
        const TRIES: u32 = 5;
        for _ in 0..TRIES {
            let txn = match self.store().get(&path).await? {
                None => Txn::create(path.clone(), record::encode(registration)),
                Some(entry) => {
                    let bytes = record::rewrite(&entry.value, registration).map_err(|source| {
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
        Err(RegistryError::Contended {
            what: format!("registration {}", registration.id),
            tries: TRIES,
        })
    }

    /// Takes a registration away; whether there was one.
    pub async fn deregister(&self, node: &Name, id: &Name) -> Result<bool, StoreError> {
        let path = self
            .keys()
            .path(&Key::Registration(node.clone(), id.clone()));
        let there = self.store().get(&path).await?.is_some();
        if there {
            self.store()
                .commit(Txn::new().then(Op::delete(path)))
                .await?;
        }
        Ok(there)
    }
}
