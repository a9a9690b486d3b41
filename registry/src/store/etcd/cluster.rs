//! The members of an etcd cluster, and which of them is asked.
//!
//! Each member has a connection of its own and one member is used until it fails: unlike
//! balancing over all of them, that keeps a member which hangs from eating a share of the calls.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, KvClient};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::error::{classify, is_stale_token};
use super::user::{Failed, Token};
use super::{EtcdOptions, connect};
use crate::store::{Retry, Revision, StoreError};

/// Largest answer that is accepted, in bytes. A page of a listing that is larger is asked for
/// again with fewer keys.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// One member of the cluster.
pub(super) struct Member {
    pub(super) address: String,
    pub(super) client: Client,
    kv: KvClient,
    token: Token,
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
    current: watch::Sender<usize>,
    seen: Mutex<Option<Seen>>,
}

/// A point in a cluster's history, by which it is told from that of another, or of a restored backup. Revisions alone don't
/// tell: those of a restored one may have gone beyond where they were by the time that we look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) cluster: u64,
    /// Raft's. Terms and indices never go down within one history, and begin anew in a restored one.
    pub(super) term: u64,
    /// Of an entry that had been committed before `revision` was read.
    pub(super) index_before: u64,
    /// Of the entry that made `revision`, or a later one.
    pub(super) index: u64,
    pub(super) revision: Revision,
}

impl Seen {
    /// Whether both may lie in one history. In that, each revision took an entry at least.
    pub(super) fn may_follow(&self, before: &Seen) -> bool {
        let revisions = u64::try_from(self.revision - before.revision).ok();
        before.cluster == self.cluster
            && before.term <= self.term
            && revisions.is_some_and(|more| before.index_before.saturating_add(more) <= self.index)
    }
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
        if options.endpoints.is_empty() {
            return Err(StoreError::Config {
                setting: "registry.endpoints",
                value: "[]".to_owned(),
                reason: "at least one is needed".to_owned(),
            });
        }
        if options.endpoints.iter().any(|e| e.starts_with("https://")) {
            // Files that can't be used are told now, rather than as an outage later.
            options.tls.load()?;
        }
        let mut members = Vec::with_capacity(options.endpoints.len());
        for address in &options.endpoints {
            let client = connect::client(address, &options).await?;
            let kv = client
                .kv_client()
                .max_decoding_message_size(MAX_ANSWER_BYTES);
            members.push(Member {
                address: address.clone(),
                client,
                kv,
                token: Token::default(),
            });
        }
        Ok(Cluster {
            options,
            members,
            current: watch::Sender::new(0),
            seen: Mutex::new(None),
        })
    }

    pub(super) fn member(&self, index: usize) -> &Member {
        &self.members[index % self.members.len()]
    }

    /// Turns to the next member, unless somebody did so already.
    pub(super) fn give_up_on(&self, index: usize) {
        let next = (index + 1) % self.members.len();
        let turned = self.current.send_if_modified(|current| {
            let turns = *current == index && next != index;
            if turns {
                *current = next;
            }
            turns
        });
        if turned {
            self.options.metrics.turned();
            info!(
                from = %self.member(index).address,
                to = %self.member(next).address,
                "turning to another etcd member"
            );
        }
    }

    /// Tells when another member is turned to.
    pub(super) fn turns(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// Whether the history goes on from where it was seen before. `now` has to be what a member says after it has
    /// answered a linearizable read, which proves that it knows all that any member knew before.
    pub(super) fn goes_on(&self, now: Seen) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.replace(now);
        before.is_none_or(|before| now.may_follow(&before))
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
            let index = *self.current.borrow();
            let member = self.member(index);
            let patience = self.patience(deadline, left);
            let error = match tokio::time::timeout(patience, self.ask(member, &call)).await {
                Ok(Ok(value)) => return Ok((index, value)),
                Ok(Err(error)) => error,
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

    /// Makes a call on one member, as the user that is configured. A call that is refused for its token was not looked at
    /// any further, so it is made again with another one, once.
    async fn ask<'a, T, F, Fut>(&'a self, member: &'a Member, call: &F) -> Result<T, StoreError>
    where
        F: Fn(&'a Member) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        if self.options.user.is_some() && member.token.count() == 0 {
            self.log_in(member, 0).await?;
        }
        let seen = member.token.count();
        let answer = match call(member).await {
            Err(error) if self.options.user.is_some() && is_stale_token(&error) => {
                self.log_in(member, seen).await?;
                call(member).await
            }
            answer => answer,
        };
        answer.map_err(|error| classify(&member.address, self.options.deadline, error))
    }

    async fn log_in(&self, member: &Member, seen: u64) -> Result<(), StoreError> {
        let Some(user) = &self.options.user else {
            return Ok(());
        };
        let renewed = member.token.renew(seen, user, &member.client).await;
        if !matches!(renewed, Ok(false)) {
            self.options.metrics.authenticated(renewed.is_ok());
        }
        match renewed {
            Ok(_) => Ok(()),
            Err(Failed::Here(error)) => Err(error),
            Err(Failed::There(error)) => {
                let error = classify(&member.address, self.options.deadline, error);
                Err(match error {
                    StoreError::Denied { address, source } => StoreError::Denied {
                        address,
                        source: format!("{source} (registry.username is {})", user.name).into(),
                    },
                    // Whatever became of the log-in, the call that waited for it was not sent.
                    StoreError::Unavailable {
                        address, source, ..
                    } => StoreError::Unavailable {
                        address,
                        sent: false,
                        source,
                    },
                    other => other,
                })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(term: u64, index: u64, revision: Revision) -> Seen {
        Seen {
            cluster: 1,
            term,
            index_before: index,
            index,
            revision,
        }
    }

    #[test]
    fn what_happens_to_a_cluster_leaves_its_history_one() {
        let before = seen(3, 100, 50);
        assert!(before.may_follow(&before));
        assert!(seen(3, 110, 60).may_follow(&before), "ten writes");
        assert!(seen(7, 130, 60).may_follow(&before), "elections and leases");
    }

    #[test]
    fn a_restored_backup_is_another_history() {
        let before = seen(3, 100, 50);
        assert!(!seen(3, 101, 49).may_follow(&before), "revisions went back");
        assert!(!seen(2, 101, 50).may_follow(&before), "the term went back");
        assert!(
            !seen(3, 40, 60).may_follow(&before),
            "twenty writes after a backup taken at 40"
        );
        assert!(
            !seen(3, 105, 60).may_follow(&before),
            "ten revisions took ten entries at least"
        );
        let other = Seen {
            cluster: 2,
            ..before
        };
        assert!(!other.may_follow(&before));
    }
}
