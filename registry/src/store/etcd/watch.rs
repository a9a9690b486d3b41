//! A watch on one prefix of etcd's keys.
//!
//! # Whole revisions
//! A large answer comes in fragments, each small enough for a message, and fragments end between
//! any two events. What belongs to the last revision seen is therefore held back until a later
//! revision begins or an answer says that it is complete.
//!
//! # Progress
//! etcd tells the progress of a quiet watch by itself every ten minutes, and when asked. The
//! answer to being asked may overtake events in servers before 3.4.31 and 3.5.13 (etcd issues
//! 15220 and 17507): from those it only shows that the stream is alive.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{WatchOptions, WatchRequestSender, WatchResponseStream};
use tokio::sync;
use tokio::time::Instant;
use tonic::Status;
use tracing::warn;

use super::cluster::{Cluster, Member, Seen};
use super::error::classify;
use super::{entry, key, range_of};
use crate::store::watch::WatchSource;
use crate::store::{Change, Revision, StoreError, WatchEvent};

/// `mvccpb.Event.EventType`.
const PUT: i32 = 0;
const DELETE: i32 = 1;

/// The watch id of an answer to a progress request: it is about all watches of the stream.
const ALL_WATCHES: i64 = -1;

pub(super) struct EtcdWatch {
    cluster: Arc<Cluster>,
    member: usize,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    events: Events,
    probe: Probe,
    turns: sync::watch::Receiver<usize>,
}

impl EtcdWatch {
    pub(super) async fn start(
        cluster: Arc<Cluster>,
        prefix: &str,
        after: Revision,
    ) -> Result<EtcdWatch, StoreError> {
        let (from, end) = range_of(prefix);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(after + 1)
            .with_progress_notify()
            .with_fragment();
        let turns = cluster.turns();
        let started = cluster.read_with_index(|member| open(member, from.clone(), options.clone()));
        let (member, opened) = started.await?;
        let Opened {
            requests,
            responses,
            first,
            trust_progress,
            present,
        } = opened;
        // A watch after a revision that is still to come would be silent until then, and miss all before it.
        if !cluster.goes_on(present) || present.revision < after {
            return Err(StoreError::Restored {
                revision: present.revision,
            });
        }
        let mut watch = EtcdWatch {
            probe: Probe::new(
                cluster.options.watch_probe_interval,
                cluster.options.deadline,
            ),
            cluster,
            member,
            requests,
            responses,
            events: Events::new(after, trust_progress),
            turns,
        };
        watch.accept(first)?;
        Ok(watch)
    }

    fn accept(&mut self, response: PbWatchResponse) -> Result<(), StoreError> {
        self.probe.heard(Instant::now());
        self.events.accept(response).map_err(|over| match over {
            Over::Compacted { revision } => StoreError::Compacted { revision },
            Over::Cancelled { reason } => self.broken(if reason.is_empty() {
                "the watch was cancelled".to_owned()
            } else {
                reason
            }),
        })
    }

    /// Somebody else has to serve the next watch.
    fn broken(&self, why: String) -> StoreError {
        self.cluster.give_up_on(self.member);
        let address = self.cluster.member(self.member).address.clone();
        if why.contains("permission denied") {
            return StoreError::Denied {
                address,
                source: why.into(),
            };
        }
        StoreError::Unavailable {
            address,
            sent: true,
            source: why.into(),
        }
    }
}

#[async_trait]
impl WatchSource for EtcdWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            if let Some(event) = self.events.ready.pop_front() {
                return Ok(event);
            }
            tokio::select! {
                // What has arrived comes before any doubt about whether something will.
                biased;
                response = self.responses.message() => match response {
                    Ok(Some(response)) => self.accept(response.0)?,
                    Ok(None) => return Err(self.broken("the stream ended".to_owned())),
                    Err(error) => {
                        self.cluster.give_up_on(self.member);
                        let address = &self.cluster.member(self.member).address;
                        return Err(classify(address, self.cluster.options.deadline, error));
                    }
                },
                // Something else found that a member fails. Whether it is this one is better known now than at the next probe.
                turned = self.turns.changed() => {
                    if turned.is_ok() && *self.turns.borrow_and_update() != self.member {
                        self.probe.doubt();
                    }
                }
                () = tokio::time::sleep_until(self.probe.due()) => {
                    if self.probe.is_out() {
                        return Err(self.broken("the watch is silent".to_owned()));
                    }
                    self.probe.sent(Instant::now());
                    if let Err(error) = self.requests.request_progress().await {
                        return Err(self.broken(error.to_string()));
                    }
                }
            }
        }
    }
}

struct Opened {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    first: PbWatchResponse,
    trust_progress: bool,
    /// The present when the watch was there.
    present: Seen,
}

