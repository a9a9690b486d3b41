//! What the DNS server counts.
//!
//! Each thread that answers has counters of its own, which only the scrape adds up: a counter that threads share would
//! cost each of them a cache miss per query.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// From an answer out of the snapshot to an upstream's time-out, in microseconds.
const BUCKETS: [u64; 14] = [
    10, 25, 50, 100, 250, 1_000, 5_000, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000,
];

/// Types with a label of their own, so that a client can't make series.
const TYPES: [(u16, &str); 17] = [
    (1, "A"),
    (28, "AAAA"),
    (33, "SRV"),
    (12, "PTR"),
    (5, "CNAME"),
    (65, "HTTPS"),
    (16, "TXT"),
    (6, "SOA"),
    (2, "NS"),
    (15, "MX"),
    (255, "ANY"),
    (43, "DS"),
    (48, "DNSKEY"),
    (64, "SVCB"),
    (35, "NAPTR"),
    (252, "AXFR"),
    (251, "IXFR"),
];

/// As `dig` prints them.
const CODES: [(ResponseCode, &str); 8] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::BADVERS, "BADVERS"),
    (ResponseCode::NotAuth, "NOTAUTH"),
];

const OTHER: &str = "other";

/// A code as in labels.
pub(crate) fn code_label(code: ResponseCode) -> &'static str {
    let known = CODES.iter().find(|(known, _)| *known == code);
    known.map_or(OTHER, |(_, label)| label)
}

/// Counters of one thread, or of several that count seldom. Those of two threads have no cache line in common, nor the
/// two lines that processors fetch together.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Counts {
    /// By type, then code; the last of each is for all others.
    queries: [[AtomicU64; CODES.len() + 1]; TYPES.len() + 1],
    /// By bucket; the last is for what took longer.
    durations: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
    /// Answers out of the cache of what upstreams said: in their time, and past it.
    hits: AtomicU64,
    stale: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let zero = |_| AtomicU64::new(0);
        Counts {
            queries: std::array::from_fn(|_| std::array::from_fn(zero)),
            durations: std::array::from_fn(zero),
            nanoseconds: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        }
    }
}

