//! What runs here and what was decided about it, shared with the admin API.

use std::sync::Arc;

use model::catalog::Catalog;
use model::endpoint::Lifecycle;
use model::name::Name;
use model::workload::{Verdict, WorkloadReport};

use crate::labels::Table;
use crate::local::WorkloadKey;
use crate::select::{NodeFacts, Selection, about_itself, endpoints};
use crate::services::ServiceWriter;

/// Who selects whom on this node. Reports are made when they are asked for.
pub struct Workloads {
    pub(super) selection: Selection,
    pub(super) table: Table,
    pub(super) catalog: Catalog,
    writer: Arc<ServiceWriter>,
}

impl Workloads {
    pub(super) fn new(node: NodeFacts, writer: Arc<ServiceWriter>) -> Self {
        Workloads {
            selection: Selection::new(node),
            table: Table::default(),
            catalog: Catalog::default(),
            writer,
        }
    }

    /// Every workload with its verdicts, by name.
    pub fn reports(&self, node: &Name) -> Vec<WorkloadReport> {
        let mut reports: Vec<WorkloadReport> = self
            .selection
            .workloads()
            .map(|local| WorkloadReport {
                workload: local.workload.clone(),
                node: node.clone(),
                verdicts: self.verdicts(&local.key()),
            })
            .collect();
        reports.sort_by(|a, b| a.workload.name.cmp(&b.workload.name));
        reports
    }

    fn verdicts(&self, key: &WorkloadKey) -> Vec<Verdict> {
        let mut verdicts = self.selection.verdicts(key);
        let Some(local) = self.selection.workload(key) else {
            return verdicts;
        };
        if local.paused {
            verdicts.push(about_itself(
                "paused: takes no work until it is unpaused".to_owned(),
            ));
        }
        let lifecycle = &local.workload.lifecycle;
        match lifecycle.value {
            Lifecycle::Terminating => {
                verdicts.push(about_itself(format!(
                    "{}: takes no new work",
                    lifecycle.reason
                )));
            }
            Lifecycle::Running if !lifecycle.reason.is_empty() => {
                verdicts.push(about_itself(lifecycle.reason.to_string()));
            }
            Lifecycle::Running => {}
        }
        verdicts.extend(self.table.verdict(local, &self.catalog).map(about_itself));
        if let Some(wish) = &local.wishes.service
            && let Some(reason) = self.writer.refusal(&wish.key)
        {
            verdicts.push(about_itself(format!(
                "service {} can't be made of labels: {reason}",
                wish.key
            )));
        }
        verdicts
    }

    /// What prevents a workload from serving as its labels and its services ask.
    pub(super) fn trouble(&self, key: &WorkloadKey) -> Vec<String> {
        let Some(local) = self.selection.workload(key) else {
            return Vec::new();
        };
        let mut trouble: Vec<String> = local.workload.problem.iter().cloned().collect();
        trouble.extend(local.wishes.warnings.iter().cloned());
        if local.workload.problem.is_some() {
            // It is the fault of every service alike.
            return trouble;
        }
        for service in self.selection.selected_by(key) {
            if let Some(found) = self.selection.service(service) {
                let made = endpoints(found, local, self.selection.node());
                let faults = made.faults.into_iter();
                trouble.extend(faults.map(|fault| format!("service {service}: {fault}")));
            }
        }
        trouble
    }

    /// How many workloads there are of each kind, for the metrics.
    pub(super) fn counts(&self) -> [(&'static str, i64); 3] {
        let (mut selected, mut unselected, mut problem) = (0, 0, 0);
        for local in self.selection.workloads() {
            if local.workload.problem.is_some() {
                problem += 1;
            } else if self.selection.selected_by(&local.key()).next().is_some() {
                selected += 1;
            } else {
                unselected += 1;
            }
        }
        [
            ("selected", selected),
            ("unselected", unselected),
            ("problem", problem),
        ]
    }
}
