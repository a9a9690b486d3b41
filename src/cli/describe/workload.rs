//! A workload: what it is, and what was decided about it and each service.

use model::endpoint::{Health, Lifecycle};
use model::workload::WorkloadReport;

use super::text::Page;
use super::{Around, endpoint, with};
use crate::admin::view::EndpointItem;

pub(super) fn page(report: &WorkloadReport, endpoints: &[EndpointItem], around: &Around) -> String {
    let mut page = Page::default();
    let workload = &report.workload;
    let join = |items: Vec<String>| items.join(", ");
    page.field("Workload", &workload.name);
    page.field("Id", &workload.id);
    page.field("Namespace", workload.namespace.as_str());
    page.field("Node", report.node.as_str());
    page.field("Source", &format!("{:?}", workload.source).to_lowercase());
    if let Some(problem) = &workload.problem {
        page.field("Problem", problem);
    }
    let lifecycle = &workload.lifecycle;
    let state = match lifecycle.value {
        Lifecycle::Running => "running",
        Lifecycle::Terminating => "terminating",
    };
    page.field("Lifecycle", &endpoint::fact(state, lifecycle, around));
    if let Some(health) = &workload.docker_health {
        let value = match health.value {
            Health::Unknown => "starting",
            Health::Passing => "healthy",
            Health::Failing => "unhealthy",
        };
        page.field(
            "HEALTHCHECK",
            &format!("{value} since {}", around.since(health.since)),
        );
    }
    page.field(
        "Addresses",
        &join(workload.addresses.iter().map(ToString::to_string).collect()),
    );
    page.field("Network", &workload.network);
    page.field(
        "Exposed",
        &join(workload.exposed.iter().map(ToString::to_string).collect()),
    );
    let published = workload.published.iter();
    page.field(
        "Published",
        &join(
            published
                .map(|p| format!("{} at {}", p.port, p.host))
                .collect(),
        ),
    );
    let labels = workload.labels.iter();
    page.field(
        "Labels",
        &join(
            labels
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
        ),
    );
    page.field("Generation", &workload.generation);

    page.heading("Services");
    if report.verdicts.is_empty() {
        page.item(&format!(
            "none: no service of namespace {} selects it",
            workload.namespace
        ));
    }
    for verdict in &report.verdicts {
        let text = match (&verdict.service, verdict.selected) {
            (Some(service), true) => format!("{service}: {}", with("selected", &verdict.reason)),
            (Some(service), false) => {
                format!("{service}: {}", with("not selected", &verdict.reason))
            }
            (None, _) => verdict.reason.clone(),
        };
        page.item(&text);
    }
    if !endpoints.is_empty() {
        page.heading("Endpoints");
        for item in endpoints {
            endpoint::facts(&mut page, item, around);
        }
    }
    around.events(&mut page, &workload.name);
    page.finish()
}
