//! The `[resources]` folder: manifests in files, applied at start and whenever a file changes.
//!
//! Each file is taken whole or not at all: one that can't be read changes nothing, and what it defined before stays. A
//! resource that no file defines any more is deleted; while any file can't be read nothing is, because what it defines is not
//! known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::manifest::{self, Manifest};
use model::service::ManagedBy;
use model::{Catalog, Event, EventKind, Name, ServiceKey, Timestamp};
use registry::Registry;
use registry::follow::chain;
use registry::resources::{Action, ApplyError, ApplyOptions};
use tokio_util::sync::CancellationToken;

use crate::admin::Context;

/// How often the folder is looked at: a change is seen within this time.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon what the registry refused to take is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// The largest file that is read.
const MAX_FILE: u64 = 16 << 20;

/// What tells a changed file from an unchanged one.
type Stamp = (SystemTime, u64);

/// Follows one folder.
pub struct Folder {
    path: PathBuf,
    node: Name,
    registry: Registry,
    context: Arc<Context>,
}

/// What a look at the folder found.
#[derive(Default)]
struct Found {
    manifests: Vec<Manifest>,
    bad: BTreeMap<PathBuf, String>,
}

impl Folder {
    /// A folder whose resources belong to this node's files.
    pub fn new(path: PathBuf, context: Arc<Context>) -> Self {
        Folder {
            path,
            node: context.node.clone(),
            registry: context.registry.clone(),
            context,
        }
    }

    /// Follows the folder until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut seen: Option<BTreeMap<PathBuf, Stamp>> = None;
        let mut again_at = None;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let path = self.path.clone();
            let Ok(listed) = tokio::task::spawn_blocking(move || list(&path)).await else {
                return;
            };
            let stamps = match listed {
                Ok(stamps) => stamps,
                Err(error) => {
                    let why = format!("the folder can't be read: {error}");
                    self.note(BTreeMap::from([(self.path.clone(), why)]));
                    continue;
                }
            };
            let due = again_at.is_some_and(|at| tokio::time::Instant::now() >= at);
            if seen.as_ref() == Some(&stamps) && !due {
                continue;
            }
            let paths: Vec<PathBuf> = stamps.keys().cloned().collect();
            let Ok(found) = tokio::task::spawn_blocking(move || read(&paths)).await else {
                return;
            };
            again_at = if self.take(found).await {
                None
            } else {
                Some(tokio::time::Instant::now() + RETRY_EVERY)
            };
            seen = Some(stamps);
        }
    }

    /// Applies what was found; whether the registry took all of it.
    async fn take(&self, found: Found) -> bool {
        let Found { manifests, mut bad } = found;
        let catalog = self.context.feed.catalog.borrow().clone();
        let Some(mesh) = catalog.mesh.clone() else {
            return false;
        };
        let options = ApplyOptions {
            manager: ManagedBy::File(self.node.clone()),
            ranges: mesh.vip_ranges.clone(),
            dry_run: false,
        };
        let readable = bad.is_empty();
        let (mut complete, mut waits) = (true, false);
        for chunk in manifests.chunks(self.registry.apply_limit()) {
            match self.registry.apply(chunk, &options).await {
                Ok(applied) => {
                    for one in applied.iter().filter(|a| a.action != Action::Unchanged) {
                        tracing::info!(kind = one.kind, key = %one.key, action = one.action.as_str(), "resource from file");
                    }
                    for warning in applied.iter().filter_map(|a| a.warning.as_ref()) {
                        tracing::warn!(%warning, "resource from file");
                    }
                }
                // One that belongs to somebody else must not keep the others out.
                Err(
                    ApplyError::Owned { .. }
                    | ApplyError::Unreadable { .. }
                    | ApplyError::VipHeld { .. }
                    | ApplyError::VipUnusable { .. },
                ) => {
                    for manifest in chunk {
                        let one = std::slice::from_ref(manifest);
                        if let Err(error) = self.registry.apply(one, &options).await {
                            let path = self.path.join(manifest.key().to_string());
                            complete &= !matches!(error, ApplyError::Store(_));
                            // Who holds an address may give it up, be it a later one of these.
                            waits |= matches!(error, ApplyError::VipHeld { .. });
                            bad.insert(path, chain(&error));
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(reason = %chain(&error), "can't apply the resources folder yet");
                    complete = false;
                }
            }
        }
        if complete && readable {
            complete = self
                .delete_undefined(&catalog, &manifests, &options.manager)
                .await;
        }
        self.note(bad);
        complete && !waits
    }

    async fn delete_undefined(
        &self,
        catalog: &Catalog,
        manifests: &[Manifest],
        manager: &ManagedBy,
    ) -> bool {
        let defined: BTreeSet<(&str, ServiceKey)> =
            manifests.iter().map(|m| (m.kind(), m.key())).collect();
        let mut complete = true;
        let mut settle = |kind: &str, key: &ServiceKey, result: Result<_, ApplyError>| match result
        {
            Ok(_) => tracing::info!(kind, %key, "resource deleted: no file defines it any more"),
            Err(ApplyError::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(kind, %key, reason = %chain(&error), "can't delete what no file defines any more");
                complete = false;
            }
        };
        for (key, service) in &catalog.services {
            if service.managed_by == *manager && !defined.contains(&("Service", key.clone())) {
                settle(
                    "Service",
                    key,
                    self.registry.delete_service(key, manager).await,
                );
            }
        }
        for (key, endpoint) in &catalog.endpoints {
            if endpoint.managed_by == *manager && !defined.contains(&("Endpoint", key.clone())) {
                settle(
                    "Endpoint",
                    key,
                    self.registry.delete_endpoint(key, manager).await,
                );
            }
        }
        complete
    }

    fn note(&self, bad: BTreeMap<PathBuf, String>) {
        let before = std::mem::replace(&mut self.context.rooms_mut().files, bad.clone());
        let refused = bad
            .iter()
            .filter(|(path, why)| before.get(*path) != Some(*why))
            .map(|(path, why)| {
                tracing::warn!(path = %path.display(), %why, "resource file refused; what it defined before stays");
                (path, "FileRefused", why.clone())
            });
        let mended = before
            .keys()
            .filter(|path| !bad.contains_key(*path))
            .map(|path| (path, "FileAccepted", "accepted, or gone".to_owned()));
        let now = Timestamp::now();
        for (path, reason, message) in refused.chain(mended) {
            let event = Event {
                at: now,
                kind: EventKind::Registry,
                namespace: None,
                name: path.display().to_string(),
                node: Some(self.node.clone()),
                reason: reason.to_owned(),
                message,
            };
            self.context.events.record(event, now);
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path
        .extension()
        .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    known && !hidden
}

/// The manifests of a folder, or the one file that the path names.
fn list(path: &Path) -> std::io::Result<BTreeMap<PathBuf, Stamp>> {
    let stamp = |path: &Path| -> std::io::Result<Stamp> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.modified()?, metadata.len()))
    };
    if path.is_file() {
        return Ok(BTreeMap::from([(path.to_owned(), stamp(path)?)]));
    }
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if is_manifest(&path)
            && let Ok(stamp) = stamp(&path)
        {
            found.insert(path, stamp);
        }
    }
    Ok(found)
}

