//! Leases of etcd, renewed through outages.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::cluster::Cluster;
use super::error::classify;
use crate::store::lease::Revoke;
use crate::store::{Lease, LeaseId, StoreError};

/// Renewals per time to live: two may fail before the lease is in danger.
const RENEWALS_PER_TTL: u32 = 3;

/// Pause after a renewal that failed, growing to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn grant(cluster: Arc<Cluster>, ttl: Duration) -> Result<Lease, StoreError> {
    // A fraction of a second is rounded up: a lease must not end sooner than asked for.
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
    let response = cluster
        .write(|member| {
            let mut client = member.client.lease_client();
            async move { client.grant(seconds, None).await }
        })
        .await?;
    let id = LeaseId(response.id());
    let ttl = Duration::from_secs(u64::try_from(response.ttl()).unwrap_or(1).max(1));
    let (lost, renewal) = (CancellationToken::new(), CancellationToken::new());
    let renewer = Renewer {
        cluster: cluster.clone(),
        id,
        ttl,
    };
    let (told, stop) = (lost.clone(), renewal.clone());
    tokio::spawn(async move {
        let renewing = stop.run_until_cancelled(renewer.run());
        if renewing.await.is_some() {
            told.cancel();
        }
    });
    Ok(Lease::new(id, ttl, lost, renewal, Revoker { cluster }))
}

struct Renewer {
    cluster: Arc<Cluster>,
    id: LeaseId,
    ttl: Duration,
}

impl Renewer {
    /// Renews until etcd says that the lease is gone. An outage does not end this, however long:
    /// an etcd that comes back gives its leases their full time again, and if it has ended this
    /// one, it says so.
    async fn run(self) {
        let mut failures = 0_u32;
        loop {
            let Err(error) = self.renew_over_one_stream(&mut failures).await else {
                info!(lease = %self.id, "etcd has ended a lease");
                return;
            };
            failures = failures.saturating_add(1);
            if failures == 1 {
                warn!(%error, lease = %self.id, "cannot renew a lease, trying again");
            }
            let pause = FIRST_PAUSE
                .saturating_mul(1 << failures.min(8))
                .min(LONGEST_PAUSE);
            tokio::time::sleep(pause.min(self.ttl / (2 * RENEWALS_PER_TTL))).await;
        }
    }

    /// `Ok` when the lease is gone; an error when the stream broke.
    async fn renew_over_one_stream(&self, failures: &mut u32) -> Result<(), StoreError> {
        let id = self.id.0;
        let opened = self
            .cluster
            .read_with_index(|member| {
                let mut client = member.client.lease_client();
                async move {
                    match client.keep_alive(id).await {
                        Ok(stream) => Ok(Some(stream)),
                        // The library has no error of its own for a lease that is gone: ask.
                        Err(error @ etcd_client::Error::LeaseKeepAliveError(_)) => {
                            let left = client.time_to_live(id, None).await?;
                            if left.ttl() <= 0 {
                                Ok(None)
                            } else {
                                Err(error)
                            }
                        }
                        Err(error) => Err(error),
                    }
                }
            })
            .await?;
        let (member, Some((mut keeper, mut answers))) = opened else {
            return Ok(());
        };
        let address = &self.cluster.member(member).address;
        let deadline = self
            .cluster
            .options
            .deadline
            .min(self.ttl / RENEWALS_PER_TTL);
        let failed = |error| {
            self.cluster.give_up_on(member);
            classify(address, deadline, error)
        };
        loop {
            if *failures > 0 {
                info!(lease = %self.id, "lease is renewed again");
                *failures = 0;
            }
            tokio::time::sleep(self.ttl / RENEWALS_PER_TTL).await;
            keeper.keep_alive().await.map_err(failed)?;
            match tokio::time::timeout(deadline, answers.message()).await {
                Ok(Ok(Some(answer))) if answer.ttl() <= 0 => return Ok(()),
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => {
                    let ended = "the stream ended".to_owned();
                    return Err(failed(etcd_client::Error::LeaseKeepAliveError(ended)));
                }
                Ok(Err(error)) => return Err(failed(error)),
                Err(_) => {
                    self.cluster.give_up_on(member);
                    let address = address.clone();
                    return Err(StoreError::DeadlineExceeded { address, deadline });
                }
            }
        }
    }
}

struct Revoker {
    cluster: Arc<Cluster>,
}

#[async_trait]
impl Revoke for Revoker {
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        // Ending a lease twice is as good as once, so this may be repeated like a read.
        let revoked = self
            .cluster
            .read(|member| {
                let mut client = member.client.lease_client();
                async move { client.revoke(id.0).await }
            })
            .await;
        match revoked {
            Ok(_) | Err(StoreError::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
