//! The file of an embedded store: its tables, its opening, and how its errors are told.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, TableError, WriteTransaction,
};

use super::EmbeddedOptions;
use crate::store::{Entry, LeaseId, Listing, Revision, StoreError};

/// Key to create revision, mod revision and value.
const ENTRIES: TableDefinition<&str, (i64, i64, &[u8])> = TableDefinition::new("entries");
/// The keys that go with a lease. Kept in the file only so that they are known after a crash:
/// no lease outlives the process that holds it.
const LEASED: TableDefinition<&str, i64> = TableDefinition::new("leased");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

const FORMAT: &str = "format";
const REVISION: &str = "revision";
/// The layout of the tables above. A file with a higher number is refused, never rewritten.
const FORMAT_VERSION: i64 = 1;
/// The revision of an empty store, as in etcd.
const FIRST_REVISION: Revision = 1;

/// What opening a file found.
pub(super) struct Opened {
    pub(super) revision: Revision,
    /// Watches may start after this one.
    pub(super) history_floor: Revision,
}

/// The tables, open for writing.
pub(super) struct Tables<'txn> {
    pub(super) entries: Table<'txn, &'static str, (i64, i64, &'static [u8])>,
    pub(super) leased: Table<'txn, &'static str, i64>,
    meta: Table<'txn, &'static str, i64>,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Self, TableError> {
        Ok(Tables {
            entries: txn.open_table(ENTRIES)?,
            leased: txn.open_table(LEASED)?,
            meta: txn.open_table(META)?,
        })
    }

    pub(super) fn set_revision(&mut self, revision: Revision) -> Result<(), redb::StorageError> {
        self.meta.insert(REVISION, revision)?;
        Ok(())
    }
}

/// Opens or creates the file and removes what was leased in an earlier process.
pub(super) fn open(
    path: &Path,
    options: &EmbeddedOptions,
) -> Result<(Database, Opened), StoreError> {
    let is_new = create_if_absent(path).map_err(|e| io_error(path, e))?;
    let database = reopen(path, options)?;
    let opened = prepare(&database, path)?;
    if is_new {
        sync_parent(path).map_err(|e| io_error(path, e))?;
    }
    Ok((database, opened))
}

/// Opens the file as it is.
pub(super) fn reopen(path: &Path, options: &EmbeddedOptions) -> Result<Database, StoreError> {
    let open = || {
        Database::builder()
            .set_cache_size(options.cache_bytes)
            // Without it, a file that was damaged from outside may make redb panic later.
            .set_check_integrity_on_open(true)
            .create(path)
    };
    // The check itself may panic over a damaged file; what it has built is dropped then.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|e| store_error(path, e.into(), false)),
        Err(_) => Err(StoreError::Corrupt {
            path: path.to_owned(),
            reason: "it fails an internal check of the storage engine".to_owned(),
        }),
    }
}

/// Creates the file with a mode that keeps other users out; redb itself would go by the umask.
fn create_if_absent(path: &Path) -> io::Result<bool> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes the file's name as durable as its contents.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn prepare(database: &Database, path: &Path) -> Result<Opened, StoreError> {
    let failed = |e: redb::Error| store_error(path, e, false);
    let txn = begin_write(database).map_err(failed)?;
    let mut tables = Tables::open(&txn).map_err(|e| failed(e.into()))?;
    let read = |tables: &Tables<'_>, key| -> Result<Option<i64>, redb::Error> {
        Ok(tables.meta.get(key)?.map(|guard| guard.value()))
    };
    let format = read(&tables, FORMAT).map_err(failed)?;
    match format {
        None => {}
        Some(FORMAT_VERSION) => {}
        Some(other) => {
            return Err(StoreError::Corrupt {
                path: path.to_owned(),
                reason: format!(
                    "it has format {other}, this version knows format {FORMAT_VERSION} \
                     (use the newer heddle that wrote it)"
                ),
            });
        }
    }
    let found = read(&tables, REVISION).map_err(failed)?;
    let mut revision = found.unwrap_or(FIRST_REVISION);
    let finish = |tables: &mut Tables<'_>, revision: &mut Revision| -> Result<(), redb::Error> {
        let mut expired = Vec::new();
        for row in tables.leased.iter()? {
            expired.push(row?.0.value().to_owned());
        }
        for key in &expired {
            tables.entries.remove(key.as_str())?;
            tables.leased.remove(key.as_str())?;
        }
        if !expired.is_empty() {
            *revision += 1;
        }
        tables.meta.insert(FORMAT, FORMAT_VERSION)?;
        tables.set_revision(*revision)?;
        Ok(())
    };
    finish(&mut tables, &mut revision).map_err(failed)?;
    drop(tables);
    txn.commit().map_err(|e| failed(e.into()))?;
    // Of a new file everything is known, down to the revision before the first.
    let history_floor = if found.is_none() {
        FIRST_REVISION - 1
    } else {
        revision
    };
    Ok(Opened {
        revision,
        history_floor,
    })
}

