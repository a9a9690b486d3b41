//! Change events and the handle that yields them.

use async_trait::async_trait;

use super::{Entry, Revision, StoreError};

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Created (`create_revision == mod_revision`) or replaced.
    Put(Entry),
    /// Removed, by a delete or with its lease.
    Delete {
        /// The key.
        key: String,
        /// The revision that removed it.
        mod_revision: Revision,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// The revision that changed it.
    pub fn mod_revision(&self) -> Revision {
        match self {
            Change::Put(entry) => entry.mod_revision,
            Change::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of one revision under the watched prefix, never split over two events.
    Changes {
        /// Greater than that of every event before.
        revision: Revision,
        /// In the order of the transaction's operations; never empty.
        changes: Vec<Change>,
    },
    /// Nothing under the prefix changed up to and including `revision` beyond what was told
    /// before: a later watch may start after it, even when older history is compacted by then.
    Progress {
        /// At least that of every event before.
        revision: Revision,
    },
}

impl WatchEvent {
    /// The revision after which to resume once this event has been dealt with.
    pub fn revision(&self) -> Revision {
        match self {
            WatchEvent::Changes { revision, .. } | WatchEvent::Progress { revision } => *revision,
        }
    }
}

/// Where a backend's events come from. `next` must be cancel safe.
#[async_trait]
pub(crate) trait WatchSource: Send {
    async fn next(&mut self) -> Result<WatchEvent, StoreError>;
}

/// A running watch; dropping it ends it.
pub struct Watch {
    source: Box<dyn WatchSource>,
}

impl Watch {
    pub(crate) fn new(source: impl WatchSource + 'static) -> Watch {
        Watch {
            source: Box::new(source),
        }
    }

    /// Waits for the next event. Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// After any error the watch is over. [`StoreError::Compacted`] also when this watcher was
    /// too slow for the backend's bounded history: list again. After anything else watch again
    /// after the last event's revision.
    pub async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        self.source.next().await
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
