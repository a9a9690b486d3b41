//! Sockets as the engine wants them: a client's, which counts what passes, and an endpoint's.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::connections::Activity;
use crate::metrics::Active;

/// Reads into hyper's buffer without initialising it first; returns how much.
fn poll_read(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    mut cursor: ReadBufCursor<'_>,
) -> Poll<io::Result<usize>> {
    // SAFETY: tokio's `ReadBuf` writes initialised bytes only, and never makes initialised ones uninitialised.
    let mut buffer = ReadBuf::uninit(unsafe { cursor.as_mut() });
    match Pin::new(stream).poll_read(cx, &mut buffer) {
        Poll::Ready(Ok(())) => {
            let n = buffer.filled().len();
            // SAFETY: the first `n` bytes behind the cursor were just filled.
            unsafe { cursor.advance(n) };
            Poll::Ready(Ok(n))
        }
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Pending,
    }
}

/// A client's socket.
#[derive(Debug)]
pub(crate) struct ClientIo {
    stream: TcpStream,
    /// Read before the engine began, to be read by it first.
    begun: Vec<u8>,
    taken: usize,
    activity: Arc<Activity>,
    active: Active,
}

impl ClientIo {
    pub(crate) fn new(
        stream: TcpStream,
        begun: Vec<u8>,
        activity: Arc<Activity>,
        active: Active,
    ) -> Self {
        active.0.received.add(begun.len() as u64);
        ClientIo {
            stream,
            begun,
            taken: 0,
            activity,
            active,
        }
    }

    /// The socket, what counts it as active, and bytes that the engine has not taken.
    pub(super) fn into_parts(mut self) -> (TcpStream, Active, Vec<u8>) {
        let rest = self.begun.split_off(self.taken);
        (self.stream, self.active, rest)
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
        poll_read(&mut this.stream, cx, cursor).map_ok(|n| {
            if n > 0 {
                this.activity.read();
                this.active.0.received.add(n as u64);
            }
        })
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

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
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

/// How long a host may leave what it was sent unacknowledged before the connection counts as broken
/// (`TCP_USER_TIMEOUT`). A host that is cut off answers no packet; without this, requests on kept connections would wait
/// for it for a quarter of an hour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until there is a connection.
    pub(super) connect: Duration,
    /// While a request's head and little more is on its way: half the time that a connect may take. The kernel counts
    /// from the first retransmission, so that it takes 0.4 s longer in a local network: together less than a connect.
    pub(super) head: Duration,
    /// Once more has been sent than any receive buffer takes: the kernel counts a reader that has stopped reading like
    /// one that is gone, and uploads may pause for as long as the idle time-out says.
    pub(super) body: Duration,
}

/// Bytes sent without an answer up to which a reader can't have closed its window: receive buffers start larger.
const HEAD_BYTES: usize = 16 * 1024;
/// No shorter time-out than this: two retransmissions more.
const SHORTEST: Duration = Duration::from_millis(500);

/// What the owner of the socket and the pool both know.
#[derive(Debug)]
struct Shared {
    /// −1: closed.
    fd: AtomicI32,
    /// The longer time-out is in force.
    patient: AtomicBool,
    patience: Patience,
}

impl Shared {
    fn set(&self, patient: bool) {
        let fd = self.fd.load(Ordering::Relaxed);
        if fd < 0 || self.patient.swap(patient, Ordering::Relaxed) == patient {
            return;
        }
        self.apply(fd);
    }

    fn apply(&self, fd: i32) {
        let timeout = if self.patient.load(Ordering::Relaxed) {
            self.patience.body
        } else {
            self.patience.head.max(SHORTEST)
        };
        let millis = libc::c_uint::try_from(timeout.as_millis()).unwrap_or(0);
        // SAFETY: `fd` is open: `Watched` takes it back before the socket is closed, on this same thread; the option's
        // value is an unsigned int of the size that is said.
        let set = unsafe {
            libc::setsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_USER_TIMEOUT,
                (&raw const millis).cast(),
                libc::socklen_t::try_from(size_of_val(&millis)).unwrap_or(4),
            )
        };
        debug_assert!(set == 0, "{}", io::Error::last_os_error());
    }
}

/// Looks at an endpoint's socket that the engine owns.
#[derive(Debug)]
pub(super) struct Peek(Arc<Shared>);

impl Peek {
    /// Whether nothing waits to be read, neither bytes nor the end: the runtime learns of a FIN only in its next round
    /// of polling, the kernel knows at once. One system call.
    pub(super) fn is_quiet(&self) -> bool {
        let fd = self.0.fd.load(Ordering::Relaxed);
        if fd < 0 {
            return false;
        }
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: `fd` is open: `Watched` takes it back before the socket is closed, on this same thread; the buffer
        // is one byte long, as is said.
        let n = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) };
        n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    /// The connection takes another request, all of the last one having gone out: the short time-out again. A system
    /// call only after a large request.
    pub(super) fn begins_anew(&self) {
        self.0.set(false);
    }
}

/// Takes the descriptor back from [`Peek`] when the socket goes.
#[derive(Debug)]
struct Watched(Arc<Shared>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.fd.store(-1, Ordering::Relaxed);
    }
}

/// An endpoint's socket.
#[derive(Debug)]
pub(super) struct EndpointIo {
    /// Dropped before the socket: fields are dropped in their order.
    watched: Watched,
    /// Bytes sent since the last were received.
    unanswered: usize,
    stream: TcpStream,
}

impl EndpointIo {
    pub(super) fn new(stream: TcpStream, patience: Patience) -> (Self, Peek) {
        let shared = Arc::new(Shared {
            fd: AtomicI32::new(stream.as_raw_fd()),
            patient: AtomicBool::new(false),
            patience,
        });
        shared.apply(stream.as_raw_fd());
        let io = EndpointIo {
            watched: Watched(Arc::clone(&shared)),
            unanswered: 0,
            stream,
        };
        (io, Peek(shared))
    }

    /// The bare socket, for a relay in which either side may stop reading for as long as the idle time-out says.
    pub(super) fn into_stream(self) -> TcpStream {
        self.watched.0.set(true);
        self.stream
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &result {
            self.unanswered = self.unanswered.saturating_add(*n);
            if self.unanswered > HEAD_BYTES {
                self.watched.0.set(true);
            }
        }
        result
    }
}

impl Read for EndpointIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = poll_read(&mut self.stream, cx, cursor);
        if matches!(read, Poll::Ready(Ok(n)) if n > 0) {
            self.unanswered = 0;
        }
        read.map_ok(|_| ())
    }
}

impl Write for EndpointIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
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
