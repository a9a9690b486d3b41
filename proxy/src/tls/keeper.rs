//! The thread that keeps the table of TLS in step with services and files.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use model::service::{CertificateFiles, Tls, TlsVersion, UpstreamProtocol, UpstreamTls};
use model::snapshot::{PortView, ServiceView};
use model::{Protocol, ServiceKey, Snapshot};
use rpds::HashTrieMapSync;
use tokio_rustls::rustls::crypto::aws_lc_rs::Ticketer;
use tokio_rustls::rustls::server::ProducesTickets;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::client::{ClientSide, H2, HTTP_1_1};
use super::files::{self, Pair, Watched};
use super::names::ByName;
use super::{PortTls, Table, server};
use crate::error::ProxyError;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What a port's TLS is to be.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    seq: u64,
    service: ServiceKey,
    port: model::Name,
    protocol: Protocol,
    upstream: UpstreamProtocol,
    tls: Option<Arc<Tls>>,
    upstream_tls: Option<Arc<UpstreamTls>>,
}

impl Wanted {
    fn of(port: &PortView) -> Option<Self> {
        (port.tls.is_some() || port.upstream_tls.is_some()).then(|| Wanted {
            seq: port.load.seq,
            service: port.key.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            upstream: port.upstream,
            tls: port.tls.clone(),
            upstream_tls: port.upstream_tls.clone(),
        })
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Only services with TLS.
    wanted: Mutex<HashMap<ServiceKey, Vec<Wanted>>>,
    stop: AtomicBool,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, HashMap<ServiceKey, Vec<Wanted>>> {
        // A panic in the middle leaves at worst a service as it was before.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads certificates on a thread of its own, so that a slow disk keeps nobody waiting but the ports that are new. Ends
/// when dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(table: Arc<Table>) -> Result<Self, ProxyError> {
        let shared = Arc::<Shared>::default();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("heddle-tls".to_owned())
            .spawn(move || {
                let mut state = State::new(table);
                while !of_thread.stop.load(Ordering::Acquire) {
                    let wanted = of_thread.wanted().values().flatten().cloned().collect();
                    state.look(wanted);
                    std::thread::park_timeout(LOOK);
                }
            })
            .map_err(|source| ProxyError::Keeper { source })?;
        Ok(Keeper {
            shared,
            thread: Some(thread),
        })
    }

    /// Follows a snapshot. `changed`: only these services may differ from the last time.
    pub(crate) fn reconcile(&self, snapshot: &Snapshot, changed: Option<&[ServiceKey]>) {
        let of = |view: &Arc<ServiceView>| -> Vec<Wanted> {
            let ports = view.ports.iter();
            ports.filter_map(|port| Wanted::of(port)).collect()
        };
        let mut wanted = self.shared.wanted();
        let mut news = false;
        let mut set = |key: &ServiceKey, ports: Vec<Wanted>| {
            if wanted.get(key).map_or(&[][..], Vec::as_slice) != ports {
                news = true;
                if ports.is_empty() {
                    wanted.remove(key);
                } else {
                    wanted.insert(key.clone(), ports);
                }
            }
        };
        match changed {
            Some(changed) => {
                for key in changed {
                    set(key, snapshot.service(key).map(of).unwrap_or_default());
                }
            }
            None => {
                for view in snapshot.services.values() {
                    set(&view.key, of(view));
                }
                let known = wanted.len();
                wanted.retain(|key, _| snapshot.service(key).is_some());
                news |= wanted.len() != known;
            }
        }
        drop(wanted);
        if news && let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that reads certificates panicked");
            }
        }
    }
}

/// What the thread knows.
struct State {
    table: Arc<Table>,
    pairs: HashMap<CertificateFiles, Watched<Pair>>,
    authorities: HashMap<String, Watched<RootCertStore>>,
    /// Those of this system, once somebody asked for them.
    system: Option<Result<Arc<RootCertStore>, String>>,
    ports: HashMap<u64, Known>,
}

/// A port as it is in the table.
struct Known {
    wanted: Wanted,
    /// Outlives its certificates: sessions go on when those are replaced.
    ticketer: Option<Arc<dyn ProducesTickets>>,
    made: Arc<PortTls>,
}

impl State {
    fn new(table: Arc<Table>) -> Self {
        State {
            table,
            pairs: HashMap::new(),
            authorities: HashMap::new(),
            system: None,
            ports: HashMap::new(),
        }
    }

    /// Reads what is new or has changed, and stores the table if anything in it did.
    fn look(&mut self, wanted: Vec<Wanted>) {
        let stale = self.read(&wanted);
        let before = self.ports.len();
        let mut known = std::mem::take(&mut self.ports);
        let mut news = false;
        for wanted in wanted {
            let last = known.remove(&wanted.seq);
            let same = last.as_ref().is_some_and(|last| last.wanted == wanted);
            let port = match last {
                Some(last) if same && !stale.concerns(&wanted) => last,
                last => {
                    news = true;
                    self.make(wanted, last)
                }
            };
            self.ports.insert(port.wanted.seq, port);
        }
        if news || self.ports.len() != before {
            let mut table = HashTrieMapSync::new_sync();
            for (seq, port) in &self.ports {
                table.insert_mut(*seq, Arc::clone(&port.made));
            }
            self.table.store(table);
        }
    }

    /// Looks at all files that somebody wants, forgets the others, and says which have changed.
    fn read(&mut self, wanted: &[Wanted]) -> Stale {
        let tls = wanted.iter().filter_map(|port| port.tls.as_deref());
        let pairs = tls.flat_map(|tls| &tls.certificates);
        let upstream = wanted
            .iter()
            .filter_map(|port| port.upstream_tls.as_deref());
        let authorities = upstream.filter_map(|tls| tls.ca_file.as_ref());
        Stale {
            pairs: follow(&mut self.pairs, pairs, files::watch_pair, files::pair),
            authorities: follow(
                &mut self.authorities,
                authorities,
                |file| Watched::new(vec![PathBuf::from(file)]),
                |file, bytes| files::authorities(file, bytes),
            ),
        }
    }

