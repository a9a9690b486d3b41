//! The proxy as the binary sees it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::{ServiceKey, Snapshot};
use tokio::sync::oneshot;

use crate::control::{ListenerStatus, Listeners};
use crate::error::ProxyError;
use crate::metrics::{Metrics, WorkerStats};
use crate::options::Options;
use crate::tls::{self, TlsStatus};
use crate::worker::{Command, Shared, WorkerHandle};

/// How often failed listeners are looked at.
const TEND: Duration = Duration::from_millis(250);

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline and were cut off.
    pub forced: usize,
}

/// The running data plane. Dropped, it stops at once; [`Proxy::drain`] first stops it gracefully.
pub struct Proxy {
    listeners: Arc<Mutex<Listeners>>,
    keeper: Option<Keeper>,
    certificates: tls::Keeper,
    tls: Arc<tls::Table>,
    metrics: Metrics,
    drain_timeout: Duration,
}

impl Proxy {
    /// Starts the workers and listens for all services of the present snapshot.
    ///
    /// # Errors
    /// What keeps the proxy as a whole from running. A listener that can't be opened does not: see
    /// [`Proxy::listeners`].
    pub fn start(options: Options) -> Result<Self, ProxyError> {
        if options.workers == 0 {
            return Err(ProxyError::NoWorkers);
        }
        let stats: Vec<Arc<WorkerStats>> = (0..options.workers).map(|_| Arc::default()).collect();
        let forwarding = Arc::new(options.forwarding);
        let tls = Arc::<tls::Table>::default();
        let certificates = tls::Keeper::start(Arc::clone(&tls))?;
        let workers = stats
            .iter()
            .enumerate()
            .map(|(worker, stats)| {
                let shared = Shared {
                    snapshot: Arc::clone(&options.snapshot),
                    stats: Arc::clone(stats),
                    forwarding: Arc::clone(&forwarding),
                    tls: Arc::clone(&tls),
                };
                WorkerHandle::start(worker, shared)
                    .map_err(|source| ProxyError::Worker { worker, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        // One snapshot for both: what the redirect begins with, the reconciliation may take away.
        let snapshot = options.snapshot.load_full();
        let repairs = Arc::default();
        let listeners = Listeners::new(
            workers,
            options.vips,
            options.node_port_addresses,
            options.inherited,
            &snapshot,
            Arc::clone(&repairs),
        )?;
        let listeners = Arc::new(Mutex::new(listeners));
        let keeper = Keeper::start(Arc::clone(&listeners))?;
        let proxy = Proxy {
            listeners,
            keeper: Some(keeper),
            certificates,
            metrics: Metrics::new(stats, repairs, Arc::clone(&tls)),
            tls,
            drain_timeout: options.drain_timeout,
        };
        proxy.reconcile(&snapshot, None);
        Ok(proxy)
    }

    /// Follows a snapshot that was just stored: listeners come and go with services, and idle connections to endpoints
    /// that take no more work are closed. Listeners of other services are not touched.
    ///
    /// `changed` names the services whose views may differ from the last call's; the cost is theirs alone. `None`
    /// compares all, at about 0.1 µs for each that did not change. Opening sockets takes system calls: not for a
    /// thread that must not block for some microseconds per changed listener.
    pub fn reconcile(&self, snapshot: &Snapshot, changed: Option<&[ServiceKey]>) {
        self.certificates.reconcile(snapshot, changed);
        let mut listeners = lock(&self.listeners);
        listeners.reconcile(snapshot, changed);
        let changed: Option<Arc<[ServiceKey]>> = changed.map(Arc::from);
        for worker in &listeners.workers {
            worker.send(Command::Changed(changed.clone()));
        }
    }

    /// Addresses that the redirect leaves to sockets of this process; none without a redirect.
    pub fn exceptions(&self) -> Vec<SocketAddr> {
        lock(&self.listeners).exceptions()
    }

    /// Leads addresses that the redirect excepts to another port of theirs, over UDP and TCP. Without a redirect
    /// nothing is led anywhere.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn move_exceptions(&self, moved: &[(SocketAddr, u16)]) -> Result<(), ProxyError> {
        lock(&self.listeners).move_exceptions(moved)
    }

    /// Every listener that the services ask for, with why it is not there.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        lock(&self.listeners).status()
    }

    /// Files of certificates, keys and authorities that can't be used as they are now. They are looked at once a second.
    pub fn tls(&self) -> Vec<TlsStatus> {
        self.tls.status()
    }

    /// What the workers count; register it with a Prometheus registry.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Stops gracefully: connections that wait to be accepted are served, then nobody new is. HTTP/2 clients get
    /// GOAWAY, HTTP/1.1 clients `Connection: close` with their next response or, after a second, the end of an idle
    /// connection. What is still open after the drain time-out is cut off.
    pub async fn drain(&self) -> Drained {
        let answers: Vec<_> = {
            let mut listeners = lock(&self.listeners);
            listeners.close();
            let ask = |worker: &WorkerHandle| {
                let (done, answer) = oneshot::channel();
                worker.send(Command::Drain {
                    within: self.drain_timeout,
                    done,
                });
                answer
            };
            listeners.workers.iter().map(ask).collect()
        };
        let mut forced = 0;
        for answer in answers {
            // A worker that is gone has no connections either.
            forced += answer.await.unwrap_or(0);
        }
        Drained { forced }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The keeper holds the listeners too: they end with the last of both.
        self.keeper = None;
    }
}

fn lock(listeners: &Mutex<Listeners>) -> MutexGuard<'_, Listeners> {
    // A panic in the middle leaves at worst a listener that is opened again.
    listeners.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that tries failed listeners again. Ends when dropped.
struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(listeners: Arc<Mutex<Listeners>>) -> Result<Self, ProxyError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("heddle-listen".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    std::thread::park_timeout(TEND);
                    lock(&listeners).tend(Instant::now());
                }
            })
            .map_err(|source| ProxyError::Keeper { source })?;
        Ok(Keeper {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that looks after listeners panicked");
            }
        }
    }
}
