//! Who gets which answer: our zone for everyone, other zones for neighbours, a refusal for the rest.

#[cfg(test)]
mod tests;
mod upstream;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use model::domain::DomainName;
use model::net::IpNet;
use model::snapshot::Snapshot;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Access;
use crate::answer::Answer;
use crate::edns::{Jar, Opt, Secret};
use crate::error::Transport;
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::query_log::{QueryLog, Source};
use crate::request::{Packet, Request};
use crate::response::{Frame, Names, absolute, limit};
use crate::reverse::Reverse;
use crate::serial::Serials;
use crate::transfer::{Asked, MAX_TRANSFERS, Transfer};
use crate::zone::Zone;

pub(crate) use upstream::Response;

/// How many names one may stand for, one after the other: more are taken for a circle.
const MAX_ALIASES: usize = 8;

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

/// What to do about a packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Nothing.
    Silence,
    /// Send this.
    Reply(Vec<u8>),
    /// Wait for [`Handler::forward`], and send what it returns.
    Forward(Box<Pending>),
    /// Send what [`Transfer::next`] returns, one after the other. For connections only.
    Transfer(Box<Transfer>),
}

/// What our own zones say to a question.
enum Own {
    Answered(ResponseCode, Vec<u8>),
    /// The name, or the last of those that it stands for, is not ours.
    Foreign {
        aliases: Vec<DomainName>,
    },
}

/// A query on its way to the upstreams.
#[derive(Debug)]
pub(crate) struct Pending {
    request: Request,
    query: Query,
    /// What the name asked for stands for; the last is to be asked for.
    aliases: Vec<DomainName>,
    client: Client,
    started: Instant,
    _permit: OwnedSemaphorePermit,
}

/// What is the same for every query.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The addresses of the zone's name server.
    pub name_servers: Vec<IpAddr>,
    /// Who says so to clients that ask; empty: nobody.
    pub nsid: Vec<u8>,
    /// Of several addresses only one is given.
    pub single_answer: bool,
    /// Whose questions about other zones are forwarded.
    pub access: Access,
    /// What `version.bind` and `version.server` say; none: such questions are refused.
    pub version: Option<String>,
    /// Who gets whole zones.
    pub transfer_to: Vec<IpNet>,
    /// Of our zones.
    pub serials: Arc<Serials>,
    /// Which queries are logged.
    pub query_log: QueryLog,
}

/// Answers packets. Shared by all listeners.
#[derive(Debug)]
pub(crate) struct Handler {
    snapshot: Arc<ArcSwap<Snapshot>>,
    settings: Settings,
    jar: Jar,
    forwarder: Arc<Forwarder>,
    metrics: Metrics,
    reverse: Reverse,
    turns: Vec<AtomicUsize>,
    transfers: Arc<Semaphore>,
}

