//! Sockets: every listener is bound before any serves.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::domain::DomainName;
use model::net::IpNet;
use model::snapshot::Snapshot;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::access::Access;
use crate::core::Core;
use crate::error::{DnsError, Transport};
use crate::follow::Follower;
use crate::forward::{ForwardOptions, Forwarder, Upstream};
use crate::handler::{Handler, Settings};
use crate::metrics::Metrics;
use crate::table::Updater;
use crate::tcp::{self, Answering, Desk, restarted};
use crate::udp;
use crate::workers::{Forwarded, Workers};

pub use crate::tcp::{MAX_CONNECTIONS, MAX_PIPELINED};

/// Bytes of upstreams' responses that are kept unless said otherwise.
pub const DEFAULT_CACHE: usize = 16 << 20;

/// How often this host's networks are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How often a free port is sought that both UDP and TCP can have.
const PORT_TRIES: usize = 16;

const BACKLOG: i32 = 1024;

/// Bytes of a UDP socket's receive buffer, some 2,000 queries.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Served by UDP and TCP each. Port 0 takes a free port. `[::]` is IPv6 alone; `0.0.0.0` may stand beside it.
    pub listen: Vec<SocketAddr>,
    /// Of `listen`, those that are served at a free port of the same address when their own is taken, as by a dnsmasq on
    /// all addresses. Who starts the server then leads queries there, as [`Server::moved`] says.
    pub movable: Vec<SocketAddr>,
    /// Asked for every other zone, in this order; none: those get SERVFAIL.
    pub upstreams: Vec<Upstream>,
    /// What is answered from. Before the first sync it is to have the mesh's zone already: names in it get SERVFAIL
    /// then, while names outside are forwarded.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Upstreams for the names at and below a name, in place of `upstreams`; the longest that matches counts.
    pub zones: Vec<(DomainName, Vec<Upstream>)>,
    /// Bytes of upstreams' responses that are kept at most.
    pub cache: usize,
    /// Where [`Upstream::System`] finds its name servers; looked at again when it changes.
    pub resolv_conf: PathBuf,
    /// Threads that answer datagrams, for each address; at least 1.
    pub workers: usize,
    /// Whose questions about other zones are forwarded. None: this host's, and those from the networks that it has an
    /// interface in and that are private or belong to a bridge.
    pub clients: Option<Vec<IpNet>>,
    /// Of several addresses of a name only one is given, each in its turn: resolvers re-sort them otherwise.
    pub single_answer: bool,
    /// Who says so to clients that ask who answers (RFC 5001); empty: nobody.
    pub nsid: String,
    /// What `version.bind` says; none: such questions are refused.
    pub version: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: Vec::new(),
            movable: Vec::new(),
            upstreams: vec![Upstream::System],
            zones: Vec::new(),
            cache: DEFAULT_CACHE,
            snapshot: Arc::default(),
            resolv_conf: "/etc/resolv.conf".into(),
            workers: 1,
            clients: None,
            single_answer: false,
            nsid: String::new(),
            version: None,
        }
    }
}

/// A DNS server whose sockets are bound.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    moved: Vec<(SocketAddr, u16)>,
    handler: Arc<Handler>,
    follower: Follower,
    updater: Updater,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    /// One for each worker.
    udp: Vec<std::net::UdpSocket>,
    tcp: std::net::TcpListener,
}

impl Server {
    /// Binds every listener, and finds out whom to forward to.
    ///
    /// Queries that arrive from now on wait in the sockets until [`Server::run`].
    ///
    /// # Errors
    /// [`DnsError::Bind`] for the first address that can't be bound; nothing stays bound then.
    pub fn bind(options: Options) -> Result<Server, DnsError> {
        let mut listeners = Vec::with_capacity(options.listen.len());
        let mut moved = Vec::new();
        for address in &options.listen {
            let listener = match bind_both(*address, options.workers) {
                Err(DnsError::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse
                        && options.movable.contains(address) =>
                {
                    let listener = bind_both(SocketAddr::new(address.ip(), 0), options.workers)?;
                    info!(%address, at = %listener.address, "dns port is taken by another program");
                    moved.push((*address, listener.address.port()));
                    listener
                }
                other => other?,
            };
            listeners.push(listener);
        }
        let mut own: Vec<SocketAddr> = listeners.iter().map(|l| l.address).collect();
        info!(addresses = ?own, "dns server bound");
        own.extend(moved.iter().map(|(address, _)| *address));
        let forwarding = ForwardOptions {
            upstreams: options.upstreams,
            zones: options.zones,
            resolv_conf: options.resolv_conf,
            own: own.clone(),
            cache: options.cache,
        };
        let mut name_servers: Vec<IpAddr> = own.iter().map(SocketAddr::ip).collect();
        name_servers.retain(|address| !address.is_unspecified());
        name_servers.sort_unstable();
        name_servers.dedup();
        let (follower, updater) = Follower::new(
            options.snapshot.clone(),
            name_servers.clone(),
            rand::random(),
        );
        let settings = Settings {
            name_servers,
            nsid: options.nsid.into_bytes(),
            single_answer: options.single_answer,
            access: Access::new(options.clients),
            version: options.version,
        };
        let metrics = Metrics::new();
        let forwarder = Arc::new(Forwarder::new(forwarding, metrics.clone()));
        let handler = Handler::new(options.snapshot, settings, forwarder, metrics);
        Ok(Server {
            listeners,
            moved,
            handler: Arc::new(handler),
            follower,
            updater,
        })
    }

    /// Where it listens, in the order given; port 0 has become the port taken.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|l| l.address).collect()
    }