fn read(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    let mut defined: BTreeMap<(&'static str, ServiceKey), PathBuf> = BTreeMap::new();
    for path in paths {
        match read_file(path) {
            Err(why) => {
                found.bad.insert(path.clone(), why);
            }
            Ok(manifests) => {
                for manifest in manifests {
                    let key = (manifest.kind(), manifest.key());
                    if let Some(first) = defined.get(&key) {
                        let why = format!(
                            "{} {} stays as {} defines it",
                            key.0,
                            key.1,
                            first.display()
                        );
                        found.bad.insert(path.clone(), why);
                    } else {
                        defined.insert(key, path.clone());
                        found.manifests.push(manifest);
                    }
                }
            }
        }
    }
    found
}

/// The manifests of a file or of a folder's files, for `heddle apply -f` and `heddle check`.
pub fn texts(path: &Path) -> std::io::Result<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for path in list(path)?.into_keys() {
        let text = std::fs::read_to_string(&path)?;
        all.push((path, text));
    }
    Ok(all)
}

fn read_file(path: &Path) -> Result<Vec<Manifest>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!(
            "{size} bytes are more than the {MAX_FILE} that are read"
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    manifest::parse(&text).map_err(|errors| {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        all.join("; ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: heddle/v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

    #[test]
    fn only_manifests_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "a.yaml",
            "b.yml",
            "c.json",
            "notes.txt",
            ".hidden.yaml",
            "d.yaml~",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> = list(folder.path())
            .unwrap()
            .into_keys()
            .map(|p| p.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a.yaml", "b.yml", "c.json"]);
    }

    #[test]
    fn a_bad_file_does_not_spoil_the_others_and_the_first_definition_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.yaml"), WEB).unwrap();
        std::fs::write(path("b.yaml"), "apiVersion: heddle/v1\nkind: Nonsense\n").unwrap();
        std::fs::write(path("c.yaml"), WEB).unwrap();
        let found = read(&[path("a.yaml"), path("b.yaml"), path("c.yaml")]);
        assert_eq!(found.manifests.len(), 1);
        assert!(found.bad[&path("b.yaml")].contains("Nonsense"));
        assert!(found.bad[&path("c.yaml")].contains("a.yaml"));
    }
}
