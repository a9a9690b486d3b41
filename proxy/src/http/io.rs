//! Sockets as hyper wants them: a client's, which counts what passes, and an endpoint's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::endpoint::Connection;
use crate::connections::Activity;
use crate::metrics::Active;
use crate::stream::ClientStream;

/// A client's socket.
#[derive(Debug)]
pub(super) struct ClientIo {
    stream: ClientStream,
    /// Read before the engine began, to be read by it first.
    begun: Vec<u8>,
    taken: usize,
    activity: Arc<Activity>,
    active: Active,
}

impl ClientIo {
    pub(super) fn new(
        stream: ClientStream,
        begun: Vec<u8>,
        activity: Arc<Activity>,
        active: Active,
    ) -> Self {
        ClientIo {
            stream,
            begun,
            taken: 0,
            activity,
            active,
        }
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &result {
            self.activity.wrote();
            self.active.0.sent.add(*n as u64);
        }
        result
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.taken < this.begun.len() {
            let n = (this.begun.len() - this.taken).min(cursor.remaining());
            cursor.put_slice(&this.begun[this.taken..this.taken + n]);
            this.taken += n;
            if this.taken == this.begun.len() {
                this.begun = Vec::new();
                this.taken = 0;
            }
            return Poll::Ready(Ok(()));
        }
        // SAFETY: tokio's `ReadBuf` writes initialised bytes only, and never makes initialised ones uninitialised.
        let mut buffer = ReadBuf::uninit(unsafe { cursor.as_mut() });
        match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let n = buffer.filled().len();
        // SAFETY: the first `n` bytes behind the cursor were just filled.
        unsafe { cursor.advance(n) };
        if n > 0 {
            this.activity.read();
            this.active.0.received.add(n as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(result)
    }
}

/// An endpoint's socket.
#[derive(Debug)]
pub(super) struct EndpointIo(pub(super) Connection);

impl Read for EndpointIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: tokio's `ReadBuf` writes initialised bytes only, and never makes initialised ones uninitialised.
        let mut buffer = ReadBuf::uninit(unsafe { cursor.as_mut() });
        match self.0.poll_read_buf(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let n = buffer.filled().len();
        // SAFETY: the first `n` bytes behind the cursor were just filled.
        unsafe { cursor.advance(n) };
        Poll::Ready(Ok(()))
    }
}

impl Write for EndpointIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream().is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write_vectored(cx, slices)
    }
}
