//! TLS in front of ports and towards endpoints.
//!
//! # Layout
//! * this file: the table in which workers find what a port's TLS is done with
//! * [`Keeper`]: the thread that reads files, again when they change, and fills the table; it and `files` are the only
//!   ones here that touch a disk
//! * `server`: handshakes with clients; `names`: which certificate a client is shown
//! * [`client`]: handshakes with endpoints
//! * [`Certificate`]: one for a door of the node that is no service's port
//! * `x509`: what a certificate says of itself
//!
//! # Cost
//! A connection looks its port up without a lock. A full handshake takes one signature and one key exchange on the
//! worker's own thread; tickets (RFC 5077; RFC 8446, 4.6.1) are sealed with keys that all workers share, so that a
//! session goes on whichever of them its client meets next.

mod certificate;
pub(crate) mod client;
mod files;
mod keeper;
mod names;
mod server;
mod x509;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use model::{Name, ServiceKey};
use rpds::HashTrieMapSync;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificate::Certificate;
pub(crate) use client::{ClientSide, H2, dial};
pub(crate) use keeper::Keeper;
pub(crate) use server::accept;

/// The one crypto provider.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// Why a port's TLS is not, or not wholly, what its service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsStatus {
    /// Whose port.
    pub service: ServiceKey,
    /// The port's name.
    pub port: Name,
    /// Which file and what is wrong with it. What was read of it before, if anything, is used on.
    pub error: String,
}

/// What TLS on one port is done with.
#[derive(Debug)]
pub(crate) struct PortTls {
    pub(crate) service: ServiceKey,
    port: Name,
    /// `Some(None)`: no certificate can be shown.
    server: Option<Option<Arc<ServerConfig>>>,
    /// An error says why endpoints can't be verified.
    client: Option<Result<Arc<ClientSide>, Arc<str>>>,
    /// When the first of its certificates expires, in seconds since 1970.
    pub(crate) not_after: Option<i64>,
    errors: Vec<String>,
}

/// All ports with TLS, by [`model::snapshot::PortLoad::seq`]. The keeper writes it; workers read it without a lock.
#[derive(Debug)]
pub(crate) struct Table {
    ports: ArcSwap<HashTrieMapSync<u64, Arc<PortTls>>>,
    changed: watch::Sender<()>,
}

impl Default for Table {
    fn default() -> Self {
        Table {
            ports: ArcSwap::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Table {
    fn store(&self, ports: HashTrieMapSync<u64, Arc<PortTls>>) {
        self.ports.store(Arc::new(ports));
        self.changed.send_replace(());
    }

    /// All ports as they are now.
    pub(crate) fn ports(&self) -> Arc<HashTrieMapSync<u64, Arc<PortTls>>> {
        self.ports.load_full()
    }

    /// What is wrong, by service and port.
    pub(crate) fn status(&self) -> Vec<TlsStatus> {
        let ports = self.ports();
        let mut all = Vec::new();
        for port in ports.values() {
            all.extend(port.errors.iter().map(|error| TlsStatus {
                service: port.service.clone(),
                port: port.port.clone(),
                error: error.clone(),
            }));
        }
        all.sort_by(|a, b| (&a.service, &a.port, &a.error).cmp(&(&b.service, &b.port, &b.error)));
        all
    }

    /// What a client's handshake at the port is done with; `None` when there is no certificate. Waits only for a port
    /// whose files are being read for the first time.
    pub(crate) async fn server(&self, seq: u64) -> Option<Arc<ServerConfig>> {
        self.find(seq, |port| port.server.clone()).await
    }

    /// What a handshake with an endpoint of the port is done with. Waits as [`Table::server`] does.
    ///
    /// # Errors
    /// Why the port's endpoints can't be verified.
    pub(crate) async fn client(&self, seq: u64) -> Result<Arc<ClientSide>, Arc<str>> {
        self.find(seq, |port| port.client.clone()).await
    }

    async fn find<T>(&self, seq: u64, of: impl Fn(&PortTls) -> Option<T>) -> T {
        let found = |table: &Table| of(table.ports.load().get(&seq)?);
        if let Some(found) = found(self) {
            return found;
        }
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            if changed.changed().await.is_err() {
                // The table itself holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }
}
