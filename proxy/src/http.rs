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
use crate::tls;
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
    tcp: TcpStream,
    peer: SocketAddr,
    port: &Rc<Port>,
    view: &View,
) {
    let active = Active::new(&port.stats);
    let secure = view.tls.is_some();
    let kind = if secure { Kind::Handshake } else { Kind::Http1 };
    connections::spawn(worker, kind, view.idle_timeout, |slot| {
        let (worker, port) = (Rc::clone(worker), Rc::clone(port));
        async move {
            let stream = if secure {
                // Boxed, or every connection in cleartext would hold room for it.
                let handshake = Box::pin(tls::accept(&worker, &port, tcp, true));
                let Some(stream) = handshake.await else {
                    return;
                };
                slot.set_kind(Kind::Http1);
                stream
            } else {
                ClientStream::Tcp(tcp)
            };
            let Some(Begun {
                stream,
                bytes,
                spoken,
            }) = begin(&worker, stream).await
            else {
                return;
            };
            if !bytes.is_empty() {
                slot.activity.read();
            }
            if spoken == Spoken::Http2 {
                slot.set_kind(Kind::Http2);
            }
            let binding = Binding::of(&port);
            drop(port);
            let client = Client::new(worker, Rc::clone(&slot), binding, peer, spoken, secure);
            let client = Rc::new(client);
            let broke = match spoken {
                Spoken::Http1 => {
                    let side = h1::Side::new(stream, active, slot, bytes);
                    let ended = h1::Http1::new(client, side).run().await;
                    ended.err().map(|error| error.to_string())
                }
                // Boxed, or every HTTP/1.1 connection would hold room for an HTTP/2 one.
                Spoken::Http2 => {
                    let io = ClientIo::new(stream, bytes, Arc::clone(&slot.activity), active);
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

/// A connection of which it is known what it speaks.
struct Begun {
    stream: ClientStream,
    /// What was read to find out; it goes to the engine.
    bytes: Vec<u8>,
    spoken: Spoken,
}

/// Finds out what a client speaks: as ALPN agreed, else by whether HTTP/2's preface comes. `None`: the client left.
async fn begin(worker: &Worker, mut stream: ClientStream) -> Option<Begun> {
    let agreed = match stream.alpn() {
        Some(tls::H2) => Some(Spoken::Http2),
        Some(_) => Some(Spoken::Http1),
        None => None,
    };
    let mut bytes = Vec::new();
    let spoken = match agreed {
        Some(spoken) => spoken,
        None => preface(worker, &mut stream, &mut bytes).await?,
    };
    Some(Begun {
        stream,
        bytes,
        spoken,
    })
}

/// Reads until it is clear whether HTTP/2's preface comes.
async fn preface(
    worker: &Worker,
    stream: &mut ClientStream,
    begun: &mut Vec<u8>,
) -> Option<Spoken> {
    loop {
        let read = poll_fn(|cx| {
            let mut scratch = worker.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            let polled = Pin::new(&mut *stream).poll_read(cx, &mut buffer);
            polled.map_ok(|()| {
                begun.extend_from_slice(buffer.filled());
                buffer.filled().len()
            })
        });
        let ended = read.await.ok()? == 0;
        let known = begun.len().min(PREFACE.len());
        if begun[..known] != PREFACE[..known] {
            return Some(Spoken::Http1);
        }
        if known == PREFACE.len() {
            return Some(Spoken::Http2);
        }
        if ended {
            return (!begun.is_empty()).then_some(Spoken::Http1);
        }
    }
}
