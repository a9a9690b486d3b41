use std::sync::Arc;

use model::event::Recorded;
use model::{Event, EventKind, Timestamp};

use super::html::Text;
use super::rows;
use crate::admin::ready::Readiness;
use crate::traffic::Rates;

const EVIL: &str = "<script>alert('x')</script>\" onload=\"&";

#[test]
fn what_means_something_in_html_is_replaced() {
    assert_eq!(
        Text(EVIL).to_string(),
        "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onload=&quot;&amp;"
    );
    assert_eq!(Text("grün & gut").to_string(), "grün &amp; gut");
    assert_eq!(Text("").to_string(), "");
}

#[test]
fn events_and_reasons_of_users_are_text() {
    let recorded = Recorded {
        id: 1,
        event: Event {
            at: Timestamp(0),
            kind: EventKind::Workload,
            namespace: None,
            name: EVIL.to_owned(),
            node: None,
            reason: "WorkloadDrained".into(),
            message: EVIL.to_owned(),
        },
        seen: None,
    };
    let ready = Readiness {
        ready: true,
        node: "n1".to_owned(),
        revision: 1,
        reasons: vec![EVIL.to_owned()],
    };
    for html in [rows::event(&Arc::new(recorded)), rows::status(&ready, 1, 0)] {
        assert!(
            !html.contains("<script") && !html.contains("\" onload"),
            "{html}"
        );
    }
}

#[test]
fn figures_of_nothing_are_empty() {
    assert_eq!(rows::figures(None), [const { String::new() }; 6]);
    let rates = Rates {
        requests: 12.4,
        errors: 0.031,
        p50: Some(0.002),
        p99: Some(1.5),
        connections: 1.0,
        active: 7,
        bytes: 4096.0,
    };
    assert_eq!(
        rows::figures(Some(&rates)),
        ["12", "3.1%", "2.0ms", "1.5s", "7", "4.0Ki"]
    );
}

#[test]
fn an_endpoints_figures_are_words_and_only_those_that_say_something() {
    let mut rates = Rates::default();
    assert_eq!(rows::in_short(&rates), "");
    rates.active = 3;
    assert_eq!(rows::in_short(&rates), "3 conns");
    (rates.requests, rates.errors, rates.p99) = (12.4, 0.031, Some(0.002));
    assert_eq!(
        rows::in_short(&rates),
        "12 req/s, 3.1% errors, p99 2.0ms, 3 conns"
    );
}

#[test]
fn the_policy_lets_nothing_in_from_elsewhere_and_the_page_has_nothing_inline() {
    assert!(super::POLICY.starts_with("default-src 'none';"));
    assert!(!super::POLICY.contains("unsafe") && !super::POLICY.contains("http"));
    for text in [super::SCRIPT, super::STYLE] {
        assert!(!text.contains("http://") && !text.contains("https://"));
    }
}
