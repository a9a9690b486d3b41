//! What flows through this node, service by service and endpoint by endpoint: what the proxy has counted since it
//! started, and what two counts make of the time between them.

use std::collections::BTreeMap;

use model::{ServiceKey, Timestamp};
use serde::{Deserialize, Serialize};

/// The counts of all services that had traffic.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// When they were read.
    pub at: Timestamp,
    /// Upper bounds of the durations, in seconds.
    pub bounds: Vec<f64>,
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
    /// Of those of its endpoints that had traffic from this node.
    pub endpoints: Vec<CountedEndpoint>,
}

/// What was counted of one endpoint, for as long as it is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CountedEndpoint {
    /// Workload, port and generation.
    pub id: String,
    /// Since it was first given something to do.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Counts that only rise, but for `active`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// HTTP requests that were answered; at an endpoint also those that it failed to answer.
    pub requests: u64,
    /// Those of them that were answered with 5xx, by the service or in its place; at an endpoint with 5xx or not at all,
    /// and connections of `tcp` ports that could not be made to it.
    pub errors: u64,
    /// Client connections that are open; at an endpoint, connections to it.
    pub active: u64,
    /// Client connections accepted; at an endpoint, connections made to it.
    pub connections: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Requests and connections for which nobody was eligible.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unavailable: u64,
    /// Requests by duration: how many took at most the bound of the same place, and more than the one before. One place
    /// more than there are bounds, for those that took longer. None where there were no requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub durations: Vec<u64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a time between two counts was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Requests a second.
    pub requests: f64,
    /// Part of the requests that was answered with 5xx or not at all, from 0 to 1; where there were none, of the
    /// connections that could not be made.
    pub errors: f64,
    /// Seconds that half of the requests took at most; none without requests.
    pub p50: Option<f64>,
    /// Seconds that 99 of 100 requests took at most.
    pub p99: Option<f64>,
    /// Connections a second.
    pub connections: f64,
    /// Connections open at its end.
    pub active: u64,
    /// Bytes a second, both ways.
    pub bytes: f64,
}

/// What a proxy has counted until now.
pub fn of(proxy: &proxy::Proxy) -> Traffic {
    let endpoint = |(id, totals): (model::EndpointId, proxy::Totals)| CountedEndpoint {
        id: id.to_string(),
        totals: totals.into(),
    };
    let one = |traffic: proxy::Traffic| Counted {
        service: traffic.service,
        totals: traffic.totals.into(),
        endpoints: traffic.endpoints.into_iter().map(endpoint).collect(),
    };
    Traffic {
        at: Timestamp::now(),
        bounds: proxy::DURATION_BOUNDS.to_vec(),
        services: proxy.metrics().traffic().into_iter().map(one).collect(),
    }
}

impl From<proxy::Totals> for Totals {
    fn from(totals: proxy::Totals) -> Self {
        let timed = totals.durations.iter().any(|count| *count > 0);
        Totals {
            requests: totals.requests,
            errors: totals.errors,
            active: totals.active,
            connections: totals.connections,
            received: totals.received,
            sent: totals.sent,
            unavailable: totals.unavailable,
            durations: if timed {
                totals.durations.to_vec()
            } else {
                Vec::new()
            },
        }
    }
}

impl Totals {
    /// What the time since `before` was like. What has restarted meanwhile has counted from 0.
    pub fn since(&self, before: &Totals, seconds: f64, bounds: &[f64]) -> Rates {
        let restarted = self.requests < before.requests || self.connections < before.connections;
        let none = Totals::default();
        let before = if restarted { &none } else { before };
        let more = |of: fn(&Totals) -> u64| of(self).saturating_sub(of(before)) as f64;
        let (requests, errors) = (more(|t| t.requests), more(|t| t.errors));
        let connections = more(|t| t.connections);
        let tries = match requests {
            0.0 => connections + errors,
            requests => requests,
        };
        let durations: Vec<u64> = self
            .durations
            .iter()
            .enumerate()
            .map(|(at, now)| now.saturating_sub(before.durations.get(at).copied().unwrap_or(0)))
            .collect();
        Rates {
            requests: requests / seconds,
            errors: if tries > 0.0 { errors / tries } else { 0.0 },
            p50: quantile(&durations, bounds, 0.5),
            p99: quantile(&durations, bounds, 0.99),
            connections: connections / seconds,
            active: self.active,
            bytes: more(|t| t.received + t.sent) / seconds,
        }
    }
}

