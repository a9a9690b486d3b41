//! The store seam: what the registry needs of a key-value store, and the two backends that give it.
//!
//! # Layout
//! - [`mod@self`]: the trait [`Store`] and the [`Limits`] that both backends hold to
//! - `txn`: entries, listings, and the compare-and-set transaction ([`Txn`])
//! - `watch`: change events and the handle that yields them ([`Watch`])
//! - `lease`: keys that vanish with their owner ([`Lease`])
//! - `error`: what can go wrong, and whether a retry is safe ([`StoreError`])
//! - `embedded`: one machine, one `redb` file ([`EmbeddedStore`])
//! - `etcd`: many machines, one etcd cluster ([`EtcdStore`])
//!
//! The semantics are those of etcd v3, cut down to what heddle uses; the embedded backend mirrors
//! them exactly, and one contract suite (`registry/tests/contract`) holds both to it.
//!
//! Keys are UTF-8 strings, ordered by bytes. Values are arbitrary bytes. Nothing here knows what
//! the values mean.

mod embedded;
mod error;
mod etcd;
mod lease;
mod txn;
pub(crate) mod watch;

use std::time::Duration;

use async_trait::async_trait;

pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use error::{Retry, StoreError};
pub use etcd::{EtcdOptions, EtcdStore, IdentityFiles, TlsFiles, UserFile, date as etcd_date};
pub use lease::{Lease, LeaseId};
pub use txn::{Compare, Entry, Listing, Op, Outcome, Txn};
pub use watch::{Change, Watch, WatchEvent};

/// A point in the store's history, etcd's `revision`.
///
/// Every transaction that changes something takes the next one; all its changes share it. It never
/// goes down while the same store is served, restarts included; where an etcd is restored from a backup, a watch ends with
/// [`StoreError::Restored`].
pub type Revision = i64;

/// What one call may ask for. Exceeding a limit gives [`StoreError::TooLarge`] before anything is
/// sent.
///
/// Both backends state the same limits, so that a registry can move from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most operations, and likewise most comparisons, of one [`Txn`] (etcd's `--max-txn-ops`).
    pub max_ops_per_txn: usize,
    /// Longest value in bytes.
    pub max_value_bytes: usize,
    /// Longest key in bytes.
    pub max_key_bytes: usize,
    /// Most bytes of keys and values in one [`Txn`] (below etcd's `--max-request-bytes` of
    /// 1.5 MiB, leaving room for the encoding).
    pub max_txn_bytes: usize,
}

impl Limits {
    /// What an etcd with its default flags accepts.
    pub const DEFAULT: Limits = Limits {
        max_ops_per_txn: 128,
        max_value_bytes: 1024 * 1024,
        max_key_bytes: 4096,
        max_txn_bytes: 1400 * 1024,
    };
}

/// A durable, ordered, watchable key-value store with compare-and-set.
///
/// Every method is safe to call from several tasks at once. A future that is dropped before it
/// completes leaves the outcome open, as a lost connection does: a commit may still happen.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Everything under `prefix`, as it stood at one revision, ordered by key.
    ///
    /// The prefix is matched byte for byte: end it with `/` to keep `a/b` apart from `a/bc`. The
    /// empty prefix lists all keys. Watching after [`Listing::revision`] continues without a gap.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// The same as [`Store::list`], page by page as they come, so that a large listing need not be held in memory as a
    /// whole. After an error, what was given so far is true, and not all.
    ///
    /// # Errors
    /// Besides those of [`Store::list`]: [`StoreError::Compacted`] when the listing took so long that its revision is gone.
    async fn list_pages(
        &self,
        prefix: &str,
        take: &mut (dyn FnMut(Vec<Entry>) + Send),
    ) -> Result<Revision, StoreError> {
        let listing = self.list(prefix).await?;
        take(listing.entries);
        Ok(listing.revision)
    }

    /// One entry, as of the newest acknowledged commit.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Applies all of `txn.ops` if all of `txn.compares` hold, else nothing.
    ///
    /// [`Outcome::Committed`] means durable: it survives a crash of every process involved. A
    /// transaction that changes nothing (no ops, or only deletes of absent keys) does not take a
    /// revision; it returns the current one.
    ///
    /// # Errors
    /// [`StoreError::retry`] tells whether the transaction may have been applied all the same.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Every change under `prefix` with a revision greater than `after`, in order, exactly once.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the history after `after` is gone, either here or from the
    /// first [`Watch::next`]: list again, and watch after that listing. [`StoreError::Restored`] when `after` lies in
    /// another history than the store's: likewise.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// A lease of `ttl`, renewed in the background until it is revoked or dropped.
    ///
    /// The backend may lengthen the time (etcd: whole seconds, and at least one and a half
    /// election timeouts); [`Lease::ttl`] is what was granted.
    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// What one call may ask for.
    fn limits(&self) -> Limits {
        Limits::DEFAULT
    }

    /// `"embedded"` or `"etcd"`, for logs and metrics.
    fn name(&self) -> &'static str;
}
