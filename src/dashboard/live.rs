//! What has changed, rendered once for all who watch.
//!
//! Each frame is one server-sent event with JSON: `rows` (HTML of services that are new or changed), `gone` (keys),
//! `figures` (key to all figures of a service of which some changed), `nodes`, `status` (HTML), `events` (HTML, oldest first). A browser whose page is of
//! another version than the one before a frame gets all rows first.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Extract};
use axum::response::{IntoResponse, Response};
use model::ServiceKey;
use model::snapshot::ServiceView;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::rows::{self, Part};
use crate::admin::ready::readiness;
use crate::admin::view::node_items;
use crate::admin::{Context, Shared};
use crate::events::Filter;
use crate::traffic::{self, Meter};

/// How often figures are told.
const EVERY: Duration = Duration::from_secs(2);
/// Changes within this time are told together.
const SETTLE: Duration = Duration::from_millis(100);
/// Frames that a browser may be behind; beyond, it is sent everything again.
const BEHIND: usize = 16;
/// A browser that reads nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(60);
/// Events told at once at most: of a flood, the newest.
const EVENTS: usize = 100;
/// Browsers at once.
const WATCHERS: usize = 64;

/// What was rendered last.
#[derive(Default)]
pub struct State {
    /// Rises with each change.
    pub version: u64,
    pub rows: BTreeMap<ServiceKey, Row>,
    pub nodes: Arc<str>,
    pub status: Arc<str>,
    at: Option<Instant>,
    meter: Meter,
    looks: u64,
}

/// A service's part.
pub struct Row {
    view: Arc<ServiceView>,
    errors: Vec<String>,
    part: Part,
    figures: Vec<String>,
    /// The last look at which its service was there.
    seen: u64,
}

impl Row {
    /// Appends its HTML.
    pub fn write(&self, out: &mut String) {
        self.part.write(&self.figures, out);
    }

