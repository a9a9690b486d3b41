//! The periodic comparison with a fresh listing, beside a watch that runs on.

use std::collections::{HashMap, HashSet};
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::mpsc;

use crate::store::{Change, Entry, Revision, Store, StoreError};

/// What a comparison gives next.
pub(super) enum Step {
    Page(Vec<Entry>),
    /// The listing is complete as of a revision, or broke off.
    Ended(Result<Revision, StoreError>),
}

/// A listing under way. Dropping it ends it.
pub(super) struct Comparison {
    listing: Pin<Box<dyn Future<Output = Result<Revision, StoreError>> + Send>>,
    pages: mpsc::UnboundedReceiver<Vec<Entry>>,
    ended: Option<Result<Revision, StoreError>>,
    /// The keys that it gave.
    listed: HashSet<String>,
    /// What the watch has told as deleted since it began.
    deleted: HashMap<String, Revision>,
    /// Up to where the watch had told when it began: a listing that is older is one of another history.
    pub(super) revision_before: Revision,
}

impl Comparison {
    pub(super) fn start(
        store: Arc<dyn Store>,
        root: String,
        revision_before: Revision,
    ) -> Comparison {
        let (give, pages) = mpsc::unbounded_channel();
        let listing = async move {
            let mut take = |page| drop(give.send(page));
            store.list_pages(&root, &mut take).await
        };
        Comparison {
            listing: Box::pin(listing),
            pages,
            ended: None,
            listed: HashSet::new(),
            deleted: HashMap::new(),
            revision_before,
        }
    }

    /// Takes note of what the watch tells meanwhile.
    pub(super) fn overtaken_by(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Delete { key, mod_revision } = change {
                self.deleted.insert(key.clone(), *mod_revision);
            }
        }
    }

    /// Whether a listed entry is still there as far as the watch has told.
    pub(super) fn is_present(&mut self, entry: &Entry) -> bool {
        self.listed.insert(entry.key.clone());
        self.deleted
            .get(&entry.key)
            .is_none_or(|deleted| *deleted < entry.mod_revision)
    }

    /// Whether the listing has given a key so far.
    pub(super) fn has_listed(&self, key: &str) -> bool {
        self.listed.contains(key)
    }

    /// Cancel safe.
    async fn next(&mut self) -> Step {
        poll_fn(|context| {
            // Polled only when what it gave is dealt with, so that one page is in memory and not all.
            if self.ended.is_none()
                && self.pages.is_empty()
                && let Poll::Ready(ended) = self.listing.as_mut().poll(context)
            {
                self.ended = Some(ended);
            }
            if let Ok(page) = self.pages.try_recv() {
                return Poll::Ready(Step::Page(page));
            }
            match self.ended.take() {
                Some(ended) => Poll::Ready(Step::Ended(ended)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// The next step of the comparison that runs; never, while none does.
pub(super) async fn compared(comparison: &mut Option<Comparison>) -> Step {
    match comparison {
        Some(comparison) => comparison.next().await,
        None => pending().await,
    }
}
