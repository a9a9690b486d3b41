//! Joining: agreeing on the mesh, then saying what this node is and that it is alive.

use std::sync::Arc;
use std::time::Duration;

use model::{Mesh, Node};
use registry::Registry;
use registry::follow::chain;
use registry::join::{JoinError, MeshWish};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::admin::Context;
use crate::config::Config;

/// How long a node that could start from its last snapshot waits for the registry first.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
const NOTE: &str = "mesh";

/// A node on its way in.
pub struct Joining {
    registry: Registry,
    context: Arc<Context>,
    wish: MeshWish,
    lease_ttl: Duration,
}

impl Joining {
    /// A node that wishes what its configuration says.
    pub fn new(config: &Config, registry: Registry, context: Arc<Context>) -> Self {
        Joining {
            registry,
            context,
            wish: config.mesh_wish(),
            lease_ttl: config.lease_ttl,
        }
    }

    /// The mesh's settings: the registry's; without it those of the last snapshot. Waits while there are neither, until
    /// `stop`, which gives `None`.
    pub async fn mesh(&self, stop: &CancellationToken) -> Result<Option<Mesh>, JoinError> {
        let remembered = self.context.feed.catalog.borrow().mesh.clone();
        let mut backoff = Duration::from_millis(100);
        let mut told = false;
        loop {
            let asked = self.registry.mesh(&self.wish);
            let answer = match &remembered {
                Some(_) => match tokio::time::timeout(PATIENCE, asked).await {
                    Ok(answer) => answer,
                    Err(_) => return Ok(remembered.as_deref().cloned()),
                },
                None => tokio::select! {
                    answer = asked => answer,
                    () = stop.cancelled() => return Ok(None),
                },
            };
            match answer {
                Ok(mesh) => {
                    self.note(None);
                    return Ok(Some(mesh));
                }
                Err(error @ JoinError::Mismatch { .. }) => return Err(error),
                Err(_) if remembered.is_some() => return Ok(remembered.as_deref().cloned()),
                Err(error) => {
                    let why = format!("waits for the registry: {}", chain(&error));
                    if !told {
                        tracing::warn!(%why, "can't join yet");
                        told = true;
                    }
                    self.note(Some(why));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = stop.cancelled() => return Ok(None),
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Keeps the node's record and its liveness in the registry. Yields an error when the registry, back at last, turns
    /// out to disagree: then this node must not join.
    pub fn keep(
        self,
        node: Node,
        grace: Duration,
        stop: CancellationToken,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> oneshot::Receiver<JoinError> {
        let (refuse, refused) = oneshot::channel();
        tasks.spawn(async move {
            // Held to the end: dropped, it would look like a refusal that never came.
            let mut refuse = Some(refuse);
            let mut backoff = Duration::from_millis(100);
            loop {
                let joined = tokio::select! {
                    joined = self.enter(&node) => joined,
                    () = stop.cancelled() => return,
                };
                match joined {
                    Ok(()) => break,
                    Err(error @ JoinError::Mismatch { .. }) => {
                        tracing::error!(reason = %chain(&error), "refuses to join");
                        self.note(Some(format!("refuses to join: {}", chain(&error))));
                        if let Some(refuse) = refuse.take() {
                            let _ = refuse.send(error);
                        }
                        return;
                    }
                    Err(error) => tracing::debug!(reason = %chain(&error), "can't join yet"),
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = stop.cancelled() => return,
                }
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
            tracing::info!(node = %node.name, "joined");
            self.registry
                .keep_alive(node.name, self.lease_ttl, grace, stop)
                .await;
            drop(refuse);
        });
        refused
    }

    async fn enter(&self, node: &Node) -> Result<(), JoinError> {
        self.registry.mesh(&self.wish).await?;
        self.registry.put_node(node).await?;
        Ok(())
    }

    fn note(&self, why: Option<String>) {
        let mut rooms = self.context.rooms_mut();
        match why {
            Some(why) => rooms.notes.insert(NOTE, why),
            None => rooms.notes.remove(NOTE),
        };
    }
}
