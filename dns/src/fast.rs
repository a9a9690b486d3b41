//! The fast path: an ordinary query about our zone becomes its answer without an allocation.
//!
//! What is not ordinary, not ours, or not known yet is left to [`crate::handler`], which knows every case and gives the
//! same answers; a test compares the two.

mod query;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use query::{MAX_NAME, Query};

use hickory_proto::op::ResponseCode;
use write::Writer;

use crate::edns::Opt;
use crate::table::entry::{Entry, Kind, RecordSet};
use crate::table::{Table, entry};
use crate::wire;
use crate::zone::TTL;

const A: u16 = 1;
const SOA: u16 = 6;
const HINFO: u16 = 13;
const AAAA: u16 = 28;
const AXFR: u16 = 252;
const ANY: u16 = 255;

/// How an answer is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner<'a> {
    /// The most bytes, 512 or more.
    pub limit: usize,
    /// Whether this client's other questions would be forwarded.
    pub recursion: bool,
    /// Of several addresses only one is given.
    pub single: bool,
    /// The OPT record to send, for a query that has one.
    pub opt: Option<Opt<'a>>,
}

/// A question whose name was looked up.
#[derive(Debug)]
pub(crate) enum Found<'t> {
    /// The name has an entry.
    Entry(&'t Entry),
    /// There is no such name in our zone, whose apex begins so far into the name.
    Nothing {
        /// In bytes.
        apex: usize,
    },
}

/// Looks a name up, which is in lower case. `None`: not ours, or not to be said yet.
pub(crate) fn find<'t>(table: &'t Table, name: &[u8], hash: u64) -> Option<Found<'t>> {
    if !table.synced {
        return None;
    }
    match table.index.get(hash, name) {
        Some(entry) => Some(Found::Entry(entry)),
        None => {
            let apex = wire::below(name, &table.zone.apex)?;
            Some(Found::Nothing { apex })
        }
    }
}

/// Writes the response, whose length and code it returns; `None` where somebody else must answer.
///
/// `turn` says where the records begin; it is asked for only where there are several.
pub(crate) fn answer(
    table: &Table,
    query: &Query<'_>,
    found: &Found<'_>,
    manner: &Manner<'_>,
    turn: impl FnOnce() -> u32,
    out: &mut [u8],
) -> Option<(usize, ResponseCode)> {
    // Meta types (RFC 6895, 3.1), but for ANY, and those that ask for a transfer.
    if matches!(query.kind, 41 | 128..=AXFR | 253 | 254) {
        return None;
    }
    let reserved = manner.opt.map_or(0, |opt| opt.length());
    let limit = manner.limit.min(out.len()).checked_sub(reserved)?;
    let mut writer = Writer::new(out, limit, query, manner.recursion)?;
    let code = match found {
        Found::Nothing { apex } => {
            deny(&mut writer, *apex, table);
            ResponseCode::NXDomain
        }
        Found::Entry(entry) => {
            answer_with(&mut writer, entry, query.kind, table, manner.single, turn)?;
            ResponseCode::NoError
        }
    };
    Some((writer.finish(code, manner.opt), code))
}

fn answer_with(
    writer: &mut Writer<'_>,
    entry: &Entry,
    kind: u16,
    table: &Table,
    single: bool,
    turn: impl FnOnce() -> u32,
) -> Option<()> {
    if let Some(set) = entry.set(kind) {
        give(writer, &set, kind, single, turn);
        return Some(());
    }
    match entry.kind() {
        Kind::Foreign | Kind::Alias => return None,
        Kind::Own => {}
    }
    if kind == ANY && !entry.is_empty() {
        // RFC 8482, 4.2.
        writer.answer_of(HINFO, TTL, b"\x07RFC8482\x00");
    } else {
        deny(writer, entry.apex(), table);
    }
    Some(())
}

/// The authority for there being nothing (RFC 2308, 3).
fn deny(writer: &mut Writer<'_>, apex: usize, table: &Table) {
    writer.authority(apex, SOA, TTL, &table.soa);
}

fn give(
    writer: &mut Writer<'_>,
    set: &RecordSet<'_>,
    kind: u16,
    single: bool,
    turn: impl FnOnce() -> u32,
) {
    let turn = match set.count {
        0 | 1 => 0,
        count => turn() as usize % count,
    };
    if single && matches!(kind, A | AAAA) {
        writer.answers(set.records(turn, turn + 1), 1);
        return;
    }
    let start = writer.length();
    let (head, tail) = (set.records(0, turn), set.records(turn, set.count));
    if writer.has_room(head.len() + tail.len()) {
        writer.answers(tail, set.count - turn);
        writer.answers(head, turn);
    } else {
        let one_by_one = (turn..set.count).chain(0..turn);
        for index in one_by_one {
            if !writer.answers(set.records(index, index + 1), 1) {
                return;
            }
        }
    }
    let first = set.records(0, turn).len();
    for index in 0..set.additional_count {
        let (of, rest) = set.additional(index);
        let place = set.records(0, of).len();
        let place = start
            + if of >= turn {
                place - first
            } else {
                set.records(turn, set.count).len() + place
            };
        let record = set.records(of, of + 1);
        let data = entry::name_in(kind);
        let fits = writer.additional(place + data, record.get(data..).unwrap_or_default(), rest);
        if !fits {
            return;
        }
    }
}
