use serde_json::json;

use super::*;

fn at(ms: i64) -> String {
    Timestamp(ms).to_string()
}

fn around() -> Around {
    let event = |id: u64, at: i64, name: &str, reason: &str, message: &str| {
        Arc::new(Recorded {
            id,
            event: model::Event {
                at: Timestamp(at),
                kind: EventKind::Endpoint,
                namespace: Some(model::Name::new("shop").unwrap()),
                name: name.into(),
                node: None,
                reason: reason.into(),
                message: message.into(),
            },
            seen: None,
        })
    };
    Around {
        now: Timestamp(200_000),
        events: vec![
            event(1, 20_000, "web/a:http", "EndpointUnhealthy", "refused"),
            event(2, 140_000, "web/a:http", "EndpointUnhealthy", "refused"),
        ],
    }
}

fn endpoint_item(name: &str, state: &str, reason: &str, eligible: bool) -> EndpointItem {
    let value = json!({
        "name": format!("web/{name}:http"), "namespace": "shop", "service": "web", "port": "http",
        "id": format!("{name}:http@g1"), "workload": name, "workloadName": name, "node": "n1",
        "addresses": ["172.17.0.2:80"], "local": ["172.17.0.2:80"], "remote": [], "weight": 1,
        "state": state, "reason": reason, "eligible": eligible,
        "health": {"value": "passing", "since": at(140_000), "reason": "connected"},
        "lifecycle": {"value": "running", "since": at(20_000)},
        "inFlight": 0,
    });
    serde_json::from_value(value).unwrap()
}

fn service_item() -> ServiceItem {
    let value = json!({
        "apiVersion": "heddle/v1", "kind": "Service", "managedBy": "apply",
        "metadata": {"name": "web", "namespace": "shop", "generation": 2, "creationTimestamp": at(80_000)},
        "spec": {
            "selector": "app=web", "ports": [{"name": "http", "port": 80, "protocol": "http"}],
            "timeouts": {"request": "15s"},
        },
        "status": {"vips": ["10.96.1.1"], "ports": [
            {"name": "http", "port": 80, "endpoints": {"ready": 1, "unhealthy": 1}, "eligible": 1},
        ]},
    });
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_service_page_begins_with_what_takes_no_traffic() {
    let items = [
        endpoint_item("a", "ready", "", true),
        endpoint_item("b", "unhealthy", "connection refused", false),
    ];
    let text = service::page(&service_item(), &items, &[], &around());
    let expected = "\
Service:      shop/web
Managed by:   apply
Generation:   2, made 1970-01-01T00:01:20Z (2m ago)
Selector:     app=web
Virtual IP:   10.96.1.1
Checks:       Docker's HEALTHCHECK where the image has one, else a TCP connect
Policy:       timeouts {request:15s}
Ports:
  http 80/http, 1 of 2 endpoints take traffic
Endpoints:
  web/b:http on n1 at 172.17.0.2:80: unhealthy
      traffic    none: connection refused
      health     passing since 1970-01-01T00:02:20Z (60s ago): connected
      lifecycle  running since 1970-01-01T00:00:20Z (3m ago)
      admin      enabled
  web/a:http on n1 at 172.17.0.2:80: ready
      traffic    takes new work
      health     passing since 1970-01-01T00:02:20Z (60s ago): connected
      lifecycle  running since 1970-01-01T00:00:20Z (3m ago)
      admin      enabled
Workloads:
  none of namespace shop on the node that was asked
Events:
    60s  EndpointUnhealthy web/a:http: refused (×2 in 2m)
";
    assert_eq!(text, expected);
}

#[test]
fn why_an_endpoint_takes_nothing_is_always_said() {
    let traffic = |change: &dyn Fn(&mut EndpointItem)| {
        let mut item = endpoint_item("a", "ready", "", false);
        change(&mut item);
        endpoint::traffic(&item)
    };
    assert_eq!(traffic(&|e| e.weight = 0), "none: its weight is 0");
    assert_eq!(
        traffic(&|e| e.addresses.clear()),
        "none: it has no address that this node can dial"
    );
    assert_eq!(
        traffic(&|e| e.state = model::State::Starting),
        "none: starting"
    );
    let last_resort = |e: &mut EndpointItem| {
        e.eligible = true;
        e.state = model::State::Draining;
    };
    assert!(traffic(&last_resort).contains("although it is draining"));
}

#[test]
fn lines_are_broken_at_words_before_their_hundredth_column() {
    let mut page = Page::default();
    let long = "word ".repeat(60);
    page.field("Label", long.trim());
    page.detail("traffic", long.trim());
    page.item(&"x".repeat(200));
    let text = page.finish();
    let (unbroken, broken): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.contains("xx"));
    assert!(broken.iter().all(|l| l.chars().count() <= 100), "{text}");
    assert!(broken[0].starts_with("Label:        word"));
    assert!(broken[1].starts_with(&format!("{:14}word", "")));
    assert_eq!(
        unbroken,
        [format!("  {}", "x".repeat(200))],
        "a word stays whole"
    );
}

#[test]
fn names_are_found_exactly_by_prefix_or_told_apart() {
    let names = ["web", "web-2", "db"];
    let items: Vec<&&str> = names.iter().collect();
    let find = |name: &str| {
        let wanted = Wanted {
            kind: "service",
            name,
            place: String::new(),
        };
        wanted
            .one(
                &items,
                |s| s.to_string(),
                |s| *s == name,
                |s| s.starts_with(name),
            )
            .map(|found| found.to_string())
            .map_err(|failure| (failure.code(), failure.to_string()))
    };
    assert_eq!(find("web").unwrap(), "web");
    assert_eq!(find("d").unwrap(), "db");
    let (code, text) = find("we").unwrap_err();
    assert_eq!(code, 1);
    assert_eq!(
        text,
        "service we: 2 match (name more of it)\n  web\n  web-2"
    );
    let (_, text) = find("dbb").unwrap_err();
    assert!(text.contains("did you mean db?"), "{text}");
}