/// Opens a stream with one watch on it and waits for the server to confirm it.
async fn open(
    member: &Member,
    from: Vec<u8>,
    options: WatchOptions,
) -> Result<Opened, etcd_client::Error> {
    let index_before = member
        .client
        .maintenance_client()
        .status()
        .await?
        .raft_index();
    let mut client = member
        .client
        .watch_client()
        .max_decoding_message_size(super::cluster::MAX_ANSWER_BYTES);
    let (requests, mut responses) = client.watch(from.clone(), Some(options)).await?.split();
    let Some(first) = responses.message().await? else {
        return Err(etcd_client::Error::WatchError(
            "the stream ended at once".to_owned(),
        ));
    };
    let first = first.0;
    // An expired token ends a watch before it begins, and etcd 3.4 calls that a lack of permission too. As a status it
    // leads to another log-in, and means what it says if it stands after that.
    if first.canceled && first.compact_revision == 0 && is_about_the_user(&first.cancel_reason) {
        let status = Status::unauthenticated(first.cancel_reason);
        return Err(etcd_client::Error::GRpcStatus(status));
    }
    let key = match from.as_slice() {
        // The watch on all keys.
        [] => vec![0],
        from => from.to_vec(),
    };
    let read = member.kv().get(key, None).await?;
    let status = member.client.maintenance_client().status().await?;
    Ok(Opened {
        requests,
        responses,
        first,
        trust_progress: tells_progress_in_order(status.version()),
        present: Seen {
            cluster: status.header().map_or(0, |header| header.cluster_id()),
            term: status.raft_term(),
            index_before,
            index: status.raft_index(),
            revision: read.header().map_or(0, |header| header.revision()),
        },
    })
}

fn is_about_the_user(reason: &str) -> bool {
    [
        "permission denied",
        "auth token",
        "user name is empty",
        "auth store",
    ]
    .iter()
    .any(|about| reason.contains(about))
}

/// Whether a server of this version answers a progress request after all events that it covers.
fn tells_progress_in_order(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return false;
    };
    let patch = numbers.next().unwrap_or(0);
    match (major, minor) {
        (3, 4) => patch >= 31,
        (3, 5) => patch >= 13,
        _ => (major, minor) > (3, 5),
    }
}

/// Notices a stream that has died without a word.
struct Probe {
    interval: Duration,
    patience: Duration,
    heard: Instant,
    asked: Option<Instant>,
}

impl Probe {
    fn new(interval: Duration, patience: Duration) -> Probe {
        Probe {
            interval,
            patience,
            heard: Instant::now(),
            asked: None,
        }
    }

    fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// To be asked at once.
    fn doubt(&mut self) {
        if let Some(past) = Instant::now().checked_sub(self.interval)
            && self.asked.is_none()
        {
            self.heard = self.heard.min(past);
        }
    }

    fn sent(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Whether a progress request has been sent and not been answered.
    fn is_out(&self) -> bool {
        self.asked.is_some()
    }

    /// When to ask, or when to stop waiting for the answer.
    fn due(&self) -> Instant {
        match self.asked {
            Some(asked) => asked + self.patience,
            None => self.heard + self.interval,
        }
    }
}

/// Why a watch is over.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    Compacted { revision: Revision },
    Cancelled { reason: String },
}

/// Turns etcd's answers into events.
struct Events {
    /// What has been told or is about to be: nothing up to here is told again.
    told: Revision,
    /// The newest revision, whose changes may not be complete.
    partial: Option<(Revision, Vec<Change>)>,
    ready: VecDeque<WatchEvent>,
    trust_progress: bool,
}

impl Events {
    fn new(after: Revision, trust_progress: bool) -> Events {
        Events {
            told: after,
            partial: None,
            ready: VecDeque::new(),
            trust_progress,
        }
    }

    fn accept(&mut self, response: PbWatchResponse) -> Result<(), Over> {
        if response.compact_revision != 0 {
            // The compacted revision itself can still be watched from.
            return Err(Over::Compacted {
                revision: response.compact_revision - 1,
            });
        }
        if response.canceled {
            return Err(Over::Cancelled {
                reason: response.cancel_reason,
            });
        }
        if response.created {
            return Ok(());
        }
        let is_progress = response.events.is_empty() && !response.fragment;
        for event in response.events {
            self.take(event);
        }
        if !response.fragment && response.watch_id != ALL_WATCHES {
            self.complete();
        }
        let in_order = response.watch_id != ALL_WATCHES || self.trust_progress;
        if is_progress && in_order && self.partial.is_none() {
            let revision = response.header.map_or(0, |header| header.revision);
            if revision > self.told {
                self.told = revision;
                self.ready.push_back(WatchEvent::Progress { revision });
            }
        }
        Ok(())
    }

    fn take(&mut self, event: PbEvent) {
        let Some(kv) = event.kv else {
            warn!("ignoring an etcd event without a key");
            return;
        };
        let revision = kv.mod_revision;
        if self
            .partial
            .as_ref()
            .is_some_and(|(partial, _)| *partial != revision)
        {
            self.complete();
        }
        if revision <= self.told {
            return;
        }
        let change = match event.r#type {
            PUT => entry(kv).map(Change::Put),
            DELETE => key(kv.key).map(|key| Change::Delete {
                key,
                mod_revision: revision,
            }),
            kind => {
                warn!(kind, "ignoring an etcd event of unknown kind");
                None
            }
        };
        let (_, changes) = self.partial.get_or_insert_with(|| (revision, Vec::new()));
        changes.extend(change);
    }

    /// Nothing more belongs to the newest revision.
    fn complete(&mut self) {
        let Some((revision, changes)) = self.partial.take() else {
            return;
        };
        self.told = revision;
        self.ready.push_back(if changes.is_empty() {
            WatchEvent::Progress { revision }
        } else {
            WatchEvent::Changes { revision, changes }
        });
    }
}

#[cfg(test)]
mod tests;
