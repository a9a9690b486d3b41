//! Who gets which answer: our zone for everyone, other zones for neighbours, a refusal for the rest.

#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use model::domain::DomainName;
use model::snapshot::Snapshot;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use crate::access::Access;
use crate::answer::Answer;
use crate::edns::{Jar, Opt, Secret};
use crate::error::Transport;
use crate::forward::{Asker, Flags, ForwardError, Forwarder, Key};
use crate::metrics::Metrics;
use crate::request::{Packet, Request};
use crate::response::{Frame, Names, absolute, limit};
use crate::reverse::Reverse;
use crate::zone::Zone;

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
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn forwarder(&self) -> &Arc<Forwarder> {
        &self.forwarder
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn snapshots(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.snapshot
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
        let (code, bytes) = match (refusal, &request.query) {
            (Some(code), _) => (code, frame.code(code)),
            (None, None) => (ResponseCode::FormErr, frame.code(ResponseCode::FormErr)),
            (None, Some(query)) if query.query_class == DNSClass::CH => self.chaos(&frame, query),
            (None, Some(query)) => match self.own(&frame, query, &client) {
                Own::Answered(code, bytes) => (code, bytes),
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
        self.count(&request, code, started);
        Verdict::Reply(bytes)
    }

    /// Asks the upstreams.
    pub(crate) async fn forward(&self, pending: Box<Pending>) -> Vec<u8> {
        let Pending {
            request,
            query,
            aliases,
            client,
            started,
            _permit,
        } = *pending;
        let frame = self.frame(&request, &client);
        let asked = match aliases.last() {
            None => self.ask(&frame, &query).await,
            Some(alias) => self.follow(&frame, &query, &aliases, alias).await,
        };
        let (code, bytes) = match asked {
            Ok(response) => response,
            Err(error) => {
                debug!(%query, %error, "dns query not answered by any upstream");
                let code = ResponseCode::ServFail;
                (code, frame.code(code))
            }
        };
        self.count(&request, code, started);
        bytes
    }

    fn frame<'a>(&'a self, request: &'a Request, client: &Client) -> Frame<'a> {
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

    fn count(&self, request: &Request, code: ResponseCode, started: Instant) {
        let kind = request.query.as_ref().map(|query| query.query_type.into());
        let counts = self.metrics.shared();
        counts.answered(kind, code);
        counts.took(1, started.elapsed());
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

    async fn ask(
        &self,
        frame: &Frame<'_>,
        query: &Query,
    ) -> Result<(ResponseCode, Vec<u8>), ForwardError> {
        let question = query.to_bytes().map_err(|_| ForwardError::NoAnswer)?;
        let name = question[..question.len() - 4].to_ascii_lowercase();
        let metadata = &frame.request.metadata;
        let edns = frame.request.edns.as_ref();
        let key = Key {
            name: &name,
            kind: query.query_type.into(),
            flags: Flags {
                recursion_desired: metadata.recursion_desired,
                checking_disabled: metadata.checking_disabled,
                authentic_data: metadata.authentic_data,
                dnssec_ok: edns.is_some_and(|edns| edns.dnssec_ok),
            },
        };
        let asker = Asker {
            id: metadata.id.to_be_bytes(),
            question: &question,
            recursion_desired: metadata.recursion_desired,
            checking_disabled: metadata.checking_disabled,
            limit: frame.limit.into(),
            opt: frame.opt,
        };
        let (stored, age) = self.forwarder.resolve(&key).await?;
        let bytes = stored.to_vec(&asker, age).ok_or(ForwardError::NoAnswer)?;
        Ok((stored.code(), bytes))
    }

    /// Asks for what the last alias has.
    async fn follow(
        &self,
        frame: &Frame<'_>,
        query: &Query,
        aliases: &[DomainName],
        alias: &DomainName,
    ) -> Result<(ResponseCode, Vec<u8>), ForwardError> {
        let name = absolute(alias).ok_or(ForwardError::NoAnswer)?;
        let target = Query::query(name, query.query_type);
        let frame_of_alias = Frame {
            limit: u16::MAX,
            opt: None,
            ..*frame
        };
        let (_, bytes) = self.ask(&frame_of_alias, &target).await?;
        let message = Message::from_vec(&bytes).map_err(|_| ForwardError::NoAnswer)?;
        Ok(frame.answer_of_upstream(query, aliases, message))
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
        let Some(names) = Names::new(&snapshot.mesh.zone, snapshot.revision) else {
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
