//! Writes a response into a buffer: what does not fit is left out, and said to be.

use hickory_proto::op::ResponseCode;

use super::Query;
use crate::edns::Opt;
use crate::wire::{HEADER, TO_QUESTION};

const CLASS_IN: [u8; 2] = [0, 1];

const RESPONSE: u8 = 0x80;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const CHECKING_DISABLED: u8 = 0x10;

/// Names further into a message can't be pointed to.
const REACH: usize = 0x4000;

/// An authoritative response, being written.
#[derive(Debug)]
pub(super) struct Writer<'o> {
    out: &'o mut [u8],
    length: usize,
    limit: usize,
    truncated: bool,
    answers: usize,
    authorities: u8,
    additionals: usize,
}

impl<'o> Writer<'o> {
    /// Begins with the header and the question as the client wrote it; `None` when there is no room for them.
    pub(super) fn new(
        out: &'o mut [u8],
        limit: usize,
        query: &Query<'_>,
        recursion: bool,
    ) -> Option<Self> {
        let length = query.question_end;
        if length > limit {
            return None;
        }
        let head = query.packet.get(..length)?;
        out.get_mut(..length)?.copy_from_slice(head);
        out[2] = RESPONSE | AUTHORITATIVE | (head[2] & RECURSION_DESIRED);
        out[3] = head[3] & CHECKING_DISABLED;
        if recursion {
            out[3] |= RECURSION_AVAILABLE;
        }
        // The number of questions is 1 in the query too, the others were 0 but for the OPT record's.
        out[11] = 0;
        Some(Writer {
            out,
            length,
            limit,
            truncated: false,
            answers: 0,
            authorities: 0,
            additionals: 0,
        })
    }

    /// Bytes written.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Whether so many bytes fit, and nothing was left out before them.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        !self.truncated && self.limit - self.length >= bytes
    }

    fn put(&mut self, parts: &[&[u8]]) -> bool {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if !self.has_room(bytes) {
            self.truncated = true;
            return false;
        }
        for part in parts {
            self.out[self.length..self.length + part.len()].copy_from_slice(part);
            self.length += part.len();
        }
        true
    }

    /// Adds `count` whole records; false when they don't fit.
    pub(super) fn answers(&mut self, records: &[u8], count: usize) -> bool {
        let fits = self.put(&[records]);
        if fits {
            self.answers += count;
        }
        fits
    }

    /// Adds one record of the name asked for.
    pub(super) fn answer_of(&mut self, kind: u16, ttl: u32, data: &[u8]) {
        if self.record(&TO_QUESTION, kind, ttl, data) {
            self.answers += 1;
        }
    }

    /// Adds a record of the name asked for, less the bytes before `apex`.
    pub(super) fn authority(&mut self, apex: usize, kind: u16, ttl: u32, data: &[u8]) {
        // A name has 255 bytes at most, so that the pointer reaches.
        let pointer = pointer(HEADER + apex).unwrap_or(TO_QUESTION);
        if self.record(&pointer, kind, ttl, data) {
            self.authorities += 1;
        }
    }

    fn record(&mut self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> bool {
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes();
        let (kind, ttl) = (kind.to_be_bytes(), ttl.to_be_bytes());
        self.put(&[owner, &kind, &CLASS_IN, &ttl, &length, data])
    }

    /// Adds a record about `name`, which stands at `place` in the message already; false when it does not fit.
    pub(super) fn additional(&mut self, place: usize, name: &[u8], rest: &[u8]) -> bool {
        let fits = match pointer(place) {
            Some(pointer) => self.put(&[&pointer, rest]),
            None => self.put(&[name, rest]),
        };
        if fits {
            self.additionals += 1;
        }
        fits
    }

    /// Ends the message, for which the room was reserved, and returns its length.
    pub(super) fn finish(mut self, code: ResponseCode, opt: Option<Opt<'_>>) -> usize {
        if self.truncated {
            self.out[2] |= TRUNCATED;
        }
        self.out[3] |= code.low();
        if let Some(opt) = opt {
            let end = self.length + opt.length();
            opt.write(&mut self.out[self.length..end], code.high());
            self.length = end;
            self.additionals += 1;
        }
        // A record has 12 bytes or more: no message has as many as 65,536 of them.
        let counts = [self.answers, self.authorities.into(), self.additionals];
        for (at, count) in [6, 8, 10].into_iter().zip(counts) {
            let count = u16::try_from(count).unwrap_or(u16::MAX);
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.length
    }
}

fn pointer(place: usize) -> Option<[u8; 2]> {
    const MARK: u16 = 0xc000;
    let place = u16::try_from(place).ok()?;
    (usize::from(place) < REACH).then(|| (MARK | place).to_be_bytes())
}
