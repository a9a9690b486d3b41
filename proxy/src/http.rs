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

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::connections::{self, Kind};
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
            let binding = Binding::of(&port);
            drop(port);
            let client = Client::new(worker, Rc::clone(&slot), binding, peer, secure);
            let client = Rc::new(client);
            let agreed = stream.alpn().map(|protocol| protocol == tls::H2);
            let side = Side::new(stream, active, slot);
            let http2 = match agreed {
                Some(true) => Ok(Some(side)),
                Some(false) => Http1::new(Rc::clone(&client), side, false).run().await,
                None => Http1::new(Rc::clone(&client), side, true).run().await,
            };
            let broke = match http2 {
                Ok(None) => None,
                Err(error) => Some(error.to_string()),
                // Boxed, or every HTTP/1.1 connection would hold room for an HTTP/2 one.
                Ok(Some(side)) => {
                    let ended = Box::pin(h2::serve(client, side)).await;
                    ended.err().map(|error| endpoint::with_causes(&error))
                }
            };
            if let Some(error) = broke {
                tracing::debug!(%peer, error, "client connection broke");
            }
        }
    });
}
