//! A request and its response: the one place where a request is picked for (by its [`Tries`]), timed and counted.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::Either;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::attempt::{Answer, Lease};
use super::body::{End, ResponseBody};
use super::headers::{self, Prepared};
use super::reply::{Problem, Style};
use super::tries::Tries;
use super::upgrade;
use crate::connections::Slot;
use crate::metrics::Spoken;
use crate::target::{Binding, InFlight, Port};
use crate::worker::Worker;

/// A client's connection, as its requests see it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) worker: Rc<Worker>,
    slot: Rc<Slot>,
    binding: Binding,
    /// Without the IPv4 in IPv6 of a dual-stack listener.
    ip: IpAddr,
    spoken: Spoken,
    forwarded_for: OnceCell<HeaderValue>,
}

impl Client {
    pub(super) fn new(
        worker: Rc<Worker>,
        slot: Rc<Slot>,
        binding: Binding,
        peer: SocketAddr,
        spoken: Spoken,
    ) -> Self {
        let ip = peer.ip().to_canonical();
        Client {
            worker,
            slot,
            binding,
            ip,
            spoken,
            forwarded_for: OnceCell::new(),
        }
    }

    /// The client's address as a header's value, written once per connection.
    pub(super) fn address(&self) -> &HeaderValue {
        self.forwarded_for.get_or_init(|| {
            HeaderValue::try_from(self.ip.to_string()).expect("an address is visible ASCII")
        })
    }
}

/// Counts a request: as in flight on its connection until it is dropped, its status once, its duration at the end.
#[derive(Debug)]
struct Record {
    client: Rc<Client>,
    port: Option<Rc<Port>>,
    started: Instant,
    answered: bool,
}

/// nginx's code for a client that went away before it was answered.
const CLIENT_GONE: u16 = 499;

impl Record {
    fn begin(client: &Rc<Client>) -> Self {
        client.slot.begin();
        Record {
            client: Rc::clone(client),
            port: None,
            started: Instant::now(),
            answered: false,
        }
    }

    fn answered(&mut self, status: u16) {
        self.answered = true;
        if let Some(http) = self.port.as_ref().and_then(|port| port.stats.http.as_ref()) {
            http.answered(self.client.spoken, status);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.client.slot.end();
        if !self.answered {
            self.answered(CLIENT_GONE);
        }
        if let Some(http) = self.port.as_ref().and_then(|port| port.stats.http.as_ref()) {
            http.took(self.started.elapsed());
        }
    }
}

/// What a response's body holds on to: the request counts as in flight until the body has ended or was dropped, and
/// the connection is free for another only when it has ended.
#[derive(Debug)]
pub(super) struct Ending {
    record: Record,
    port: Rc<Port>,
    in_flight: InFlight,
    lease: Lease,
}

impl End for Ending {
    fn ended(self) {
        let worker = &self.record.client.worker;
        self.lease.give_back(worker, self.port, &self.in_flight);
    }
}

/// The body of what a client gets.
pub(super) type Body = ResponseBody<Ending>;

/// Answers a request, always.
///
/// What needs no waiting is done before the future is made: the engine moves that into place for each request, so it is
/// kept small.
pub(super) fn exchange(
    client: Rc<Client>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    match Exchange::begin(client, request) {
        Ok(exchange) => Either::Left(exchange.run()),
        Err(response) => Either::Right(ready(Ok(*response))),
    }
}

/// A request that can be sent.
struct Exchange {
    style: Style,
    record: Record,
    port: Rc<Port>,
    limit: Option<Duration>,
    tries: Tries,
    upgrade: Option<OnUpgrade>,
}

impl Exchange {
    /// Finds out what the request is for, and makes it one for endpoints.
    ///
    /// # Errors
    /// The answer to a request that goes nowhere.
    fn begin(client: Rc<Client>, request: Request<Incoming>) -> Result<Self, Box<Response<Body>>> {
        let style = Style::of(&request);
        let first = client.slot.requests() == 0;
        let mut record = Record::begin(&client);
        let Some((port, view)) = client.binding.resolve(&client.worker) else {
            let problem = Problem::no_service(client.binding.key());
            return Err(Box::new(problem.response(style)));
        };
        record.port = Some(Rc::clone(&port));
        client.slot.set_idle(view.idle_timeout);
        match headers::prepare(&client, view.upstream, request) {
            Err(problem) => Err(Box::new(answered(record, problem, style))),
            Ok(Prepared { request, upgrade }) => {
                Port::deposit(&view);
                let limit = view.request_timeout;
                let tries = Tries::new(Rc::clone(&port), view, first, request);
                Ok(Exchange {
                    style,
                    record,
                    port,
                    limit,
                    tries,
                    upgrade,
                })
            }
        }
    }

    // Not an `async fn`: its future would hold `self` twice, as argument and as variable.
    #[expect(clippy::manual_async_fn, reason = "half the size")]
    fn run(mut self) -> impl Future<Output = Result<Response<Body>, Infallible>> {
        async move {
            let result = match self.limit {
                None => self.tries.run().await,
                Some(limit) => {
                    let timeout = Box::pin(tokio::time::timeout(limit, self.tries.run()));
                    let timeout = timeout.await;
                    timeout.unwrap_or_else(|_| Err(Problem::timeout(self.port.key(), limit)))
                }
            };
            Ok(match result {
                Ok((answer, in_flight)) => self.respond(answer, in_flight),
                Err(problem) => answered(self.record, problem, self.style),
            })
        }
    }

    fn respond(self, answer: Answer, in_flight: InFlight) -> Response<Body> {
        let Exchange {
            style,
            mut record,
            port,
            upgrade,
            ..
        } = self;
        let Answer {
            mut response,
            lease,
        } = answer;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client_side) = upgrade else {
                return answered(record, Problem::unasked_upgrade(port.key()), style);
            };
            record.answered(status.as_u16());
            return upgrade::tunnel(&record.client, port, in_flight, client_side, response);
        }
        headers::strip(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        response.extensions_mut().clear();
        record.answered(status.as_u16());
        let ending = Ending {
            record,
            port,
            in_flight,
            lease,
        };
        response.map(|incoming| ResponseBody::stream(incoming, ending))
    }
}

/// Counts a problem and makes it the response.
fn answered(mut record: Record, problem: Problem, style: Style) -> Response<Body> {
    let status = problem.status.as_u16();
    record.answered(status);
    tracing::debug!(service = %record.client.binding.key(), status, problem.text, "answered");
    problem.response(style)
}
