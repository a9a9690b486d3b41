//! Manifests: the documents that a user applies, read strictly and validated whole.
//!
//! A document is read in three steps, each with errors that name the path: what this version doesn't build yet is refused
//! by name, then [`crate::strict`] refuses what nobody knows, then the rules that types can't express are checked.

mod rules;
mod tls;

use std::collections::BTreeSet;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoint::ManualEndpointSpec;
use crate::name::ServiceKey;
use crate::service::{Metadata, ServiceSpec};
use crate::strict::{self, StrictError};

use rules::check_metadata;
pub use rules::{
    check_endpoint, check_health, check_registration, check_service, check_stored_service,
};

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
    "spec.ports[].proxyProtocol",
];

/// A validated document.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "made once per document and taken apart at once; most documents are services"
)]
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
            check_endpoint(&typed.spec)?;
            let spec = typed.spec;
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

#[cfg(test)]
mod tests;
