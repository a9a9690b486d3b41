//! The etcd backend: many machines, one etcd cluster (3.4 and later).
//!
//! # Layout
//! - `cluster`: the members, which of them is asked, deadlines and fail-over
//! - `connect`: connections to one member, with and without TLS
//! - `date`: what time it is there
//! - `tls`: which authorities are believed and which certificate is shown ([`TlsFiles`])
//! - `user`: user, password and token ([`UserFile`])
//! - `error`: what etcd's and the transport's errors mean to a caller
//! - `watch`: one prefix's changes, whole revisions only, and noticing that a stream has died
//! - `lease`: renewing a lease through outages

mod cluster;
mod connect;
mod date;
mod error;
mod lease;
mod tls;
mod user;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::proto::PbKeyValue;
use etcd_client::{CompareOp, GetOptions, PutOptions, TxnOp};
use tracing::{debug, warn};

use crate::metrics::Metrics;

use self::cluster::Cluster;
pub use self::date::date;
pub use self::tls::{IdentityFiles, TlsFiles};
pub use self::user::UserFile;
use self::watch::EtcdWatch;
use super::{
    Compare, Entry, Lease, Listing, Op, Outcome, Revision, Store, StoreError, Txn, Watch, txn,
};

/// Listings that were overtaken by a compaction between two of their pages start over this often.
const LIST_ATTEMPTS: usize = 3;

/// Where etcd is and how patient to be with it.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// The members' client URLs (`http://host:port`, `https://host:port`, or `host:port`). One is used at a time, the
    /// next when it fails.
    pub endpoints: Vec<String>,
    /// For `https://` endpoints; must be empty for others.
    pub tls: TlsFiles,
    /// For an etcd with users (`etcdctl auth enable`). It needs a role with read and write permission on the prefix.
    pub user: Option<UserFile>,
    /// Where turns to other members and log-ins are counted.
    pub metrics: Metrics,
    /// Every call to the store ends within this time. A listing may take it once per page.
    pub deadline: Duration,
    /// Time for a connection, TLS included.
    pub connect_timeout: Duration,
    /// How long a connection in use may be silent before it is probed by an HTTP/2 ping. etcd
    /// closes connections that ping more often than every 5 s (`--grpc-keepalive-min-time`).
    pub keep_alive_interval: Duration,
    /// How long the answer to such a ping may take; then the connection counts as dead.
    pub keep_alive_timeout: Duration,
    /// How long a watch may be silent before it asks for its progress. It fails when nothing
    /// comes within `deadline` after that.
    pub watch_probe_interval: Duration,
    /// Keys in one page of a listing.
    pub page_keys: u32,
}

impl EtcdOptions {
    /// The defaults for these endpoints: 5 s for a call, 2 s to connect, dead connections noticed
    /// within 15 s, dead watches within 10 s.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> EtcdOptions {
        EtcdOptions {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: TlsFiles::default(),
            user: None,
            metrics: Metrics::new(),
            deadline: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
            watch_probe_interval: Duration::from_secs(5),
            page_keys: 1000,
        }
    }
}

/// A store in an etcd cluster.
///
/// Connections are made when they are needed and made again when they break, so that an etcd
/// which is down gives [`StoreError::Unavailable`] from each call and nothing else.
#[derive(Debug)]
pub struct EtcdStore {
    cluster: Arc<Cluster>,
}

impl EtcdStore {
    /// Prepares the connections, without waiting for any of them. Needs a tokio runtime, which
    /// then runs them.
    ///
    /// # Errors
    /// [`StoreError::Config`] for an endpoint that is no URL this version can use, and for TLS files that can't be used.
    pub async fn connect(options: EtcdOptions) -> Result<EtcdStore, StoreError> {
        Ok(EtcdStore {
            cluster: Arc::new(Cluster::new(options).await?),
        })
    }

