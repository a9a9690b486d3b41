//! Events on disk: JSON lines in `<state_dir>/events`, and the file before it in `events.1`; 16 MiB at most together.
//!
//! Lines are appended and not flushed: a crash of the host may cost the last ones, a crash of the process none.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::event::Recorded;
use tokio::sync::mpsc;

/// A file is put aside when it would outgrow this.
const FILE_BYTES: u64 = 8 << 20;
/// Events written at once at most.
const BATCH: usize = 1024;

/// The file that is appended to. Opened anew after a failure.
pub struct Log {
    path: PathBuf,
    before: PathBuf,
    limit: u64,
    open: Option<(File, u64)>,
}

impl Log {
    /// The log in the state folder, and what it has kept, oldest first. Lines that can't be read, such as one that a crash
    /// tore, cost only themselves.
    pub fn open(folder: &Path) -> (Log, Vec<Recorded>) {
        Log::with_limit(folder, FILE_BYTES)
    }

    fn with_limit(folder: &Path, limit: u64) -> (Log, Vec<Recorded>) {
        let log = Log {
            path: folder.join("events"),
            before: folder.join("events.1"),
            limit,
            open: None,
        };
        let mut kept: Vec<Recorded> = Vec::new();
        for path in [&log.before, &log.path] {
            match read(path, limit) {
                Ok((events, 0)) => kept.extend(events),
                Ok((events, torn)) => {
                    tracing::warn!(path = %path.display(), lines = torn, "events that can't be read are left out");
                    kept.extend(events);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(reason) => {
                    tracing::warn!(path = %path.display(), %reason, "the events before this start can't be read");
                }
            }
        }
        (log, kept)
    }

    /// Appends lines, each with its end.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let result = self.try_append(lines);
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        let more = lines.len() as u64;
        let (mut file, mut size) = match self.open.take() {
            Some(open) => open,
            None => reopen(&self.path)?,
        };
        if size > 0 && size + more > self.limit {
            drop(file);
            std::fs::rename(&self.path, &self.before)?;
            (file, size) = reopen(&self.path)?;
        }
        file.write_all(lines)?;
        self.open = Some((file, size + more));
        Ok(())
    }
}

/// Opens for appending and ends a line that was torn.
fn reopen(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(path)?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

/// The events of a file's last `limit` bytes, and how many lines could not be read.
fn read(path: &Path, limit: u64) -> io::Result<(Vec<Recorded>, usize)> {
    let mut file = File::open(path)?;
    let skipped = file.metadata()?.len().saturating_sub(limit);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    let mut events = Vec::new();
    let mut torn = 0;
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(event) => events.push(event),
            // The first line after a skip begins anywhere.
            Err(_) if skipped > 0 && index == 0 => {}
            Err(_) => torn += 1,
        }
    }
    Ok((events, torn))
}

/// Writes what comes, until the history is closed.
pub async fn keep(
    mut log: Log,
    mut unwritten: mpsc::Receiver<Arc<Recorded>>,
    failed: impl Fn(u64) + Send,
) {
    let mut batch = Vec::new();
    let mut failing = false;
    while unwritten.recv_many(&mut batch, BATCH).await > 0 {
        let events = std::mem::take(&mut batch);
        let count = events.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            let mut lines = Vec::new();
            for event in &events {
                // To memory, of a type that JSON has a form for.
                if serde_json::to_writer(&mut lines, event).is_ok() {
                    lines.push(b'\n');
                }
            }
            let result = log.append(&lines);
            (log, result)
        });
        let Ok((back, result)) = written.await else {
            tracing::error!("events are no longer written to disk: the writing task died");
            return;
        };
        log = back;
        if let Err(reason) = &result {
            failed(count);
            if !failing {
                tracing::warn!(path = %log.path.display(), %reason, "events can't be written to disk; kept in memory");
            }
        }
        failing = result.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, EventKind, Timestamp};

    fn line(id: u64) -> Vec<u8> {
        let recorded = Recorded {
            id,
            event: Event {
                at: Timestamp(id as i64),
                kind: EventKind::Node,
                namespace: None,
                name: "n1".into(),
                node: None,
                reason: "NodeAlive".into(),
                message: "alive".into(),
            },
            seen: None,
        };
        let mut line = serde_json::to_vec(&recorded).unwrap();
        line.push(b'\n');
        line
    }

    fn ids(kept: &[Recorded]) -> Vec<u64> {
        kept.iter().map(|e| e.id).collect()
    }

    #[test]
    fn a_torn_line_costs_itself_and_not_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, kept) = Log::open(folder.path());
        assert!(kept.is_empty());
        log.append(&line(1)).unwrap();
        log.append(&line(2)[..20]).unwrap();
        let (mut log, kept) = Log::open(folder.path());
        assert_eq!(ids(&kept), [1]);
        log.append(&line(3)).unwrap();
        let (_, kept) = Log::open(folder.path());
        assert_eq!(ids(&kept), [1, 3]);
    }

    #[test]
    fn two_files_of_bounded_size_hold_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::with_limit(folder.path(), 1000);
        for id in 1..=100 {
            log.append(&line(id)).unwrap();
        }
        for name in ["events", "events.1"] {
            assert!(folder.path().join(name).metadata().unwrap().len() <= 1000);
        }
        let (_, kept) = Log::with_limit(folder.path(), 1000);
        let newest: Vec<u64> = (101 - kept.len() as u64..=100).collect();
        assert_eq!(ids(&kept), newest);
        assert!(kept.len() > 5);
    }

    #[test]
    fn a_file_that_outgrew_its_bound_is_read_from_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(folder.path());
        for id in 1..=100 {
            log.append(&line(id)).unwrap();
        }
        let (_, kept) = Log::with_limit(folder.path(), 1000);
        assert_eq!(ids(&kept).last(), Some(&100));
        assert!(kept.len() < 20);
    }

    #[tokio::test]
    async fn a_disk_that_refuses_costs_the_events_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(&folder.path().join("missing"));
        let (send, receive) = mpsc::channel(8);
        let recorded: Recorded = serde_json::from_slice(&line(1)).unwrap();
        send.send(Arc::new(recorded)).await.unwrap();
        drop(send);
        let failed = std::sync::atomic::AtomicU64::new(0);
        let count = |n| {
            failed.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        };
        keep(log, receive, count).await;
        assert_eq!(failed.into_inner(), 1);
    }
}
