//! Metrics: counted per worker, summed at the scrape.

mod endpoints;
mod stats;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::ServiceKey;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

pub(crate) use endpoints::{Counted, Endpoints, Open};
pub(crate) use stats::{
    Active, HandshakeResult, PortStats, RepairStats, RetryResult, Spoken, WorkerStats,
};
use stats::{CODES, HANDSHAKE_RESULTS, RETRY_RESULTS, SPOKEN};

pub use stats::BOUNDS;
pub use traffic::{Totals, Traffic};

use crate::tls;

const REQUESTS: Family = Family(
    "heddle_requests_total",
    "HTTP requests by what the client spoke and the status it got; 499: it went away before.",
    &["namespace", "service", "protocol", "code"],
);
const DURATION: Family = Family(
    "heddle_request_duration_seconds",
    "From a request's head to the end of its response's body.",
    &["namespace", "service"],
);
const ACTIVE: Family = Family(
    "heddle_connections_active",
    "Client connections that are open.",
    &["namespace", "service"],
);
const CONNECTIONS: Family = Family(
    "heddle_connections_total",
    "Client connections accepted.",
    &["namespace", "service"],
);
const BYTES: Family = Family(
    "heddle_bytes_total",
    "Bytes received from clients and sent to them.",
    &["namespace", "service", "direction"],
);
const RETRIES: Family = Family(
    "heddle_retries_total",
    "Requests sent again, and those that were not because the budget was used up.",
    &["namespace", "service", "result"],
);
const CONNECT_FAILURES: Family = Family(
    "heddle_upstream_connect_failures_total",
    "Connections to endpoints that could not be made.",
    &["namespace", "service"],
);
const HOLD_OFFS: Family = Family(
    "heddle_endpoint_hold_offs_total",
    "Times that an endpoint left packets unanswered and is passed over for 5 s while there is another.",
    &["namespace", "service"],
);
const UNAVAILABLE: Family = Family(
    "heddle_unavailable_total",
    "Requests and connections for which no endpoint was eligible.",
    &["namespace", "service"],
);
const HANDSHAKES: Family = Family(
    "heddle_tls_handshakes_total",
    "TLS handshakes with clients.",
    &["namespace", "service", "result"],
);
const CERTIFICATE_EXPIRY: Family = Family(
    "heddle_certificate_expiry_timestamp_seconds",
    "When the first of the certificates that clients are shown expires.",
    &["namespace", "service"],
);
const ACCEPT_ERRORS: Family = Family(
    "heddle_accept_errors_total",
    "Connections that could not be accepted, for want of descriptors or memory.",
    &[],
);
const UNKNOWN: Family = Family(
    "heddle_unknown_destinations_total",
    "Redirected connections to a virtual IP and port that no service has.",
    &[],
);
const REPAIRS: Family = Family(
    "heddle_redirect_repairs_total",
    "Times that the nftables table or a route of virtual IPs was put back after others changed or deleted it.",
    &["part"],
);
const FAMILIES: [Family; 14] = [
    REQUESTS,
    DURATION,
    ACTIVE,
    CONNECTIONS,
    BYTES,
    RETRIES,
    CONNECT_FAILURES,
    HOLD_OFFS,
    UNAVAILABLE,
    HANDSHAKES,
    CERTIFICATE_EXPIRY,
    ACCEPT_ERRORS,
    UNKNOWN,
    REPAIRS,
];

/// Name, help and labels.
struct Family(&'static str, &'static str, &'static [&'static str]);

/// The proxy's metrics as a Prometheus collector. A clone shares what it shows.
///
/// A scrape reads the workers' counters without a lock and costs O(services that had traffic); series of deleted
/// services are gone.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Arc<[Arc<WorkerStats>]>,
    repairs: Arc<RepairStats>,
    tls: Arc<tls::Table>,
    descs: Arc<[Desc]>,
}

