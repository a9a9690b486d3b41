//! Endpoints that no living node checks. Of a node that is gone: every node checks those for itself. Made by hand: the
//! nodes that the snapshot chose check those and publish what they find.
//!
//! # Layout
//! - [`mod@self`]: which endpoints are checked, and what is known of each (no I/O, no clock)
//! - `collect`: which slices of nodes that are gone are of no use any more, and who removes them (no I/O, no clock)
//! - `write`: publishes and removes

mod collect;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use model::catalog::Catalog;
use model::endpoint::{EndpointId, Fact, Findings, Found, Health};
use model::membership::NodeState;
use model::name::{Name, ServiceKey};
use model::snapshot::{EndpointView, Finding, ServiceView, Snapshot};

use crate::check::{self, Begin, CheckKey, Checks, Plan};

pub use collect::{CollectOptions, Collector};
pub use write::Caretaker;

/// An endpoint that is checked here.
#[derive(Debug)]
struct Checked {
    /// Its checks said something.
    told: bool,
    /// No node owns it: what is found is published.
    ownerless: bool,
    /// Since when its checks let it not pass.
    down_since: Option<Duration>,
}

/// A service some of whose endpoints are checked here.
#[derive(Debug)]
struct Looked {
    /// As it was looked at: as long as the snapshot has this one, nothing has changed.
    view: Arc<ServiceView>,
    checked: HashMap<EndpointId, Checked>,
    /// What the registry should have of it from this node.
    wished: Option<Findings>,
    /// That has to be worked out anew: the view changed, or a check turned.
    turned: bool,
}

/// The unowned endpoints that are checked, and what was told of each.
#[derive(Debug)]
pub struct Unowned {
    node: Name,
    services: HashMap<ServiceKey, Looked>,
}

impl Unowned {
    /// Nothing is checked yet on `node`.
    pub fn new(node: Name) -> Self {
        Unowned {
            node,
            services: HashMap::new(),
        }
    }

    /// Begins and ends checks so that exactly the unowned endpoints of the snapshot are checked; returns the findings to
    /// take back. `now` is since a moment that the caller chose. Costs little for services that have not changed.
    pub fn follow(
        &mut self,
        snapshot: &Snapshot,
        catalog: &Catalog,
        checks: &mut Checks,
        now: Duration,
    ) -> Vec<Finding> {
        let mut look = Look {
            snapshot,
            catalog,
            checks,
            now,
            withdrawn: Vec::new(),
        };
        let mut there = 0;
        let views = snapshot
            .unowned
            .iter()
            .filter_map(|service| snapshot.service(service));
        for view in views {
            there += 1;
            let before = self.services.get_mut(&view.key);
            if before.as_ref().is_some_and(|b| Arc::ptr_eq(&b.view, view)) {
                continue;
            }
            let before = before.map_or_else(HashMap::new, |b| std::mem::take(&mut b.checked));
            let looked = Looked {
                checked: self.look(view, before, &mut look),
                view: view.clone(),
                wished: None,
                turned: true,
            };
            self.services.insert(view.key.clone(), looked);
        }
        if self.services.len() > there {
            let is_gone = |key: &ServiceKey, _: &mut Looked| {
                !snapshot.unowned.contains(key) || snapshot.service(key).is_none()
            };
            for (service, looked) in self.services.extract_if(is_gone) {
                for (id, known) in looked.checked {
                    look.end(&service, id, &known);
                }
            }
        }
        look.withdrawn
    }

    /// Has exactly the unowned endpoints of one service checked, those of `before` being checked already.
    fn look(
        &self,
        view: &ServiceView,
        mut before: HashMap<EndpointId, Checked>,
        look: &mut Look<'_>,
    ) -> HashMap<EndpointId, Checked> {
        let mut after = HashMap::new();
        for endpoint in view.ports.iter().flat_map(|port| &port.endpoints) {
            if !endpoint.unowned || endpoint.addresses().is_empty() {
                continue;
            }
            let key = unowned(&view.key, &endpoint.id);
            let policy = view.service.spec.health.as_ref();
            let Plan::Active(spec) = check::plan_without_docker(policy, endpoint.addresses())
            else {
                continue;
            };
            let known = before.remove(&endpoint.id);
            if look.checks.change(&key, &spec)
                && let Some(known) = known
            {
                after.insert(key.id, known);
                continue;
            }
            let begin = self.begin(look.snapshot, look.catalog, &view.key, endpoint);
            let (Begin::Starting(fact) | Begin::Known(fact) | Begin::Suspect(fact)) = &begin;
            let known = Checked {
                told: false,
                ownerless: endpoint.node.is_none(),
                down_since: (fact.value != Health::Passing).then_some(look.now),
            };
            look.checks.begin(key.clone(), spec, begin);
            after.insert(key.id, known);
        }
        for (id, known) in before {
            look.end(&view.key, id, &known);
        }
        after
    }

