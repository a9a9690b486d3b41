//! The folder of a demo: registry, log, socket. It goes with the demo.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::cli::Failure;

const PREFIX: &str = "heddle-demo-";

/// A folder that nobody else may enter.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes one, named after this process, and removes those of demos that were killed.
    pub fn make() -> Result<Folder, Failure> {
        let base = std::env::temp_dir();
        remove_leftovers(&base);
        let path = base.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| {
                Failure::Failed(format!(
                    "demo: {} can't be made: {e} (set TMPDIR to a folder this user may write)",
                    path.display()
                ))
            })?;
        Ok(Folder { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it.
    pub fn remove(self) -> Result<(), Failure> {
        std::fs::remove_dir_all(&self.path).map_err(|e| {
            Failure::Failed(format!(
                "demo: {} can't be removed: {e}",
                self.path.display()
            ))
        })
    }
}

fn remove_leftovers(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let dead = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .is_some_and(is_dead);
        if dead {
            // Another user's stays: it is theirs to remove.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether this is a process id that no process has.
pub fn is_dead(pid: &str) -> bool {
    pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
}
