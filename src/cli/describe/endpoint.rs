//! An endpoint: where it is dialled, its three facts, and whether it takes traffic.

use model::endpoint::{Fact, Health, Lifecycle};

use super::text::Page;
use super::{Around, with};
use crate::admin::view::EndpointItem;

pub(super) fn page(endpoint: &EndpointItem, around: &Around) -> String {
    let mut page = Page::default();
    page.field("Endpoint", &endpoint.name);
    page.field(
        "Service",
        &format!("{}/{}", endpoint.namespace, endpoint.service),
    );
    page.field(
        "Workload",
        &format!("{} ({})", endpoint.workload_name, endpoint.workload),
    );
    let node = endpoint.node.as_ref().map(ToString::to_string);
    page.field(
        "Node",
        &node.unwrap_or_else(|| "none: it was made by hand".to_owned()),
    );
    page.field("State", endpoint.state.as_str());
    page.field("Traffic", &traffic(endpoint));
    page.field("Dialled at", &joined(&endpoint.addresses));
    page.field("On its node", &joined(&endpoint.local));
    page.field("From others", &joined(&endpoint.remote));
    page.field("Weight", &endpoint.weight.to_string());
    page.field(
        "In flight",
        &format!("{} from this node", endpoint.in_flight),
    );
    page.field("Id", &endpoint.id);
    page.heading("Facts");
    details(&mut page, endpoint, around);
    around.events(&mut page, &endpoint.name);
    page.finish()
}

/// An endpoint among others of its service.
pub(super) fn facts(page: &mut Page, endpoint: &EndpointItem, around: &Around) {
    let on = endpoint
        .node
        .as_ref()
        .map_or(String::new(), |node| format!(" on {node}"));
    let at = match endpoint.addresses.is_empty() {
        true => String::new(),
        false => format!(" at {}", joined(&endpoint.addresses)),
    };
    page.item(&format!("{}{on}{at}: {}", endpoint.name, endpoint.state));
    page.detail("traffic", &traffic(endpoint));
    details(page, endpoint, around);
}

fn details(page: &mut Page, endpoint: &EndpointItem, around: &Around) {
    let health = match endpoint.health.value {
        Health::Unknown => "unknown",
        Health::Passing => "passing",
        Health::Failing => "failing",
    };
    page.detail("health", &fact(health, &endpoint.health, around));
    let lifecycle = match endpoint.lifecycle.value {
        Lifecycle::Running => "running",
        Lifecycle::Terminating => "terminating",
    };
    page.detail("lifecycle", &fact(lifecycle, &endpoint.lifecycle, around));
    match &endpoint.drained {
        None => page.detail("admin", "enabled"),
        Some(mark) => {
            let drained = format!("{} drained since {}", mark.target, around.since(mark.since));
            page.detail("admin", &with(&drained, &mark.reason));
        }
    }
}

pub(super) fn fact<T>(value: &str, fact: &Fact<T>, around: &Around) -> String {
    let value = format!("{value} since {}", around.since(fact.since));
    with(&value, &fact.reason)
}

/// Whether it gets new work from the node that was asked, and why not.
pub(super) fn traffic(endpoint: &EndpointItem) -> String {
    if endpoint.eligible {
        return match endpoint.state {
            model::State::Ready => "takes new work".to_owned(),
            state => format!("takes new work although it is {state}: nobody better is there"),
        };
    }
    let why = match (endpoint.weight, endpoint.reason.as_str()) {
        (0, _) if endpoint.state == model::State::Ready => "its weight is 0",
        (_, "") if endpoint.addresses.is_empty() => "it has no address that this node can dial",
        (_, "") => endpoint.state.as_str(),
        (_, reason) => reason,
    };
    format!("none: {why}")
}

fn joined<T: ToString>(items: &[T]) -> String {
    let all: Vec<String> = items.iter().map(ToString::to_string).collect();
    all.join(", ")
}
