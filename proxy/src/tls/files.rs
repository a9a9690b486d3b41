//! Certificates, keys and authorities from files, and whether those have changed.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::service::CertificateFiles;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore};

use super::{provider, x509};

/// The most that a file may hold: a bundle of all public authorities is a quarter of it.
const MAX_BYTES: u64 = 1024 * 1024;
/// A file that was written this short a time ago may have been written again since without a trace in its times, which
/// are as coarse as the kernel's clock tick.
const SETTLED: Duration = Duration::from_secs(2);

/// A certificate with its key, ready to be shown.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// Of the certificate itself, not of those above it.
    pub(super) facts: x509::Facts,
}

/// Files that are read again when they change. What was good stays until there is something good again.
#[derive(Debug)]
pub(super) struct Watched<T> {
    paths: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
    /// Nothing can have changed since they were read, as long as their stamps are the same.
    settled: bool,
    read: Option<u64>,
    good: Option<Arc<T>>,
    error: Option<String>,
}

/// What tells one content of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    fn is_old(self, now: i64) -> bool {
        let settled = i64::try_from(SETTLED.as_secs()).unwrap_or(i64::MAX);
        now - self.changed.0.max(self.modified.0) > settled
    }
}

impl<T> Watched<T> {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Watched {
            stamps: vec![None; paths.len()],
            paths,
            settled: false,
            read: None,
            good: None,
            error: None,
        }
    }

    /// The newest good content.
    pub(super) fn good(&self) -> Option<&Arc<T>> {
        self.good.as_ref()
    }

    /// Why the files as they are now are not used.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Reads the files if they may have changed, and says whether content or error are other ones now.
    pub(super) fn look(&mut self, parse: impl FnOnce(&[Vec<u8>]) -> Result<T, String>) -> bool {
        let stamps: Vec<_> = self.paths.iter().map(|path| Stamp::of(path)).collect();
        if self.settled && stamps == self.stamps {
            return false;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(0));
        self.settled = stamps.iter().flatten().all(|stamp| stamp.is_old(now));
        self.stamps = stamps;
        let bytes: Result<Vec<_>, String> = self.paths.iter().map(|path| read(path)).collect();
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                // A disk may come back without the file's times being any newer.
                self.settled = false;
                self.read = None;
                return self.failed(error);
            }
        };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = hasher.finish();
        if self.read.replace(hash) == Some(hash) {
            return false;
        }
        match parse(&bytes) {
            Ok(good) => {
                self.good = Some(Arc::new(good));
                self.error = None;
                true
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(&mut self, error: String) -> bool {
        let news = self.error.as_deref() != Some(&error);
        self.error = Some(error);
        news
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("{} can't be read: {error}", path.display());
    // A pipe would be waited for.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{} is larger than 1 MiB", path.display()));
    }
    Ok(bytes)
}

/// A certificate and its key, watched.
pub(super) fn watch_pair(files: &CertificateFiles) -> Watched<Pair> {
    Watched::new(vec![
        PathBuf::from(&files.cert_file),
        PathBuf::from(&files.key_file),
    ])
}

/// Makes a certificate and its key of what their files hold.
pub(super) fn pair(files: &CertificateFiles, bytes: &[Vec<u8>]) -> Result<Pair, String> {
    let [cert, key] = bytes else {
        return Err("a certificate has two files".to_owned());
    };
    let (cert_file, key_file) = (&files.cert_file, &files.key_file);
    let chain = certificates(cert_file, cert)?;
    let facts = chain
        .first()
        .and_then(|certificate| x509::facts(certificate));
    let facts = facts.ok_or_else(|| format!("{cert_file}: its first certificate is malformed"))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("{key_file}: {}", in_words(&error, "private key")))?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            format!("{key_file} is not the key of {cert_file}")
        }
        error => format!("{key_file}: {error}"),
    })?;
    Ok(Pair {
        key: Arc::new(key),
        facts,
    })
}

/// The authorities that a file names.
pub(super) fn authorities(file: &str, bytes: &[Vec<u8>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, &bytes.concat())? {
        let added = roots.add(certificate);
        added.map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(roots)
}

fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{file}: no certificate (PEM) in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{file}: {}", in_words(&error, "certificate"))),
    }
}

fn in_words(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("no {wanted} (PEM) in it"),
        error => format!("not PEM: {error}"),
    }
}

#[cfg(test)]
mod tests;
