//! `http` ports: HTTP/1.1 and HTTP/2 from clients on one port, HTTP/1.1 or HTTP/2 to endpoints.
//!
//! # Layout
//! * this file: a client's connection; which version it speaks, its limits, and how it ends
//! * `exchange`: the one place where a request is picked for, retried (`tries`), timed and counted
//! * `attempt`: one try at one endpoint; `pool`: the connections to endpoints; both know the engine (hyper)
//! * `headers`: what a proxy changes in a message (RFC 9110, 7.6)
//! * `body`, `io`, `upgrade`, `reply`: bodies that know when they end, sockets that count, tunnels after a 101, and
//!   answers of our own
//!
//! # Cost
//! An idle client connection holds 22 KiB, most of it the engine's two buffers; a relayed one of a `tcp` port 3 KiB with
//! both of its sockets. Neither holds a timer.

mod attempt;
mod body;
mod exchange;
mod headers;
mod io;
mod pool;
mod reply;
mod tries;
mod upgrade;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::connections::{self, Closing, Kind, Slot};
use crate::metrics::{Active, Spoken};
use crate::options::limits;
use crate::target::{Binding, Port, View};
use crate::worker::Worker;
use exchange::{Client, exchange};
use io::ClientIo;
pub(crate) use pool::Pool;

/// What an HTTP/2 connection with prior knowledge begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // Dropping the handle detaches the task, which is what an executor is asked for.
        drop(tokio::task::spawn_local(async move { drop(future.await) }));
    }
}

/// Serves a connection in a task of its own.
pub(crate) fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    port: &Rc<Port>,
    view: &View,
) {
    let active = Active::new(&port.stats);
    connections::spawn(worker, Kind::Http1, view.idle_timeout, |slot| {
        let worker = Rc::clone(worker);
        let binding = Binding::of(port);
        async move {
            let Some((stream, begun)) = first_bytes(&worker, stream).await else {
                return;
            };
            if !begun.is_empty() {
                slot.activity.read();
            }
            let spoken = if begun.starts_with(PREFACE) {
                Spoken::Http2
            } else {
                Spoken::Http1
            };
            if spoken == Spoken::Http2 {
                slot.set_kind(Kind::Http2);
            }
            let io = ClientIo::new(stream, begun, std::sync::Arc::clone(&slot.activity), active);
            let client = Rc::new(Client::new(worker, Rc::clone(&slot), binding, peer, spoken));
            let result = match spoken {
                Spoken::Http1 => serve_http1(io, client, &slot).await,
                // Boxed, or every HTTP/1.1 connection would hold room for an HTTP/2 one.
                Spoken::Http2 => Box::pin(serve_http2(io, client, &slot)).await,
            };
            if let Err(error) = result {
                tracing::debug!(%peer, %error, "client connection broke");
            }
        }
    });
}

/// Reads until it is clear whether HTTP/2's preface comes; what was read goes to the engine. `None`: the client left.
async fn first_bytes(worker: &Worker, mut stream: TcpStream) -> Option<(TcpStream, Vec<u8>)> {
    let mut begun = Vec::new();
    loop {
        let read = poll_fn(|cx| {
            let mut scratch = worker.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            let polled = Pin::new(&mut stream).poll_read(cx, &mut buffer);
            polled.map_ok(|()| {
                begun.extend_from_slice(buffer.filled());
                buffer.filled().len()
            })
        });
        let ended = read.await.ok()? == 0;
        if ended {
            return (!begun.is_empty()).then_some((stream, begun));
        }
        let known = begun.len().min(PREFACE.len());
        if begun[..known] != PREFACE[..known] || known == PREFACE.len() {
            return Some((stream, begun));
        }
    }
}

async fn serve_http1(io: ClientIo, client: Rc<Client>, slot: &Slot) -> hyper::Result<()> {
    let service = service_fn(move |request| exchange(Rc::clone(&client), request));
    let connection = http1::Builder::new()
        .max_buf_size(limits::H1_BUFFER_BYTES)
        .max_header_size(limits::HEAD_BYTES)
        // Slow heads are seen by the worker's sweep, which costs no timer per request.
        .header_read_timeout(None)
        // The endpoint's own date is passed on.
        .auto_date_header(false)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    drive(connection.as_mut(), slot, Closing::AfterNext, |c| {
        c.graceful_shutdown()
    })
    .await
}

async fn serve_http2(io: ClientIo, client: Rc<Client>, slot: &Slot) -> hyper::Result<()> {
    let service = service_fn(move |request| exchange(Rc::clone(&client), request));
    let header_list = u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX);
    let connection = http2::Builder::new(LocalExecutor)
        .max_concurrent_streams(limits::H2_STREAMS)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS)
        .max_local_error_reset_streams(limits::H2_LOCAL_RESETS)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::H2_SEND_BYTES)
        .max_header_list_size(header_list)
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    // GOAWAY loses nothing, so there is no need to wait for a request to carry the news.
    drive(connection.as_mut(), slot, Closing::No, |c| {
        c.graceful_shutdown()
    })
    .await
}

/// Polls a connection to its end, and tells it to end gracefully once its slot says so. Where that is still to wait
/// for a request (`patience`), it is told as soon as one is being served.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    slot: &Slot,
    patience: Closing,
    end: fn(Pin<&mut C>),
) -> C::Output {
    let mut told = false;
    poll_fn(|cx| {
        slot.park(cx.waker());
        loop {
            let closing = slot.closing();
            if !told && (closing > patience || (closing > Closing::No && slot.is_busy())) {
                told = true;
                end(connection.as_mut());
            }
            let polled = connection.as_mut().poll(cx);
            let news = !told && slot.closing() > Closing::No && slot.is_busy();
            if polled.is_ready() || !news {
                return polled;
            }
        }
    })
    .await
}
