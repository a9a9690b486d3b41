//! A service: its selector with every workload's verdict, its ports, and its endpoints.

use model::service::{HealthPolicy, ServicePort};
use model::workload::WorkloadReport;

use super::text::Page;
use super::{Around, SHOWN, endpoint, with};
use crate::admin::view::{EndpointItem, PortStatus, ServiceItem};

pub(super) fn page(
    service: &ServiceItem,
    endpoints: &[EndpointItem],
    workloads: &[WorkloadReport],
    around: &Around,
) -> String {
    let mut page = Page::default();
    let metadata = &service.metadata;
    let spec = &service.spec;
    page.field("Service", &metadata.key().to_string());
    page.field("Managed by", &service.managed_by.to_string());
    let generation = metadata.generation.unwrap_or(1);
    let made = metadata
        .creation_timestamp
        .map_or(String::new(), |at| format!(", made {}", around.since(at)));
    page.field("Generation", &format!("{generation}{made}"));
    let labels: Vec<String> = metadata
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    page.field("Labels", &labels.join(", "));
    match &spec.selector {
        Some(selector) if selector.to_string().is_empty() => {
            page.field("Selector", "empty: selects nothing");
        }
        Some(selector) => page.field("Selector", &selector.to_string()),
        None => page.field("Selector", "none: its endpoints are made by hand"),
    }
    let vips: Vec<String> = service
        .status
        .vips
        .iter()
        .map(ToString::to_string)
        .collect();
    match vips.as_slice() {
        _ if spec.headless => page.field("Virtual IP", "none: headless, DNS names the endpoints"),
        [] => page.field(
            "Virtual IP",
            "none was free when it was written: apply it again",
        ),
        some => page.field("Virtual IP", &some.join(", ")),
    }
    page.field("Checks", &checks(spec.health.as_ref()));
    page.field("Policy", &rest(service));

    page.heading("Ports");
    for port in &spec.ports {
        let name = port.name();
        let status = service
            .status
            .ports
            .iter()
            .find(|s| s.name == name.as_str());
        self::port(&mut page, port, status);
    }

    page.heading("Endpoints");
    if endpoints.is_empty() {
        page.item(match &spec.selector {
            Some(_) => "none: no workload of any node is selected",
            None => "none: apply resources of kind Endpoint that name this service",
        });
    }
    // Those that take no traffic are what one looks for.
    let (good, bad): (Vec<_>, Vec<_>) = endpoints.iter().partition(|e| e.eligible);
    for item in bad.iter().chain(&good).take(SHOWN) {
        endpoint::facts(&mut page, item, around);
    }
    if endpoints.len() > SHOWN {
        let more = endpoints.len() - SHOWN;
        let namespace = &metadata.namespace;
        page.item(&format!(
            "… and {more} more (heddle get endpoints -n {namespace})"
        ));
    }

    if spec.selector.is_some() {
        verdicts(&mut page, service, workloads);
    }
    around.events(&mut page, metadata.name.as_str());
    page.finish()
}

fn port(page: &mut Page, port: &ServicePort, status: Option<&PortStatus>) {
    let mut parts = vec![format!(
        "{} {}/{}",
        port.name(),
        port.port,
        port.protocol.as_str()
    )];
    if let Some(target) = port.target_port {
        parts.push(format!("to port {target} of the workloads"));
    }
    if let Some(node_port) = port.node_port {
        parts.push(format!("at {node_port} of every node"));
    }
    if let Some(status) = status {
        let all: usize = status.endpoints.values().sum();
        parts.push(format!(
            "{} of {all} endpoints take traffic",
            status.eligible
        ));
    }
    page.item(&parts.join(", "));
    let Some(status) = status else { return };
    if !status.unavailable.is_empty() {
        page.detail("why not", &status.unavailable);
    }
    if let Some(error) = &status.listener_error {
        page.detail("listener", error);
    }
    for error in &status.tls_errors {
        page.detail("tls", error);
    }
}

fn checks(policy: Option<&HealthPolicy>) -> String {
    let check = match policy {
        None => {
            return "Docker's HEALTHCHECK where the image has one, else a TCP connect".to_owned();
        }
        Some(HealthPolicy::Disabled) => {
            return "none: endpoints pass as long as they run".to_owned();
        }
        Some(HealthPolicy::Check(check)) => check,
    };
    let what = match (&check.http, &check.grpc, &check.docker) {
        (Some(http), _, _) => format!("GET {}", http.path),
        (_, Some(_), _) => "gRPC health".to_owned(),
        (_, _, Some(_)) => "Docker's HEALTHCHECK".to_owned(),
        _ if check.tcp.is_some() => "TCP connect".to_owned(),
        _ => "Docker's HEALTHCHECK where the image has one, else a TCP connect".to_owned(),
    };
    format!(
        "{what}, every {:?}, within {:?}; {} in a row pass, {} fail",
        check.interval(),
        check.timeout(),
        check.rise(),
        check.fall()
    )
}

/// What else was asked for, as the manifest has it.
fn rest(service: &ServiceItem) -> String {
    let told = ["selector", "ports", "health", "headless"];
    let spec = serde_json::to_value(&service.spec).unwrap_or_default();
    let parts: Vec<String> = spec
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !told.contains(&key.as_str()))
        .map(|(key, value)| format!("{key} {value}").replace('"', ""))
        .collect();
    parts.join(", ")
}

fn verdicts(page: &mut Page, service: &ServiceItem, workloads: &[WorkloadReport]) {
    let key = service.metadata.key();
    let Some(node) = workloads.first().map(|w| &w.node) else {
        page.heading("Workloads");
        page.item(&format!(
            "none of namespace {} on the node that was asked",
            key.namespace
        ));
        return;
    };
    page.heading(&format!(
        "Workloads of namespace {} on {node}",
        key.namespace
    ));
    for report in workloads.iter().take(SHOWN) {
        let verdict = report
            .verdicts
            .iter()
            .find(|v| v.service.as_ref() == Some(&key));
        let text = match verdict {
            Some(verdict) if verdict.selected => with("selected", &verdict.reason),
            Some(verdict) => with("not selected", &verdict.reason),
            None => match &report.workload.problem {
                Some(problem) => with("can't serve", problem),
                None => "not selected: the selector does not match its labels".to_owned(),
            },
        };
        page.item(&format!("{}: {text}", report.workload.name));
    }
    if workloads.len() > SHOWN {
        page.item(&format!(
            "… and {} more (heddle get workloads -n {})",
            workloads.len() - SHOWN,
            key.namespace
        ));
    }
}
