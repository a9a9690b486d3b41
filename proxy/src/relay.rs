//! Moves bytes both ways between a client and an endpoint, keeping half-closes and resets what they are.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::connections::Activity;
use crate::metrics::{Open, PortStats};
use crate::options::limits;
use crate::stream::{ClientStream, EndpointStream};
use crate::worker::Worker;

/// Bytes that were read before the relay began and are sent first.
#[derive(Debug, Default)]
pub(crate) struct Early {
    pub(crate) from_client: Vec<u8>,
    pub(crate) from_endpoint: Vec<u8>,
}

/// What counts the bytes that are relayed.
pub(crate) struct Moved<'a> {
    pub(crate) activity: &'a Activity,
    pub(crate) port: &'a PortStats,
    /// The endpoint's connection, open until the relay ends; none when the endpoint was gone before.
    pub(crate) endpoint: Option<Open>,
}

impl Moved<'_> {
    fn up(&self, n: u64) {
        self.activity.read();
        self.port.received.add(n);
        if let Some(endpoint) = &self.endpoint {
            endpoint.received(n);
        }
    }

    fn down(&self, n: u64) {
        self.activity.wrote();
        self.port.sent.add(n);
        if let Some(endpoint) = &self.endpoint {
            endpoint.sent(n);
        }
    }
}

/// What bytes are relayed between.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin {
    /// When it closes, its peer is to see a reset.
    fn reset(&self);
}

fn reset(stream: &TcpStream) {
    // A socket that failed is closed already; then there is nothing to set.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl Duplex for TcpStream {
    fn reset(&self) {
        reset(self);
    }
}

impl Duplex for ClientStream {
    fn reset(&self) {
        reset(self.tcp());
    }
}

impl Duplex for EndpointStream {
    fn reset(&self) {
        reset(self.tcp());
    }
}

/// Relays until both sides have ended, or one was reset; then the other is reset too.
pub(crate) async fn relay(
    worker: &Worker,
    mut client: impl Duplex,
    mut endpoint: impl Duplex,
    early: Early,
    count: Moved<'_>,
) -> io::Result<()> {
    let mut up = Direction::new(early.from_client);
    let mut down = Direction::new(early.from_endpoint);
    let result = poll_fn(|cx| {
        let up = up.poll(cx, worker, &mut client, &mut endpoint, |n| count.up(n))?;
        let down = down.poll(cx, worker, &mut endpoint, &mut client, |n| count.down(n))?;
        if up.is_ready() && down.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await;
    if result.is_err() {
        client.reset();
        endpoint.reset();
    }
    result
}

/// One direction. It holds a buffer only while its receiver is slower than its sender.
#[derive(Debug)]
struct Direction {
    /// Read but not written yet.
    held: Vec<u8>,
    written: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended; what is held goes out, then the end.
    Ending,
    Ended,
}

impl Direction {
    fn new(held: Vec<u8>) -> Self {
        Direction {
            held,
            written: 0,
            state: State::Open,
        }
    }

    /// Ready when the direction has ended on both sides. The runtime's budget makes a relay that never has to wait
    /// give way to others.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        moved: impl Fn(u64),
    ) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.held.len() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.held[self.written..]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                moved(n as u64);
                self.written += n;
            }
            self.held.clear();
            self.written = 0;
            match self.state {
                State::Open => {}
                State::Ending => {
                    self.state = State::Ended;
                    self.held = Vec::new();
                    match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        // The receiver has closed both ways meanwhile.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        result => result?,
                    }
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            if self.state == State::Ended {
                continue;
            }
            let scratch = &mut *worker.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch[..limits::RELAY_BYTES]);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Pending => {
                    self.held = Vec::new();
                    // What TLS has taken and the socket has not.
                    if let Poll::Ready(Err(error)) = Pin::new(&mut *to).poll_flush(cx) {
                        return Poll::Ready(Err(error));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(result) => result?,
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.state = State::Ending;
                continue;
            }
            let n = match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(n) => n?,
                Poll::Pending => 0,
            };
            if n > 0 {
                moved(n as u64);
            }
            self.held.extend_from_slice(&read[n..]);
        }
    }
}
