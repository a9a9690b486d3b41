//! A node: whether it is there, what is on it, and what it waits for.

use std::collections::BTreeMap;

use super::text::Page;
use super::{Around, with};
use crate::admin::ready::Readiness;
use crate::admin::view::{EndpointItem, NodeItem};

pub(super) fn page(
    node: &NodeItem,
    endpoints: &[EndpointItem],
    ready: Option<&Readiness>,
    around: &Around,
) -> String {
    let mut page = Page::default();
    page.field("Node", node.name.as_str());
    let since = node
        .since
        .map_or(String::new(), |at| format!(" since {}", around.since(at)));
    page.field("Status", &format!("{}{since}", node.status));
    if let Some(mark) = &node.drained {
        let since = format!("since {}", around.since(mark.since));
        page.field("Drained", &with(&since, &mark.reason));
    }
    if let Some(at) = node.alive_since {
        page.field("Alive since", &around.since(at));
    }
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    page.field("Address", &addresses.join(", "));
    page.field("Zone", node.zone.as_deref().unwrap_or_default());
    page.field("Version", &node.version);
    if let Some(ready) = ready {
        page.heading("Readiness");
        page.item(match ready.ready {
            true => "ready, and this is the node that was asked",
            false => "not ready, and this is the node that was asked",
        });
        for reason in &ready.reasons {
            page.item(reason);
        }
    }
    page.heading("Services with endpoints here");
    let mut services: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for endpoint in endpoints {
        let key = format!("{}/{}", endpoint.namespace, endpoint.service);
        let (taking, all) = services.entry(key).or_default();
        *taking += usize::from(endpoint.eligible);
        *all += 1;
    }
    if services.is_empty() {
        page.item("none");
    }
    let more = services.len().saturating_sub(super::SHOWN);
    for (service, (taking, all)) in services.iter().take(super::SHOWN) {
        page.item(&format!(
            "{service}: {taking} of {all} endpoints take traffic"
        ));
    }
    if more > 0 {
        page.item(&format!("… and {more} more"));
    }
    around.events(&mut page, node.name.as_str());
    page.finish()
}
