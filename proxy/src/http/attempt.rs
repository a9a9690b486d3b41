//! One try of a request at one endpoint. Beside the client's side in [`super`], the only code that knows the engine.

use std::error::Error as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use futures::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use model::service::UpstreamProtocol;

use super::LocalExecutor;
use super::body::RequestBody;
use super::io::{EndpointIo, Patience};
use super::pool::{Idle, Need};
use crate::options::limits;
use crate::sockets::{DialError, dial, unanswered};
use crate::target::{InFlight, Port, View};
use crate::worker::Worker;

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
            ConnectError::Handshake(error) => in_words(error),
        }
    }
}

/// How a try failed, by what is known of the request's fate. Where nothing was sent, the request is left in its place
/// for the next try.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection; nothing was sent.
    Connect { error: ConnectError },
    /// The connection closed before anything was sent.
    NotSent { error: hyper::Error },
    /// The endpoint said that it has not processed it: REFUSED_STREAM, or GOAWAY with a lower stream id.
    Unprocessed { error: hyper::Error },
    /// It may have been processed.
    Broken { error: hyper::Error, reused: bool },
}

/// A response's head, with its body to come.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
}

/// The connection that a response comes on.
#[derive(Debug)]
pub(super) enum Lease {
    /// This exchange has it alone until the body has ended.
    Http1(Idle),
    Http2,
}

impl Lease {
    /// Gives the connection back for the next request, once the response's body has ended.
    pub(super) fn give_back(self, worker: &Rc<Worker>, port: Rc<Port>, in_flight: &InFlight) {
        let Lease::Http1(mut idle) = self else {
            return;
        };
        if !port.may_keep(worker, in_flight) {
            return;
        }
        let seq = in_flight.seq();
        if idle.sender.is_ready() {
            port.pool.put(seq, idle, Instant::now());
        } else if !idle.sender.is_closed() {
            // The response ended before the request's body; the connection is free when that has ended too.
            drop(tokio::task::spawn_local(async move {
                if idle.sender.ready().await.is_ok() {
                    port.pool.put(seq, idle, Instant::now());
                }
            }));
        }
    }
}

/// A request until it is sent. Tries share the place, so that it isn't moved from one future into the next: the engine
/// moves an exchange's whole future into place for each request.
pub(super) type Unsent = Option<Request<RequestBody>>;

fn take(unsent: &mut Unsent) -> Request<RequestBody> {
    unsent
        .take()
        .expect("a try begins with a request: what was sent is made again before the next")
}

/// Sends the request to the endpoint and waits for the response's head.
pub(super) async fn attempt(
    port: &Port,
    view: &View,
    index: usize,
    need: Need,
    unsent: &mut Unsent,
) -> Result<Answer, Failure> {
    match view.upstream {
        UpstreamProtocol::Http1 => over_http1(port, view, index, need, unsent).await,
        UpstreamProtocol::H2c => Box::pin(over_http2(port, view, index, unsent)).await,
    }
}

async fn over_http1(
    port: &Port,
    view: &View,
    index: usize,
    need: Need,
    unsent: &mut Unsent,
) -> Result<Answer, Failure> {
    let endpoint = &view.endpoints[index];
    let pooled = port.pool.take(endpoint.load.seq, need, Instant::now());
    let reused = pooled.is_some();
    let mut idle = match pooled {
        Some(idle) => {
            idle.peek.begins_anew();
            idle
        }
        // Boxed, because most requests need no new connection.
        None => Box::pin(connect_http1(endpoint.addresses(), patience(view)))
            .await
            .map_err(|error| Failure::Connect { error })?,
    };
    let sent = idle.sender.try_send_request(take(unsent));
    match sent.await {
        Ok(response) => Ok(Answer {
            response,
            lease: Lease::Http1(idle),
        }),
        Err(mut failed) => {
            *unsent = failed.take_message();
            let error = failed.into_error();
            Err(match unsent {
                Some(_) => Failure::NotSent { error },
                None => Failure::Broken { error, reused },
            })
        }
    }
}

fn patience(view: &View) -> Patience {
    Patience {
        connect: view.connect_timeout,
        head: view.connect_timeout / 2,
        body: view.idle_timeout,
    }
}

async fn connect_http1(addresses: &[SocketAddr], patience: Patience) -> Result<Idle, ConnectError> {
    let stream = dial(addresses, patience.connect)
        .await
        .map_err(|e| ConnectError::Dial(Rc::new(e)))?;
    let (io, peek) = EndpointIo::new(stream, patience);
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(limits::H1_BUFFER_BYTES)
        .max_header_size(limits::HEAD_BYTES)
        .handshake(io)
        .await
        .map_err(|e| ConnectError::Handshake(Rc::new(e)))?;
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an endpoint broke");
        }
    }));
    Ok(Idle { sender, peek })
}

async fn over_http2(
    port: &Port,
    view: &View,
    index: usize,
    unsent: &mut Unsent,
) -> Result<Answer, Failure> {
    let endpoint = &view.endpoints[index];
    let seq = endpoint.load.seq;
    let mut reused = true;
    let (number, connecting) = port.pool.multiplexed(seq, || {
        reused = false;
        let (view, patience) = (view.clone(), patience(view));
        async move { connect_http2(view.endpoints[index].addresses(), patience).await }
            .boxed_local()
            .shared()
    });
    let mut sender = match connecting.await {
        Ok(sender) => sender,
        Err(error) => {
            port.pool.give_up(seq, number);
            return Err(Failure::Connect { error });
        }
    };
    let sent = sender.try_send_request(take(unsent)).await;
    let mut failed = match sent {
        Ok(response) => {
            return Ok(Answer {
                response,
                lease: Lease::Http2,
            });
        }
        Err(failed) => failed,
    };
    *unsent = failed.take_message();
    let error = failed.into_error();
    if unsent.is_some() {
        port.pool.give_up(seq, number);
        return Err(Failure::NotSent { error });
    }
    let h2 = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    let gone_away = h2.is_some_and(|e| {
        e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR)
    });
    let refused = h2.is_some_and(|e| {
        e.is_reset() && e.is_remote() && e.reason() == Some(h2::Reason::REFUSED_STREAM)
    });
    if gone_away {
        port.pool.give_up(seq, number);
    }
    Err(if gone_away || refused {
        Failure::Unprocessed { error }
    } else {
        Failure::Broken { error, reused }
    })
}

async fn connect_http2(
    addresses: &[SocketAddr],
    patience: Patience,
) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
    let stream = dial(addresses, patience.connect)
        .await
        .map_err(|e| ConnectError::Dial(Rc::new(e)))?;
    let (io, _) = EndpointIo::new(stream, patience);
    let (interval, answer) = limits::H2_PING;
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(interval)
        .keep_alive_timeout(answer)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::H2_SEND_BYTES)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX))
        .handshake(io)
        .await
        .map_err(|e| ConnectError::Handshake(Rc::new(e)))?;
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to an endpoint broke");
        }
    }));
    Ok(sender)
}

/// Whether a connection broke because its packets went unanswered.
pub(super) fn went_unanswered(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return unanswered(error);
        }
        cause = error.source();
    }
    false
}

/// An error of the engine with its causes, on one line.
pub(super) fn in_words(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
