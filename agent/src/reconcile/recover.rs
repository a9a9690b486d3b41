//! Which containers stay unhealthy, and having them restarted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{Endpoint, Health, Lifecycle, State};
use model::event::{Event, EventKind};
use model::name::ServiceKey;
use model::service::{Recovery as Policy, RecoveryAction};
use model::time::Timestamp;
use model::units::Span;
use model::workload::Source;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::held::own;
use super::{Reconciler, lock};
use crate::local::{Local, WorkloadKey};
use crate::recovery::docker::{RestartError, own_container, restart};
use crate::recovery::{Case, Complaint, Condition, Decision, Patient, Recovery};

/// How often is looked at what fails.
const LOOK: Duration = Duration::from_secs(1);

/// The restarts that are under way, and when to look for more.
pub(super) struct Recoverer {
    recovery: Recovery,
    /// When to look; none while nothing fails of what may be restarted.
    pub(super) at: Option<Instant>,
    pub(super) restarts: JoinSet<(Case, Result<(), RestartError>)>,
    /// The container of this very process.
    own: Option<String>,
}

impl Recoverer {
    pub(super) fn new() -> Self {
        Recoverer {
            recovery: Recovery::default(),
            at: None,
            restarts: JoinSet::new(),
            own: own_container(),
        }
    }
}

impl Reconciler {
    /// Notes that an endpoint of a service has changed.
    pub(super) fn may_need_recovery(&mut self, service: &ServiceKey) {
        if self.recoverer.at.is_none()
            && self.options.docker.is_some()
            && self.recovery_of(service).is_some()
        {
            self.recoverer.at = Some(Instant::now() + LOOK);
        }
    }

    fn recovery_of(&self, service: &ServiceKey) -> Option<&Policy> {
        let policy = self
            .catalog
            .services
            .get(service)?
            .spec
            .recovery
            .as_deref()?;
        (policy.action == RecoveryAction::Restart).then_some(policy)
    }

    /// Looks at everything that may be restarted, and restarts what has to be.
    pub(super) fn recover(&mut self) {
        let patients = self.patients();
        let now = self.began.elapsed();
        for decision in self.recoverer.recovery.look(now, &patients) {
            match decision {
                Decision::Restart(case) => self.restart(case),
                Decision::Exhausted(case) => {
                    self.count(&case, "exhausted");
                    let budget = case.complaint.budget;
                    let why = why(&case);
                    self.happened(
                        &case,
                        "RecoveryExhausted",
                        format!("not restarted again: {budget} restarts within an hour did not help; {why}"),
                    );
                }
            }
        }
        self.recoverer.at = self
            .recoverer
            .recovery
            .busy()
            .then(|| Instant::now() + LOOK);
    }

    fn restart(&mut self, case: Case) {
        let Some(docker) = &self.options.docker else {
            return;
        };
        let socket = docker.socket.clone();
        let (restarts, budget, why) = (case.restarts, case.complaint.budget, why(&case));
        self.happened(
            &case,
            "RecoveryRestarting",
            format!("restarting it: {why} (restart {restarts} of at most {budget} within an hour)"),
        );
        self.recoverer.restarts.spawn(async move {
            let result = restart(&socket, &case.id).await;
            (case, result)
        });
    }

    /// Takes over how a restart ended.
    pub(super) fn restarted(&mut self, case: &Case, result: Result<(), RestartError>) {
        let now = self.began.elapsed();
        match &result {
            Err(error) if error.untried() => self.recoverer.recovery.untried(&case.id, now),
            _ => self.recoverer.recovery.ended(&case.id, now),
        }
        self.recoverer.at.get_or_insert(Instant::now() + LOOK);
        match result {
            Ok(()) => {
                self.count(case, "restarted");
                let why = why(case);
                self.happened(case, "RecoveryRestarted", format!("restarted: {why}"));
            }
            Err(error) => {
                let error = registry::follow::chain(&error);
                self.count(case, "failed");
                self.happened(
                    case,
                    "RecoveryFailed",
                    format!("could not be restarted: {error}"),
                );
            }
        }
    }

    fn count(&self, case: &Case, result: &str) {
        let service = &case.complaint.service;
        // Its counts went with it.
        if !self.catalog.services.contains_key(service) {
            return;
        }
        self.metrics
            .recovery_restarts
            .with_label_values(&[service.namespace.as_str(), service.name.as_str(), result])
            .inc();
    }

