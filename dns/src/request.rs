//! From a packet to a request: what can't be one is refused, or not answered at all.

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// A request, as far as it could be read.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Of its header.
    pub metadata: Metadata,
    /// Its one question, in the case that the client chose. Present in every [`Packet::Request`].
    pub query: Option<Query>,
    /// What the client said by an OPT record.
    pub edns: Option<ClientEdns>,
    /// The serial of the SOA record that an IXFR request brings (RFC 1995, 3).
    pub serial: Option<u32>,
}

/// What matters of a client's OPT record (RFC 6891).
#[derive(Clone, Debug)]
pub(crate) struct ClientEdns {
    /// The largest datagram that the client takes, in bytes.
    pub size: u16,
    /// Copied into the response (RFC 3225, 3).
    pub dnssec_ok: bool,
    /// Asks who answers (RFC 5001).
    pub nsid: bool,
    /// The client's cookie, and perhaps one of ours after it (RFC 7873).
    pub cookie: Option<Vec<u8>>,
}

impl ClientEdns {
    fn new(edns: &Edns) -> Self {
        let cookie = match edns.option(EdnsCode::Cookie) {
            Some(EdnsOption::Unknown(_, data)) => Some(data.clone()),
            _ => None,
        };
        ClientEdns {
            size: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
            nsid: edns.option(EdnsCode::NSID).is_some(),
            cookie,
        }
    }

    /// RFC 7873, 5.2.2.
    fn has_bad_cookie(&self) -> bool {
        let length = self.cookie.as_ref().map(Vec::len);
        length.is_some_and(|length| !matches!(length, 8 | 16..=40))
    }
}

/// What a packet turned out to be.
#[derive(Debug)]
pub(crate) enum Packet {
    /// Not to be answered: too short to have an id, or an answer itself. Answering answers makes loops.
    Silence,
    /// Answered with a code alone.
    Refusal(Request, ResponseCode),
    /// A question of class IN for records that can be asked for, or of class CH for TXT records.
    Request(Request),
}

impl Packet {
    /// Reads a packet. Costs no more than its bytes, whatever counts its header claims.
    pub(crate) fn read(bytes: &[u8]) -> Packet {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else {
            return Packet::Silence;
        };
        if metadata.message_type == MessageType::Response {
            return Packet::Silence;
        }
        let mut request = Request {
            metadata,
            query: None,
            edns: None,
            serial: None,
        };
        match metadata.op_code {
            OpCode::Query => {}
            OpCode::Notify | OpCode::Update => {
                return Packet::Refusal(request, ResponseCode::Refused);
            }
            _ => return Packet::Refusal(request, ResponseCode::NotImp),
        }
        if counts.queries == 0 && counts.answers == 0 && counts.authorities == 0 {
            let code = request.read_cookie_alone(&mut decoder, counts.additionals);
            return Packet::Refusal(request, code);
        }
        if counts.queries != 1 {
            return Packet::Refusal(request, ResponseCode::FormErr);
        }
        let Ok(query) = Query::read(&mut decoder) else {
            return Packet::Refusal(request, ResponseCode::FormErr);
        };
        let kind = query.query_type;
        request.query = Some(query);
        // Only IXFR has anything in these sections (RFC 1995, 3).
        if counts.answers > 0 || (counts.authorities > 0 && kind != RecordType::IXFR) {
            return Packet::Refusal(request, ResponseCode::FormErr);
        }
        let mut section = |count: u16, additional: bool| {
            Message::read_records(&mut decoder, count.into(), additional, OpCode::Query)
        };
        let rest = section(counts.authorities, false)
            .and_then(|(authorities, _, _)| Ok((authorities, section(counts.additionals, true)?)));
        let Ok((authorities, (_, edns, _))) = rest else {
            return Packet::Refusal(request, ResponseCode::FormErr);
        };
        request.edns = edns.as_ref().map(ClientEdns::new);
        request.serial = authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        if edns.is_some_and(|edns| edns.version() > 0) {
            return Packet::Refusal(request, ResponseCode::BADVERS);
        }
        if request
            .edns
            .as_ref()
            .is_some_and(ClientEdns::has_bad_cookie)
        {
            request.edns = request.edns.map(|edns| ClientEdns {
                cookie: None,
                ..edns
            });
            return Packet::Refusal(request, ResponseCode::FormErr);
        }
        match refused(&request) {
            Some(code) => Packet::Refusal(request, code),
            None => Packet::Request(request),
        }
    }
}

impl Request {
    /// Reads the rest of a request without a question, which is good for getting a cookie (RFC 7873, 5.4).
    fn read_cookie_alone(&mut self, decoder: &mut BinDecoder<'_>, records: u16) -> ResponseCode {
        let read = Message::read_records(decoder, records.into(), true, OpCode::Query);
        let Ok((_, Some(edns), _)) = read else {
            return ResponseCode::FormErr;
        };
        let client = ClientEdns::new(&edns);
        let bad_cookie = client.has_bad_cookie();
        let cookie = client.cookie.clone().filter(|_| !bad_cookie);
        let has_cookie = cookie.is_some();
        self.edns = Some(ClientEdns { cookie, ..client });
        if edns.version() > 0 {
            ResponseCode::BADVERS
        } else if has_cookie {
            ResponseCode::NoError
        } else {
            ResponseCode::FormErr
        }
    }
}

/// Classes and types that nobody gets an answer to.
fn refused(request: &Request) -> Option<ResponseCode> {
    const TKEY: u16 = 249;
    const MAILB: u16 = 253;
    const MAILA: u16 = 254;
    let query = request.query.as_ref()?;
    match query.query_class {
        DNSClass::IN => {}
        // The handler knows whether we say anything of ourselves.
        DNSClass::CH if query.query_type == RecordType::TXT => return None,
        _ => return Some(ResponseCode::Refused),
    }
    match query.query_type {
        RecordType::OPT | RecordType::TSIG => Some(ResponseCode::FormErr),
        RecordType::Unknown(TKEY | MAILB | MAILA) => Some(ResponseCode::NotImp),
        _ => None,
    }
}
