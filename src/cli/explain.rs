//! `heddle explain`: who would be given the next request, and what removed the others.

use model::service::Balance;

use super::Failure;
use super::client::{Client, escape};
use super::describe::text::Page;
use super::get::out;
use crate::admin::explain::{Candidate, Explanation, PortExplanation, Removed};

/// Endpoints shown at most in one list.
const SHOWN: usize = 50;

pub async fn explain(
    client: &Client,
    what: &str,
    namespace: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let query = match is_url(what) {
        true => format!("url={}", escape(what)),
        false => {
            let service = match (what.contains('/'), namespace) {
                (true, None) => what.to_owned(),
                (_, namespace) => format!("{}/{what}", namespace.unwrap_or("default")),
            };
            format!("service={}", escape(&service))
        }
    };
    let explanation: Explanation = client.get(&format!("/v1/explain?{query}")).await?;
    if json {
        let text = serde_json::to_string_pretty(&explanation)
            .map_err(|e| Failure::Failed(e.to_string()))?;
        return out(&format!("{text}\n"));
    }
    out(&page(&explanation))
}

/// A scheme, a port or a dot is in no service's name.
fn is_url(what: &str) -> bool {
    what.contains("://") || what.contains(['.', ':', '['])
}

fn page(explanation: &Explanation) -> String {
    let mut page = Page::default();
    page.field("Led here by", &explanation.led_here);
    for port in &explanation.ports {
        self::port(&mut page, port);
    }
    page.finish()
}

fn port(page: &mut Page, port: &PortExplanation) {
    let vips: Vec<String> = port.vips.iter().map(ToString::to_string).collect();
    let at = match vips.as_slice() {
        [] => String::new(),
        some => format!(" at {}", some.join(", ")),
    };
    page.field(
        "Service",
        &format!(
            "{}, port {} ({}/{}){at}",
            port.service,
            port.port,
            port.number,
            port.protocol.as_str()
        ),
    );
    page.heading("Endpoints, filter by filter");
    page.item(&format!("{:3} in all", port.endpoints));
    for filter in &port.filters {
        let removed = match filter.removed.len() {
            0 => String::new(),
            n => format!(", {n} removed"),
        };
        page.item(&format!("{:3} {}{removed}", filter.left, filter.filter));
        for one in filter.removed.iter().take(SHOWN) {
            page.hanging(&format!("      {}", self::removed(one)), 10);
        }
        if filter.removed.len() > SHOWN {
            page.item(&format!(
                "      … and {} more",
                filter.removed.len() - SHOWN
            ));
        }
    }
    if port.eligible.is_empty() {
        page.heading("Next request");
        page.item(&format!("is refused: {}", port.unavailable));
        return;
    }
    let how = match port.policy {
        Balance::RoundRobin | Balance::Unsupported => "in turn, by weight",
        Balance::LeastConnections => "the one with the fewest in flight for its weight",
    };
    page.heading(&format!("Next request goes to one of these, {how}"));
    if port.last_resort {
        page.item("nobody is left, so those that still pass their checks while they end are used");
    }
    for one in port.eligible.iter().take(SHOWN) {
        page.hanging(&candidate(one), 6);
    }
    if port.eligible.len() > SHOWN {
        page.item(&format!("… and {} more", port.eligible.len() - SHOWN));
    }
}

fn removed(one: &Removed) -> String {
    format!("{}{}: {}", one.name, on(one.node.as_ref()), one.reason)
}

fn candidate(one: &Candidate) -> String {
    let at: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
    let held = match one.held_off {
        true => "; it left packets unanswered: passed over while there is another",
        false => "",
    };
    format!(
        "{}{} at {}: {:.0} % of the turns (weight {}), {} in flight{held}",
        one.name,
        on(one.node.as_ref()),
        at.join(", "),
        one.share * 100.0,
        one.weight,
        one.in_flight
    )
}

fn on(node: Option<&model::Name>) -> String {
    node.map_or(String::new(), |node| format!(" on {node}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_urls_are_told_apart() {
        for url in [
            "http://web/",
            "10.96.1.1",
            "web.shop.svc.heddle.internal",
            "[::1]:80",
            "h:80",
        ] {
            assert!(is_url(url), "{url}");
        }
        for service in ["web", "shop/web"] {
            assert!(!is_url(service), "{service}");
        }
    }

    #[test]
    fn a_page_goes_from_all_endpoints_to_those_that_are_left() {
        let explanation: Explanation = serde_json::from_value(serde_json::json!({
            "led_here": "10.96.7.7 is the virtual IP of service shop/web",
            "ports": [{
                "service": "shop/web", "port": "http", "number": 80, "protocol": "http",
                "vips": ["10.96.7.7"], "endpoints": 2, "lastResort": false, "policy": "round-robin",
                "filters": [
                    {"filter": "reachable", "removed": [], "left": 2},
                    {"filter": "passing", "left": 1, "removed": [
                        {"name": "web/b:http", "node": "n1", "reason": "connection refused"},
                    ]},
                ],
                "eligible": [{
                    "name": "web/a:http", "node": "n1", "addresses": ["172.17.0.2:80"], "weight": 1,
                    "share": 1.0, "inFlight": 3, "heldOff": false,
                }],
            }],
        }))
        .unwrap();
        assert_eq!(
            page(&explanation),
            "\
Led here by:  10.96.7.7 is the virtual IP of service shop/web
Service:      shop/web, port http (80/http) at 10.96.7.7
Endpoints, filter by filter:
    2 in all
    2 reachable
    1 passing, 1 removed
        web/b:http on n1: connection refused
Next request goes to one of these, in turn, by weight:
  web/a:http on n1 at 172.17.0.2:80: 100 % of the turns (weight 1), 3 in flight
"
        );
    }
}
