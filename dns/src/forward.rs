//! The upstreams, which are asked for every name that is not ours.
//!
//! # Layout
//! * `cache`: responses, kept as long as they may be, and longer for when no upstream answers
//! * `group`: the upstreams of a zone, and whom to ask first
//! * `exchange`: one query to one upstream
//! * `received`: whether what comes belongs to the query
//! * `stored`: a response as it is kept and written for each client

mod cache;
mod exchange;
mod group;
mod received;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use model::domain::DomainName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub(crate) use cache::{Cache, Flags, Hit, Key};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use exchange::{Asked, Case};
use group::Group;
pub(crate) use received::skip_name;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use received::{Response, is_bare_error};
pub(crate) use stored::{Asker, Stored};

use crate::metrics::Metrics;
use crate::resolv_conf;
use crate::wire;

/// Queries under way at a time; one more gets SERVFAIL at once.
pub const MAX_IN_FLIGHT: usize = 1_000;

/// How long a client waits for an upstream before it gets what is past its time (RFC 8767, 5).
const PATIENCE: Duration = Duration::from_millis(1_800);

/// How often the system's name servers, and upstreams that are down, are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How often upstreams are asked whether they lead back here.
const TRACE: Duration = Duration::from_secs(60);

/// Where names that are not ours are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The name servers of `/etc/resolv.conf`.
    System,
    /// A name server.
    Address(SocketAddr),
}

/// A text that names no upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither `system` nor an address like 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53"
)]
pub struct UpstreamError(String);

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "system" {
            return Ok(Upstream::System);
        }
        let with_port = text.parse::<SocketAddr>();
        with_port
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Upstream::Address)
            .map_err(|_| UpstreamError(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::System => f.write_str("system"),
            Upstream::Address(address) => address.fmt(f),
        }
    }
}

/// The name servers to ask, in order: without duplicates, and without those that are ourselves, which would ask
/// themselves for ever.
pub(crate) fn resolve(
    upstreams: &[Upstream],
    resolv_conf: &Path,
    own: &[SocketAddr],
) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for upstream in upstreams {
        let found = match upstream {
            Upstream::Address(address) => vec![*address],
            Upstream::System => system(resolv_conf),
        };
        for address in found {
            if is_own(address, own) {
                warn!(upstream = %address, "not forwarding dns to ourselves: upstream skipped");
            } else if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    all
}

fn system(path: &Path) -> Vec<SocketAddr> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            warn!(path = %path.display(), %error, "can't read the system's name servers");
            return Vec::new();
        }
    };
    let (servers, unreadable) = resolv_conf::name_servers(&text);
    for line in unreadable {
        warn!(path = %path.display(), line, "name server skipped: not an ip address");
    }
    servers
}

fn is_own(upstream: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|listener| {
        let same_family = listener.is_ipv4() == upstream.is_ipv4();
        listener.port() == upstream.port()
            && (listener.ip() == upstream.ip()
                || (listener.ip().is_unspecified() && same_family && is_local(upstream)))
    })
}

/// Only addresses of this host can be bound.
fn is_local(address: SocketAddr) -> bool {
    let mut any_port = address;
    any_port.set_port(0);
    UdpSocket::bind(any_port).is_ok()
}

/// Why no upstream answered.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("there is no upstream to ask")]
    NoUpstream,
    #[error("no upstream answered in time")]
    NoAnswer,
    #[error("upstreams failed lately, and are left alone about the name for a while")]
    FailedLately,
}

/// Whom to ask for what, and how much to remember.
#[derive(Clone, Debug)]
pub(crate) struct ForwardOptions {
    pub upstreams: Vec<Upstream>,
    /// Asked for the names at and below each name, the longest that matches.
    pub zones: Vec<(DomainName, Vec<Upstream>)>,
    pub resolv_conf: PathBuf,
    /// Addresses that lead to ourselves.
    pub own: Vec<SocketAddr>,
    /// Bytes.
    pub cache: usize,
}

type Outcome = Result<Arc<Stored>, ForwardError>;

/// A question, as the cache knows it: name, type and what its client wants to know.
type Refresh = (Box<[u8]>, u16, Flags);

/// The questions that are under way, each with who waits for its answer.
type Flights = HashMap<Box<[u8]>, watch::Receiver<Option<Outcome>>>;