impl Handler {
    pub(crate) fn new(
        snapshot: Arc<ArcSwap<Snapshot>>,
        settings: Settings,
        forwarder: Arc<Forwarder>,
        metrics: Metrics,
    ) -> Self {
        Handler {
            snapshot,
            settings,
            jar: Jar::new(Secret(rand::random())),
            forwarder,
            metrics,
            reverse: Reverse::default(),
            turns: (0..TURNS).map(|_| AtomicUsize::new(0)).collect(),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn forwarder(&self) -> &Arc<Forwarder> {
        &self.forwarder
    }

    pub(crate) fn reverse(&self) -> &Reverse {
        &self.reverse
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn snapshots(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.snapshot
    }

    pub(crate) fn query_log(&self) -> &QueryLog {
        &self.settings.query_log
    }

    /// Logs a query whose packet was answered.
    pub(crate) fn log(
        &self,
        packet: &[u8],
        client: &Client,
        code: ResponseCode,
        source: Source,
        took: Duration,
    ) {
        let query = match Packet::read(packet) {
            Packet::Silence => None,
            Packet::Refusal(request, _) | Packet::Request(request) => request.query,
        };
        let log = self.query_log();
        log.write(client, query.as_ref(), code, source, took);
    }

    pub(crate) fn serials(&self) -> &Serials {
        &self.settings.serials
    }

    /// Leave to transfer a zone; `None` when as many are under way as may be.
    pub(crate) fn transfer_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.transfers.clone().try_acquire_owned().ok()
    }

    /// Whether this client's questions about other zones are forwarded.
    pub(crate) fn may_recurse(&self, client: &Client) -> bool {
        self.forwarder.available()
            && self
                .settings
                .access
                .allows(client.address.ip(), client.asked)
    }

    /// Our OPT record for a client that sent one.
    pub(crate) fn opt(
        &self,
        dnssec_ok: bool,
        nsid: bool,
        cookie: Option<&[u8]>,
        client: &Client,
    ) -> Opt<'_> {
        let nsid = nsid.then_some(&*self.settings.nsid);
        Opt {
            dnssec_ok,
            nsid: nsid.filter(|nsid| !nsid.is_empty()),
            cookie: cookie.and_then(|cookie| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let seconds = now.map_or(0, |now| now.as_secs());
                self.jar.cookie(cookie, client.address.ip(), seconds)
            }),
        }
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
        let mut source = Source::Nobody;
        let (code, bytes) = match (refusal, &request.query) {
            (Some(code), _) => (code, frame.code(code)),
            (None, None) => (ResponseCode::FormErr, frame.code(ResponseCode::FormErr)),
            (None, Some(query)) if query.query_class == DNSClass::CH => self.chaos(&frame, query),
            (None, Some(query)) if is_transfer(query) => {
                match self.transfer(&frame, &request, query, client) {
                    Asked::Reply(code, bytes) => (code, bytes),
                    Asked::Zone(transfer) => {
                        let code = ResponseCode::NoError;
                        self.count(&request, &client, code, Source::Zone, started);
                        return Verdict::Transfer(transfer);
                    }
                }
            }
            (None, Some(query)) => match self.own(&frame, query, &client) {
                Own::Answered(code, bytes) => {
                    source = Source::Zone;
                    (code, bytes)
                }
                Own::Foreign { aliases } if aliases.is_empty() && self.is_trace(query) => {
                    (ResponseCode::Refused, frame.code(ResponseCode::Refused))
                }
                Own::Foreign { aliases } => match self.admit(&client) {
                    Ok(permit) => {
                        return Verdict::Forward(Box::new(Pending {
                            query: query.clone(),
                            aliases,
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
        self.count(&request, &client, code, source, started);
        Verdict::Reply(bytes)
    }

    pub(crate) fn frame<'a>(&'a self, request: &'a Request, client: &Client) -> Frame<'a> {
        let edns = request.edns.as_ref();
        Frame {
            request,
            recursion: self.may_recurse(client),
            limit: limit(client.transport, edns.map(|edns| edns.size)),
            single: self.settings.single_answer,
            opt: edns
                .map(|edns| self.opt(edns.dnssec_ok, edns.nsid, edns.cookie.as_deref(), client)),
        }
    }

    fn count(
        &self,
        request: &Request,
        client: &Client,
        code: ResponseCode,
        source: Source,
        started: Instant,
    ) {
        let kind = request.query.as_ref().map(|query| query.query_type.into());
        let counts = self.metrics.shared();
        counts.answered(kind, code);
        counts.took(1, started.elapsed());
        let log = self.query_log();
        if log.is_turn() {
            log.write(
                client,
                request.query.as_ref(),
                code,
                source,
                started.elapsed(),
            );
        }
    }

    fn is_trace(&self, query: &Query) -> bool {
        let name = query.name.to_bytes().unwrap_or_default();
        self.forwarder.is_own_trace(&name.to_ascii_lowercase())
    }

    /// What we say of ourselves (RFC 4892), where we are to.
    fn chaos(&self, frame: &Frame<'_>, query: &Query) -> (ResponseCode, Vec<u8>) {
        let name = query.name.to_lowercase().to_ascii();
        let text = match name.as_str() {
            "version.bind." | "version.server." => self.settings.version.clone(),
            "id.server." | "hostname.bind." => {
                let nsid = String::from_utf8_lossy(&self.settings.nsid);
                Some(nsid.into_owned()).filter(|nsid| !nsid.is_empty())
            }
            _ => None,
        };
        match text {
            Some(text) => (ResponseCode::NoError, frame.chaos(query, text)),
            None => (ResponseCode::Refused, frame.code(ResponseCode::Refused)),
        }
    }

    fn own(&self, frame: &Frame<'_>, query: &Query, client: &Client) -> Own {
        let snapshot = self.snapshot.load();
        let zone = Zone {
            snapshot: &snapshot,
            reverse: &self.reverse,
            name_servers: &self.settings.name_servers,
        };
        let failed = || {
            let code = ResponseCode::ServFail;
            Own::Answered(code, frame.code(code))
        };
        let mut name = query.name.to_lowercase();
        let mut aliases = Vec::new();
        let answer = loop {
            let labels: Vec<&[u8]> = name.iter().collect();
            let alias = match zone.answer(&labels, query.query_type) {
                Answer::Alias(alias) => alias,
                Answer::Foreign if aliases.is_empty() => return Own::Foreign { aliases },
                Answer::Foreign
                    if frame.request.metadata.recursion_desired && self.may_recurse(client) =>
                {
                    return Own::Foreign { aliases };
                }
                answer => break answer,
            };
            if aliases.len() == MAX_ALIASES {
                return failed();
            }
            let Some(target) = absolute(&alias) else {
                return failed();
            };
            name = target;
            aliases.push(alias);
        };
        let Some(names) = Names::new(&snapshot.mesh.zone, self.serials().of(snapshot.epoch)) else {
            return failed();
        };
        let labels: Vec<&[u8]> = name.iter().collect();
        let turn = self.turn(&labels, query.query_type);
        let (code, bytes) = frame.answer(query, &aliases, &answer, &names, turn);
        Own::Answered(code, bytes)
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
        let ip = client.address.ip();
        if !self.settings.access.allows(ip, client.asked) {
            return Err(ResponseCode::Refused);
        }
        if !self.forwarder.available() {
            return Err(ResponseCode::ServFail);
        }
        self.forwarder.permit().ok_or(ResponseCode::ServFail)
    }
}

fn is_transfer(query: &Query) -> bool {
    matches!(query.query_type, RecordType::AXFR | RecordType::IXFR)
}
