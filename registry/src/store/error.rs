//! What can go wrong in a store, and whether a retry is safe.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use super::{LeaseId, Revision};

type Source = Box<dyn Error + Send + Sync>;

/// What a caller may do after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Nothing was written: the same call may be made again, after a pause.
    Safe,
    /// A commit may or may not have been applied: read before writing again. Reads may simply be
    /// made again.
    ReadFirst,
    /// The same call will fail again until something else changes.
    Never,
}

/// Why a call to a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No server answered, or one answered that it cannot serve now.
    #[error("registry is unavailable at {address}")]
    Unavailable {
        /// The etcd endpoint that was tried last, or the embedded store's file.
        address: String,
        /// Whether the request may have reached a server: then a commit's outcome is open.
        sent: bool,
        /// The transport's or the server's own words.
        #[source]
        source: Source,
    },
    /// The call's deadline passed; a commit's outcome is open.
    #[error("registry at {address} did not answer within {deadline:?}")]
    DeadlineExceeded {
        /// The etcd endpoint that was tried last.
        address: String,
        /// The time that was allowed.
        deadline: Duration,
    },
    /// The history asked for is gone: list again and watch from there.
    #[error("history is gone up to revision {revision}")]
    Compacted {
        /// The oldest revision after which a watch can still start; 0 where that is not known.
        revision: Revision,
    },
    /// The store's history is another one than was followed: it was restored from a backup, or replaced. What is there
    /// now has to be listed, and what was known of revisions means nothing any more.
    #[error(
        "the registry was restored or replaced: it stands at revision {revision} of another history"
    )]
    Restored {
        /// Its revision now.
        revision: Revision,
    },
    /// A limit of [`super::Limits`], or the server's own lower one, was exceeded; nothing was
    /// written.
    #[error("{size} {what} exceed the limit of {limit} (at key {key:?})")]
    TooLarge {
        /// What was counted, with its unit.
        what: &'static str,
        /// The key it is about, or the first of them.
        key: String,
        /// How much it was; 0 where only the server knows.
        size: usize,
        /// How much is allowed; 0 where only the server knows.
        limit: usize,
    },
    /// The transaction makes no sense; nothing was written.
    #[error("invalid transaction at key {key:?}: {reason}")]
    InvalidTxn {
        /// The key it is about.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The lease that a write names is gone; nothing was written.
    #[error("lease {id} does not exist")]
    LeaseNotFound {
        /// The lease.
        id: LeaseId,
    },
    /// The store has no room left and accepts no writes until an operator mends it (etcd: the
    /// `NOSPACE` alarm).
    #[error("registry at {address} is out of space")]
    NoSpace {
        /// The etcd endpoint, or the embedded store's file.
        address: String,
        /// The server's own words.
        #[source]
        source: Source,
    },
    /// The server knows who asks and says no, or wants to know who asks.
    #[error("registry at {address} denies access")]
    Denied {
        /// The etcd endpoint, or the embedded store's file.
        address: String,
        /// The server's own words.
        #[source]
        source: Source,
    },
    /// The server refused the request for a reason that fits nothing above; nothing was written.
    #[error("registry at {address} refused the request")]
    Rejected {
        /// The etcd endpoint.
        address: String,
        /// The server's own words.
        #[source]
        source: Source,
    },
    /// A setting of the backend is wrong.
    #[error("registry setting {setting} = {value:?}: {reason}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// Why it is not accepted.
        reason: String,
    },
    /// Another process has the embedded store's file open.
    #[error("registry file {} is in use by another heddle", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The embedded store's file cannot be read as what it should be.
    #[error("registry file {} is damaged: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The store was closed.
    #[error("registry is closed")]
    Closed,
}

impl StoreError {
    /// What the caller may do now.
    pub fn retry(&self) -> Retry {
        match self {
            StoreError::Unavailable { sent: false, .. } => Retry::Safe,
            StoreError::Unavailable { sent: true, .. } | StoreError::DeadlineExceeded { .. } => {
                Retry::ReadFirst
            }
            StoreError::Compacted { .. }
            | StoreError::Restored { .. }
            | StoreError::TooLarge { .. }
            | StoreError::InvalidTxn { .. }
            | StoreError::LeaseNotFound { .. }
            | StoreError::NoSpace { .. }
            | StoreError::Denied { .. }
            | StoreError::Rejected { .. }
            | StoreError::Config { .. }
            | StoreError::InUse { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Closed => Retry::Never,
        }
    }

    /// Whether the store may answer later without anybody's help: an outage, not a mistake.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable { .. } | StoreError::DeadlineExceeded { .. }
        )
    }
}
