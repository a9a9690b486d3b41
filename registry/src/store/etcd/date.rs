//! What time it is at a member of etcd: the `Date` of an HTTP/1.1 answer (RFC 9110, section 6.6.1), as gRPC's have none.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::Uri;

use super::EtcdOptions;

/// An answer's head is far smaller.
const HEAD: u64 = 16 * 1024;

/// Asks a member (`http://host:port` or `https://host:port`) for its version, and returns the `Date` that it sends with
/// the answer: `Sun, 06 Nov 1994 08:49:37 GMT`.
///
/// # Errors
/// Why there is none, in words.
pub async fn date(endpoint: &str, options: &EtcdOptions) -> Result<String, String> {
    let within = options.connect_timeout.max(Duration::from_secs(1)) * 2;
    let asked = tokio::time::timeout(within, ask(endpoint, options));
    asked
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {within:?}")))
}

async fn ask(endpoint: &str, options: &EtcdOptions) -> Result<String, String> {
    let uri: Uri = endpoint.parse().map_err(|e| format!("{e}"))?;
    let authority = uri.authority().ok_or("it names no host")?;
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let tls = uri.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port));
    let mut tcp = tcp.await.map_err(|e| e.to_string())?;
    let request =
        format!("GET /version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    let head = if tls {
        let files = options.tls.clone();
        let loaded = tokio::task::spawn_blocking(move || files.load()).await;
        let mut config = loaded
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let mut stream = connecting.await.map_err(|e| e.to_string())?;
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        read(stream).await?
    } else {
        tcp.write_all(request.as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        read(tcp).await?
    };
    let date = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date")
            .then(|| value.trim().to_owned())
    });
    date.ok_or_else(|| "its answer has no Date".to_owned())
}

async fn read(stream: impl AsyncRead + Unpin) -> Result<String, String> {
    let mut answer = Vec::new();
    // A peer that ends TLS without a word has said enough.
    let read = stream.take(HEAD).read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer);
    match (text.split_once("\r\n\r\n"), read) {
        (Some((head, _)), _) => Ok(head.to_owned()),
        (None, Err(error)) => Err(error.to_string()),
        (None, Ok(_)) => Err("no HTTP answer".to_owned()),
    }
}
