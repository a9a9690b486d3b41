//! What one worker counts of a port's endpoints.
//!
//! Counts hang on [`EndpointLoad::seq`](model::snapshot::EndpointLoad::seq), as pools do, and go with the endpoint. They
//! are no Prometheus metrics: every deploy would leave a set of series behind. `heddle top` and the dashboard show them.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use model::EndpointId;
use model::snapshot::{EndpointView, PortView};

use super::stats::{BOUNDS, Count, PortStats, bucket_of};
use crate::by_seq::BySeq;

/// What one worker counts of one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointStats {
    pub(super) id: EndpointId,
    /// HTTP requests that it was given and that it answered or failed.
    pub(super) requests: Count,
    /// Those of them that it answered with 5xx or not at all; of `tcp` ports, connections that could not be made.
    pub(super) errors: Count,
    /// Made to it.
    pub(super) connections: Count,
    /// Of these, open.
    pub(super) active: Count,
    /// Bytes to it.
    pub(super) received: Count,
    /// Bytes from it.
    pub(super) sent: Count,
    /// Durations of requests, as in [`super::stats::HttpStats`].
    pub(super) buckets: [Count; BOUNDS.len() + 1],
}

impl EndpointStats {
    fn new(id: EndpointId) -> Self {
        EndpointStats {
            id,
            requests: Count::default(),
            errors: Count::default(),
            connections: Count::default(),
            active: Count::default(),
            received: Count::default(),
            sent: Count::default(),
            buckets: std::array::from_fn(|_| Count::default()),
        }
    }

    /// It answered.
    pub(crate) fn answered(&self, status: u16) {
        self.requests.add(1);
        if status >= 500 {
            self.errors.add(1);
        }
    }

    /// It was given a request and did not answer.
    pub(crate) fn failed(&self) {
        self.requests.add(1);
        self.errors.add(1);
    }

    /// A connection to it that was to be relayed could not be made.
    pub(crate) fn refused(&self) {
        self.errors.add(1);
    }

    /// From when it was given a request to the end of its response's body.
    pub(crate) fn took(&self, duration: Duration) {
        self.buckets[bucket_of(duration)].add(1);
    }

    /// Bytes went to it.
    pub(crate) fn received(&self, n: u64) {
        self.received.add(n);
    }

    /// Bytes came from it.
    pub(crate) fn sent(&self, n: u64) {
        self.sent.add(n);
    }
}

/// An endpoint's counts within their worker: cloning it touches no counter that another thread writes to.
#[derive(Clone, Debug)]
#[expect(
    clippy::redundant_allocation,
    reason = "the outer count is the worker's own"
)]
pub(crate) struct Counted(Rc<Arc<EndpointStats>>);

impl Deref for Counted {
    type Target = EndpointStats;

    fn deref(&self) -> &EndpointStats {
        &self.0
    }
}

/// A connection to an endpoint that counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<EndpointStats>);

impl Open {
    pub(crate) fn new(counted: &Counted) -> Self {
        counted.connections.add(1);
        counted.active.add(1);
        Open(Arc::clone(&counted.0))
    }
}

impl Deref for Open {
    type Target = EndpointStats;

    fn deref(&self) -> &EndpointStats {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.active.sub(1);
    }
}

/// The counts of a port's endpoints: of those that it has, and that this worker has given something to do.
#[derive(Debug, Default)]
pub(crate) struct Endpoints(RefCell<BySeq<Counted>>);

impl Endpoints {
    /// The endpoint's counts. `now` is the port as the newest snapshot has it: an endpoint that is gone, and ends what it
    /// has, is not counted any more, or its counts would outlive it.
    pub(crate) fn get(
        &self,
        endpoint: &EndpointView,
        now: Option<&PortView>,
        port: &PortStats,
    ) -> Option<Counted> {
        let seq = endpoint.load.seq;
        if let Some(known) = self.0.borrow().get(&seq) {
            return Some(known.clone());
        }
        let listed = |view: &PortView| view.endpoints.iter().any(|e| e.load.seq == seq);
        if !now.is_some_and(listed) {
            return None;
        }
        let stats = Arc::new(EndpointStats::new(endpoint.id.clone()));
        port.insert_endpoint(seq, Arc::clone(&stats));
        let counted = Counted(Rc::new(stats));
        self.0.borrow_mut().insert(seq, counted.clone());
        Some(counted)
    }

    /// Lets go of the counts of endpoints that are gone.
    pub(crate) fn prune(&self, now: Option<&PortView>, port: &PortStats) {
        let mut known = self.0.borrow_mut();
        let listed: BySeq<()> = match now {
            _ if known.is_empty() => return,
            None => BySeq::default(),
            Some(view) => view.endpoints.iter().map(|e| (e.load.seq, ())).collect(),
        };
        known.retain(|seq, _| {
            let keep = listed.contains_key(seq);
            if !keep {
                port.remove_endpoint(*seq);
            }
            keep
        });
    }
}
