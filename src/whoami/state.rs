//! What the process remembers between requests.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use http::{HeaderValue, StatusCode};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Distinct paths that are counted by name; requests for further ones are counted in the total only.
const MAX_PATHS: usize = 1_000;
/// Distinct execution ids that are remembered.
const MAX_EXECUTIONS: usize = 1_000_000;

/// The state that every connection shares.
pub(super) struct Backend {
    pub name: String,
    pub hostname: String,
    /// The name as the `x-whoami` header of every response; absent when it is not a legal header value.
    pub name_header: Option<HeaderValue>,
    /// Cancelled when listeners and idle connections are to close.
    pub closing: CancellationToken,
    health: watch::Sender<StatusCode>,
    counters: Mutex<Counters>,
    journal: Option<File>,
}

#[derive(Default)]
struct Counters {
    total: u64,
    paths: BTreeMap<String, u64>,
    executions: HashMap<String, u64>,
}

impl Backend {
    /// With a journal that was opened to append to, executions are noted there too.
    pub fn new(name: Option<String>, journal: Option<File>) -> Self {
        let hostname = hostname();
        let name = name.unwrap_or_else(|| hostname.clone());
        Self {
            name_header: HeaderValue::from_str(&name).ok(),
            name,
            hostname,
            closing: CancellationToken::new(),
            health: watch::Sender::new(StatusCode::OK),
            counters: Mutex::default(),
            journal,
        }
    }

    /// The status that health checks get.
    pub fn health(&self) -> StatusCode {
        *self.health.borrow()
    }

    pub fn set_health(&self, status: StatusCode) {
        self.health.send_replace(status);
    }

    pub fn watch_health(&self) -> watch::Receiver<StatusCode> {
        self.health.subscribe()
    }

    pub fn count_request(&self, path: &str) {
        let mut counters = self.counters();
        counters.total += 1;
        if let Some(count) = counters.paths.get_mut(path) {
            *count += 1;
        } else if counters.paths.len() < MAX_PATHS {
            counters.paths.insert(path.to_owned(), 1);
        }
    }

    /// All requests so far, and those of each path.
    pub fn requests(&self) -> (u64, BTreeMap<String, u64>) {
        let counters = self.counters();
        (counters.total, counters.paths.clone())
    }

    /// Notes one execution of `id` and tells which one it is, from 1; `None` when the table is full.
    ///
    /// # Errors
    /// The journal can't be written.
    pub fn execute(&self, id: &str) -> io::Result<Option<u64>> {
        let mut counters = self.counters();
        if !counters.executions.contains_key(id) && counters.executions.len() >= MAX_EXECUTIONS {
            return Ok(None);
        }
        if let Some(mut journal) = self.journal.as_ref() {
            // One write, so that lines of several processes do not mix.
            journal.write_all(format!("{id}\n").as_bytes())?;
        }
        let count = counters.executions.entry(id.to_owned()).or_default();
        *count += 1;
        Ok(Some(*count))
    }

    /// How often `id` was executed.
    pub fn executions(&self, id: &str) -> u64 {
        self.counters().executions.get(id).copied().unwrap_or(0)
    }

    fn counters(&self) -> std::sync::MutexGuard<'_, Counters> {
        // The counters are sound after every single statement above, so a panic elsewhere spoils nothing.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hostname() -> String {
    // POSIX leaves open whether a cut name ends in NUL; the last byte stays zero here.
    let mut buffer = [0u8; 256];
    // SAFETY: the pointer and the length describe `buffer` less its last byte, which outlives the call.
    let failed = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) } != 0;
    let name = CStr::from_bytes_until_nul(&buffer).map(CStr::to_string_lossy);
    match name {
        Ok(name) if !failed && !name.is_empty() => name.into_owned(),
        _ => "localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_by_id() {
        let backend = Backend::new(Some("a".to_owned()), None);
        assert_eq!(backend.executions("x"), 0);
        assert_eq!(backend.execute("x").unwrap(), Some(1));
        assert_eq!(backend.execute("x").unwrap(), Some(2));
        assert_eq!(backend.execute("y").unwrap(), Some(1));
        assert_eq!(backend.executions("x"), 2);
    }

    #[test]
    fn the_journal_has_a_line_per_execution() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let backend = Backend::new(None, Some(file.reopen().unwrap()));
        for id in ["x", "y", "x"] {
            backend.execute(id).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\ny\nx\n");
    }

    #[test]
    fn the_table_of_paths_is_bounded_and_the_total_is_not() {
        let backend = Backend::new(None, None);
        for n in 0..MAX_PATHS + 10 {
            backend.count_request(&format!("/{n}"));
        }
        backend.count_request("/0");
        let (total, paths) = backend.requests();
        assert_eq!(total, MAX_PATHS as u64 + 11);
        assert_eq!(paths.len(), MAX_PATHS);
        assert_eq!(paths["/0"], 2);
    }

    #[test]
    fn a_name_that_is_no_header_value_is_still_a_name() {
        let backend = Backend::new(Some("line\nfeed".to_owned()), None);
        assert_eq!(backend.name, "line\nfeed");
        assert!(backend.name_header.is_none());
    }
}
