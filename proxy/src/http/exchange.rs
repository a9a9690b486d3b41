//! A request and its response, whatever either side speaks: **the one seam where a request is picked for, retried, timed
//! and counted**. The engines (`h1`, `h2`) move its bytes and ask here what to do.
//!
//! ```text
//! Exchange::begin ─► pick ─► (engine: connect, send) ─► failed ─► pick …
//!                                                    └► answered ─► Ending, until the body has ended
//! ```
//!
//! Where later rooms stand: routes, policy and rate limits are steps of [`Exchange::begin`]; affinity and zones belong to
//! [`pick::pick`](crate::pick::pick); ejection counts in [`Exchange::failed`] and [`Exchange::answered`].

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::endpoint::{EndpointError, Failure};
use super::message::Forwarded;
use super::reply::{Problem, Style};
use super::tries::{Resend, Tries, Try};
use crate::connections::{Kind, Slot};
use crate::metrics::{Counted, Spoken};
use crate::target::{Binding, InFlight, Port, View};
use crate::worker::Worker;

/// A client's connection, as its requests see it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) worker: Rc<Worker>,
    pub(super) slot: Rc<Slot>,
    binding: Binding,
    /// Without the IPv4 in IPv6 of a dual-stack listener.
    ip: IpAddr,
    spoken: Cell<Spoken>,
    https: bool,
    trusted: bool,
    address: OnceCell<Box<str>>,
}

impl Client {
    pub(super) fn new(
        worker: Rc<Worker>,
        slot: Rc<Slot>,
        binding: Binding,
        peer: SocketAddr,
        https: bool,
    ) -> Self {
        let ip = peer.ip().to_canonical();
        let trusted = worker.forwarding.trusts(ip);
        Client {
            worker,
            slot,
            binding,
            ip,
            spoken: Cell::new(Spoken::Http1),
            https,
            trusted,
            address: OnceCell::new(),
        }
    }

    /// It turned out to speak HTTP/2.
    pub(super) fn speaks_http2(&self) {
        self.spoken.set(Spoken::Http2);
        self.slot.set_kind(Kind::Http2);
    }

    /// What endpoints are told of this client.
    pub(super) fn forwarded(&self) -> Forwarded<'_> {
        let forwarding = &self.worker.forwarding;
        let address = self.address.get_or_init(|| self.ip.to_string().into());
        Forwarded {
            address,
            https: self.https,
            trusted: self.trusted,
            standard: forwarding.forwarded,
            via: forwarding.via,
            request_id: forwarding.request_id.then(|| self.worker.random_id()),
            trace: forwarding
                .start_traces
                .then(|| (self.worker.random_id(), self.worker.random_id() as u64)),
        }
    }
}

/// What there is to know of a request before it goes anywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) idempotent: bool,
    pub(super) style: Style,
    /// How long the client itself will wait, if it says so.
    pub(super) patience: Option<Duration>,
}

/// Counts a request: as in flight on its connection until it is dropped, its status once, its duration at the end.
#[derive(Debug)]
struct Record {
    client: Rc<Client>,
    port: Option<Rc<Port>>,
    started: Instant,
    answered: bool,
    /// The endpoint that answered, and when it was asked.
    endpoint: Option<(Counted, Instant)>,
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
            endpoint: None,
        }
    }

    fn answered(&mut self, status: u16) {
        self.answered = true;
        if let Some(http) = self.port.as_ref().and_then(|port| port.stats.http.as_ref()) {
            http.answered(self.client.spoken.get(), status);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.client.slot.end();
        if !self.answered {
            self.answered(CLIENT_GONE);
        }
        // One look at the clock for both.
        let now = Instant::now();
        if let Some(http) = self.port.as_ref().and_then(|port| port.stats.http.as_ref()) {
            http.took(now.duration_since(self.started));
        }
        if let Some((endpoint, since)) = &self.endpoint {
            endpoint.took(now.duration_since(*since));
        }
    }
}

/// A request without an answer yet.
#[derive(Debug)]
pub(super) struct Exchange {
    record: Record,
    pub(super) style: Style,
    pub(super) port: Rc<Port>,
    pub(super) view: View,
    /// For all tries together: as the service says, or sooner when the client does not wait that long.
    within: Option<Duration>,
    tries: Tries,
    /// An endpoint was picked before.
    again: bool,
}

