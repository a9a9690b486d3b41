//! Writing the services that container labels make, and deleting those whose containers are long gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::manifest::{Manifest, ServiceManifest};
use model::name::ServiceKey;
use model::net::IpNet;
use model::service::ManagedBy;
use registry::Registry;
use registry::follow::chain;
use registry::resources::{ApplyError, ApplyOptions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What is to be done about a service made of labels.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Create or replace it; virtual IPs come from these ranges.
    Write(Box<ServiceManifest>, Vec<IpNet>),
    /// Delete it.
    Delete,
}

/// Does what is to be done about services made of labels, one after the other.
pub struct ServiceWriter {
    registry: Registry,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    work: BTreeMap<ServiceKey, Work>,
    /// What was refused, with the reason: not tried again until it changes.
    refused: BTreeMap<ServiceKey, (Work, String)>,
}

impl ServiceWriter {
    /// A writer with nothing to do.
    pub fn new(registry: Registry) -> Arc<Self> {
        Arc::new(ServiceWriter {
            registry,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Has something done about a service, or nothing any more; the newest wish counts.
    pub fn wish(&self, service: &ServiceKey, work: Option<Work>) {
        let mut state = self.lock();
        match work {
            None => {
                state.work.remove(service);
                state.refused.remove(service);
            }
            Some(work) => {
                if state.refused.get(service).is_some_and(|(w, _)| *w == work) {
                    return;
                }
                state.refused.remove(service);
                state.work.insert(service.clone(), work);
                self.wake.notify_one();
            }
        }
    }

    /// Why what labels ask for is not written.
    pub fn refusal(&self, service: &ServiceKey) -> Option<String> {
        let state = self.lock();
        state.refused.get(service).map(|(_, reason)| reason.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<(ServiceKey, Work)> {
        let state = self.lock();
        let (key, work) = state.work.first_key_value()?;
        Some((key.clone(), work.clone()))
    }

    /// Works until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let Some((service, work)) = self.next() else {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.wake.notified() => continue,
                }
            };
            let done = tokio::select! {
                () = shutdown.cancelled() => return,
                done = self.act(&service, &work) => done,
            };
            match done {
                Ok(()) => {
                    backoff = MIN_BACKOFF;
                    self.done(&service, &work, None);
                }
                Err(error) if may_pass(&error) => {
                    tracing::debug!(%service, reason = %chain(&error), "can't write a service made of labels yet");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(backoff) => {}
                    }
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                Err(error) => {
                    let reason = chain(&error);
                    tracing::warn!(%service, %reason, "a service made of labels is refused");
                    self.done(&service, &work, Some(reason));
                }
            }
        }
    }

    /// Strikes work off, unless another wish has replaced it meanwhile.
    fn done(&self, service: &ServiceKey, work: &Work, refused: Option<String>) {
        let mut state = self.lock();
        if state.work.get(service) == Some(work) {
            state.work.remove(service);
            if let Some(reason) = refused {
                state
                    .refused
                    .insert(service.clone(), (work.clone(), reason));
            }
        }
    }

    async fn act(&self, service: &ServiceKey, work: &Work) -> Result<(), ApplyError> {
        match work {
            Work::Write(manifest, ranges) => {
                let options = ApplyOptions {
                    manager: ManagedBy::Labels,
                    ranges: ranges.clone(),
                    dry_run: false,
                };
                let manifest = Manifest::Service((**manifest).clone());
                for applied in self.registry.apply(&[manifest], &options).await? {
                    tracing::info!(%service, action = applied.action.as_str(), "service made of labels");
                    if let Some(warning) = applied.warning {
                        tracing::warn!(%service, %warning, "service made of labels");
                    }
                }
                Ok(())
            }
            Work::Delete => match self
                .registry
                .delete_service(service, &ManagedBy::Labels)
                .await
            {
                Ok(_) => {
                    tracing::info!(%service, "service made of labels is deleted: its last container is long gone");
                    Ok(())
                }
                // Another node was faster, or somebody has taken the service over.
                Err(ApplyError::NotFound { .. } | ApplyError::Owned { .. }) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }
}

/// Whether the same may succeed later without anybody's help.
fn may_pass(error: &ApplyError) -> bool {
    match error {
        ApplyError::Store(error) => error.is_outage(),
        ApplyError::Contended | ApplyError::Stale { .. } => true,
        ApplyError::Owned { .. }
        | ApplyError::NotFound { .. }
        | ApplyError::TooMany { .. }
        | ApplyError::Unreadable { .. } => false,
    }
}
