//! The state folder: one heddle at a time, the embedded registry, and the last snapshot.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use registry::Registry;
use registry::disk;
use registry::follow::{Follower, chain};

use crate::writer::Writer;

/// Why the state folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It can't be made or written.
    #[error("node.state_dir {}: can't be used (set node.state_dir to a folder this user may write)", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another heddle holds it.
    #[error("node.state_dir {}: another heddle uses it (stop that one, or set another node.state_dir)", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

/// A locked state folder.
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder where it is missing, and takes it for this process.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        let failed = |source| StateError::Folder {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(StateDir {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The embedded registry's file.
    pub fn registry_path(&self) -> PathBuf {
        self.path.join("registry.redb")
    }

    /// The last snapshot's file.
    pub fn snapshot_path(&self) -> PathBuf {
        self.path.join("snapshot")
    }

    /// Serves the last snapshot until the registry is heard. One that can't be read costs only itself.
    pub fn restore(&self, registry: &Registry, follower: &mut Follower, writer: &mut Writer) {
        match disk::load(&self.snapshot_path(), registry.keys()) {
            Ok(None) => {}
            Ok(Some(saved)) => {
                let changes = follower.seed(saved.entries);
                tracing::info!(
                    revision = saved.revision,
                    records = changes.len(),
                    "last snapshot restored"
                );
                writer.restore(saved.revision, changes);
            }
            Err(error) => {
                tracing::warn!(reason = %chain(&error), "the last snapshot can't be used");
            }
        }
    }
}
