//! Writing the services that container labels make, and deleting those whose containers are long gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::manifest::{Manifest, ServiceManifest};
use model::name::ServiceKey;
use model::net::IpNet;
use model::service::ManagedBy;
use model::time::Timestamp;
use registry::Registry;
use registry::follow::chain;
use registry::resources::{Action, ApplyError, ApplyOptions};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Until what was refused may be tried again: the reason, such as an address that another service has, may be gone.
const TRY_REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// What is to be done about a service made of labels.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Create or replace it; virtual IPs come from these ranges.
    Write(Box<ServiceManifest>, Vec<IpNet>),
    /// Note that it is unused since then, or is used again.
    Note(Option<Timestamp>),
    /// Delete it, if it is still unused since then.
    Delete(Timestamp),
}

/// Work that was refused.
struct Refused {
    work: Work,
    reason: String,
    again_at: Instant,
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
    /// What was refused: not tried again before its time unless it changes.
    refused: BTreeMap<ServiceKey, Refused>,
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
                match state.refused.get(service) {
                    Some(refused) if refused.work == work => {
                        if Instant::now() < refused.again_at {
                            return;
                        }
                    }
                    _ => drop(state.refused.remove(service)),
                }
                state.work.insert(service.clone(), work);
                self.wake.notify_one();
            }
        }
    }

    /// Whether there is something to do about a service, or was and it was refused.
    pub fn knows(&self, service: &ServiceKey) -> bool {
        let state = self.lock();
        state.work.contains_key(service) || state.refused.contains_key(service)
    }

    /// Why what labels ask for is not written.
    pub fn refusal(&self, service: &ServiceKey) -> Option<String> {
        let state = self.lock();
        state.refused.get(service).map(|r| r.reason.clone())
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
                    if self.refusal(&service).as_ref() != Some(&reason) {
                        tracing::warn!(%service, %reason, "a service made of labels is refused");
                    }
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
            state.refused.remove(service);
            if let Some(reason) = refused {
                let refused = Refused {
                    work: work.clone(),
                    reason,
                    again_at: Instant::now() + TRY_REFUSED_AGAIN,
                };
                state.refused.insert(service.clone(), refused);
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
                    if applied.action != Action::Unchanged {
                        tracing::info!(%service, action = applied.action.as_str(), "service made of labels");
                    }
                    if let Some(warning) = applied.warning {
                        tracing::warn!(%service, %warning, "service made of labels");
                    }
                }
                Ok(())
            }
            Work::Note(since) => self.registry.note_unused(service, *since).await,
            Work::Delete(since) => {
                if self.registry.delete_unused(service, *since).await? {
                    tracing::info!(%service, %since, "service made of labels is deleted: its last container is long gone");
                }
                Ok(())
            }
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
        | ApplyError::VipHeld { .. }
        | ApplyError::VipUnusable { .. }
        | ApplyError::Unreadable { .. } => false,
    }
}
