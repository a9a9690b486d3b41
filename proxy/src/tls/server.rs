//! Handshakes with clients.

use std::io;
use std::sync::Arc;

use model::service::TlsVersion;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error, HandshakeKind, ServerConfig, SupportedProtocolVersion};

use super::provider;
use crate::accept::reset;
use crate::metrics::HandshakeResult;
use crate::stream::ClientStream;
use crate::target::Port;
use crate::worker::Worker;

/// The first byte of a TLS connection: a handshake record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// What a browser that was given `http://` instead of `https://` shows.
const PLAIN_HTTP: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 58\r\nconnection: close\r\nx-heddle-error: bad-request\r\n\r\n\
    this port speaks TLS: ask for https:// instead of http://\n";

/// What handshakes of a port are done with.
pub(super) fn config(
    min_version: TlsVersion,
    alpn: &[&[u8]],
    certificates: Arc<dyn ResolvesServerCert>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, Error> {
    let versions: &[&'static SupportedProtocolVersion] = match min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12],
        TlsVersion::V1_3 | TlsVersion::Unsupported => &[&TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.ticketer = ticketer;
    // Clients keep their sessions themselves, in tickets: nothing to hold for each here, nor to lock.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// Does the handshake with a client; `None` when there is no connection after it, which is counted. It has no time-out
/// of its own: that is the worker's sweep.
pub(crate) async fn accept(
    worker: &Worker,
    port: &Port,
    tcp: TcpStream,
    speaks_http: bool,
) -> Option<ClientStream> {
    let count = |result| port.stats.handshake(result);
    let Some(config) = port.tls.server(port.seq()).await else {
        count(HandshakeResult::NoCertificate);
        tracing::debug!(service = %port.key(), "no certificate to show: connection refused");
        reset(&tcp);
        return None;
    };
    if speaks_http && is_plain_http(&tcp).await {
        count(HandshakeResult::Failure);
        say_https(worker, tcp).await;
        return None;
    }
    match TlsAcceptor::from(config).accept(tcp).await {
        Ok(tls) => {
            count(match tls.get_ref().1.handshake_kind() {
                Some(HandshakeKind::Resumed) => HandshakeResult::Resumed,
                _ => HandshakeResult::Full,
            });
            Some(ClientStream::Tls(Box::new(tls)))
        }
        Err(error) => {
            count(HandshakeResult::Failure);
            tracing::debug!(service = %port.key(), %error, "handshake with a client failed");
            None
        }
    }
}

/// Whether a request begins where a handshake should: with a capital letter, as methods do.
async fn is_plain_http(tcp: &TcpStream) -> bool {
    let mut first = [HANDSHAKE];
    // An error shows again in the handshake.
    matches!(tcp.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

async fn say_https(worker: &Worker, mut tcp: TcpStream) {
    // What is left unread when the socket is closed would reset the connection, and the answer with it.
    let read = tcp.try_read(&mut worker.scratch.borrow_mut());
    if read.is_ok() {
        // The client may have left already.
        let _: io::Result<()> = tcp.write_all(PLAIN_HTTP).await;
        let _: io::Result<()> = tcp.shutdown().await;
    }
}
