//! `/metrics`: what the rooms count, and what the snapshot and the registry say.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::endpoint::State as EndpointState;
use model::membership::NodeState;
use model::snapshot::{Freshness, Snapshot};
use model::{Name, ServiceKey, Timestamp};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::{ApiError, Shared};
use crate::writer::Feed;

pub(super) async fn metrics(State(context): Shared) -> Response {
    let families = context.metrics.gather();
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&families, &mut text) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            text,
        )
            .into_response(),
        Err(error) => {
            let what = format!("metrics can't be written: {error}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what).into_response()
        }
    }
}

/// Metrics that are read off the snapshot and the registry's status at each scrape. Nothing of them is kept between
/// scrapes: with 10,000 services that would be 10 MiB.
pub struct Core {
    feed: Feed,
    descs: Vec<Desc>,
}

const ENDPOINTS: (&str, &str) = (
    "heddle_endpoints",
    "Endpoints by state, as this node sees them; states that a service has none in are left out, but for ready.",
);

const NODES: (&str, &str) = ("heddle_nodes", "Nodes by what is made of them.");

fn nodes(snapshot: &Snapshot) -> Vec<Metric> {
    let count = |state: NodeState| {
        let known = snapshot.nodes.keys();
        known.filter(|n| snapshot.node_state(n) == state).count()
    };
    NodeState::ALL
        .map(|state| metric(&[("state", state.as_str())], count(state) as f64))
        .to_vec()
}

fn orphaned_endpoints(snapshot: &Snapshot) -> usize {
    let gone = |node: &Name| snapshot.node_state(node) == NodeState::Orphaned;
    snapshot
        .services
        .values()
        .flat_map(|view| &view.ports)
        .flat_map(|port| &port.endpoints)
        .filter(|endpoint| endpoint.node.as_ref().is_some_and(gone))
        .count()
}

impl Core {
    /// Metrics of this node's feed.
    pub fn new(feed: Feed) -> prometheus::Result<Self> {
        // What is collected is described by its families; one name claims the collector's place in the registry.
        let desc = Desc::new(
            ENDPOINTS.0.to_owned(),
            ENDPOINTS.1.to_owned(),
            ["namespace", "service", "state"]
                .map(str::to_owned)
                .to_vec(),
            std::collections::HashMap::new(),
        )?;
        Ok(Core {
            feed,
            descs: vec![desc],
        })
    }
}

fn metric(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    let mut metric = Metric::from_gauge(gauge);
    metric.set_label(pairs.collect());
    metric
}

fn family((name, help): (&str, &str), metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::GAUGE);
    family.set_metric(metrics);
    family
}

impl Collector for Core {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.feed.snapshot.load_full();
        let mut endpoints = Vec::new();
        let orphaned = orphaned_endpoints(&snapshot);
        for view in snapshot.sorted() {
            let ServiceKey { namespace, name } = &view.key;
            for state in EndpointState::ALL {
                let all = view.ports.iter().flat_map(|p| &p.endpoints);
                let count = all.filter(|e| e.state == state).count();
                if count > 0 || state == EndpointState::Ready {
                    let labels = [
                        ("namespace", namespace.as_str()),
                        ("service", name.as_str()),
                        ("state", state.as_str()),
                    ];
                    endpoints.push(metric(&labels, count as f64));
                }
            }
        }
        let status = self.feed.registry.borrow().clone();
        let fresh = snapshot.freshness == Freshness::Fresh;
        let up = fresh && status.lost.is_none();
        let age = if fresh {
            0.0
        } else {
            let seen = Timestamp(self.feed.seen.load(Ordering::Relaxed));
            seen.age(Timestamp::now()).as_secs_f64()
        };
        let one =
            |name: &str, help: &str, value: f64| family((name, help), vec![metric(&[], value)]);
        let build = ("heddle_build_info", "1, with the version as a label.");
        vec![
            family(ENDPOINTS, endpoints),
            one(
                "heddle_registry_revision",
                "The registry's revision of the snapshot.",
                snapshot.revision as f64,
            ),
            one(
                "heddle_registry_up",
                "1 while the registry is followed, else 0.",
                f64::from(u8::from(up)),
            ),
            one(
                "heddle_registry_bad_records",
                "Records that this node can't read.",
                status.bad.len() as f64,
            ),
            one(
                "heddle_snapshot_age_seconds",
                "Seconds since the snapshot was last known to be the registry's present; 0 while it is.",
                age,
            ),
            family(
                build,
                vec![metric(&[("version", env!("CARGO_PKG_VERSION"))], 1.0)],
            ),
            family(NODES, nodes(&snapshot)),
            one(
                "heddle_mass_expiry_held",
                "1 while many nodes that were lost at once are held, else 0.",
                f64::from(u8::from(snapshot.guard.is_some())),
            ),
            one(
                "heddle_orphaned_endpoints",
                "Endpoints of nodes that are gone, which this node checks for itself where it can.",
                orphaned as f64,
            ),
            one(
                "heddle_services",
                "Services in the snapshot.",
                snapshot.services.size() as f64,
            ),
        ]
    }
}
