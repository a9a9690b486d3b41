//! Sockets: every listener is bound before any serves.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use model::snapshot::Snapshot;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::error::{DnsError, Transport};
use crate::forward::{self, Forwarder, Upstream};
use crate::handler::{Client, Handler, Verdict};
use crate::metrics::Metrics;
use crate::udp;

/// TCP connections of one listener at a time; one more is closed at once.
pub const MAX_CONNECTIONS: usize = 1_000;

/// How long a TCP client may take to send a query, to take a response, or to stay silent (RFC 7766, 6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(10);

/// After an error of the socket itself, such as a lack of descriptors, so that it can't make a busy loop.
const BACK_OFF: Duration = Duration::from_millis(50);

/// How often a free port is sought that both UDP and TCP can have.
const PORT_TRIES: usize = 16;

const BACKLOG: i32 = 1024;

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
    /// Where [`Upstream::System`] finds its name servers; read once, by [`Server::bind`].
    pub resolv_conf: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: Vec::new(),
            movable: Vec::new(),
            upstreams: vec![Upstream::System],
            snapshot: Arc::default(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// A DNS server whose sockets are bound.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    moved: Vec<(SocketAddr, u16)>,
    handler: Arc<Handler>,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    udp: std::net::UdpSocket,
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
            let listener = match bind_both(*address) {
                Err(DnsError::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse
                        && options.movable.contains(address) =>
                {
                    let listener = bind_both(SocketAddr::new(address.ip(), 0))?;
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
        let upstreams = forward::resolve(&options.upstreams, &options.resolv_conf, &own);
        info!(?upstreams, "dns forwards");
        let mut name_servers: Vec<IpAddr> = own.iter().map(SocketAddr::ip).collect();
        name_servers.retain(|address| !address.is_unspecified());
        name_servers.sort_unstable();
        name_servers.dedup();
        let handler = Handler::new(
            options.snapshot,
            name_servers,
            Forwarder::new(upstreams),
            Metrics::new(),
        );
        Ok(Server {
            listeners,
            moved,
            handler: Arc::new(handler),
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

    /// Serves until `shutdown` is cancelled; then the sockets are closed, and queries still with the upstreams dropped.
    pub async fn run(self, shutdown: CancellationToken) {
        // Whoever drops this future instead of cancelling ends what it started all the same.
        let shutdown = shutdown.child_token();
        let _guard = shutdown.clone().drop_guard();
        let mut tasks = JoinSet::new();
        for Listener { address, udp, tcp } in self.listeners {
            match udp::Socket::new(udp) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let (handler, shutdown) = (self.handler.clone(), shutdown.clone());
                    tasks.spawn(restarted(address, Transport::Udp, move || {
                        serve_udp(socket.clone(), handler.clone(), shutdown.clone())
                    }));
                }
                Err(error) => error!(%address, %error, "dns is not served over udp"),
            }
            match TcpListener::from_std(tcp) {
                Ok(listener) => {
                    let listener = Arc::new(listener);
                    let (handler, shutdown) = (self.handler.clone(), shutdown.clone());
                    tasks.spawn(restarted(address, Transport::Tcp, move || {
                        serve_tcp(listener.clone(), handler.clone(), shutdown.clone())
                    }));
                }
                Err(error) => error!(%address, %error, "dns is not served over tcp"),
            }
        }
        shutdown.cancelled().await;
        while tasks.join_next().await.is_some() {}
    }
}

fn bind_both(address: SocketAddr) -> Result<Listener, DnsError> {
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
        let udp = bind_udp(address).map_err(failed(Transport::Udp))?;
        let bound = udp.local_addr().map_err(failed(Transport::Udp))?;
        match bind_tcp(bound) {
            Ok(tcp) => {
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

fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
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

/// Runs a loop, and anew if it panics: a defect costs the packet that found it, and not the host its names.
async fn restarted<F>(address: SocketAddr, transport: Transport, serve: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Err(error) = tokio::spawn(serve()).await {
        if !error.is_panic() {
            return;
        }
        error!(%address, %transport, %error, "dns listener failed and is started again");
        sleep(BACK_OFF).await;
    }
}

async fn serve_udp(socket: Arc<udp::Socket>, handler: Arc<Handler>, shutdown: CancellationToken) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let received = tokio::select! {
            () = shutdown.cancelled() => return,
            received = socket.receive(&mut buffer) => received,
        };
        let datagram = match received {
            // Nobody can be answered at port 0.
            Ok(datagram) if datagram.from.port() == 0 => continue,
            Ok(datagram) => datagram,
            Err(error) => {
                debug!(%error, "dns datagram not received");
                sleep(BACK_OFF).await;
                continue;
            }
        };
        let client = Client {
            address: datagram.from,
            asked: datagram.to,
            transport: Transport::Udp,
        };
        match handler.decide(&buffer[..datagram.length], client) {
            Verdict::Silence => {}
            Verdict::Reply(bytes) => send(&socket, &bytes, &datagram).await,
            Verdict::Forward(pending) => {
                let (socket, handler) = (socket.clone(), handler.clone());
                let shutdown = shutdown.clone();
                tokio::spawn(async move {
                    let forward = handler.forward(pending);
                    if let Some(bytes) = shutdown.run_until_cancelled(forward).await {
                        send(&socket, &bytes, &datagram).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &udp::Socket, bytes: &[u8], to: &udp::Datagram) {
    if let Err(error) = socket.reply(bytes, to).await {
        debug!(client = %to.from, %error, "dns response not sent");
    }
}

async fn serve_tcp(listener: Arc<TcpListener>, handler: Arc<Handler>, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "dns connection not accepted");
                sleep(BACK_OFF).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            debug!(client = %peer, limit = MAX_CONNECTIONS, "dns connection closed: too many");
            continue;
        };
        let (handler, shutdown) = (handler.clone(), shutdown.clone());
        tokio::spawn(async move {
            let serve = connection(stream, peer, &handler);
            if let Some(Err(error)) = shutdown.run_until_cancelled(serve).await {
                debug!(client = %peer, %error, "dns connection ended");
            }
            drop(slot);
        });
    }
}

/// Answers one query after the other, until the client closes, is silent for too long, or sends what is no query.
async fn connection(mut stream: TcpStream, peer: SocketAddr, handler: &Handler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = Client {
        address: peer,
        asked: stream.local_addr()?.ip(),
        transport: Transport::Tcp,
    };
    let mut packet = Vec::new();
    while timeout(TCP_IDLE, read(&mut stream, &mut packet)).await?? {
        let response = match handler.decide(&packet, client) {
            Verdict::Silence => return Ok(()),
            Verdict::Reply(bytes) => bytes,
            Verdict::Forward(pending) => handler.forward(pending).await,
        };
        let length = u16::try_from(response.len()).unwrap_or(u16::MAX);
        let framed = [&length.to_be_bytes(), response.as_slice()].concat();
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// Reads one message; false when the client has closed. The buffer grows with what came, not with what was announced.
async fn read(stream: &mut TcpStream, packet: &mut Vec<u8>) -> io::Result<bool> {
    packet.clear();
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(false);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = u16::from_be_bytes(length);
    let got = stream.take(length.into()).read_to_end(packet).await?;
    if got < length.into() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(true)
}
