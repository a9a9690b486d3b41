//! What is known of all containers, and what to ask next. No I/O; time is passed in.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{Fact, Lifecycle};
use model::event::{Event, EventKind};
use model::time::Timestamp;

use super::Message;
use super::event::Hint;
use super::inspect::Inspected;
use super::signal::{self, Signal};
use crate::local::{Local, short};

/// How long a container may still run after its stop time-out until it is believed to have ignored the signal.
const GRACE: Duration = Duration::from_secs(5);

const OUT_OF_MEMORY: &str = "a process in it was killed for lack of memory";

#[derive(Debug)]
struct Known {
    inspected: Inspected,
    /// What was told of it.
    told: Arc<Local>,
    /// The tick at which its last inspection began.
    as_of: u64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    signal: Signal,
    at: Timestamp,
}

/// All containers of one Docker.
#[derive(Debug, Default)]
pub(super) struct Room {
    known: HashMap<String, Known>,
    /// Containers told to end, until they do, or it shows that they don't.
    ending: HashMap<String, Told>,
    /// To be inspected.
    dirty: BTreeSet<String>,
    /// Being inspected, with the tick at which that began.
    asked: HashMap<String, u64>,
    /// The tick of each container's last event: an inspection that began before it is out of date.
    touched: HashMap<String, u64>,
    /// Could not be inspected.
    failed: BTreeSet<String>,
    /// What of the last listing is not inspected yet; `None` when everything is.
    listing: Option<HashSet<String>>,
    tick: u64,
}