impl Metrics {
    pub(crate) fn new(
        workers: Vec<Arc<WorkerStats>>,
        repairs: Arc<RepairStats>,
        tls: Arc<tls::Table>,
    ) -> Self {
        let desc = |Family(name, help, labels): &Family| {
            let labels = labels.iter().map(|l| (*l).to_owned()).collect();
            Desc::new(
                (*name).to_owned(),
                (*help).to_owned(),
                labels,
                HashMap::new(),
            )
            .expect("the names of metrics and labels are valid ones")
        };
        Metrics {
            workers: workers.into(),
            repairs,
            tls,
            descs: FAMILIES.iter().map(desc).collect(),
        }
    }
}

/// What all workers counted of a service's ports.
#[derive(Default)]
struct Sum {
    requests: BTreeMap<(usize, usize), u64>,
    http: bool,
    buckets: [u64; BOUNDS.len() + 1],
    nanos: u64,
    active: u64,
    connections: u64,
    received: u64,
    sent: u64,
    retries: [u64; RETRY_RESULTS.len()],
    handshakes: [u64; HANDSHAKE_RESULTS.len()],
    connect_failures: u64,
    hold_offs: u64,
    unavailable: u64,
}

impl Sum {
    fn add(&mut self, port: &PortStats) {
        self.active += port.active.get();
        self.connections += port.connections.get();
        self.received += port.received.get();
        self.sent += port.sent.get();
        self.connect_failures += port.connect_failures.get();
        self.hold_offs += port.hold_offs.get();
        self.unavailable += port.unavailable.get();
        for (sum, count) in self.retries.iter_mut().zip(&port.retries) {
            *sum += count.get();
        }
        for (sum, count) in self.handshakes.iter_mut().zip(&port.handshakes) {
            *sum += count.get();
        }
        if let Some(http) = &port.http {
            self.http = true;
            for (spoken, place, count) in http.requests() {
                *self.requests.entry((spoken, place)).or_default() += count;
            }
            let (buckets, nanos) = http.durations();
            for (sum, count) in self.buckets.iter_mut().zip(buckets) {
                *sum += count;
            }
            self.nanos += nanos;
        }
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let maps: Vec<_> = self.workers.iter().map(|w| w.ports.load_full()).collect();
        let mut sums: BTreeMap<&ServiceKey, Sum> = BTreeMap::new();
        for port in maps.iter().flat_map(|map| map.values()) {
            sums.entry(&port.service).or_default().add(port);
        }
        let each = |f: &dyn Fn(&mut Vec<Metric>, &ServiceKey, &Sum)| {
            let mut metrics = Vec::with_capacity(sums.len());
            for (key, sum) in &sums {
                f(&mut metrics, key, sum);
            }
            metrics
        };
        let simple = |family: Family, value: &dyn Fn(&Sum) -> u64| {
            let labels = family.2;
            let metrics = each(&|out, key, sum| out.push(counter(labels, key, &[], value(sum))));
            self::family(family, MetricType::COUNTER, metrics)
        };
        let total = |value: &dyn Fn(&WorkerStats) -> u64| {
            let sum = self.workers.iter().map(|w| value(w)).sum();
            vec![bare_counter(sum)]
        };
        let requests = each(&|out, key, sum| {
            for ((spoken, place), count) in &sum.requests {
                let code = match CODES[*place] {
                    0 => "other".to_owned(),
                    code => code.to_string(),
                };
                out.push(counter(REQUESTS.2, key, &[SPOKEN[*spoken], &code], *count));
            }
        });
        let durations = each(&|out, key, sum| {
            if sum.http {
                out.push(histogram(key, sum));
            }
        });
        let active = each(&|out, key, sum| out.push(gauge(ACTIVE.2, key, sum.active as f64)));
        let bytes = each(&|out, key, sum| {
            out.push(counter(BYTES.2, key, &["received"], sum.received));
            out.push(counter(BYTES.2, key, &["sent"], sum.sent));
        });
        let retries = each(&|out, key, sum| {
            for (result, count) in RETRY_RESULTS.iter().zip(sum.retries) {
                out.push(counter(RETRIES.2, key, &[result], count));
            }
        });
        let handshakes = each(&|out, key, sum| {
            if sum.handshakes.iter().all(|count| *count == 0) {
                return;
            }
            for (result, count) in HANDSHAKE_RESULTS.iter().zip(sum.handshakes) {
                out.push(counter(HANDSHAKES.2, key, &[result], count));
            }
        });
        let part = |name: &str, count: &AtomicU64| {
            let mut metric = bare_counter(count.load(Ordering::Relaxed));
            metric.set_label(vec![label(REPAIRS.2[0], name)]);
            metric
        };
        let repairs = vec![
            part("table", &self.repairs.tables),
            part("route", &self.repairs.routes),
        ];
        let families = [
            family(REQUESTS, MetricType::COUNTER, requests),
            family(DURATION, MetricType::HISTOGRAM, durations),
            family(ACTIVE, MetricType::GAUGE, active),
            simple(CONNECTIONS, &|sum| sum.connections),
            family(BYTES, MetricType::COUNTER, bytes),
            family(RETRIES, MetricType::COUNTER, retries),
            simple(CONNECT_FAILURES, &|sum| sum.connect_failures),
            simple(HOLD_OFFS, &|sum| sum.hold_offs),
            simple(UNAVAILABLE, &|sum| sum.unavailable),
            family(HANDSHAKES, MetricType::COUNTER, handshakes),
            family(CERTIFICATE_EXPIRY, MetricType::GAUGE, expiries(&self.tls)),
            family(
                ACCEPT_ERRORS,
                MetricType::COUNTER,
                total(&|w| w.accept_errors.get()),
            ),
            family(
                UNKNOWN,
                MetricType::COUNTER,
                total(&|w| w.unknown_destinations.get()),
            ),
            family(REPAIRS, MetricType::COUNTER, repairs),
        ];
        // The text format knows no family without a metric.
        families
            .into_iter()
            .filter(|f| !f.get_metric().is_empty())
            .collect()
    }
}

