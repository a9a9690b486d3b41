//! `heddle up`, wired from top to bottom.
//!
//! The registry follower feeds the snapshot writer; proxy and DNS read its snapshots; the agent publishes what runs here
//! back into the registry. The admin doors open first, so that a node which waits can say what for.

mod dns_tls;
mod join;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::membership::MembershipOptions;
use model::snapshot::Identity;
use model::{Mesh, Node, Timestamp};
use registry::Registry;
use registry::follow::{FollowOptions, Follower, chain};
use registry::store::{EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Context, Doors, Rooms};
use crate::cli::Failure;
use crate::config::{Backend, Config};
use crate::events;
use crate::resources_folder::Folder;
use crate::telemetry;
use crate::writer::{Published, Saving, Writer};

/// How long a planned restart's slices are believed.
const RESTART_GRACE: Duration = Duration::from_secs(60);
/// Name of our nftables table.
pub const TABLE: &str = "heddle";

/// What others would dial in its stead, 127.0.0.1 say, would be their own.
const NO_ADDRESS: &str = "node.address: this host has no default route to take it from, and other nodes share its registry \
                          (start heddle when the network is up, or set it to where they reach this host)";

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::Failed(chain(error))
}

/// Runs a node until it is told to end.
pub async fn up(path: Option<PathBuf>) -> Result<(), Failure> {
    let config = Config::load(path.as_deref()).map_err(|error| Failure::Input(chain(&error)))?;
    if config.addresses.is_empty() {
        return Err(Failure::Failed(NO_ADDRESS.to_owned()));
    }
    telemetry::start();
    raise_descriptor_limit();
    // Early: announced descriptors are ours before any other is opened.
    let inherited = proxy::sockets::Inherited::from_env();

    let state = state::StateDir::open(&config.state_dir).map_err(|e| failed(&e))?;
    let counted = registry::metrics::Metrics::new();
    let store = open_store(&config, &state, &counted).await?;
    let backend = store.name();
    let registry = Registry::new(store, &config.prefix).measured(counted);

    let seed = seed();
    let identity = Identity {
        node: config.node.clone(),
        seed,
    };
    let (mut writer, feed, listeners) = Writer::new(identity, config.mesh());
    writer.set_membership(MembershipOptions {
        window: config.lease_ttl,
        restart_grace: RESTART_GRACE,
        hold: config.expiry_hold,
    });
    let mut follower = Follower::new(registry.clone(), FollowOptions::default());
    state.restore(&registry, &mut follower, &mut writer);
    let (log, kept) = events::file::Log::open(state.path());
    let (history, unwritten) = events::History::new(kept).map_err(|e| failed(&e))?;
    let teller = events::task::Teller::new(config.node.clone(), &feed, history.clone());

    let doors = Doors::open(&config.admin_socket, config.admin_listen)
        .await
        .map_err(|e| failed(&e))?;
    let admin_address = doors.address().unwrap_or(config.admin_listen);
    tracing::info!(
        address = %admin_address, socket = %config.admin_socket.display(), "admin listens"
    );
    let metrics = prometheus::Registry::new();
    let core = admin::metrics::Core::new(feed.clone()).map_err(|e| failed(&e))?;
    metrics.register(Box::new(core)).map_err(|e| failed(&e))?;
    for collector in registry.metrics().collectors() {
        metrics.register(collector).map_err(|e| failed(&e))?;
    }
    for collector in history.collectors() {
        metrics.register(collector).map_err(|e| failed(&e))?;
    }
    let draining = CancellationToken::new();
    let stop = CancellationToken::new();
    let context = Arc::new(Context {
        node: config.node.clone(),
        admin_address,
        feed: feed.clone(),
        registry: registry.clone(),
        wish: config.mesh_wish(),
        rooms: std::sync::RwLock::new(Rooms::default()),
        metrics: metrics.clone(),
        dashboard: crate::dashboard::Live::default(),
        events: history.clone(),
        draining: draining.clone(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(doors.serve(context.clone(), stop.clone()));
    tasks.spawn(crate::dashboard::keep(context.clone(), stop.clone()));
    tasks.spawn(events::file::keep(log, unwritten, move |lost| {
        history.dropped(lost)
    }));
    let (updates, updates_in) = mpsc::channel(64);
    let (findings, findings_in) = mpsc::channel(64);
    let (own, own_in) = mpsc::channel(64);
    let (events, events_in) = mpsc::channel::<model::Event>(1024);
    tasks.spawn(teller.run(events_in, stop.clone()));
    let saving = Saving {
        path: state.snapshot_path(),
        keys: registry.keys().clone(),
        backend,
    };
    tasks.spawn(follower.run(updates, stop.clone()));
    let writing = tokio::spawn(writer.run(updates_in, findings_in, own_in, saving, stop.clone()));
    tracing::info!(
        node = %config.node, version = env!("CARGO_PKG_VERSION"), registry = backend, "heddle starts"
    );
    tokio::spawn(on_signal(draining.clone()));
    if let Some(notify) = crate::sd_notify::Notify::from_env() {
        tasks.spawn(notify.run(context.clone(), stop.clone()));
    }

    let joining = join::Joining::new(&config, registry.clone(), context.clone());
    let Some(mesh) = joining.mesh(&draining).await.map_err(|e| failed(&e))? else {
        stop.cancel();
        let _ = writing.await;
        return Ok(());
    };

    let dns_listen = dns_addresses(&config, &mesh);
    let mut dns_all = dns_listen.clone();
    dns_all.extend(config.dns.tls.iter().flat_map(|tls| &tls.listen));
    let proxy = start_proxy(&config, &mesh, &dns_all, inherited, &context)?;
    metrics
        .register(Box::new(proxy.metrics()))
        .map_err(|e| failed(&e))?;
    let for_listeners = proxy.clone();
    let told = listeners.send(Box::new(move |snapshot, changed| {
        for_listeners.reconcile(snapshot, changed);
    }));
    drop(told);
    context.rooms_mut().proxy = Some(proxy.clone());
    start_dns(
        &config, &proxy, dns_listen, &context, &listeners, &mut tasks, &stop,
    )?;

    let agent = Arc::new(agent::start(
        agent::Options {
            zone: config.zone.clone(),
            docker: config.docker.as_deref().map(agent::DockerOptions::new),
            own_slices: Some(own),
            collect: agent::CollectOptions::new(config.collect_after),
            seed,
            ..agent::Options::new(config.node.clone(), config.addresses.clone())
        },
        registry.clone(),
        agent::Inputs {
            catalog: feed.catalog.clone(),
            changes: feed.changes.subscribe(),
            snapshot: feed.snapshot.clone(),
        },
        agent::Outputs { findings, events },
        stop.clone(),
    ));
    tasks.spawn(events::docker::tell(
        config.node.clone(),
        agent.docker(),
        context.events.clone(),
        stop.clone(),
    ));
    for collector in agent.metrics() {
        metrics.register(collector).map_err(|e| failed(&e))?;
    }
    context.rooms_mut().agent = Some(agent.clone());
    let refused = joining.keep(
        node_record(&config),
        RESTART_GRACE,
        stop.clone(),
        &mut tasks,
    );
    if let Some(path) = &config.resources {
        tasks.spawn(Folder::new(path.clone(), context.clone()).run(stop.clone()));
    }

    let outcome = tokio::select! {
        () = draining.cancelled() => Ok(()),
        Ok(error) = refused => Err(failed(&error)),
    };
    draining.cancel();
    tracing::info!(timeout = ?config.drain_timeout, "draining");
    let again = CancellationToken::new();
    tokio::spawn(on_signal(again.clone()));
    tokio::select! {
        _ = proxy.drain() => {}
        () = again.cancelled() => tracing::warn!("told to end a second time: cutting off what is in flight"),
    }
    stop.cancel();
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(8), ended)
        .await
        .is_err()
    {
        tracing::warn!("some tasks did not end in time");
    }
    let _ = writing.await;
    tracing::info!("heddle ends");
    outcome
}

async fn open_store(
    config: &Config,
    state: &state::StateDir,
    metrics: &registry::metrics::Metrics,
) -> Result<Arc<dyn Store>, Failure> {
    Ok(match &config.backend {
        Backend::Embedded => {
            let store = EmbeddedStore::open(state.registry_path(), EmbeddedOptions::default());
            Arc::new(store.map_err(|e| failed(&e))?)
        }
        Backend::Etcd(etcd) => {
            let options = EtcdOptions {
                metrics: metrics.clone(),
                ..etcd.options()
            };
            let store = EtcdStore::connect(options).await;
            Arc::new(store.map_err(|e| failed(&e))?)
        }
    })
}

fn start_proxy(
    config: &Config,
    mesh: &Mesh,
    dns_listen: &[SocketAddr],
    inherited: proxy::sockets::Inherited,
    context: &Context,
) -> Result<Arc<proxy::Proxy>, Failure> {
    let vips = vip_mode(mesh, dns_listen);
    if vips == proxy::VipMode::None {
        let why =
            "no virtual IPs: they need root (CAP_NET_ADMIN), or a mesh.vip_range in 127.0.0.0/8";
        tracing::warn!("{why}");
        context.rooms_mut().notes.insert("vips", why.to_owned());
    }
    let options = proxy::Options {
        workers: config.workers,
        drain_timeout: config.drain_timeout,
        forwarding: config.forwarding.clone(),
        vips,
        inherited,
        ..proxy::Options::new(context.feed.snapshot.clone())
    };
    Ok(Arc::new(
        proxy::Proxy::start(options).map_err(|e| failed(&e))?,
    ))
}

fn vip_mode(mesh: &Mesh, dns_listen: &[SocketAddr]) -> proxy::VipMode {
    if mesh.vip_ranges.iter().all(|r| r.addr().is_loopback()) {
        return proxy::VipMode::Direct;
    }
    if !is_root() {
        return proxy::VipMode::None;
    }
    let in_range = |a: &SocketAddr| mesh.vip_ranges.iter().any(|r| r.contains(a.ip()));
    proxy::VipMode::Redirected(proxy::redirect::RedirectConfig {
        table: TABLE.to_owned(),
        ranges: mesh
            .vip_ranges
            .iter()
            .map(|r| (r.addr(), r.prefix()))
            .collect(),
        port: 0,
        exceptions: dns_listen.iter().filter(|a| in_range(a)).copied().collect(),
    })
}

/// Where DNS listens: as configured, else the range's tenth address as root, else a port that needs no root.
pub fn dns_addresses(config: &Config, mesh: &Mesh) -> Vec<SocketAddr> {
    if let Some(addresses) = &config.dns_listen {
        return addresses.clone();
    }
    let tenth = mesh.vip_ranges.first().and_then(|range| range.nth(10));
    match tenth {
        Some(ip) if is_root() => vec![SocketAddr::new(ip, 53)],
        _ => vec![SocketAddr::from(([127, 0, 0, 1], 5300))],
    }
}

fn start_dns(
    config: &Config,
    proxy: &proxy::Proxy,
    listen: Vec<SocketAddr>,
    context: &Arc<Context>,
    listeners: &mpsc::UnboundedSender<Published>,
    tasks: &mut tokio::task::JoinSet<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let given = config.dns.clone();
    let tls = match &given.tls {
        Some(tls) => Some(dns_tls::open(tls, context, tasks, stop)?),
        None => None,
    };
    let options = dns::Options {
        workers: config.workers,
        zones: given.zones,
        cache: given.cache,
        clients: given.clients,
        single_answer: given.single_answer,
        nsid: given.nsid.unwrap_or_else(|| config.node.to_string()),
        version: given.version,
        tls_listen: given.tls.map(|tls| tls.listen).unwrap_or_default(),
        tls,
        transfer_to: given.transfer_to,
        query_log: given.query_log,
        listen,
        movable: proxy.exceptions(),
        upstreams: config.dns_upstreams.clone(),
        snapshot: context.feed.snapshot.clone(),
        ..dns::Options::default()
    };
    match dns::Server::bind(options) {
        Ok(server) => {
            if !server.moved().is_empty() {
                proxy
                    .move_exceptions(server.moved())
                    .map_err(|e| failed(&e))?;
            }
            server
                .metrics()
                .register(&context.metrics)
                .map_err(|e| failed(&e))?;
            tracing::info!(addresses = ?server.addresses(), "dns listens");
            if !server.tls_addresses().is_empty() {
                tracing::info!(addresses = ?server.tls_addresses(), "dns over tls listens");
            }
            context.rooms_mut().dns = Some(server.explainer());
            let follower = server.follower();
            let told = listeners.send(Box::new(move |snapshot, changed| {
                follower.published(snapshot, changed);
            }));
            drop(told);
            let ended = dns_thread(server, stop.clone()).map_err(|e| failed(&e))?;
            tasks.spawn(async move {
                // The thread says nothing: it drops its end when it ends.
                let _ = ended.await;
            });
            Ok(())
        }
        // What was asked for by name must work; a default that doesn't fit this host must not keep the node down.
        Err(error) if config.dns_listen.is_some() || config.dns.tls.is_some() => {
            Err(failed(&error))
        }
        Err(error) => {
            let why = format!("{} (set dns.listen)", chain(&error));
            tracing::warn!(%why, "dns does not listen");
            context.rooms_mut().notes.insert("dns", why);
            Ok(())
        }
    }
}

/// What DNS forwards and its connections have a thread of their own: neither control nor data waits for them.
fn dns_thread(
    server: dns::Server,
    stop: CancellationToken,
) -> std::io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (ends, ended) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("dns".to_owned())
        .spawn(move || {
            runtime.block_on(server.run(stop));
            drop::<tokio::sync::oneshot::Sender<()>>(ends);
        })?;
    Ok(ended)
}

fn node_record(config: &Config) -> Node {
    Node {
        name: config.node.clone(),
        addresses: config.addresses.clone(),
        zone: config.zone.clone(),
        routable: config.routable.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: ["tcp", "http", "h2c", model::node::ORPHANS]
            .map(str::to_owned)
            .to_vec(),
        since: Timestamp::now(),
    }
}

/// Fires at SIGTERM or SIGINT.
async fn on_signal(token: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::warn!("signals can't be listened for");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    token.cancel();
}

/// Whether this process is the superuser's.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// A proxy needs two descriptors for each connection: takes as many as the hard limit allows.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a pointer to a struct that outlives them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Drawn anew by each process.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Timestamp::now().0)
}
