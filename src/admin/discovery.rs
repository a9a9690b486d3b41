//! `GET /v1/sd/prometheus`: Prometheus' HTTP service discovery (`http_sd_configs`) of every endpoint that takes work, and
//! of every node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::extract::{Query, State};
use model::snapshot::{EndpointView, PortView, ServiceView, Snapshot};
use serde::{Deserialize, Serialize};

use super::{Context, Shared};

/// Before the name of each label.
const META: &str = "__meta_heddle_";

/// What `/v1/sd/prometheus` understands; all that is given must hold.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Endpoints of services of this name.
    service: Option<String>,
    /// Endpoints of this namespace.
    namespace: Option<String>,
    /// Endpoints of ports of this name or number.
    port: Option<String>,
    /// `endpoint` or `node`; without it both, or endpoints alone where one of the others is given.
    kind: Option<String>,
}

/// Targets with the same labels.
#[derive(Debug, Serialize)]
pub(super) struct TargetGroup {
    targets: Vec<String>,
    labels: BTreeMap<String, String>,
}

pub(super) async fn prometheus(
    State(context): Shared,
    Query(wanted): Query<Wanted>,
) -> Json<Vec<TargetGroup>> {
    let snapshot = context.feed.snapshot.load_full();
    let on_this_host = context.admin_address.ip().is_loopback();
    let mut all = Vec::new();
    if wanted.kind.as_deref().is_none_or(|kind| kind == "endpoint") {
        for view in snapshot.sorted() {
            endpoints(view, &wanted, on_this_host, &mut all);
        }
    }
    let narrowed = wanted.service.is_some() || wanted.namespace.is_some() || wanted.port.is_some();
    match wanted.kind.as_deref() {
        Some("node") => nodes(&context, &snapshot, &mut all),
        None if !narrowed => nodes(&context, &snapshot, &mut all),
        _ => {}
    }
    Json(all)
}

fn endpoints(view: &ServiceView, wanted: &Wanted, on_this_host: bool, all: &mut Vec<TargetGroup>) {
    let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|w| w == value);
    if !is(&wanted.namespace, view.key.namespace.as_str())
        || !is(&wanted.service, view.key.name.as_str())
    {
        return;
    }
    for port in &view.ports {
        let number = port.port.to_string();
        if !is(&wanted.port, port.name.as_str()) && !is(&wanted.port, &number) {
            continue;
        }
        for endpoint in port.endpoints.iter().filter(|e| e.ready()) {
            // Whoever asks on loopback is on this host, and dials as this node does; others dial as other nodes do.
            let elsewhere = endpoint.endpoint.remote.first().filter(|_| !on_this_host);
            let Some(address) = elsewhere.or(endpoint.addresses().first()) else {
                continue;
            };
            all.push(TargetGroup {
                targets: vec![address.to_string()],
                labels: labels(view, port, endpoint),
            });
        }
    }
}

fn labels(
    view: &ServiceView,
    port: &PortView,
    endpoint: &EndpointView,
) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut add = |name: &str, value: &str| {
        if !value.is_empty() {
            labels.insert(format!("{META}{name}"), value.to_owned());
        }
    };
    add("kind", "endpoint");
    add("namespace", view.key.namespace.as_str());
    add("service", view.key.name.as_str());
    add("port", port.name.as_str());
    add("protocol", port.protocol.as_str());
    add("workload", &endpoint.endpoint.name);
    add("workload_id", &endpoint.endpoint.workload);
    add("node", endpoint.node.as_ref().map_or("", |n| n.as_str()));
    add("zone", endpoint.endpoint.zone.as_deref().unwrap_or(""));
    for (key, value) in &view.service.metadata.labels {
        add(&format!("service_label_{}", sanitized(key)), value);
    }
    labels
}

/// A label's name as Prometheus has it: what it doesn't allow becomes `_`.
fn sanitized(name: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.chars().map(good).collect()
}

/// Each node where others reach it, at the port that this one's `admin.listen` has; this one where it listens.
fn nodes(context: &Context, snapshot: &Snapshot, all: &mut Vec<TargetGroup>) {
    let own = context.admin_address;
    let mut nodes: Vec<_> = snapshot.nodes.values().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    for node in nodes {
        let address = match node.addresses.first() {
            _ if node.name == context.node && !own.ip().is_unspecified() => own,
            Some(ip) => SocketAddr::new(*ip, own.port()),
            None if node.name == context.node => {
                SocketAddr::new(IpAddr::from([127, 0, 0, 1]), own.port())
            }
            None => continue,
        };
        let mut labels = BTreeMap::new();
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                labels.insert(format!("{META}{name}"), value.to_owned());
            }
        };
        add("kind", "node");
        add("node", node.name.as_str());
        add("zone", node.zone.as_deref().unwrap_or(""));
        add("version", &node.version);
        all.push(TargetGroup {
            targets: vec![address.to_string()],
            labels,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_names_are_ones_that_prometheus_takes() {
        assert_eq!(
            sanitized("app.kubernetes.io/name"),
            "app_kubernetes_io_name"
        );
        assert_eq!(sanitized("tür"), "t_r");
    }
}
