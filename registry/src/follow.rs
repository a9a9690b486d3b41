//! Following the registry: a listing, then a watch; after a gap a listing again whose deletes are synthesised.
//!
//! The follower remembers what it has told (key, revision, a hash of the value), so whatever happens in between, a new
//! listing becomes exactly the changes that were missed. Losing the registry is told as such and never as emptiness.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::catalog::{Change, RegistrationRecord};
use model::name::ServiceKey;
use model::service::Metadata;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Registry;
use crate::layout::{Key, Keys};
use crate::record::{self, RecordError};
use crate::store::{self, Entry, Revision, Store, StoreError, WatchEvent};
use crate::vips::VipRecord;

/// What the follower tells.
#[derive(Debug)]
pub enum Update {
    /// Changes up to `revision`, which is the present unless more follow.
    Changes {
        /// The registry's revision.
        revision: Revision,
        /// What came, changed or went.
        changes: Vec<Change>,
        /// Records that could not be read: what they were before stays in force.
        bad: Vec<BadRecord>,
        /// Keys whose records are no longer bad.
        mended: Vec<String>,
    },
    /// The registry can't be followed at the moment; told once per loss.
    Lost {
        /// Why, with all causes.
        reason: String,
    },
}

impl Update {
    fn has_news(&self) -> bool {
        match self {
            Update::Changes {
                changes,
                bad,
                mended,
                ..
            } => !(changes.is_empty() && bad.is_empty() && mended.is_empty()),
            Update::Lost { .. } => true,
        }
    }
}

/// A record that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its key.
    pub key: String,
    /// Why, with all causes.
    pub reason: String,
}

/// How the follower behaves.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// How often everything is compared with a fresh listing, in case an event was lost.
    pub resync: Duration,
    /// The first pause after a failure; doubled up to `max_backoff`.
    pub min_backoff: Duration,
    /// The longest pause after failures: how late a returning registry is noticed at most.
    pub max_backoff: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        FollowOptions {
            resync: Duration::from_secs(300),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        }
    }
}

/// What was told of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    mod_revision: Revision,
    hash: u64,
    bad: bool,
}

/// Turns the registry's listing and watch into [`Update`]s.
pub struct Follower {
    registry: Registry,
    options: FollowOptions,
    told: HashMap<String, Told>,
    hasher: RandomState,
    revision: Revision,
    /// When a listing is due; `None`: at once.
    resync_at: Option<Instant>,
    lost: bool,
}

impl Follower {
    /// A follower that has told nothing yet.
    pub fn new(registry: Registry, options: FollowOptions) -> Self {
        Follower {
            registry,
            options,
            told: HashMap::new(),
            hasher: RandomState::new(),
            revision: 0,
            resync_at: None,
            lost: false,
        }
    }

    /// Takes the entries of a saved catalog as told, so that the first listing also yields the deletes of what has gone
    /// since. Returns their changes.
    pub fn seed(&mut self, entries: Vec<Entry>) -> Vec<Change> {
        let mut changes = Vec::new();
        for entry in entries {
            self.take(&entry, &mut changes, &mut Vec::new(), &mut Vec::new());
        }
        changes
    }

    /// Follows until shutdown, or until nobody listens any more.
    pub async fn run(mut self, out: mpsc::Sender<Update>, shutdown: CancellationToken) {
        let mut backoff = self.options.min_backoff;
        loop {
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.list_and_watch(&out, &mut backoff) => ended,
            };
            let error = match ended {
                Ok(Ended::Resync) => continue,
                Ok(Ended::Unheard) => return,
                Err(error) => error,
            };
            if !self.lost {
                self.lost = true;
                let reason = chain(&error);
                tracing::warn!(%reason, "registry lost; serving on from the last snapshot");
                if out.send(Update::Lost { reason }).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(self.options.max_backoff);
        }
    }