    async fn list_once(
        &self,
        prefix: &str,
        take: &mut (dyn FnMut(Vec<Entry>) + Send),
    ) -> Result<Revision, StoreError> {
        let (mut from, end) = range_of(prefix);
        let mut limit = i64::from(self.cluster.options.page_keys.max(1));
        let mut revision = 0;
        loop {
            // The first page fixes the revision at which all others are read.
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(limit)
                .with_revision(revision);
            let page = self
                .cluster
                .read(|member| {
                    let (mut kv, from, options) = (member.kv(), from.clone(), options.clone());
                    async move { kv.get(from, Some(options)).await }
                })
                .await;
            let page = match page {
                Err(StoreError::TooLarge { .. }) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    debug!(
                        prefix,
                        limit, "page of a listing is too large, asking for fewer keys"
                    );
                    continue;
                }
                other => other?.0,
            };
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            let next = page.kvs.last().filter(|_| page.more);
            let next = next.map(|last| [last.key.as_slice(), b"\0"].concat());
            take(page.kvs.into_iter().filter_map(entry).collect());
            match next {
                Some(next) => from = next,
                None => return Ok(revision),
            }
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut attempt = 1;
        loop {
            let mut entries = Vec::new();
            match self
                .list_once(prefix, &mut |mut page| entries.append(&mut page))
                .await
            {
                Err(StoreError::Compacted { .. }) if attempt < LIST_ATTEMPTS => attempt += 1,
                result => return result.map(|revision| Listing { revision, entries }),
            }
        }
    }

    async fn list_pages(
        &self,
        prefix: &str,
        take: &mut (dyn FnMut(Vec<Entry>) + Send),
    ) -> Result<Revision, StoreError> {
        self.list_once(prefix, take).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        txn::check_key(key, &self.limits())?;
        let response = self
            .cluster
            .read(|member| {
                let (mut kv, key) = (member.kv(), key.to_owned());
                async move { kv.get(key, None).await }
            })
            .await?;
        Ok(response.0.kvs.into_iter().next().and_then(entry))
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.validate(&self.limits())?;
        let lease = txn.ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        let compares: Vec<_> = txn.compares.iter().map(to_compare).collect();
        let ops: Vec<_> = txn.ops.iter().map(to_op).collect();
        let request = etcd_client::Txn::new().when(compares).and_then(ops);
        let response = self
            .cluster
            .write(|member| {
                let (mut kv, request) = (member.kv(), request.clone());
                async move { kv.txn(request).await }
            })
            .await
            .map_err(|e| error::with_lease(e, lease))?;
        Ok(match response.header() {
            Some(header) if response.succeeded() => Outcome::Committed(header.revision()),
            _ => Outcome::Conflict,
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        Ok(Watch::new(
            EtcdWatch::start(self.cluster.clone(), prefix, after.max(0)).await?,
        ))
    }

    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        lease::grant(self.cluster.clone(), ttl).await
    }

    fn name(&self) -> &'static str {
        "etcd"
    }
}

/// The half-open range of keys that start with `prefix`, as etcd wants it.
fn range_of(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // No byte of UTF-8 text is 0xff, so this cannot overflow.
        Some(last) => *last += 1,
        // etcd's way to say "all keys".
        None => return (vec![0], vec![0]),
    }
    (prefix.as_bytes().to_vec(), end)
}

fn to_compare(compare: &Compare) -> etcd_client::Compare {
    use etcd_client::Compare as C;
    match compare {
        Compare::Absent(key) => C::create_revision(key.as_str(), CompareOp::Equal, 0),
        Compare::Exists(key) => C::create_revision(key.as_str(), CompareOp::Greater, 0),
        // To etcd an absent key has revision 0; to us it has none.
        Compare::Unchanged { key, mod_revision } => {
            C::mod_revision(key.as_str(), CompareOp::Equal, (*mod_revision).max(1))
        }
    }
}

fn to_op(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|id| PutOptions::new().with_lease(id.0));
            TxnOp::put(key.as_str(), value.as_ref(), options)
        }
        Op::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

/// An entry, unless its key is not UTF-8: no heddle wrote that one, and it must not hide the rest.
fn entry(kv: PbKeyValue) -> Option<Entry> {
    Some(Entry {
        key: key(kv.key)?,
        value: Bytes::from(kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
    })
}

fn key(key: Vec<u8>) -> Option<String> {
    String::from_utf8(key)
        .inspect_err(|e| {
            let key = String::from_utf8_lossy(e.as_bytes());
            warn!(%key, "ignoring an etcd key that is not utf-8");
        })
        .ok()
}
