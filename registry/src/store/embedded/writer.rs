//! The one thread that writes to an embedded store's file.
//!
//! Transactions that wait together are applied one after the other and share one fsync. Each
//! keeps its own revision and its own outcome, as if it had come alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::{Database, ReadableTable};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;
use super::disk::{self, Tables};
use super::history::Commit;
use crate::store::{Change, Entry, LeaseId, Op, Outcome, Revision, StoreError, Txn};

/// Most transactions that share an fsync: bounds how long the first of them waits for the rest.
const MAX_GROUP: usize = 256;

/// How long readers may hold on to a file that has to be reopened.
const READERS_LEAVE: Duration = Duration::from_secs(5);

/// What the writer is asked to do.
pub(super) enum Command {
    Commit {
        txn: Txn,
        reply: oneshot::Sender<Result<Outcome, StoreError>>,
    },
    Grant {
        /// Fired when the lease ends without its holder's doing.
        lost: CancellationToken,
        /// Fired when the lease ends.
        ended: CancellationToken,
        reply: oneshot::Sender<LeaseId>,
    },
    EndLease {
        id: LeaseId,
        /// Whether the holder has to be told.
        lost: bool,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    Close(oneshot::Sender<()>),
}

struct Waiting {
    txn: Txn,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
}

struct Held {
    keys: BTreeSet<String>,
    lost: CancellationToken,
    ended: CancellationToken,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The newest durable revision.
    revision: Revision,
    leases: HashMap<LeaseId, Held>,
    lease_of: HashMap<String, LeaseId>,
    last_lease: i64,
    /// An I/O error left the file in doubt: it is opened again before the next write.
    in_doubt: bool,
}

/// What a group of transactions came to; nothing of it holds before the fsync.
struct Applied {
    revision: Revision,
    outcomes: Vec<Result<Outcome, StoreError>>,
    commits: Vec<Commit>,
    /// Keys written, with the lease that they are bound to from now on.
    bindings: Vec<(String, Option<LeaseId>)>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, revision: Revision) -> Writer {
        Writer {
            shared,
            revision,
            leases: HashMap::new(),
            lease_of: HashMap::new(),
            last_lease: 0,
            in_doubt: false,
        }
    }

