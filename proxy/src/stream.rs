//! A connection's bytes, in the clear or inside TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a client is spoken to through.
#[derive(Debug)]
pub(crate) enum ClientStream {
    Tcp(TcpStream),
}

/// What an endpoint is spoken to through.
#[derive(Debug)]
pub(crate) enum EndpointStream {
    Tcp(TcpStream),
}

macro_rules! either {
    ($kind:ident) => {
        impl $kind {
            /// Whether the socket carries just these bytes.
            pub(crate) fn is_clear(&self) -> bool {
                matches!(self, $kind::Tcp(_))
            }

            /// The socket.
            pub(crate) fn tcp(&self) -> &TcpStream {
                match self {
                    $kind::Tcp(stream) => stream,
                }
            }
        }

        impl AsyncRead for $kind {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
                }
            }
        }

        impl AsyncWrite for $kind {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $kind::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $kind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $kind::Tcp(_) => true,
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $kind::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
                }
            }
        }
    };
}

either!(ClientStream);
either!(EndpointStream);
