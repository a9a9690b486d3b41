//! The embedded backend: one machine, one [`redb`] file, nothing to set up.
//!
//! # Layout
//! - `disk`: the file's tables, what is done when it is opened, and how its errors are told
//! - `writer`: the one thread that writes, many transactions per fsync
//! - `history`: the recent past, kept in memory for watches
//!
//! Reads are redb snapshots on tokio's blocking threads, at most [`MAX_READS`] at once; they
//! never wait for the writer. A commit is acknowledged after its fsync, and shown to watches
//! before it is acknowledged.

mod disk;
mod history;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redb::Database;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::history::{History, HistoryWatch};
use self::writer::{Command, Writer};
use super::lease::Revoke;
use super::{
    Entry, Lease, LeaseId, Listing, Outcome, Revision, Store, StoreError, Txn, Watch, txn,
};

/// Most reads at once; more wait their turn, so that reads cannot take all of tokio's blocking
/// threads.
const MAX_READS: u32 = 8;

/// Most commands that wait for the writer; callers beyond that wait to enqueue.
const MAX_QUEUED: usize = 1024;

/// Between two attempts to remove an expired lease's keys from a disk that fails.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

/// The bounds of an embedded store's memory.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Revisions kept for watches. A watch that lags further behind gets
    /// [`StoreError::Compacted`].
    pub history_revisions: usize,
    /// Bytes of keys and values kept for watches, whichever bound is reached first.
    pub history_bytes: usize,
    /// Bytes of file pages kept in memory.
    pub cache_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            history_revisions: 10_000,
            history_bytes: 16 << 20,
            cache_bytes: 16 << 20,
        }
    }
}

/// A store in one file of this machine, locked for this process.
///
/// Dropping it lets commits in the queue finish in the background; [`EmbeddedStore::close`] waits
/// for them, after which the file can be opened again.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// What readers, the writer and watches have in common.
struct Shared {
    path: PathBuf,
    options: EmbeddedOptions,
    /// `None` once closed, and while the writer reopens the file after an I/O error.
    database: Mutex<Option<Arc<Database>>>,
    reads: Arc<Semaphore>,
    history: Arc<History>,
}

impl Shared {
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone()
            .ok_or_else(|| disk::unavailable(&self.path, "the file is being reopened"))
    }

    fn replace_database(&self, database: Option<Arc<Database>>) -> Option<Arc<Database>> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, database)
    }
}

