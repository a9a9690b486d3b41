//! The admin API: health, metrics, and the resources as JSON.
//!
//! One router serves both doors: the Unix socket reads and writes; the TCP address only reads, and refuses a `Host` that is
//! neither an IP nor localhost, so that no web page can reach it by DNS rebinding.
//!
//! # Layout
//! - this file: the doors, the routes, and the shape of errors
//! - `view`: resources as JSON
//! - `write`: apply, delete, register, drain
//! - `watch`: `?watch`
//! - `events`: what happened
//! - `dig`: what DNS would answer, and why
//! - `explain`: who takes the next request, and what removed the others
//! - `export`: all resources out, and in again
//! - `discovery`: targets for Prometheus
//! - `traffic`: what the proxy has counted
//! - `ready`: `/readyz`
//! - `metrics`: `/metrics`

pub mod dig;
pub mod discovery;
pub mod events;
pub mod explain;
pub mod export;
pub mod metrics;
pub mod ready;
pub mod traffic;
pub mod view;
pub mod watch;
pub mod write;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::Agent;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use model::Name;
use registry::Registry;
use registry::join::MeshWish;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::writer::Feed;

/// The largest body a write may have.
const MAX_BODY: usize = 16 << 20;

/// What the handlers need of the node.
pub struct Context {
    /// This node.
    pub node: Name,
    /// Snapshot, catalog and how the registry is doing.
    pub feed: Feed,
    /// Where the reading door listens.
    pub admin_address: SocketAddr,
    /// Where writes go.
    pub registry: Registry,
    /// What this node's configuration says of the mesh.
    pub wish: MeshWish,
    /// What the other rooms say; they come up one after the other.
    pub rooms: std::sync::RwLock<Rooms>,
    /// What `/metrics` gathers.
    pub metrics: prometheus::Registry,
    /// What the page at `/` shows.
    pub dashboard: crate::dashboard::Live,
    /// What happened, newest last.
    pub events: Arc<crate::events::History>,
    /// Fires when the node goes down: it is ready no more.
    pub draining: CancellationToken,
}

/// Those parts of the node that exist only once the mesh is known.
#[derive(Default)]
pub struct Rooms {
    /// The agent.
    pub agent: Option<Arc<Agent>>,
    /// The data plane.
    pub proxy: Option<Arc<proxy::Proxy>>,
    /// Says what DNS answers.
    pub dns: Option<dns::Explainer>,
    /// What the node waits for or can't do, beyond registry and Docker: by its key, such as `dns` or `mesh`.
    pub notes: std::collections::BTreeMap<&'static str, String>,
    /// Files of the resources folder that were refused, with why.
    pub files: std::collections::BTreeMap<PathBuf, String>,
}

impl Context {
    /// Reads the rooms. A poisoned lock still holds whole values: each is replaced at once.
    pub fn rooms(&self) -> std::sync::RwLockReadGuard<'_, Rooms> {
        self.rooms.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Changes the rooms.
    pub fn rooms_mut(&self) -> std::sync::RwLockWriteGuard<'_, Rooms> {
        self.rooms.write().unwrap_or_else(|e| e.into_inner())
    }
}

/// Why the admin API can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket can't be made.
    #[error("admin.socket {}: can't be opened (set admin.socket to a path this user may write)", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody answers on the socket.
    #[error("admin.socket {}: another heddle runs here (stop it, or set another admin.socket)", path.display())]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// The address can't be bound.
    #[error("admin.listen {address}: can't be bound (set admin.listen to a free address)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Both doors, bound and not yet served.
pub struct Doors {
    unix: UnixListener,
    path: PathBuf,
    tcp: TcpListener,
}

