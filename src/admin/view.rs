//! Resources as JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::endpoint::{Fact, Health, Lifecycle, State as EndpointState};
use model::membership::NodeState;
use model::service::{ManagedBy, Metadata, ServiceSpec};
use model::snapshot::{EndpointView, PortView, ServiceView, Snapshot};
use model::workload::{Registration, WorkloadReport};
use model::{Catalog, Mark, MarkTarget, Mesh, Name, ServiceKey, Timestamp};
use serde::{Deserialize, Serialize};

use super::{ApiError, Context, Filtered, Shared, watch};

/// A list of resources.
#[derive(Debug, Serialize, Deserialize)]
pub struct List<T> {
    /// The registry's revision that it shows.
    pub revision: i64,
    /// Sorted by namespace and name.
    pub items: Vec<T>,
}

/// A service with its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceItem {
    /// `heddle/v1`.
    pub api_version: String,
    /// `Service`.
    pub kind: String,
    /// Name, namespace and what heddle notes of them.
    pub metadata: Metadata,
    /// Who may change it.
    pub managed_by: ManagedBy,
    /// What the user asked for.
    pub spec: ServiceSpec,
    /// What is the case.
    pub status: ServiceStatus,
}

/// What is the case with a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its virtual IPs.
    pub vips: Vec<IpAddr>,
    /// Port by port.
    pub ports: Vec<PortStatus>,
}

/// What is the case with a service's port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// The port's name.
    pub name: String,
    /// At the virtual IP.
    pub port: u16,
    /// Endpoints by state.
    pub endpoints: BTreeMap<EndpointState, usize>,
    /// How many take new work from this node.
    pub eligible: usize,
    /// Why none does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unavailable: String,
    /// Why this node doesn't listen for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_error: Option<String>,
    /// Files of its TLS that this node can't use as they are now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls_errors: Vec<String>,
}

/// An endpoint as this node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointItem {
    /// `<service>/<workload>:<port>`.
    pub name: String,
    /// Its service's namespace.
    pub namespace: Name,
    /// Its service.
    pub service: Name,
    /// Its service's port.
    pub port: Name,
    /// Workload, port and generation.
    pub id: String,
    /// The workload's id.
    pub workload: String,
    /// What people call the workload.
    pub workload_name: String,
    /// The node that owns it; none when it was made by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Where this node dials it.
    pub addresses: Vec<SocketAddr>,
    /// Where its own node dials it.
    pub local: Vec<SocketAddr>,
    /// Where other nodes dial it.
    pub remote: Vec<SocketAddr>,
    /// Share of the traffic.
    pub weight: u16,
    /// Derived of the three facts.
    pub state: EndpointState,
    /// Why, in words.
    pub reason: String,
    /// Whether this node gives it new work.
    pub eligible: bool,
    /// What checks say.
    pub health: Fact<Health>,
    /// What the runtime says.
    pub lifecycle: Fact<Lifecycle>,
    /// What an operator drained that takes this endpoint out: itself, its workload or its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Mark>,
    /// Requests or connections in flight from this node.
    pub in_flight: u32,
}

/// A node with its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeItem {
    /// Unique.
    pub name: Name,
    /// Where other nodes reach it.
    pub addresses: Vec<IpAddr>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The version it runs.
    pub version: String,
    /// `alive`, or `drained` where an operator took it out; `restarting`, `held` or `orphaned`.
    pub status: String,
    /// Since when, as this node saw it; none: it has not looked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Since when it is alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive_since: Option<Timestamp>,
    /// Who drained it, since when and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Mark>,
    /// How many services have endpoints on it.
    pub services: usize,
}

/// A registration with its node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegistrationItem {
    /// The node.
    pub node: Name,
    /// What was registered.
    #[serde(flatten)]
    pub registration: Registration,
}

/// The name users give an endpoint.
pub fn endpoint_name(service: &ServiceKey, endpoint: &EndpointView) -> String {
    format!(
        "{}/{}:{}",
        service.name, endpoint.endpoint.name, endpoint.endpoint.port
    )
}

fn service_item(view: &ServiceView, errors: &ProxyErrors) -> ServiceItem {
    let service = &view.service;
    ServiceItem {
        api_version: model::manifest::API_VERSION.to_owned(),
        kind: "Service".to_owned(),
        metadata: service.metadata.clone(),
        managed_by: service.managed_by.clone(),
        spec: service.spec.clone(),
        status: ServiceStatus {
            vips: view.vips.to_vec(),
            ports: view.ports.iter().map(|p| port_status(p, errors)).collect(),
        },
    }
}