impl EmbeddedStore {
    /// Opens the file, or creates it (mode 0600) in a folder that exists.
    ///
    /// Checks every page of the file, which takes about a second per gigabyte and blocks: call it
    /// at start, before anything is served. Keys that were bound to leases of an earlier process
    /// are removed.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it open, [`StoreError::Corrupt`] when it is
    /// damaged, no registry file, or of a newer format; [`StoreError::Unavailable`],
    /// [`StoreError::Denied`] and [`StoreError::NoSpace`] for what the file system says.
    pub fn open(path: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let (database, opened) = disk::open(&path, &options)?;
        let database = Arc::new(database);
        let history = Arc::new(History::new(
            opened.history_floor,
            opened.revision,
            options.history_revisions,
            options.history_bytes,
        ));
        let shared = Arc::new(Shared {
            path: path.clone(),
            options,
            database: Mutex::new(Some(database)),
            reads: Arc::new(Semaphore::new(MAX_READS as usize)),
            history,
        });
        let (commands, queue) = mpsc::channel(MAX_QUEUED);
        let writer = Writer::new(shared.clone(), opened.revision);
        std::thread::Builder::new()
            .name("registry-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|e| disk::io_error(&path, e))?;
        Ok(EmbeddedStore { shared, commands })
    }

    /// Writes what is queued, ends all watches with [`StoreError::Closed`], and gives up the file.
    /// Every later call gives [`StoreError::Closed`] or [`StoreError::Unavailable`].
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            // An error here means that the writer has ended already.
            let _ = closed.await;
        }
        self.shared.history.close();
        if let Ok(all) = self
            .shared
            .reads
            .clone()
            .acquire_many_owned(MAX_READS)
            .await
        {
            self.shared.reads.close();
            let database = self.shared.replace_database(None);
            // Closing the file writes to it. Only a panic inside redb could make this fail, and
            // the file is given up all the same then.
            let _ = tokio::task::spawn_blocking(move || drop(database)).await;
            drop(all);
        }
    }

    /// Forgets the history before `revision`, as an operator does with `etcdctl compact`: a watch
    /// after `revision - 1` or later still works, an older one gets [`StoreError::Compacted`].
    pub fn compact(&self, revision: Revision) {
        self.shared.history.compact(revision);
    }

    /// Ends a lease from outside, as an operator does with `etcdctl lease revoke`: its keys are
    /// removed and its holder finds it lost. A lease that is gone already is no error.
    pub async fn end_lease(&self, id: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Command::EndLease {
            id,
            lost: true,
            reply,
        })
        .await?
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, StoreError> {
        ask(&self.commands, command).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database, &Path) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self
            .shared
            .reads
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let shared = self.shared.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let database = shared.database()?;
            let result = work(&database, &shared.path);
            // Before the permit, so that whoever holds all permits knows the file to be unused.
            drop(database);
            drop(permit);
            result
        });
        match reading.await {
            Ok(result) => result,
            Err(e) if e.is_panic() => Err(StoreError::Corrupt {
                path: self.shared.path.clone(),
                reason: "reading it failed an internal check of the storage engine".to_owned(),
            }),
            Err(_) => Err(StoreError::Closed),
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.history.close();
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, StoreError> {
    let (reply, answer) = oneshot::channel();
    commands
        .send(command(reply))
        .await
        .map_err(|_| StoreError::Closed)?;
    answer.await.map_err(|_| StoreError::Closed)
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |database, path| disk::list(database, path, &prefix))
            .await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        txn::check_key(key, &self.limits())?;
        let key = key.to_owned();
        self.read(move |database, path| disk::get(database, path, &key))
            .await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.validate(&self.limits())?;
        self.ask(|reply| Command::Commit { txn, reply }).await?
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        Ok(Watch::new(HistoryWatch::start(
            self.shared.history.clone(),
            prefix,
            after,
        )?))
    }

    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let (lost, ended) = (CancellationToken::new(), CancellationToken::new());
        let tokens = (lost.clone(), ended.clone());
        let id = self
            .ask(|reply| Command::Grant {
                lost: tokens.0,
                ended: tokens.1,
                reply,
            })
            .await?;
        let renewal = CancellationToken::new();
        // Neither the lease nor its timer keeps the store open.
        let commands = self.commands.downgrade();
        tokio::spawn(expire_unless_held(
            id,
            ttl,
            renewal.clone(),
            ended,
            commands.clone(),
        ));
        Ok(Lease::new(id, ttl, lost, renewal, Revoker { commands }))
    }

    fn name(&self) -> &'static str {
        "embedded"
    }
}

/// A lease that is held needs no renewing: its holder lives in this process. Once let go, it
/// lasts for its time to live, as if renewed at that moment.
async fn expire_unless_held(
    id: LeaseId,
    ttl: Duration,
    let_go: CancellationToken,
    ended: CancellationToken,
    commands: mpsc::WeakSender<Command>,
) {
    let expiry = async {
        let_go.cancelled().await;
        tokio::time::sleep(ttl).await;
    };
    tokio::select! {
        () = ended.cancelled() => return,
        () = expiry => {}
    }
    // A store that is closed removes the keys when it is opened again.
    while let Some(commands) = commands.upgrade() {
        let end = |reply| Command::EndLease {
            id,
            lost: true,
            reply,
        };
        match ask(&commands, end).await {
            Ok(Ok(())) | Err(_) => return,
            Ok(Err(error)) => warn!(%error, lease = %id, "cannot remove the keys of a lease yet"),
        }
        drop(commands);
        tokio::time::sleep(EXPIRY_RETRY).await;
    }
}

struct Revoker {
    commands: mpsc::WeakSender<Command>,
}

#[async_trait]
impl Revoke for Revoker {
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let commands = self.commands.upgrade().ok_or(StoreError::Closed)?;
        ask(&commands, |reply| Command::EndLease {
            id,
            lost: false,
            reply,
        })
        .await?
    }
}