fn after(at: Timestamp, duration: Duration) -> Timestamp {
    Timestamp(at.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
}

impl Room {
    pub(super) fn new() -> Self {
        Room::default()
    }

    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Takes an event over.
    pub(super) fn hear(&mut self, hint: Hint, now: Timestamp) -> Vec<Message> {
        match hint {
            Hint::Signalled { id, signal, at } => self.signalled(id, Told { signal, at }, now),
            Hint::Ended { id, at } => {
                if self.predates(&id, at) {
                    self.ask(id);
                    return Vec::new();
                }
                let tick = self.next_tick();
                self.touched.insert(id.clone(), tick);
                self.dirty.remove(&id);
                let mut messages = self.gone(&id);
                messages.extend(self.finish_listing());
                messages
            }
            Hint::Changed { id, at } => {
                if !self.predates(&id, at) {
                    self.ask(id);
                }
                Vec::new()
            }
            Hint::OutOfMemory { id, at } => self.out_of_memory(&id, at),
            Hint::Networks => Vec::new(),
        }
    }

    /// Whether an event is about an earlier run of a container than the one that is known: events are replayed on every
    /// connection. It may as well be a clock that was set back, so that an end is asked about and not ignored.
    fn predates(&self, id: &str, at: Timestamp) -> bool {
        self.known
            .get(id)
            .and_then(|known| known.inspected.started)
            .is_some_and(|started| at < started)
    }

    fn ask(&mut self, id: String) {
        let tick = self.next_tick();
        self.touched.insert(id.clone(), tick);
        self.dirty.insert(id);
    }

    /// No inspection first: the process may close its listener within milliseconds.
    fn signalled(&mut self, id: String, told: Told, now: Timestamp) -> Vec<Message> {
        if self.predates(&id, told.at) {
            self.ask(id);
            return Vec::new();
        }
        let Some(known) = self.known.get_mut(&id) else {
            // Judged once its stop signal is known.
            self.ending.insert(id, told);
            return Vec::new();
        };
        if !signal::ends(told.signal, known.inspected.stop_signal)
            || deadline(&known.inspected, told) <= now
        {
            return Vec::new();
        }
        let mut local = Local::clone(&known.told);
        local.workload.lifecycle = terminating(told, &local.workload.lifecycle);
        self.ending.insert(id, told);
        tell(known, local).into_iter().collect()
    }

    /// Whether it survives shows by itself: its end is an event of its own.
    fn out_of_memory(&mut self, id: &str, at: Timestamp) -> Vec<Message> {
        if self.predates(id, at) {
            return Vec::new();
        }
        let Some(known) = self.known.get_mut(id) else {
            return Vec::new();
        };
        let lifecycle = &known.told.workload.lifecycle;
        // Replayed on another connection.
        if &*lifecycle.reason == OUT_OF_MEMORY && lifecycle.since >= at {
            return Vec::new();
        }
        let event = happened(&known.told, at, "OutOfMemory", OUT_OF_MEMORY);
        let mut messages = vec![Message::Happened(event)];
        if lifecycle.value == Lifecycle::Running {
            let mut local = Local::clone(&known.told);
            local.workload.lifecycle = Fact::new(Lifecycle::Running, at, OUT_OF_MEMORY);
            messages.extend(tell(known, local));
        }
        messages
    }

    /// Notes that a listing begins, and returns its tick.
    pub(super) fn list_begins(&mut self) -> u64 {
        self.next_tick()
    }

    /// Takes a listing of everything that runs over, which began at `tick`.
    pub(super) fn listed(&mut self, ids: Vec<String>, tick: u64) -> Vec<Message> {
        let ids: HashSet<String> = ids.into_iter().collect();
        let gone: Vec<String> = self
            .known
            .iter()
            // What was inspected after the listing began may be younger than it.
            .filter(|(id, known)| !ids.contains(*id) && known.as_of < tick)
            .map(|(id, _)| id.clone())
            .collect();
        let mut messages = Vec::new();
        for id in gone {
            messages.extend(self.gone(&id));
        }
        self.touched.retain(|id, _| {
            ids.contains(id)
                || self.known.contains_key(id)
                || self.asked.contains_key(id)
                || self.dirty.contains(id)
        });
        self.ending
            .retain(|id, _| ids.contains(id) || self.known.contains_key(id));
        self.failed.clear();
        self.dirty.extend(ids.iter().cloned());
        self.listing = Some(ids);
        messages.extend(self.finish_listing());
        messages
    }

    /// The next container to inspect, with the tick to hand back.
    pub(super) fn next(&mut self) -> Option<(String, u64)> {
        let id = self
            .dirty
            .iter()
            .find(|id| !self.asked.contains_key(*id))?
            .clone();
        self.dirty.remove(&id);
        let tick = self.next_tick();
        self.asked.insert(id.clone(), tick);
        Some((id, tick))
    }

    /// Takes an inspection over; `None`: it doesn't run.
    pub(super) fn inspected(
        &mut self,
        id: &str,
        tick: u64,
        found: Option<Inspected>,
        now: Timestamp,
    ) -> Vec<Message> {
        self.asked.remove(id);
        if self.touched.get(id).is_some_and(|touched| *touched > tick) {
            // Out of date. Either it is asked about again already, or it has ended since.
            return Vec::new();
        }
        self.failed.remove(id);
        self.answered(id);
        let mut messages = match found {
            Some(inspected) => self.runs(inspected, tick, now),
            None => self.gone(id),
        };
        messages.extend(self.finish_listing());
        messages
    }

    /// Notes that a container could not be inspected: what is known of it stays, and it is asked about again at
    /// [`Room::retry`].
    pub(super) fn not_inspected(&mut self, id: &str) -> Vec<Message> {
        self.asked.remove(id);
        self.failed.insert(id.to_owned());
        self.answered(id);
        self.finish_listing().into_iter().collect()
    }

    /// Asks again about what could not be inspected.
    pub(super) fn retry(&mut self) {
        self.dirty.extend(std::mem::take(&mut self.failed));
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Forgets what was asked over a connection that is lost.
    pub(super) fn disconnected(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        self.dirty.extend(asked.into_keys());
        self.listing = None;
    }

    /// When the next container should have ended.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.ending
            .iter()
            .filter_map(|(id, told)| Some(deadline(&self.known.get(id)?.inspected, *told)))
            .min()
    }

    /// Restores the containers that run on long after they were told to end.
    pub(super) fn restore(&mut self, now: Timestamp) -> Vec<Message> {
        let mut messages = Vec::new();
        let known = &mut self.known;
        self.ending.retain(|id, told| {
            let Some(known) = known.get_mut(id) else {
                return true;
            };
            if deadline(&known.inspected, *told) > now {
                return true;
            }
            let name = signal::name(told.signal);
            tracing::warn!(
                workload = %known.told.workload.name,
                id = short(id),
                signal = name,
                "container runs on long after it was told to end; it takes work again"
            );
            let mut local = Local::clone(&known.told);
            let reason = format!("runs on after {name}");
            messages.push(Message::Happened(happened(
                &local,
                now,
                "RunsOn",
                &format!("{reason}, past its stop time-out: it takes work again"),
            )));
            local.workload.lifecycle = Fact::new(Lifecycle::Running, now, reason);
            messages.extend(tell(known, local));
            false
        });
        messages
    }

    fn runs(&mut self, inspected: Inspected, tick: u64, now: Timestamp) -> Vec<Message> {
        let id = inspected.id.clone();
        let mut local = inspected.local.clone();
        if let Some(told) = self.ending.get(&id).copied() {
            let same_run = inspected.started.is_none_or(|started| told.at >= started);
            let ends = signal::ends(told.signal, inspected.stop_signal);
            if same_run && ends && deadline(&inspected, told) > now {
                local.workload.lifecycle = terminating(told, &local.workload.lifecycle);
            } else {
                self.ending.remove(&id);
            }
        }
        let Some(known) = self.known.get_mut(&id) else {
            let told = Arc::new(local);
            let message = Message::Put(told.clone());
            self.known.insert(
                id.clone(),
                Known {
                    inspected,
                    told,
                    as_of: tick,
                },
            );
            self.ask_sharers(&id);
            return vec![message];
        };
        let before = known.told.clone();
        let same_run = before.workload.generation == local.workload.generation;
        let renamed = before.workload.name != local.workload.name;
        // Facts hold since they were first told, and for the reason told then.
        let lifecycle = &before.workload.lifecycle;
        if same_run && lifecycle.value == local.workload.lifecycle.value {
            local.workload.lifecycle = lifecycle.clone();
        }
        if let (Some(was), Some(is)) = (
            &before.workload.docker_health,
            &local.workload.docker_health,
        ) && same_run
            && was.value == is.value
        {
            local.workload.docker_health = Some(was.clone());
        }
        known.inspected = inspected;
        known.as_of = tick;
        let message = tell(known, local);
        if !same_run || renamed {
            self.ask_sharers(&id);
        }
        message.into_iter().collect()
    }

    fn gone(&mut self, id: &str) -> Vec<Message> {
        self.ending.remove(id);
        self.failed.remove(id);
        self.answered(id);
        if self.known.remove(id).is_none() {
            return Vec::new();
        }
        self.ask_sharers(id);
        vec![Message::Gone(short(id).into())]
    }

    /// What shares the network of `id` has other addresses now, or none.
    fn ask_sharers(&mut self, id: &str) {
        let sharers: Vec<String> = self
            .known
            .iter()
            .filter(|(_, known)| known.inspected.joined.as_deref() == Some(id))
            .map(|(sharer, _)| sharer.clone())
            .collect();
        for sharer in sharers {
            self.ask(sharer);
        }
    }

    fn answered(&mut self, id: &str) {
        if let Some(listing) = &mut self.listing {
            listing.remove(id);
        }
    }

    fn finish_listing(&mut self) -> Option<Message> {
        self.listing.take_if(|rest| rest.is_empty())?;
        Some(Message::Listed {
            unjudged: self.failed.iter().map(|id| short(id).into()).collect(),
        })
    }
}

fn deadline(inspected: &Inspected, told: Told) -> Timestamp {
    after(told.at, inspected.stop_timeout + GRACE)
}

fn terminating(told: Told, before: &Fact<Lifecycle>) -> Fact<Lifecycle> {
    match before.value {
        Lifecycle::Terminating => before.clone(),
        Lifecycle::Running => Fact::new(
            Lifecycle::Terminating,
            told.at,
            format!("told to end by {}", signal::name(told.signal)),
        ),
    }
}

fn happened(local: &Local, at: Timestamp, reason: &str, message: &str) -> Event {
    Event {
        at,
        kind: EventKind::Workload,
        namespace: Some(local.workload.namespace.clone()),
        name: local.workload.name.to_string(),
        node: None,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn tell(known: &mut Known, local: Local) -> Option<Message> {
    if *known.told == local {
        return None;
    }
    known.told = Arc::new(local);
    Some(Message::Put(known.told.clone()))
}
