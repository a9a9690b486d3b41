//! How a node enters and leaves: the mesh's settings, its own record, and its liveness under a lease.

use std::time::Duration;

use model::mesh::Mesh;
use model::name::Name;
use model::node::{Liveness, Node};
use model::time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::follow::chain;
use crate::layout::Key;
use crate::store::{Lease, Op, Outcome, StoreError, Txn};
use crate::vips::joined;
use crate::{Registry, RegistryError, record};

/// What a node's configuration says of the mesh; `None` where it says nothing and takes what is there.
#[derive(Clone, Debug, Default)]
pub struct MeshWish {
    /// `mesh.vip_range`.
    pub vip_ranges: Option<Vec<model::IpNet>>,
    /// `mesh.zone`.
    pub zone: Option<String>,
}

/// Why a node can't join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The registry failed: try again.
    #[error("registry can't be read or written")]
    Registry(#[from] RegistryError),
    /// The configuration contradicts what the first node stored; trying again doesn't help.
    #[error(
        "{key} is {wanted} in this node's configuration, and {stored} in the registry, where all nodes must agree: make \
         them the same, or leave {key} out"
    )]
    Mismatch {
        /// The configuration key.
        key: &'static str,
        /// What this node wants.
        wanted: String,
        /// What the registry has.
        stored: String,
    },
}

impl From<StoreError> for JoinError {
    fn from(error: StoreError) -> Self {
        JoinError::Registry(error.into())
    }
}