    /// Serves commands until the queue's last sender is gone or [`Command::Close`] comes.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut group = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Commit { txn, reply } => group.push(Waiting { txn, reply }),
                    // A lease is granted or ended between two groups, so that the leases that
                    // exist do not change within one.
                    other => {
                        self.commit(&mut group);
                        if let Some(closed) = self.serve(other) {
                            drop(queue);
                            // The asker may have given up waiting.
                            let _ = closed.send(());
                            return;
                        }
                    }
                }
                next = if group.len() < MAX_GROUP {
                    queue.try_recv().ok()
                } else {
                    None
                };
            }
            self.commit(&mut group);
        }
    }

    /// Returns whom to tell when the store is to be closed. Answers go to callers that may have
    /// given up waiting, which is no error.
    fn serve(&mut self, command: Command) -> Option<oneshot::Sender<()>> {
        match command {
            Command::Commit { txn, reply } => self.commit(&mut vec![Waiting { txn, reply }]),
            Command::Grant { lost, ended, reply } => {
                self.last_lease += 1;
                let id = LeaseId(self.last_lease);
                self.leases.insert(
                    id,
                    Held {
                        keys: BTreeSet::new(),
                        lost,
                        ended,
                    },
                );
                let _ = reply.send(id);
            }
            Command::EndLease { id, lost, reply } => {
                let _ = reply.send(self.end_lease(id, lost));
            }
            Command::Close(done) => return Some(done),
        }
        None
    }

    fn commit(&mut self, group: &mut Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        match self.apply(group) {
            Ok(applied) => {
                self.revision = applied.revision;
                for (key, lease) in applied.bindings {
                    self.bind(key, lease);
                }
                if !applied.commits.is_empty() {
                    self.shared.history.append(applied.commits);
                }
                for (waiting, outcome) in group.drain(..).zip(applied.outcomes) {
                    let _ = waiting.reply.send(outcome);
                }
            }
            Err(error) => {
                self.in_doubt = true;
                warn!(%error, transactions = group.len(), "cannot write to the registry file");
                for waiting in group.drain(..) {
                    let _ = waiting
                        .reply
                        .send(Err(disk::again(&self.shared.path, &error)));
                }
            }
        }
    }

    /// Applies the transactions in order and makes them durable with one fsync. On an error none
    /// of them is acknowledged, and whether the disk has them is open.
    fn apply(&mut self, group: &[Waiting]) -> Result<Applied, StoreError> {
        let database = self.database()?;
        let path = &self.shared.path;
        let write = || -> Result<Applied, redb::Error> {
            let txn = disk::begin_write(&database)?;
            let mut applied = Applied {
                revision: self.revision,
                outcomes: Vec::with_capacity(group.len()),
                commits: Vec::new(),
                bindings: Vec::new(),
            };
            let mut tables = Tables::open(&txn)?;
            for waiting in group {
                self.apply_one(&waiting.txn, &mut tables, &mut applied)?;
            }
            if applied.commits.is_empty() {
                drop(tables);
                txn.abort()?;
            } else {
                tables.set_revision(applied.revision)?;
                drop(tables);
                txn.commit()?;
            }
            Ok(applied)
        };
        write().map_err(|e| disk::store_error(path, e, true))
    }

    fn apply_one(
        &self,
        txn: &Txn,
        tables: &mut Tables<'_>,
        applied: &mut Applied,
    ) -> Result<(), redb::Error> {
        for compare in &txn.compares {
            let current = tables.entries.get(compare.key())?.map(|row| row.value().1);
            if !compare.holds(current) {
                applied.outcomes.push(Ok(Outcome::Conflict));
                return Ok(());
            }
        }
        let lease_of = |op: &Op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        };
        let gone = |id: &LeaseId| !self.leases.contains_key(id);
        if let Some(id) = txn.ops.iter().filter_map(lease_of).find(gone) {
            applied.outcomes.push(Err(StoreError::LeaseNotFound { id }));
            return Ok(());
        }
        let revision = applied.revision + 1;
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            if let Some(change) = write_one(op, revision, tables)? {
                changes.push(change);
                applied.bindings.push((op.key().to_owned(), lease_of(op)));
            }
        }
        if !changes.is_empty() {
            applied.revision = revision;
            applied.commits.push(Commit { revision, changes });
        }
        applied
            .outcomes
            .push(Ok(Outcome::Committed(applied.revision)));
        Ok(())
    }

    fn bind(&mut self, key: String, lease: Option<LeaseId>) {
        if let Some(held) = self
            .lease_of
            .remove(&key)
            .and_then(|id| self.leases.get_mut(&id))
        {
            held.keys.remove(&key);
        }
        if let Some(id) = lease
            && let Some(held) = self.leases.get_mut(&id)
        {
            held.keys.insert(key.clone());
            self.lease_of.insert(key, id);
        }
    }

    /// Removes a lease's keys in one revision, and then the lease.
    fn end_lease(&mut self, id: LeaseId, lost: bool) -> Result<(), StoreError> {
        let Some(held) = self.leases.get(&id) else {
            return Ok(());
        };
        if !held.keys.is_empty() {
            let keys: Vec<String> = held.keys.iter().cloned().collect();
            let commit = self
                .remove_keys(&keys)
                .inspect_err(|_| self.in_doubt = true)?;
            self.revision = commit.revision;
            for key in &keys {
                self.lease_of.remove(key);
            }
            self.shared.history.append([commit]);
        }
        if let Some(held) = self.leases.remove(&id) {
            held.ended.cancel();
            if lost {
                held.lost.cancel();
            }
        }
        Ok(())
    }

    fn remove_keys(&mut self, keys: &[String]) -> Result<Commit, StoreError> {
        let database = self.database()?;
        let revision = self.revision + 1;
        let write = || -> Result<Commit, redb::Error> {
            let txn = disk::begin_write(&database)?;
            let mut tables = Tables::open(&txn)?;
            let mut changes = Vec::with_capacity(keys.len());
            for key in keys {
                changes.extend(write_one(&Op::delete(key.as_str()), revision, &mut tables)?);
            }
            tables.set_revision(revision)?;
            drop(tables);
            txn.commit()?;
            Ok(Commit { revision, changes })
        };
        write().map_err(|e| disk::store_error(&self.shared.path, e, true))
    }

    fn database(&mut self) -> Result<Arc<Database>, StoreError> {
        if self.in_doubt {
            self.reopen()?;
        }
        self.shared.database()
    }

    /// Opens the file again after an I/O error, since redb then refuses all further work. What
    /// was in flight may have reached the disk or not: the file says which, and watches start
    /// over from a listing if it did.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let shared = &self.shared;
        if let Some(old) = shared.replace_database(None) {
            let deadline = Instant::now() + READERS_LEAVE;
            while Arc::strong_count(&old) > 1 {
                if Instant::now() > deadline {
                    shared.replace_database(Some(old));
                    return Err(disk::unavailable(
                        &shared.path,
                        "readers still use the file",
                    ));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let database = disk::reopen(&shared.path, &shared.options)?;
        let (revision, leased) = disk::state(&database, &shared.path)?;
        if revision != self.revision {
            shared.history.restart(revision);
        }
        shared.replace_database(Some(Arc::new(database)));
        self.revision = revision;
        self.lease_of.clear();
        for held in self.leases.values_mut() {
            held.keys.clear();
        }
        for (key, id) in leased {
            self.bind(key, Some(id));
        }
        self.in_doubt = false;
        warn!(path = %self.shared.path.display(), revision, "registry file opened again");
        Ok(())
    }
}

/// Applies one operation; `None` if it changes nothing.
fn write_one(
    op: &Op,
    revision: Revision,
    tables: &mut Tables<'_>,
) -> Result<Option<Change>, redb::Error> {
    match op {
        Op::Put { key, value, lease } => {
            let created = tables.entries.get(key.as_str())?.map(|row| row.value().0);
            let create_revision = created.unwrap_or(revision);
            tables
                .entries
                .insert(key.as_str(), (create_revision, revision, value.as_ref()))?;
            match lease {
                Some(id) => drop(tables.leased.insert(key.as_str(), id.0)?),
                None => drop(tables.leased.remove(key.as_str())?),
            }
            Ok(Some(Change::Put(Entry {
                key: key.clone(),
                value: value.clone(),
                create_revision,
                mod_revision: revision,
            })))
        }
        Op::Delete { key } => {
            let existed = tables.entries.remove(key.as_str())?.is_some();
            tables.leased.remove(key.as_str())?;
            Ok(existed.then(|| Change::Delete {
                key: key.clone(),
                mod_revision: revision,
            }))
        }
    }
}
