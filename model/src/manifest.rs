//! Manifests: the documents that a user applies, read strictly and validated whole.
//!
//! A document is read in three steps, each with errors that name the path: what this version doesn't build yet is refused
//! by name, then [`crate::strict`] refuses what nobody knows, then the rules that types can't express are checked.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoint::ManualEndpointSpec;
use crate::labels::{check_key, check_value};
use crate::name::{Name, ServiceKey};
use crate::service::{
    Balance, HealthCheck, HealthPolicy, Metadata, Protocol, Recovery, RecoveryAction, ServiceSpec,
    UpstreamProtocol,
};
use crate::strict::{self, StrictError};

/// The only `apiVersion` there is.
pub const API_VERSION: &str = "heddle/v1";

/// Kinds that are planned and have no behaviour yet.
const KINDS_NOT_BUILT: &[&str] = &["Route", "Policy"];

/// Fields that are planned and have no behaviour yet; `[]` stands for any index.
const NOT_BUILT: &[&str] = &[
    "spec.loadBalancing.slowStart",
    "spec.loadBalancing.zoneAware",
    "spec.loadBalancing.key",
    "spec.sessionAffinity",
    "spec.outlier",
    "spec.limits",
    "spec.dns",
    "spec.externalName",
    "spec.retries.perTry",
    "spec.ports[].tls",
    "spec.ports[].proxyProtocol",
];

/// A validated document.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// `kind: Service`.
    Service(ServiceManifest),
    /// `kind: Endpoint`.
    Endpoint(EndpointManifest),
}

/// A service as a user writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceManifest {
    /// Name, namespace, labels; `resourceVersion` when the user wants a stale write refused.
    pub metadata: Metadata,
    /// Validated.
    pub spec: ServiceSpec,
}

/// An endpoint as a user writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointManifest {
    /// Name, namespace, labels; `resourceVersion` when the user wants a stale write refused.
    pub metadata: Metadata,
    /// Validated.
    pub spec: ManualEndpointSpec,
}

impl Manifest {
    /// `Service` or `Endpoint`.
    pub fn kind(&self) -> &'static str {
        match self {
            Manifest::Service(_) => "Service",
            Manifest::Endpoint(_) => "Endpoint",
        }
    }

    /// Name, namespace and the rest.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Manifest::Service(m) => &m.metadata,
            Manifest::Endpoint(m) => &m.metadata,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> ServiceKey {
        self.metadata().key()
    }
}

/// What is wrong with a document, and which.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub struct ManifestError {
    /// The document's place in the text, from 1.
    pub document: usize,
    /// The line it starts at, from 1, where known.
    pub line: Option<usize>,
    /// `Service shop/web`, as far as it could be read.
    pub subject: Option<String>,
    /// The path of the offending value; empty when it is the document itself.
    pub path: String,
    /// Why it is refused.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        if let Some(subject) = &self.subject {
            write!(f, ", {subject}")?;
        }
        if self.path.is_empty() {
            write!(f, ": {}", self.reason)
        } else {
            write!(f, ": {}: {}", self.path, self.reason)
        }
    }
}

/// A value that breaks a rule: its path under `spec` and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FieldError {
    /// `spec.ports[0].port`.
    pub path: String,
    /// Why it is refused.
    pub reason: String,
}

fn field<T>(path: impl Into<String>, reason: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError {
        path: path.into(),
        reason: reason.into(),
    })
}

/// Reads every document of a text. All errors are given at once; with any of them nothing is returned.
pub fn parse(text: &str) -> Result<Vec<Manifest>, Vec<ManifestError>> {
    let documents = strict::parse_documents(text).map_err(|error| {
        vec![ManifestError {
            document: 1,
            line: None,
            subject: None,
            path: error.path.clone(),
            reason: error.reason.clone(),
        }]
    })?;
    let mut manifests = Vec::new();
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for document in documents {
        let subject = subject(&document.value);
        let fail = |error: FieldError| ManifestError {
            document: document.index + 1,
            line: document.line,
            subject: subject.clone(),
            path: error.path,
            reason: error.reason,
        };
        match read(document.value) {
            Ok(manifest) if seen.insert((manifest.kind(), manifest.key())) => {
                manifests.push(manifest);
            }
            Ok(manifest) => errors.push(fail(FieldError {
                path: "metadata.name".into(),
                reason: format!("{} {} is defined twice", manifest.kind(), manifest.key()),
            })),
            Err(error) => errors.push(fail(error)),
        }
    }
    if errors.is_empty() {
        Ok(manifests)
    } else {
        Err(errors)
    }
}

