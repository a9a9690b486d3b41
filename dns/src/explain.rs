//! What somebody would be answered, where from, and why: the listeners' own way, told in words.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use model::name::ServiceKey;
use model::snapshot::{Freshness, Snapshot};

use crate::error::Transport;
use crate::forward::{Asker, Flags, Hit, Key};
use crate::handler::{Client, Handler, Pending, Response, Verdict};
use crate::metrics::code_label;
use crate::query_log::Source;
use crate::response::MAX_DATAGRAM;
use crate::zone::{self, Named};

/// A question that can't be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Too long, or with labels that no name has.
    #[error("`{0}` is not a domain name")]
    Name(String),
    /// As `A`, `SRV` or `TYPE65`.
    #[error("`{0}` is not a type of record that can be asked for")]
    Kind(String),
}

/// What a question would be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// In full, with a dot at its end.
    pub name: String,
    /// As `A`.
    pub kind: String,
    /// As `NXDOMAIN`.
    pub rcode: &'static str,
    /// Where the answer comes from.
    pub source: Source,
    /// Which services made it.
    pub services: Vec<ServiceKey>,
    /// Which upstream said so, now or when it was kept.
    pub upstream: Option<SocketAddr>,
    /// Who is asked about a name that is not ours, and whether each answers.
    pub upstreams: Vec<(SocketAddr, bool)>,
    /// Records that answer, with seconds that they may be kept.
    pub answers: Vec<Line>,
    /// Records that say who is responsible.
    pub authorities: Vec<Line>,
    /// Addresses of names that the answers mention.
    pub additionals: Vec<Line>,
    /// Why, where the code or the answers alone don't say.
    pub reason: String,
    /// What the name may have been meant to be.
    pub hints: Vec<String>,
    /// How long it took.
    pub micros: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whose it is.
    pub name: String,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// As `A`.
    pub kind: String,
    /// In the notation of zone files.
    pub data: String,
}

impl From<&Record> for Line {
    fn from(record: &Record) -> Self {
        Line {
            name: record.name.to_string(),
            ttl: record.ttl,
            kind: record.record_type().to_string(),
            data: record.data.to_string(),
        }
    }
}

/// Answers as the listeners do, and says why. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Explainer {
    handler: Arc<Handler>,
}

impl Explainer {
    pub(crate) fn new(handler: Arc<Handler>) -> Self {
        Explainer { handler }
    }

    /// What a client at `from` would be answered. Asks upstreams where a client's question would, and is counted as one.
    ///
    /// # Errors
    /// [`ExplainError`] where there is nothing to ask.
    pub async fn explain(
        &self,
        name: &str,
        kind: &str,
        from: IpAddr,
    ) -> Result<Explained, ExplainError> {
        let mut query_name = Name::from_ascii(name)
            .map_err(|_| ExplainError::Name(name.chars().take(300).collect()))?;
        query_name.set_fqdn(true);
        let kind: RecordType = kind_of(kind)
            .filter(|kind| !is_meta(*kind))
            .ok_or_else(|| ExplainError::Kind(kind.chars().take(40).collect()))?;
        let query = Query::query(query_name, kind);
        let client = Client {
            address: SocketAddr::new(from, 0),
            asked: IpAddr::from([127, 0, 0, 1]),
            // No answer is cut short.
            transport: Transport::Tcp,
        };
        let began = Instant::now();
        let asked = self.ask(&query, client).await;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(self.told(&query, client, asked, micros))
    }

