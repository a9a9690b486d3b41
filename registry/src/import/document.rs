//! Documents as `heddle export` writes them, read strictly.

use std::collections::BTreeSet;

use model::manifest::{self, API_VERSION, FieldError, Manifest};
use model::name::{Name, ServiceKey};
use model::service::ManagedBy;
use model::strict::{self, StrictError};
use model::workload::Registration;
use model::{Mark, Mesh, Service};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::export::{KINDS, shown};
use crate::layout::Key;
use crate::vips::VipRecord;

/// A document, checked: the key that it belongs under and the record to be written there.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) kind: &'static str,
    pub(super) key: Key,
    pub(super) value: Value,
    /// Whose virtual IP it is, where it is one.
    pub(super) vip_of: Option<ServiceKey>,
}

/// All documents, or what is wrong with each that is not good.
pub(super) fn read_all(documents: Vec<Value>) -> Result<Vec<Item>, Vec<String>> {
    let mut items = Vec::with_capacity(documents.len());
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, document) in documents.into_iter().enumerate() {
        let subject = subject(&document);
        match read(document) {
            Ok(item) if seen.insert((item.kind, shown(&item.key))) => items.push(item),
            Ok(item) => errors.push(format!(
                "document {}: {} {} is there twice",
                index + 1,
                item.kind,
                shown(&item.key)
            )),
            Err(FieldError { path, reason }) if path.is_empty() => {
                errors.push(format!("document {}{subject}: {reason}", index + 1));
            }
            Err(error) => errors.push(format!("document {}{subject}: {error}", index + 1)),
        }
    }
    if errors.is_empty() {
        Ok(items)
    } else {
        Err(errors)
    }
}

fn subject(document: &Value) -> String {
    let text = |path: &str| document.pointer(path).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default();
    let name = text("/metadata/name")
        .or_else(|| text("/address"))
        .or_else(|| text("/id"))
        .unwrap_or_default();
    match (text("/metadata/namespace"), kind) {
        (_, "") => String::new(),
        (Some(namespace), _) => format!(", {kind} {namespace}/{name}"),
        (None, _) => format!(", {kind} {name}").trim_end().to_owned(),
    }
}

fn wrong<T>(path: &str, reason: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError {
        path: path.to_owned(),
        reason: reason.into(),
    })
}

fn read(document: Value) -> Result<Item, FieldError> {
    let Value::Object(mut object) = document else {
        return wrong("", "not a map");
    };
    if object.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
        return wrong("apiVersion", format!("must be {API_VERSION}"));
    }
    let kind = object.get("kind").and_then(Value::as_str);
    let Some(kind) = KINDS.into_iter().find(|known| Some(*known) == kind) else {
        let known = KINDS.join(", ");
        return wrong(
            "kind",
            format!("not one of {known}, which heddle export writes"),
        );
    };
    let mut vip_of = None;
    let (key, value) = match kind {
        "Service" | "Endpoint" => managed(object)?,
        "Mesh" => (Key::Mesh, value(&typed::<Mesh>(object)?)?),
        "VirtualIP" => {
            let address = take(&mut object, "address")?;
            let Ok(ip) = address.parse() else {
                return wrong("address", format!("`{address}` is not an IP address"));
            };
            let record: VipRecord = typed(object)?;
            vip_of = Some(record.service.clone());
            (Key::Vip(ip), value(&record)?)
        }
        "Registration" => {
            let node = take(&mut object, "node")?;
            let Ok(node) = Name::new(&node) else {
                return wrong("node", format!("`{node}` is not a node's name"));
            };
            let registration: Registration = typed(object)?;
            manifest::check_registration(&registration)?;
            let key = Key::Registration(node, registration.id.clone());
            (key, value(&registration)?)
        }
        _ => {
            let mark: Mark = typed(object)?;
            (Key::Mark(mark.target.clone()), value(&mark)?)
        }
    };
    Ok(Item {
        kind,
        key,
        value,
        vip_of,
    })
}

/// A service or an endpoint: a manifest that says who manages it and what heddle noted of it.
fn managed(mut object: Map<String, Value>) -> Result<(Key, Value), FieldError> {
    let manager = take(&mut object, "managedBy")?;
    let managed_by: ManagedBy =
        strict::from_value(Value::String(manager)).map_err(|error| field("managedBy", error))?;
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    let mut manifests = manifest::parse(&Value::Object(object).to_string()).map_err(|errors| {
        let first = errors.into_iter().next();
        let (path, reason) = first.map_or_else(Default::default, |e| (e.path, e.reason));
        FieldError { path, reason }
    })?;
    let Some(manifest) = manifests.pop() else {
        return wrong("", "empty");
    };
    let metadata = manifest.metadata();
    if metadata.uid.is_none() || metadata.generation.is_none() {
        return wrong(
            "metadata",
            "has no uid or generation: import takes what heddle export printed, heddle apply takes manifests",
        );
    }
    match manifest {
        Manifest::Service(m) => {
            let service = Service {
                metadata: m.metadata,
                managed_by,
                spec: m.spec,
            };
            Ok((Key::Service(service.key()), value(&service)?))
        }
        Manifest::Endpoint(m) => {
            let endpoint = model::endpoint::ManualEndpoint {
                metadata: m.metadata,
                managed_by,
                spec: m.spec,
            };
            Ok((Key::Endpoint(endpoint.metadata.key()), value(&endpoint)?))
        }
    }
}

fn take(object: &mut Map<String, Value>, name: &str) -> Result<String, FieldError> {
    match object.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => wrong(name, "must be a text"),
        None => wrong(name, "missing"),
    }
}

fn typed<T: DeserializeOwned>(mut object: Map<String, Value>) -> Result<T, FieldError> {
    object.remove("apiVersion");
    object.remove("kind");
    strict::from_value(Value::Object(object)).map_err(|error| field("", error))
}

fn field(prefix: &str, error: StrictError) -> FieldError {
    let error = error.within(prefix);
    FieldError {
        path: error.path,
        reason: error.reason,
    }
}

fn value<T: Serialize>(record: &T) -> Result<Value, FieldError> {
    serde_json::to_value(record).or_else(|error| wrong("", error.to_string()))
}
