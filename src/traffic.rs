//! What flows through this node, service by service: what the proxy has counted since it started, and what two counts
//! make of the time between them.

use std::collections::BTreeMap;

use model::{ServiceKey, Timestamp};
use prometheus::core::Collector as _;
use prometheus::proto::{Metric, MetricFamily};
use serde::{Deserialize, Serialize};

/// The counts of all services that had traffic.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// When they were read.
    pub at: Timestamp,
    /// By service.
    pub services: Vec<Counted>,
}

/// What was counted of one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counted {
    /// `namespace/name`.
    pub service: ServiceKey,
    /// Since the node started.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Counts that only rise, but for `active`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// HTTP requests that were answered.
    pub requests: u64,
    /// Those of them that were answered with 5xx, by the service or in its place.
    pub errors: u64,
    /// Client connections that are open.
    pub active: u64,
    /// Client connections accepted.
    pub connections: u64,
    /// Bytes from clients and to them.
    pub received: u64,
    /// To clients.
    pub sent: u64,
    /// Requests and connections for which nobody was eligible.
    pub unavailable: u64,
    /// Durations of requests: upper bound in seconds, and how many took at most that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub durations: Vec<(f64, u64)>,
    /// How many durations there are in all, those beyond the last bound included.
    pub timed: u64,
}

/// What a time between two counts was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Requests a second.
    pub requests: f64,
    /// Part of the requests that was answered with 5xx, from 0 to 1.
    pub errors: f64,
    /// Seconds that half of the requests took at most; none without requests.
    pub p50: Option<f64>,
    /// Seconds that 99 of 100 requests took at most.
    pub p99: Option<f64>,
    /// Client connections accepted a second.
    pub connections: f64,
    /// Client connections open at its end.
    pub active: u64,
    /// Bytes a second, both ways.
    pub bytes: f64,
}

/// What a proxy has counted until now.
pub fn of(proxy: &proxy::Proxy) -> Traffic {
    Traffic {
        at: Timestamp::now(),
        services: read(&proxy.metrics().collect()),
    }
}

fn read(families: &[MetricFamily]) -> Vec<Counted> {
    let mut all: BTreeMap<ServiceKey, Totals> = BTreeMap::new();
    for family in families {
        for metric in family.get_metric() {
            let label = |name: &str| {
                let pair = metric.get_label().iter().find(|l| l.name() == name);
                pair.map_or("", |l| l.value())
            };
            let key = format!("{}/{}", label("namespace"), label("service"));
            let Ok(key) = key.parse() else { continue };
            let totals = all.entry(key).or_default();
            let count = metric.get_counter().get_value() as u64;
            match (family.name(), label("direction")) {
                ("heddle_requests_total", _) => {
                    totals.requests += count;
                    if label("code").starts_with('5') {
                        totals.errors += count;
                    }
                }
                ("heddle_connections_active", _) => {
                    totals.active = metric.get_gauge().get_value() as u64;
                }
                ("heddle_connections_total", _) => totals.connections = count,
                ("heddle_bytes_total", "received") => totals.received = count,
                ("heddle_bytes_total", _) => totals.sent = count,
                ("heddle_unavailable_total", _) => totals.unavailable = count,
                ("heddle_request_duration_seconds", _) => durations(totals, metric),
                _ => {}
            }
        }
    }
    all.into_iter()
        .map(|(service, totals)| Counted { service, totals })
        .collect()
}

fn durations(totals: &mut Totals, metric: &Metric) {
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket().iter();
    totals.durations = buckets
        .map(|b| (b.upper_bound(), b.cumulative_count()))
        .collect();
    totals.timed = histogram.get_sample_count();
}

impl Totals {
    /// What the time since `before` was like. A node that restarted meanwhile has counted from 0.
    pub fn since(&self, before: &Totals, seconds: f64) -> Rates {
        let restarted = self.requests < before.requests || self.connections < before.connections;
        let none = Totals::default();
        let before = if restarted { &none } else { before };
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let requests = self.requests.saturating_sub(before.requests);
        let errors = self.errors.saturating_sub(before.errors);
        Rates {
            requests: requests as f64 / seconds,
            errors: if requests == 0 {
                0.0
            } else {
                errors as f64 / requests as f64
            },
            p50: self.quantile(before, 0.5),
            p99: self.quantile(before, 0.99),
            connections: rate(self.connections, before.connections),
            active: self.active,
            bytes: rate(self.received + self.sent, before.received + before.sent),
        }
    }

