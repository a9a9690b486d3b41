//! The client's socket.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connections::Slot;
use crate::metrics::Active;
use crate::stream::ClientStream;

/// The client's side of a connection.
pub(in crate::http) struct Side {
    stream: ClientStream,
    active: Active,
    pub(super) slot: Rc<Slot>,
    /// Read already, and belonging to what comes next.
    pub(super) rest: Vec<u8>,
}

impl Side {
    pub(in crate::http) fn new(stream: ClientStream, active: Active, slot: Rc<Slot>) -> Self {
        Side {
            stream,
            active,
            slot,
            rest: Vec::new(),
        }
    }

    /// The socket, what counts it as active, and what was read already.
    pub(in crate::http) fn into_parts(self) -> (ClientStream, Active, Vec<u8>) {
        (self.stream, self.active, self.rest)
    }

    pub(super) fn stream(&self) -> &ClientStream {
        &self.stream
    }

    /// Reads some; 0 is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(room);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        let n = buffer.filled().len();
        if n > 0 {
            self.slot.activity.read();
            self.active.0.received.add(n as u64);
        }
        Poll::Ready(Ok(n))
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    /// Both, one behind the other.
    pub(super) fn poll_write_two(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    /// What was written into TLS reaches the socket.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Says that nothing more comes.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Notes bytes that went out, also those that the kernel moved for us.
    pub(super) fn wrote(&self, n: usize) {
        self.slot.activity.wrote();
        self.active.0.sent.add(n as u64);
    }

    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        poll_fn(|cx| {
            while !bytes.is_empty() {
                match ready!(self.poll_write(cx, bytes))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => bytes = &bytes[n..],
                }
            }
            self.poll_flush(cx)
        })
        .await
    }
}
