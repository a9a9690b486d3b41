//! The rules that types can't express.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::tls::{check_tls, check_upstream_tls, refuse_unsupported_tls};
use super::{FieldError, field};
use crate::endpoint::ManualEndpointSpec;
use crate::labels::{check_key, check_value};
use crate::name::Name;
use crate::service::{
    Balance, HealthCheck, HealthPolicy, Metadata, Protocol, Recovery, RecoveryAction, ServicePort,
    ServiceSpec, UpstreamProtocol,
};
use crate::workload::Registration;

pub(super) fn check_metadata(metadata: Metadata) -> Result<Metadata, FieldError> {
    for (key, value) in &metadata.labels {
        check_key(key).map_err(|e| FieldError {
            path: "metadata.labels".into(),
            reason: e.to_string(),
        })?;
        check_value(value).map_err(|e| FieldError {
            path: format!("metadata.labels.{key}"),
            reason: e.to_string(),
        })?;
    }
    Ok(metadata)
}

/// Validates a service's spec and gives its only port a name where it has none.
pub fn check_service(mut spec: ServiceSpec) -> Result<ServiceSpec, FieldError> {
    refuse_unsupported(&spec)?;
    check_stored_service(&spec)?;
    for port in &mut spec.ports {
        port.name = Some(port.name());
    }
    spec.vips.sort_unstable();
    Ok(spec)
}

/// Validates a spec that the registry has. What a newer version may ask for and this one doesn't serve passes: only what
/// no version writes is refused.
pub fn check_stored_service(spec: &ServiceSpec) -> Result<(), FieldError> {
    if spec.external_name.is_some() {
        check_external_name(spec)?;
    } else {
        check_ports(&spec.ports)?;
    }
    check_dns(spec)?;
    if let Some(HealthPolicy::Check(check)) = &spec.health {
        check_health("spec.health", check)?;
    }
    if let Some(recovery) = &spec.recovery
        && recovery.action != RecoveryAction::Unsupported
    {
        check_recovery(recovery, spec)?;
    }
    if spec.timeouts.connect.is_some_and(|t| t.0.is_zero()) {
        return field("spec.timeouts.connect", "must be more than 0s");
    }
    if spec.timeouts.idle.is_some_and(|t| t.0.is_zero()) {
        return field("spec.timeouts.idle", "must be more than 0s");
    }
    if spec.retries.per_try.is_some_and(|t| t.0.is_zero()) {
        return field("spec.retries.perTry", "must be more than 0s");
    }
    if spec.retries.attempts.is_some_and(|n| n > 10) {
        return field("spec.retries.attempts", "at most 10");
    }
    if spec.retries.budget_percent.is_some_and(|n| n > 100) {
        return field("spec.retries.budgetPercent", "a percentage is 0 to 100");
    }
    check_vips(spec)
}

fn refuse_unsupported(spec: &ServiceSpec) -> Result<(), FieldError> {
    for (index, port) in spec.ports.iter().enumerate() {
        if port.protocol == Protocol::Unsupported {
            let path = format!("spec.ports[{index}].protocol");
            return field(path, "not one of tcp, http");
        }
        refuse_unsupported_tls(&format!("spec.ports[{index}]"), port, spec.health.as_ref())?;
    }
    if spec.load_balancing.policy == Balance::Unsupported {
        return field(
            "spec.loadBalancing.policy",
            "not one of round-robin, least-connections (others are not supported by this version of heddle)",
        );
    }
    let recovery = spec.recovery.as_ref();
    if recovery.is_some_and(|recovery| recovery.action == RecoveryAction::Unsupported) {
        return field("spec.recovery", "the only action is `restart`");
    }
    Ok(())
}

fn check_ports(ports: &[ServicePort]) -> Result<(), FieldError> {
    if ports.is_empty() {
        return field("spec.ports", "a service has at least one port");
    }
    if ports.len() > 64 {
        return field("spec.ports", "a service has at most 64 ports");
    }
    let several = ports.len() > 1;
    let mut names: BTreeSet<Name> = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = |key: &str| format!("spec.ports[{index}].{key}");
        // Another protocol's numbers are its own, as those of TCP and UDP are.
        let known = port.protocol != Protocol::Unsupported;
        if port.name.is_none() && several {
            return field(path("name"), "required where a service has several ports");
        }
        let name = port.name();
        if name.as_str().len() > 15 {
            return field(
                path("name"),
                format!(
                    "`{name}` is longer than 15 characters, which DNS SRV names allow (RFC 6335)"
                ),
            );
        }
        if !names.insert(name.clone()) {
            return field(path("name"), format!("`{name}` is used twice"));
        }
        if port.port == 0 {
            return field(path("port"), "a port is 1 to 65535");
        }
        if known && !numbers.insert(port.port) {
            return field(path("port"), format!("{} is used twice", port.port));
        }
        if port.target_port == Some(0) {
            return field(path("targetPort"), "a port is 1 to 65535");
        }
        if let Some(node_port) = port.node_port
            && (node_port == 0 || (known && !node_ports.insert(node_port)))
        {
            return field(path("nodePort"), "a node port is 1 to 65535 and used once");
        }
        if port.upstream_protocol != UpstreamProtocol::Http1
            && known
            && port.protocol != Protocol::Http
        {
            return field(
                path("upstreamProtocol"),
                "only ports of protocol http have one",
            );
        }
        if let Some(tls) = &port.tls {
            check_tls(&path("tls"), tls)?;
        }
        if let Some(upstream) = &port.upstream_tls {
            check_upstream_tls(&path("upstreamTls"), upstream)?;
        }
    }
    Ok(())
}