    async fn ask(&self, query: &Query, client: Client) -> Response {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        message.set_edns(edns);
        let failed = Response {
            code: ResponseCode::ServFail,
            bytes: Vec::new(),
            source: Source::Nobody,
            upstream: None,
        };
        let Ok(packet) = message.to_bytes() else {
            return failed;
        };
        match self.handler.decide(&packet, client) {
            Verdict::Reply(bytes) => Response {
                source: Source::Zone,
                bytes,
                ..failed
            },
            Verdict::Forward(pending) => match self.kept(query) {
                Some((hit, bytes)) => Response {
                    code: hit.stored.code(),
                    source: hit.age.map_or(Source::Stale, |_| Source::Cache),
                    upstream: hit.stored.upstream(),
                    bytes,
                },
                None => self.forward(&pending).await,
            },
            // Nothing that is asked here has no answer, and types of transfers are not.
            Verdict::Silence | Verdict::Transfer(_) => failed,
        }
    }

    async fn forward(&self, pending: &Pending) -> Response {
        self.handler.ask_upstreams(pending).await
    }

    /// What the threads that answer would take out of the cache.
    fn kept(&self, query: &Query) -> Option<(Hit, Vec<u8>)> {
        let question = query.to_bytes().ok()?;
        let name = wire_name(&query.name)?;
        let flags = Flags {
            recursion_desired: true,
            ..Flags::default()
        };
        let key = Key {
            name: &name,
            kind: query.query_type.into(),
            flags,
        };
        let hit = self.handler.forwarder().cached(&key)?;
        let asker = Asker {
            id: [0, 0],
            question: &question,
            recursion_desired: true,
            checking_disabled: false,
            limit: u16::MAX.into(),
            opt: None,
        };
        let bytes = hit.stored.to_vec(&asker, hit.age)?;
        Some((hit, bytes))
    }

    fn told(&self, query: &Query, client: Client, asked: Response, micros: u64) -> Explained {
        let snapshot = self.handler.snapshots().load_full();
        let message = Message::from_vec(&asked.bytes).ok();
        let code = message
            .as_ref()
            .map_or(asked.code, |message| message.metadata.response_code);
        let lower = query.name.to_lowercase();
        let labels: Vec<&[u8]> = lower.iter().collect();
        let named = zone::named(&snapshot, &labels);
        let own = named.is_some() || is_own_reverse(&snapshot, &labels);
        let lines = |records: Option<&Vec<Record>>| -> Vec<Line> {
            records.into_iter().flatten().map(Line::from).collect()
        };
        let answers = lines(message.as_ref().map(|m| &m.answers));
        let source = match (code, own) {
            (ResponseCode::Refused | ResponseCode::ServFail, _) => Source::Nobody,
            _ => asked.source,
        };
        let failed = code == ResponseCode::ServFail && !own;
        let forwards = failed || asked.source != Source::Zone;
        let upstreams = match wire_name(&query.name) {
            Some(name) if forwards => self.handler.forwarder().servers_of(&name),
            _ => Vec::new(),
        };
        let mut services = named.as_ref().map(Named::services).unwrap_or_default();
        if named.is_none() && asked.source == Source::Zone {
            services = self.pointed_at(&snapshot, &labels);
        }
        let reason = match code {
            ResponseCode::Refused => self.refusal(client),
            ResponseCode::ServFail => self.failure(&snapshot, own, &upstreams),
            _ if !answers.is_empty() => String::new(),
            code => match named {
                Some(named) => {
                    let absent = code == ResponseCode::NXDomain;
                    named.reason(&snapshot, absent, query.query_type)
                }
                None if own && services.is_empty() => "no service has this address".to_owned(),
                None => String::new(),
            },
        };
        let hints = match answers.is_empty() || asked.source != Source::Zone {
            true => hints(&snapshot, &lower),
            false => Vec::new(),
        };
        Explained {
            name: query.name.to_string(),
            kind: query.query_type.to_string(),
            rcode: code_label(code),
            source,
            services,
            upstream: asked.upstream,
            upstreams,
            authorities: lines(message.as_ref().map(|m| &m.authorities)),
            additionals: lines(message.as_ref().map(|m| &m.additionals)),
            answers,
            reason,
            hints,
            micros,
        }
    }