impl Exchange {
    /// Finds out what the request is for.
    ///
    /// # Errors
    /// The answer to a request that goes nowhere; it is counted.
    pub(super) fn begin(client: &Rc<Client>, asked: Asked) -> Result<Self, Refused> {
        let first = client.slot.requests() == 0;
        let mut record = Record::begin(client);
        let Some((port, view)) = client.binding.resolve(&client.worker) else {
            let problem = Problem::no_service(client.binding.key());
            return Err(Refused::new(record, problem, asked.style));
        };
        record.port = Some(Rc::clone(&port));
        client.slot.set_idle(view.idle_timeout);
        Port::deposit(&view);
        let waits = [view.request_timeout, asked.patience];
        Ok(Exchange {
            record,
            style: asked.style,
            within: waits.into_iter().flatten().min(),
            tries: Tries::new(Rc::clone(&port), view.clone(), first, asked.idempotent),
            port,
            view,
            again: false,
        })
    }

    /// A request that is wrong in itself: counted for the service that it was meant for.
    pub(super) fn refuse(client: &Rc<Client>, problem: Problem, style: Style) -> Refused {
        let mut record = Record::begin(client);
        record.port = client.binding.resolve(&client.worker).map(|(port, _)| port);
        Refused::new(record, problem, style)
    }

    pub(super) fn client(&self) -> &Rc<Client> {
        &self.record.client
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.record.client.worker
    }

    /// When a try that begins now must have brought the response's head; most services set no limit.
    pub(super) fn limit(&self) -> Option<Limit> {
        let whole = self.within.map(|limit| Limit {
            at: self.record.started + limit,
            limit,
            of_try: false,
        });
        let one = self.view.per_try_timeout.map(|limit| Limit {
            at: Instant::now() + limit,
            limit,
            of_try: true,
        });
        match (whole, one) {
            (Some(whole), Some(one)) if whole.at <= one.at => Some(whole),
            (whole, one) => one.or(whole),
        }
    }

    /// Whom to ask now.
    ///
    /// # Errors
    /// There is nobody, or nobody left to ask.
    pub(super) fn pick(&mut self, resend: Resend) -> Result<Try, Problem> {
        // The first is asked at once: no need to look at the clock again.
        let since = match std::mem::replace(&mut self.again, true) {
            false => self.record.started,
            true => Instant::now(),
        };
        self.tries.pick(resend, since)
    }

    /// How a try ends whose time is over.
    pub(super) fn out_of_time(&self, limit: Limit, index: usize) -> Lost {
        if limit.of_try {
            let (error, reused) = (EndpointError::PerTry(limit.limit), false);
            return Lost::Failed(Failure::Broken { error, reused });
        }
        self.tries.unanswered(index);
        Lost::Problem(Problem::timeout(self.port.key(), limit.limit))
    }

    /// A try failed; whether another may be made.
    ///
    /// # Errors
    /// What the client is told, as none may.
    pub(super) fn failed(
        &mut self,
        index: usize,
        failure: Failure,
        resend: Resend,
    ) -> Result<(), Problem> {
        self.tries.failed(index, failure, resend)
    }

    /// The response's head came: what is left is its body.
    pub(super) fn answered(mut self, tried: Try, status: u16) -> Ending {
        self.tries.succeeded(&tried);
        self.record.answered(status);
        if let Some(counted) = self.port.counted(tried.in_flight.endpoint()) {
            counted.answered(status);
            self.record.endpoint = Some((counted, tried.since));
        }
        Ending {
            record: self.record,
            port: self.port,
            in_flight: tried.in_flight,
        }
    }

    /// The answer is one of ours.
    pub(super) fn give_up(self, problem: Problem) -> Refused {
        Refused::new(self.record, problem, self.style)
    }
}

/// What ends a try that brings no response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) at: Instant,
    limit: Duration,
    /// It ends the try only, not the request.
    of_try: bool,
}

/// How a try ends without an answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// The endpoint failed; another may do.
    Failed(Failure),
    /// It is not the endpoint's fault, or there is no time left: the client is told.
    Problem(Problem),
}

/// A request that is answered by us. It counts as in flight until this is dropped.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) problem: Problem,
    pub(super) style: Style,
    _record: Record,
}

impl Refused {
    fn new(mut record: Record, problem: Problem, style: Style) -> Self {
        let status = problem.status.as_u16();
        record.answered(status);
        tracing::debug!(service = %record.client.binding.key(), status, problem.text, "answered");
        Refused {
            problem,
            style,
            _record: record,
        }
    }
}

/// A response whose body has not ended: the request counts as in flight until this is dropped.
#[derive(Debug)]
pub(super) struct Ending {
    record: Record,
    pub(super) port: Rc<Port>,
    pub(super) in_flight: InFlight,
}

impl Ending {
    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.record.client.worker
    }

    /// The endpoint may be given more work: a connection to it is worth keeping.
    pub(super) fn may_keep(&self) -> bool {
        self.port.may_keep(self.worker(), &self.in_flight)
    }
}