    /// Drops the counts of a service that is deleted: each would stay a time series for ever.
    pub(super) fn uncount(&self, service: &ServiceKey) {
        for result in ["restarted", "failed", "exhausted"] {
            let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
            // An error is that there is none.
            let _ = self
                .metrics
                .recovery_restarts
                .remove_label_values(&[namespace, name, result]);
        }
    }

    fn happened(&self, case: &Case, reason: &str, message: String) {
        tracing::warn!(workload = %case.name, id = %case.id, reason, "{message}");
        self.tell(Event {
            at: Timestamp::now(),
            kind: EventKind::Workload,
            namespace: Some(case.namespace.clone()),
            name: case.name.to_string(),
            node: None,
            reason: reason.to_owned(),
            message,
        });
    }

    /// The containers of this node that may be restarted, and how they are. Registrations are no containers; endpoints of
    /// other nodes are not held here.
    fn patients(&self) -> Vec<Patient> {
        let shared = lock(&self.workloads);
        let mut patients: BTreeMap<Arc<str>, Patient> = BTreeMap::new();
        for (service, held) in &self.held {
            let Some(policy) = self.recovery_of(service) else {
                continue;
            };
            for endpoint in held.endpoints() {
                let Some(local) = shared
                    .selection
                    .workload(&WorkloadKey::container(&endpoint.workload))
                else {
                    continue;
                };
                if local.workload.source != Source::Docker
                    || self.recoverer.own.as_deref() == Some(&*endpoint.workload)
                {
                    continue;
                }
                let condition = self.condition(service, policy, endpoint, local);
                patients
                    .entry(endpoint.workload.clone())
                    .and_modify(|patient| {
                        if !patient.services.contains(service) {
                            patient.services.push(service.clone());
                        }
                        patient.condition = worse(&patient.condition, &condition);
                    })
                    .or_insert_with(|| Patient {
                        id: endpoint.workload.clone(),
                        generation: local.workload.generation.clone(),
                        name: local.workload.name.clone(),
                        namespace: local.workload.namespace.clone(),
                        services: vec![service.clone()],
                        condition: condition.clone(),
                    });
            }
        }
        patients.into_values().collect()
    }

    fn condition(
        &self,
        service: &ServiceKey,
        policy: &Policy,
        endpoint: &Endpoint,
        local: &Local,
    ) -> Condition {
        let docker_waits = local
            .workload
            .docker_health
            .as_ref()
            .is_some_and(|health| health.value == Health::Unknown);
        if local.paused || docker_waits || endpoint.lifecycle.value == Lifecycle::Terminating {
            return Condition::Excused;
        }
        match endpoint.health.value {
            Health::Passing => return Condition::Well,
            Health::Unknown => return Condition::Excused,
            Health::Failing => {}
        }
        let id = endpoint.id();
        let drained = self.snapshot.load().service(service).is_some_and(|view| {
            view.ports
                .iter()
                .flat_map(|port| &port.endpoints)
                .any(|e| e.id == id && e.state == State::Draining)
        });
        if drained || self.checks.passes(&own(service, id)) {
            return Condition::Excused;
        }
        Condition::Failing(Complaint {
            service: service.clone(),
            reason: endpoint.health.reason.clone(),
            after: policy.after(),
            budget: policy.budget(),
        })
    }
}

/// What counts of two endpoints of a container: one that excuses it, else the one that fails and lets it wait the longest.
fn worse(one: &Condition, other: &Condition) -> Condition {
    match (one, other) {
        (Condition::Excused, _) | (_, Condition::Excused) => Condition::Excused,
        (Condition::Failing(a), Condition::Failing(b)) => {
            let patient = |c: &Complaint| (c.after, std::cmp::Reverse(c.budget));
            Condition::Failing(if patient(a) >= patient(b) { a } else { b }.clone())
        }
        (Condition::Failing(complaint), Condition::Well)
        | (Condition::Well, Condition::Failing(complaint)) => Condition::Failing(complaint.clone()),
        (Condition::Well, Condition::Well) => Condition::Well,
    }
}

fn why(case: &Case) -> String {
    let failing = Span(Duration::from_secs(case.failing.as_secs()));
    let Complaint {
        service, reason, ..
    } = &case.complaint;
    format!("its endpoint of {service} has failed for {failing}: {reason}")
}
