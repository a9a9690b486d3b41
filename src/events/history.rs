//! The newest events of this node, with their ids, and who watches them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::event::Recorded;
use model::name::clipped;
use model::{Event, EventKind, Timestamp};
use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};
use tokio::sync::{broadcast, mpsc};

/// Events kept in memory; the oldest go first.
pub const KEPT: usize = 10_000;
/// How many events a watcher may be behind before it is told of a gap.
const BEHIND: usize = 1024;
/// Events that wait to be written to disk at most.
const UNWRITTEN: usize = 4096;
/// The longest name and message in characters.
const NAME: usize = 512;
const MESSAGE: usize = 1024;
/// What was heard of later than this after it happened shows when it was heard of.
const LATE_MS: i64 = 1000;
/// Series of `heddle_events_total` at most; kinds and reasons beyond that count as `Other`.
const SERIES: usize = 128;

/// The newest events, shared by those who tell and those who ask.
pub struct History {
    inner: Mutex<Inner>,
    live: broadcast::Sender<Arc<Recorded>>,
    counted: IntCounterVec,
    dropped: IntCounter,
}

struct Inner {
    events: VecDeque<Arc<Recorded>>,
    next: u64,
    file: Option<mpsc::Sender<Arc<Recorded>>>,
    series: HashSet<(EventKind, String)>,
}

/// Which events are asked for; by default all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those with a higher id.
    pub since: Option<u64>,
    /// Those of this namespace, and those about what has none: nodes and the registry concern everybody.
    pub namespace: Option<String>,
    /// Only about this kind.
    pub kind: Option<EventKind>,
    /// Only about what has this name; of an endpoint also a prefix of it, or its workload's name.
    pub name: Option<String>,
}

impl Filter {
    /// Whether an event is asked for.
    pub fn matches(&self, recorded: &Recorded) -> bool {
        let event = &recorded.event;
        let of = |wanted: &str| {
            event
                .namespace
                .as_ref()
                .is_none_or(|n| n.as_str() == wanted)
        };
        self.since.is_none_or(|since| recorded.id > since)
            && self.namespace.as_deref().is_none_or(of)
            && self.kind.is_none_or(|kind| event.kind == kind)
            && self
                .name
                .as_deref()
                .is_none_or(|name| is_named(event, name))
    }
}

fn is_named(event: &Event, name: &str) -> bool {
    if event.name == name {
        return true;
    }
    let workload = || {
        let (_, rest) = event.name.split_once('/')?;
        Some(rest.rsplit_once(':').map_or(rest, |(workload, _)| workload))
    };
    event.kind == EventKind::Endpoint && (event.name.starts_with(name) || workload() == Some(name))
}