impl Counts {
    /// Counts a query of a type, or of one that can't be told.
    pub(crate) fn answered(&self, kind: Option<u16>, code: ResponseCode) {
        let kind = kind.and_then(|kind| TYPES.iter().position(|(known, _)| *known == kind));
        let code = CODES.iter().position(|(known, _)| *known == code);
        let kind = kind.unwrap_or(TYPES.len());
        let code = code.unwrap_or(CODES.len());
        self.queries[kind][code].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer out of the cache.
    pub(crate) fn hit(&self, stale: bool) {
        let counter = if stale { &self.stale } else { &self.hits };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that `count` queries took so long each.
    pub(crate) fn took(&self, count: u64, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        self.durations[bucket].fetch_add(count, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let nanos = nanos.saturating_mul(count);
        self.nanoseconds.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// The families of this crate. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    counts: Arc<Mutex<Vec<Arc<Counts>>>>,
    /// Of the threads that count seldom.
    shared: Arc<Counts>,
    descriptions: Vec<Desc>,
    /// Questions about other zones that threads did not answer out of the cache by themselves, by how they were
    /// answered.
    pub(crate) cache: IntCounterVec,
    /// Queries to upstreams, by upstream and what came of them.
    pub(crate) upstream_queries: IntCounterVec,
    /// Whether an upstream answers.
    pub(crate) upstream_up: IntGaugeVec,
    /// Handshakes of DNS over TLS, by how they ended.
    pub(crate) handshakes: IntCounterVec,
}

const QUERIES: (&str, &str) = (
    "heddle_dns_queries_total",
    "DNS queries answered, by the type asked for and the code of the answer",
);
const CACHE: (&str, &str) = (
    "heddle_dns_cache_total",
    "DNS questions about other zones: hit, miss, stale (an upstream was late or failed), prefetch",
);
const DURATION: (&str, &str) = (
    "heddle_dns_query_duration_seconds",
    "Time from reading a DNS query to having sent its answer, forwarding included",
);

impl Metrics {
    pub(crate) fn new() -> Self {
        let describe = |(name, help): (&str, &str), labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
                .expect("the names and labels are valid")
        };
        let shared = Arc::new(Counts::default());
        let cache = counter(CACHE.0, CACHE.1, &["result"]);
        Metrics {
            counts: Arc::new(Mutex::new(vec![shared.clone()])),
            shared,
            descriptions: vec![
                describe(QUERIES, &["type", "rcode"]),
                describe(DURATION, &[]),
            ],
            cache,
            upstream_queries: counter(
                "heddle_dns_upstream_queries_total",
                "DNS queries to upstreams, by what came of them",
                &["upstream", "result"],
            ),
            upstream_up: IntGaugeVec::new(
                Opts::new(
                    "heddle_dns_upstream_up",
                    "Whether a DNS upstream answers: 1 or 0",
                ),
                &["upstream"],
            )
            .expect("the names and labels are valid"),
            handshakes: counter(
                "heddle_dns_tls_handshakes_total",
                "TLS handshakes with clients of DNS over TLS",
                &["result"],
            ),
        }
    }

    /// Counters for one thread.
    pub(crate) fn counts(&self) -> Arc<Counts> {
        let counts = Arc::new(Counts::default());
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(counts.clone());
        counts
    }

    /// Counters for whoever counts seldom.
    pub(crate) fn shared(&self) -> &Counts {
        &self.shared
    }

    /// With what threads counted by themselves.
    fn cached(&self, sum: &Sum<'_>) -> MetricFamily {
        let all = counter(CACHE.0, CACHE.1, &["result"]);
        for result in ["hit", "stale", "miss", "prefetch"] {
            let count = self.cache.with_label_values(&[result]).get()
                + match result {
                    "hit" => sum(&|counts| &counts.hits),
                    "stale" => sum(&|counts| &counts.stale),
                    _ => 0,
                };
            all.with_label_values(&[result]).inc_by(count);
        }
        let mut families = all.collect();
        families.swap_remove(0)
    }

    /// Hands the families to a registry.
    ///
    /// # Errors
    /// [`prometheus::Error::AlreadyReg`] when another server's were handed to it before.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.clone()))
    }

    /// How many queries of a type got a code; both as in the labels.
    #[cfg(test)]
    pub(crate) fn queries(&self, kind: &str, code: &str) -> u64 {
        let families = self.collect();
        let metrics = families[0].get_metric().iter();
        let has = |metric: &&prometheus::proto::Metric| {
            let labels: Vec<&str> = metric.get_label().iter().map(|l| l.value()).collect();
            labels == [code, kind]
        };
        metrics
            .filter(has)
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum()
    }
}

fn counter(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("the names and labels are valid")
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        let mut all: Vec<&Desc> = self.descriptions.iter().collect();
        all.extend(self.cache.desc());
        all.extend(self.upstream_queries.desc());
        all.extend(self.upstream_up.desc());
        all.extend(self.handshakes.desc());
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.clone();
        let sum = |pick: &dyn Fn(&Counts) -> &AtomicU64| -> u64 {
            counts.iter().map(|c| pick(c).load(Ordering::Relaxed)).sum()
        };
        let mut families = vec![queries(&sum), durations(&sum)];
        families.push(self.cached(&sum));
        families.extend(self.upstream_queries.collect());
        families.extend(self.upstream_up.collect());
        families.extend(self.handshakes.collect());
        families
    }
}

type Sum<'a> = dyn Fn(&dyn Fn(&Counts) -> &AtomicU64) -> u64 + 'a;

fn queries(sum: &Sum<'_>) -> MetricFamily {
    let opts = Opts::new(QUERIES.0, QUERIES.1);
    let all = IntCounterVec::new(opts, &["type", "rcode"]).expect("the names and labels are valid");
    let kinds = TYPES.iter().map(|(_, label)| *label).chain([OTHER]);
    for (kind_index, kind) in kinds.enumerate() {
        let codes = CODES.iter().map(|(_, label)| *label).chain([OTHER]);
        for (code_index, code) in codes.enumerate() {
            let count = sum(&|counts| &counts.queries[kind_index][code_index]);
            if count > 0 {
                all.with_label_values(&[kind, code]).inc_by(count);
            }
        }
    }
    let mut families = all.collect();
    families.swap_remove(0)
}

fn durations(sum: &Sum<'_>) -> MetricFamily {
    use prometheus::proto;
    const MICROS: f64 = 1e6;
    const NANOS: f64 = 1e9;
    let mut histogram = proto::Histogram::default();
    let mut buckets = Vec::with_capacity(BUCKETS.len());
    let mut count = 0;
    for (index, bound) in BUCKETS.iter().enumerate() {
        count += sum(&|counts| &counts.durations[index]);
        let mut bucket = proto::Bucket::default();
        bucket.set_cumulative_count(count);
        bucket.set_upper_bound(*bound as f64 / MICROS);
        buckets.push(bucket);
    }
    count += sum(&|counts| &counts.durations[BUCKETS.len()]);
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum(&|counts| &counts.nanoseconds) as f64 / NANOS);
    let mut metric = proto::Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name(DURATION.0.to_owned());
    family.set_help(DURATION.1.to_owned());
    family.set_field_type(proto::MetricType::HISTOGRAM);
    family.set_metric(vec![metric]);
    family
}
