//! What one name has, as bytes that answers are copied out of.
//!
//! Everything of a name lies in one allocation, because the allocations that an answer touches are what it costs once
//! the zone no longer fits the processor's cache:
//!
//! ```text
//! length of the owner (1 byte), where in it the zone's apex begins (1), kind (1), number of record sets (1)
//! per set: type (2), number of records (4), number of additional records (4), where the set begins (4)
//! the owner's name on the wire, in lower case
//! per set: where each record, then each additional record begins, and where the last ends (4 each)
//!          records: from the owner, which is a pointer to the question's name, to the end of the data
//!          additional records: index of the record whose data name it (4), then from the type to the end of the data
//! ```
//!
//! All numbers are big-endian; places are counted from the entry's first byte.

use std::fmt;
use std::sync::Arc;

const HEAD: usize = 4;
const SET_HEAD: usize = 14;

/// What is said of a name beside its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Of our zone: it has these records and no others.
    #[default]
    Own = 0,
    /// Of a zone that is not ours, which we know these records of and no others.
    Foreign = 1,
    /// Another name for one that others know (CNAME).
    Alias = 2,
}

/// A name and its records. Cloning costs a reference count.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry(Arc<[u8]>);

/// The records of one type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordSet<'e> {
    entry: &'e [u8],
    /// Records of the answer section.
    pub count: usize,
    /// Records of the additional section.
    pub additional_count: usize,
    places: &'e [u8],
}

impl Entry {
    /// The name on the wire, in lower case.
    pub(crate) fn owner(&self) -> &[u8] {
        let sets = usize::from(self.0[3]);
        let start = HEAD + SET_HEAD * sets;
        &self.0[start..start + usize::from(self.0[0])]
    }

    /// Where in the owner's name the name of its zone begins.
    pub(crate) fn apex(&self) -> usize {
        usize::from(self.0[1])
    }

    /// Where its bytes are, and how many.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.0.as_ptr().addr(), self.0.len())
    }

    /// Reads a byte of each of its first cache lines, which hold all of an ordinary entry.
    pub(crate) fn touch(&self) {
        const LINE: usize = 64;
        const LINES: usize = 4;
        let first = &self.0[..self.0.len().min(LINE * LINES)];
        // The last byte too, because an entry may begin anywhere in a line.
        let bytes = first.iter().step_by(LINE).chain(first.last());
        std::hint::black_box(bytes.fold(0, |all, byte| all ^ byte));
    }

    /// Whether it is the very same allocation.
    #[cfg(test)]
    pub(crate) fn is_same(&self, other: &Entry) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.0[2] {
            1 => Kind::Foreign,
            2 => Kind::Alias,
            _ => Kind::Own,
        }
    }

    /// Whether it has no record at all: something is below it only.
    pub(crate) fn is_empty(&self) -> bool {
        self.0[3] == 0
    }

    /// Its records of a type.
    pub(crate) fn set(&self, kind: u16) -> Option<RecordSet<'_>> {
        let heads = &self.0[HEAD..HEAD + SET_HEAD * usize::from(self.0[3])];
        let head = heads
            .chunks_exact(SET_HEAD)
            .find(|head| head[..2] == kind.to_be_bytes())?;
        let (count, additional_count) = (number(head, 2), number(head, 6));
        let start = number(head, 10);
        let places = &self.0[start..start + 4 * (count + additional_count + 1)];
        Some(RecordSet {
            entry: &self.0,
            count,
            additional_count,
            places,
        })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:?})", String::from_utf8_lossy(self.owner()))
    }
}

impl<'e> RecordSet<'e> {
    fn place(&self, index: usize) -> usize {
        number(self.places, 4 * index)
    }