    /// The services that a reverse name leads to.
    fn pointed_at(&self, snapshot: &Snapshot, labels: &[&[u8]]) -> Vec<ServiceKey> {
        let name = crate::reverse::ReverseName::parse(labels);
        let Some(name) = name.filter(|name| name.whole() && !name.strange) else {
            return Vec::new();
        };
        match snapshot.service_at(name.address) {
            Some(view) => vec![view.key.clone()],
            None => {
                let all = self.handler.reverse().services_at(snapshot, name.address);
                all.into_iter().map(|(key, _)| key).collect()
            }
        }
    }

    fn refusal(&self, client: Client) -> String {
        let ip = client.address.ip();
        let access = &self.handler.settings().access;
        if !access.allows(ip, client.asked) {
            return format!(
                "{ip} may not ask about other zones: that is for {} (dns.clients)",
                access.in_words()
            );
        }
        "no such question is answered".to_owned()
    }

    fn failure(&self, snapshot: &Snapshot, own: bool, upstreams: &[(SocketAddr, bool)]) -> String {
        if own && snapshot.freshness == Freshness::Unsynced {
            return "nothing was read from the registry yet, so nothing can be denied".to_owned();
        }
        if own && upstreams.is_empty() {
            return "the name stands for one that leads back to itself".to_owned();
        }
        match upstreams {
            [] => "there is no upstream to ask (dns.upstreams, dns.zones)".to_owned(),
            _ => "no upstream answers, or too many questions wait for one".to_owned(),
        }
    }
}

fn is_own_reverse(snapshot: &Snapshot, labels: &[&[u8]]) -> bool {
    let Some(name) = crate::reverse::ReverseName::parse(labels) else {
        return false;
    };
    let ranges = &snapshot.mesh.vip_ranges;
    ranges.iter().any(|range| name.cut_within(range).is_some())
}

fn wire_name(name: &Name) -> Option<Vec<u8>> {
    let bytes = name.to_bytes().ok()?;
    Some(bytes.to_ascii_lowercase())
}

fn kind_of(text: &str) -> Option<RecordType> {
    let text = text.to_ascii_uppercase();
    match text.strip_prefix("TYPE") {
        Some(number) => Some(RecordType::from(number.parse::<u16>().ok()?)),
        None => text.parse().ok(),
    }
}

/// Types that are no records (RFC 6895, 3.1), but for ANY.
fn is_meta(kind: RecordType) -> bool {
    let number = u16::from(kind);
    kind != RecordType::ANY && matches!(number, 0 | 41 | 128..=255)
}

/// Names that a resolver with a search list would have asked for, as far as services have them.
fn hints(snapshot: &Snapshot, name: &Name) -> Vec<String> {
    const MOST: usize = 5;
    let zone = &snapshot.mesh.zone;
    let labels: Vec<String> = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).into_owned())
        .collect();
    let text = labels.join(".");
    let hint = |search: String, ndots: usize| {
        let options = match ndots {
            // What resolvers do without being told.
            1 => String::new(),
            _ => format!(" and `options ndots:{ndots}`"),
        };
        format!(
            "with `search {search}`{options} in its resolv.conf, a container would get {text}.{search}"
        )
    };
    match labels.as_slice() {
        [service] => {
            let named = |key: &&ServiceKey| key.name.as_str() == *service;
            let mut keys: Vec<&ServiceKey> = snapshot.services.keys().filter(named).collect();
            keys.sort_unstable();
            let keys = keys.into_iter().take(MOST);
            keys.map(|key| hint(format!("{}.svc.{zone}", key.namespace), 1))
                .collect()
        }
        [service, namespace, rest @ ..] => {
            let key = format!("{namespace}/{service}").parse::<ServiceKey>().ok();
            let there = key.is_some_and(|key| snapshot.service(&key).is_some());
            match rest {
                [] if there => vec![hint(format!("svc.{zone}"), 2)],
                [svc] if there && svc == "svc" => vec![hint(zone.clone(), 3)],
                _ => Vec::new(),
            }
        }
        [] => Vec::new(),
    }
}