    fn make(&mut self, wanted: Wanted, last: Option<Known>) -> Known {
        let mut errors = Vec::new();
        let mut ticketer = last.and_then(|last| last.ticketer);
        let mut not_after = None;
        let server = wanted.tls.as_ref().map(|tls| {
            let pairs: Vec<&Arc<Pair>> = tls
                .certificates
                .iter()
                .filter_map(|files| {
                    let watched = self.pairs.get(files)?;
                    errors.extend(watched.error().map(str::to_owned));
                    watched.good()
                })
                .collect();
            not_after = pairs.iter().map(|pair| pair.facts.not_after).min();
            server_config(&wanted, tls.min_version, &pairs, &mut ticketer)
                .map_err(|error| errors.extend(error))
                .ok()
        });
        let client = wanted.upstream_tls.as_ref().map(|upstream| {
            let (roots, error) = self.roots(upstream);
            errors.extend(error.clone());
            let alpn = match (wanted.protocol, wanted.upstream) {
                (Protocol::Http, UpstreamProtocol::Http1) => Some(HTTP_1_1),
                (Protocol::Http, UpstreamProtocol::H2c) => Some(H2),
                _ => None,
            };
            let side = match roots {
                Some(roots) => ClientSide::new(roots, upstream.server_name.as_deref(), alpn)
                    .inspect_err(|error| errors.push(error.clone())),
                None => Err(error.unwrap_or_default()),
            };
            side.map(Arc::new).map_err(Arc::from)
        });
        let (service, port) = (&wanted.service, &wanted.port);
        for error in &errors {
            tracing::warn!(%service, %port, error, "not all files of TLS can be used");
        }
        let made = PortTls {
            service: service.clone(),
            port: port.clone(),
            server,
            client,
            not_after,
            errors,
        };
        Known {
            wanted,
            ticketer,
            made: Arc::new(made),
        }
    }

    /// The authorities that endpoints are verified with, if there are any, and why not those that were asked for.
    fn roots(&mut self, upstream: &UpstreamTls) -> (Option<Arc<RootCertStore>>, Option<String>) {
        match &upstream.ca_file {
            Some(file) => {
                let watched = self.authorities.get(file);
                let error = watched.and_then(Watched::error).map(str::to_owned);
                (watched.and_then(Watched::good).cloned(), error)
            }
            None => match self.system.get_or_insert_with(of_this_system) {
                Ok(roots) => (Some(Arc::clone(roots)), None),
                Err(error) => (None, Some(error.clone())),
            },
        }
    }
}

/// The files that are other ones now.
struct Stale {
    pairs: Vec<CertificateFiles>,
    authorities: Vec<String>,
}

impl Stale {
    fn concerns(&self, port: &Wanted) -> bool {
        let pairs = port.tls.iter().flat_map(|tls| &tls.certificates);
        let authorities = port
            .upstream_tls
            .iter()
            .filter_map(|tls| tls.ca_file.as_ref());
        pairs.into_iter().any(|files| self.pairs.contains(files))
            || authorities
                .into_iter()
                .any(|file| self.authorities.contains(file))
    }
}

/// Looks at each of `wanted` once, and forgets what is not among them.
fn follow<'a, K: Hash + Eq + Clone + 'a, T>(
    watched: &mut HashMap<K, Watched<T>>,
    wanted: impl Iterator<Item = &'a K>,
    watch: impl Fn(&K) -> Watched<T>,
    parse: impl Fn(&K, &[Vec<u8>]) -> Result<T, String>,
) -> Vec<K> {
    let mut before = std::mem::take(watched);
    let mut stale = Vec::new();
    for key in wanted {
        if watched.contains_key(key) {
            continue;
        }
        let mut files = before.remove(key).unwrap_or_else(|| watch(key));
        if files.look(|bytes| parse(key, bytes)) {
            stale.push(key.clone());
        }
        watched.insert(key.clone(), files);
    }
    stale
}

/// `Err(None)`: there is no certificate, and why was said already.
fn server_config(
    wanted: &Wanted,
    min_version: TlsVersion,
    pairs: &[&Arc<Pair>],
    ticketer: &mut Option<Arc<dyn ProducesTickets>>,
) -> Result<Arc<ServerConfig>, Option<String>> {
    if min_version == TlsVersion::Unsupported {
        let error = "tls.minVersion is one that this version of heddle does not know";
        return Err(Some(error.to_owned()));
    }
    if pairs.is_empty() {
        return Err(None);
    }
    let alpn: &[&[u8]] = match wanted.protocol {
        Protocol::Http => &[H2, HTTP_1_1],
        Protocol::Tcp | Protocol::Unsupported => &[],
    };
    let tickets = match ticketer {
        Some(ticketer) => Arc::clone(ticketer),
        None => {
            let new = Ticketer::new().map_err(|error| Some(error.to_string()))?;
            Arc::clone(ticketer.insert(new))
        }
    };
    let certificates = ByName::new(pairs.iter().map(|pair| &***pair));
    server::config(min_version, alpn, Arc::new(certificates), tickets)
        .map(Arc::new)
        .map_err(|error| Some(error.to_string()))
}

fn of_this_system() -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let error = "upstreamTls.caFile is needed: this system has no authorities of its own";
        return Err(error.to_owned());
    }
    Ok(Arc::new(roots))
}