    /// Bytes of the records from `first` up to and without `end`.
    pub(crate) fn records(&self, first: usize, end: usize) -> &'e [u8] {
        &self.entry[self.place(first)..self.place(end)]
    }

    /// An additional record: whose data name its owner, and what follows the owner.
    pub(crate) fn additional(&self, index: usize) -> (usize, &'e [u8]) {
        let index = self.count + index;
        let bytes = &self.entry[self.place(index)..self.place(index + 1)];
        (number(bytes, 0), &bytes[4..])
    }
}

/// Where in a record of this type the name begins that its additional records are about.
pub(crate) fn name_in(kind: u16) -> usize {
    const FIXED: usize = 2 + 10;
    const SRV: u16 = 33;
    // Priority, weight and port.
    if kind == SRV { FIXED + 6 } else { FIXED }
}

/// What is too large for the layout is left out when the entry is made, so that reading can't go wrong.
fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
}

/// The records of one type, being collected.
#[derive(Debug, Default)]
pub(crate) struct SetBuilder {
    kind: u16,
    bytes: Vec<u8>,
    starts: Vec<usize>,
    additional_bytes: Vec<u8>,
    additional_starts: Vec<usize>,
}

impl SetBuilder {
    pub(crate) fn new(kind: u16) -> Self {
        SetBuilder {
            kind,
            ..SetBuilder::default()
        }
    }

    /// Adds a record with `data`, which is less than 64 KiB.
    pub(crate) fn record(&mut self, ttl: u32, data: &[&[u8]]) -> &mut Self {
        self.starts.push(self.bytes.len());
        self.bytes.extend(crate::wire::TO_QUESTION);
        push_record(&mut self.bytes, self.kind, ttl, data);
        self
    }

    /// Adds a record about the name in the data of the record added last.
    pub(crate) fn additional(&mut self, kind: u16, ttl: u32, data: &[u8]) -> &mut Self {
        let index = u32::try_from(self.starts.len() - 1).unwrap_or(u32::MAX);
        self.additional_starts.push(self.additional_bytes.len());
        self.additional_bytes.extend(index.to_be_bytes());
        push_record(&mut self.additional_bytes, kind, ttl, &[data]);
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }
}

/// Type, class, time to live and data.
fn push_record(bytes: &mut Vec<u8>, kind: u16, ttl: u32, data: &[&[u8]]) {
    const CLASS_IN: [u8; 2] = [0, 1];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(CLASS_IN);
    bytes.extend(ttl.to_be_bytes());
    let length = data.iter().map(|part| part.len()).sum::<usize>();
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    for part in data {
        bytes.extend_from_slice(part);
    }
}

/// Makes an entry. `owner` has at most 255 bytes, and sets without records are left out.
pub(crate) fn entry(owner: &[u8], apex: usize, kind: Kind, sets: &[SetBuilder]) -> Entry {
    let sets: Vec<&SetBuilder> = sets.iter().filter(|set| !set.is_empty()).collect();
    let byte = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    let long = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![byte(owner.len()), byte(apex), kind as u8, byte(sets.len())];
    let mut start = HEAD + SET_HEAD * sets.len() + owner.len();
    for set in &sets {
        let (count, more) = (set.starts.len(), set.additional_starts.len());
        bytes.extend(set.kind.to_be_bytes());
        bytes.extend(long(count));
        bytes.extend(long(more));
        bytes.extend(long(start));
        start += 4 * (count + more + 1) + set.bytes.len() + set.additional_bytes.len();
    }
    bytes.extend_from_slice(owner);
    for set in &sets {
        let places = set.starts.len() + set.additional_starts.len() + 1;
        let records = bytes.len() + 4 * places;
        let additionals = records + set.bytes.len();
        let end = additionals + set.additional_bytes.len();
        for start in &set.starts {
            bytes.extend(long(records + start));
        }
        for start in &set.additional_starts {
            bytes.extend(long(additionals + start));
        }
        bytes.extend(long(end));
        bytes.extend_from_slice(&set.bytes);
        bytes.extend_from_slice(&set.additional_bytes);
    }
    Entry(bytes.into())
}
