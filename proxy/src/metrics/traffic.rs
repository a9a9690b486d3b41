//! What was counted, service by service and endpoint by endpoint, as numbers: for whoever shows rates.

use std::collections::BTreeMap;

use model::{EndpointId, ServiceKey};

use super::stats::{BOUNDS, CODES, Count, PortStats};
use super::{Metrics, endpoints::EndpointStats};

/// What all workers counted of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// Whose.
    pub service: ServiceKey,
    /// As its clients see it.
    pub totals: Totals,
    /// Those of its endpoints that this node has given something to do and that are still there, ascending by id.
    pub endpoints: Vec<(EndpointId, Totals)>,
}

/// Counts that only rise, but for `active`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// HTTP requests that were answered; at an endpoint also those that it failed to answer, of which one request may
    /// cause several.
    pub requests: u64,
    /// Those of them that were answered with 5xx or, at an endpoint, not at all; at an endpoint of a `tcp` port
    /// connections that could not be made.
    pub errors: u64,
    /// Connections that are open: of clients; at an endpoint, to it.
    pub active: u64,
    /// Connections accepted; at an endpoint, made to it.
    pub connections: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Requests and connections for which nobody was eligible; 0 at an endpoint.
    pub unavailable: u64,
    /// Requests by duration: how many took at most [`DURATION_BOUNDS`](crate::DURATION_BOUNDS) and more than the bound
    /// before; the last, more than all.
    pub durations: [u64; BOUNDS.len() + 1],
}

impl Totals {
    fn add_durations<'a>(&mut self, buckets: impl IntoIterator<Item = &'a Count>) {
        for (sum, count) in self.durations.iter_mut().zip(buckets) {
            *sum += count.get();
        }
    }

    fn add_port(&mut self, port: &PortStats) {
        self.active += port.active.get();
        self.connections += port.connections.get();
        self.received += port.received.get();
        self.sent += port.sent.get();
        self.unavailable += port.unavailable.get();
        let Some(http) = &port.http else { return };
        for (_, place, count) in http.requests() {
            self.requests += count;
            if CODES[place] >= 500 {
                self.errors += count;
            }
        }
        self.add_durations(http.buckets());
    }

    fn add_endpoint(&mut self, endpoint: &EndpointStats) {
        self.requests += endpoint.requests.get();
        self.errors += endpoint.errors.get();
        self.active += endpoint.active.get();
        self.connections += endpoint.connections.get();
        self.received += endpoint.received.get();
        self.sent += endpoint.sent.get();
        self.add_durations(&endpoint.buckets);
    }
}

impl Metrics {
    /// The counts of services that had traffic, ascending by key. Reads what a scrape reads, and makes no text of it.
    pub fn traffic(&self) -> Vec<Traffic> {
        let mut services: BTreeMap<ServiceKey, (Totals, BTreeMap<EndpointId, Totals>)> =
            BTreeMap::new();
        for worker in self.workers.iter() {
            let ports = worker.ports.load_full();
            for port in ports.values() {
                let of_service = services.entry(port.service.clone());
                let (totals, endpoints) = of_service.or_default();
                totals.add_port(port);
                for endpoint in port.endpoints.load_full().values() {
                    let totals = endpoints.entry(endpoint.id.clone()).or_default();
                    totals.add_endpoint(endpoint);
                }
            }
        }
        let one = |(service, (totals, endpoints)): (_, (_, BTreeMap<_, _>))| Traffic {
            service,
            totals,
            endpoints: endpoints.into_iter().collect(),
        };
        services.into_iter().map(one).collect()
    }
}