impl History {
    /// A history that begins with what was kept on disk, and where further events go to be written there.
    ///
    /// # Errors
    /// None in practice: the metrics' names are constants.
    pub fn new(
        kept: Vec<Recorded>,
    ) -> prometheus::Result<(Arc<History>, mpsc::Receiver<Arc<Recorded>>)> {
        let (file, unwritten) = mpsc::channel(UNWRITTEN);
        let next = kept.iter().map(|e| e.id).max().unwrap_or(0) + 1;
        let skip = kept.len().saturating_sub(KEPT);
        let history = History {
            inner: Mutex::new(Inner {
                events: kept.into_iter().skip(skip).map(Arc::new).collect(),
                next,
                file: Some(file),
                series: HashSet::new(),
            }),
            live: broadcast::channel(BEHIND).0,
            counted: IntCounterVec::new(
                Opts::new("heddle_events_total", "Events by kind and reason"),
                &["kind", "reason"],
            )?,
            dropped: IntCounter::new(
                "heddle_events_dropped_total",
                "Events that were left out because there were too many at once, or that could not be written to disk",
            )?,
        };
        Ok((Arc::new(history), unwritten))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what happened. Never waits; what the disk can't keep up with is counted as dropped.
    pub fn record(&self, mut event: Event, now: Timestamp) {
        event.name = clipped(&event.name, NAME);
        event.message = clipped(&event.message, MESSAGE);
        let mut inner = self.lock();
        let series = (event.kind, event.reason.clone());
        let known = inner.series.contains(&series);
        let reason = if known || inner.series.len() < SERIES {
            event.reason.as_str()
        } else {
            "Other"
        };
        self.counted
            .with_label_values(&[event.kind.as_str(), reason])
            .inc();
        if !known && inner.series.len() < SERIES {
            inner.series.insert(series);
        }
        let seen = (now.0.saturating_sub(event.at.0) > LATE_MS).then_some(now);
        let recorded = Arc::new(Recorded {
            id: inner.next,
            event,
            seen,
        });
        inner.next += 1;
        if inner.events.len() >= KEPT {
            inner.events.pop_front();
        }
        inner.events.push_back(recorded.clone());
        let written = inner
            .file
            .as_ref()
            .is_some_and(|file| file.try_send(recorded.clone()).is_ok());
        if !written {
            self.dropped.inc();
        }
        // Under the lock, so that watchers get ids in their order. Nobody watching is fine.
        let _ = self.live.send(recorded);
    }

    /// Whether the history has this already: the same of the same subject at the same time, or, of an event whose time is
    /// only that of its derivation (`now`), the same as the subject's last.
    pub fn knows(&self, event: &Event, now: Timestamp) -> bool {
        let inner = self.lock();
        let same_subject = |other: &Event| {
            other.kind == event.kind
                && other.name == event.name
                && other.namespace == event.namespace
                && other.node == event.node
        };
        let same = |other: &Event| other.reason == event.reason && other.message == event.message;
        let mut of_subject = inner
            .events
            .iter()
            .rev()
            .map(|r| &r.event)
            .filter(|e| same_subject(e));
        if event.at == now {
            of_subject.next().is_some_and(same)
        } else {
            of_subject.any(|e| e.at == event.at && same(e))
        }
    }

    /// Counts what was left out.
    pub fn dropped(&self, count: u64) {
        self.dropped.inc_by(count);
    }

    /// The newest `limit` events that match, oldest first, with the id of the newest of all and what comes after it.
    pub fn follow(
        &self,
        filter: &Filter,
        limit: usize,
    ) -> (Vec<Arc<Recorded>>, u64, broadcast::Receiver<Arc<Recorded>>) {
        let inner = self.lock();
        let live = self.live.subscribe();
        (newest(&inner, filter, limit), inner.next - 1, live)
    }

    /// Nothing more is written to disk: whoever writes finishes what waits, and ends.
    pub fn close(&self) {
        self.lock().file = None;
    }

    /// What is counted, to be registered.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.counted.clone()),
            Box::new(self.dropped.clone()),
        ]
    }
}

