//! DNS over TLS (RFC 7858): what handshakes are done with.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::error::Transport;
use crate::metrics::Metrics;
use crate::tcp::Open;

/// What clients and servers say to each other by ALPN (RFC 7301) that they speak DNS over TLS.
pub const ALPN: &[u8] = b"dot";

/// Where handshakes get their certificate from: asked at each, so that a new one counts from then on while connections
/// go on with what they have.
#[derive(Clone)]
pub struct Tls(Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>);

impl Tls {
    /// `config` returns at once, and offers [`ALPN`].
    pub fn new(config: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static) -> Self {
        Tls(Arc::new(config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

/// Connections begin with a handshake.
#[derive(Clone)]
pub(crate) struct Handshake {
    pub tls: Tls,
    pub metrics: Metrics,
}

impl Open for Handshake {
    type Stream = TlsStream<TcpStream>;
    const TRANSPORT: Transport = Transport::Tls;

    async fn open(&self, stream: TcpStream) -> io::Result<Self::Stream> {
        let count =
            |result: &'static str| self.metrics.handshakes.with_label_values(&[result]).inc();
        // Counted also where the client takes too long, and this is dropped.
        let failed = Failed(Some(&count));
        let stream = TlsAcceptor::from((self.tls.0)()).accept(stream).await?;
        failed.not();
        count(match stream.get_ref().1.handshake_kind() {
            Some(HandshakeKind::Resumed) => "resumed",
            _ => "full",
        });
        Ok(stream)
    }
}

/// Counts a failure when dropped.
struct Failed<'c, C: Fn(&'static str)>(Option<&'c C>);

impl<C: Fn(&'static str)> Failed<'_, C> {
    fn not(mut self) {
        self.0 = None;
    }
}

impl<C: Fn(&'static str)> Drop for Failed<'_, C> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count("failure");
        }
    }
}
