//! An upstream's response as bytes: checked for belonging to the query, then made ours.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use super::exchange::Asked;
use super::stored::Stored;
use crate::wire::HEADER;

const FLAGS: usize = 2;
const CODE: usize = 3;
const COUNTS: usize = 4;
const ADDITIONALS: usize = 10;

const RESPONSE: u8 = 0x80;
const OP_CODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const LOW_CODE: u8 = 0x0f;

/// A response that belongs to the query and whose records end where the message does.
#[derive(Debug)]
pub(crate) struct Response {
    bytes: Vec<u8>,
    opt: Option<Opt>,
    /// Whether the question came back in the case that it was asked in.
    pub(super) case_kept: bool,
}

/// Whether this is an error's header and nothing else, as sent by servers that could not read the query.
pub(crate) fn is_bare_error(bytes: &[u8], asked: &Asked) -> bool {
    bytes.len() == HEADER
        && bytes[..2] == asked.id.to_be_bytes()
        && bytes[FLAGS] & RESPONSE != 0
        && bytes[CODE] & LOW_CODE != 0
}

/// Where the OPT record is.
#[derive(Clone, Copy, Debug)]
struct Opt {
    start: usize,
    last: bool,
    high_code: u8,
}

impl Response {
    /// `None` when the bytes are not a response to the query: forged, late, or broken.
    pub(crate) fn read(mut bytes: Vec<u8>, asked: &Asked) -> Option<Self> {
        let question = asked.question();
        let records = HEADER + question.len();
        let ours = bytes.get(..2)? == asked.id.to_be_bytes()
            && bytes.get(FLAGS)? & (RESPONSE | OP_CODE) == RESPONSE
            && count(&bytes, 0)? == 1
            // Comparing without case is right for the name, whose lengths are all below the letters, but might take
            // one type for another: the last four bytes, type and class, are compared as they are.
            && bytes.get(HEADER..records)?.eq_ignore_ascii_case(question)
            && bytes[records - 4..records] == question[question.len() - 4..];
        if !ours {
            return None;
        }
        let total = (1..4).try_fold(0, |sum, section| {
            Some(sum + usize::from(count(&bytes, section)?))
        })?;
        let mut at = records;
        let mut opt = None;
        for index in 0..total {
            let start = at;
            let fixed = skip_name(&bytes, start)?;
            let kind = u16::from_be_bytes(*bytes.get(fixed..)?.first_chunk()?);
            let length = u16::from_be_bytes(*bytes.get(fixed + 8..)?.first_chunk()?);
            at = fixed + 10 + usize::from(length);
            if at > bytes.len() {
                return None;
            }
            if kind == u16::from(RecordType::OPT) {
                if opt.is_some() {
                    return None;
                }
                opt = Some(Opt {
                    start,
                    last: index + 1 == total,
                    high_code: *bytes.get(fixed + 4)?,
                });
            }
        }
        let case_kept = bytes[HEADER..records] == *question;
        bytes.truncate(at);
        Some(Response {
            bytes,
            opt,
            case_kept,
        })
    }

    /// Whether something was left out.
    pub(super) fn truncated(&self) -> bool {
        self.bytes[FLAGS] & TRUNCATED != 0
    }

    /// The code, with the part that the OPT record carries.
    pub(crate) fn code(&self) -> ResponseCode {
        let low = self.bytes[CODE] & LOW_CODE;
        ResponseCode::from(self.opt.map_or(0, |opt| opt.high_code), low)
    }

    /// What is kept of it.
    pub(crate) fn into_stored(mut self, question: usize) -> Option<Stored> {
        let (code, truncated) = (self.code(), self.truncated());
        match self.opt {
            None => {}
            Some(opt) if opt.last => {
                self.bytes.truncate(opt.start);
                let count = count(&self.bytes, 3)?.saturating_sub(1);
                self.bytes[ADDITIONALS..HEADER].copy_from_slice(&count.to_be_bytes());
            }
            // Cutting it out would move what follows, and break the pointers.
            Some(_) => {
                let mut message = Message::from_vec(&self.bytes).ok()?;
                message.edns = None;
                self.bytes = message.to_vec().ok()?;
            }
        }
        Stored::new(self.bytes, HEADER + question, code, truncated)
    }
}

/// How many entries a section claims: 0 the questions, to 3 the additionals.
fn count(bytes: &[u8], section: usize) -> Option<u16> {
    let at = COUNTS + 2 * section;
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Where the name that begins at `at` ends. What a pointer points to is the client's to judge.
pub(crate) fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    const POINTER: u8 = 0xc0;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length if length & POINTER == POINTER => return Some(at + 2),
            length if length & POINTER == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}
