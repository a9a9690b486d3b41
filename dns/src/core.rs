//! One thread's part of answering: bytes in, bytes out, without a socket or a clock of its own.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use hickory_proto::op::ResponseCode;
use model::snapshot::Snapshot;

use crate::error::Transport;
use crate::fast::{self, MAX_NAME, Manner, Query};
use crate::follow::Follower;
use crate::forward::{Asker, Key};
use crate::handler::{Client, Handler, Pending, Verdict};
use crate::metrics::Counts;
use crate::query_log::{Sampler, Source};
use crate::response;
use crate::table::Table;
use crate::transfer::Transfer;
use crate::wire::{self, HEADER};

/// Rotation positions; questions that share one only disturb each other's order.
const TURNS: usize = 1024;

/// What a packet led to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing is to be sent.
    Silence,
    /// The response was written into the buffer, so many bytes.
    Written(usize),
    /// Send this.
    Reply(Vec<u8>),
    /// Wait for [`Handler::forward`], and send what it returns.
    Forward(Box<Pending>),
    /// Send what [`Transfer::next`] returns, one after the other.
    Transfer(Box<Transfer>),
}

/// An ordinary query that was read and not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read<'p> {
    query: Query<'p>,
    /// In lower case.
    name: &'p [u8],
    hash: u64,
}

/// Where names of queries are written in lower case.
pub(crate) type Name = [u8; MAX_NAME];

/// Answers packets for one thread.
#[derive(Debug)]
pub(crate) struct Core {
    handler: Arc<Handler>,
    follower: Follower,
    tables: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    snapshots: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    turns: Box<[u32]>,
    counts: Arc<Counts>,
    sampler: Sampler,
}

impl Core {
    pub(crate) fn new(handler: Arc<Handler>, follower: Follower) -> Self {
        Core {
            tables: Cache::new(follower.tables().clone()),
            snapshots: Cache::new(handler.snapshots().clone()),
            turns: vec![0; TURNS].into(),
            counts: handler.metrics().counts(),
            sampler: handler.query_log().sampler(),
            handler,
            follower,
        }
    }

    pub(crate) fn handler(&self) -> &Arc<Handler> {
        &self.handler
    }

    /// What this thread counts.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Reads a packet; `None` where it is no ordinary query.
    pub(crate) fn read<'p>(&mut self, packet: &'p [u8], name: &'p mut Name) -> Option<Read<'p>> {
        let (query, length) = Query::read(packet, name)?;
        let name = &name[..length];
        let hash = self.tables.load().index.hash(name);
        Some(Read { query, name, hash })
    }

    /// Has what answers to these are made of brought from memory, for all of them at a time: in a large zone each answer
    /// lies in another place, and to wait for one after the other would cost more than to write them.
    pub(crate) fn fetch(&mut self, reads: &[Option<Read<'_>>]) {
        let index = &self.tables.load().index;
        for read in reads.iter().flatten() {
            index.touch_slot(read.hash);
        }
        for read in reads.iter().flatten() {
            index.touch_entry(read.hash);
        }
    }

    /// Answers a packet, into `out` when it can.
    pub(crate) fn answer(&mut self, packet: &[u8], client: Client, out: &mut [u8]) -> Outcome {
        let mut name = [0; MAX_NAME];
        let read = self.read(packet, &mut name);
        self.answer_read(packet, read.as_ref(), client, out)
    }

    /// The same for a packet of which `read` was read.
    pub(crate) fn answer_read(
        &mut self,
        packet: &[u8],
        read: Option<&Read<'_>>,
        client: Client,
        out: &mut [u8],
    ) -> Outcome {
        let logged = self.sampler.is_turn().then(Instant::now);
        let fast = read.and_then(|read| self.fast(read, client, out));
        if let Some((length, kind, code, source)) = fast {
            self.counts.answered(Some(kind), code);
            if let Some(began) = logged {
                let handler = &self.handler;
                handler.log(packet, &client, code, source, began.elapsed());
            }
            return Outcome::Written(length);
        }
        match self.handler.decide(packet, client) {
            Verdict::Silence => Outcome::Silence,
            Verdict::Reply(bytes) => Outcome::Reply(bytes),
            Verdict::Forward(pending) => Outcome::Forward(pending),
            Verdict::Transfer(transfer) => Outcome::Transfer(transfer),
        }
    }

    fn fast(
        &mut self,
        read: &Read<'_>,
        client: Client,
        out: &mut [u8],
    ) -> Option<(usize, u16, ResponseCode, Source)> {
        let Read { query, name, hash } = *read;
        let table = self.tables.load();
        if table.epoch != Some(self.snapshots.load().epoch) {
            self.follower.behind();
            return None;
        }
        let found = fast::find(table, name, hash);
        let limit = match client.transport {
            Transport::Udp => response::limit(Transport::Udp, query.edns.map(|edns| edns.size)),
            Transport::Tcp | Transport::Tls => u16::MAX,
        };
        let manner = Manner {
            limit: limit.into(),
            recursion: self.handler.may_recurse(&client),
            single: self.handler.settings().single_answer,
            opt: query.edns.map(|edns| {
                self.handler
                    .opt(edns.dnssec_ok, edns.nsid, edns.cookie, &client)
            }),
        };
        let Some(found) = found else {
            let (handler, counts) = (&self.handler, &self.counts);
            return cached(handler, counts, table, &query, name, &manner, out);
        };
        // Counts up for each question by itself: with one counter for all, a client that always asks for A and AAAA in
        // turn would see every other address only.
        let slot = (hash as usize ^ usize::from(query.kind)) % TURNS;
        let turns = &mut self.turns;
        let turn = || {
            turns[slot] = turns[slot].wrapping_add(1);
            turns[slot]
        };
        let (length, code) = fast::answer(table, &query, &found, &manner, turn, out)?;
        Some((length, query.kind, code, Source::Zone))
    }
}

/// The answer to a question that is not ours and that upstreams answered before.
fn cached(
    handler: &Handler,
    counts: &Counts,
    table: &Table,
    query: &Query<'_>,
    name: &[u8],
    manner: &Manner<'_>,
    out: &mut [u8],
) -> Option<(usize, u16, ResponseCode, Source)> {
    if !manner.recursion || wire::below(name, &table.zone.apex).is_some() {
        return None;
    }
    let flags = query.flags();
    let key = Key {
        name,
        kind: query.kind,
        flags,
    };
    let asker = Asker {
        id: *query.packet.first_chunk()?,
        question: query.packet.get(HEADER..query.question_end)?,
        recursion_desired: flags.recursion_desired,
        checking_disabled: flags.checking_disabled,
        limit: manner.limit,
        opt: manner.opt,
    };
    let hit = handler.forwarder().cached(&key)?;
    let length = hit.stored.write(&asker, hit.age, out)?;
    let stale = hit.age.is_none();
    counts.hit(stale);
    let source = if stale { Source::Stale } else { Source::Cache };
    Some((length, query.kind, hit.stored.code(), source))
}
