//! `GET /v1/events`: what happened, and with `?watch` what goes on happening, one JSON object a line.
//!
//! A watch sends `{"type": "ADDED", "object": …}` for each event; `{"type": "GAP", "missed": N}` where it read too slowly
//! and missed some; and every 15 seconds in which nothing happens `{"type": "BOOKMARK", "object": {"id": …}}`, by which
//! either side notices that the other is gone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::EventKind;
use model::event::Recorded;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};

use super::{ApiError, Shared};
use crate::events::Filter;
use crate::events::history::KEPT;

/// How often a watch in which nothing happens says so.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A watcher that reads nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// What `/v1/events` understands.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventsQuery {
    /// Only those with a higher id.
    since: Option<u64>,
    /// The newest so many.
    limit: Option<usize>,
    namespace: Option<String>,
    kind: Option<String>,
    name: Option<String>,
    watch: Option<String>,
}

/// What `/v1/events` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Events {
    /// The id of the node's newest event; to be given as `since` to get what comes after.
    pub last: u64,
    /// Oldest first.
    pub items: Vec<Arc<Recorded>>,
}

pub(super) async fn events(
    State(context): Shared,
    Query(query): Query<EventsQuery>,
) -> Result<Response, ApiError> {
    let kind = match query.kind.as_deref() {
        None => None,
        Some(text) => Some(EventKind::parse(text).ok_or_else(|| {
            let what = format!(
                "kind `{text}` is none of {}",
                EventKind::ALL.map(EventKind::as_str).join(", ")
            );
            ApiError::new(StatusCode::BAD_REQUEST, what)
        })?),
    };
    let filter = Filter {
        since: query.since,
        namespace: query.namespace,
        kind,
        name: query.name,
    };
    let limit = query.limit.unwrap_or(KEPT);
    let (items, last, live) = context.events.follow(&filter, limit);
    if query.watch.is_none() {
        return Ok(Json(Events { last, items }).into_response());
    }
    let (out, mut body) = mpsc::channel::<Result<Bytes, Infallible>>(4);
    tokio::spawn(watch(filter, items, last, live, out, HEARTBEAT));
    let stream = futures::stream::poll_fn(move |cx| body.poll_recv(cx));
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(stream),
    )
        .into_response())
}

async fn watch(
    filter: Filter,
    items: Vec<Arc<Recorded>>,
    mut last: u64,
    mut live: broadcast::Receiver<Arc<Recorded>>,
    out: mpsc::Sender<Result<Bytes, Infallible>>,
    heartbeat: Duration,
) {
    let send = async |text: String| {
        let sent = tokio::time::timeout(STALLED, out.send(Ok(text.into()))).await;
        matches!(sent, Ok(Ok(())))
    };
    let added = |event: &Recorded| format!("{}\n", json!({"type": "ADDED", "object": event}));
    for chunk in items.chunks(256) {
        let text = chunk.iter().map(|event| added(event)).collect();
        if !send(text).await {
            return;
        }
    }
    drop(items);
    let mut beat = tokio::time::interval(heartbeat);
    beat.reset();
    loop {
        let text = tokio::select! {
            () = out.closed() => return,
            _ = beat.tick() => {
                format!("{}\n", json!({"type": "BOOKMARK", "object": {"id": last}}))
            }
            event = live.recv() => match event {
                Ok(event) => {
                    last = event.id;
                    if !filter.matches(&event) {
                        continue;
                    }
                    added(&event)
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    format!("{}\n", json!({"type": "GAP", "missed": missed}))
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        if !send(text).await {
            return;
        }
        beat.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::History;
    use model::{Event, Timestamp};
    use serde_json::Value;

    fn event(n: u64) -> Event {
        Event {
            at: Timestamp(1),
            kind: EventKind::Node,
            namespace: None,
            name: format!("n{n}"),
            node: None,
            reason: "NodeAlive".into(),
            message: "alive".into(),
        }
    }

    async fn line(body: &mut mpsc::Receiver<Result<Bytes, Infallible>>) -> Value {
        let Some(Ok(bytes)) = body.recv().await else {
            panic!("the watch ended");
        };
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn a_watch_tells_what_there_is_then_what_comes_and_that_it_lives() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        history.record(event(1), Timestamp(1));
        let filter = Filter::default();
        let (items, last, live) = history.follow(&filter, 10);
        let (out, mut body) = mpsc::channel(4);
        let beat = Duration::from_millis(5);
        tokio::spawn(watch(filter, items, last, live, out, beat));
        assert_eq!(line(&mut body).await["object"]["name"], "n1");
        let beat = line(&mut body).await;
        assert_eq!(beat["type"], "BOOKMARK");
        assert_eq!(beat["object"]["id"], 1);
        history.record(event(2), Timestamp(1));
        loop {
            let next = line(&mut body).await;
            if next["type"] == "ADDED" {
                assert_eq!(next["object"]["id"], 2);
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_watcher_that_reads_too_slowly_is_told_of_the_gap() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        let filter = Filter::default();
        let (items, last, live) = history.follow(&filter, 10);
        for n in 0..5000 {
            history.record(event(n), Timestamp(1));
        }
        let (out, mut body) = mpsc::channel(4);
        tokio::spawn(watch(filter, items, last, live, out, HEARTBEAT));
        let gap = line(&mut body).await;
        assert_eq!(gap["type"], "GAP");
        let missed = gap["missed"].as_u64().unwrap();
        assert_eq!(line(&mut body).await["object"]["id"], missed + 1);
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_reader() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        let filter = Filter::default();
        let (items, last, live) = history.follow(&filter, 10);
        let (out, body) = mpsc::channel(4);
        let watching = tokio::spawn(watch(filter, items, last, live, out, HEARTBEAT));
        drop(body);
        let ended = tokio::time::timeout(Duration::from_secs(10), watching).await;
        assert!(ended.is_ok());
    }
}
