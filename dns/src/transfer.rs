//! Whole zones (AXFR, RFC 5936), for secondaries and for people who want to see everything.
//!
//! # Layout
//! * this file: who gets which zone, and its messages one by one
//! * `contents`: pure: the records of a zone, service by service
//!
//! A transfer holds the snapshot that it began with, so that what goes out is one state of the zone, however long its
//! client takes. It costs the names of all services and one message at a time.

mod contents;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};
use model::name::ServiceKey;
use model::snapshot::{Freshness, Snapshot};
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::Data;
use crate::error::Transport;
use crate::handler::{Client, Handler};
use crate::request::Request;
use crate::response::{Frame, Names, Sections, encode};
use crate::serial;

pub(crate) use contents::ZoneApex;

/// Transfers under way at a time; one more gets SERVFAIL, and asks again.
pub const MAX_TRANSFERS: usize = 8;

/// Bytes of a message, before names in it are shortened.
const MESSAGE: usize = 16 << 10;

/// What somebody who asks for a zone gets.
#[derive(Debug)]
pub(crate) enum Asked {
    /// One message: a code alone, or the serial where nothing is newer.
    Reply(ResponseCode, Vec<u8>),
    /// The zone, by [`Transfer::next`].
    Zone(Box<Transfer>),
}

/// A zone on its way.
#[derive(Debug)]
pub(crate) struct Transfer {
    request: Request,
    query: Query,
    client: Client,
    snapshot: Arc<Snapshot>,
    names: Names,
    apex: ZoneApex,
    /// Of those that are still to come, the next one last.
    services: Vec<ServiceKey>,
    /// Records that are to go out next, the next one last.
    ready: Vec<Record>,
    /// Goes out last of all.
    soa: Option<Record>,
    is_first: bool,
    _permit: OwnedSemaphorePermit,
}

impl Handler {
    /// A question of type AXFR or IXFR. The latter is answered with the whole zone (RFC 1995, 4), or with the SOA alone
    /// where the client has what there is, or asks by UDP.
    pub(crate) fn transfer(
        &self,
        frame: &Frame<'_>,
        request: &Request,
        query: &Query,
        client: Client,
    ) -> Asked {
        let code = |code| Asked::Reply(code, frame.code(code));
        let incremental = query.query_type == hickory_proto::rr::RecordType::IXFR;
        let by_udp = client.transport == Transport::Udp;
        let allowed = self.settings().transfer_to.iter();
        let ip = client.address.ip().to_canonical();
        if !allowed.into_iter().any(|net| net.contains(ip)) || (by_udp && !incremental) {
            return code(ResponseCode::Refused);
        }
        let (snapshot, serial) = loop {
            let snapshot = self.snapshots().load_full();
            if let Some(serial) = self.serials().give(snapshot.epoch) {
                break (snapshot, serial);
            }
        };
        let name = query.name.to_lowercase();
        let labels: Vec<&[u8]> = name.iter().collect();
        let Some(apex) = ZoneApex::find(&snapshot.mesh, &labels) else {
            return code(ResponseCode::NotAuth);
        };
        let names = Names::new(&snapshot.mesh.zone, serial);
        let soa = |names: &Names| names.record(query.name.clone(), &Data::Authority);
        let (Some(names), false) = (names, snapshot.freshness == Freshness::Unsynced) else {
            return code(ResponseCode::ServFail);
        };
        let Some(soa) = soa(&names) else {
            return code(ResponseCode::ServFail);
        };
        let has = |theirs: u32| serial::is_current(theirs, serial);
        if incremental && (by_udp || request.serial.is_some_and(has)) {
            return Asked::Reply(ResponseCode::NoError, frame.answered(vec![soa]));
        }
        let Some(permit) = self.transfer_permit() else {
            return code(ResponseCode::ServFail);
        };
        let mut services: Vec<ServiceKey> = snapshot.services.keys().cloned().collect();
        services.sort_unstable_by(|a, b| b.cmp(a));
        let mut ready = vec![soa.clone()];
        let fixed = apex.fixed(&snapshot, &self.settings().name_servers);
        ready.extend(records(&names, fixed));
        ready.reverse();
        Asked::Zone(Box::new(Transfer {
            request: request.clone(),
            query: query.clone(),
            client,
            snapshot,
            names,
            apex,
            services,
            ready,
            soa: Some(soa),
            is_first: true,
            _permit: permit,
        }))
    }
}

fn records(
    names: &Names,
    contents: impl IntoIterator<Item = (contents::Owner, Data)>,
) -> impl Iterator<Item = Record> {
    // What would have too long a name can't be asked for either.
    contents
        .into_iter()
        .filter_map(|(owner, data)| names.record(owner.name(names)?, &data))
}

impl Transfer {
    /// The next message; `None` after the last.
    pub(crate) fn next(&mut self, handler: &Handler) -> Option<Vec<u8>> {
        let mut answers = Vec::new();
        let mut size = 0;
        while let Some(record) = self.record() {
            size += length(&record);
            if size > MESSAGE && !answers.is_empty() {
                self.ready.push(record);
                break;
            }
            answers.push(record);
        }
        if answers.is_empty() {
            return None;
        }
        let frame = handler.frame(&self.request, &self.client);
        let first = std::mem::replace(&mut self.is_first, false);
        let query = first.then_some(&self.query);
        let sections = Sections {
            answers,
            authorities: [],
            additionals: [],
        };
        let metadata = frame.metadata(ResponseCode::NoError, true);
        encode(&metadata, query, sections, frame.opt, u16::MAX).ok()
    }

    fn record(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.ready.pop() {
                return Some(record);
            }
            let Some(key) = self.services.pop() else {
                return self.soa.take();
            };
            let contents = self.apex.of_service(&self.snapshot, &key);
            self.ready = records(&self.names, contents).collect();
            self.ready.reverse();
        }
    }
}

/// The most bytes that a record takes.
fn length(record: &Record) -> usize {
    const FIXED: usize = 10;
    let name = |name: &Name| name.len() + 1;
    let data = match &record.data {
        RData::SRV(srv) => 6 + name(&srv.target),
        RData::PTR(target) => name(&target.0),
        RData::CNAME(target) => name(&target.0),
        RData::NS(target) => name(&target.0),
        RData::SOA(soa) => name(&soa.mname) + name(&soa.rname) + 20,
        _ => 16,
    };
    name(&record.name) + FIXED + data
}

impl ZoneApex {
    /// The zone that begins at a name, which is in lower case.
    fn find(mesh: &model::mesh::Mesh, labels: &[&[u8]]) -> Option<Self> {
        let own = mesh.zone.split('.').map(str::as_bytes);
        if own.eq(labels.iter().copied()) {
            return Some(ZoneApex::Mesh);
        }
        let name = crate::reverse::ReverseName::parse(labels)?;
        let range = mesh.vip_ranges.iter();
        let cut = range.into_iter().find_map(|range| name.cut_within(range))?;
        let network = model::net::IpNet::new(name.address, cut)?;
        (name.bits == cut && !name.strange && !name.whole()).then_some(ZoneApex::Reverse(network))
    }
}

/// The reverse name of an address.
fn reverse_name(address: IpAddr) -> Option<Name> {
    let wire = crate::reverse::name(address);
    Name::from_labels(crate::wire::labels(&wire)).ok()
}
