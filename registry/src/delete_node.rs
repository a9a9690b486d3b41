//! Removing what is left of a node that is gone for good.

use model::MarkTarget;
use model::name::Name;

use crate::layout::Key;
use crate::publish::{TRIES, contended};
use crate::store::{Compare, Entry, Op, Outcome, StoreError, Txn};
use crate::{Registry, RegistryError};

/// Why a node is not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteNodeError {
    /// The registry failed, or others write all the time; some of it may be gone already, and trying again goes on.
    #[error("node {node} is not, or not wholly, deleted (try again)")]
    Registry {
        /// The node.
        node: Name,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// Its key is there: it runs, or has stopped a moment ago.
    #[error(
        "node {node} is alive or restarts: only a node that is gone is deleted (stop heddle there, and wait until heddle \
         get nodes shows it as orphaned)"
    )]
    Alive {
        /// The node.
        node: Name,
    },
    /// The registry has nothing of it.
    #[error("node {node} does not exist")]
    NotFound {
        /// The node.
        node: Name,
    },
}

impl Registry {
    /// Removes a node's record with its slices, findings, registrations and marks, none of them once it is alive again;
    /// how many records went. Its record goes last, so that one that was interrupted is seen and done again.
    pub async fn delete_node(&self, node: &Name) -> Result<usize, DeleteNodeError> {
        let failed = |source: RegistryError| DeleteNodeError::Registry {
            node: node.clone(),
            source,
        };
        let mut removed = 0;
        for _ in 0..TRIES {
            let left = self.left_of(node).await.map_err(|e| failed(e.into()))?;
            if left.iter().any(|(key, _)| matches!(key, Key::Liveness(_))) {
                return Err(DeleteNodeError::Alive { node: node.clone() });
            }
            if left.is_empty() {
                return match removed {
                    0 => Err(DeleteNodeError::NotFound { node: node.clone() }),
                    removed => Ok(removed),
                };
            }
            let (gone, whole) = self.remove_all(node, &left).await;
            removed += gone;
            if whole.map_err(|e| failed(e.into()))? {
                return Ok(removed);
            }
        }
        let what = format!("what is left of node {node}");
        Err(failed(contended(&what)))
    }

    /// All that belongs to a node, its record last.
    async fn left_of(&self, node: &Name) -> Result<Vec<(Key, Entry)>, StoreError> {
        let mut left = self.entries(|key| is_of(key, node)).await?;
        left.sort_by_key(|(key, _)| matches!(key, Key::Node(_)));
        Ok(left)
    }

    /// How many went, and whether all did: something that was changed meanwhile ends it.
    async fn remove_all(
        &self,
        node: &Name,
        left: &[(Key, Entry)],
    ) -> (usize, Result<bool, StoreError>) {
        let liveness = self.keys().path(&Key::Liveness(node.clone()));
        let mut gone = 0;
        // One comparison more than writes.
        let most = self.store().limits().max_ops_per_txn - 1;
        for some in left.chunks(most.max(1)) {
            let mut txn = Txn::new().when(Compare::Absent(liveness.clone()));
            for (_, entry) in some {
                txn = txn
                    .when(Compare::Unchanged {
                        key: entry.key.clone(),
                        mod_revision: entry.mod_revision,
                    })
                    .then(Op::delete(entry.key.clone()));
            }
            match self.store().commit(txn).await {
                Ok(Outcome::Committed(_)) => gone += some.len(),
                Ok(Outcome::Conflict) => return (gone, Ok(false)),
                Err(error) => return (gone, Err(error)),
            }
        }
        (gone, Ok(true))
    }
}

/// An endpoint's mark names no node: it may be another node's as well, and stays.
fn is_of(key: &Key, name: &Name) -> bool {
    match key {
        Key::Slice(_, node)
        | Key::Findings(_, node)
        | Key::Node(node)
        | Key::Liveness(node)
        | Key::Registration(node, _)
        | Key::Mark(MarkTarget::Node { name: node } | MarkTarget::Workload { node, .. }) => {
            node == name
        }
        Key::Mesh
        | Key::Service(_)
        | Key::Endpoint(_)
        | Key::Vip(_)
        | Key::Mark(MarkTarget::Endpoint { .. }) => false,
    }
}
