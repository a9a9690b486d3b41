//! Which check is due when, with time passed in: one heap for all that is checked.
//!
//! Services that check the same address in the same way share its checks. What was slow the last time may hold only half of
//! the slots, so that hanging backends, however many, never keep the others waiting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;

use super::jitter::Jitter;
use super::machine::{Begin, LEAST_INTERVAL, Machine};
use super::{CheckKey, Spec, Target};

/// A check that is due; its result goes back to [`Schedule::finish`].
#[derive(Clone, Debug)]
pub struct Due {
    /// What is checked, and how.
    pub target: Arc<Target>,
    group: u64,
    /// Tells this check from what began after it.
    ticket: u64,
    at: Duration,
    slow: bool,
}

/// One endpoint, as one service asks for its checks.
#[derive(Debug)]
struct Entry {
    spec: Spec,
    machine: Machine,
    group: u64,
    /// A check that began earlier than this says nothing about it.
    joined: u64,
    due: Duration,
}

/// What shares its checks.
#[derive(Debug)]
struct Group {
    target: Arc<Target>,
    members: Vec<CheckKey>,
    /// The only heap item of this group that counts.
    ticket: u64,
    at: Duration,
    state: State,
    /// Its last check took half of its time-out or more.
    slow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waits,
    /// Due, and in a queue for a slot.
    Queued,
    Runs,
}

/// All that is checked. Times are since a moment that the caller chose.
#[derive(Debug)]
pub struct Schedule {
    entries: HashMap<CheckKey, Entry>,
    groups: HashMap<u64, Group>,
    by_target: HashMap<Arc<Target>, u64>,
    heap: BinaryHeap<Reverse<(Duration, u64, u64)>>,
    /// Due, those that were quick the last time and those that were slow.
    quick: VecDeque<u64>,
    slow: VecDeque<u64>,
    limit: usize,
    running: usize,
    slow_running: usize,
    tickets: u64,
    jitter: Jitter,
}

impl Schedule {
    /// Nothing to check; at most `limit` (two at least) at once when there is. Jitter follows from `seed`.
    pub fn new(limit: usize, seed: u64) -> Self {
        Schedule {
            entries: HashMap::new(),
            groups: HashMap::new(),
            by_target: HashMap::new(),
            heap: BinaryHeap::new(),
            quick: VecDeque::new(),
            slow: VecDeque::new(),
            limit: limit.max(2),
            running: 0,
            slow_running: 0,
            tickets: 0,
            jitter: Jitter::new(seed),
        }
    }

    /// Has an endpoint checked from `now` on; what was known of it before is forgotten.
    pub fn begin(&mut self, key: CheckKey, spec: Spec, begin: Begin, now: Duration) {
        self.remove(&key);
        let machine = Machine::new(spec.timing, begin);
        let due = now + machine.spread().mul_f64(self.jitter.unit());
        self.join(key, spec, machine, due);
    }

    /// Checks an endpoint in another way from now on, keeping what is known of it. `false` when it is not checked at all.
    pub fn change(&mut self, key: &CheckKey, spec: &Spec, now: Duration) -> bool {
        match self.entries.get(key) {
            None => return false,
            Some(entry) if entry.spec == *spec => return true,
            Some(_) => {}
        }
        if let Some(mut machine) = self.leave(key) {
            machine.retime(spec.timing);
            self.join(key.clone(), spec.clone(), machine, now);
        }
        true
    }

    /// Checks an endpoint no longer.
    pub fn remove(&mut self, key: &CheckKey) -> bool {
        self.leave(key).is_some()
    }

    /// What is believed of an endpoint; `None` when it is not checked.
    pub fn fact(&self, key: &CheckKey) -> Option<&Fact<Health>> {
        self.entries.get(key).map(|entry| entry.machine.fact())
    }

    /// Whether the last check of an endpoint passed, whatever is believed of it.
    pub fn passes(&self, key: &CheckKey) -> bool {
        self.entries.get(key).is_some_and(|e| e.machine.passes())
    }

    /// When the next check is due that does not wait for a slot.
    pub fn next_at(&mut self) -> Option<Duration> {
        loop {
            let Reverse((at, ticket, group)) = *self.heap.peek()?;
            let counts = |g: &Group| g.ticket == ticket && g.state == State::Waits;
            if self.groups.get(&group).is_some_and(counts) {
                return Some(at);
            }
            self.heap.pop();
        }
    }

