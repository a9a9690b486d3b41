//! `http` ports: HTTP/1.0, 1.1 and 2 from clients on one port, HTTP/1.1 or HTTP/2 to endpoints.
//!
//! # Layout
//! * this file: a client's connection, and which version it speaks
//! * `exchange`: **the seam**: the one place where a request is picked for, retried (`tries`), timed and counted
//! * `message`: HTTP/1.1 as bytes, read strictly and written anew; no I/O
//! * `h1`: clients' HTTP/1.1 connections, an engine of our own
//! * `h2`: HTTP/2 on either side, on hyper
//! * `endpoint`, `pool`: connections to endpoints, and how a try on one can fail
//! * `translate`: heads between the versions; `reply`: answers of our own; `io`: sockets as hyper wants them

mod endpoint;
mod exchange;
mod h1;
mod h2;
mod io;
mod message;
mod pool;
mod reply;
mod translate;
mod tries;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::connections::{self, Kind};
use crate::metrics::{Active, Spoken};
use crate::stream::ClientStream;
use crate::target::{Binding, Port, View};
use crate::worker::Worker;
use exchange::Client;
use io::ClientIo;
pub(crate) use pool::Pool;

/// The bodies of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Bytes as a client may send them.
    pub fn request(bytes: &[u8]) {
        super::message::check::request(bytes);
    }

    /// Bytes as an endpoint may answer.
    pub fn response(bytes: &[u8]) {
        super::message::check::response(bytes);
    }

    /// Bytes as a chunked body may have.
    pub fn chunks(bytes: &[u8]) {
        super::message::check::chunks_read(bytes);
    }
}

/// What an HTTP/2 connection with prior knowledge begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
            let stream = ClientStream::Tcp(stream);
            let Some((stream, begun)) = first_bytes(&worker, stream).await else {
                return;
            };
            slot.activity.read();
            let spoken = if begun.starts_with(PREFACE) {
                slot.set_kind(Kind::Http2);
                Spoken::Http2
            } else {
                Spoken::Http1
            };
            let client = Client::new(worker, Rc::clone(&slot), binding, peer, spoken, false);
            let client = Rc::new(client);
            let broke = match spoken {
                Spoken::Http1 => {
                    let side = h1::Side::new(stream, active, slot, begun);
                    let ended = h1::Http1::new(client, side).run().await;
                    ended.err().map(|error| error.to_string())
                }
                // Boxed, or every HTTP/1.1 connection would hold room for an HTTP/2 one.
                Spoken::Http2 => {
                    let io = ClientIo::new(stream, begun, Arc::clone(&slot.activity), active);
                    let ended = Box::pin(h2::serve(io, client, &slot)).await;
                    ended.err().map(|error| endpoint::with_causes(&error))
                }
            };
            if let Some(error) = broke {
                tracing::debug!(%peer, error, "client connection broke");
            }
        }
    });
}

/// Reads until it is clear whether HTTP/2's preface comes; what was read goes to the engine. `None`: the client left.
async fn first_bytes(worker: &Worker, mut stream: ClientStream) -> Option<(ClientStream, Vec<u8>)> {
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