impl Doors {
    /// Binds both. A socket that nobody answers on is a left-over of a crash and replaced.
    pub async fn open(path: &Path, address: SocketAddr) -> Result<Doors, AdminError> {
        let failed = |source| AdminError::Socket {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(AdminError::InUse {
                path: path.to_owned(),
            });
        }
        if path.exists() {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let unix = UnixListener::bind(path).map_err(failed)?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let tcp = TcpListener::bind(address)
            .await
            .map_err(|source| AdminError::Listen { address, source })?;
        Ok(Doors {
            unix,
            path: path.to_owned(),
            tcp,
        })
    }

    /// Where the reading door listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves both until shutdown, and takes the socket away.
    pub async fn serve(self, context: Arc<Context>, shutdown: CancellationToken) {
        let full = router(context.clone());
        let reading = router(context).layer(middleware::from_fn(read_only));
        let until = |token: CancellationToken| async move { token.cancelled().await };
        let unix = axum::serve(self.unix, full).with_graceful_shutdown(until(shutdown.clone()));
        let tcp = axum::serve(self.tcp, reading).with_graceful_shutdown(until(shutdown.clone()));
        let both = async { tokio::join!(unix, tcp) };
        tokio::select! {
            _ = both => {}
            // Watchers never end by themselves.
            () = async { shutdown.cancelled().await; tokio::time::sleep(std::time::Duration::from_millis(200)).await } => {}
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn router(context: Arc<Context>) -> Router {
    Router::new()
        .merge(crate::dashboard::routes())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/services", get(view::services))
        .route(
            "/v1/services/{namespace}/{name}",
            get(view::service).delete(write::delete_service),
        )
        .route("/v1/endpoints", get(view::endpoints))
        .route(
            "/v1/endpoints/{namespace}/{name}",
            delete(write::delete_endpoint),
        )
        .route("/v1/workloads", get(view::workloads))
        .route("/v1/nodes", get(view::nodes))
        .route(
            "/v1/nodes/{name}",
            get(view::node).delete(write::delete_node),
        )
        .route("/v1/mesh", get(view::mesh))
        .route("/v1/sd/prometheus", get(discovery::prometheus))
        .route("/v1/traffic", get(traffic::traffic))
        .route("/v1/explain", get(explain::explain))
        .route("/v1/dig", get(dig::dig))
        .route("/v1/events", get(events::events))
        .route("/v1/export", get(export::export))
        .route("/v1/import", post(export::import))
        .route("/v1/apply", post(write::apply))
        .route(
            "/v1/registrations",
            get(view::registrations).post(write::register),
        )
        .route("/v1/registrations/{id}", delete(write::deregister))
        .route("/v1/drain", post(write::drain))
        .route("/v1/undrain", post(write::undrain))
        .fallback(|request: Request| async move {
            let what = format!(
                "{} {}: no such resource",
                request.method(),
                request.uri().path()
            );
            ApiError::new(StatusCode::NOT_FOUND, what)
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(context)
}

async fn read_only(request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .or_else(|| request.uri().authority().map(|a| a.as_str()));
    if !host.is_some_and(is_ip_or_localhost) {
        let what = format!(
            "Host {:?} is neither an IP nor localhost (ask for this node by its address)",
            host.unwrap_or_default()
        );
        return ApiError::new(StatusCode::FORBIDDEN, what).into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let what = "this address only reads: write through the Unix socket (admin.socket)";
        return ApiError::new(StatusCode::METHOD_NOT_ALLOWED, what).into_response();
    }
    next.run(request).await
}

fn is_ip_or_localhost(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// What a failed call answers: `{"error": …, "details": […]}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ApiError {
    #[serde(skip)]
    status: u16,
    /// What went wrong, why, and how to mend it.
    pub error: String,
    /// One line for each of several mistakes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl ApiError {
    /// An error with one line.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        ApiError {
            status: status.as_u16(),
            error: error.into(),
            details: Vec::new(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self)).into_response()
    }
}

/// What every listing understands.
#[derive(Debug, Default, Deserialize)]
pub struct Filter {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Go on with what changes, one JSON object a line.
    pub watch: Option<String>,
}

/// The state that handlers get.
pub type Shared = State<Arc<Context>>;
/// The filter that listings get.
pub type Filtered = Query<Filter>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_hosts() {
        for good in [
            "127.0.0.1",
            "127.0.0.1:7070",
            "[::1]:7070",
            "[::1]",
            "localhost",
            "LOCALHOST:7070",
        ] {
            assert!(is_ip_or_localhost(good), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:7070",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "",
            "1.2.3",
        ] {
            assert!(!is_ip_or_localhost(bad), "{bad}");
        }
    }
}