/// Starts a transaction whose commit returns after the fsync.
pub(super) fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    Ok(txn)
}

pub(super) fn list(database: &Database, path: &Path, prefix: &str) -> Result<Listing, StoreError> {
    let read = || -> Result<Listing, redb::Error> {
        let txn = database.begin_read()?;
        let table = txn.open_table(ENTRIES)?;
        let mut entries = Vec::new();
        if prefix.is_empty() {
            entries.reserve(usize::try_from(table.len()?).unwrap_or(0));
        }
        for row in table.range(prefix..)? {
            let (key, value) = row?;
            if !key.value().starts_with(prefix) {
                break;
            }
            entries.push(entry(key.value(), value.value()));
        }
        let revision = txn
            .open_table(META)?
            .get(REVISION)?
            .map_or(FIRST_REVISION, |r| r.value());
        Ok(Listing { revision, entries })
    };
    read().map_err(|e| store_error(path, e, false))
}

pub(super) fn get(
    database: &Database,
    path: &Path,
    key: &str,
) -> Result<Option<Entry>, StoreError> {
    let read = || -> Result<Option<Entry>, redb::Error> {
        let table = database.begin_read()?.open_table(ENTRIES)?;
        Ok(table.get(key)?.map(|value| entry(key, value.value())))
    };
    read().map_err(|e| store_error(path, e, false))
}

/// The revision and the leased keys, after the file was opened again.
pub(super) fn state(
    database: &Database,
    path: &Path,
) -> Result<(Revision, Vec<(String, LeaseId)>), StoreError> {
    let read = || -> Result<_, redb::Error> {
        let txn = database.begin_read()?;
        let revision = txn
            .open_table(META)?
            .get(REVISION)?
            .map_or(FIRST_REVISION, |r| r.value());
        let mut leased = Vec::new();
        for row in txn.open_table(LEASED)?.iter()? {
            let (key, id) = row?;
            leased.push((key.value().to_owned(), LeaseId(id.value())));
        }
        Ok((revision, leased))
    };
    read().map_err(|e| store_error(path, e, false))
}

fn entry(key: &str, (create_revision, mod_revision, value): (i64, i64, &[u8])) -> Entry {
    Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision,
        mod_revision,
    }
}

/// Tells redb's errors in the store's words. `sent`: whether a commit may have reached the disk.
pub(super) fn store_error(path: &Path, error: redb::Error, sent: bool) -> StoreError {
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::InUse {
            path: path.to_owned(),
        },
        redb::Error::Io(e) => match io_error(path, e) {
            StoreError::Unavailable {
                address, source, ..
            } => StoreError::Unavailable {
                address,
                sent,
                source,
            },
            other => other,
        },
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => StoreError::Unavailable {
            address: path.display().to_string(),
            sent,
            source: Box::new(error),
        },
        // What is left are checks that a sound file passes.
        other => StoreError::Corrupt {
            path: path.to_owned(),
            reason: other.to_string(),
        },
    }
}

pub(super) fn io_error(path: &Path, error: io::Error) -> StoreError {
    let address = path.display().to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::NoSpace {
                address,
                source: Box::new(error),
            }
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::Denied {
            address,
            source: Box::new(error),
        },
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => StoreError::Corrupt {
            path: path.to_owned(),
            reason: error.to_string(),
        },
        _ => StoreError::Unavailable {
            address,
            sent: false,
            source: Box::new(error),
        },
    }
}

pub(super) fn unavailable(path: &Path, why: &'static str) -> StoreError {
    StoreError::Unavailable {
        address: path.display().to_string(),
        sent: false,
        source: why.into(),
    }
}

/// The same error once more, for each of the transactions that shared a failed fsync.
pub(super) fn again(path: &Path, error: &StoreError) -> StoreError {
    let address = path.display().to_string();
    let source = |e: &dyn std::error::Error| e.to_string().into();
    match error {
        StoreError::NoSpace { source: e, .. } => StoreError::NoSpace {
            address,
            source: source(e.as_ref()),
        },
        StoreError::Denied { source: e, .. } => StoreError::Denied {
            address,
            source: source(e.as_ref()),
        },
        StoreError::Corrupt { reason, .. } => StoreError::Corrupt {
            path: path.to_owned(),
            reason: reason.clone(),
        },
        StoreError::Unavailable {
            sent, source: e, ..
        } => StoreError::Unavailable {
            address,
            sent: *sent,
            source: source(e.as_ref()),
        },
        other => StoreError::Unavailable {
            address,
            sent: true,
            source: source(other),
        },
    }
}
