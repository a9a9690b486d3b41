//! Writing: apply, delete, register, drain. Nothing is written unless all of it can be.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use model::manifest::{self, Manifest};
use model::service::{HealthPolicy, ManagedBy};
use model::workload::Registration;
use model::{Mark, MarkTarget, Mesh, Name, ServiceKey, Timestamp, strict};
use registry::RegistryError;
use registry::delete_node::DeleteNodeError;
use registry::follow::chain;
use registry::join::JoinError;
use registry::resources::{Applied, ApplyError, ApplyOptions};
use registry::store::StoreError;
use serde::{Deserialize, Serialize};

use super::view::endpoint_name;
use super::{ApiError, Context, Shared};

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        let status = match &error {
            ApplyError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            ApplyError::Stale { .. }
            | ApplyError::Owned { .. }
            | ApplyError::VipHeld { .. }
            | ApplyError::Contended => StatusCode::CONFLICT,
            ApplyError::VipUnusable { .. } => StatusCode::BAD_REQUEST,
            ApplyError::NotFound { .. } => StatusCode::NOT_FOUND,
            ApplyError::TooMany { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApplyError::Unreadable { .. } => StatusCode::CONFLICT,
        };
        ApiError::new(status, chain(&error))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, chain(&error))
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let status = match &error {
            RegistryError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            RegistryError::Contended { .. } | RegistryError::Record { .. } => StatusCode::CONFLICT,
        };
        ApiError::new(status, chain(&error))
    }
}

impl From<DeleteNodeError> for ApiError {
    fn from(error: DeleteNodeError) -> Self {
        let status = match &error {
            DeleteNodeError::Registry {
                source: RegistryError::Store(_),
                ..
            } => StatusCode::SERVICE_UNAVAILABLE,
            DeleteNodeError::Registry { .. } | DeleteNodeError::Alive { .. } => {
                StatusCode::CONFLICT
            }
            DeleteNodeError::NotFound { .. } => StatusCode::NOT_FOUND,
        };
        ApiError::new(status, chain(&error))
    }
}

fn bad(what: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, what)
}

fn text(body: &Bytes) -> Result<&str, ApiError> {
    std::str::from_utf8(body).map_err(|error| bad(format!("the body is not UTF-8: {error}")))
}

/// What `apply` understands.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApplyQuery {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn apply(
    State(context): Shared,
    Query(query): Query<ApplyQuery>,
    body: Bytes,
) -> Result<Json<Vec<Applied>>, ApiError> {
    let manifests = manifest::parse(text(&body)?).map_err(|errors| ApiError {
        error: "manifests refused, nothing was changed".to_owned(),
        details: errors.iter().map(ToString::to_string).collect(),
        ..bad("")
    })?;
    if manifests.is_empty() {
        return Err(bad("no documents: nothing to apply"));
    }
    let options = ApplyOptions {
        manager: ManagedBy::Apply,
        ranges: mesh(&context).await?.vip_ranges,
        dry_run: query.dry_run,
    };
    let mut applied = context.registry.apply(&manifests, &options).await?;
    for (manifest, applied) in manifests.iter().zip(&mut applied) {
        if applied.warning.is_none() {
            applied.warning = stranger(&context, &manifests, manifest);
        }
    }
    Ok(Json(applied))
}

/// An endpoint whose service nobody has defined is accepted, since they may come in any order; it is worth a word.
fn stranger(context: &Context, all: &[Manifest], manifest: &Manifest) -> Option<String> {
    let Manifest::Endpoint(endpoint) = manifest else {
        return None;
    };
    let service = ServiceKey::new(
        endpoint.metadata.namespace.clone(),
        endpoint.spec.service.clone(),
    );
    let here = all
        .iter()
        .any(|m| matches!(m, Manifest::Service(s) if s.metadata.key() == service));
    let known = here || context.feed.snapshot.load().service(&service).is_some();
    (!known).then(|| format!("service {service} does not exist yet"))
}

/// The catalog's, or the registry's own while the first listing is still on its way.
async fn mesh(context: &Context) -> Result<Mesh, ApiError> {
    let known = context.feed.catalog.borrow().mesh.clone();
    if let Some(mesh) = known {
        return Ok((*mesh).clone());
    }
    context.registry.mesh(&context.wish).await.map_err(|error| {
        let status = match &error {
            JoinError::Registry(_) => StatusCode::SERVICE_UNAVAILABLE,
            JoinError::Mismatch { .. } => StatusCode::CONFLICT,
        };
        ApiError::new(status, chain(&error))
    })
}

fn key(namespace: &str, name: &str) -> Result<ServiceKey, ApiError> {
    let part = |text: &str| Name::new(text).map_err(|error| bad(error.to_string()));
    Ok(ServiceKey::new(part(namespace)?, part(name)?))
}