    /// Addresses of [`Options::movable`] whose port was taken, and the port of the same address that is listened on
    /// instead.
    pub fn moved(&self) -> &[(SocketAddr, u16)] {
        &self.moved
    }

    /// What it counts, to be registered once.
    pub fn metrics(&self) -> Metrics {
        self.handler.metrics().clone()
    }

    /// Whom to tell of each snapshot. Telling nobody works too, at the price that [`Follower`] names.
    pub fn follower(&self) -> Follower {
        self.follower.clone()
    }

    /// Serves until `shutdown` is cancelled; then the sockets are closed, and queries still with the upstreams dropped.
    ///
    /// Datagrams are answered by threads that this starts; connections and what is forwarded run where this is awaited.
    pub async fn run(self, shutdown: CancellationToken) {
        // Whoever drops this future instead of cancelling ends what it started all the same.
        let shutdown = shutdown.child_token();
        let _guard = shutdown.clone().drop_guard();
        let _table = match self.follower.start(self.updater) {
            Ok(guard) => Some(guard),
            Err(error) => {
                error!(%error, "dns answers are not prepared: every query is looked up");
                None
            }
        };
        let (handler, follower) = (self.handler, self.follower);
        let core = move || Core::new(handler.clone(), follower.clone());
        let (forward, forwarded) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let answering = Answering {
            handler: core().handler().clone(),
            desk: Arc::new(Mutex::new(Desk::new(core()))),
            shutdown: shutdown.clone(),
        };
        let handler = answering.handler.clone();
        let mut sockets = Vec::new();
        for Listener { address, udp, tcp } in self.listeners {
            for socket in udp {
                match udp::Socket::new(socket) {
                    Ok(socket) => sockets.push(Arc::new(socket)),
                    Err(error) => error!(%address, %error, "dns is not served over udp"),
                }
            }
            match TcpListener::from_std(tcp) {
                Ok(listener) => {
                    let (listener, answering) = (Arc::new(listener), answering.clone());
                    tasks.spawn(restarted(address, Transport::Tcp, move || {
                        tcp::serve(listener.clone(), tcp::Plain, answering.clone())
                    }));
                }
                Err(error) => error!(%address, %error, "dns is not served over tcp"),
            }
        }
        let workers = Workers::start(sockets, core, &forward);
        if let Err(error) = &workers {
            error!(%error, "dns is not served over udp");
        }
        tasks.spawn(handler.forwarder().clone().keep(shutdown.clone()));
        tasks.spawn(forward_all(forwarded, handler.clone(), shutdown.clone()));
        let look = async {
            loop {
                tokio::time::sleep(LOOK).await;
                handler.settings().access.look_again();
            }
        };
        shutdown.run_until_cancelled(look).await;
        drop(workers);
        while tasks.join_next().await.is_some() {}
    }
}

/// Asks the upstreams for what datagrams asked, and replies.
async fn forward_all(
    mut forwarded: mpsc::UnboundedReceiver<Forwarded>,
    handler: Arc<Handler>,
    shutdown: CancellationToken,
) {
    while let Some(Some(query)) = shutdown.run_until_cancelled(forwarded.recv()).await {
        let (handler, shutdown) = (handler.clone(), shutdown.clone());
        tokio::spawn(async move {
            let forward = handler.forward(query.pending);
            let Some(bytes) = shutdown.run_until_cancelled(forward).await else {
                return;
            };
            if let Err(error) = query.socket.reply(&bytes, &query.datagram) {
                debug!(client = %query.datagram.from, %error, "dns response not sent");
            }
        });
    }
}

fn bind_both(address: SocketAddr, workers: usize) -> Result<Listener, DnsError> {
    let failed = |transport| {
        move |source| DnsError::Bind {
            address,
            transport,
            source,
        }
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = bind_udp(address, false).map_err(failed(Transport::Udp))?;
        let bound = udp.local_addr().map_err(failed(Transport::Udp))?;
        match bind_tcp(bound) {
            Ok(tcp) => {
                let udp = bind_more(udp, bound, workers).map_err(failed(Transport::Udp))?;
                return Ok(Listener {
                    address: bound,
                    udp,
                    tcp,
                });
            }
            // The free port that UDP got may be taken for TCP.
            Err(error)
                if address.port() == 0
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tries < PORT_TRIES => {}
            Err(error) => return Err(failed(Transport::Tcp)(error)),
        }
    }
}

/// The first socket was bound to have the address alone: another heddle, which would share it without a word, is found
/// out by that. From then on it shares with the others.
fn bind_more(
    first: std::net::UdpSocket,
    bound: SocketAddr,
    workers: usize,
) -> io::Result<Vec<std::net::UdpSocket>> {
    SockRef::from(&first).set_reuse_port(true)?;
    let mut all = vec![first];
    while all.len() < workers {
        all.push(bind_udp(bound, true)?);
    }
    Ok(all)
}

fn bind_udp(address: SocketAddr, shared: bool) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(shared)?;
    // What arrives while all cores are busy waits rather than being lost; the system may grant less.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a predecessor that wait for their end must not keep a restart from binding.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
