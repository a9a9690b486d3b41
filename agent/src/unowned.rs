//! Endpoints that no living node checks: made by hand, or of a node that is gone. This node checks them for itself.

use std::collections::HashMap;

use model::endpoint::{Fact, Health};
use model::service::HealthPolicy;
use model::snapshot::{Finding, Snapshot};

use crate::check::{self, Begin, CheckKey, Checks, Plan};

/// The unowned endpoints that are checked, and what was told of each.
#[derive(Debug, Default)]
pub struct Unowned {
    told: HashMap<CheckKey, bool>,
}

impl Unowned {
    /// Begins and ends checks so that exactly the unowned endpoints of the snapshot are checked; returns the findings to
    /// take back.
    pub fn follow(&mut self, snapshot: &Snapshot, checks: &mut Checks) -> Vec<Finding> {
        let mut gone: HashMap<CheckKey, bool> = std::mem::take(&mut self.told);
        let views = snapshot
            .unowned
            .iter()
            .filter_map(|service| snapshot.service(service));
        for view in views {
            for endpoint in view.ports.iter().flat_map(|port| &port.endpoints) {
                if !endpoint.unowned || endpoint.addresses().is_empty() {
                    continue;
                }
                let key = CheckKey {
                    service: view.key.clone(),
                    id: endpoint.id.clone(),
                    unowned: true,
                };
                let policy = view.service.spec.health.as_ref().map(reachable);
                // There is no HEALTHCHECK to look at from here, so Docker's word is replaced by a TCP connect.
                let Plan::Active(spec) =
                    check::plan(policy.as_ref(), None, "", endpoint.addresses())
                else {
                    continue;
                };
                if !checks.change(&key, &spec) {
                    let begin = match endpoint.endpoint.health.value {
                        Health::Unknown => Begin::Starting(endpoint.endpoint.health.clone()),
                        _ => Begin::Suspect(endpoint.endpoint.health.clone()),
                    };
                    checks.begin(key.clone(), spec, begin);
                }
                let told = gone.remove(&key).unwrap_or(false);
                self.told.insert(key, told);
            }
        }
        let mut withdrawn = Vec::new();
        for (key, told) in gone {
            checks.remove(&key);
            if told {
                withdrawn.push(Finding {
                    service: key.service,
                    id: key.id,
                    health: None,
                });
            }
        }
        withdrawn
    }

    /// The finding that a check's new fact makes; `None` when the endpoint is not unowned any more.
    pub fn found(&mut self, key: CheckKey, fact: Fact<Health>) -> Option<Finding> {
        *self.told.get_mut(&key)? = true;
        Some(Finding {
            service: key.service,
            id: key.id,
            health: Some(fact),
        })
    }

    /// Whether nothing is checked.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
}

/// The policy without what only the endpoint's own node can see.
fn reachable(policy: &HealthPolicy) -> HealthPolicy {
    match policy {
        HealthPolicy::Disabled => HealthPolicy::Disabled,
        HealthPolicy::Check(check) => {
            let mut check = check.clone();
            check.docker = None;
            HealthPolicy::Check(check)
        }
    }
}
