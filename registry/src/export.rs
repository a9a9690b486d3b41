//! All resources of a registry as documents, to be kept as a backup or carried to another registry ([`crate::import`]).
//!
//! A document is a record as it is stored, with `apiVersion` and `kind` before it and what its key says beside it. What
//! nodes derive from what runs (slices, findings, liveness, node records) is no resource and left out: nodes publish it anew.

use model::endpoint::ManualEndpoint;
use model::manifest::API_VERSION;
use model::name::{Name, ServiceKey};
use model::workload::Registration;
use model::{Mark, MarkTarget, Mesh};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::follow::{BadRecord, chain};
use crate::layout::Key;
use crate::record::{self, RecordError};
use crate::store::{Entry, StoreError};
use crate::vips::VipRecord;
use crate::{Registry, follow};

/// What a registry holds, in one order on every backend: by kind, then by key.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// One for each resource.
    pub documents: Vec<Value>,
    /// Records that can't be read, and so are not among the documents.
    pub unreadable: Vec<BadRecord>,
}

/// How often a listing that a compaction broke off is begun.
const LIST_TRIES: u32 = 3;

/// The kinds of document, in the order in which they are exported.
pub(crate) const KINDS: [&str; 6] = [
    "Mesh",
    "Service",
    "VirtualIP",
    "Endpoint",
    "Registration",
    "Mark",
];

/// The kind of document that a key's record becomes; `None` for what is derived.
pub(crate) fn kind_of(key: &Key) -> Option<&'static str> {
    Some(match key {
        Key::Mesh => "Mesh",
        Key::Service(_) => "Service",
        Key::Vip(_) => "VirtualIP",
        Key::Endpoint(_) => "Endpoint",
        Key::Registration(..) => "Registration",
        Key::Mark(_) => "Mark",
        Key::Slice(..) | Key::Findings(..) | Key::Node(_) | Key::Liveness(_) => return None,
    })
}

impl Registry {
    /// Every resource at one revision, of a namespace or of all. What belongs to no namespace (the mesh, marks of nodes
    /// and workloads) is exported with all.
    pub async fn export(&self, namespace: Option<&Name>) -> Result<Exported, StoreError> {
        let entries = self.entries(|key| kind_of(key).is_some()).await?;
        let mut exported = Exported::default();
        for kind in KINDS {
            for (key, entry) in entries.iter().filter(|(key, _)| kind_of(key) == Some(kind)) {
                match document(self.keys(), kind, key, entry, namespace) {
                    Ok(Some(document)) => exported.documents.push(document),
                    Ok(None) => {}
                    Err(error) => exported.unreadable.push(BadRecord {
                        key: entry.key.clone(),
                        reason: chain(&error),
                    }),
                }
            }
        }
        Ok(exported)
    }