/// The most further names of a service.
const MAX_NAMES: usize = 64;

fn check_dns(spec: &ServiceSpec) -> Result<(), FieldError> {
    let names = &spec.dns.names;
    if names.len() > MAX_NAMES {
        return field("spec.dns.names", format!("at most {MAX_NAMES}"));
    }
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            let path = format!("spec.dns.names[{index}]");
            return field(path, format!("`{name}` is there twice"));
        }
    }
    if spec.dns.publish_not_ready_addresses && !spec.headless {
        return field(
            "spec.dns.publishNotReadyAddresses",
            "only the name of a headless service stands for its endpoints",
        );
    }
    Ok(())
}

fn check_external_name(spec: &ServiceSpec) -> Result<(), FieldError> {
    let instead = "a service with externalName is another name and nothing else";
    for (path, there) in [
        ("spec.ports", !spec.ports.is_empty()),
        ("spec.selector", spec.selector.is_some()),
        ("spec.headless", spec.headless),
        ("spec.vips", !spec.vips.is_empty()),
    ] {
        if there {
            return field(path, instead);
        }
    }
    Ok(())
}

fn check_vips(spec: &ServiceSpec) -> Result<(), FieldError> {
    if spec.headless && !spec.vips.is_empty() {
        return field("spec.vips", "a headless service has no virtual IP");
    }
    for (index, ip) in spec.vips.iter().enumerate() {
        let path = format!("spec.vips[{index}]");
        if let IpAddr::V6(v6) = ip
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return field(path, format!("write the IPv4 address {v4} instead"));
        }
        let earlier = spec.vips.iter().take(index);
        if earlier
            .into_iter()
            .any(|other| other.is_ipv4() == ip.is_ipv4())
        {
            return field(path, "a service has at most one IPv4 and one IPv6 address");
        }
    }
    Ok(())
}

fn check_recovery(recovery: &Recovery, spec: &ServiceSpec) -> Result<(), FieldError> {
    let seconds = recovery.after().as_secs();
    if !(1..=86_400).contains(&seconds) {
        return field("spec.recovery.after", "1s to 24h");
    }
    if !(1..=60).contains(&recovery.budget()) {
        return field("spec.recovery.budget", "1 to 60 restarts an hour");
    }
    if spec.selector.is_none() {
        return field(
            "spec.recovery",
            "only containers are restarted, and without a selector the service has none",
        );
    }
    if spec.health == Some(HealthPolicy::Disabled) {
        return field(
            "spec.recovery",
            "with `health: none` nothing is ever found unhealthy",
        );
    }
    Ok(())
}

/// Validates one health check.
pub fn check_health(path: &str, check: &HealthCheck) -> Result<(), FieldError> {
    let kinds = [
        check.http.is_some(),
        check.tcp.is_some(),
        check.grpc.is_some(),
        check.docker.is_some(),
    ];
    if kinds.iter().filter(|k| **k).count() > 1 {
        return field(path, "name one of http, tcp, grpc, docker, not several");
    }
    if let Some(http) = &check.http {
        let good = http.path.starts_with('/')
            && http.path.bytes().all(|b| b.is_ascii_graphic())
            && http.path.len() <= 2048;
        if !good {
            return field(
                format!("{path}.http.path"),
                "a path starts with `/` and has neither spaces nor control characters",
            );
        }
    }
    for (key, span) in [("interval", check.interval), ("timeout", check.timeout)] {
        if span.is_some_and(|s| s.0.as_millis() < 10) {
            return field(format!("{path}.{key}"), "at least 10ms");
        }
    }
    for (key, count) in [("rise", check.rise), ("fall", check.fall)] {
        if count.is_some_and(|c| !(1..=100).contains(&c)) {
            return field(format!("{path}.{key}"), "1 to 100");
        }
    }
    Ok(())
}

/// Validates an endpoint made by hand.
pub fn check_endpoint(spec: &ManualEndpointSpec) -> Result<(), FieldError> {
    if spec.ports.is_empty() {
        return field("spec.ports", "an endpoint has at least one port");
    }
    if let Some((name, _)) = spec.ports.iter().find(|(_, port)| **port == 0) {
        return field(format!("spec.ports.{name}"), "a port is 1 to 65535");
    }
    if spec.weight > 256 {
        return field("spec.weight", "0 to 256");
    }
    if spec.address.is_unspecified() || spec.address.is_multicast() {
        return field("spec.address", "not an address that can be dialled");
    }
    Ok(())
}

/// Validates what `heddle register` or an import brings.
pub fn check_registration(registration: &Registration) -> Result<(), FieldError> {
    if registration.ports.is_empty() || registration.ports.contains(&0) {
        return field("ports", "at least one, 1 to 65535");
    }
    match &registration.check {
        Some(HealthPolicy::Check(check)) => check_health("check", check),
        _ => Ok(()),
    }
}
