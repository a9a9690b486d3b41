//! Keys that vanish with their owner.

use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::StoreError;

/// The store's name for a lease; written into [`super::Op::Put`] to bind a key to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl std::fmt::Display for LeaseId {
    /// As `etcdctl lease list` prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How a backend ends a lease on purpose.
#[async_trait]
pub(crate) trait Revoke: Send + Sync {
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError>;
}

/// A granted lease, renewed in the background for as long as this value lives.
///
/// Dropping it only stops the renewal, as a crash would: the keys go when the time is up.
/// [`Lease::revoke`] removes them at once.
pub struct Lease {
    id: LeaseId,
    ttl: Duration,
    lost: CancellationToken,
    revoke: Box<dyn Revoke>,
    _renewal: DropGuard,
}

impl Lease {
    /// `renewal` is cancelled when the lease is dropped or revoked.
    pub(crate) fn new(
        id: LeaseId,
        ttl: Duration,
        lost: CancellationToken,
        renewal: CancellationToken,
        revoke: impl Revoke + 'static,
    ) -> Lease {
        Lease {
            id,
            ttl,
            lost,
            revoke: Box::new(revoke),
            _renewal: renewal.drop_guard(),
        }
    }

    /// What to bind keys to.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// How long the keys outlive the last renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Fires when the store said that the lease is gone and its keys with it: take a new one and
    /// put the keys again. It does not fire for an outage, which ends with the lease alive (etcd
    /// restarts the time of its leases when it comes back) or with this signal, nor for a
    /// [`Lease::revoke`] by its owner.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Ends the lease and removes its keys, in one revision. A lease that is gone already is no
    /// error.
    ///
    /// # Errors
    /// When the store cannot be reached; the keys then go when the time is up.
    pub async fn revoke(self) -> Result<(), StoreError> {
        self.revoke.revoke(self.id).await
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.id)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}