/// As Prometheus' `histogram_quantile` has it: linear within a bucket, and the last bound for what lies beyond it.
fn quantile(durations: &[u64], bounds: &[f64], q: f64) -> Option<f64> {
    let all: u64 = durations.iter().sum();
    if all == 0 {
        return None;
    }
    let rank = q * all as f64;
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in bounds.iter().zip(durations) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return Some(lower + (bound - lower) * (rank - below) / count);
        }
        (lower, below) = (*bound, below + count);
    }
    Some(lower)
}

/// What the time between two counts was like for a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// The service as its clients see it.
    pub rates: Rates,
    /// Its endpoints, by id.
    pub endpoints: BTreeMap<String, Rates>,
}

/// A service's counts, and those of its endpoints by id.
type Counts = (Totals, BTreeMap<String, Totals>);

/// Two counts, and what the time between them was like.
#[derive(Debug, Default)]
pub struct Meter {
    before: BTreeMap<ServiceKey, Counts>,
    at: Option<Timestamp>,
    /// By service; empty until there were two counts.
    pub flows: BTreeMap<ServiceKey, Flow>,
}

impl Meter {
    /// Takes a further count.
    pub fn take(&mut self, traffic: Traffic) {
        let bounds = &traffic.bounds;
        let now: BTreeMap<ServiceKey, Counts> = traffic
            .services
            .into_iter()
            .map(|c| {
                let endpoints = c.endpoints.into_iter().map(|e| (e.id, e.totals)).collect();
                (c.service, (c.totals, endpoints))
            })
            .collect();
        if let Some(at) = self.at {
            let seconds = at.age(traffic.at).as_secs_f64().max(0.001);
            let nothing = (Totals::default(), BTreeMap::new());
            let flow = |(key, (totals, endpoints)): (&ServiceKey, &Counts)| {
                let (before, of_endpoints) = self.before.get(key).unwrap_or(&nothing);
                let endpoint = |(id, totals): (&String, &Totals)| {
                    let before = of_endpoints.get(id).unwrap_or(&nothing.0);
                    (id.clone(), totals.since(before, seconds, bounds))
                };
                let flow = Flow {
                    rates: totals.since(before, seconds, bounds),
                    endpoints: endpoints.iter().map(endpoint).collect(),
                };
                (key.clone(), flow)
            };
            self.flows = now.iter().map(flow).collect();
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

    const BOUNDS: [f64; 2] = [0.001, 0.01];

    fn totals(requests: u64, errors: u64, durations: &[u64]) -> Totals {
        Totals {
            requests,
            errors,
            connections: requests,
            durations: durations.to_vec(),
            ..Totals::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_counts() {
        let before = totals(100, 10, &[50, 40, 10]);
        let now = totals(300, 60, &[150, 140, 10]);
        let rates = now.since(&before, 2.0, &BOUNDS);
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
        assert_eq!(none.since(&none, 1.0, &BOUNDS).p50, None);
        let slow = totals(4, 0, &[0, 1, 3]);
        assert_eq!(slow.since(&none, 1.0, &BOUNDS).p99, Some(0.01));
    }

    #[test]
    fn a_restarted_node_has_counted_from_zero() {
        let before = totals(1000, 0, &[]);
        let now = totals(5, 0, &[]);
        assert_eq!(now.since(&before, 1.0, &BOUNDS).requests, 5.0);
    }

    #[test]
    fn without_requests_errors_are_connections_that_could_not_be_made() {
        let tcp = Totals {
            connections: 3,
            errors: 1,
            ..Totals::default()
        };
        assert_eq!(tcp.since(&Totals::default(), 1.0, &BOUNDS).errors, 0.25);
    }

    #[test]
    fn services_and_their_endpoints_have_rates_once_there_were_two_counts() {
        let counted = |at: i64, requests: u64, of_a: u64| Traffic {
            at: Timestamp(at),
            bounds: BOUNDS.to_vec(),
            services: vec![Counted {
                service: "shop/web".parse().unwrap(),
                totals: totals(requests, 0, &[requests, 0, 0]),
                endpoints: vec![CountedEndpoint {
                    id: "a:http@1".to_owned(),
                    totals: totals(of_a, 0, &[of_a, 0, 0]),
                }],
            }],
        };
        let mut meter = Meter::default();
        meter.take(counted(0, 10, 5));
        assert!(meter.flows.is_empty());
        let text = serde_json::to_string(&counted(2000, 30, 9)).unwrap();
        meter.take(serde_json::from_str(&text).unwrap());
        let flow = &meter.flows[&"shop/web".parse::<ServiceKey>().unwrap()];
        assert_eq!(flow.rates.requests, 10.0);
        assert_eq!(flow.endpoints["a:http@1"].requests, 2.0);
        assert_eq!(flow.endpoints["a:http@1"].p50, Some(0.0005));
    }
}
