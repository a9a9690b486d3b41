//! This node's endpoints, from what is desired to what is published.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::endpoint::{Endpoint, EndpointId, Fact, Health, Lifecycle, Slice};
use model::name::ServiceKey;
use model::service::HealthPolicy;
use model::time::Timestamp;

use super::{Reconciler, Seen, lock};
use crate::check::{self, Begin, CheckKey, Plan};
use crate::docker;
use crate::local::WorkloadKey;
use crate::publish::Pace;
use crate::select::Desired;

/// The endpoints of one service on this node, as they are published.
#[derive(Debug, Default)]
pub(super) struct Held {
    endpoints: BTreeMap<EndpointId, (Arc<Endpoint>, Plan)>,
    /// Some were published before and can't be seen yet.
    pub(super) retains: bool,
}

impl Held {
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values().map(|(endpoint, _)| endpoint)
    }
}

impl Reconciler {
    /// Works out a service's endpoints on this node anew, keeping what is known of those that stay, and publishes them.
    pub(super) fn recompute(&mut self, service: &ServiceKey) {
        let now = Timestamp::now();
        let mut desired = lock(&self.workloads).selection.endpoints(service);
        let retained = self.retained(service, &desired);
        let retains = !retained.is_empty();
        desired.extend(retained);
        let published = self.catalog.slice(service, &self.node).cloned();
        let mut before = self.held.remove(service).unwrap_or_default().endpoints;
        let mut after = BTreeMap::new();
        // That of the hastiest difference.
        let mut pace: Option<Pace> = None;
        let mut known_gone = published_endpoints(published.as_deref());
        for Desired { mut endpoint, plan } in desired {
            let id = endpoint.id();
            let held = before.remove(&id);
            let was = held.as_ref().map(|(e, _)| e).or_else(|| {
                let published = published.as_ref()?;
                published.endpoints.iter().find(|e| e.id() == id)
            });
            if let Some(was) = was {
                let news = endpoint.lifecycle.since > was.lifecycle.since
                    && !endpoint.lifecycle.reason.is_empty();
                if was.lifecycle.value == endpoint.lifecycle.value && !news
                    || still_ends(&was.lifecycle, &endpoint.lifecycle, now)
                {
                    endpoint.lifecycle = was.lifecycle.clone();
                } else {
                    pace = Some(Pace::Now);
                }
            }
            let was_like = held
                .as_ref()
                .map(|(_, was)| std::mem::discriminant(was) == std::mem::discriminant(&plan));
            let known = was.map(|e| e.health.clone());
            endpoint.health = self.health(service, &id, &plan, known, was_like, now);
            let change = match was {
                Some(was) if was.health.value != endpoint.health.value => Some(Pace::Now),
                Some(was) if **was == endpoint => None,
                Some(_) => Some(Pace::Soon),
                // It starts: others hear of it when it is ready.
                None if endpoint.health.value == Health::Unknown => Some(Pace::Lazy),
                None => Some(Pace::Soon),
            };
            pace = pace.max(change);
            known_gone.remove(&id);
            after.insert(id, (Arc::new(endpoint), plan));
        }
        for (id, (was, _)) in before {
            known_gone.remove(&id);
            self.checks.remove(&own(service, id));
            pace = pace.max(Some(match was.lifecycle.value {
                // Everybody was told that it ends, and nobody begins anything with it.
                Lifecycle::Terminating => Pace::Lazy,
                Lifecycle::Running => Pace::Now,
            }));
        }
        // Gone before, which the catalog doesn't show yet.
        for lifecycle in known_gone.into_values() {
            pace = pace.max(Some(match lifecycle {
                Lifecycle::Terminating => Pace::Lazy,
                Lifecycle::Running => Pace::Soon,
            }));
        }
        if !after.is_empty() {
            let endpoints = after;
            self.held
                .insert(service.clone(), Held { endpoints, retains });
        }
        self.publish(service, pace.unwrap_or(Pace::Soon));
    }

