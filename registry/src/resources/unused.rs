//! Services made of labels that nobody asks for any more: since when, and their end.
//!
//! Whoever notices first writes the time into the service's record, so that it holds across nodes and restarts.

use model::name::ServiceKey;
use model::service::{ManagedBy, Service};
use model::time::Timestamp;

use super::{ApplyError, TRIES, addresses, read};
use crate::Registry;
use crate::layout::Key;
use crate::record;
use crate::store::{Entry, Outcome, Txn};

impl Registry {
    /// Notes since when a service made of labels is unused, or with `None` that it is used again. Nothing is written where
    /// the record says so already, or says of another time that it is unused since then; nor of a service that is gone or
    /// has another owner by now.
    pub async fn note_unused(
        &self,
        key: &ServiceKey,
        since: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        for _ in 0..TRIES {
            let Some((path, entry, mut service)) = self.made_of_labels(key).await? else {
                return Ok(());
            };
            if service.metadata.unused_since.is_some() == since.is_some() {
                return Ok(());
            }
            service.metadata.unused_since = since;
            let bytes = record::replace(&entry.value, &service);
            let txn = Txn::update(path, entry.mod_revision, bytes);
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(());
            }
        }
        Err(ApplyError::Contended)
    }

    /// Deletes a service made of labels, with its virtual IPs, if its record still says that it is unused since `since`;
    /// whether it did.
    pub async fn delete_unused(
        &self,
        key: &ServiceKey,
        since: Timestamp,
    ) -> Result<bool, ApplyError> {
        for _ in 0..TRIES {
            let Some((path, entry, service)) = self.made_of_labels(key).await? else {
                return Ok(false);
            };
            if service.metadata.unused_since != Some(since) {
                return Ok(false);
            }
            let mut txn = Txn::remove(path, entry.mod_revision);
            addresses::release_all(self, key, Some(&service), &mut txn).await?;
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(true);
            }
        }
        Err(ApplyError::Contended)
    }

    async fn made_of_labels(
        &self,
        key: &ServiceKey,
    ) -> Result<Option<(String, Entry, Service)>, ApplyError> {
        let path = self.keys().path(&Key::Service(key.clone()));
        let Some(entry) = self.store().get(&path).await? else {
            return Ok(None);
        };
        let service: Option<Service> = read("Service", key, Some(&entry))?;
        Ok(service
            .filter(|service| service.managed_by == ManagedBy::Labels)
            .map(|service| (path, entry, service)))
    }
}
