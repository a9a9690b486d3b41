//! `http` ports: HTTP/1.0, 1.1 and 2 from clients on one port, HTTP/1.1 or HTTP/2 to endpoints.
//!
//! # Layout
//! * this file: a client's connection, and which version it speaks
//! * `exchange`: **the seam**: the one place where a request is picked for, retried (`tries`), timed and counted
//! * `message`: HTTP/1.1 as bytes, read strictly and written anew; no I/O
//! * `h1`: clients' HTTP/1.1 connections, an engine of our own
//! * `h2`: HTTP/2 on either side, on hyper
//! * `endpoint`, `pool`: connections to endpoints, and how a try on one can fail; `flight`: a request on its way there
//! * `translate`: heads between the versions; `reply`: answers of our own; `grpc`: what gRPC says in header fields; `io`:
//!   sockets as hyper wants them

mod endpoint;
mod exchange;
mod flight;
mod grpc;
mod h1;
mod h2;
mod io;
mod message;
mod pool;
mod reply;
mod translate;
mod tries;

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::connections::{self, Kind, Slot};
use crate::metrics::Active;
use crate::stream::ClientStream;
use crate::target::{Binding, Port, View};
use crate::tls;
use crate::worker::Worker;
use exchange::Client;
use h1::{Http1, Side};
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

/// Serves a connection in a task of its own.
pub(crate) fn serve(
    worker: &Rc<Worker>,
    tcp: TcpStream,
    peer: SocketAddr,
    port: &Rc<Port>,
    view: &View,
) {
    let active = Active::new(&port.stats);
    let binding = Binding::of(port);
    let secure = view.tls.is_some();
    let idle = view.idle_timeout;
    let client = |slot: &Rc<Slot>| {
        let (worker, slot) = (Rc::clone(worker), Rc::clone(slot));
        Rc::new(Client::new(worker, slot, binding, peer, secure))
    };
    if !secure {
        return connections::spawn(worker, Kind::Http1, idle, |slot| {
            let client = client(&slot);
            let side = Side::new(ClientStream::Tcp(tcp), active, slot);
            run(Http1::new(client, side))
        });
    }
    connections::spawn(worker, Kind::Handshake, idle, |slot| {
        let (worker, port) = (Rc::clone(worker), Rc::clone(port));
        let client = client(&slot);
        async move {
            // Boxed, or every connection would hold room for its handshake as long as it lasts.
            let handshake = Box::pin(async move { tls::accept(&worker, &port, tcp, true).await });
            let Some(stream) = handshake.await else {
                return;
            };
            slot.set_kind(Kind::Http1);
            run(Http1::new(client, Side::new(stream, active, slot))).await;
        }
    });
}

/// Serves a connection to its end.
// Not an `async fn`: its future would hold the connection twice, as argument and as variable.
#[expect(clippy::manual_async_fn, reason = "half the size")]
fn run(mut http1: Http1) -> impl Future<Output = ()> {
    async move {
        match http1.run().await {
            // Boxed, so that an idle connection holds no room for its end.
            Ok(then) => Box::pin(http1.finish(then)).await,
            Err(error) => tracing::debug!(%error, "client connection broke"),
        }
    }
}
