//! The members of an etcd cluster, and which of them is asked.
//!
//! Each member has a connection of its own and one member is used until it fails: unlike
//! balancing over all of them, that keeps a member which hangs from eating a share of the calls.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient};
use tokio::time::Instant;
use tracing::info;

use super::EtcdOptions;
use super::error::classify;
use crate::store::{Retry, StoreError};

/// Largest answer that is accepted, in bytes. A page of a listing that is larger is asked for
/// again with fewer keys.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// One member of the cluster.
pub(super) struct Member {
    pub(super) address: String,
    pub(super) client: Client,
    kv: KvClient,
}

impl Member {
    /// A handle for one call. Cloning shares the connection.
    pub(super) fn kv(&self) -> KvClient {
        self.kv.clone()
    }
}

pub(super) struct Cluster {
    pub(super) options: EtcdOptions,
    members: Vec<Member>,
    /// Index of the member in use.
    current: AtomicUsize,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    pub(super) async fn new(options: EtcdOptions) -> Result<Cluster, StoreError> {
        let config_error = |value: String, reason: String| StoreError::Config {
            setting: "registry.endpoints",
            value,
            reason,
        };
        if options.endpoints.is_empty() {
            return Err(config_error(
                "[]".to_owned(),
                "at least one is needed".to_owned(),
            ));
        }
        let connect = ConnectOptions::new()
            .with_connect_timeout(options.connect_timeout)
            .with_keep_alive(options.keep_alive_interval, options.keep_alive_timeout)
            // etcd takes pings without a call in progress for abuse and closes the connection.
            .with_keep_alive_while_idle(false)
            // A member that is cut off from the rest answers "no leader" instead of stale data.
            .with_require_leader(true);
        let mut members = Vec::with_capacity(options.endpoints.len());
        for address in &options.endpoints {
            if address.starts_with("https://") {
                let reason = "tls to etcd is not supported by this version (use http://)";
                return Err(config_error(address.clone(), reason.to_owned()));
            }
            let client = Client::connect([address.as_str()], Some(connect.clone()))
                .await
                .map_err(|e| config_error(address.clone(), e.to_string()))?;
            let kv = client
                .kv_client()
                .max_decoding_message_size(MAX_ANSWER_BYTES);
            members.push(Member {
                address: address.clone(),
                client,
                kv,
            });
        }
        Ok(Cluster {
            options,
            members,
            current: AtomicUsize::new(0),
        })
    }

    pub(super) fn member(&self, index: usize) -> &Member {
        &self.members[index % self.members.len()]
    }

    /// Turns to the next member, unless somebody did so already.
    pub(super) fn give_up_on(&self, index: usize) {
        let next = (index + 1) % self.members.len();
        let turned =
            self.current
                .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if turned.is_ok() && next != index {
            info!(
                from = %self.member(index).address,
                to = %self.member(next).address,
                "turning to another etcd member"
            );
        }
    }

    /// Makes a call that writes nothing, on one member after the other until one answers, within
    /// the deadline for all together.
    pub(super) async fn read<'a, T, F, Fut>(&'a self, call: F) -> Result<T, StoreError>
    where
        F: Fn(&'a Member) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.read_with_index(call).await.map(|(_, value)| value)
    }

    /// Like [`Cluster::read`], and tells which member answered.
    pub(super) async fn read_with_index<'a, T, F, Fut>(
        &'a self,
        call: F,
    ) -> Result<(usize, T), StoreError>
    where
        F: Fn(&'a Member) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call(call, |error| error.is_outage()).await
    }

    /// Makes a call that writes. Another member is asked only if the request has provably not
    /// left this process.
    pub(super) async fn write<'a, T, F, Fut>(&'a self, call: F) -> Result<T, StoreError>
    where
        F: Fn(&'a Member) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call(call, |error| error.retry() == Retry::Safe)
            .await
            .map(|(_, value)| value)
    }

    async fn call<'a, T, F, Fut>(
        &'a self,
        call: F,
        may_repeat: impl Fn(&StoreError) -> bool,
    ) -> Result<(usize, T), StoreError>
    where
        F: Fn(&'a Member) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.options.deadline;
        // One more than there are members: a connection that broke while nobody used it is only
        // noticed by the call that fails on it.
        let mut left = self.members.len() + 1;
        loop {
            left -= 1;
            let index = self.current.load(Ordering::Relaxed);
            let member = self.member(index);
            let patience = self.patience(deadline, left);
            let error = match tokio::time::timeout(patience, call(member)).await {
                Ok(Ok(value)) => return Ok((index, value)),
                Ok(Err(error)) => classify(&member.address, self.options.deadline, error),
                Err(_) => StoreError::DeadlineExceeded {
                    address: member.address.clone(),
                    deadline: patience,
                },
            };
            if error.is_outage() {
                self.give_up_on(index);
            }
            if left == 0 || !may_repeat(&error) || Instant::now() >= deadline {
                return Err(error);
            }
        }
    }

    /// How long to wait for one member: half of what is left while there are others to turn to.
    fn patience(&self, deadline: Instant, others_left: usize) -> Duration {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if self.members.len() > 1 && others_left > 1 {
            remaining / 2
        } else {
            remaining
        }
    }
}
