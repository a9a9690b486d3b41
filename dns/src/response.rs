//! From an answer to a message that keeps to the client's size.

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Header, HeaderCounts, Message, Metadata, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use model::domain::DomainName;

use crate::answer::{Answer, Data, Host};
use crate::edns::Opt;
use crate::error::Transport;
use crate::request::Request;
use crate::zone::{SPECIFICATION, TTL};

/// The largest datagram that we send and take: it fits the smallest IPv6 MTU, so it is never fragmented.
pub(crate) const MAX_DATAGRAM: u16 = 1232;

/// What a client without EDNS takes (RFC 1035, 4.2.1).
const PLAIN_DATAGRAM: u16 = 512;

/// The most bytes that a response may have.
pub(crate) fn limit(transport: Transport, edns_size: Option<u16>) -> u16 {
    match (transport, edns_size) {
        (Transport::Tcp | Transport::Tls, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_DATAGRAM,
        (Transport::Udp, Some(size)) => size.clamp(PLAIN_DATAGRAM, MAX_DATAGRAM),
    }
}

/// What responses have in common.
pub(crate) struct Frame<'a> {
    /// What is responded to.
    pub request: &'a Request,
    /// Whether this client's other questions would be forwarded.
    pub recursion: bool,
    /// The most bytes.
    pub limit: u16,
    /// Of several addresses only one is given.
    pub single: bool,
    /// For a request that has one.
    pub opt: Option<Opt<'a>>,
}

impl Frame<'_> {
    pub(crate) fn metadata(&self, code: ResponseCode, authoritative: bool) -> Metadata {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.recursion_available = self.recursion;
        metadata.response_code = code;
        metadata.authoritative = authoritative;
        metadata
    }

    /// A response that is a code and nothing else.
    pub(crate) fn code(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(&self.metadata(code, false), [], [], [])
    }

    /// An authoritative response. The name asked for stands for the last of `aliases`, by way of those before, and `answer`
    /// is what that has; of a name that is not ours only the aliases are given. `turn` says where the records begin, so that clients which take the first spread out.
    pub(crate) fn answer(
        &self,
        query: &Query,
        aliases: &[DomainName],
        answer: &Answer,
        names: &Names,
        turn: usize,
    ) -> (ResponseCode, Vec<u8>) {
        let code = match answer {
            Answer::Foreign if !aliases.is_empty() => ResponseCode::NoError,
            Answer::Foreign | Answer::Unknown | Answer::Alias(_) => ResponseCode::ServFail,
            Answer::NoName { .. } => ResponseCode::NXDomain,
            Answer::NoData { .. } | Answer::Found { .. } => ResponseCode::NoError,
        };
        let Some((chain, owner)) = chain(query, aliases) else {
            let code = ResponseCode::ServFail;
            return (code, self.code(code));
        };
        let metadata = self.metadata(code, true);
        let bytes = match answer {
            Answer::Foreign if !aliases.is_empty() => self.encode(&metadata, chain, [], []),
            Answer::Foreign | Answer::Unknown | Answer::Alias(_) => self.code(code),
            Answer::NoName { apex } | Answer::NoData { apex } => {
                let soa = names.authority(owner.trim_to(*apex));
                self.encode(&metadata, chain, soa, [])
            }
            Answer::Found {
                answers,
                additionals,
            } => {
                let turn = turn.checked_rem(answers.len()).unwrap_or(0);
                let (head, tail) = answers.split_at(turn);
                let answers = tail.iter().chain(head);
                let address = |data: &Data| matches!(data, Data::Address(_));
                let one = self.single && answers.clone().all(address);
                let answers = answers.take(if one { 1 } else { usize::MAX });
                let answers = answers.filter_map(|data| names.record(owner.clone(), data));
                let additionals = additionals.iter().filter_map(|(host, address)| {
                    names.record(names.host(host)?, &Data::Address(*address))
                });
                self.encode(&metadata, chain.into_iter().chain(answers), [], additionals)
            }
        };
        (code, bytes)
    }

    /// As [`Frame::answer`], where an upstream knows what the last alias has.
    pub(crate) fn answer_of_upstream(
        &self,
        query: &Query,
        aliases: &[DomainName],
        upstream: Message,
    ) -> (ResponseCode, Vec<u8>) {
        let code = upstream.metadata.response_code;
        let Some((chain, _)) = chain(query, aliases) else {
            let code = ResponseCode::ServFail;
            return (code, self.code(code));
        };
        let metadata = self.metadata(code, true);
        let answers = chain.into_iter().chain(upstream.answers);
        (
            code,
            self.encode(&metadata, answers, upstream.authorities, []),
        )
    }

    /// An authoritative response with these answers.
    pub(crate) fn answered(&self, answers: Vec<Record>) -> Vec<u8> {
        self.encode(&self.metadata(ResponseCode::NoError, true), answers, [], [])
    }

    /// The answer to a question about the server itself.
    pub(crate) fn chaos(&self, query: &Query, text: String) -> Vec<u8> {
        let data = RData::TXT(TXT::new(vec![text]));
        let mut record = Record::from_rdata(query.name.clone(), 0, data);
        record.dns_class = DNSClass::CH;
        let metadata = self.metadata(ResponseCode::NoError, true);
        self.encode(&metadata, [record], [], [])
    }

    fn encode(
        &self,
        metadata: &Metadata,
        answers: impl IntoIterator<Item = Record>,
        authorities: impl IntoIterator<Item = Record>,
        additionals: impl IntoIterator<Item = Record>,
    ) -> Vec<u8> {
        let query = self.request.query.as_ref();
        let sections = Sections {
            answers,
            authorities,
            additionals,
        };
        encode(metadata, query, sections, self.opt, self.limit)
            .unwrap_or_else(|_| header_only(metadata.id))
    }
}

