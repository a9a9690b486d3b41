//! A data worker: one thread with a runtime, listeners, connections and pools of its own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use model::snapshot::PortView;
use model::{Name, ServiceKey, Snapshot};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use crate::accept::{Destination, Listening};
use crate::connections::{Closing, Connections};
use crate::metrics::WorkerStats;
use crate::options::{Forwarding, limits};
use crate::splice::Pipes;
use crate::target::{Binding, Port};
use crate::tls;

/// What the control side asks of a worker. Workers never answer but at the end of a drain.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept from this socket.
    Open {
        address: SocketAddr,
        listener: std::net::TcpListener,
        leads_to: LeadsTo,
    },
    /// What is accepted at this address belongs to another port from now on.
    Retarget {
        address: SocketAddr,
        leads_to: LeadsTo,
    },
    /// Serve what waits in the accept queues of this address, then close it.
    Close { address: SocketAddr },
    /// These services changed; `None`: any may have.
    Changed(Option<Arc<[ServiceKey]>>),
    /// Close all listeners, let connections end until the time is over, then cut them off; say how many that were.
    Drain {
        within: Duration,
        done: oneshot::Sender<usize>,
    },
}

/// Where a listener's connections go.
#[derive(Clone, Debug)]
pub(crate) enum LeadsTo {
    Port(ServiceKey, Name),
    /// To the port at the virtual IP that the client dialled before nftables led it here.
    OriginalDestination,
}

impl LeadsTo {
    fn destination(self) -> Destination {
        match self {
            LeadsTo::Port(key, name) => Destination::Port(Binding::new(key, name)),
            LeadsTo::OriginalDestination => Destination::Original,
        }
    }
}

/// What a worker shares with others.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) forwarding: Arc<Forwarding>,
    pub(crate) tls: Arc<tls::Table>,
}

/// The state of a worker; lives on its thread only.
pub(crate) struct Worker {
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    ports: RefCell<HashMap<ServiceKey, Vec<Rc<Port>>>>,
    pub(crate) connections: Connections,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) tls: Arc<tls::Table>,
    /// Everything is read into it: it stays in the processor's cache, and idle connections hold no buffer.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    /// Heads on their way to clients are written here.
    pub(crate) out: RefCell<Vec<u8>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    pub(crate) pipes: Rc<Pipes>,
    pub(crate) forwarding: Arc<Forwarding>,
    random: Cell<u64>,
    listening: RefCell<HashMap<SocketAddr, Vec<Rc<Listening>>>>,
    draining: Cell<bool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

impl Worker {
    fn new(shared: Shared) -> Self {
        Worker {
            snapshot: RefCell::new(Cache::new(shared.snapshot)),
            ports: RefCell::default(),
            connections: Connections::default(),
            stats: shared.stats,
            scratch: RefCell::new(vec![0; limits::READ_BYTES].into()),
            out: RefCell::default(),
            buffers: RefCell::default(),
            pipes: Rc::default(),
            tls: shared.tls,
            forwarding: shared.forwarding,
            random: Cell::new(RandomState::new().hash_one(())),
            listening: RefCell::default(),
            draining: Cell::new(false),
        }
    }

