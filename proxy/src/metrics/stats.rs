//! What one worker counts. Each counter has one writer, so that counting is a load and a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::ServiceKey;
use rpds::HashTrieMapSync;

use super::endpoints::EndpointStats;
use crate::redirect::Repairs;

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds; to be called by the worker that owns it only, as it is no atomic addition.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes away; by the owning worker only.
    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All that one worker counts. A scrape clones the map, which is O(1), and never keeps the worker waiting.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    /// By [`model::snapshot::PortLoad::seq`].
    pub(crate) ports: ArcSwap<HashTrieMapSync<u64, Arc<PortStats>>>,
    pub(crate) accept_errors: Count,
    /// Redirected connections to a `VIP:port` that no service has.
    pub(crate) unknown_destinations: Count,
}

impl WorkerStats {
    /// Only the worker writes the map, so nothing is lost between load and store.
    pub(crate) fn insert(&self, seq: u64, stats: Arc<PortStats>) {
        self.ports
            .store(Arc::new(self.ports.load().insert(seq, stats)));
    }

    pub(crate) fn remove(&self, seq: u64) {
        self.ports.store(Arc::new(self.ports.load().remove(&seq)));
    }
}

/// How often what others removed was put back; counted by the thread that looks after it.
#[derive(Debug, Default)]
pub(crate) struct RepairStats {
    pub(super) tables: AtomicU64,
    pub(super) routes: AtomicU64,
}

impl RepairStats {
    pub(crate) fn count(&self, repairs: Repairs) {
        let routes = u64::try_from(repairs.routes).unwrap_or(u64::MAX);
        self.tables
            .fetch_add(repairs.table.into(), Ordering::Relaxed);
        self.routes.fetch_add(routes, Ordering::Relaxed);
    }
}

/// How a retry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryResult {
    /// The endpoint answered.
    Success,
    /// It failed too.
    Failure,
    /// It would have been safe, but the budget was used up.
    OverBudget,
}

/// The names of [`RetryResult`] as label values, in its order.
pub(crate) const RETRY_RESULTS: [&str; 3] = ["success", "failure", "over_budget"];

/// How a client's TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeResult {
    /// With a new session.
    Full,
    /// With a session that its client had kept.
    Resumed,
    /// Broken off by either side.
    Failure,
    /// There was no certificate to show.
    NoCertificate,
}

/// The names of [`HandshakeResult`] as label values, in its order.
pub(crate) const HANDSHAKE_RESULTS: [&str; 4] = ["full", "resumed", "failure", "no_certificate"];

/// What one worker counts of one port.
#[derive(Debug)]
pub(crate) struct PortStats {
    pub(crate) service: ServiceKey,
    pub(crate) connections: Count,
    pub(crate) active: Count,
    /// From clients.
    pub(crate) received: Count,
    /// To clients.
    pub(crate) sent: Count,
    pub(crate) connect_failures: Count,
    pub(crate) hold_offs: Count,
    /// Requests or connections for which nobody was eligible.
    pub(crate) unavailable: Count,
    pub(crate) retries: [Count; RETRY_RESULTS.len()],
    pub(crate) handshakes: [Count; HANDSHAKE_RESULTS.len()],
    pub(crate) http: Option<Box<HttpStats>>,
    /// By [`model::snapshot::EndpointLoad::seq`].
    pub(super) endpoints: ArcSwap<HashTrieMapSync<u64, Arc<EndpointStats>>>,
}

impl PortStats {
    pub(crate) fn new(service: ServiceKey, http: bool) -> Self {
        PortStats {
            service,
            connections: Count::default(),
            active: Count::default(),
            received: Count::default(),
            sent: Count::default(),
            connect_failures: Count::default(),
            hold_offs: Count::default(),
            unavailable: Count::default(),
            retries: Default::default(),
            handshakes: Default::default(),
            http: http.then(Box::default),
            endpoints: ArcSwap::default(),
        }
    }

    /// Only the worker writes the map, as that of [`WorkerStats`].
    pub(super) fn insert_endpoint(&self, seq: u64, stats: Arc<EndpointStats>) {
        self.endpoints
            .store(Arc::new(self.endpoints.load().insert(seq, stats)));
    }

