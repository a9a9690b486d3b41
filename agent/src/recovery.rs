//! Restarts containers that stay unhealthy, where their service asks for it: what Docker itself does not do.
//!
//! A restart is a guess that it helps. Where it doesn't (the database behind all of them is down), it must not make things
//! worse, so there is a bound to everything: per container, per service and per node.
//!
//! # Layout
//! - here: when what is restarted (no I/O, no clock)
//! - `docker`: the restart itself, and which container this process runs in

pub(crate) mod docker;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use model::name::{Name, ServiceKey};

/// What a container's budget is counted over.
const WINDOW: Duration = Duration::from_secs(3600);
/// What a further restart waits for beyond the service's own time, doubled by each restart.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const MOST_BACKOFF: Duration = Duration::from_secs(300);
/// A container that passes for so long has recovered: its next restart waits no longer than its first.
const WELL: Duration = Duration::from_secs(600);
/// How long after a restart the service's other containers wait for this one to take work again.
const SETTLE: Duration = Duration::from_secs(60);
/// Restarts under way on this node at most, of whatever service.
const AT_ONCE: usize = 4;
/// Restarts that begin on this node within `NODE_WINDOW` at most.
const NODE_BUDGET: usize = 20;
const NODE_WINDOW: Duration = Duration::from_secs(600);

/// A container that a service with `recovery` selects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Patient {
    /// Its short id, which it keeps over restarts.
    pub(crate) id: Arc<str>,
    /// A container that somebody restarted starts anew here.
    pub(crate) generation: Arc<str>,
    /// What people call it.
    pub(crate) name: Arc<str>,
    /// Its own.
    pub(crate) namespace: Name,
    /// Every service that selects it and asks for recovery.
    pub(crate) services: Vec<ServiceKey>,
    /// How it is.
    pub(crate) condition: Condition,
}

/// How a container is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Condition {
    /// All of its endpoints pass.
    Well,
    /// Not to be judged: it starts, ends, is paused or drained, or its last check passed.
    Excused,
    /// An endpoint fails.
    Failing(Complaint),
}

/// Why a container is to be restarted, and within which limits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Complaint {
    /// Whose endpoint fails.
    pub(crate) service: ServiceKey,
    /// What its check says.
    pub(crate) reason: Arc<str>,
    /// How long it has to fail.
    pub(crate) after: Duration,
    /// Restarts in an hour at most.
    pub(crate) budget: u32,
}

/// What is to be done about a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Restart it, and tell [`Recovery::ended`] when that is done.
    Restart(Case),
    /// It would be restarted, but was often enough. Told once until it is restarted or well again.
    Exhausted(Case),
}

/// What a decision is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) id: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Name,
    pub(crate) complaint: Complaint,
    /// How long it has failed.
    pub(crate) failing: Duration,
    /// Restarts within the last hour, with this one.
    pub(crate) restarts: usize,
}

#[derive(Debug)]
struct File {
    generation: Arc<str>,
    failing_since: Option<Duration>,
    well_since: Option<Duration>,
    /// Within the last hour.
    restarts: VecDeque<Duration>,
    /// Restarts since it was last well for long.
    in_vain: u32,
    told: bool,
    seen: Duration,
}

#[derive(Debug)]
struct UnderWay {
    services: Vec<ServiceKey>,
    ended: Option<Duration>,
}

/// Who was restarted when. Begins empty with each process: what fails then waits the full time.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    files: HashMap<Arc<str>, File>,
    under_way: HashMap<Arc<str>, UnderWay>,
    /// Of this node, within `NODE_WINDOW`.
    recent: VecDeque<Duration>,
}

impl Recovery {
    /// Decides about all containers of services with recovery, at `now` since a moment that the caller chose. To be asked
    /// again every second or so while it is [`Recovery::busy`].
    pub(crate) fn look(&mut self, now: Duration, patients: &[Patient]) -> Vec<Decision> {
        for patient in patients {
            self.note(now, patient);
        }
        let looked_at: HashSet<&Arc<str>> = patients.iter().map(|patient| &patient.id).collect();
        for (id, file) in &mut self.files {
            // Nobody knows how it was meanwhile.
            if !looked_at.contains(id) {
                file.failing_since = None;
                file.well_since = None;
            }
        }
        self.under_way.retain(|_, one| {
            one.ended
                .is_none_or(|ended| now.saturating_sub(ended) < SETTLE)
        });
        forget(&mut self.recent, now, NODE_WINDOW);
        self.files.retain(|_, file| {
            forget(&mut file.restarts, now, WINDOW);
            // What is gone for good has no file; what is only away for a moment keeps its budget.
            now.saturating_sub(file.seen) < WINDOW
        });
        let mut failing: Vec<(Duration, &Patient, &Complaint)> = patients
            .iter()
            .filter_map(|patient| match &patient.condition {
                Condition::Failing(complaint) => {
                    let since = self.files.get(&patient.id)?.failing_since?;
                    Some((since, patient, complaint))
                }
                Condition::Well | Condition::Excused => None,
            })
            .collect();
        failing.sort_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
        failing
            .into_iter()
            .filter_map(|(since, patient, complaint)| self.decide(now, since, patient, complaint))
            .collect()
    }