fn family(Family(name, help, _): Family, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labels(names: &[&str], key: &ServiceKey, more: &[&str]) -> Vec<LabelPair> {
    let values = [key.namespace.as_str(), key.name.as_str()];
    let values = values.iter().chain(more);
    let pair = |(name, value): (&&str, &&str)| label(name, value);
    names.iter().zip(values).map(pair).collect()
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// When the first certificate of each service expires.
fn expiries(table: &tls::Table) -> Vec<Metric> {
    let ports = table.ports();
    let mut first: BTreeMap<&ServiceKey, i64> = BTreeMap::new();
    for port in ports.values() {
        if let Some(not_after) = port.not_after {
            let of_service = first.entry(&port.service).or_insert(not_after);
            *of_service = not_after.min(*of_service);
        }
    }
    let metric = |(key, time): (&ServiceKey, i64)| gauge(CERTIFICATE_EXPIRY.2, key, time as f64);
    first.into_iter().map(metric).collect()
}

fn gauge(names: &[&str], key: &ServiceKey, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels(names, key, &[]));
    metric.set_gauge(gauge);
    metric
}

fn counter(names: &[&str], key: &ServiceKey, more: &[&str], value: u64) -> Metric {
    let mut metric = bare_counter(value);
    metric.set_label(labels(names, key, more));
    metric
}

fn bare_counter(value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    metric
}

fn histogram(key: &ServiceKey, sum: &Sum) -> Metric {
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(BOUNDS.len());
    for (bound, count) in BOUNDS.iter().zip(sum.buckets) {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        buckets.push(bucket);
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(sum.buckets.iter().sum());
    histogram.set_sample_sum(sum.nanos as f64 / 1e9);
    let mut metric = Metric::from_label(labels(DURATION.2, key, &[]));
    metric.set_histogram(histogram);
    metric
}
