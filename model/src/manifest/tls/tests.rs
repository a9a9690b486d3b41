use super::super::check_service;
use crate::service::{Retries, ServiceSpec, TlsVersion};
use crate::strict;

/// A spec whose only port has these fields too.
fn spec(port: &str) -> Result<ServiceSpec, String> {
    read(&format!(
        "{{ports: [{{port: 443, protocol: http, {port}}}]}}"
    ))
}

fn read(spec: &str) -> Result<ServiceSpec, String> {
    let document = strict::parse_documents(spec).unwrap().remove(0);
    let spec: ServiceSpec = strict::from_value(document.value).map_err(|e| e.to_string())?;
    check_service(spec).map_err(|e| e.to_string())
}

const PAIR: &str = "{certFile: /etc/web.pem, keyFile: /etc/web.key}";

#[test]
fn tls_is_read_and_written_as_it_was_read() {
    let text = "tls: {certificates: [{certFile: /a.pem, keyFile: /a.key}], minVersion: '1.3'}, \
                upstreamTls: {caFile: /ca.pem, serverName: db.internal}";
    let read = spec(text).unwrap();
    let tls = read.ports[0].tls.as_deref().unwrap();
    assert_eq!(tls.certificates[0].key_file, "/a.key");
    assert_eq!(tls.min_version, TlsVersion::V1_3);
    let json = serde_json::to_value(&read.ports[0]).unwrap();
    assert_eq!(
        json["tls"],
        serde_json::json!({"certificates": [{"certFile": "/a.pem", "keyFile": "/a.key"}], "minVersion": "1.3"})
    );
    assert_eq!(
        json["upstreamTls"],
        serde_json::json!({"caFile": "/ca.pem", "serverName": "db.internal"})
    );
    let back: crate::service::ServicePort = serde_json::from_value(json).unwrap();
    assert_eq!(back, read.ports[0]);
}

#[test]
fn defaults_are_not_written() {
    let read = spec(&format!(
        "tls: {{certificates: [{PAIR}]}}, upstreamTls: {{}}"
    ))
    .unwrap();
    let tls = read.ports[0].tls.as_deref().unwrap();
    assert_eq!(tls.min_version, TlsVersion::V1_2);
    let json = serde_json::to_value(&read.ports[0]).unwrap();
    assert!(json["tls"].get("minVersion").is_none(), "{json}");
    assert_eq!(json["upstreamTls"], serde_json::json!({}));
    let bare = serde_json::to_value(&spec("nodePort: 1").unwrap().ports[0]).unwrap();
    assert!(bare.get("tls").is_none() && bare.get("upstreamTls").is_none());
}

#[test]
fn what_is_wrong_is_named_with_its_path_and_value() {
    let long = format!("serverName: {}.internal", "a".repeat(64));
    for (port, expected) in [
        ("tls: {}", "spec.ports[0].tls.certificates: at least one"),
        ("tls: {certificates: [{certFile: /a.pem}]}", "keyFile"),
        (
            "tls: {certificates: [{certFile: a.pem, keyFile: /a.key}]}",
            "spec.ports[0].tls.certificates[0].certFile: `a.pem` is not an absolute path",
        ),
        (
            &format!("tls: {{certificates: [{PAIR}, {PAIR}]}}"),
            "spec.ports[0].tls.certificates[1]: the same files are named twice",
        ),
        (
            &format!("tls: {{certificates: [{PAIR}], minVersion: '1.1'}}"),
            "spec.ports[0].tls.minVersion: use \"1.2\" or \"1.3\"",
        ),
        (
            &format!("tls: {{certificates: [{PAIR}], minVersion: 1.3}}"),
            "tls.minVersion",
        ),
        (
            &format!("tls: {{certificats: [{PAIR}]}}"),
            "did you mean `certificates`?",
        ),
        (
            "upstreamTls: {caFile: ca.pem}",
            "spec.ports[0].upstreamTls.caFile: `ca.pem` is not an absolute path",
        ),
        (
            "upstreamTls: {serverName: 'db internal'}",
            "spec.ports[0].upstreamTls.serverName: `db internal` is neither",
        ),
        (
            "upstreamTls: {serverName: 10.0.0}",
            "upstreamTls.serverName",
        ),
        ("upstreamTls: {serverName: ''}", "upstreamTls.serverName"),
        (
            &format!("upstreamTls: {{{long}}}"),
            "upstreamTls.serverName",
        ),
        ("upstreamTls: {servername: a}", "did you mean `serverName`?"),
    ] {
        let error = spec(port).expect_err(port);
        assert!(
            error.contains(expected),
            "{port}\n gave: {error}\n not: {expected}"
        );
    }
}

#[test]
fn names_and_addresses_of_both_families_are_server_names() {
    for name in ["db", "db-1.shop_a.internal", "192.0.2.1", "'2001:db8::1'"] {
        spec(&format!("upstreamTls: {{serverName: {name}}}")).expect(name);
    }
}

#[test]
fn a_check_that_would_never_pass_is_refused() {
    let ports = "ports: [{port: 443, protocol: http, upstreamTls: {}}]";
    for (health, path) in [("http: {path: /}", "http"), ("grpc: {}", "grpc")] {
        let error = read(&format!("{{{ports}, health: {{{health}}}}}")).unwrap_err();
        assert!(
            error.starts_with(&format!("spec.health.{path}: checks over TLS")),
            "{error}"
        );
    }
    for health in ["{tcp: {}}", "{docker: {}}", "{interval: 1s}", "none"] {
        read(&format!("{{{ports}, health: {health}}}")).expect(health);
    }
}

#[test]
fn a_try_has_a_time_of_its_own() {
    let read_ = read("{ports: [{port: 80}], retries: {perTry: 250ms}}").unwrap();
    let json = serde_json::to_value(&read_.retries).unwrap();
    assert_eq!(json, serde_json::json!({"perTry": "250ms"}));
    let back: Retries = serde_json::from_value(json).unwrap();
    assert_eq!(back, read_.retries);
    let error = read("{ports: [{port: 80}], retries: {perTry: 0s}}").unwrap_err();
    assert!(
        error.contains("spec.retries.perTry: must be more than 0s"),
        "{error}"
    );
}