    pub(super) fn remove_endpoint(&self, seq: u64) {
        self.endpoints
            .store(Arc::new(self.endpoints.load().remove(&seq)));
    }

    pub(crate) fn retry(&self, result: RetryResult) {
        self.retries[result as usize].add(1);
    }

    pub(crate) fn handshake(&self, result: HandshakeResult) {
        self.handshakes[result as usize].add(1);
    }
}

/// A connection that counts as active until this is dropped.
#[derive(Debug)]
pub(crate) struct Active(pub(crate) Arc<PortStats>);

impl Active {
    pub(crate) fn new(stats: &Arc<PortStats>) -> Self {
        stats.connections.add(1);
        stats.active.add(1);
        Active(Arc::clone(stats))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.sub(1);
    }
}

/// Upper bounds of the duration buckets, in seconds.
pub const BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The same in nanoseconds, so that a request costs no floating point.
const BOUNDS_NANOS: [u64; BOUNDS.len()] = {
    let mut nanos = [0; BOUNDS.len()];
    let mut at = 0;
    while at < BOUNDS.len() {
        nanos[at] = (BOUNDS[at] * 1e9) as u64;
        at += 1;
    }
    nanos
};

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The bucket of a duration; the last is beyond all bounds.
pub(super) fn bucket_of(duration: Duration) -> usize {
    let nanos = nanos(duration);
    let bucket = BOUNDS_NANOS.iter().position(|bound| nanos <= *bound);
    bucket.unwrap_or(BOUNDS.len())
}

/// What the client spoke; the `protocol` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
}

/// The names of [`Spoken`] as label values, in its order.
pub(crate) const SPOKEN: [&str; 2] = ["http1", "http2"];

/// The status codes that have a series of their own: those of the IANA registry, and nginx's 499 for a client that
/// went away before the response. All others share `other`.
pub(crate) const CODES: [u16; 63] = [
    100, 101, 102, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304,
    305, 307, 308, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415,
    416, 417, 421, 422, 423, 424, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505,
    506, 507, 508, 510, 511, 0,
];

/// From status code to its place in [`CODES`]; the last place is `other`.
const PLACES: [u8; 600] = {
    let mut places = [CODES.len() as u8 - 1; 600];
    let mut at = 0;
    while at < CODES.len() - 1 {
        places[CODES[at] as usize] = at as u8;
        at += 1;
    }
    places
};

/// What one worker counts of the requests of one port.
#[derive(Debug)]
pub(crate) struct HttpStats {
    requests: [[Count; CODES.len()]; SPOKEN.len()],
    /// Not cumulative; the last is beyond all bounds.
    buckets: [Count; BOUNDS.len() + 1],
    nanos: Count,
}

impl Default for HttpStats {
    fn default() -> Self {
        HttpStats {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| Count::default())),
            buckets: std::array::from_fn(|_| Count::default()),
            nanos: Count::default(),
        }
    }
}

impl HttpStats {
    /// Counts a request when its status is known.
    pub(crate) fn answered(&self, spoken: Spoken, status: u16) {
        let place = PLACES.get(usize::from(status)).copied();
        let place = usize::from(place.unwrap_or(CODES.len() as u8 - 1));
        self.requests[spoken as usize][place].add(1);
    }

    /// Notes how long a request took, from its head to the end of the response's body.
    pub(crate) fn took(&self, duration: Duration) {
        self.buckets[bucket_of(duration)].add(1);
        self.nanos.add(nanos(duration));
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        self.requests
            .iter()
            .enumerate()
            .flat_map(|(spoken, codes)| {
                let seen = codes
                    .iter()
                    .enumerate()
                    .filter(|(_, count)| count.get() > 0);
                seen.map(move |(place, count)| (spoken, place, count.get()))
            })
    }

    pub(super) fn buckets(&self) -> &[Count] {
        &self.buckets
    }

    pub(super) fn durations(&self) -> (impl Iterator<Item = u64> + '_, u64) {
        (self.buckets.iter().map(Count::get), self.nanos.get())
    }
}
