//! Entries, listings and compare-and-set transactions.

use std::collections::HashSet;

use bytes::Bytes;

use super::{LeaseId, Limits, Revision, StoreError};

/// One key with its value and its place in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, with its full prefix.
    pub key: String,
    /// The value. Cloning it shares the bytes.
    pub value: Bytes,
    /// The revision that created the key; deleting and creating again gives a new one.
    pub create_revision: Revision,
    /// The revision that last wrote the key: what [`Compare::Unchanged`] compares.
    pub mod_revision: Revision,
}

/// All entries under a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The revision of the whole store at which this was read. It is at least the
    /// `mod_revision` of every entry.
    pub revision: Revision,
    /// Ordered by key, bytewise.
    pub entries: Vec<Entry>,
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist (etcd: `create_revision == 0`).
    Absent(String),
    /// The key exists and was last written at this revision.
    Unchanged {
        /// The key.
        key: String,
        /// Its [`Entry::mod_revision`] when it was read.
        mod_revision: Revision,
    },
    /// The key exists.
    Exists(String),
}

impl Compare {
    /// The key that is compared.
    pub fn key(&self) -> &str {
        match self {
            Compare::Absent(key) | Compare::Exists(key) | Compare::Unchanged { key, .. } => key,
        }
    }

    /// Whether the condition holds for a key last written at `mod_revision` (`None`: absent).
    pub(crate) fn holds(&self, current: Option<Revision>) -> bool {
        match self {
            Compare::Absent(_) => current.is_none(),
            Compare::Exists(_) => current.is_some(),
            Compare::Unchanged { mod_revision, .. } => current == Some(*mod_revision),
        }
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Bytes,
        /// Binds the key to a lease; `None` takes it off the one it was bound to.
        lease: Option<LeaseId>,
    },
    /// Removes a key; removing an absent one is no error and no change.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// Creates or replaces `key`, bound to no lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Op {
        Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// Removes `key`.
    pub fn delete(key: impl Into<String>) -> Op {
        Op::Delete { key: key.into() }
    }

    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    fn value_len(&self) -> usize {
        match self {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        }
    }
}

/// Writes that happen together, if all conditions hold, or not at all.
///
/// No key may be written twice in one transaction, since both writes would carry one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold. Empty: unconditional.
    pub compares: Vec<Compare>,
    /// Applied in order, at one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An empty transaction, to be filled with [`Txn::when`] and [`Txn::then`].
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Txn {
        self.compares.push(compare);
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn then(mut self, op: Op) -> Txn {
        self.ops.push(op);
        self
    }

    /// Creates `key`, if it does not exist.
    pub fn create(key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        Txn::new()
            .when(Compare::Absent(key.clone()))
            .then(Op::put(key, value))
    }

    /// Replaces `key`, if it is still as it was at `mod_revision`.
    pub fn update(key: impl Into<String>, mod_revision: Revision, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        Txn::new()
            .when(Compare::Unchanged {
                key: key.clone(),
                mod_revision,
            })
            .then(Op::put(key, value))
    }

    /// Removes `key`, if it is still as it was at `mod_revision`.
    pub fn remove(key: impl Into<String>, mod_revision: Revision) -> Txn {
        let key = key.into();
        Txn::new()
            .when(Compare::Unchanged {
                key: key.clone(),
                mod_revision,
            })
            .then(Op::delete(key))
    }

    /// Checks what both backends refuse, before anything is sent.
    pub(crate) fn validate(&self, limits: &Limits) -> Result<(), StoreError> {
        let too_large = |what: &'static str, key: &str, size, limit| {
            Err(StoreError::TooLarge {
                what,
                key: key.to_owned(),
                size,
                limit,
            })
        };
        let most = self.ops.len().max(self.compares.len());
        if most > limits.max_ops_per_txn {
            let key = self.ops.first().map_or("", Op::key);
            return too_large(
                "operations in one transaction",
                key,
                most,
                limits.max_ops_per_txn,
            );
        }
        let mut total = 0;
        for key in self
            .compares
            .iter()
            .map(Compare::key)
            .chain(self.ops.iter().map(Op::key))
        {
            check_key(key, limits)?;
            total += key.len();
        }
        let mut written = HashSet::with_capacity(self.ops.len());
        for op in &self.ops {
            if op.value_len() > limits.max_value_bytes {
                return too_large(
                    "bytes of value",
                    op.key(),
                    op.value_len(),
                    limits.max_value_bytes,
                );
            }
            total += op.value_len();
            if !written.insert(op.key()) {
                return Err(StoreError::InvalidTxn {
                    key: op.key().to_owned(),
                    reason: "a key is written twice",
                });
            }
        }
        if total > limits.max_txn_bytes {
            let key = self.ops.first().map_or("", Op::key);
            return too_large("bytes in one transaction", key, total, limits.max_txn_bytes);
        }
        Ok(())
    }
}

/// Checks one key: etcd refuses the empty one, and both backends the overlong.
pub(crate) fn check_key(key: &str, limits: &Limits) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::InvalidTxn {
            key: String::new(),
            reason: "the key is empty",
        });
    }
    if key.len() > limits.max_key_bytes {
        return Err(StoreError::TooLarge {
            what: "bytes of key",
            key: key.to_owned(),
            size: key.len(),
            limit: limits.max_key_bytes,
        });
    }
    Ok(())
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Applied and durable, at this revision.
    Committed(Revision),
    /// A condition did not hold; nothing was written.
    Conflict,
}

impl Outcome {
    /// The revision, unless there was a conflict.
    pub fn revision(self) -> Option<Revision> {
        match self {
            Outcome::Committed(revision) => Some(revision),
            Outcome::Conflict => None,
        }
    }
}