    fn note(&mut self, now: Duration, patient: &Patient) {
        let file = self
            .files
            .entry(patient.id.clone())
            .or_insert_with(|| File {
                generation: patient.generation.clone(),
                failing_since: None,
                well_since: None,
                restarts: VecDeque::new(),
                in_vain: 0,
                told: false,
                seen: now,
            });
        file.seen = now;
        if file.generation != patient.generation {
            file.generation = patient.generation.clone();
            file.failing_since = None;
            file.well_since = None;
        }
        match &patient.condition {
            Condition::Failing(_) => {
                file.failing_since.get_or_insert(now);
                file.well_since = None;
            }
            Condition::Excused => {
                file.failing_since = None;
                file.well_since = None;
            }
            Condition::Well => {
                file.failing_since = None;
                file.told = false;
                let since = *file.well_since.get_or_insert(now);
                if now.saturating_sub(since) >= WELL {
                    file.in_vain = 0;
                }
                if self
                    .under_way
                    .get(&patient.id)
                    .is_some_and(|one| one.ended.is_some())
                {
                    self.under_way.remove(&patient.id);
                }
            }
        }
    }

    fn decide(
        &mut self,
        now: Duration,
        since: Duration,
        patient: &Patient,
        complaint: &Complaint,
    ) -> Option<Decision> {
        let taken = |services: &[ServiceKey]| services.iter().any(|s| patient.services.contains(s));
        let waits_its_turn = self.under_way.len() >= AT_ONCE
            || self.recent.len() >= NODE_BUDGET
            || self.under_way.contains_key(&patient.id)
            || self.under_way.values().any(|one| taken(&one.services));
        let file = self.files.get_mut(&patient.id)?;
        let failing = now.saturating_sub(since);
        if failing < complaint.after + backoff(file.in_vain) {
            return None;
        }
        let case = |restarts| Case {
            id: patient.id.clone(),
            name: patient.name.clone(),
            namespace: patient.namespace.clone(),
            complaint: complaint.clone(),
            failing,
            restarts,
        };
        let done = file.restarts.len();
        if done >= usize::try_from(complaint.budget).unwrap_or(usize::MAX) {
            let first = !std::mem::replace(&mut file.told, true);
            return first.then(|| Decision::Exhausted(case(done)));
        }
        if waits_its_turn {
            return None;
        }
        file.restarts.push_back(now);
        file.in_vain = file.in_vain.saturating_add(1);
        file.told = false;
        self.recent.push_back(now);
        self.under_way.insert(
            patient.id.clone(),
            UnderWay {
                services: patient.services.clone(),
                ended: None,
            },
        );
        Some(Decision::Restart(case(done + 1)))
    }

    /// Notes that a restart has ended, in whatever way. The container has to fail anew for the full time.
    pub(crate) fn ended(&mut self, id: &str, now: Duration) {
        if let Some(one) = self.under_way.get_mut(id) {
            one.ended = Some(now);
        }
        if let Some(file) = self.files.get_mut(id) {
            file.failing_since = None;
        }
    }

    /// Notes that a restart could not be tried: it counts for no budget. The next try waits as long as after a restart.
    pub(crate) fn untried(&mut self, id: &str, now: Duration) {
        self.ended(id, now);
        let Some(began) = self.files.get_mut(id).and_then(|f| f.restarts.pop_back()) else {
            return;
        };
        if let Some(at) = self.recent.iter().rposition(|at| *at == began) {
            self.recent.remove(at);
        }
    }

    /// Whether something fails or is being restarted, so that time alone can change what is decided.
    pub(crate) fn busy(&self) -> bool {
        !self.under_way.is_empty() || self.files.values().any(|f| f.failing_since.is_some())
    }
}

fn backoff(in_vain: u32) -> Duration {
    match in_vain.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_BACKOFF
            .saturating_mul(2u32.saturating_pow(doublings))
            .min(MOST_BACKOFF),
    }
}

fn forget(times: &mut VecDeque<Duration>, now: Duration, window: Duration) {
    while times
        .front()
        .is_some_and(|at| now.saturating_sub(*at) >= window)
    {
        times.pop_front();
    }
}