    /// What is known of an endpoint's health, having its checks begin, change or end as the plan says.
    ///
    /// `known` is what was published of it; `was_like` whether it was found out in the same way before, if this process
    /// knew it.
    fn health(
        &mut self,
        service: &ServiceKey,
        id: &EndpointId,
        plan: &Plan,
        known: Option<Fact<Health>>,
        was_like: Option<bool>,
        now: Timestamp,
    ) -> Fact<Health> {
        let key = own(service, id.clone());
        let told = |value: Health, reason: &Arc<str>| match &known {
            // The same, for another reason than before: it is so since then all the same.
            Some(known) if known.value == value && was_like == Some(false) => {
                Fact::new(value, known.since, reason.clone())
            }
            Some(known) if known.value == value => known.clone(),
            _ => Fact::new(value, now, reason.clone()),
        };
        let spec = match plan {
            Plan::Fixed(value, reason) => {
                self.checks.remove(&key);
                return told(*value, reason);
            }
            Plan::Docker(value, reason) => {
                let before = match &known {
                    Some(known) if known.value != *value => known.clone(),
                    _ => told(*value, reason),
                };
                return self.checks.hear(key, before, *value, reason);
            }
            Plan::Active(spec) => spec,
        };
        if self.checks.change(&key, spec)
            && let Some(fact) = self.checks.fact(&key)
        {
            return fact.clone();
        }
        let fact = known.unwrap_or_else(|| Fact::new(Health::Unknown, now, "not checked yet"));
        let begin = match (was_like, fact.value) {
            // Published by an earlier process.
            (None, _) => Begin::Known(fact.clone()),
            // Nobody looked so far, or Docker did.
            (Some(_), Health::Passing) => Begin::Suspect(fact.clone()),
            // Paused until now: takes work again with its first pass.
            (Some(_), _) => Begin::Starting(fact.clone()),
        };
        self.checks.begin(key, spec.clone(), begin);
        fact
    }

    /// Endpoints published by an earlier process whose containers can't be seen yet: that they are gone would be a guess.
    /// They are checked meanwhile.
    fn retained(&self, service: &ServiceKey, desired: &[Desired]) -> Vec<Desired> {
        let Some(published) = self.catalog.slice(service, &self.node) else {
            return Vec::new();
        };
        let Some(found) = self.catalog.services.get(service) else {
            return Vec::new();
        };
        if found.spec.selector.is_none() {
            return Vec::new();
        }
        let shared = lock(&self.workloads);
        published
            .endpoints
            .iter()
            .filter(|endpoint| {
                let unseen = match &self.seen {
                    Seen::Nothing => true,
                    Seen::AllBut(unjudged) => unjudged.contains(&endpoint.workload),
                };
                let key = WorkloadKey::container(&endpoint.workload);
                unseen
                    && of_container(endpoint)
                    && shared.selection.workload(&key).is_none()
                    && found
                        .spec
                        .ports
                        .iter()
                        .any(|port| port.name() == endpoint.port)
                    && !desired.iter().any(|d| d.endpoint.id() == endpoint.id())
            })
            .map(|endpoint| Desired {
                plan: plan_unseen(found.spec.health.as_ref(), endpoint),
                endpoint: Endpoint::clone(endpoint),
            })
            .collect()
    }

    /// Takes over what a check found.
    pub(super) fn turned(&mut self, key: CheckKey, fact: Fact<Health>) {
        let (service, endpoint) = (&key.service, &key.id);
        if key.unowned {
            tracing::info!(%service, %endpoint, health = ?fact.value, reason = %fact.reason, "endpoint without a living node turned");
            let finding = self.unowned.found(key, fact, self.began.elapsed());
            self.pending.extend(finding);
            self.look_at_unowned();
            return;
        }
        let Some((held, _)) = self
            .held
            .get_mut(service)
            .and_then(|held| held.endpoints.get_mut(endpoint))
        else {
            return;
        };
        if held.health.value != fact.value {
            tracing::info!(%service, %endpoint, workload = %held.name, health = ?fact.value, reason = %fact.reason, "endpoint turned");
        }
        Arc::make_mut(held).health = fact;
        self.publish(&key.service, Pace::Now);
    }