/// The CNAME records from the name asked for to the last of `aliases`, and that name.
fn chain(query: &Query, aliases: &[DomainName]) -> Option<(Vec<Record>, Name)> {
    let mut owner = query.name.clone();
    let mut records = Vec::with_capacity(aliases.len());
    for alias in aliases {
        let target = absolute(alias)?;
        let data = RData::CNAME(CNAME(target.clone()));
        records.push(Record::from_rdata(owner, TTL, data));
        owner = target;
    }
    Some((records, owner))
}

/// A name as messages have it.
pub(crate) fn absolute(name: &DomainName) -> Option<Name> {
    Name::from_labels(name.as_str().split('.').map(str::as_bytes)).ok()
}

/// The records of a message, made only as long as there is room.
pub(crate) struct Sections<A, N, D> {
    pub answers: A,
    pub authorities: N,
    pub additionals: D,
}

/// Writes a message of at most `limit` bytes, which are 512 or more. TC is set when anything was left out, and the OPT
/// record never is.
pub(crate) fn encode<A, N, D>(
    metadata: &Metadata,
    query: Option<&Query>,
    sections: Sections<A, N, D>,
    opt: Option<Opt<'_>>,
    limit: u16,
) -> Result<Vec<u8>, ProtoError>
where
    A: IntoIterator<Item = Record>,
    N: IntoIterator<Item = Record>,
    D: IntoIterator<Item = Record>,
{
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    let reserved = opt.map_or(0, |opt| opt.length());
    encoder.set_max_size(limit.saturating_sub(u16::try_from(reserved).unwrap_or(u16::MAX)));
    let place = encoder.place::<Header>()?;
    if let Some(query) = query {
        query.emit(&mut encoder)?;
    }
    let mut metadata = *metadata;
    let full = &mut metadata.truncation;
    let mut counts = HeaderCounts {
        queries: query.is_some().into(),
        answers: emit(&mut encoder, sections.answers, full),
        authorities: emit(&mut encoder, sections.authorities, full),
        additionals: emit(&mut encoder, sections.additionals, full),
    };
    counts.additionals += u16::from(opt.is_some());
    let code = metadata.response_code.high();
    encoder.emit_at(place, Header { metadata, counts })?;
    bytes.extend(opt.map(|opt| opt.to_vec(code)).unwrap_or_default());
    Ok(bytes)
}

