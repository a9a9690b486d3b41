//! Who gets which answer: our zone for everyone, other zones for neighbours, a refusal for the rest.

#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::RecordType;
use model::snapshot::Snapshot;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use crate::answer::Answer;
use crate::error::Transport;
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::request::{Packet, Request};
use crate::response::{Frame, Names, limit};
use crate::reverse::Reverse;
use crate::zone::Zone;

/// Rotation positions; questions that share one only disturb each other's order.
const TURNS: usize = 1024;

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub address: SocketAddr,
    /// The local address that was asked.
    pub asked: IpAddr,
    pub transport: Transport,
}

impl Client {
    /// Whether we look up other zones for this client: an open resolver is a weapon against third parties.
    fn may_recurse(&self) -> bool {
        let ip = self.address.ip().to_canonical();
        let near = match ip {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
            IpAddr::V6(v6) => {
                v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()
            }
        };
        // A program on this host that asks a public address of this host has that address as its own.
        near || ip == self.asked
    }
}

/// What to do about a packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Nothing.
    Silence,
    /// Send this.
    Reply(Vec<u8>),
    /// Wait for [`Handler::forward`], and send what it returns.
    Forward(Box<Pending>),
}

/// A query on its way to the upstreams.
#[derive(Debug)]
pub(crate) struct Pending {
    request: Request,
    query: Query,
    client: Client,
    started: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Answers packets. Shared by all listeners.
#[derive(Debug)]
pub(crate) struct Handler {
    snapshot: Arc<ArcSwap<Snapshot>>,
    name_servers: Vec<IpAddr>,
    forwarder: Forwarder,
    metrics: Metrics,
    reverse: Reverse,
    turns: Vec<AtomicUsize>,
}

impl Handler {
    pub(crate) fn new(
        snapshot: Arc<ArcSwap<Snapshot>>,
        name_servers: Vec<IpAddr>,
        forwarder: Forwarder,
        metrics: Metrics,
    ) -> Self {
        Handler {
            snapshot,
            name_servers,
            forwarder,
            metrics,
            reverse: Reverse::default(),
            turns: (0..TURNS).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Answers at once what needs no upstream.
    pub(crate) fn decide(&self, packet: &[u8], client: Client) -> Verdict {
        let started = Instant::now();
        let (request, refusal) = match Packet::read(packet) {
            Packet::Silence => return Verdict::Silence,
            Packet::Refusal(request, code) => (request, Some(code)),
            Packet::Request(request) => (request, None),
        };
        let frame = self.frame(&request, &client);
        let (code, bytes) = match (refusal, &request.query) {
            (Some(code), _) => (code, frame.code(code)),
            (None, None) => (ResponseCode::FormErr, frame.code(ResponseCode::FormErr)),
            (None, Some(query)) => match self.own(&frame, query) {
                Some(answered) => answered,
                None => match self.admit(&client) {
                    Ok(permit) => {
                        return Verdict::Forward(Box::new(Pending {
                            query: query.clone(),
                            client,
                            started,
                            _permit: permit,
                            request,
                        }));
                    }
                    Err(code) => (code, frame.code(code)),
                },
            },
        };
        self.count(&request, code, started);
        Verdict::Reply(bytes)
    }

    /// Asks the upstreams.
    pub(crate) async fn forward(&self, pending: Box<Pending>) -> Vec<u8> {
        let Pending {
            request,
            query,
            client,
            started,
            _permit,
        } = *pending;
        let limit = limit(client.transport, request.edns);
        let asked = self
            .forwarder
            .ask(&request, &query, client.transport, limit);
        let (code, bytes) = match asked.await {
            Ok(response) => response,
            Err(error) => {
                debug!(%query, %error, "dns query not answered by any upstream");
                let code = ResponseCode::ServFail;
                (code, self.frame(&request, &client).code(code))
            }
        };
        self.count(&request, code, started);
        bytes
    }

    fn frame<'a>(&self, request: &'a Request, client: &Client) -> Frame<'a> {
        Frame {
            request,
            recursion: client.may_recurse() && self.forwarder.available(),
            limit: limit(client.transport, request.edns),
        }
    }

    fn count(&self, request: &Request, code: ResponseCode, started: Instant) {
        let kind = request.query.as_ref().map(|query| query.query_type);
        self.metrics.answered(kind, code, started.elapsed());
    }

    /// `None`: the name is not ours.
    fn own(&self, frame: &Frame<'_>, query: &Query) -> Option<(ResponseCode, Vec<u8>)> {
        let snapshot = self.snapshot.load();
        let zone = Zone {
            snapshot: &snapshot,
            reverse: &self.reverse,
            name_servers: &self.name_servers,
        };
        let lower = query.name.to_lowercase();
        let labels: Vec<&[u8]> = lower.iter().collect();
        let answer = zone.answer(&labels, query.query_type);
        if answer == Answer::Foreign {
            return None;
        }
        let Some(names) = Names::new(&snapshot.mesh.zone, snapshot.revision) else {
            let code = ResponseCode::ServFail;
            return Some((code, frame.code(code)));
        };
        let turn = self.turn(&labels, query.query_type);
        Some(frame.answer(query, &answer, &names, turn))
    }

    /// Counts up for each question by itself: with one counter for all, a client that always asks for A and AAAA in
    /// turn would see every other address only.
    fn turn(&self, labels: &[&[u8]], kind: RecordType) -> usize {
        let mut hasher = DefaultHasher::new();
        (labels, u16::from(kind)).hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        self.turns[slot].fetch_add(1, Ordering::Relaxed)
    }

    /// Leave to forward this client's query, or what it gets instead.
    fn admit(&self, client: &Client) -> Result<OwnedSemaphorePermit, ResponseCode> {
        if !client.may_recurse() {
            return Err(ResponseCode::Refused);
        }
        if !self.forwarder.available() {
            return Err(ResponseCode::ServFail);
        }
        self.forwarder.permit().ok_or(ResponseCode::ServFail)
    }
}