    fn publish(&mut self, service: &ServiceKey, pace: Pace) {
        let slice = self.held.get(service).map(|held| {
            Arc::new(Slice {
                service: service.clone(),
                node: self.node.clone(),
                // In the order of their ids, which is that of a slice.
                endpoints: held.endpoints().cloned().collect(),
            })
        });
        self.tell_own(service, slice.as_ref());
        self.publisher.wish(service, slice, pace);
        self.may_need_recovery(service);
        self.observe(service);
    }

    /// Tells this node's own data path, which need not wait for the registry and must not lose sight of what dies here
    /// while there is none.
    fn tell_own(&mut self, service: &ServiceKey, slice: Option<&Arc<Slice>>) {
        if self.options.own_slices.is_none() {
            return;
        }
        let told = match self.own_told.get(service) {
            Some(told) => told.as_ref(),
            // Until it is told otherwise, it takes the registry's word.
            None => self.catalog.slice(service, &self.node),
        };
        if told == slice {
            return;
        }
        let slice = slice.cloned();
        self.own_told.insert(service.clone(), slice.clone());
        self.own_pending.insert(service.clone(), slice);
    }

    /// Forgets that the data path was told there is nothing, once the registry says the same.
    pub(super) fn forget_told(&mut self, service: &ServiceKey) {
        let told_none = matches!(self.own_told.get(service), Some(None));
        if told_none && self.catalog.slice(service, &self.node).is_none() {
            self.own_told.remove(service);
        }
    }
}

fn published_endpoints(slice: Option<&Slice>) -> BTreeMap<EndpointId, Lifecycle> {
    let endpoints = slice.into_iter().flat_map(|slice| &slice.endpoints);
    endpoints.map(|e| (e.id(), e.lifecycle.value)).collect()
}

pub(super) fn own(service: &ServiceKey, id: EndpointId) -> CheckKey {
    CheckKey {
        service: service.clone(),
        id,
        unowned: false,
    }
}

/// Whether a container that was told to end, as an earlier process published, is not known to be running on: a fresh
/// inspection doesn't show a signal, which is learned a moment later from the events that are replayed.
fn still_ends(was: &Fact<Lifecycle>, is: &Fact<Lifecycle>, now: Timestamp) -> bool {
    was.value == Lifecycle::Terminating
        && is.value == Lifecycle::Running
        && is.since < was.since
        && was.since.age(now) < docker::REPLAY
}

/// Whether the generation is a container's, which starts with its `StartedAt`; a registration's is a number.
fn of_container(endpoint: &Endpoint) -> bool {
    endpoint
        .generation
        .split('/')
        .next()
        .is_some_and(|started| started.contains('T'))
}

/// How an endpoint is checked whose container can't be seen: a HEALTHCHECK that failed is believed on, and for one that
/// passed a TCP connect stands in.
fn plan_unseen(policy: Option<&HealthPolicy>, endpoint: &Endpoint) -> Plan {
    let by_docker = match policy {
        None => true,
        Some(HealthPolicy::Disabled) => false,
        Some(HealthPolicy::Check(c)) => c.http.is_none() && c.tcp.is_none() && c.grpc.is_none(),
    };
    let known = &endpoint.health;
    let ends = endpoint.lifecycle.value == Lifecycle::Terminating;
    if by_docker && (known.value != Health::Passing || ends) {
        return Plan::Docker(known.value, known.reason.clone());
    }
    check::plan_without_docker(policy, &endpoint.local)
}