pub(super) async fn delete_service(
    State(context): Shared,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Applied>, ApiError> {
    let key = key(&namespace, &name)?;
    Ok(Json(
        context
            .registry
            .delete_service(&key, &ManagedBy::Apply)
            .await?,
    ))
}

pub(super) async fn delete_endpoint(
    State(context): Shared,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Applied>, ApiError> {
    let key = key(&namespace, &name)?;
    Ok(Json(
        context
            .registry
            .delete_endpoint(&key, &ManagedBy::Apply)
            .await?,
    ))
}

pub(super) async fn delete_node(
    State(context): Shared,
    Path(name): Path<String>,
) -> Result<Json<Done>, ApiError> {
    let node = Name::new(&name).map_err(|error| bad(error.to_string()))?;
    if node == context.node {
        // Its key may have expired this moment: whoever answers lives.
        return Err(DeleteNodeError::Alive { node }.into());
    }
    let records = context.registry.delete_node(&node).await?;
    Ok(Json(Done {
        done: format!("node {node} deleted, {records} records in all"),
    }))
}

/// What a write that has no resource to show answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    /// What was done, in words.
    pub done: String,
}

/// Reads and validates a registration document.
pub fn parse_registration(text: &str) -> Result<Registration, String> {
    let mut documents = strict::parse_documents(text).map_err(|e| e.to_string())?;
    if documents.len() != 1 {
        return Err(format!(
            "one document is one registration, and these are {}",
            documents.len()
        ));
    }
    let registration: Registration =
        strict::from_value(documents.remove(0).value).map_err(|e| e.to_string())?;
    manifest::check_registration(&registration).map_err(|error| error.to_string())?;
    if let Some(HealthPolicy::Check(check)) = &registration.check
        && check.docker.is_some()
    {
        return Err("check.docker: only containers have Docker's HEALTHCHECK".to_owned());
    }
    Ok(registration)
}

pub(super) async fn register(State(context): Shared, body: Bytes) -> Result<Json<Done>, ApiError> {
    let registration = parse_registration(text(&body)?).map_err(bad)?;
    context
        .registry
        .register(&context.node, &registration)
        .await?;
    Ok(Json(Done {
        done: format!("registered {} on node {}", registration.id, context.node),
    }))
}

pub(super) async fn deregister(
    State(context): Shared,
    Path(id): Path<String>,
) -> Result<Json<Done>, ApiError> {
    let id = Name::new(&id).map_err(|error| bad(error.to_string()))?;
    if context.registry.deregister(&context.node, &id).await? {
        Ok(Json(Done {
            done: format!("deregistered {id}"),
        }))
    } else {
        let what = format!("registration {id} does not exist on node {}", context.node);
        Err(ApiError::new(StatusCode::NOT_FOUND, what))
    }
}

/// `heddle drain` and `undrain`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// `node`, `endpoint` or `workload`.
    pub kind: String,
    /// Its name, or a unique prefix of an endpoint's.
    pub name: String,
    /// Where to look for workloads and endpoints; everywhere when absent.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Shown beside the mark.
    #[serde(default)]
    pub reason: String,
}

pub(super) async fn drain(State(context): Shared, body: Bytes) -> Result<Json<Done>, ApiError> {
    let request = drain_request(&body)?;
    let target = resolve(&context, &request)?;
    let done = format!("{target} drained");
    let mark = Mark {
        target,
        since: Timestamp::now(),
        reason: request.reason,
    };
    context.registry.mark(&mark).await?;
    Ok(Json(Done { done }))
}

pub(super) async fn undrain(State(context): Shared, body: Bytes) -> Result<Json<Done>, ApiError> {
    let request = drain_request(&body)?;
    let target = resolve(&context, &request)?;
    let was = context.registry.unmark(&target).await?;
    let done = if was {
        format!("{target} undrained")
    } else {
        format!("{target} was not drained")
    };
    Ok(Json(Done { done }))
}

fn drain_request(body: &Bytes) -> Result<DrainRequest, ApiError> {
    serde_json::from_slice(body).map_err(|error| bad(format!("not a drain request: {error}")))
}

/// The one target that a kind and a name mean.
fn resolve(context: &Context, request: &DrainRequest) -> Result<MarkTarget, ApiError> {
    let name = &request.name;
    let snapshot = context.feed.snapshot.load();
    let not_found = |what: &str| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!("{what} {name} does not exist"),
        )
    };
    if request.kind == "node" {
        let node = Name::new(name).map_err(|_| not_found("node"))?;
        return match snapshot.nodes.contains_key(&node) {
            true => Ok(MarkTarget::Node { name: node }),
            false => Err(not_found("node")),
        };
    }
    let by_workload = match request.kind.as_str() {
        "workload" => true,
        "endpoint" => false,
        other => {
            return Err(bad(format!(
                "kind `{other}` is none of node, endpoint, workload"
            )));
        }
    };
    let mut exact = Vec::new();
    let mut prefixed = Vec::new();
    for view in snapshot.sorted() {
        let wanted = request.namespace.as_deref();
        if wanted.is_some_and(|wanted| wanted != view.key.namespace.as_str()) {
            continue;
        }
        for endpoint in view.ports.iter().flat_map(|p| &p.endpoints) {
            let e = &endpoint.endpoint;
            let (target, full) = match (&endpoint.node, by_workload) {
                (Some(node), true) => (
                    MarkTarget::Workload {
                        node: node.clone(),
                        workload: e.workload.clone(),
                    },
                    e.name.to_string(),
                ),
                (None, true) => continue,
                (_, false) => (
                    MarkTarget::Endpoint {
                        service: view.key.clone(),
                        workload: e.workload.clone(),
                        port: e.port.clone(),
                    },
                    endpoint_name(&view.key, endpoint),
                ),
            };
            if *name == full || **name == *e.name || **name == *e.workload {
                exact.push((target, full));
            } else if full.starts_with(name.as_str()) || e.workload.starts_with(name.as_str()) {
                prefixed.push((target, full));
            }
        }
    }
    let mut found = if exact.is_empty() { prefixed } else { exact };
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    match found.len() {
        0 => Err(not_found(&request.kind)),
        1 => Ok(found.remove(0).0),
        n => {
            let names: Vec<&str> = found
                .iter()
                .take(5)
                .map(|(_, full)| full.as_str())
                .collect();
            Err(bad(format!(
                "{} {name} is not unique: {n} match ({}{}): name more of it, or -n NAMESPACE",
                request.kind,
                names.join(", "),
                if n > 5 { ", …" } else { "" }
            )))
        }
    }
}