fn newest(inner: &Inner, filter: &Filter, limit: usize) -> Vec<Arc<Recorded>> {
    let matching = inner.events.iter().rev().filter(|e| filter.matches(e));
    let mut found: Vec<Arc<Recorded>> = matching.take(limit).cloned().collect();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, namespace: Option<&str>, name: &str, at: i64) -> Event {
        Event {
            at: Timestamp(at),
            kind,
            namespace: namespace.map(|n| model::Name::new(n).unwrap()),
            name: name.to_owned(),
            node: None,
            reason: "EndpointReady".into(),
            message: "passes its checks".into(),
        }
    }

    fn list(history: &History, filter: &Filter, limit: usize) -> Vec<Arc<Recorded>> {
        history.follow(filter, limit).0
    }

    fn ids(events: &[Arc<Recorded>]) -> Vec<u64> {
        events.iter().map(|e| e.id).collect()
    }

    #[test]
    fn the_newest_are_kept_and_ids_go_on_where_the_disk_ends() {
        let kept = Recorded {
            id: 41,
            event: event(EventKind::Node, None, "n1", 5),
            seen: None,
        };
        let (history, _file) = History::new(vec![kept]).unwrap();
        for at in 0..KEPT as i64 + 5 {
            history.record(
                event(EventKind::Endpoint, Some("shop"), "web/a:http", at),
                Timestamp(at),
            );
        }
        let all = list(&history, &Filter::default(), usize::MAX);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all.last().unwrap().id, 42 + KEPT as u64 + 4);
        assert_eq!(ids(&list(&history, &Filter::default(), 2)).len(), 2);
        let unwritten = history.dropped.get();
        assert_eq!(
            unwritten as usize,
            KEPT + 5 - UNWRITTEN,
            "counted, not waited for"
        );
    }

    #[test]
    fn filters_narrow_and_what_has_no_namespace_concerns_all() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        let now = Timestamp(1);
        history.record(
            event(EventKind::Endpoint, Some("shop"), "web/a:http", 1),
            now,
        );
        history.record(
            event(EventKind::Endpoint, Some("blog"), "web/a:http", 1),
            now,
        );
        history.record(event(EventKind::Node, None, "n1", 1), now);
        let list = |filter: Filter| ids(&super::tests::list(&history, &filter, 100));
        let shop = || Some("shop".to_owned());
        assert_eq!(
            list(Filter {
                namespace: shop(),
                ..Filter::default()
            }),
            [1, 3]
        );
        assert_eq!(
            list(Filter {
                since: Some(2),
                ..Filter::default()
            }),
            [3]
        );
        let named = |name: &str| Filter {
            kind: Some(EventKind::Endpoint),
            name: Some(name.to_owned()),
            ..Filter::default()
        };
        for name in ["web/a:http", "web/a", "web", "a"] {
            assert_eq!(list(named(name)), [1, 2], "{name}");
        }
        assert!(list(named("b")).is_empty());
    }

    #[test]
    fn what_the_history_has_is_known_by_its_time_or_as_the_last_of_its_subject() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        let ready = event(EventKind::Endpoint, Some("shop"), "web/a:http", 5);
        history.record(ready.clone(), Timestamp(5));
        assert!(history.knows(&ready, Timestamp(99)), "the same time");
        let undated = Event {
            at: Timestamp(99),
            ..ready.clone()
        };
        assert!(
            history.knows(&undated, Timestamp(99)),
            "the last of its subject"
        );
        assert!(!history.knows(&undated, Timestamp(100)), "at another time");
        let failing = Event {
            reason: "EndpointUnhealthy".into(),
            at: Timestamp(6),
            ..ready
        };
        history.record(failing, Timestamp(6));
        assert!(
            !history.knows(&undated, Timestamp(99)),
            "no longer the last"
        );
    }

    #[test]
    fn hostile_texts_are_clipped_and_series_bounded() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        for n in 0..1000 {
            let mut event = event(EventKind::Workload, None, "w", 1);
            event.reason = format!("Reason{n}");
            event.message = "\u{1b}[31m".repeat(5000);
            history.record(event, Timestamp(1));
        }
        let last = list(&history, &Filter::default(), 1).remove(0);
        assert!(last.event.message.len() < 9000 && !last.event.message.contains('\u{1b}'));
        let families = history.counted.collect();
        assert_eq!(families[0].get_metric().len(), SERIES + 1);
    }

    #[test]
    fn what_was_heard_of_late_says_so() {
        let (history, _file) = History::new(Vec::new()).unwrap();
        history.record(event(EventKind::Node, None, "n1", 1000), Timestamp(1500));
        history.record(event(EventKind::Node, None, "n1", 1000), Timestamp(9000));
        let all = list(&history, &Filter::default(), 10);
        assert_eq!(all[0].seen, None);
        assert_eq!(all[1].seen, Some(Timestamp(9000)));
    }
}
