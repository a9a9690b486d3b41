//! What is wished for, what the registry has, and what of it must be written. No I/O.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use model::endpoint::Slice;
use model::name::ServiceKey;
use registry::store::{Limits, Revision};
use tokio::time::Instant;

/// Endpoints written in one transaction at most: with reasons of bounded length, they stay below the limit in bytes.
const MAX_ENDPOINTS: usize = 800;

/// How long a lazy wish waits for what it may be written with.
const LAZY: Duration = Duration::from_secs(1);

/// How soon a wish is written. The hastiest of those that are not written yet counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Nobody is waiting: within a second, or with whatever else comes for the slice.
    Lazy,
    /// With what else comes within a few milliseconds.
    Soon,
    /// Without waiting for others.
    Now,
}

/// What the registry has of a slice, as far as is known.
#[derive(Clone, Debug, PartialEq)]
enum There {
    /// Nobody has said that there is anything: taken for absent, which a write finds out without a read before it. A
    /// thousand nodes that start don't read a hundred thousand slices that aren't there.
    Untold,
    /// Nothing is known: to be read.
    Unknown,
    /// The catalog shows this; under which revision something has to be read before it is replaced.
    Seen(Option<Arc<Slice>>),
    /// This was written at `revision`.
    Written {
        revision: Revision,
        slice: Option<Arc<Slice>>,
    },
}

#[derive(Debug)]
struct Page {
    wish: Option<Arc<Slice>>,
    there: There,
    /// Being written now.
    busy: bool,
    /// What the catalog showed last while it was being written, and at which revision.
    meanwhile: Option<(Revision, Option<Arc<Slice>>)>,
    /// To be written in a transaction of its own.
    alone: bool,
    /// Not to be written before, unless the wish changes.
    not_before: Option<Instant>,
    /// Something that is not written yet does not wait.
    hasty: bool,
    /// Until when it waits, where nothing of it is hasty.
    lazy_until: Option<Instant>,
}

impl Page {
    /// Has it written as soon as may be.
    fn hurry(&mut self) {
        self.hasty = true;
        self.lazy_until = None;
    }

    /// Nothing of it waits to be written any more.
    fn rest(&mut self) {
        self.hasty = false;
        self.lazy_until = None;
    }

    fn ready_at(&self, now: Instant) -> Instant {
        let at = self.not_before.max(self.lazy_until);
        at.unwrap_or(now)
    }

    fn settled(&self) -> bool {
        match &self.there {
            There::Untold | There::Unknown => false,
            There::Seen(slice) | There::Written { slice, .. } => *slice == self.wish,
        }
    }
}

/// One slice to write.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) service: ServiceKey,
    pub(super) slice: Option<Arc<Slice>>,
    /// `None`: to be read first. `Some(None)`: there is none.
    pub(super) replaces: Option<Option<Revision>>,
}

/// All slices of this node that matter.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: HashMap<ServiceKey, Page>,
    dirty: BTreeSet<ServiceKey>,
    /// Those of `dirty` that go first, and without delay.
    urgent: BTreeSet<ServiceKey>,
    writing: usize,
}

impl Book {
    /// Whether there is something to write now.
    pub(super) fn wish(
        &mut self,
        service: &ServiceKey,
        slice: Option<Arc<Slice>>,
        pace: Pace,
    ) -> bool {
        let urgent = pace == Pace::Now;
        let page = self.pages.entry(service.clone()).or_insert_with(|| Page {
            wish: None,
            there: There::Untold,
            busy: false,
            meanwhile: None,
            alone: false,
            not_before: None,
            hasty: false,
            lazy_until: None,
        });
        if page.wish == slice && !matches!(page.there, There::Untold | There::Unknown) {
            return false;
        }
        page.wish = slice;
        page.not_before = None;
        page.alone = false;
        if pace != Pace::Lazy {
            page.hurry();
        } else if !page.hasty {
            page.lazy_until.get_or_insert(Instant::now() + LAZY);
        }
        if page.busy {
            // Looked at again when the write under way has ended.
            if urgent {
                self.urgent.insert(service.clone());
            }
            return false;
        }
        if page.settled() {
            page.rest();
            self.dirty.remove(service);
            self.urgent.remove(service);
            self.forget_if_empty(service);
            return false;
        }
        self.dirty.insert(service.clone());
        if urgent {
            self.urgent.insert(service.clone());
        }
        true
    }

    /// Whether there is something to write now, because the registry has something else than was written or wished.
    pub(super) fn observe(
        &mut self,
        service: &ServiceKey,
        slice: Option<&Arc<Slice>>,
        revision: Revision,
    ) -> bool {
        let Some(page) = self.pages.get_mut(service) else {
            return false;
        };
        // Of what comes before a write of ours that is under way, that finds out by itself. What comes after it may be seen
        // before its answer is.
        if page.busy {
            page.meanwhile = Some((revision, slice.cloned()));
            return false;
        }
        match &page.there {
            // The catalog is behind our own write.
            There::Written { revision: own, .. } if revision < *own => return false,
            There::Written { slice: own, .. } if own.as_ref() == slice && slice.is_some() => {
                return false;
            }
            _ => page.there = There::Seen(slice.cloned()),
        }
        if page.settled() {
            page.rest();
            self.dirty.remove(service);
            self.urgent.remove(service);
            self.forget_if_empty(service);
            return false;
        }
        if page.lazy_until.is_none() {
            page.hurry();
        }
        self.dirty.insert(service.clone());
        true
    }

