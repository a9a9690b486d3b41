use super::*;
use crate::service::{Balance, HealthPolicy, Recovery, RecoveryAction};
use proptest::prelude::*;

const WEB: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop, labels: {team: front}}
spec:
  selector: app=web,tier in (front,edge),!canary
  ports:
    - {name: http, port: 80, targetPort: 8080, protocol: http, nodePort: 30080}
  loadBalancing: {policy: least-connections}
  health:
    http: {path: /healthz, expect: \"200-299\"}
    interval: 5s
    rise: 2
  timeouts: {connect: 1s, request: 15s, idle: 5m}
  retries: {attempts: 2, budgetPercent: 20}
  recovery: restart
---
apiVersion: heddle/v1
kind: Endpoint
metadata: {name: db-1, namespace: shop}
spec: {service: db, address: \"192.0.2.10\", ports: {pg: 5432}, weight: 1, zone: eu-1a}
";

fn errors(text: &str) -> String {
    let errors = parse(text).expect_err("refused");
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn service(spec: &str) -> String {
    format!("apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n")
}

#[test]
fn a_service_and_an_endpoint_are_read() {
    let manifests = parse(WEB).unwrap();
    assert_eq!(manifests.len(), 2);
    let Manifest::Service(web) = &manifests[0] else {
        panic!("a service first")
    };
    assert_eq!(web.metadata.key().to_string(), "shop/web");
    assert_eq!(web.spec.ports[0].target_port, Some(8080));
    assert_eq!(web.spec.load_balancing.policy, Balance::LeastConnections);
}

#[test]
fn the_only_port_is_named_after_its_protocol() {
    let manifests = parse(&service(
        "{ports: [{port: 80, protocol: http}], health: none}",
    ))
    .unwrap();
    let Manifest::Service(web) = &manifests[0] else {
        panic!("a service")
    };
    assert_eq!(web.spec.ports[0].name().as_str(), "http");
    assert_eq!(web.metadata.namespace.as_str(), "default");
    assert_eq!(web.spec.health, Some(HealthPolicy::Disabled));
}

#[test]
fn what_is_wrong_is_named_with_its_path() {
    for (spec, expected) in [
        ("{ports: []}", "spec.ports: a service has at least one port"),
        (
            "{ports: [{port: 80}, {port: 81}]}",
            "spec.ports[0].name: required",
        ),
        (
            "{ports: [{port: 0}]}",
            "spec.ports[0].port: a port is 1 to 65535",
        ),
        ("{ports: [{port: 70000}]}", "spec.ports[0].port"),
        ("{ports: [{port: 80}], portz: 1}", "did you mean `ports`?"),
        (
            "{ports: [{port: 80, protcol: http}]}",
            "did you mean `protocol`?",
        ),
        (
            "{ports: [{port: 80, protocol: sctp}]}",
            "spec.ports[0].protocol",
        ),
        (
            "{ports: [{port: 80, protocol: udp}]}",
            "not supported by this version",
        ),
        (
            "{ports: [{port: 80, proxyProtocol: {}}]}",
            "spec.ports[0].proxyProtocol: not supported by this version",
        ),
        (
            "{ports: [{port: 80}], outlier: {}}",
            "spec.outlier: not supported by this version",
        ),
        (
            "{ports: [{port: 80}], loadBalancing: {policy: peak-ewma}}",
            "spec.loadBalancing.policy",
        ),
        (
            "{ports: [{port: 80}], health: {http: {path: healthz}}}",
            "spec.health.http.path",
        ),
        ("{ports: [{port: 80}], health: {htp: {path: /}}}", "htp"),
        (
            "{ports: [{port: 80}], health: {http: {path: /}, tcp: {}}}",
            "name one of",
        ),
        ("{ports: [{port: 80}], health: sometimes}", "spec.health"),
        (
            "{ports: [{port: 80}], selector: a=b, recovery: reboot}",
            "spec.recovery: the only action is `restart`",
        ),
        (
            "{ports: [{port: 80}], selector: a=b, recovery: {action: restart, after: 500ms}}",
            "spec.recovery.after: 1s to 24h",
        ),
        (
            "{ports: [{port: 80}], selector: a=b, recovery: {action: restart, budget: 0}}",
            "spec.recovery.budget: 1 to 60",
        ),
        (
            "{ports: [{port: 80}], selector: a=b, recovery: {action: restart, aftr: 30s}}",
            "spec.recovery.aftr: unknown field",
        ),
        (
            "{ports: [{port: 80}], selector: a=b, recovery: {after: 30s}}",
            "action",
        ),
        (
            "{ports: [{port: 80}], recovery: restart}",
            "spec.recovery: only containers are restarted",
        ),
        (
            "{ports: [{port: 80}], selector: a=b, health: none, recovery: restart}",
            "spec.recovery: with `health: none`",
        ),
        (
            "{ports: [{port: 80}], vips: [10.96.5.5, 'fd00::5', 10.96.5.6]}",
            "spec.vips[2]: a service has at most one IPv4 and one IPv6 address",
        ),
        (
            "{ports: [{port: 80}], vips: ['::ffff:10.96.5.5']}",
            "spec.vips[0]: write the IPv4 address 10.96.5.5 instead",
        ),
        (
            "{ports: [{port: 80}], vips: [10.96.5]}",
            "spec.vips[0]: invalid IP address",
        ),
        (
            "{ports: [{port: 80}], headless: true, vips: [10.96.5.5]}",
            "spec.vips: a headless service has no virtual IP",
        ),
        (
            "{ports: [{port: 80}], selector: 'app in web'}",
            "spec.selector",
        ),
        (
            "{ports: [{port: 80}], timeouts: {connect: 5}}",
            "spec.timeouts.connect",
        ),
    ] {
        let error = errors(&service(spec));
        assert!(
            error.contains(expected),
            "{spec}\n gave: {error}\n not: {expected}"
        );
        assert!(error.contains("Service web"), "{error}");
    }
}

#[test]
fn one_bad_document_refuses_all_and_every_error_is_told() {
    let text = format!(
        "{WEB}---\napiVersion: heddle/v1\nkind: Route\nmetadata: {{name: x}}\nspec: {{}}\n---\napiVersion: v1\nkind: Pod\n"
    );
    let errors = parse(&text).expect_err("refused");
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0].document, 3);
    assert!(errors[0].reason.contains("not supported by this version"));
    assert!(errors[1].to_string().contains("apiVersion"));
}

#[test]
fn a_resource_defined_twice_is_refused() {
    let text = format!("{WEB}---\n{WEB}");
    assert!(errors(&text).contains("Service shop/web is defined twice"));
}

#[test]
fn a_spec_survives_the_registry() {
    let manifests = parse(WEB).unwrap();
    let Manifest::Service(web) = &manifests[0] else {
        panic!("a service first")
    };
    let json = serde_json::to_string(&web.spec).unwrap();
    let back: ServiceSpec = serde_json::from_str(&json).unwrap();
    assert_eq!(back, web.spec);
}

#[test]
fn requested_addresses_have_one_order() {
    let read = |vips: &str| {
        let text = service(&format!("{{ports: [{{port: 80}}], vips: {vips}}}"));
        match parse(&text).unwrap().remove(0) {
            Manifest::Service(web) => web.spec,
            other => panic!("a service, not {other:?}"),
        }
    };
    let spec = read("['fd00::5', 10.96.5.5]");
    assert_eq!(spec, read("[10.96.5.5, 'fd00:0::5']"));
    let json = serde_json::to_value(&spec).unwrap();
    assert_eq!(json["vips"], serde_json::json!(["10.96.5.5", "fd00::5"]));
    assert_eq!(serde_json::from_value::<ServiceSpec>(json).unwrap(), spec);
}

#[test]
fn recovery_is_written_as_it_was_read() {
    for (yaml, json) in [
        ("restart", r#""restart""#),
        ("{action: restart}", r#""restart""#),
        (
            "{action: restart, after: 90s, budget: 3}",
            r#"{"action":"restart","after":"1m30s","budget":3}"#,
        ),
    ] {
        let text = service(&format!(
            "{{ports: [{{port: 80}}], selector: app=web, recovery: {yaml}}}"
        ));
        let manifests = parse(&text).unwrap();
        let Manifest::Service(web) = &manifests[0] else {
            panic!("a service")
        };
        let recovery = web.spec.recovery.as_deref().unwrap();
        assert_eq!(serde_json::to_string(recovery).unwrap(), json);
        assert_eq!(
            &serde_json::from_str::<Recovery>(json).unwrap(),
            recovery,
            "{json}"
        );
    }
    let newer: Recovery = serde_json::from_str(r#""recreate""#).unwrap();
    assert_eq!(newer.action, RecoveryAction::Unsupported);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn arbitrary_edits_of_a_manifest_never_panic(at in 0usize..600, text in ".{0,3}") {
        let mut edited = WEB.to_owned();
        if let Some((at, _)) = edited.char_indices().nth(at) {
            edited.insert_str(at, &text);
        }
        let _ = parse(&edited);
    }
}
