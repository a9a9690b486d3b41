//! Answers to questions about our zone, made when the snapshot changes and not when somebody asks.
//!
//! # Layout
//! * `entry`: what one name has, as bytes that answers are copied out of
//! * `index`: entries by name; versions share what did not change
//! * `huge`: the memory that they lie in
//! * `service`: the entries that a service makes
//! * `update`: from one snapshot's table to the next one's, at the cost of the services that changed

pub(crate) mod entry;
mod huge;
mod index;
mod service;
#[cfg(test)]
mod tests;
mod update;

use model::snapshot::{Freshness, Snapshot};

pub(crate) use index::Index;
pub(crate) use update::Updater;

use crate::answer::Host;
use crate::wire;

/// Everything that is answered without looking at a snapshot. Cloning costs a few reference counts.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Of the snapshot that it was made of; none: of no snapshot.
    pub epoch: Option<u64>,
    /// Whether a name that is not there may be denied.
    pub synced: bool,
    /// The names of the zone that is ours.
    pub zone: ZoneNames,
    /// The data of every SOA record.
    pub soa: std::sync::Arc<[u8]>,
    /// By name.
    pub index: Index,
}

impl Table {
    fn new(seed: u64) -> Self {
        let mut table = Table {
            epoch: None,
            synced: false,
            zone: ZoneNames::new(""),
            soa: std::sync::Arc::new([]),
            index: Index::new(seed),
        };
        table.describe(&Snapshot::default(), 0);
        table.epoch = None;
        table
    }

    /// Takes over what belongs to the snapshot as a whole.
    fn describe(&mut self, snapshot: &Snapshot, serial: u32) {
        self.epoch = Some(snapshot.epoch);
        self.synced = snapshot.freshness != Freshness::Unsynced;
        if *self.zone.text != *snapshot.mesh.zone {
            self.zone = ZoneNames::new(&snapshot.mesh.zone);
        }
        self.soa = self.zone.soa(serial).into();
    }
}

/// The zone's name and what is derived from it.
#[derive(Clone, Debug)]
pub(crate) struct ZoneNames {
    text: std::sync::Arc<str>,
    /// The apex on the wire.
    pub apex: std::sync::Arc<[u8]>,
}

impl ZoneNames {
    pub(crate) fn new(zone: &str) -> Self {
        let mut apex = Vec::new();
        wire::push_labels(&mut apex, zone.split('.').map(str::as_bytes));
        apex.push(0);
        ZoneNames {
            text: zone.into(),
            apex: apex.into(),
        }
    }

    /// A name below the apex; `None` when it would be longer than 255 bytes.
    pub(crate) fn name<'l>(&self, labels: impl IntoIterator<Item = &'l [u8]>) -> Option<Vec<u8>> {
        let mut name = Vec::with_capacity(64);
        wire::push_labels(&mut name, labels);
        name.extend_from_slice(&self.apex);
        (name.len() <= crate::fast::MAX_NAME).then_some(name)
    }

    /// As for [`ZoneNames::name`].
    pub(crate) fn host(&self, host: &Host) -> Option<Vec<u8>> {
        let labels = host.labels();
        self.name(labels.iter().map(|label| label.as_bytes()))
    }

    fn soa(&self, serial: u32) -> Vec<u8> {
        let mut data = Vec::with_capacity(128);
        for name in [
            self.host(&Host::NameServer),
            self.name([&b"hostmaster"[..]]),
        ] {
            data.extend(name.unwrap_or_else(|| vec![0]));
        }
        for number in crate::response::soa_numbers(serial) {
            data.extend(number.to_be_bytes());
        }
        data
    }
}