    /// Where an endpoint's checks begin.
    fn begin(
        &self,
        snapshot: &Snapshot,
        catalog: &Catalog,
        service: &ServiceKey,
        endpoint: &EndpointView,
    ) -> Begin {
        let published = &endpoint.endpoint.health;
        let Some(node) = &endpoint.node else {
            let own = catalog
                .findings
                .get(service)
                .and_then(|by_node| by_node.get(&self.node)?.of(&endpoint.id));
            return match own {
                // An earlier process of this node checked it.
                Some(fact) => Begin::Known(fact.clone()),
                None if endpoint.health.value == Health::Unknown => {
                    Begin::Starting(published.clone())
                }
                // Taken over from a node that checked it.
                None => Begin::Suspect(endpoint.health.clone()),
            };
        };
        match snapshot.node_state(node) {
            _ if published.value == Health::Unknown => Begin::Starting(published.clone()),
            NodeState::Orphaned => Begin::Suspect(published.clone()),
            // Believed until its checks fail as often in a row as anybody's.
            NodeState::Alive | NodeState::Restarting | NodeState::Held => {
                Begin::Known(published.clone())
            }
        }
    }

    /// The finding that a check's new fact makes; `None` when the endpoint is not unowned any more.
    pub fn found(&mut self, key: CheckKey, fact: Fact<Health>, now: Duration) -> Option<Finding> {
        let looked = self.services.get_mut(&key.service)?;
        let known = looked.checked.get_mut(&key.id)?;
        looked.turned = true;
        known.told = true;
        known.down_since = match fact.value {
            Health::Passing => None,
            Health::Failing | Health::Unknown => known.down_since.or(Some(now)),
        };
        Some(Finding {
            service: key.service,
            id: key.id,
            health: Some(fact),
        })
    }

    /// What this node should publish of endpoints that no node owns, and the registry, as the catalog shows it, has not;
    /// `None`: that there is nothing.
    pub fn unpublished(
        &mut self,
        catalog: &Catalog,
        checks: &Checks,
    ) -> BTreeMap<ServiceKey, Option<Findings>> {
        let mut wishes = BTreeMap::new();
        for (service, by_node) in &catalog.findings {
            if by_node.contains_key(&self.node) && !self.services.contains_key(service) {
                wishes.insert(service.clone(), None);
            }
        }
        for (service, looked) in &mut self.services {
            if looked.turned {
                looked.turned = false;
                looked.wished = looked.findings(service, &self.node, checks);
            }
            let there = catalog
                .findings
                .get(service)
                .and_then(|m| m.get(&self.node));
            if there.map(Arc::as_ref) != looked.wished.as_ref() {
                wishes.insert(service.clone(), looked.wished.clone());
            }
        }
        wishes
    }

    /// Since when an endpoint's checks from here let it not pass: `Some(None)` when it passes, `None` when it is not
    /// checked from here.
    fn down_since(&self, service: &ServiceKey, id: &EndpointId) -> Option<Option<Duration>> {
        let known = self.services.get(service)?.checked.get(id)?;
        Some(known.down_since)
    }
}

impl Looked {
    /// What this node found out about the service's endpoints that no node owns.
    fn findings(&self, service: &ServiceKey, node: &Name, checks: &Checks) -> Option<Findings> {
        let mut endpoints: Vec<Found> = Vec::new();
        for (id, known) in self.checked.iter().filter(|(_, known)| known.ownerless) {
            // What its checks did not say yet is worth telling where it was taken over from another node.
            if let Some(fact) = checks.fact(&unowned(service, id))
                && (known.told || fact.value != Health::Unknown)
            {
                endpoints.push(Found::new(id, fact.clone()));
            }
        }
        endpoints.sort_by(|a, b| {
            (&a.workload, &a.port, &a.generation).cmp(&(&b.workload, &b.port, &b.generation))
        });
        (!endpoints.is_empty()).then(|| Findings {
            service: service.clone(),
            node: node.clone(),
            endpoints,
        })
    }
}

/// One look at all services.
struct Look<'a> {
    snapshot: &'a Snapshot,
    catalog: &'a Catalog,
    checks: &'a mut Checks,
    now: Duration,
    withdrawn: Vec<Finding>,
}

impl Look<'_> {
    /// Ends an endpoint's checks and takes back what they found.
    fn end(&mut self, service: &ServiceKey, id: EndpointId, known: &Checked) {
        let key = unowned(service, &id);
        self.checks.remove(&key);
        if known.told {
            self.withdrawn.push(Finding {
                service: key.service,
                id,
                health: None,
            });
        }
    }
}

fn unowned(service: &ServiceKey, id: &EndpointId) -> CheckKey {
    CheckKey {
        service: service.clone(),
        id: id.clone(),
        unowned: true,
    }
}