    /// An empty buffer.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a buffer for the next who needs one, unless it is too large or there are enough.
    pub(crate) fn take_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffer.capacity() <= limits::BUFFER_BYTES && buffers.len() < limits::BUFFERS {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// A number that no two requests of this node share; not a secret. SplitMix64 (Steele, Lea, Flood, 2014), seeded
    /// by the operating system.
    pub(crate) fn random_id(&self) -> u128 {
        let next = || {
            let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            self.random.set(state);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            u128::from(z ^ (z >> 31))
        };
        next() << 64 | next()
    }

    /// The newest snapshot's number: a load and a comparison.
    pub(crate) fn epoch(&self) -> u64 {
        self.with_snapshot(|snapshot| snapshot.epoch)
    }

    /// Shows the newest snapshot.
    pub(crate) fn with_snapshot<T>(&self, show: impl FnOnce(&Snapshot) -> T) -> T {
        show(self.snapshot.borrow_mut().load())
    }

    /// A service's port; `None` when there is no such one now.
    pub(crate) fn port(&self, key: &ServiceKey, name: &Name) -> Option<Rc<Port>> {
        self.find_port(|snapshot| snapshot.service(key)?.port(name.as_str()))
    }

    /// The port behind a virtual IP and port.
    pub(crate) fn port_at(&self, vip: SocketAddr) -> Option<Rc<Port>> {
        self.find_port(|snapshot| snapshot.port_at(vip.ip(), vip.port()))
    }

    fn find_port(
        &self,
        find: impl FnOnce(&Snapshot) -> Option<&Arc<PortView>>,
    ) -> Option<Rc<Port>> {
        // View and epoch of the same snapshot: an older view under a newer epoch would never be refreshed.
        let (view, epoch) =
            self.with_snapshot(|snapshot| Some((Arc::clone(find(snapshot)?), snapshot.epoch)))?;
        let mut ports = self.ports.borrow_mut();
        let of_service = ports.entry(view.key.clone()).or_default();
        if let Some(port) = of_service.iter().find(|port| port.seq() == view.load.seq) {
            return Some(Rc::clone(port));
        }
        let port = Rc::new(Port::new(&view, epoch, Arc::clone(&self.tls)));
        self.stats.insert(port.seq(), Arc::clone(&port.stats));
        of_service.push(Rc::clone(&port));
        Some(port)
    }

    fn changed(&self, keys: Option<&[ServiceKey]>) {
        let all: Vec<ServiceKey>;
        let keys = match keys {
            Some(keys) => keys,
            None => {
                all = self.ports.borrow().keys().cloned().collect();
                &all
            }
        };
        let mut ports = self.ports.borrow_mut();
        for key in keys {
            let Some(of_service) = ports.get_mut(key) else {
                continue;
            };
            of_service.retain(|port| {
                port.prune(self);
                let kept = port.view(self).is_some();
                if !kept {
                    self.stats.remove(port.seq());
                }
                kept
            });
            if of_service.is_empty() {
                ports.remove(key);
            }
        }
    }

    fn sweep(&self) {
        self.connections.sweep();
        let now = std::time::Instant::now();
        for port in self.ports.borrow().values().flatten() {
            port.pool.sweep(now);
        }
    }

    fn open(
        self: &Rc<Self>,
        address: SocketAddr,
        listener: std::net::TcpListener,
        leads_to: LeadsTo,
    ) {
        if self.draining.get() {
            return;
        }
        match Listening::start(self, listener, leads_to.destination()) {
            Ok(listening) => {
                self.listening
                    .borrow_mut()
                    .entry(address)
                    .or_default()
                    .push(listening);
            }
            Err(error) => tracing::error!(%address, %error, "listener can't be watched"),
        }
    }

    fn command(self: &Rc<Self>, command: Command) {
        match command {
            Command::Open {
                address,
                listener,
                leads_to,
            } => self.open(address, listener, leads_to),
            Command::Retarget { address, leads_to } => {
                for listening in self.listening.borrow().get(&address).into_iter().flatten() {
                    listening.retarget(leads_to.clone().destination());
                }
            }
            Command::Close { address } => {
                for listening in self
                    .listening
                    .borrow_mut()
                    .remove(&address)
                    .into_iter()
                    .flatten()
                {
                    listening.close();
                }
            }
            Command::Changed(keys) => self.changed(keys.as_deref()),
            Command::Drain { within, done } => {
                let worker = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    // Whoever asked may have stopped waiting for the answer.
                    let _ = done.send(worker.drain(within).await);
                });
            }
        }
    }

    async fn drain(self: Rc<Self>, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        self.draining.set(true);
        let listening: Vec<_> = self.listening.borrow_mut().drain().collect();
        for listening in listening.iter().flat_map(|(_, all)| all) {
            listening.close();
            listening.closed().await;
        }
        self.connections.close(Closing::AfterNext);
        let grace = limits::DRAIN_GRACE.min(within / 4);
        if tokio::time::timeout(grace, self.connections.gone())
            .await
            .is_ok()
        {
            return 0;
        }
        self.connections.close(Closing::Now);
        if tokio::time::timeout_at(deadline, self.connections.gone())
            .await
            .is_ok()
        {
            return 0;
        }
        let forced = self.connections.abort();
        self.connections.gone().await;
        forced
    }

    async fn run(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                _ = second.tick() => self.sweep(),
            }
        }
    }
}

/// A worker's thread, as the control side sees it. When it is dropped, the worker stops at once.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts the thread with its runtime.
    pub(crate) fn start(index: usize, shared: Shared) -> io::Result<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("heddle-data-{index}"))
            .spawn(move || {
                let built: io::Result<LocalRuntime> = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                match built {
                    Ok(runtime) => {
                        // Nobody waits only if starting was given up.
                        let _ = ready.send(Ok(()));
                        let worker = Rc::new(Worker::new(shared));
                        runtime.block_on(worker.run(received));
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended at once")))?;
        Ok(WorkerHandle {
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    pub(crate) fn send(&self, command: Command) {
        let sent = self
            .commands
            .as_ref()
            .map(|commands| commands.send(command));
        if !matches!(sent, Some(Ok(()))) {
            tracing::error!("a data worker is gone");
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a data worker panicked");
        }
    }
}