    /// As Prometheus' `histogram_quantile` has it: linear within a bucket, and the last bound for what lies beyond it.
    fn quantile(&self, before: &Totals, q: f64) -> Option<f64> {
        let all = self.timed.saturating_sub(before.timed);
        if all == 0 {
            return None;
        }
        let rank = q * all as f64;
        let (mut lower, mut below) = (0.0, 0.0);
        for (index, (bound, count)) in self.durations.iter().enumerate() {
            let then = before.durations.get(index).map_or(0, |(_, then)| *then);
            let here = count.saturating_sub(then) as f64;
            if here >= rank {
                let width = here - below;
                let part = if width > 0.0 {
                    (rank - below) / width
                } else {
                    1.0
                };
                return Some(lower + (bound - lower) * part);
            }
            (lower, below) = (*bound, here);
        }
        Some(lower)
    }
}

/// Two counts, and what the time between them was like.
#[derive(Debug, Default)]
pub struct Meter {
    before: BTreeMap<ServiceKey, Totals>,
    at: Option<Timestamp>,
    /// By service; empty until there were two counts.
    pub rates: BTreeMap<ServiceKey, Rates>,
}

impl Meter {
    /// Takes a further count.
    pub fn take(&mut self, traffic: Traffic) {
        let now: BTreeMap<ServiceKey, Totals> = traffic
            .services
            .into_iter()
            .map(|c| (c.service, c.totals))
            .collect();
        if let Some(at) = self.at {
            let seconds = at.age(traffic.at).as_secs_f64().max(0.001);
            let none = Totals::default();
            let rates = now.iter().map(|(key, totals)| {
                let before = self.before.get(key).unwrap_or(&none);
                (key.clone(), totals.since(before, seconds))
            });
            self.rates = rates.collect();
        }
        self.before = now;
        self.at = Some(traffic.at);
    }

    /// When the last count was taken.
    pub fn at(&self) -> Option<Timestamp> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64, errors: u64, durations: &[(f64, u64)], timed: u64) -> Totals {
        Totals {
            requests,
            errors,
            connections: requests,
            durations: durations.to_vec(),
            timed,
            ..Totals::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_counts() {
        let before = totals(100, 10, &[(0.001, 50), (0.01, 90)], 100);
        let now = totals(300, 60, &[(0.001, 150), (0.01, 290)], 300);
        let rates = now.since(&before, 2.0);
        assert_eq!(rates.requests, 100.0);
        assert_eq!(rates.errors, 0.25);
        assert_eq!(rates.connections, 100.0);
        assert_eq!(rates.p50, Some(0.001), "100 of 200 took at most that");
        let p99 = rates.p99.unwrap();
        assert!((p99 - (0.001 + 0.009 * 0.98)).abs() < 1e-9, "{p99}");
    }

    #[test]
    fn without_requests_there_is_no_latency_and_beyond_the_last_bound_it_is_the_bound() {
        let none = Totals::default();
        assert_eq!(none.since(&none, 1.0).p50, None);
        let slow = totals(4, 0, &[(1.0, 0), (10.0, 1)], 4);
        assert_eq!(slow.since(&none, 1.0).p99, Some(10.0));
    }

    #[test]
    fn a_restarted_node_has_counted_from_zero() {
        let before = totals(1000, 0, &[], 0);
        let now = totals(5, 0, &[], 0);
        assert_eq!(now.since(&before, 1.0).requests, 5.0);
    }

    #[test]
    fn the_proxys_families_are_read() {
        use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
        let requests = IntCounterVec::new(
            Opts::new("heddle_requests_total", "x"),
            &["namespace", "service", "protocol", "code"],
        )
        .unwrap();
        let add = |code: &str, n| {
            requests
                .with_label_values(&["shop", "web", "http1", code])
                .inc_by(n);
        };
        add("200", 7);
        add("503", 2);
        let durations = HistogramVec::new(
            HistogramOpts::new("heddle_request_duration_seconds", "x").buckets(vec![1.0]),
            &["namespace", "service"],
        )
        .unwrap();
        durations.with_label_values(&["shop", "web"]).observe(0.5);
        let mut families = requests.collect();
        families.extend(durations.collect());
        let all = read(&families);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].service.to_string(), "shop/web");
        assert_eq!(all[0].totals.requests, 9);
        assert_eq!(all[0].totals.errors, 2);
        assert_eq!(all[0].totals.durations[0], (1.0, 1));
        assert_eq!(all[0].totals.timed, 1);
    }
}
