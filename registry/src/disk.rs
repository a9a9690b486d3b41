//! The last catalog on disk, so that a node can boot without its registry.
//!
//! The file holds the registry's records as JSON lines, the first of them a header. It is written beside its final name,
//! flushed and renamed, so that there is always one whole file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use model::Catalog;
use serde::{Deserialize, Serialize};

use crate::layout::{Key, Keys};
use crate::record;
use crate::store::{Entry, Revision};
use crate::vips::VipRecord;

/// Why the saved catalog can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is not one of ours, or damaged.
    #[error("{} line {line} can't be read", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file was saved for another registry.
    #[error("{} was saved for registry prefix {found}, not {wanted}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format_version: u64,
    root: String,
    backend: String,
    revision: Revision,
}

/// A saved catalog: entries as a listing would give them, at a revision.
#[derive(Debug)]
pub struct Saved {
    /// The registry's revision when it was saved.
    pub revision: Revision,
    /// Every record; `mod_revision` is 0, so that the next listing tells every record anew.
    pub entries: Vec<Entry>,
}

/// Saves a catalog. Blocks: call it where that is allowed.
pub fn save(path: &Path, keys: &Keys, backend: &str, catalog: &Catalog) -> Result<(), DiskError> {
    let temporary = path.with_extension("new");
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::Io {
            action,
            path,
            source,
        }
    };
    let file = File::create(&temporary).map_err(io("create", &temporary))?;
    let mut out = BufWriter::new(file);
    write_all(&mut out, keys, backend, catalog).map_err(io("write", &temporary))?;
    let file = out
        .into_inner()
        .map_err(|e| e.into_error())
        .map_err(io("write", &temporary))?;
    file.sync_all().map_err(io("flush", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io("rename into place", path))
}

fn write_all(
    out: &mut impl Write,
    keys: &Keys,
    backend: &str,
    catalog: &Catalog,
) -> io::Result<()> {
    let header = Header {
        format_version: record::FORMAT_VERSION,
        root: keys.root().to_owned(),
        backend: backend.to_owned(),
        revision: catalog.revision,
    };
    serde_json::to_writer(&mut *out, &header)?;
    let mut line = |key: Key, value: Vec<u8>| -> io::Result<()> {
        write!(out, "\n{}\t", keys.path(&key))?;
        out.write_all(&value)
    };
    if let Some(mesh) = &catalog.mesh {
        line(Key::Mesh, record::encode(&**mesh))?;
    }
    for (name, node) in &catalog.nodes {
        line(Key::Node(name.clone()), record::encode(&**node))?;
    }
    for (name, alive) in &catalog.alive {
        line(Key::Liveness(name.clone()), record::encode(&**alive))?;
    }
    for (key, service) in &catalog.services {
        line(Key::Service(key.clone()), record::encode(&**service))?;
    }
    for (ip, service) in &catalog.vips {
        let service = service.clone();
        line(Key::Vip(*ip), record::encode(&VipRecord { service }))?;
    }
    for (key, endpoint) in &catalog.endpoints {
        line(Key::Endpoint(key.clone()), record::encode(&**endpoint))?;
    }
    for (key, by_node) in &catalog.slices {
        for (node, slice) in by_node.iter() {
            let key = Key::Slice(key.clone(), node.clone());
            line(key, record::encode(&**slice))?;
        }
    }
    for (key, by_node) in &catalog.findings {
        for (node, findings) in by_node.iter() {
            let key = Key::Findings(key.clone(), node.clone());
            line(key, record::encode(&**findings))?;
        }
    }
    for (target, mark) in &catalog.marks {
        line(Key::Mark(target.clone()), record::encode(&**mark))?;
    }
    for ((node, id), registered) in &catalog.registrations {
        let key = Key::Registration(node.clone(), id.clone());
        line(key, record::encode(&registered.registration))?;
    }
    out.write_all(b"\n")
}

/// Reads a saved catalog; `None` when there is none.
pub fn load(path: &Path, keys: &Keys) -> Result<Option<Saved>, DiskError> {
    let io = |source| DiskError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    let mut lines = BufReader::new(file).lines();
    let first = lines.next().transpose().map_err(io)?.unwrap_or_default();
    let header: Header = serde_json::from_str(&first).map_err(|source| DiskError::Line {
        path: path.to_owned(),
        line: 1,
        source,
    })?;
    if header.root != keys.root() {
        return Err(DiskError::Foreign {
            path: path.to_owned(),
            found: header.root,
            wanted: keys.root().to_owned(),
        });
    }
    let mut entries = Vec::new();
    for text in lines {
        let text = text.map_err(io)?;
        // A line without a tab is damage; what it said is told again by the first listing.
        if let Some((key, value)) = text.split_once('\t') {
            entries.push(Entry {
                key: key.to_owned(),
                value: value.as_bytes().to_vec().into(),
                create_revision: 0,
                mod_revision: 0,
            });
        }
    }
    Ok(Some(Saved {
        revision: header.revision,
        entries,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::catalog::Change;
    use std::sync::Arc;

    #[test]
    fn a_catalog_comes_back_from_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let keys = Keys::new("/heddle");
        assert!(load(&path, &keys).unwrap().is_none());
        let mut catalog = Catalog::default();
        catalog.apply(Change::Mesh(Some(Arc::default())));
        let web: model::ServiceKey = "shop/web".parse().unwrap();
        catalog.apply(Change::Vip("10.96.0.7".parse().unwrap(), Some(web.clone())));
        catalog.revision = 42;
        save(&path, &keys, "etcd", &catalog).unwrap();
        let saved = load(&path, &keys).unwrap().unwrap();
        assert_eq!(saved.revision, 42);
        let mut back = Catalog::default();
        for entry in &saved.entries {
            back.apply(crate::follow::change(&keys, entry).unwrap().unwrap());
        }
        assert_eq!(back.vips_of(&web), catalog.vips_of(&web));
        assert!(back.mesh.is_some());
        assert!(matches!(
            load(&path, &Keys::new("/other")),
            Err(DiskError::Foreign { .. })
        ));
    }

    #[test]
    fn damage_is_an_error_and_not_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        std::fs::write(&path, "not a header\n").unwrap();
        assert!(matches!(
            load(&path, &Keys::new("/heddle")),
            Err(DiskError::Line { line: 1, .. })
        ));
    }
}
