//! The page at the admin address: services with their endpoints, nodes and events, as they change. It only reads.
//!
//! Rendered here, kept up to date by one small script over server-sent events; nothing is loaded from elsewhere. One task
//! renders for all who watch, and only while somebody does.
//!
//! # Layout
//! - this file: routes and headers
//! - `page`: the whole page
//! - `rows`: its parts, each of which is also sent by itself when it changes
//! - `live`: what has changed, for all who watch
//! - `html`: text that is safe within HTML

mod html;
mod live;
mod page;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

pub use live::{Live, keep};

use crate::admin::{Context, Shared};

const STYLE: &str = include_str!("dashboard/style.css");
const SCRIPT: &str = include_str!("dashboard/script.js");

/// Nothing but what this node serves itself; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the dashboard.
pub fn routes() -> Router<Arc<Context>> {
    let asset =
        |kind: &'static str, text: &'static str| get(move || async move { safe(kind, text) });
    Router::new()
        .route("/", get(index))
        .route(
            "/dashboard/style.css",
            asset("text/css; charset=utf-8", STYLE),
        )
        .route(
            "/dashboard/script.js",
            asset("text/javascript; charset=utf-8", SCRIPT),
        )
        .route("/dashboard/live", get(live::stream))
}

async fn index(State(context): Shared) -> Response {
    safe("text/html; charset=utf-8", page::page(&context))
}

fn safe(kind: &'static str, body: impl IntoResponse) -> Response {
    let headers: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    (headers, body).into_response()
}