    /// What is stored under the keys that are wanted, ordered by key, as it stood at one revision.
    pub(crate) async fn entries(
        &self,
        wanted: impl Fn(&Key) -> bool + Sync,
    ) -> Result<Vec<(Key, Entry)>, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut entries: Vec<(Key, Entry)> = Vec::new();
            let mut take = |page: Vec<Entry>| {
                for entry in page {
                    if let Some(key) = self.keys().parse(&entry.key)
                        && wanted(&key)
                    {
                        entries.push((key, entry));
                    }
                }
            };
            let listed = self.store().list_pages(self.keys().root(), &mut take).await;
            match listed {
                Ok(_) => return Ok(entries),
                // Compacted between two pages: the revision that the first was of is gone.
                Err(StoreError::Compacted { .. }) if tries < LIST_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn document(
    keys: &crate::layout::Keys,
    kind: &str,
    key: &Key,
    entry: &Entry,
    namespace: Option<&Name>,
) -> Result<Option<Value>, RecordError> {
    // Whoever can't use the record can't vouch for it either.
    let change = follow::change(keys, entry)?;
    if let Some(wanted) = namespace {
        let registration = match &change {
            Some(model::Change::Registration(_, _, Some(record))) => {
                Some(record.registration.namespace.clone())
            }
            _ => None,
        };
        let vip = match &change {
            Some(model::Change::Vip(_, Some(service))) => Some(service.namespace.clone()),
            _ => None,
        };
        let own = match key {
            Key::Service(k) | Key::Endpoint(k) => Some(k.namespace.clone()),
            Key::Mark(MarkTarget::Endpoint { service, .. }) => Some(service.namespace.clone()),
            _ => registration.or(vip),
        };
        if own.as_ref() != Some(wanted) {
            return Ok(None);
        }
    }
    let mut object = whole(key, &entry.value)?;
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("resourceVersion");
    }
    match key {
        Key::Vip(ip) => {
            object.insert("address".to_owned(), Value::String(ip.to_string()));
        }
        Key::Registration(node, _) => {
            object.insert("node".to_owned(), Value::String(node.to_string()));
        }
        _ => {}
    }
    object.insert(
        "apiVersion".to_owned(),
        Value::String(API_VERSION.to_owned()),
    );
    object.insert("kind".to_owned(), Value::String(kind.to_owned()));
    Ok(Some(Value::Object(object)))
}

/// What people call the resource of a key.
pub(crate) fn shown(key: &Key) -> String {
    match key {
        Key::Mesh => "mesh".to_owned(),
        Key::Service(k) | Key::Endpoint(k) => k.to_string(),
        Key::Vip(ip) => ip.to_string(),
        Key::Registration(node, id) => format!("{id} on {node}"),
        Key::Mark(target) => target.to_string(),
        Key::Slice(k, node) | Key::Findings(k, node) => format!("{k} on {node}"),
        Key::Node(node) | Key::Liveness(node) => node.to_string(),
    }
}

/// A stored record in the form in which this version would write it, for comparing.
pub(crate) fn normal(key: &Key, bytes: &[u8]) -> Result<Value, RecordError> {
    let mut value = each(key, Normal(bytes))?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    Ok(value)
}

/// The same, with the fields that this version doesn't know.
fn whole(key: &Key, bytes: &[u8]) -> Result<Map<String, Value>, RecordError> {
    let bytes = each(key, Whole(bytes))?;
    let mut object = serde_json::from_slice(&bytes).map_err(RecordError::Json)?;
    record::strip_version(&mut object);
    Ok(object)
}

/// A document's record in place of a stored one, with the fields of that one which this version doesn't know; as it is
/// where the stored one can't be read.
pub(crate) fn over(key: &Key, old: &[u8], record: &Value) -> Vec<u8> {
    each(key, Over(old, record)).unwrap_or_else(|_| record::encode(record))
}

/// What is done with a record of any kind.
trait Each {
    type Out;
    fn of<T: DeserializeOwned + Serialize>(self) -> Result<Self::Out, RecordError>;
}

struct Normal<'a>(&'a [u8]);

impl Each for Normal<'_> {
    type Out = Value;
    fn of<T: DeserializeOwned + Serialize>(self) -> Result<Value, RecordError> {
        let record: T = record::decode(self.0)?;
        serde_json::to_value(record).map_err(RecordError::Content)
    }
}

struct Whole<'a>(&'a [u8]);

impl Each for Whole<'_> {
    type Out = Vec<u8>;
    fn of<T: DeserializeOwned + Serialize>(self) -> Result<Vec<u8>, RecordError> {
        let record: T = record::decode(self.0)?;
        record::rewrite(self.0, &record)
    }
}

struct Over<'a>(&'a [u8], &'a Value);

impl Each for Over<'_> {
    type Out = Vec<u8>;
    fn of<T: DeserializeOwned + Serialize>(self) -> Result<Vec<u8>, RecordError> {
        let record: T = serde_json::from_value(self.1.clone()).map_err(RecordError::Content)?;
        record::rewrite(self.0, &record)
    }
}

fn each<E: Each>(key: &Key, with: E) -> Result<E::Out, RecordError> {
    match key {
        Key::Mesh => with.of::<Mesh>(),
        Key::Service(_) => with.of::<model::Service>(),
        Key::Endpoint(_) => with.of::<ManualEndpoint>(),
        Key::Vip(_) => with.of::<VipRecord>(),
        Key::Registration(..) => with.of::<Registration>(),
        Key::Mark(_) => with.of::<Mark>(),
        // Derived, and so in no document.
        Key::Slice(..) | Key::Findings(..) | Key::Node(_) | Key::Liveness(_) => {
            with.of::<Map<String, Value>>()
        }
    }
}

/// The service that a virtual IP's record names.
pub(crate) fn vip_owner(bytes: &[u8]) -> Option<ServiceKey> {
    record::decode::<VipRecord>(bytes).ok().map(|r| r.service)
}

#[cfg(test)]
mod tests;
