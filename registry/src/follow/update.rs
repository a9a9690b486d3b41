//! What the follower tells.

use model::catalog::Change;

use crate::store::Revision;

/// What the follower tells.
#[derive(Debug)]
pub enum Update {
    /// Changes up to `revision`, which is the present unless more follow.
    Changes {
        /// The registry's revision. It is lower than before where the registry was restored from a backup: the changes
        /// then lead from what was told to what is there, deletes included, and [`crate::Registry::history`] has gone on.
        revision: Revision,
        /// What came, changed or went.
        changes: Vec<Change>,
        /// Records that could not be read: what they were before stays in force.
        bad: Vec<BadRecord>,
        /// Keys whose records are no longer bad.
        mended: Vec<String>,
    },
    /// The registry can't be followed at the moment; told once per loss.
    Lost {
        /// Why, with all causes.
        reason: String,
    },
}

impl Update {
    pub(super) fn has_news(&self) -> bool {
        match self {
            Update::Changes {
                changes,
                bad,
                mended,
                ..
            } => !(changes.is_empty() && bad.is_empty() && mended.is_empty()),
            Update::Lost { .. } => true,
        }
    }
}

/// A record that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its key.
    pub key: String,
    /// Why, with all causes.
    pub reason: String,
}

/// What is found while entries are looked at.
#[derive(Default)]
pub(super) struct News {
    pub(super) changes: Vec<Change>,
    pub(super) bad: Vec<BadRecord>,
    pub(super) mended: Vec<String>,
}

impl News {
    pub(super) fn told(self, revision: Revision) -> Update {
        Update::Changes {
            revision,
            changes: self.changes,
            bad: self.bad,
            mended: self.mended,
        }
    }
}