    fn html(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

/// The dashboard of a node: what it showed last, and who watches.
pub struct Live {
    state: Mutex<State>,
    frames: broadcast::Sender<Arc<Frame>>,
    somebody: Notify,
}

/// A change from one version to the next.
struct Frame {
    version: u64,
    text: Bytes,
}

impl Default for Live {
    fn default() -> Self {
        Live {
            state: Mutex::default(),
            frames: broadcast::channel(BEHIND).0,
            somebody: Notify::new(),
        }
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present state, at most a frame's time old.
    pub fn state(&self, context: &Context) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let old = state.at.is_none_or(|at| at.elapsed() > SETTLE);
        // While somebody watches, whoever renders must tell them too: that is the keeper's alone.
        if old && (self.frames.receiver_count() == 0 || state.at.is_none()) {
            state.render(context, true);
        }
        state
    }
}

impl State {
    /// Renders what has changed; the frame that tells of it, if anything has.
    fn render(&mut self, context: &Context, with_figures: bool) -> Option<Frame> {
        let snapshot = context.feed.snapshot.load_full();
        let proxy = context.rooms().proxy.clone();
        let mut listeners = proxy.as_ref().map(|p| p.listeners()).unwrap_or_default();
        listeners.retain(|l| l.error.is_some());
        let now = Instant::now();
        // A shorter time than this would make figures of chance.
        let since = self.at.map(|at| now.duration_since(at));
        if with_figures
            && since.is_none_or(|s| s > SETTLE)
            && let Some(proxy) = &proxy
        {
            self.meter.take(traffic::of(proxy));
        }
        self.at = Some(now);
        let (mut changed, mut figures) = (Vec::new(), BTreeMap::new());
        let mut down = 0;
        self.looks += 1;
        let seen = self.looks;
        for view in snapshot.services.values() {
            down += usize::from(view.ports.iter().any(|p| p.eligible.is_empty()));
            let errors = match listeners.as_slice() {
                [] => Vec::new(),
                some => rows::errors_of(&view.key, some),
            };
            let flow = self.meter.flows.get(&view.key);
            match self.rows.get_mut(&view.key) {
                Some(row) if Arc::ptr_eq(&row.view, view) && row.errors == errors => {
                    row.seen = seen;
                    let told = row.part.figures(flow);
                    if row.figures != told {
                        figures.insert(view.key.to_string(), told.clone());
                        row.figures = told;
                    }
                }
                _ => {
                    let part = rows::service(view, &errors);
                    let row = Row {
                        view: view.clone(),
                        errors,
                        figures: part.figures(flow),
                        part,
                        seen,
                    };
                    changed.push(row.html());
                    self.rows.insert(view.key.clone(), row);
                }
            }
        }
        let mut gone = Vec::new();
        self.rows.retain(|key, row| {
            if row.seen != seen {
                gone.push(key.to_string());
            }
            row.seen == seen
        });
        let mut frame = serde_json::Map::new();
        let mut told = |name: &str, value: serde_json::Value| frame.insert(name.to_owned(), value);
        if !changed.is_empty() {
            told("rows", json!(changed));
        }
        if !figures.is_empty() {
            told("figures", json!(figures));
        }
        if !gone.is_empty() {
            told("gone", json!(gone));
        }
        let nodes = rows::nodes(&node_items(context, &snapshot, None));
        if *self.nodes != *nodes {
            told("nodes", json!(nodes));
            self.nodes = nodes.into();
        }
        let status = rows::status(&readiness(context), self.rows.len(), down);
        if *self.status != *status {
            told("status", json!(status));
            self.status = status.into();
        }
        if frame.is_empty() {
            return None;
        }
        self.version += 1;
        frame.insert("version".to_owned(), json!(self.version));
        Some(Frame {
            version: self.version,
            text: message(&serde_json::Value::Object(frame)),
        })
    }

    /// Everything, for a page of another version.
    fn whole(&self) -> Bytes {
        let rows: Vec<String> = self.rows.values().map(Row::html).collect();
        message(&json!({
            "version": self.version, "all": rows, "nodes": &*self.nodes, "status": &*self.status,
        }))
    }
}

fn message(value: &serde_json::Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Renders while somebody watches.
pub async fn keep(context: Arc<Context>, stop: CancellationToken) {
    let live = &context.dashboard;
    let mut epoch = context.feed.epoch.clone();
    let mut next = tokio::time::interval(EVERY);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if live.frames.receiver_count() == 0 {
            tokio::select! {
                () = live.somebody.notified() => {}
                () = stop.cancelled() => return,
            }
        }
        let ticked = tokio::select! {
            _ = next.tick() => true,
            changed = epoch.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(SETTLE).await;
                epoch.mark_unchanged();
                false
            }
            () = stop.cancelled() => return,
        };
        let frame = live.lock().render(&context, ticked);
        if let Some(frame) = frame {
            // Whoever watched may be gone.
            let _ = live.frames.send(Arc::new(frame));
        }
    }
}

/// What `/dashboard/live` understands: what the page shows already.
#[derive(Debug, Default, Deserialize)]
pub struct Seen {
    #[serde(default)]
    version: u64,
    #[serde(default)]
    last: u64,
}

/// `GET /dashboard/live`: changes as server-sent events.
pub async fn stream(Extract(context): Shared, Query(seen): Query<Seen>) -> Response {
    if context.dashboard.frames.receiver_count() >= WATCHERS {
        let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        return (status, "too many watch this dashboard\n").into_response();
    }
    let (out, mut body) = mpsc::channel::<Result<Bytes, Infallible>>(4);
    let frames = context.dashboard.frames.subscribe();
    context.dashboard.somebody.notify_one();
    tokio::spawn(tell(context, seen, frames, out));
    let stream = futures::stream::poll_fn(move |cx| body.poll_recv(cx));
    super::safe("text/event-stream", Body::from_stream(stream)).into_response()
}

async fn tell(
    context: Arc<Context>,
    seen: Seen,
    mut frames: broadcast::Receiver<Arc<Frame>>,
    out: mpsc::Sender<Result<Bytes, Infallible>>,
) {
    let send = async |text: Bytes| {
        let sent = tokio::time::timeout(STALLED, out.send(Ok(text))).await;
        matches!(sent, Ok(Ok(())))
    };
    let filter = Filter {
        since: Some(seen.last),
        ..Filter::default()
    };
    let (missed, _, mut events) = context.events.follow(&filter, EVENTS);
    let told = |events: &[Arc<model::event::Recorded>]| {
        let html: Vec<String> = events.iter().map(|e| rows::event(e)).collect();
        let last = events.last().map_or(0, |e| e.id);
        message(&json!({"events": html, "last": last}))
    };
    if !missed.is_empty() && !send(told(&missed)).await {
        return;
    }
    let mut version = seen.version;
    let whole = |version: &mut u64| {
        let state = context.dashboard.lock();
        *version = state.version;
        state.whole()
    };
    {
        let present = context.dashboard.lock().version;
        if present != version {
            let text = whole(&mut version);
            if !send(text).await {
                return;
            }
        } else if !send(Bytes::from_static(b": here\n\n")).await {
            return;
        }
    }
    let mut batch = Vec::new();
    loop {
        let text = tokio::select! {
            () = out.closed() => return,
            () = tokio::time::sleep(Duration::from_secs(15)) => Bytes::from_static(b": here\n\n"),
            frame = frames.recv() => match frame {
                Ok(frame) if frame.version <= version => continue,
                Ok(frame) if frame.version == version + 1 => {
                    version = frame.version;
                    frame.text.clone()
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => whole(&mut version),
                Err(broadcast::error::RecvError::Closed) => return,
            },
            event = events.recv() => {
                match event {
                    Ok(event) => batch.push(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
                // Of a flood, what has come meanwhile goes with it.
                while batch.len() < EVENTS && let Ok(event) = events.try_recv() {
                    batch.push(event);
                }
                let text = told(&batch);
                batch.clear();
                text
            }
        };
        if !send(text).await {
            return;
        }
    }
}
