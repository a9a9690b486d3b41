//! What an entry of the registry means to the catalog.

use std::sync::Arc;

use model::catalog::{Change, RegistrationRecord};
use model::manifest;
use model::service::Metadata;

use crate::layout::{Key, Keys};
use crate::record::{self, RecordError};
use crate::store::Entry;
use crate::vips::VipRecord;

/// The change that an entry stands for; `None` for a key that is not of this layout.
pub fn change(keys: &Keys, entry: &Entry) -> Result<Option<Change>, RecordError> {
    let Some(key) = keys.parse(&entry.key) else {
        return Ok(None);
    };
    let bytes = &entry.value;
    Ok(Some(match key {
        Key::Mesh => Change::Mesh(Some(Arc::new(record::decode(bytes)?))),
        Key::Service(key) => {
            let mut service: model::Service = record::decode(bytes)?;
            check(&service.key(), &key)?;
            manifest::check_stored_service(&service.spec)?;
            stamp(&mut service.metadata, entry);
            Change::Service(key, Some(Arc::new(service)))
        }
        Key::Endpoint(key) => {
            let mut endpoint: model::endpoint::ManualEndpoint = record::decode(bytes)?;
            check(&endpoint.metadata.key(), &key)?;
            manifest::check_endpoint(&endpoint.spec)?;
            stamp(&mut endpoint.metadata, entry);
            Change::Endpoint(key, Some(Arc::new(endpoint)))
        }
        Key::Vip(ip) => Change::Vip(ip, Some(record::decode::<VipRecord>(bytes)?.service)),
        Key::Slice(key, node) => {
            let mut slice: model::Slice = record::decode(bytes)?;
            slice.share_texts();
            check(&slice.service, &key)?;
            check(&slice.node, &node)?;
            Change::Slice(key, node, Some(Arc::new(slice)))
        }
        Key::Findings(key, node) => {
            let findings: model::endpoint::Findings = record::decode(bytes)?;
            check(&findings.service, &key)?;
            check(&findings.node, &node)?;
            Change::Findings(key, node, Some(Arc::new(findings)))
        }
        Key::Node(name) => {
            let node: model::Node = record::decode(bytes)?;
            check(&node.name, &name)?;
            Change::Node(name, Some(Arc::new(node)))
        }
        Key::Liveness(name) => Change::Liveness(name, Some(Arc::new(record::decode(bytes)?))),
        Key::Mark(target) => Change::Mark(target, Some(Arc::new(record::decode(bytes)?))),
        Key::Registration(node, id) => {
            let record = RegistrationRecord {
                registration: record::decode(bytes)?,
                create_revision: entry.create_revision,
            };
            check(&record.registration.id, &id)?;
            manifest::check_registration(&record.registration)?;
            Change::Registration(node, id, Some(Arc::new(record)))
        }
    }))
}

pub(super) fn removal(key: Key) -> Change {
    match key {
        Key::Mesh => Change::Mesh(None),
        Key::Service(key) => Change::Service(key, None),
        Key::Endpoint(key) => Change::Endpoint(key, None),
        Key::Vip(ip) => Change::Vip(ip, None),
        Key::Slice(key, node) => Change::Slice(key, node, None),
        Key::Findings(key, node) => Change::Findings(key, node, None),
        Key::Node(name) => Change::Node(name, None),
        Key::Liveness(name) => Change::Liveness(name, None),
        Key::Mark(target) => Change::Mark(target, None),
        Key::Registration(node, id) => Change::Registration(node, id, None),
    }
}

/// `resourceVersion` is the store's, never the record's own.
fn stamp(metadata: &mut Metadata, entry: &Entry) {
    metadata.resource_version = Some(entry.mod_revision);
}

fn check<T: PartialEq + std::fmt::Display>(found: &T, key: &T) -> Result<(), RecordError> {
    if found == key {
        Ok(())
    } else {
        Err(RecordError::Mismatch {
            found: found.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
