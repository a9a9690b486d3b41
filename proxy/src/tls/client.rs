//! Handshakes with endpoints, which must prove who they are.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use model::snapshot::{EndpointView, PortView};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore,
};

use super::{Table, provider};
use crate::sockets::{self, DialError};
use crate::stream::EndpointStream;

/// Sessions that a port keeps to go on with; the oldest make room.
const SESSIONS: usize = 256;

/// ALPN's name of HTTP/2 (RFC 9113, 3.1).
pub(crate) const H2: &[u8] = b"h2";
/// ALPN's name of HTTP/1.1 (RFC 7301, 6).
pub(super) const HTTP_1_1: &[u8] = b"http/1.1";

/// What handshakes with the endpoints of a port are done with.
#[derive(Debug)]
pub(crate) struct ClientSide {
    config: Arc<ClientConfig>,
    /// None: the address that is dialled.
    name: Option<ServerName<'static>>,
    /// The protocol without which there is no connection.
    must_speak: Option<&'static [u8]>,
}

impl ClientSide {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        name: Option<&str>,
        alpn: Option<&'static [u8]>,
    ) -> Result<Self, String> {
        let name = name.map(|name| ServerName::try_from(name.to_owned()));
        let name = name.transpose().map_err(|error| error.to_string())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(verifier.map_err(|error| error.to_string())?)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(ClientSide {
            config: Arc::new(config),
            name,
            must_speak: alpn.filter(|name| *name == H2),
        })
    }
}

/// Connects to an endpoint of the port, over TLS where the port says so. The port's connect time-out is for all of it.
pub(crate) async fn dial(
    table: &Table,
    view: &PortView,
    endpoint: &EndpointView,
) -> Result<EndpointStream, DialError> {
    let started = Instant::now();
    let tcp = sockets::dial(endpoint.addresses(), view.connect_timeout).await?;
    if view.upstream_tls.is_none() {
        return Ok(EndpointStream::Tcp(tcp));
    }
    let address = tcp.peer_addr();
    let handshake = async {
        let side = table.client(view.load.seq).await;
        let side = side.map_err(|why| io::Error::other(format!("TLS: {why}")))?;
        connect(tcp, &side).await
    };
    let limit = view.connect_timeout;
    let left = limit.saturating_sub(started.elapsed());
    // Boxed, or every request would hold room for a handshake.
    let done = Box::pin(tokio::time::timeout(left, handshake)).await;
    done.unwrap_or_else(|_| {
        let text = format!("TLS: no handshake within {limit:?} of connecting (timeouts.connect)");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
    .map_err(|source| match address {
        Ok(address) => DialError::Tls { address, source },
        // Closed by the endpoint before there was a handshake.
        Err(_) => DialError::Tls {
            address: endpoint.addresses()[0],
            source,
        },
    })
}

/// Does the handshake with an endpoint. It has no time-out of its own.
///
/// # Errors
/// With a text that says what the endpoint failed to prove; of the kind that the socket gave, or of
/// [`io::ErrorKind::InvalidData`].
pub(crate) async fn connect(tcp: TcpStream, side: &ClientSide) -> io::Result<EndpointStream> {
    let name = match &side.name {
        Some(name) => name.clone(),
        None => ServerName::IpAddress(tcp.peer_addr()?.ip().to_canonical().into()),
    };
    let connector = TlsConnector::from(Arc::clone(&side.config));
    let tls = connector.connect(name, tcp).await.map_err(in_words)?;
    if let Some(wanted) = side.must_speak
        && tls.get_ref().1.alpn_protocol() != Some(wanted)
    {
        let text = "TLS: the endpoint does not agree to HTTP/2 (ALPN h2)";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(EndpointStream::Tls(Box::new(tls)))
}

/// The same error with a hint at what to mend.
fn in_words(error: io::Error) -> io::Error {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    let hint = match cause {
        Some(Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => " (not signed by an authority of upstreamTls.caFile, or of this system without it)",
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => " (upstreamTls.serverName must be a name in the endpoint's certificate)",
        Some(Error::InvalidMessage(_)) => " (does the endpoint speak TLS?)",
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            " (the endpoint does not speak this version of HTTP over TLS)"
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => " (does the endpoint speak TLS?)",
        _ => "",
    };
    io::Error::new(error.kind(), format!("TLS: {error}{hint}"))
}
