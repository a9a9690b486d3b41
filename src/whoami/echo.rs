//! TCP and UDP echo.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::state::Backend;

/// The largest payload of a UDP datagram, rounded up.
const MAX_DATAGRAM: usize = 64 * 1024;

/// Sends back what comes in until the peer's FIN, then sends its own: a peer that shuts its sending side
/// down still gets everything. Ends with FIN when the process closes.
pub(super) async fn tcp(mut stream: TcpStream, banner: bool, backend: Arc<Backend>) {
    let _ = stream.set_nodelay(true);
    if banner
        && stream
            .write_all(format!("{}\n", backend.name).as_bytes())
            .await
            .is_err()
    {
        return;
    }
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read,
            () = backend.closing.cancelled() => Ok(0),
        };
        match read {
            Ok(0) => break,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    let _ = stream.shutdown().await;
}

/// Sends every datagram back to where it came from; `whoami` is answered with the name.
pub(super) async fn udp(socket: UdpSocket, backend: Arc<Backend>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = backend.closing.cancelled() => return,
        };
        // An error here is the ICMP answer to an earlier reply: the fault of one peer, gone by itself.
        let Ok((length, peer)) = received else {
            continue;
        };
        let datagram = &buffer[..length];
        let reply = if datagram.trim_ascii_end() == b"whoami" {
            backend.name.as_bytes()
        } else {
            datagram
        };
        if let Err(error) = socket.send_to(reply, peer).await {
            tracing::debug!(%peer, %error, "cannot answer a datagram");
        }
    }
}