/// Asks upstreams, and remembers what they said.
#[derive(Debug)]
pub(crate) struct Forwarder {
    default: Group,
    /// By the zone's name on the wire, the longest first.
    zones: Vec<(Vec<u8>, Group)>,
    resolv_conf: PathBuf,
    own: Vec<SocketAddr>,
    cache: Cache,
    /// Whether any group has an upstream: each query looks at it.
    available: AtomicBool,
    /// Questions that upstreams are asked now: who asks the same waits for the same answer.
    flights: Mutex<Flights>,
    in_flight: Arc<Semaphore>,
    /// Stands in the names that show whether an upstream leads back here.
    token: String,
    refresh: mpsc::Sender<Refresh>,
    refreshed: Mutex<Option<mpsc::Receiver<Refresh>>>,
    metrics: Metrics,
}

impl Forwarder {
    pub(crate) fn new(options: ForwardOptions, metrics: Metrics) -> Self {
        /// More refreshes than this wait for nobody: the names are asked for again when their time is over.
        const REFRESHES: usize = 256;
        let mut zones: Vec<(Vec<u8>, Group)> = options
            .zones
            .into_iter()
            .map(|(zone, upstreams)| (wire::domain(&zone), Group::new(upstreams)))
            .collect();
        zones.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.len()));
        let (refresh, refreshed) = mpsc::channel(REFRESHES);
        let forwarder = Forwarder {
            default: Group::new(options.upstreams),
            zones,
            resolv_conf: options.resolv_conf,
            own: options.own,
            cache: Cache::new(options.cache),
            available: AtomicBool::new(false),
            flights: Mutex::default(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            token: format!("{:032x}", rand::random::<u128>()),
            refresh,
            refreshed: Mutex::new(Some(refreshed)),
            metrics,
        };
        forwarder.look_again();
        if forwarder.default.is_empty() {
            warn!("no dns upstream: names outside the mesh get SERVFAIL");
        }
        forwarder
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        let zones = self.zones.iter().map(|(_, group)| group);
        zones.chain([&self.default])
    }

    fn look_again(&self) -> bool {
        let looked = self
            .groups()
            .map(|group| group.look_again(&self.resolv_conf, &self.own, &self.metrics));
        let changed = looked.fold(false, |any, changed| any | changed);
        let available = self.groups().any(|group| !group.is_empty());
        self.available.store(available, Ordering::Relaxed);
        if changed {
            self.cache.forget_failures();
        }
        changed
    }

    /// Who would be asked about a name, and whether each answers.
    pub(crate) fn servers_of(&self, name: &[u8]) -> Vec<(SocketAddr, bool)> {
        let servers = self.group_of(name).servers();
        let servers = servers.iter();
        servers.map(|s| (s.address, s.answers())).collect()
    }

    /// Whether there is anybody to ask.
    pub(crate) fn available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// Leave to ask once; `None` when too many are asking.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().try_acquire_owned().ok()
    }

    /// Whether the name is one of those that show an upstream to lead back here, which is noted.
    pub(crate) fn is_own_trace(&self, name: &[u8]) -> bool {
        let mut labels = wire::labels(name);
        let (Some(index), Some(token), None) = (labels.next(), labels.next(), labels.next()) else {
            return false;
        };
        if token != self.token.as_bytes() {
            return false;
        }
        let index = std::str::from_utf8(index).ok().and_then(|t| t.parse().ok());
        let all: Vec<_> = self
            .groups()
            .flat_map(|group| group.servers().to_vec())
            .collect();
        if let Some(server) = index.and_then(|index: usize| all.get(index)) {
            server.set_looping(true);
        }
        true
    }

    /// What is kept and in its time.
    pub(crate) fn cached(&self, key: &Key<'_>) -> Option<Hit> {
        let now = std::time::Instant::now();
        let hit = self.cache.get(key, now)?;
        if hit.age.is_none() && !self.cache.failed_lately(key, now) {
            return None;
        }
        if hit.refresh {
            self.metrics.cache.with_label_values(&["prefetch"]).inc();
            let refresh = (key.name.into(), key.kind, key.flags);
            // Too many: another time.
            let _ = self.refresh.try_send(refresh);
        }
        Some(hit)
    }

    /// What upstreams say; the age as for [`Hit`].
    pub(crate) async fn resolve(
        self: &Arc<Self>,
        key: &Key<'_>,
    ) -> Result<(Arc<Stored>, Option<u32>), ForwardError> {
        self.metrics.cache.with_label_values(&["miss"]).inc();
        let now = std::time::Instant::now();
        let kept = self.cache.get(key, now);
        if kept.is_none() && self.cache.failed_lately(key, now) {
            return Err(ForwardError::FailedLately);
        }
        let asked = self.fly(key);
        let outcome = match &kept {
            Some(_) => timeout(PATIENCE, asked)
                .await
                .unwrap_or(Err(ForwardError::NoAnswer)),
            None => asked.await,
        };
        match (outcome, kept) {
            (Ok(stored), _) => Ok((stored, Some(0))),
            (Err(_), Some(kept)) => {
                self.metrics.cache.with_label_values(&["stale"]).inc();
                Ok((kept.stored, kept.age))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Asks, or waits for who is asking.
    async fn fly(self: &Arc<Self>, key: &Key<'_>) -> Outcome {
        let owned = key.to_bytes();
        let mut landed = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&owned) {
                Some(landed) => landed.clone(),
                None => {
                    let (land, landed) = watch::channel(None);
                    flights.insert(owned.clone(), landed.clone());
                    self.take_off(key, owned, land);
                    landed
                }
            }
        };
        let outcome = landed.wait_for(Option::is_some).await;
        // A flight that broke off has no outcome.
        outcome.map_or(Err(ForwardError::NoAnswer), |outcome| {
            outcome.clone().unwrap_or(Err(ForwardError::NoAnswer))
        })
    }

    /// In a task of its own, so that an answer which comes too late for a client is there for the next one.
    fn take_off(
        self: &Arc<Self>,
        key: &Key<'_>,
        owned: Box<[u8]>,
        land: watch::Sender<Option<Outcome>>,
    ) {
        let forwarder = self.clone();
        let (name, kind, flags): (Box<[u8]>, _, _) = (key.name.into(), key.kind, key.flags);
        tokio::spawn(async move {
            let key = Key {
                name: &name,
                kind,
                flags,
            };
            // Ends the flight even if asking panics.
            let _ended = Ended(&forwarder, owned);
            let outcome = forwarder.group_of(&name).ask(&key).await;
            let now = std::time::Instant::now();
            let outcome = match outcome {
                Ok(stored) => {
                    let stored = Arc::new(stored);
                    if stored.life().is_some() {
                        forwarder.cache.put(&key, &stored, now);
                    } else if is_failure(stored.code()) {
                        forwarder.cache.failed(&key, now);
                    }
                    Ok(stored)
                }
                Err(error) => {
                    debug!(%error, "dns query not answered by any upstream");
                    if !matches!(error, ForwardError::NoUpstream) {
                        forwarder.cache.failed(&key, now);
                    }
                    Err(error)
                }
            };
            land.send_replace(Some(outcome));
        });
    }

    fn group_of(&self, name: &[u8]) -> &Group {
        let zone = |(zone, _): &&(Vec<u8>, Group)| wire::below(name, zone).is_some();
        self.zones
            .iter()
            .find(zone)
            .map_or(&self.default, |(_, group)| group)
    }

    /// Follows the system's name servers, looks after upstreams that are down or lead back here, and refreshes what is
    /// asked for often; until shutdown.
    pub(crate) async fn keep(self: Arc<Self>, shutdown: CancellationToken) {
        let refreshed = &self.refreshed;
        let refreshed = refreshed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut refreshed) = refreshed else {
            return;
        };
        let refresh = async {
            while let Some((name, kind, flags)) = refreshed.recv().await {
                let Some(permit) = self.permit() else {
                    continue;
                };
                let forwarder = self.clone();
                tokio::spawn(async move {
                    let key = Key {
                        name: &name,
                        kind,
                        flags,
                    };
                    let _ = forwarder.fly(&key).await;
                    drop(permit);
                });
            }
        };
        let look = async {
            let mut traced = None;
            loop {
                let changed = self.look_again();
                let due = traced.is_none_or(|at: Instant| at.elapsed() >= TRACE);
                if changed || due {
                    traced = Some(Instant::now());
                    self.trace().await;
                }
                for group in self.groups() {
                    for server in group.down() {
                        server.probe().await;
                        if !server.is_down() {
                            self.cache.forget_failures();
                        }
                    }
                }
                sleep(LOOK).await;
            }
        };
        let both = async { tokio::join!(refresh, look) };
        shutdown.run_until_cancelled(both).await;
    }

    async fn trace(&self) {
        let all: Vec<_> = self
            .groups()
            .flat_map(|group| group.servers().to_vec())
            .collect();
        for (index, server) in all.iter().enumerate() {
            let mut name = Vec::new();
            let index = index.to_string();
            wire::push_labels(&mut name, [index.as_bytes(), self.token.as_bytes()]);
            name.push(0);
            server.set_looping(false);
            server.trace(&name).await;
        }
    }
}

/// Failures to resolve a name (RFC 9520, 2) that upstreams tell of.
fn is_failure(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::ServFail | ResponseCode::Refused)
}

/// Removes a flight.
struct Ended<'f>(&'f Forwarder, Box<[u8]>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let flights = &self.0.flights;
        let mut flights = flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.1);
    }
}
