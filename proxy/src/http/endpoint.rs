//! A connection to an endpoint that speaks HTTP/1.1, and how a try on it can fail.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::message::{BodyError, HeadError};
use crate::metrics::{Counted, Open};
use crate::sockets::{DialError, unanswered};
use crate::stream::EndpointStream;
use crate::target::View;
use crate::tls;

/// Why there is no connection to an endpoint.
#[derive(Clone, Debug)]
pub(super) enum ConnectError {
    Dial(Rc<DialError>),
    Handshake(Rc<hyper::Error>),
}

impl ConnectError {
    pub(super) fn timed_out(&self) -> bool {
        matches!(self, ConnectError::Dial(error) if error.timed_out())
    }

    pub(super) fn unanswered(&self) -> bool {
        matches!(self, ConnectError::Dial(error) if error.unanswered())
    }

    pub(super) fn in_words(&self) -> String {
        match self {
            ConnectError::Dial(error) => error.in_words(),
            ConnectError::Handshake(error) => with_causes(&**error),
        }
    }
}

/// What went wrong with an endpoint after there was a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("connection broke")]
    Io(#[source] io::Error),
    #[error("connection closed before the response")]
    Closed,
    #[error("connection closed within the response")]
    Truncated,
    #[error("response's head")]
    Head(#[source] HeadError),
    #[error("response's head is longer than 64 KiB")]
    HeadLength,
    #[error("response's body")]
    Body(#[source] BodyError),
    #[error("no response within {0:?}, the time for one try")]
    PerTry(Duration),
    #[error("it switched protocols without being asked to")]
    UnaskedUpgrade,
    #[error("it answered {0} instead of switching to WebSocket")]
    NotSwitched(StatusCode),
    #[error(transparent)]
    Http2(hyper::Error),
}

impl EndpointError {
    /// Whether the connection broke because its packets went unanswered.
    pub(super) fn unanswered(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return unanswered(error);
            }
            cause = error.source();
        }
        false
    }

    pub(super) fn in_words(&self) -> String {
        with_causes(self)
    }
}

/// An error with its causes, on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// How a try failed, by what is known of the request's fate.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection; nothing was sent.
    Connect { error: ConnectError },
    /// The connection closed before anything was sent.
    NotSent { error: EndpointError },
    /// The endpoint said that it has not processed it: REFUSED_STREAM, or GOAWAY with a lower stream id.
    Unprocessed { error: EndpointError },
    /// It may have been processed.
    Broken { error: EndpointError, reused: bool },
}

/// How long a host may leave what it was sent unacknowledged before the connection counts as broken
/// (`TCP_USER_TIMEOUT`). A host that is cut off answers no packet; without this, requests on kept connections would wait
/// for it for a quarter of an hour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// While a request's head and little more is on its way: half the time that a connect may take. The kernel counts
    /// from the first retransmission, so that it takes 0.4 s longer in a local network: together less than a connect.
    head: Duration,
    /// Once more has been sent than any receive buffer takes: the kernel counts a reader that has stopped reading like
    /// one that is gone, and uploads may pause for as long as the idle time-out says.
    body: Duration,
}

impl Patience {
    pub(super) fn of(view: &View) -> Self {
        Patience {
            head: view.connect_timeout / 2,
            body: view.idle_timeout,
        }
    }
}

/// Bytes sent without an answer up to which a reader can't have closed its window: receive buffers start larger.
const HEAD_BYTES: usize = 16 * 1024;
/// No shorter time-out than this: two retransmissions more.
const SHORTEST: Duration = Duration::from_millis(500);

/// A connection to an endpoint.
pub(super) struct Connection {
    stream: EndpointStream,
    /// Counts what goes over it, as long as its endpoint is there.
    open: Option<Open>,
    patience: Patience,
    /// The longer time-out is in force.
    patient: bool,
    /// Bytes sent since the last were received.
    unanswered: usize,
    /// It has carried a request before.
    pub(super) reused: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl Connection {
    fn new(stream: EndpointStream, patience: Patience, open: Option<Open>) -> Self {
        let connection = Connection {
            stream,
            open,
            patience,
            patient: false,
            unanswered: 0,
            reused: false,
        };
        connection.apply();
        connection
    }

    /// Connects to an endpoint of the port, over TLS where the port says so.
    pub(super) async fn open(
        table: &tls::Table,
        view: &View,
        index: usize,
        counted: Option<Counted>,
    ) -> Result<Self, ConnectError> {
        let stream = tls::dial(table, view, &view.endpoints[index])
            .await
            .map_err(|error| ConnectError::Dial(Rc::new(error)))?;
        let open = counted.as_ref().map(Open::new);
        Ok(Connection::new(stream, Patience::of(view), open))
    }

    /// Takes up another request, all of the last one having gone out: the short time-out again. A system call only
    /// after a large request.
    pub(super) fn begins_anew(&mut self) {
        self.reused = true;
        self.unanswered = 0;
        self.be_patient(false);
    }

    /// Whether it is open still and has brought nothing that nobody asked for, as far as the runtime has heard: no
    /// system call while nothing has happened.
    pub(super) fn is_open(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        Pin::new(&mut self.stream)
            .poll_read(&mut cx, &mut buffer)
            .is_pending()
    }

    /// The same, asking the kernel, which knows of a FIN before the runtime's next round of polling. One system call.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let fd = self.stream.tcp().as_raw_fd();
        // SAFETY: the socket is open as long as `self` lives; the buffer is one byte long, as is said.
        let n = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) };
        n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    /// The bare stream, for a relay in which either side may stop reading for as long as the idle time-out says.
    pub(super) fn into_stream(mut self) -> (EndpointStream, Option<Open>) {
        self.be_patient(true);
        (self.stream, self.open)
    }

    pub(super) fn stream(&self) -> &EndpointStream {
        &self.stream
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(room);
        let polled = self.poll_read_buf(cx, &mut buffer);
        polled.map_ok(|()| buffer.filled().len())
    }

    pub(super) fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.received(buffer.filled().len() - before);
        }
        polled
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = &result {
            self.sent(*n);
        }
        result
    }

    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(n)) = &result {
            self.sent(*n);
        }
        result
    }

    /// Says that nothing more comes.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// What was written into TLS reaches the socket.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Notes bytes that came in, also those that the kernel moved for us.
    pub(super) fn received(&mut self, n: usize) {
        self.unanswered = 0;
        if let Some(open) = &self.open {
            open.sent(n as u64);
        }
    }

    /// Notes bytes that went out, also those that the kernel moved for us.
    pub(super) fn sent(&mut self, n: usize) {
        if let Some(open) = &self.open {
            open.received(n as u64);
        }
        self.unanswered = self.unanswered.saturating_add(n);
        if self.unanswered > HEAD_BYTES {
            self.be_patient(true);
        }
    }

    fn be_patient(&mut self, patient: bool) {
        if self.patient != patient {
            self.patient = patient;
            self.apply();
        }
    }

    fn apply(&self) {
        let timeout = if self.patient {
            self.patience.body
        } else {
            self.patience.head.max(SHORTEST)
        };
        let set = socket2::SockRef::from(self.stream.tcp()).set_tcp_user_timeout(Some(timeout));
        debug_assert!(set.is_ok(), "{set:?}");
    }
}
