//! A connection's bytes, in cleartext or inside TLS.
//!
//! Over TLS, `poll_write` may take bytes that the socket did not: whoever is done writing calls `poll_flush`, which in
//! cleartext costs nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// A client's connection.
#[derive(Debug)]
pub(crate) enum ClientStream {
    Tcp(TcpStream),
    /// After the handshake.
    Tls(Box<server::TlsStream<TcpStream>>),
}

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) enum EndpointStream {
    Tcp(TcpStream),
    /// After the handshake: the endpoint has proven who it is.
    Tls(Box<client::TlsStream<TcpStream>>),
}

impl ClientStream {
    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            ClientStream::Tcp(tcp) => tcp,
            ClientStream::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The protocol that ALPN agreed on (RFC 7301); none in cleartext, and none with a client that offered none.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match self {
            ClientStream::Tcp(_) => None,
            ClientStream::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }
}

impl EndpointStream {
    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            EndpointStream::Tcp(tcp) => tcp,
            EndpointStream::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// Hands each call to whichever stream it is.
macro_rules! delegate {
    ($stream:ident) => {
        impl $stream {
            /// Whether the socket carries just these bytes.
            pub(crate) fn is_clear(&self) -> bool {
                matches!(self, $stream::Tcp(_))
            }
        }

        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buffer),
                    $stream::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
                }
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
                    $stream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $stream::Tcp(_) => Poll::Ready(Ok(())),
                    $stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
                }
            }

            /// Over TLS with the alert that says so (RFC 8446, 6.1): an end without it may be an attacker's.
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
                    $stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $stream::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
                    $stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
                }
            }
        }
    };
}

delegate!(ClientStream);
delegate!(EndpointStream);