fn port_status(port: &PortView, errors: &ProxyErrors) -> PortStatus {
    let mut endpoints = BTreeMap::new();
    for endpoint in &port.endpoints {
        *endpoints.entry(endpoint.state).or_insert(0) += 1;
    }
    PortStatus {
        name: port.name.to_string(),
        port: port.port,
        endpoints,
        eligible: port.eligible.len(),
        unavailable: port.unavailable.clone(),
        listener_error: errors
            .listeners
            .iter()
            .find(|l| l.service == port.key && l.port == port.name)
            .and_then(|l| l.error.clone()),
        tls_errors: errors
            .tls
            .iter()
            .filter(|t| t.service == port.key && t.port == port.name)
            .map(|t| t.error.clone())
            .collect(),
    }
}

fn mark_of(catalog: &Catalog, service: &ServiceKey, endpoint: &EndpointView) -> Option<Mark> {
    let workload = &endpoint.endpoint.workload;
    let on_node = endpoint.node.iter().flat_map(|node| {
        [
            MarkTarget::Workload {
                node: node.clone(),
                workload: workload.clone(),
            },
            MarkTarget::Node { name: node.clone() },
        ]
    });
    let own = MarkTarget::Endpoint {
        service: service.clone(),
        workload: workload.clone(),
        port: endpoint.endpoint.port.clone(),
    };
    std::iter::once(own)
        .chain(on_node)
        .find_map(|target| catalog.marks.get(&target))
        .map(|mark| (**mark).clone())
}

fn endpoint_item(catalog: &Catalog, port: &PortView, index: usize) -> EndpointItem {
    let view = &port.endpoints[index];
    let endpoint = &view.endpoint;
    EndpointItem {
        name: endpoint_name(&port.key, view),
        namespace: port.key.namespace.clone(),
        service: port.key.name.clone(),
        port: port.name.clone(),
        id: view.id.to_string(),
        workload: endpoint.workload.to_string(),
        workload_name: endpoint.name.to_string(),
        node: view.node.clone(),
        addresses: view.addresses().to_vec(),
        local: endpoint.local.clone(),
        remote: endpoint.remote.clone(),
        weight: endpoint.weight,
        state: view.state,
        reason: view.reason.to_string(),
        eligible: port.eligible.iter().any(|i| *i as usize == index),
        health: view.health.clone(),
        lifecycle: endpoint.lifecycle.clone(),
        drained: mark_of(catalog, &port.key, view),
        in_flight: view
            .load
            .in_flight
            .load(std::sync::atomic::Ordering::Relaxed),
    }
}

fn in_namespace(wanted: Option<&str>, namespace: &Name) -> bool {
    wanted.is_none_or(|wanted| wanted == namespace.as_str())
}

/// What the proxy can't do for services.
struct ProxyErrors {
    listeners: Vec<proxy::ListenerStatus>,
    tls: Vec<proxy::TlsStatus>,
}

fn proxy_errors(context: &Context) -> ProxyErrors {
    let Some(proxy) = context.rooms().proxy.clone() else {
        return ProxyErrors {
            listeners: Vec::new(),
            tls: Vec::new(),
        };
    };
    let mut listeners = proxy.listeners();
    listeners.retain(|l| l.error.is_some());
    let tls = proxy.tls();
    ProxyErrors { listeners, tls }
}

/// All services, of one namespace or of all.
pub fn service_items(
    context: &Context,
    snapshot: &Snapshot,
    namespace: Option<&str>,
) -> Vec<ServiceItem> {
    let errors = proxy_errors(context);
    snapshot
        .sorted()
        .into_iter()
        .filter(|s| in_namespace(namespace, &s.key.namespace))
        .map(|s| service_item(s, &errors))
        .collect()
}

/// All endpoints, of one namespace or of all.
pub fn endpoint_items(
    context: &Context,
    snapshot: &Snapshot,
    namespace: Option<&str>,
) -> Vec<EndpointItem> {
    let catalog = context.feed.catalog.borrow().clone();
    snapshot
        .sorted()
        .into_iter()
        .filter(|s| in_namespace(namespace, &s.key.namespace))
        .flat_map(|s| &s.ports)
        .flat_map(|p| (0..p.endpoints.len()).map(|i| endpoint_item(&catalog, p, i)))
        .collect()
}

/// This node's workloads.
pub fn workload_items(
    context: &Context,
    _: &Snapshot,
    namespace: Option<&str>,
) -> Vec<WorkloadReport> {
    let agent = context.rooms().agent.clone();
    let mut all = agent.map(|a| a.workloads()).unwrap_or_default();
    all.retain(|w| in_namespace(namespace, &w.workload.namespace));
    all.sort_by(|a, b| {
        let key = |w: &WorkloadReport| (w.workload.namespace.clone(), w.workload.name.clone());
        key(a).cmp(&key(b))
    });
    all
}