fn subject(value: &Value) -> Option<String> {
    let kind = value.get("kind")?.as_str()?;
    let metadata = value.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    Some(match metadata.get("namespace").and_then(Value::as_str) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: S,
}

fn read(value: Value) -> Result<Manifest, FieldError> {
    match value.get("apiVersion").and_then(Value::as_str) {
        Some(API_VERSION) => {}
        Some(other) => {
            return field(
                "apiVersion",
                format!("`{other}` is not supported, use `{API_VERSION}`"),
            );
        }
        None => return field("apiVersion", format!("missing, use `{API_VERSION}`")),
    }
    let kind = value.get("kind").and_then(Value::as_str);
    refuse_not_built(&value)?;
    match kind {
        Some("Service") => {
            let typed: Typed<ServiceSpec> = typed(value)?;
            let metadata = check_metadata(typed.metadata)?;
            let spec = check_service(typed.spec)?;
            Ok(Manifest::Service(ServiceManifest { metadata, spec }))
        }
        Some("Endpoint") => {
            let typed: Typed<ManualEndpointSpec> = typed(value)?;
            let metadata = check_metadata(typed.metadata)?;
            let spec = check_endpoint(typed.spec)?;
            Ok(Manifest::Endpoint(EndpointManifest { metadata, spec }))
        }
        Some(planned) if KINDS_NOT_BUILT.contains(&planned) => field(
            "kind",
            format!("`{planned}` is not supported by this version of heddle"),
        ),
        Some(other) => field(
            "kind",
            format!("`{other}` is unknown, use Service or Endpoint"),
        ),
        None => field("kind", "missing, use Service or Endpoint"),
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    strict::from_value(value)
        .map_err(|StrictError { path, reason, .. }| FieldError { path, reason })
}

fn refuse_not_built(value: &Value) -> Result<(), FieldError> {
    for path in NOT_BUILT {
        if let Some(found) = find(value, path, String::new()) {
            return field(found, "not supported by this version of heddle");
        }
    }
    let protocols = value
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for (index, port) in protocols.enumerate() {
        if let Some(planned @ ("udp" | "tls")) = port.get("protocol").and_then(Value::as_str) {
            return field(
                format!("spec.ports[{index}].protocol"),
                format!("`{planned}` is not supported by this version of heddle, use tcp or http"),
            );
        }
    }
    Ok(())
}

/// The concrete path at which `pattern` has a value, if any.
fn find(value: &Value, pattern: &str, at: String) -> Option<String> {
    let (head, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    let join = |key: &str| {
        if at.is_empty() {
            key.to_owned()
        } else {
            format!("{at}.{key}")
        }
    };
    if let Some(key) = head.strip_suffix("[]") {
        return value
            .get(key)?
            .as_array()?
            .iter()
            .enumerate()
            .find_map(|(index, item)| find(item, rest, join(&format!("{key}[{index}]"))));
    }
    let inner = value.get(head)?;
    if rest.is_empty() {
        Some(join(head))
    } else {
        find(inner, rest, join(head))
    }
}

fn check_metadata(metadata: Metadata) -> Result<Metadata, FieldError> {
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
    if spec.ports.is_empty() {
        return field("spec.ports", "a service has at least one port");
    }
    if spec.ports.len() > 64 {
        return field("spec.ports", "a service has at most 64 ports");
    }
    let several = spec.ports.len() > 1;
    let mut names: BTreeSet<Name> = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, port) in spec.ports.iter_mut().enumerate() {
        let path = |key: &str| format!("spec.ports[{index}].{key}");
        if port.protocol == Protocol::Unsupported {
            return field(path("protocol"), "not one of tcp, http");
        }
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
        port.name = Some(name.clone());
        if !names.insert(name.clone()) {
            return field(path("name"), format!("`{name}` is used twice"));
        }
        if port.port == 0 || !numbers.insert(port.port) {
            let why = if port.port == 0 {
                "a port is 1 to 65535".to_owned()
            } else {
                format!("{} is used twice", port.port)
            };
            return field(path("port"), why);
        }
        if port.target_port == Some(0) {
            return field(path("targetPort"), "a port is 1 to 65535");
        }
        if let Some(node_port) = port.node_port
            && (node_port == 0 || !node_ports.insert(node_port))
        {
            return field(path("nodePort"), "a node port is 1 to 65535 and used once");
        }
        if port.upstream_protocol != UpstreamProtocol::Http1 && port.protocol != Protocol::Http {
            return field(
                path("upstreamProtocol"),
                "only ports of protocol http have one",
            );
        }
    }
    if spec.load_balancing.policy == Balance::Unsupported {
        return field(
            "spec.loadBalancing.policy",
            "not one of round-robin, least-connections (others are not supported by this version of heddle)",
        );
    }
    if let Some(HealthPolicy::Check(check)) = &spec.health {
        check_health("spec.health", check)?;
    }
    if let Some(recovery) = &spec.recovery {
        check_recovery(recovery, &spec)?;
    }
    if spec.timeouts.connect.is_some_and(|t| t.0.is_zero()) {
        return field("spec.timeouts.connect", "must be more than 0s");
    }
    if spec.timeouts.idle.is_some_and(|t| t.0.is_zero()) {
        return field("spec.timeouts.idle", "must be more than 0s");
    }
    if spec.retries.attempts.is_some_and(|n| n > 10) {
        return field("spec.retries.attempts", "at most 10");
    }
    if spec.retries.budget_percent.is_some_and(|n| n > 100) {
        return field("spec.retries.budgetPercent", "a percentage is 0 to 100");
    }
    check_vips(&spec)?;
    spec.vips.sort_unstable();
    Ok(spec)
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
    if recovery.action == RecoveryAction::Unsupported {
        return field("spec.recovery", "the only action is `restart`");
    }
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

fn check_endpoint(spec: ManualEndpointSpec) -> Result<ManualEndpointSpec, FieldError> {
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
    Ok(spec)
}

#[cfg(test)]
mod tests;
