//! HTTP/2, on hyper: clients' connections, and connections to endpoints.
//!
//! # Layout
//! * this file: a client's connection, and each of its requests
//! * `over_http1`: a request at endpoints that speak HTTP/1.1, and `answer`, the response's body on its way back
//! * `endpoint`: requests of either kind of client at endpoints that speak HTTP/2
//! * `body`: bodies as hyper wants them
//! * `tunnel`: WebSocket over HTTP/2 (RFC 8441)

mod answer;
mod body;
mod endpoint;
mod over_http1;
mod tunnel;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;

use super::exchange::{Asked, Client, Exchange, Refused};
use super::h1::Side;
use super::io::ClientIo;
use super::reply::{Problem, Style};
use super::translate::{self, Asking};
use crate::connections::Closing;
use crate::options::limits;
pub(super) use body::{Aborted, RequestBody, ResponseBody};
pub(super) use endpoint::ask;
use model::service::UpstreamProtocol;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // Dropping the handle detaches the task, which is what an executor is asked for.
        drop(tokio::task::spawn_local(async move { drop(future.await) }));
    }
}

/// Serves a client's connection.
pub(super) async fn serve(client: Rc<Client>, side: Side) -> hyper::Result<()> {
    client.speaks_http2();
    let slot = Rc::clone(&client.slot);
    let (stream, active, begun) = side.into_parts();
    let io = ClientIo::new(stream, begun, Arc::clone(&slot.activity), active);
    let service = service_fn(move |request| exchange(&client, request));
    let header_list = u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX);
    let connection = http2::Builder::new(LocalExecutor)
        .max_concurrent_streams(limits::H2_STREAMS)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS)
        .max_local_error_reset_streams(limits::H2_LOCAL_RESETS)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::H2_SEND_BYTES)
        .max_header_list_size(header_list)
        // WebSocket (RFC 8441).
        .enable_connect_protocol()
        // The endpoint's own date is passed on.
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut told = false;
    poll_fn(|cx| {
        slot.park(cx.waker());
        // GOAWAY loses nothing, so there is no need to wait for a request to carry the news.
        if !told && slot.closing() > Closing::No {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await
}

/// What a request becomes. Boxed once: hyper moves it into place several times.
type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Refused>>>>;

/// Answers a request, always.
fn exchange(
    client: &Rc<Client>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let mut answering = begin(client, request);
    poll_fn(move |cx| {
        let answered = match &mut answering {
            Ok(answering) => ready!(answering.as_mut().poll(cx)),
            Err(refused) => match refused.take() {
                Some(refused) => Err(refused),
                // It was answered already.
                None => return Poll::Pending,
            },
        };
        Poll::Ready(Ok(answered.unwrap_or_else(refused_as_response)))
    })
}

fn refused_as_response(refused: Refused) -> Response<ResponseBody> {
    let Refused { problem, style, .. } = refused;
    problem.http2(style).map(ResponseBody::Own)
}

/// Finds out what the request is for, and who answers it.
///
/// # Errors
/// Nobody does.
fn begin(
    client: &Rc<Client>,
    mut request: Request<Incoming>,
) -> Result<Answering, Option<Refused>> {
    let upgrade = (request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
    let (head, incoming) = request.into_parts();
    let asking = match Asking::new(head) {
        Ok(asking) => asking,
        Err(problem) => return Err(Some(Exchange::refuse(client, problem, Style::Plain))),
    };
    let style = Style::of(asking.content_type());
    let asked = Asked {
        idempotent: asking.is_idempotent(),
        style,
        patience: match style {
            Style::Grpc => asking.grpc_timeout(),
            Style::Plain => None,
        },
    };
    let exchange = Exchange::begin(client, asked).map_err(Some)?;
    Ok(match (exchange.view.upstream, upgrade) {
        (UpstreamProtocol::Http1, None) => Box::pin(over_http1::serve(exchange, asking, incoming)),
        (UpstreamProtocol::Http1, Some(upgrade)) => {
            Box::pin(tunnel::serve(exchange, asking, upgrade))
        }
        (UpstreamProtocol::H2c, None) => Box::pin(over_http2(exchange, asking, incoming)),
        (UpstreamProtocol::H2c, Some(_)) => {
            return Err(Some(exchange.give_up(Problem::no_websocket())));
        }
    })
}

async fn over_http2(
    exchange: Exchange,
    asking: Asking,
    incoming: Incoming,
) -> Result<Response<ResponseBody>, Refused> {
    let scheme = translate::scheme(&exchange.view);
    let head = match asking.http2(scheme, &exchange.client().forwarded()) {
        Ok(head) => head,
        Err(problem) => return Err(exchange.give_up(problem)),
    };
    let (response, ending) = ask(exchange, head, incoming.into()).await?;
    let (mut parts, incoming) = response.into_parts();
    parts.extensions.clear();
    Ok(Response::from_parts(
        parts,
        ResponseBody::http2(incoming, ending),
    ))
}