/// All nodes.
pub fn node_items(context: &Context, snapshot: &Snapshot, _: Option<&str>) -> Vec<NodeItem> {
    let catalog = context.feed.catalog.borrow().clone();
    let mut all: Vec<NodeItem> = snapshot
        .nodes
        .values()
        .map(|node| {
            let alive = snapshot.alive.get(&node.name);
            let drained = catalog.marks.get(&MarkTarget::Node {
                name: node.name.clone(),
            });
            let state = snapshot.node_state(&node.name);
            let status = match state {
                NodeState::Alive if drained.is_some() => "drained",
                state => state.as_str(),
            };
            NodeItem {
                name: node.name.clone(),
                addresses: node.addresses.clone(),
                zone: node.zone.clone(),
                version: node.version.clone(),
                status: status.to_owned(),
                since: snapshot.members.get(&node.name).map(|m| m.since),
                alive_since: alive.map(|l| l.since),
                drained: drained.map(|mark| (**mark).clone()),
                services: catalog.services_on(&node.name).count(),
            }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn list<T: Serialize + Send + 'static>(
    context: Arc<Context>,
    filter: super::Filter,
    key: fn(&T) -> String,
    items: fn(&Context, &Snapshot, Option<&str>) -> Vec<T>,
) -> Response {
    if filter.watch.is_some() {
        return watch::stream(context, filter.namespace, key, items);
    }
    let snapshot = context.feed.snapshot.load_full();
    Json(List {
        revision: snapshot.revision,
        items: items(&context, &snapshot, filter.namespace.as_deref()),
    })
    .into_response()
}

pub(super) async fn services(State(context): Shared, Query(filter): Filtered) -> Response {
    list(
        context,
        filter,
        |s: &ServiceItem| s.metadata.key().to_string(),
        service_items,
    )
}

pub(super) async fn endpoints(State(context): Shared, Query(filter): Filtered) -> Response {
    let key = |e: &EndpointItem| format!("{}/{}/{}", e.namespace, e.service, e.id);
    list(context, filter, key, endpoint_items)
}

pub(super) async fn workloads(State(context): Shared, Query(filter): Filtered) -> Response {
    list(
        context,
        filter,
        |w: &WorkloadReport| w.workload.id.to_string(),
        workload_items,
    )
}

pub(super) async fn nodes(State(context): Shared, Query(filter): Filtered) -> Response {
    list(
        context,
        filter,
        |n: &NodeItem| n.name.to_string(),
        node_items,
    )
}

pub(super) async fn service(
    State(context): Shared,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<ServiceItem>, ApiError> {
    let snapshot = context.feed.snapshot.load_full();
    let key: Option<ServiceKey> = format!("{namespace}/{name}").parse().ok();
    key.and_then(|key| snapshot.service(&key).cloned())
        .map(|view| Json(service_item(&view, &proxy_errors(&context))))
        .ok_or_else(|| {
            let what = format!("Service {namespace}/{name} does not exist");
            ApiError::new(StatusCode::NOT_FOUND, what)
        })
}

pub(super) async fn node(
    State(context): Shared,
    Path(name): Path<String>,
) -> Result<Json<NodeItem>, ApiError> {
    let snapshot = context.feed.snapshot.load_full();
    node_items(&context, &snapshot, None)
        .into_iter()
        .find(|n| n.name.as_str() == name)
        .map(Json)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("node {name} does not exist")))
}

pub(super) async fn mesh(State(context): Shared) -> Result<Json<Mesh>, ApiError> {
    let catalog = context.feed.catalog.borrow().clone();
    catalog
        .mesh
        .map(|mesh| Json((*mesh).clone()))
        .ok_or_else(|| {
            let what = "the mesh's settings are not known yet: the registry was never reached";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what)
        })
}

pub(super) async fn registrations(State(context): Shared) -> Json<List<RegistrationItem>> {
    let catalog = context.feed.catalog.borrow().clone();
    let mut items: Vec<RegistrationItem> = catalog
        .registrations
        .iter()
        .map(|((node, _), record)| RegistrationItem {
            node: node.clone(),
            registration: record.registration.clone(),
        })
        .collect();
    items.sort_by(|a, b| (&a.node, &a.registration.id).cmp(&(&b.node, &b.registration.id)));
    Json(List {
        revision: catalog.revision,
        items,
    })
}
