//! Connections to one member of an etcd cluster: made when they are needed, and made again when they break.

use std::sync::Arc;

use etcd_client::{Channel, Client, ConnectOptions};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, CertificateError};
use tonic::transport::{Endpoint, Uri};

use super::{EtcdOptions, TlsFiles};
use crate::store::StoreError;

/// A client of the member at `address`. Nothing is sent before the first call.
pub(super) async fn client(address: &str, options: &EtcdOptions) -> Result<Client, StoreError> {
    let refused = |reason: String| StoreError::Config {
        setting: "registry.endpoints",
        value: address.to_owned(),
        reason,
    };
    let url = match address.split_once("://") {
        Some(_) => address.to_owned(),
        None => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        refused(cause.unwrap_or_else(|| error.to_string()))
    })?;
    let tls = match endpoint.uri().scheme_str() {
        Some("https") => Some(Arc::new(options.tls.clone())),
        Some("http") if options.tls.is_empty() => None,
        Some("http") => {
            let reason = "registry.ca_file and registry.cert_file are for https endpoints";
            return Err(refused(reason.to_owned()));
        }
        _ => return Err(refused("not http://host:port or https://host:port".into())),
    };
    if endpoint.uri().host().is_none_or(str::is_empty) {
        return Err(refused("names no host".to_owned()));
    }
    let channel = endpoint
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keep_alive_interval)
        .keep_alive_timeout(options.keep_alive_timeout)
        // etcd takes pings without a call in progress for abuse and closes the connection.
        .keep_alive_while_idle(false)
        .connect_with_connector_lazy(tower::service_fn(move |uri| dial(uri, tls.clone())));
    let connect = ConnectOptions::new()
        // A member that is cut off from the rest answers "no leader" instead of stale data, and ends its watches.
        .with_require_leader(true);
    Client::from_channel(Channel::Tonic(channel), Some(connect))
        .await
        .map_err(|error| refused(error.to_string()))
}

/// Why no connection was made. Each stands at the root of its chain and names its cause itself.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("can't connect: {0}")]
    Tcp(std::io::Error),
    #[error("{0}")]
    Files(StoreError),
    #[error("the address is no name that a certificate can have")]
    Name,
    #[error("no tls connection: {reason}{hint}")]
    Tls { reason: String, hint: &'static str },
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn dial(uri: Uri, tls: Option<Arc<TlsFiles>>) -> Result<TokioIo<Box<dyn Io>>, DialError> {
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default_port = if tls.is_some() { 443 } else { 80 };
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(default_port)))
        .await
        .map_err(DialError::Tcp)?;
    tcp.set_nodelay(true).map_err(DialError::Tcp)?;
    let Some(files) = tls else {
        return Ok(TokioIo::new(Box::new(tcp)));
    };
    let loaded = tokio::task::spawn_blocking(move || files.load());
    let config = match loaded.await {
        Ok(loaded) => loaded.map_err(DialError::Files)?,
        Err(ended) => return Err(DialError::Tcp(ended.into())),
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| DialError::Name)?;
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(tls_error)?;
    Ok(TokioIo::new(Box::new(connected)))
}

const NOT_TLS: &str = " (does this port of etcd speak tls?)";

fn tls_error(error: std::io::Error) -> DialError {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let hint = match cause {
        // The latter of an authority that was made anew under its old name.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => " (etcd's certificate is not signed by an authority of registry.ca_file)",
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => " (registry.endpoints must have a name or address that is in etcd's certificate)",
        Some(rustls::Error::InvalidMessage(_)) => NOT_TLS,
        // Who doesn't understand the first bytes hangs up: with what came after them unread, by a reset.
        None if matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe) => NOT_TLS,
        _ => "",
    };
    DialError::Tls {
        reason: error.to_string(),
        hint,
    }
}
