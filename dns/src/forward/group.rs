//! The upstreams of one zone: whom to ask first, and whom next.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::cache::{Flags, Key};
use super::exchange::{Answered, Case, exchange};
use super::stored::Stored;
use super::{ForwardError, Upstream, resolve};
use crate::metrics::Metrics;

/// How long one upstream may take.
const TRY: Duration = Duration::from_millis(1_500);

/// How long the next one waits for the one before: an answer that is late is taken, but not waited for alone.
const STAGGER: Duration = Duration::from_millis(400);

/// How long all tries together may take: less than the 5 s after which resolvers ask again.
const TOTAL: Duration = Duration::from_millis(4_500);

/// How often each upstream is asked.
const ROUNDS: usize = 2;

/// Failures in a row until an upstream is asked last.
const DOWN: u32 = 2;

/// An upstream, and how it did.
#[derive(Debug)]
pub(super) struct Server {
    pub address: SocketAddr,
    failures: AtomicU32,
    /// It leads queries back to us.
    looping: AtomicBool,
    /// It does not give back the case of a question.
    loses_case: AtomicBool,
    metrics: Metrics,
}

impl Server {
    fn new(address: SocketAddr, metrics: &Metrics) -> Self {
        let label = address.to_string();
        metrics.upstream_up.with_label_values(&[&label]).set(1);
        Server {
            address,
            failures: AtomicU32::new(0),
            looping: AtomicBool::new(false),
            loses_case: AtomicBool::new(false),
            metrics: metrics.clone(),
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= DOWN
    }

    /// Whether it is asked in its turn: it answers, and does not lead back here.
    pub(super) fn answers(&self) -> bool {
        !self.is_down() && !self.looping.load(Ordering::Relaxed)
    }

    /// Says it once when an upstream stops answering, and once when it answers again.
    fn note(&self, result: Result<&Stored, &io::Error>) {
        let label = self.address.to_string();
        let said = match result {
            Ok(stored) if stored.code() == ResponseCode::ServFail => "servfail",
            Ok(_) => "answer",
            Err(error) if error.kind() == io::ErrorKind::TimedOut => "timeout",
            Err(_) => "error",
        };
        let queries = &self.metrics.upstream_queries;
        queries.with_label_values(&[&label, said]).inc();
        let up = self.metrics.upstream_up.with_label_values(&[&label]);
        match result {
            Ok(_) => {
                if self.failures.swap(0, Ordering::Relaxed) >= DOWN {
                    info!(upstream = %self.address, "dns upstream answers again");
                }
                up.set(1);
            }
            Err(error) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                if failures == DOWN {
                    warn!(upstream = %self.address, %error, "dns upstream does not answer");
                }
                if failures >= DOWN {
                    up.set(0);
                }
            }
        }
    }

    /// Says once that an upstream leads back here.
    pub(super) fn set_looping(&self, looping: bool) {
        if self.looping.swap(looping, Ordering::Relaxed) == looping {
            return;
        }
        if looping {
            warn!(upstream = %self.address, "dns upstream asks us what we ask it: not asked until that ends");
        } else {
            info!(upstream = %self.address, "dns upstream does not lead back here any more");
        }
    }

    /// Whether its answers are told from forged ones by their case: to find out for each of them that it loses the case
    /// would cost a connection each.
    pub(super) fn case(&self) -> Case {
        if self.loses_case.load(Ordering::Relaxed) {
            Case::Lower
        } else {
            Case::Mixed
        }
    }

    /// Notes whether it gave back a mixed case.
    fn note_case(&self, kept: bool) {
        if self.loses_case.swap(!kept, Ordering::Relaxed) == kept {
            info!(upstream = %self.address, kept, "dns upstream and the case of a question");
        }
    }

