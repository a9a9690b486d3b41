//! Requests at endpoints that speak HTTP/2: all of a worker's to one endpoint share a connection.

use std::error::Error as _;
use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioTimer;

use super::{Aborted, LocalExecutor, RequestBody};
use crate::http::endpoint::{ConnectError, Connection, EndpointError, Failure, with_causes};
use crate::http::exchange::{Ending, Exchange, Lost, Refused};
use crate::http::io::EndpointIo;
use crate::http::reply::Problem;
use crate::http::tries::{Resend, Try};
use crate::metrics::Counted;
use crate::options::limits;
use crate::target::View;
use crate::tls;

/// A request until it is sent.
struct Unsent {
    head: Request<()>,
    body: Option<RequestBody>,
}

impl Unsent {
    /// The request for a try; what is left can be sent again if its body is kept.
    fn take(&mut self) -> Request<RequestBody> {
        let again = self.body.as_ref().and_then(RequestBody::again);
        let body = std::mem::replace(&mut self.body, again);
        let mut request = Request::new(body.unwrap_or(RequestBody::Empty));
        *request.method_mut() = self.head.method().clone();
        *request.uri_mut() = self.head.uri().clone();
        *request.version_mut() = self.head.version();
        *request.headers_mut() = self.head.headers().clone();
        request
    }

    fn resend(&self) -> Resend {
        if self.body.is_some() {
            Resend::Possible
        } else {
            Resend::Impossible
        }
    }
}

/// Asks endpoints until one answers.
///
/// # Errors
/// None does.
pub(in crate::http) async fn ask(
    mut exchange: Exchange,
    head: Request<()>,
    body: RequestBody,
) -> Result<(Response<Incoming>, Ending), Refused> {
    let mut unsent = Unsent {
        head,
        body: Some(body),
    };
    loop {
        let tried = match exchange.pick(unsent.resend()) {
            Ok(tried) => tried,
            Err(problem) => return Err(exchange.give_up(problem)),
        };
        let result = match exchange.limit() {
            None => one(&exchange, &tried, &mut unsent).await,
            Some(limit) => {
                let trying = one(&exchange, &tried, &mut unsent);
                let done = tokio::time::timeout_at(limit.at.into(), trying);
                let done = Box::pin(done).await;
                done.unwrap_or_else(|_| Err(exchange.out_of_time(limit, tried.index)))
            }
        };
        let index = tried.index;
        let problem = match result {
            Ok(response) => {
                let status = response.status().as_u16();
                return Ok((response, exchange.answered(tried, status)));
            }
            Err(Lost::Problem(problem)) => problem,
            Err(Lost::Failed(failure)) => {
                drop(tried);
                match exchange.failed(index, failure, unsent.resend()) {
                    Ok(()) => continue,
                    Err(problem) => problem,
                }
            }
        };
        return Err(exchange.give_up(problem));
    }
}

/// One try.
async fn one(
    exchange: &Exchange,
    tried: &Try,
    unsent: &mut Unsent,
) -> Result<Response<Incoming>, Lost> {
    let (port, view, index) = (&exchange.port, &exchange.view, tried.index);
    let seq = tried.in_flight.seq();
    let mut reused = true;
    let (number, connecting) = port.pool.multiplexed(seq, || {
        reused = false;
        let (view, table) = (view.clone(), Arc::clone(&port.tls));
        let counted = port.counted(&view.endpoints[index]);
        async move { connect(&table, &view, index, counted).await }
            .boxed_local()
            .shared()
    });
    let mut sender = match connecting.await {
        Ok(sender) => sender,
        Err(error) => {
            port.pool.give_up(seq, number);
            return Err(Lost::Failed(Failure::Connect { error }));
        }
    };
    let mut failed = match sender.try_send_request(unsent.take()).await {
        Ok(response) => return Ok(response),
        Err(failed) => failed,
    };
    let returned = failed.take_message();
    let error = failed.into_error();
    if let Some(request) = returned {
        unsent.body = Some(request.into_body());
        port.pool.give_up(seq, number);
        let error = EndpointError::Http2(error);
        return Err(Lost::Failed(Failure::NotSent { error }));
    }
    if is_of_client(&error) {
        return Err(Lost::Problem(Problem::request_body(&with_causes(&error))));
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
    let error = EndpointError::Http2(error);
    Err(Lost::Failed(if gone_away || refused {
        Failure::Unprocessed { error }
    } else {
        Failure::Broken { error, reused }
    }))
}

/// Whether it is the request's body that broke, not the endpoint.
fn is_of_client(error: &hyper::Error) -> bool {
    error.is_user()
        || error
            .source()
            .is_some_and(|source| source.downcast_ref::<Aborted>().is_some())
}

async fn connect(
    table: &tls::Table,
    view: &View,
    index: usize,
    counted: Option<Counted>,
) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
    let io = EndpointIo(Connection::open(table, view, index, counted).await?);
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
