//! The one task that tells events: of the catalog's changes, of the agent, and of how the registry does.
//!
//! It has a catalog of its own, one batch behind, and follows the changes that the snapshot writer sends out anyway: the
//! writer never waits for it. A batch that it missed costs its events, which is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::{Catalog, Change, Event, EventKind, Name, Timestamp};
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::burst::Burst;
use super::derive::{News, derive};
use super::history::History;
use crate::writer::{Feed, RegistryStatus};

/// After so many changes others get their turn.
const CHANGES_AT_ONCE: usize = 256;
/// How long what is left out is counted before it is told.
const REPORT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct FirstSight {
    /// When this process began.
    since: Timestamp,
    /// Nothing was restored from disk: what fills the catalog up is no news. A restored one is compared with what is there.
    empty: bool,
}

/// Tells events.
pub struct Teller {
    node: Name,
    history: Arc<History>,
    feed: Feed,
    changes: broadcast::Receiver<Arc<[Change]>>,
    catalog: Catalog,
    /// Until the registry has been seen whole.
    first_sight: Option<FirstSight>,
    /// What first sight left out.
    known: u64,
    burst: Burst,
    status: RegistryStatus,
}

impl Teller {
    /// Takes the catalog as it is now for known. To be called before the writer runs, so that nothing is missed.
    pub fn new(node: Name, feed: &Feed, history: Arc<History>) -> Teller {
        let now = Timestamp::now();
        let changes = feed.changes.subscribe();
        let catalog = feed.catalog.borrow().clone();
        let first_sight = FirstSight {
            since: now,
            empty: catalog.services.is_empty() && catalog.nodes.is_empty(),
        };
        Teller {
            node,
            history,
            changes,
            catalog,
            first_sight: Some(first_sight),
            known: 0,
            burst: Burst::new(now),
            status: feed.registry.borrow().clone(),
            feed: feed.clone(),
        }
    }