/// Writes records until one does not fit, and says how many were written. Nothing is written once `full`: a later,
/// smaller record must not fill the gap that an earlier one left.
fn emit(
    encoder: &mut BinEncoder<'_>,
    records: impl IntoIterator<Item = Record>,
    full: &mut bool,
) -> u16 {
    let mut count = 0;
    for record in records {
        if *full {
            break;
        }
        let start = encoder.offset();
        if record.emit(encoder).is_err() {
            encoder.set_offset(start);
            encoder.trim();
            *full = true;
            break;
        }
        count += 1;
    }
    count
}

/// SERVFAIL without a question: what is left when a response can't be written.
fn header_only(id: u16) -> Vec<u8> {
    const RESPONSE: u8 = 0x80;
    let mut bytes = vec![0; 12];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes[2] = RESPONSE;
    bytes[3] = ResponseCode::ServFail.low();
    bytes
}

/// The names that records of the mesh's zone mention.
#[derive(Debug)]
pub(crate) struct Names {
    zone: Name,
    numbers: [u32; 5],
}

/// The numbers of an SOA record: serial, refresh, retry, expire, minimum.
pub(crate) fn soa_numbers(serial: u32) -> [u32; 5] {
    // A secondary is as far behind as anybody who keeps an answer, and no further.
    const REFRESH: u32 = TTL;
    const RETRY: u32 = TTL;
    const EXPIRE: u32 = 86_400;
    [serial, REFRESH, RETRY, EXPIRE, TTL]
}

impl Names {
    /// `None` when the zone is no domain name, or one too long for names below it.
    pub(crate) fn new(zone: &str, serial: u32) -> Option<Self> {
        let zone = Name::from_labels(zone.split('.').map(str::as_bytes)).ok()?;
        let names = Names {
            zone,
            numbers: soa_numbers(serial),
        };
        names.host(&Host::NameServer)?;
        Some(names)
    }

    pub(crate) fn below(&self, labels: &[String]) -> Option<Name> {
        let labels = labels.iter().map(String::as_bytes);
        Name::from_labels(labels.chain(self.zone.iter())).ok()
    }

    /// `None` when the name would be longer than 255 bytes: it can't be looked up, so it is not mentioned either.
    fn host(&self, host: &Host) -> Option<Name> {
        self.below(&host.labels())
    }

    fn authority(&self, owner: Name) -> Option<Record> {
        self.record(owner, &Data::Authority)
    }

    pub(crate) fn record(&self, owner: Name, data: &Data) -> Option<Record> {
        let data = match data {
            Data::Address(IpAddr::V4(address)) => RData::A(A(*address)),
            Data::Address(IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
            Data::Srv {
                weight,
                port,
                target,
            } => RData::SRV(SRV::new(0, *weight, *port, self.host(target)?)),
            Data::Ptr(host) => RData::PTR(PTR(self.host(host)?)),
            Data::Alias(target) => RData::CNAME(CNAME(absolute(target)?)),
            Data::NameServer => RData::NS(NS(self.host(&Host::NameServer)?)),
            Data::Authority => RData::SOA(self.soa()?),
            Data::Version => RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()])),
            Data::Minimal => RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())),
        };
        Some(Record::from_rdata(owner, TTL, data))
    }

    fn soa(&self) -> Option<SOA> {
        let [serial, times @ .., minimum] = self.numbers;
        let [refresh, retry, expire] = times.map(|time| i32::try_from(time).unwrap_or(i32::MAX));
        let server = self.host(&Host::NameServer)?;
        let person = self.below(&["hostmaster".to_owned()])?;
        Some(SOA::new(
            server, person, serial, refresh, retry, expire, minimum,
        ))
    }
}