    pub(super) fn wished(&self) -> Vec<ServiceKey> {
        self.pages
            .iter()
            .filter(|(_, page)| page.wish.is_some())
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Slices that differ from what the registry has, those being written included.
    pub(super) fn waiting(&self) -> usize {
        self.dirty.len() + self.writing
    }

    pub(super) fn urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// When the next slice may be written; `None` when there is none to write.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        self.dirty
            .iter()
            .filter_map(|service| self.pages.get(service))
            .map(|page| page.ready_at(now))
            .min()
    }

    /// The next slices to write in one transaction.
    pub(super) fn take(&mut self, limits: Limits) -> Vec<Job> {
        let now = Instant::now();
        let mut jobs: Vec<Job> = Vec::new();
        let mut endpoints = 0;
        let mut taken = Vec::new();
        let order = self
            .urgent
            .iter()
            .chain(self.dirty.difference(&self.urgent));
        for service in order {
            let Some(page) = self.pages.get(service) else {
                continue;
            };
            if page.busy {
                continue;
            }
            if page.ready_at(now) > now {
                continue;
            }
            let count = page.wish.as_ref().map_or(0, |s| s.endpoints.len());
            let full = jobs.len() >= limits.max_ops_per_txn || endpoints + count > MAX_ENDPOINTS;
            if !jobs.is_empty() && (full || page.alone) {
                break;
            }
            endpoints += count;
            taken.push(service.clone());
            jobs.push(Job {
                service: service.clone(),
                slice: page.wish.clone(),
                replaces: match &page.there {
                    There::Written { revision, slice } => Some(slice.as_ref().map(|_| *revision)),
                    There::Untold | There::Seen(None) if page.wish.is_some() => Some(None),
                    There::Untold | There::Unknown | There::Seen(_) => None,
                },
            });
            if page.alone {
                break;
            }
        }
        self.writing += taken.len();
        for service in taken {
            self.dirty.remove(&service);
            self.urgent.remove(&service);
            if let Some(page) = self.pages.get_mut(&service) {
                page.busy = true;
                page.rest();
            }
        }
        jobs
    }

    /// Nothing waits for company any more.
    pub(super) fn hurry(&mut self) {
        self.pages.values_mut().for_each(|page| {
            if page.lazy_until.is_some() {
                page.hurry();
            }
        });
    }

    /// The registry stands at another history: what is there has to be read anew, and what differs written again.
    pub(super) fn doubt_all(&mut self) {
        for (service, page) in &mut self.pages {
            page.there = There::Unknown;
            if !page.busy {
                self.dirty.insert(service.clone());
            }
        }
    }

    /// The jobs were written at `revision`, but for those that were found as wished, at a revision of their own.
    pub(super) fn committed(
        &mut self,
        jobs: Vec<Job>,
        revision: Revision,
        found: &HashMap<ServiceKey, Revision>,
    ) {
        self.writing -= jobs.len();
        for job in jobs {
            let revision = found.get(&job.service).copied().unwrap_or(revision);
            let Some(page) = self.pages.get_mut(&job.service) else {
                continue;
            };
            page.busy = false;
            page.alone = false;
            page.there = match page.meanwhile.take() {
                Some((later, seen)) if later > revision && seen != job.slice => There::Seen(seen),
                _ => There::Written {
                    revision,
                    slice: job.slice,
                },
            };
            if page.settled() {
                page.rest();
                self.urgent.remove(&job.service);
            } else {
                self.dirty.insert(job.service);
            }
        }
    }

    /// Nothing is known of what is there, and all is to be written again.
    pub(super) fn failed(&mut self, jobs: Vec<Job>) {
        self.writing -= jobs.len();
        for job in jobs {
            if let Some(page) = self.pages.get_mut(&job.service) {
                page.busy = false;
                page.meanwhile = None;
                page.there = There::Unknown;
                page.hurry();
                self.dirty.insert(job.service);
            }
        }
    }

    pub(super) fn failed_one_by_one(&mut self, jobs: Vec<Job>) {
        for job in &jobs {
            if let Some(page) = self.pages.get_mut(&job.service) {
                page.alone = true;
            }
        }
        self.failed(jobs);
    }

    pub(super) fn refused(&mut self, jobs: Vec<Job>, pause: Duration) {
        for job in &jobs {
            if let Some(page) = self.pages.get_mut(&job.service)
                && page.wish == job.slice
            {
                page.not_before = Some(Instant::now() + pause);
            }
        }
        self.failed(jobs);
    }

    /// A slice that is not there, as the catalog shows, and shall not be, needs no page.
    fn forget_if_empty(&mut self, service: &ServiceKey) {
        if let Some(page) = self.pages.get(service)
            && page.wish.is_none()
            && !page.busy
            && matches!(page.there, There::Seen(None))
        {
            self.pages.remove(service);
        }
    }
}