    /// Tells until shutdown, then what the agent had to say last.
    pub async fn run(mut self, mut agent: mpsc::Receiver<Event>, shutdown: CancellationToken) {
        let mut registry = self.feed.registry.clone();
        let mut report_at: Option<Instant> = None;
        loop {
            if report_at.is_none() && self.burst.refused() {
                report_at = Some(Instant::now() + REPORT);
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                batch = self.changes.recv() => match batch {
                    Ok(batch) => self.batch(&batch).await,
                    Err(broadcast::error::RecvError::Lagged(count)) => self.missed(count),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                Some(event) = agent.recv() => self.told(event),
                Ok(()) = registry.changed() => {
                    let status = registry.borrow_and_update().clone();
                    self.registry(status);
                }
                () = tokio::time::sleep_until(report_at.unwrap_or_else(Instant::now)), if report_at.is_some() => {
                    report_at = None;
                    self.report();
                }
            }
        }
        // The catalog that is saved now has these changes: the next start will not tell them.
        while let Ok(batch) = self.changes.try_recv() {
            self.batch(&batch).await;
        }
        while let Ok(event) = agent.try_recv() {
            self.told(event);
        }
        self.report();
        self.history.close();
    }

    async fn batch(&mut self, changes: &[Change]) {
        let now = Timestamp::now();
        self.burst.refill(now);
        let first_sight = self.first_sight.filter(|first| first.empty);
        let not_before = first_sight.map(|first| first.since);
        for chunk in changes.chunks(CHANGES_AT_ONCE) {
            self.take(chunk, now, not_before);
            tokio::task::yield_now().await;
        }
        self.seen_whole();
    }

    fn take(&mut self, changes: &[Change], now: Timestamp, not_before: Option<Timestamp>) {
        let burst = &mut self.burst;
        let mut admit = |kind, reason: &'static str| burst.admit(kind, reason);
        let mut news = News::new(now, not_before, &mut admit);
        for change in changes {
            derive(&self.catalog, change, &mut news);
            self.catalog.apply(change.clone());
        }
        let News { events, old, .. } = news;
        self.known += old;
        for event in events {
            // A crash may have lost the end of the saved catalog, and not the events made of it.
            if self.first_sight.is_some() && self.history.knows(&event, now) {
                continue;
            }
            self.record(event);
        }
    }

    /// A listing that broke off has revision 0: the next one goes on with the first sight.
    fn seen_whole(&mut self) {
        let revision = self.feed.catalog.borrow().revision;
        if self.first_sight.is_none() || revision <= 0 {
            return;
        }
        self.first_sight = None;
        // Of a registry that this node has just made there is nothing to say.
        let empty = self.catalog.services.is_empty() && self.catalog.nodes.size() <= 1;
        if self.known > 0 && !empty {
            let endpoints: usize = self
                .catalog
                .slices
                .values()
                .flat_map(|nodes| nodes.values())
                .map(|slice| slice.endpoints.len())
                .sum();
            let text = format!(
                "seen for the first time, at revision {revision}: {} services, {endpoints} endpoints, {} nodes",
                self.catalog.services.size(),
                self.catalog.nodes.size()
            );
            self.tell("RegistryFirstSeen", "registry", text);
        }
    }

    fn missed(&mut self, batches: u64) {
        // What the receiver still holds is older than the catalog, and would be derived backwards. What came between the
        // two is in the catalog as well.
        loop {
            self.changes = self.changes.resubscribe();
            self.catalog = self.feed.catalog.borrow().clone();
            if self.changes.is_empty() {
                break;
            }
        }
        self.history.dropped(batches);
        let text =
            format!("{batches} batches of changes went by too fast: their events were left out");
        self.dropped(text);
    }

    fn report(&mut self) {
        self.burst.refill(Timestamp::now());
        if let Some((count, text)) = self.burst.report() {
            self.history.dropped(count);
            self.dropped(text);
        }
    }

    fn dropped(&mut self, text: String) {
        let node = self.node.clone();
        self.record(Event {
            at: Timestamp::now(),
            kind: EventKind::Node,
            namespace: None,
            name: node.to_string(),
            node: Some(node),
            reason: "EventsDropped".to_owned(),
            message: text,
        });
    }

    fn registry(&mut self, status: RegistryStatus) {
        match (&self.status.lost, &status.lost) {
            (None, Some((reason, since))) => {
                let event = self.about("RegistryLost", "registry", Some(*since), reason.clone());
                self.record(event);
            }
            (Some((_, since)), None) => {
                let seconds = since.age(Timestamp::now()).as_secs();
                let text = format!("followed again after {seconds} s");
                self.tell("RegistryBack", "registry", text);
            }
            _ => {}
        }
        let before: BTreeSet<&str> = self.status.bad.iter().map(|b| b.key.as_str()).collect();
        let after: BTreeSet<&str> = status.bad.iter().map(|b| b.key.as_str()).collect();
        let mended: Vec<String> = before.difference(&after).map(ToString::to_string).collect();
        for bad in &status.bad {
            if !self.status.bad.contains(bad) {
                let text = format!(
                    "can't be read, what it was before stays in force: {}",
                    bad.reason
                );
                self.tell("RecordBad", &bad.key, text);
            }
        }
        for key in mended {
            self.tell(
                "RecordMended",
                &key,
                "can be read again, or is gone".to_owned(),
            );
        }
        self.status = status;
    }

    fn tell(&self, reason: &str, name: &str, message: String) {
        self.record(self.about(reason, name, None, message));
    }

    fn about(&self, reason: &str, name: &str, at: Option<Timestamp>, message: String) -> Event {
        Event {
            at: at.unwrap_or_else(Timestamp::now),
            kind: EventKind::Registry,
            namespace: None,
            name: name.to_owned(),
            node: Some(self.node.clone()),
            reason: reason.to_owned(),
            message,
        }
    }

    /// What the agent says is in no record of the registry: the log has it too.
    fn told(&self, event: Event) {
        tracing::info!(
            kind = event.kind.as_str(),
            name = event.name,
            reason = event.reason,
            "{}",
            event.message
        );
        self.record(event);
    }

    fn record(&self, event: Event) {
        self.history.record(event, Timestamp::now());
    }
}

#[cfg(test)]
mod tests;