    /// A check that is due at `now`, if there is a slot for it; it is not due again before it has finished.
    pub fn take_due(&mut self, now: Duration) -> Option<Due> {
        while self.next_at().is_some_and(|at| at <= now) {
            let Some(Reverse((_, _, id))) = self.heap.pop() else {
                break;
            };
            if let Some(group) = self.groups.get_mut(&id) {
                group.state = State::Queued;
                let queue = if group.slow {
                    &mut self.slow
                } else {
                    &mut self.quick
                };
                queue.push_back(id);
            }
        }
        while self.running < self.limit {
            let slow_fits = self.slow_running < self.limit / 2;
            let id = match self.quick.pop_front() {
                Some(id) => id,
                None if slow_fits => self.slow.pop_front()?,
                None => return None,
            };
            let ticket = self.ticket();
            // What is checked no longer may still stand in a queue.
            let Some(group) = self.groups.get_mut(&id) else {
                continue;
            };
            group.state = State::Runs;
            self.running += 1;
            self.slow_running += usize::from(group.slow);
            return Some(Due {
                target: group.target.clone(),
                group: id,
                ticket,
                at: now,
                slow: group.slow,
            });
        }
        None
    }

    /// Takes over a check's result, or that it has none to tell; returns the facts that changed. What began to be checked
    /// after the check did, or is not checked any more, takes nothing from it.
    pub fn finish(
        &mut self,
        due: &Due,
        result: Option<Result<&str, &str>>,
        now: Duration,
        clock: Timestamp,
    ) -> Vec<(CheckKey, Fact<Health>)> {
        self.running = self.running.saturating_sub(1);
        self.slow_running = self.slow_running.saturating_sub(usize::from(due.slow));
        let mut changed = Vec::new();
        let ticket = self.ticket();
        let Some(group) = self.groups.get_mut(&due.group) else {
            return changed;
        };
        group.slow = now.saturating_sub(due.at) >= due.target.timeout / 2;
        // One factor for all: what has the same interval stays together.
        let factor = self.jitter.factor();
        let mut next = Duration::MAX;
        for key in &group.members {
            let Some(entry) = self.entries.get_mut(key) else {
                continue;
            };
            let early = entry.due.saturating_sub(due.at);
            if entry.joined < due.ticket && early <= entry.machine.slack() {
                let pause = match result {
                    Some(result) => {
                        let (turned, pause) = entry.machine.observe(result, now, clock);
                        if turned {
                            changed.push((key.clone(), entry.machine.fact().clone()));
                        }
                        pause
                    }
                    None => entry.spec.timing.interval.max(LEAST_INTERVAL),
                };
                entry.due = on_a_tick(now + pause.mul_f64(factor), pause);
            }
            next = next.min(entry.due);
        }
        group.state = State::Waits;
        group.ticket = ticket;
        group.at = next;
        self.heap.push(Reverse((next, ticket, due.group)));
        changed
    }

    fn join(&mut self, key: CheckKey, spec: Spec, machine: Machine, due: Duration) {
        let (joined, ticket) = (self.ticket(), self.ticket());
        let target = spec.target();
        let id = match self.by_target.get(&target) {
            Some(id) => *id,
            None => {
                let target = Arc::new(target);
                self.by_target.insert(target.clone(), ticket);
                let group = Group {
                    target,
                    members: Vec::new(),
                    ticket: 0,
                    at: Duration::MAX,
                    state: State::Waits,
                    slow: false,
                };
                self.groups.insert(ticket, group);
                ticket
            }
        };
        if let Some(group) = self.groups.get_mut(&id) {
            group.members.push(key.clone());
            if group.state == State::Waits && due < group.at {
                group.at = due;
                group.ticket = ticket;
                self.heap.push(Reverse((due, ticket, id)));
            }
        }
        self.entries.insert(
            key,
            Entry {
                spec,
                machine,
                group: id,
                joined,
                due,
            },
        );
    }

    fn leave(&mut self, key: &CheckKey) -> Option<Machine> {
        let entry = self.entries.remove(key)?;
        if let Some(group) = self.groups.get_mut(&entry.group) {
            group.members.retain(|member| member != key);
            if group.members.is_empty() {
                let target = group.target.clone();
                self.by_target.remove(&target);
                self.groups.remove(&entry.group);
            }
        }
        Some(entry.machine)
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

/// Checks that are far apart fall on ticks, so that many of them cost one waking up.
fn on_a_tick(due: Duration, pause: Duration) -> Duration {
    const TICK: u64 = 20;
    if pause < Duration::from_secs(1) {
        return due;
    }
    let ticks = u64::try_from(due.as_millis()).unwrap_or(u64::MAX) / TICK;
    Duration::from_millis(ticks.saturating_add(1).saturating_mul(TICK))
}