    /// Lists where that is needed, then watches, until something ends it. After an outage the watch resumes from the
    /// revision it had; only a gap in the history, or the time for a comparison, calls for a listing.
    async fn list_and_watch(
        &mut self,
        out: &mpsc::Sender<Update>,
        backoff: &mut Duration,
    ) -> Result<Ended, StoreError> {
        let store = self.registry.store().clone();
        let root = self.registry.keys().root().to_owned();
        let resync = match self.resync_at.filter(|at| *at > Instant::now()) {
            Some(at) => at,
            None => {
                let (listed, update) = self.compare(&*store, &root).await;
                // An update says that the registry is heard. A listing that broke off is told only for what it gave, and
                // its loss is told again after it.
                let told = listed.is_ok() || update.has_news();
                if told {
                    self.lost &= listed.is_ok();
                    if out.send(update).await.is_err() {
                        return Ok(Ended::Unheard);
                    }
                }
                match listed {
                    Err(StoreError::Compacted { .. }) => return Ok(self.gap()),
                    other => other?,
                }
                let at = Instant::now() + self.options.resync;
                self.resync_at = Some(at);
                self.heard(backoff);
                at
            }
        };
        let mut watch = match store.watch(&root, self.revision).await {
            Err(StoreError::Compacted { .. }) => return Ok(self.gap()),
            other => other?,
        };
        if self.heard(backoff) {
            let update = self.changed(self.revision, Vec::new());
            if out.send(update).await.is_err() {
                return Ok(Ended::Unheard);
            }
        }
        loop {
            let event = tokio::select! {
                () = tokio::time::sleep_until(resync) => return Ok(Ended::Resync),
                event = watch.next() => event,
            };
            match event {
                Ok(WatchEvent::Changes { revision, changes }) => {
                    self.revision = revision;
                    let update = self.changed(revision, changes);
                    if out.send(update).await.is_err() {
                        return Ok(Ended::Unheard);
                    }
                }
                Ok(WatchEvent::Progress { revision }) => {
                    self.revision = self.revision.max(revision);
                }
                Err(StoreError::Compacted { .. }) => return Ok(self.gap()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The registry answered; whether it was lost before.
    fn heard(&mut self, backoff: &mut Duration) -> bool {
        *backoff = self.options.min_backoff;
        let was_lost = std::mem::replace(&mut self.lost, false);
        if was_lost {
            tracing::info!(revision = self.revision, "registry is back");
        }
        was_lost
    }

    /// The history after our revision is gone: everything has to be listed again.
    fn gap(&mut self) -> Ended {
        tracing::info!(
            revision = self.revision,
            "history compacted past us; listing again"
        );
        self.resync_at = None;
        Ended::Resync
    }

    /// What a fresh listing says beyond what was told. One that breaks off has told what it gave so far, and no deletes:
    /// what was not seen yet is not gone.
    async fn compare(&mut self, store: &dyn Store, root: &str) -> (Result<(), StoreError>, Update) {
        let (mut changes, mut bad, mut mended) = (Vec::new(), Vec::new(), Vec::new());
        let mut gone: HashSet<String> = self.told.keys().cloned().collect();
        let mut take = |entries: Vec<Entry>| {
            for entry in entries {
                gone.remove(&entry.key);
                self.take(&entry, &mut changes, &mut bad, &mut mended);
            }
        };
        let listed = store.list_pages(root, &mut take).await;
        let listed = listed.map(|revision| {
            self.revision = revision;
            for key in gone {
                self.forget(&key, &mut changes, &mut mended);
            }
        });
        let update = Update::Changes {
            revision: self.revision,
            changes,
            bad,
            mended,
        };
        (listed, update)
    }

    fn changed(&mut self, revision: Revision, events: Vec<store::Change>) -> Update {
        let (mut changes, mut bad, mut mended) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            match event {
                store::Change::Put(entry) => self.take(&entry, &mut changes, &mut bad, &mut mended),
                store::Change::Delete { key, .. } => self.forget(&key, &mut changes, &mut mended),
            }
        }
        Update::Changes {
            revision,
            changes,
            bad,
            mended,
        }
    }

    fn take(
        &mut self,
        entry: &Entry,
        changes: &mut Vec<Change>,
        bad: &mut Vec<BadRecord>,
        mended: &mut Vec<String>,
    ) {
        let mut told = Told {
            mod_revision: entry.mod_revision,
            hash: self.hasher.hash_one(&entry.value),
            bad: false,
        };
        let before = self.told.get(&entry.key).copied();
        if before.is_some_and(|b| b.mod_revision == told.mod_revision && b.hash == told.hash) {
            return;
        }
        match change(self.registry.keys(), entry) {
            Ok(Some(change)) => {
                changes.push(change);
                if before.is_some_and(|b| b.bad) {
                    mended.push(entry.key.clone());
                }
            }
            Ok(None) => return,
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(key = entry.key, %reason, "bad record in the registry; what it was before stays in force");
                bad.push(BadRecord {
                    key: entry.key.clone(),
                    reason,
                });
                told.bad = true;
            }
        }
        self.told.insert(entry.key.clone(), told);
    }

    fn forget(&mut self, key: &str, changes: &mut Vec<Change>, mended: &mut Vec<String>) {
        let Some(told) = self.told.remove(key) else {
            return;
        };
        if told.bad {
            mended.push(key.to_owned());
        }
        if let Some(key) = self.registry.keys().parse(key) {
            changes.push(removal(key));
        }
    }
}

enum Ended {
    Resync,
    Unheard,
}

/// The change that an entry stands for; `None` for a key that is not of this layout.
pub fn change(keys: &Keys, entry: &Entry) -> Result<Option<Change>, RecordError> {
    let Some(key) = keys.parse(&entry.key) else {
        return Ok(None);
    };
    let bytes = &entry.value;
    Ok(Some(match key {
        Key::Mesh => Change::Mesh(Some(Arc::new(record::decode(bytes)?))),
        Key::Service(key) => {
            let mut service: model::Service = record::decode(bytes)?;
            check(&service.key(), &key)?;
            stamp(&mut service.metadata, entry);
            Change::Service(key, Some(Arc::new(service)))
        }
        Key::Endpoint(key) => {
            let mut endpoint: model::endpoint::ManualEndpoint = record::decode(bytes)?;
            check(&endpoint.metadata.key(), &key)?;
            stamp(&mut endpoint.metadata, entry);
            Change::Endpoint(key, Some(Arc::new(endpoint)))
        }
        Key::Vip(ip) => Change::Vip(ip, Some(record::decode::<VipRecord>(bytes)?.service)),
        Key::Slice(key, node) => {
            let mut slice: model::Slice = record::decode(bytes)?;
            slice.share_texts();
            check(&slice.service, &key)?;
            check(&slice.node, &node)?;
            Change::Slice(key, node, Some(Arc::new(slice)))
        }
        Key::Node(name) => {
            let node: model::Node = record::decode(bytes)?;
            check(&node.name, &name)?;
            Change::Node(name, Some(Arc::new(node)))
        }
        Key::Liveness(name) => Change::Liveness(name, Some(Arc::new(record::decode(bytes)?))),
        Key::Mark(target) => Change::Mark(target, Some(Arc::new(record::decode(bytes)?))),
        Key::Registration(node, id) => {
            let record = RegistrationRecord {
                registration: record::decode(bytes)?,
                create_revision: entry.create_revision,
            };
            check(&record.registration.id, &id)?;
            Change::Registration(node, id, Some(Arc::new(record)))
        }
    }))
}

fn removal(key: Key) -> Change {
    match key {
        Key::Mesh => Change::Mesh(None),
        Key::Service(key) => Change::Service(key, None),
        Key::Endpoint(key) => Change::Endpoint(key, None),
        Key::Vip(ip) => Change::Vip(ip, None),
        Key::Slice(key, node) => Change::Slice(key, node, None),
        Key::Node(name) => Change::Node(name, None),
        Key::Liveness(name) => Change::Liveness(name, None),
        Key::Mark(target) => Change::Mark(target, None),
        Key::Registration(node, id) => Change::Registration(node, id, None),
    }
}

/// `resourceVersion` is the store's, never the record's own.
fn stamp(metadata: &mut Metadata, entry: &Entry) {
    metadata.resource_version = Some(entry.mod_revision);
}

fn check<T: PartialEq + std::fmt::Display>(found: &T, key: &T) -> Result<(), RecordError> {
    if found == key {
        Ok(())
    } else {
        Err(RecordError::Mismatch {
            found: found.to_string(),
        })
    }
}

/// An error and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The virtual IPs that an entry list names, with who has them.
pub(crate) fn vips_in(keys: &Keys, entries: &[Entry]) -> Vec<(IpAddr, Option<ServiceKey>)> {
    entries
        .iter()
        .filter_map(|entry| match keys.parse(&entry.key) {
            // A record that can't be read still takes its address.
            Some(Key::Vip(ip)) => Some((
                ip,
                record::decode::<VipRecord>(&entry.value)
                    .ok()
                    .map(|r| r.service),
            )),
            _ => None,
        })
        .collect()
}