    async fn ask(&self, key: &Key<'_>, time: Duration) -> io::Result<Stored> {
        let case = self.case();
        let result = match timeout(time, exchange(self.address, key, case)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let result = result.map(
            |Answered {
                 mut stored,
                 case_kept,
             }| {
                if case == Case::Mixed {
                    self.note_case(case_kept);
                }
                stored.set_upstream(self.address);
                stored
            },
        );
        self.note(result.as_ref());
        result
    }

    /// Asks for something that everybody knows, to see whether anybody is there.
    pub(super) async fn probe(&self) {
        const NS: u16 = 2;
        let root = Key {
            name: &[0],
            kind: NS,
            flags: Flags {
                recursion_desired: true,
                ..Flags::default()
            },
        };
        let _ = self.ask(&root, TRY).await;
    }

    /// Asks for a name that nobody has, and whoever leads back here is asked about that way. Looks again at what the
    /// upstream does with the case.
    pub(super) async fn trace(&self, name: &[u8]) {
        const HINFO: u16 = 13;
        let key = Key {
            name,
            kind: HINFO,
            flags: Flags {
                recursion_desired: true,
                ..Flags::default()
            },
        };
        let answered = timeout(TRY, exchange(self.address, &key, Case::Mixed)).await;
        if let Ok(Ok(Answered { case_kept, .. })) = answered {
            self.note_case(case_kept);
        }
    }
}

/// Upstreams that know the same.
#[derive(Debug)]
pub(super) struct Group {
    upstreams: Vec<Upstream>,
    servers: ArcSwap<Vec<Arc<Server>>>,
    /// Index of the upstream that answered last: a dead one costs its time-out once, and not every query.
    preferred: AtomicUsize,
}

impl Group {
    pub(super) fn new(upstreams: Vec<Upstream>) -> Self {
        Group {
            upstreams,
            servers: ArcSwap::default(),
            preferred: AtomicUsize::new(0),
        }
    }

    /// Looks the system's name servers up again; whoever stays keeps what is known of it. Whether any changed.
    pub(super) fn look_again(
        &self,
        resolv_conf: &Path,
        own: &[SocketAddr],
        metrics: &Metrics,
    ) -> bool {
        let before = self.servers.load_full();
        let addresses = resolve(&self.upstreams, resolv_conf, own);
        if addresses.iter().eq(before.iter().map(|s| &s.address)) {
            return false;
        }
        info!(upstreams = ?addresses, "dns forwards");
        let known = |address| before.iter().find(|server| server.address == address);
        let servers = addresses.into_iter().map(|address| {
            let known = known(address).cloned();
            known.unwrap_or_else(|| Arc::new(Server::new(address, metrics)))
        });
        self.servers.store(Arc::new(servers.collect()));
        true
    }

    pub(super) fn servers(&self) -> Arc<Vec<Arc<Server>>> {
        self.servers.load_full()
    }

    /// The down ones, which are looked after.
    pub(super) fn down(&self) -> Vec<Arc<Server>> {
        let servers = self.servers();
        servers.iter().filter(|s| s.is_down()).cloned().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.servers.load().is_empty()
    }

    /// The order to ask in: from the one that answered last, those that are down at the end.
    fn order(&self) -> Vec<Arc<Server>> {
        let servers = self.servers();
        let first = self.preferred.load(Ordering::Relaxed);
        let count = servers.len();
        let mut order: Vec<Arc<Server>> = (0..count)
            .map(|step| servers[(first + step) % count].clone())
            .filter(|server| !server.looping.load(Ordering::Relaxed))
            .collect();
        order.sort_by_key(|server| server.is_down());
        order
    }

    /// Asks one upstream after the other until one answers.
    pub(super) async fn ask(&self, key: &Key<'_>) -> Result<Stored, ForwardError> {
        let order = self.order();
        if order.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let deadline = Instant::now() + TOTAL;
        let mut steps = 0..order.len() * ROUNDS;
        let mut running = FuturesUnordered::new();
        let mut poor: Option<Stored> = None;
        loop {
            // Somebody who can't answer was heard; asking the silent ones again would only delay saying so.
            let again = |step: usize| step >= order.len() && poor.is_some();
            let time = TRY.min(deadline.saturating_duration_since(Instant::now()));
            match steps.next() {
                Some(step) if !again(step) && !time.is_zero() => {
                    let server = &order[step % order.len()];
                    running.push(async move { (server, server.ask(key, time).await) });
                }
                _ if running.is_empty() => return poor.ok_or(ForwardError::NoAnswer),
                _ => {}
            }
            let more = !steps.is_empty();
            tokio::select! {
                Some((server, result)) = running.next() => match result {
                    Ok(stored) if can_not_answer(stored.code()) => {
                        poor.get_or_insert(stored);
                    }
                    Ok(stored) => {
                        self.prefer(server);
                        return Ok(stored);
                    }
                    Err(_) => {}
                },
                () = sleep(STAGGER), if more => {}
                else => {}
            }
        }
    }

    fn prefer(&self, server: &Arc<Server>) {
        let servers = self.servers();
        if let Some(index) = servers.iter().position(|s| Arc::ptr_eq(s, server)) {
            self.preferred.store(index, Ordering::Relaxed);
        }
    }
}

fn can_not_answer(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
    )
}
