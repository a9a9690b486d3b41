//! Which check is due when: one heap for all endpoints, with time passed in.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;

use super::machine::{Begin, Machine};
use super::{CheckKey, Spec};

/// A check that is due; its result goes back to [`Schedule::finish`].
#[derive(Clone, Debug)]
pub struct Due {
    /// What is checked.
    pub key: CheckKey,
    /// How.
    pub spec: Arc<Spec>,
    /// Tells this check from one that was begun before the endpoint was set anew.
    pub ticket: u64,
}

#[derive(Debug)]
struct Entry {
    spec: Arc<Spec>,
    machine: Machine,
    /// The only heap item or running check of this entry that counts.
    ticket: u64,
}

/// All endpoints that are checked. Times are since a moment that the caller chose.
#[derive(Debug)]
pub struct Schedule {
    entries: HashMap<CheckKey, Entry>,
    heap: BinaryHeap<Reverse<(Duration, u64, CheckKey)>>,
    tickets: u64,
    seed: u64,
}

impl Schedule {
    /// Nothing to check; jitter follows from `seed` and the endpoints' keys.
    pub fn new(seed: u64) -> Self {
        Schedule {
            entries: HashMap::new(),
            heap: BinaryHeap::new(),
            tickets: 0,
            seed,
        }
    }

    /// Has an endpoint checked from `now` on; what was known of it before is forgotten.
    pub fn begin(&mut self, key: CheckKey, spec: Spec, begin: Begin, now: Duration) {
        let mut hasher = DefaultHasher::new();
        (self.seed, &key).hash(&mut hasher);
        let mut machine = Machine::new(spec.timing, begin, hasher.finish());
        let at = now + machine.first();
        let ticket = self.ticket();
        self.entries.insert(
            key.clone(),
            Entry {
                spec: Arc::new(spec),
                machine,
                ticket,
            },
        );
        self.heap.push(Reverse((at, ticket, key)));
    }

    /// Checks an endpoint in another way from now on, keeping what is known of it. `false` when it is not checked at all.
    pub fn change(&mut self, key: &CheckKey, spec: &Spec, now: Duration) -> bool {
        let ticket = self.ticket();
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        if *entry.spec != *spec {
            entry.spec = Arc::new(spec.clone());
            entry.machine.retime(spec.timing);
            entry.ticket = ticket;
            self.heap.push(Reverse((now, ticket, key.clone())));
        }
        true
    }

    /// Checks an endpoint no longer.
    pub fn remove(&mut self, key: &CheckKey) -> bool {
        self.entries.remove(key).is_some()
    }

    /// What is believed of an endpoint; `None` when it is not checked.
    pub fn fact(&self, key: &CheckKey) -> Option<&Fact<Health>> {
        self.entries.get(key).map(|entry| entry.machine.fact())
    }

    /// The endpoints that are checked.
    pub fn keys(&self) -> impl Iterator<Item = &CheckKey> {
        self.entries.keys()
    }

    /// When the next check is due.
    pub fn next_at(&mut self) -> Option<Duration> {
        loop {
            let Reverse((at, ticket, key)) = self.heap.peek()?;
            if self.entries.get(key).is_some_and(|e| e.ticket == *ticket) {
                return Some(*at);
            }
            self.heap.pop();
        }
    }

    /// A check that is due at `now`; it is not due again before it has finished.
    pub fn take_due(&mut self, now: Duration) -> Option<Due> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse((_, ticket, key)) = self.heap.pop()?;
        let spec = self.entries.get(&key)?.spec.clone();
        Some(Due { key, spec, ticket })
    }

    /// Takes over a check's result; the fact, if it changed. The result of a check that was begun before its endpoint was
    /// changed or removed is dropped.
    pub fn finish(
        &mut self,
        due: &Due,
        result: Result<&str, &str>,
        now: Duration,
        clock: Timestamp,
    ) -> Option<Fact<Health>> {
        let entry = self.entries.get_mut(&due.key)?;
        if entry.ticket != due.ticket {
            return None;
        }
        let (changed, pause) = entry.machine.observe(result, clock);
        self.heap
            .push(Reverse((now + pause, due.ticket, due.key.clone())));
        changed.then(|| entry.machine.fact().clone())
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}
