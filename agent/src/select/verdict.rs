//! What users are told about a workload.

use model::workload::Verdict;

use super::endpoints;
use super::index::Selection;
use crate::local::WorkloadKey;

impl Selection {
    /// Which services select a workload, or the closest reason why none does; then what is wrong with it.
    pub fn verdicts(&self, key: &WorkloadKey) -> Vec<Verdict> {
        let Some(member) = self.workloads.get(key) else {
            return Vec::new();
        };
        let local = &member.local;
        let mut verdicts = Vec::new();
        for service in &member.selected {
            let Some(found) = self.service(service) else {
                continue;
            };
            let made = endpoints(found, local, &self.node);
            let selector = found
                .spec
                .selector
                .as_ref()
                .map_or_else(String::new, ToString::to_string);
            let mut reason = if made.endpoints.is_empty() {
                String::new()
            } else {
                format!("selected by `{selector}`")
            };
            for fault in &made.faults {
                if !reason.is_empty() {
                    reason.push_str("; ");
                }
                reason.push_str(fault);
            }
            verdicts.push(Verdict {
                service: Some(service.clone()),
                selected: !made.endpoints.is_empty(),
                reason,
            });
        }
        if verdicts.is_empty() {
            let reason = match &local.workload.problem {
                Some(problem) => problem.clone(),
                None => self.why_not(key),
            };
            verdicts.push(about_itself(reason));
        }
        for warning in &local.wishes.warnings {
            if !verdicts.iter().any(|v| v.reason.contains(warning.as_str())) {
                verdicts.push(about_itself(warning.clone()));
            }
        }
        verdicts
    }

    /// The closest reason why no service selects a workload.
    fn why_not(&self, key: &WorkloadKey) -> String {
        let Some(member) = self.workloads.get(key) else {
            return String::new();
        };
        let workload = &member.local.workload;
        let namespace = &workload.namespace;
        let elsewhere = self
            .candidates(&workload.labels)
            .filter(|service| {
                let selector = service.spec.selector.as_ref();
                selector.is_some_and(|s| s.matches(&workload.labels))
            })
            .map(|service| service.key())
            .min();
        if let Some(service) = elsewhere {
            return format!(
                "not selected: namespace is {namespace}, and {service} selects in {} only",
                service.namespace
            );
        }
        if self.namespaces.contains_key(namespace) {
            format!("not selected: no selector in namespace {namespace} matches its labels")
        } else {
            format!("not selected: no service with a selector in namespace {namespace}")
        }
    }
}

/// A verdict about the workload itself.
pub(crate) fn about_itself(reason: String) -> Verdict {
    Verdict {
        service: None,
        selected: false,
        reason,
    }
}