impl Registry {
    /// Reads the mesh's settings, or seeds them, and refuses a wish that contradicts them.
    pub async fn mesh(&self, wish: &MeshWish) -> Result<Mesh, JoinError> {
        let path = self.keys().path(&Key::Mesh);
        const TRIES: u32 = 5;
        for _ in 0..TRIES {
            if let Some(entry) = self.store().get(&path).await? {
                let stored: Mesh =
                    record::decode(&entry.value).map_err(|source| RegistryError::Record {
                        key: path.clone(),
                        source,
                    })?;
                return agree(stored, wish);
            }
            let default = Mesh::default();
            let mesh = Mesh {
                vip_ranges: wish.vip_ranges.clone().unwrap_or(default.vip_ranges),
                zone: wish.zone.clone().unwrap_or(default.zone),
            };
            let txn = Txn::create(path.clone(), record::encode(&mesh));
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(mesh);
            }
        }
        Err(JoinError::Registry(RegistryError::Contended {
            what: "the mesh's settings".to_owned(),
            tries: TRIES,
        }))
    }

    /// Writes what the node says of itself, unless the registry has just that.
    ///
    /// From then on [`Registry::keep_alive`] puts it back where it goes missing.
    pub async fn put_node(&self, node: &Node) -> Result<(), RegistryError> {
        self.set_own(node);
        let path = self.keys().path(&Key::Node(node.name.clone()));
        const TRIES: u32 = 5;
        for _ in 0..TRIES {
            let txn = match self.store().get(&path).await? {
                None => Txn::create(path.clone(), record::encode(node)),
                Some(entry) => {
                    let before: Option<Node> = record::decode(&entry.value).ok();
                    let same = before.as_ref().is_some_and(|before| {
                        Node {
                            since: before.since,
                            ..node.clone()
                        } == *before
                    });
                    if same {
                        return Ok(());
                    }
                    let bytes = record::replace(&entry.value, node);
                    Txn::update(path.clone(), entry.mod_revision, bytes)
                }
            };
            if let Outcome::Committed(_) = self.store().commit(txn).await? {
                return Ok(());
            }
        }
        Err(RegistryError::Contended {
            what: format!("the record of node {}", node.name),
            tries: TRIES,
        })
    }

    /// Says that the node is alive, for as long as the lease lives.
    pub async fn put_liveness(
        &self,
        liveness: &Liveness,
        ttl: Duration,
    ) -> Result<Lease, StoreError> {
        let lease = self.store().lease(ttl).await?;
        self.put_liveness_under(liveness, &lease).await?;
        Ok(lease)
    }

    async fn put_liveness_under(
        &self,
        liveness: &Liveness,
        lease: &Lease,
    ) -> Result<(), StoreError> {
        let op = Op::Put {
            key: self.keys().path(&Key::Liveness(liveness.node.clone())),
            value: record::encode(liveness).into(),
            lease: Some(lease.id()),
        };
        self.store().commit(Txn::new().then(op)).await?;
        Ok(())
    }

    /// Keeps the node alive until shutdown: a lost lease is replaced, an unreachable registry tried again with back-off.
    /// What somebody removed of the node's record and liveness, or what a restored backup lacks, is put back.
    ///
    /// At shutdown the node is marked as restarting for `grace` (60 s), within which its slices are believed.
    pub async fn keep_alive(
        &self,
        node: Name,
        ttl: Duration,
        grace: Duration,
        shutdown: CancellationToken,
    ) {
        let mut liveness = Liveness {
            session: format!("{}-{}", std::process::id(), Timestamp::now().0),
            since: Timestamp::now(),
            restarting_until: None,
            node,
        };
        let mut backoff = Duration::from_millis(100);
        while !shutdown.is_cancelled() {
            let lease = tokio::select! {
                () = shutdown.cancelled() => return,
                lease = self.put_liveness(&liveness, ttl) => lease,
            };
            match lease {
                Ok(lease) => {
                    backoff = Duration::from_millis(100);
                    tokio::select! {
                        () = lease.lost().cancelled() => tracing::warn!("this node's lease was lost; taking a new one"),
                        () = self.put_back(&liveness, &lease) => {}
                        () = shutdown.cancelled() => {
                            self.leave(&mut liveness, grace, lease).await;
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(reason = %chain(&error), "can't say that this node is alive yet");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(backoff) => {}
                    }
                    backoff = (backoff * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// Puts back what goes missing of what this node says of itself. Ends only when its lease is of no use any more.
    async fn put_back(&self, liveness: &Liveness, lease: &Lease) {
        loop {
            self.shared.own_gone.notified().await;
            let mut backoff = Duration::from_millis(100);
            loop {
                let put = async {
                    if let Some(node) = self.own() {
                        self.put_node(&node).await?;
                    }
                    Ok(self.put_liveness_under(liveness, lease).await?)
                };
                match put.await {
                    Ok(()) => break,
                    Err(RegistryError::Store(StoreError::LeaseNotFound { .. })) => return,
                    Err(error) => {
                        tracing::debug!(reason = %chain(&error), "can't put this node's record back yet");
                    }
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(Duration::from_secs(2));
            }
            tracing::info!("this node's record and liveness were put back");
        }
    }

    async fn leave(&self, liveness: &mut Liveness, grace: Duration, lease: Lease) {
        let until = Timestamp::now().0 + i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
        liveness.restarting_until = Some(Timestamp(until));
        match self.put_liveness(liveness, grace).await {
            // Dropped, it is no longer renewed, and ends when the grace does.
            Ok(_restarting) => {}
            Err(error) => {
                tracing::warn!(reason = %chain(&error), "can't mark this node as restarting");
            }
        }
        if let Err(error) = lease.revoke().await {
            tracing::debug!(reason = %chain(&error), "can't give the lease back; it expires by itself");
        }
    }
}

fn agree(stored: Mesh, wish: &MeshWish) -> Result<Mesh, JoinError> {
    if let Some(wanted) = &wish.vip_ranges
        && *wanted != stored.vip_ranges
    {
        return Err(JoinError::Mismatch {
            key: "mesh.vip_range",
            wanted: joined(wanted),
            stored: joined(&stored.vip_ranges),
        });
    }
    if let Some(wanted) = &wish.zone
        && *wanted != stored.zone
    {
        return Err(JoinError::Mismatch {
            key: "mesh.zone",
            wanted: wanted.clone(),
            stored: stored.zone,
        });
    }
    Ok(stored)
}
