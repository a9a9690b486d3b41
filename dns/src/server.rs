//! Sockets: every listener is bound before any serves.

mod bind;
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
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::access::Access;
use crate::core::Core;
use crate::error::{DnsError, Transport};
use crate::explain::Explainer;
use crate::follow::Follower;
use crate::forward::{ForwardOptions, Forwarder, Upstream};
use crate::handler::{Handler, Settings};
use crate::metrics::Metrics;
use crate::query_log::QueryLog;
use crate::serial::Serials;
use crate::table::Updater;
use crate::tcp::{self, Answering, Desk, restarted};
use crate::tls::{self, Tls};
use crate::udp;
use crate::workers::{Forwarded, Workers};

use bind::{Listener, bind_both, bind_tcp, failed};

pub use crate::tcp::{MAX_CONNECTIONS, MAX_PIPELINED};

/// Bytes of upstreams' responses that are kept unless said otherwise.
pub const DEFAULT_CACHE: usize = 16 << 20;

/// How often this host's networks are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Served by UDP and TCP each. Port 0 takes a free port. `[::]` is IPv6 alone; `0.0.0.0` may stand beside it.
    pub listen: Vec<SocketAddr>,
    /// Of `listen`, those that are served at a free port of the same address when their own is taken, as by a dnsmasq on
    /// all addresses. Who starts the server then leads queries there, as [`Server::moved`] says.
    pub movable: Vec<SocketAddr>,
    /// Served by TLS each, where there is [`Options::tls`].
    pub tls_listen: Vec<SocketAddr>,
    /// What handshakes are done with.
    pub tls: Option<Tls>,
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
    /// Who gets whole zones (AXFR), by connections only.
    pub transfer_to: Vec<IpNet>,
    /// Logs one query in so many; 0: none.
    pub query_log: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: Vec::new(),
            movable: Vec::new(),
            tls_listen: Vec::new(),
            tls: None,
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
            transfer_to: Vec::new(),
            query_log: 0,
        }
    }
}

/// A DNS server whose sockets are bound.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    moved: Vec<(SocketAddr, u16)>,
    tls_listeners: Vec<(SocketAddr, std::net::TcpListener)>,
    tls: Option<Tls>,
    handler: Arc<Handler>,
    follower: Follower,
    updater: Updater,
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
        let mut tls_listeners = Vec::with_capacity(options.tls_listen.len());
        for address in options.tls.iter().flat_map(|_| &options.tls_listen) {
            let bound = bind_tcp(*address).and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
            tls_listeners.push(bound.map_err(failed(*address, Transport::Tls))?);
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
        let serials = Arc::<Serials>::default();
        let (follower, updater) = Follower::new(
            options.snapshot.clone(),
            name_servers.clone(),
            serials.clone(),
            rand::random(),
        );
        let settings = Settings {
            name_servers,
            nsid: options.nsid.into_bytes(),
            single_answer: options.single_answer,
            access: Access::new(options.clients),
            version: options.version,
            transfer_to: options.transfer_to,
            serials,
            query_log: QueryLog::new(options.query_log),
        };
        let metrics = Metrics::new();
        let forwarder = Arc::new(Forwarder::new(forwarding, metrics.clone()));
        let handler = Handler::new(options.snapshot, settings, forwarder, metrics);
        Ok(Server {
            listeners,
            moved,
            tls_listeners,
            tls: options.tls,
            handler: Arc::new(handler),
            follower,
            updater,
        })
    }

    /// Where it listens, in the order given; port 0 has become the port taken.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|l| l.address).collect()
    }

    /// Where it listens for TLS, as [`Server::addresses`].
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        let all = self.tls_listeners.iter();
        all.map(|(address, _)| *address).collect()
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

    /// Says what somebody would be answered, and why.
    pub fn explainer(&self) -> Explainer {
        Explainer::new(self.handler.clone())
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
        for (address, listener) in self.tls_listeners {
            let Some(tls) = self.tls.clone() else {
                continue;
            };
            let open = tls::Handshake {
                tls,
                metrics: handler.metrics().clone(),
            };
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    let (listener, answering) = (Arc::new(listener), answering.clone());
                    tasks.spawn(restarted(address, Transport::Tls, move || {
                        tcp::serve(listener.clone(), open.clone(), answering.clone())
                    }));
                }
                Err(error) => error!(%address, %error, "dns is not served over tls"),
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
