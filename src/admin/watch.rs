//! `?watch`: a listing that goes on, one JSON object a line: `{"type": "ADDED" | "MODIFIED" | "DELETED", "object": …}`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use model::snapshot::Snapshot;
use serde::Serialize;
use serde_json::json;

use super::Context;

/// Changes within this time are told together.
const SETTLE: Duration = Duration::from_millis(50);

/// Tells `items` as they are, then what of them comes, changes or goes.
pub fn stream<T: Serialize + Send + 'static>(
    context: Arc<Context>,
    namespace: Option<String>,
    key: fn(&T) -> String,
    items: fn(&Context, &Snapshot, Option<&str>) -> Vec<T>,
) -> Response {
    let (out, body) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(16);
    tokio::spawn(async move {
        let mut epoch = context.feed.epoch.clone();
        let mut told: BTreeMap<String, serde_json::Value> = BTreeMap::new();
        loop {
            epoch.mark_unchanged();
            let snapshot = context.feed.snapshot.load_full();
            let now: BTreeMap<String, serde_json::Value> =
                items(&context, &snapshot, namespace.as_deref())
                    .iter()
                    .filter_map(|item| Some((key(item), serde_json::to_value(item).ok()?)))
                    .collect();
            let lines = differences(&told, &now);
            told = now;
            if !lines.is_empty() && out.send(Ok(lines.into())).await.is_err() {
                return;
            }
            tokio::select! {
                () = out.closed() => return,
                // What agents know of workloads changes without a snapshot: look now and then.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                changed = epoch.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(SETTLE).await;
        }
    });
    let stream = futures::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|item| (item, body))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn differences(
    before: &BTreeMap<String, serde_json::Value>,
    now: &BTreeMap<String, serde_json::Value>,
) -> String {
    let mut lines = String::new();
    let mut line = |kind: &str, object: &serde_json::Value| {
        lines.push_str(&json!({"type": kind, "object": object}).to_string());
        lines.push('\n');
    };
    for (key, object) in now {
        match before.get(key) {
            None => line("ADDED", object),
            Some(old) if old != object => line("MODIFIED", object),
            Some(_) => {}
        }
    }
    for (key, object) in before {
        if !now.contains_key(key) {
            line("DELETED", object);
        }
    }
    lines
}
