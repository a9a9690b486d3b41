//! An upstream's response as it is kept: as the bytes that came, so that record types nobody here knows stay whole.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;

use super::received::skip_name;
use crate::edns::Opt;
use crate::wire::{HEADER, u16_at};

/// The longest that a response is kept.
const MAX_LIFE: u32 = 86_400;

/// The longest that "there is no such thing" is kept.
const MAX_NEGATIVE_LIFE: u32 = 900;

const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const CHECKING_DISABLED: u8 = 0x10;
const SOA: u16 = 6;

/// A response without its OPT record.
#[derive(Debug)]
pub(crate) struct Stored {
    bytes: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
    /// Where the times to live stand.
    times: Vec<u16>,
    code: ResponseCode,
    life: Option<u32>,
    /// Who said so.
    upstream: Option<SocketAddr>,
}

/// Whom a response is written for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub id: [u8; 2],
    /// The question as the client wrote it: the same name, type and class but for the case.
    pub question: &'a [u8],
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// The most bytes, 512 or more.
    pub limit: usize,
    pub opt: Option<Opt<'a>>,
}

impl Stored {
    /// Takes a response that was found to belong to its query; `bytes` end where the records do, and the OPT record, whose
    /// part of the code is in `code`, is not among them.
    pub(crate) fn new(
        bytes: Vec<u8>,
        question_end: usize,
        code: ResponseCode,
        truncated: bool,
    ) -> Option<Self> {
        let mut times = Vec::new();
        let mut least = u32::MAX;
        let mut negative = None;
        let counts = [6, 8, 10].map(|at| u16_at(&bytes, at).unwrap_or(0));
        let mut at = question_end;
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let fixed = skip_name(&bytes, at)?;
                let kind = u16_at(&bytes, fixed)?;
                let ttl = u32::from_be_bytes(*bytes.get(fixed + 4..)?.first_chunk()?);
                // RFC 2181, 8: what is negative as a signed number is 0.
                let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
                let length = usize::from(u16_at(&bytes, fixed + 8)?);
                let end = fixed + 10 + length;
                times.push(u16::try_from(fixed + 4).ok()?);
                least = least.min(ttl);
                if section == 1 && kind == SOA {
                    let minimum = bytes.get(end.checked_sub(4)?..end)?;
                    let minimum = u32::from_be_bytes(*minimum.first_chunk()?);
                    negative = Some(ttl.min(minimum).min(MAX_NEGATIVE_LIFE));
                }
                at = end;
            }
        }
        let life = match code {
            _ if truncated => None,
            ResponseCode::NoError if counts[0] > 0 => Some(least.min(MAX_LIFE)),
            // Without an SOA nobody says for how long (RFC 2308, 5).
            ResponseCode::NoError | ResponseCode::NXDomain => negative.map(|life| life.min(least)),
            _ => None,
        };
        Some(Stored {
            bytes,
            question_end,
            times,
            code,
            life: life.filter(|life| *life > 0),
            upstream: None,
        })
    }

    /// How long it may be kept; `None`: not at all.
    pub(super) fn life(&self) -> Option<Duration> {
        self.life.map(|life| Duration::from_secs(life.into()))
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + 2 * self.times.len()
    }

    /// Notes who said so.
    pub(super) fn set_upstream(&mut self, upstream: SocketAddr) {
        self.upstream = Some(upstream);
    }

    pub(crate) fn upstream(&self) -> Option<SocketAddr> {
        self.upstream
    }

    pub(crate) fn code(&self) -> ResponseCode {
        self.code
    }

    /// The same for a client, with the question as it wrote it and its own OPT record, and at most as many bytes as it
    /// takes. `age` are the seconds that it was kept; `None`: too long.
    pub(crate) fn write(
        &self,
        asker: &Asker<'_>,
        age: Option<u32>,
        out: &mut [u8],
    ) -> Option<usize> {
        let question_end = HEADER + asker.question.len();
        if question_end != self.question_end {
            return None;
        }
        let reserved = asker.opt.map_or(0, |opt| opt.length());
        let fits = self.bytes.len() + reserved <= asker.limit.min(out.len());
        let length = if fits { self.bytes.len() } else { question_end };
        out.get_mut(..length)?
            .copy_from_slice(&self.bytes[..length]);
        out[..2].copy_from_slice(&asker.id);
        out[HEADER..question_end].copy_from_slice(asker.question);
        let flag = |on, flag| if on { flag } else { 0 };
        out[2] = out[2] & !(AUTHORITATIVE | RECURSION_DESIRED)
            | flag(asker.recursion_desired, RECURSION_DESIRED);
        out[3] = out[3] & !CHECKING_DISABLED
            | RECURSION_AVAILABLE
            | flag(asker.checking_disabled, CHECKING_DISABLED);
        if fits {
            self.set_times(age, &mut out[..length]);
        } else {
            out[2] |= TRUNCATED;
            out[6..HEADER].fill(0);
        }
        let Some(opt) = asker.opt else {
            return Some(length);
        };
        let end = length + reserved;
        opt.write(out.get_mut(length..end)?, self.code.high());
        let additionals = u16_at(out, 10)?.saturating_add(1);
        out[10..HEADER].copy_from_slice(&additionals.to_be_bytes());
        Some(end)
    }

    fn set_times(&self, age: Option<u32>, out: &mut [u8]) {
        for at in &self.times {
            let at = usize::from(*at);
            let Some(place) = out.get_mut(at..at + 4).and_then(|p| p.first_chunk_mut()) else {
                continue;
            };
            let ttl = u32::from_be_bytes(*place);
            let ttl = match age {
                Some(age) => ttl.saturating_sub(age),
                None => super::cache::STALE_TTL,
            };
            *place = ttl.to_be_bytes();
        }
    }

    /// As [`Stored::write`], into a vector.
    pub(crate) fn to_vec(&self, asker: &Asker<'_>, age: Option<u32>) -> Option<Vec<u8>> {
        let opt = asker.opt.map_or(0, |opt| opt.length());
        let mut bytes = vec![0; self.bytes.len() + opt];
        let length = self.write(asker, age, &mut bytes)?;
        bytes.truncate(length);
        Some(bytes)
    }
}
