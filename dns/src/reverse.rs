//! Reverse names (`in-addr.arpa`, `ip6.arpa`), and which headless services have an endpoint at an address.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use model::name::ServiceKey;
use model::net::IpNet;
use model::snapshot::{ServiceView, Snapshot};

use crate::wire;
use crate::zone::{Place, places};

/// A name under `in-addr.arpa` (RFC 1035, 3.5) or `ip6.arpa` (RFC 3596, 2.5): an address, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReverseName {
    /// What the labels say, with zeros for the rest.
    pub address: IpAddr,
    /// How many of its leading bits the labels say.
    pub bits: u8,
    /// Further labels stand before those that make sense.
    pub strange: bool,
}

impl ReverseName {
    /// Reads a name's labels, which are in lower case; `None` when it is under neither domain.
    pub fn parse(labels: &[&[u8]]) -> Option<Self> {
        match labels {
            [rest @ .., b"in-addr", b"arpa"] => {
                let mut bytes = [0u8; 4];
                let known = read(rest, &mut bytes, octet);
                let bits = u8::try_from(known * 8).ok()?;
                Some(Self::new(Ipv4Addr::from(bytes), bits, known < rest.len()))
            }
            [rest @ .., b"ip6", b"arpa"] => {
                let mut nibbles = [0u8; 32];
                let known = read(rest, &mut nibbles, nibble);
                let bits = u8::try_from(known * 4).ok()?;
                let value = nibbles.iter().fold(0u128, |v, n| v << 4 | u128::from(*n));
                Some(Self::new(Ipv6Addr::from(value), bits, known < rest.len()))
            }
            _ => None,
        }
    }

    fn new(address: impl Into<IpAddr>, bits: u8, strange: bool) -> Self {
        ReverseName {
            address: address.into(),
            bits,
            strange,
        }
    }

    /// Bits per label.
    fn step(&self) -> u8 {
        if self.address.is_ipv4() { 8 } else { 4 }
    }

    /// Whether the labels say the address in full.
    pub fn whole(&self) -> bool {
        self.bits == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// When the name is in a reverse zone of `range`: how many bits the labels of that zone's apex say.
    ///
    /// A range that ends inside a label has several reverse zones: one for each value that the label can have.
    pub fn cut_within(&self, range: &IpNet) -> Option<u8> {
        let cut = range.prefix().div_ceil(self.step()) * self.step();
        (self.bits >= cut && range.contains(self.address)).then_some(cut)
    }

    /// How many labels a reverse name of `bits` bits has, `in-addr.arpa` or `ip6.arpa` included.
    pub fn labels_of(&self, bits: u8) -> usize {
        usize::from(bits / self.step()) + 2
    }
}

/// Fills `into` from the last label backwards, and says how many made sense.
fn read(labels: &[&[u8]], into: &mut [u8], parse: fn(&[u8]) -> Option<u8>) -> usize {
    let values = labels.iter().rev().map_while(|label| parse(label));
    let mut known = 0;
    for (slot, value) in into.iter_mut().zip(values) {
        *slot = value;
        known += 1;
    }
    known
}

fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let value: u8 = text.parse().ok()?;
    // `01` and `+1` are no spellings of 1.
    (value.to_string() == text).then_some(value)
}

fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The reverse name of an address, on the wire.
pub(crate) fn name(address: IpAddr) -> Vec<u8> {
    let mut name = Vec::with_capacity(80);
    match address {
        IpAddr::V4(v4) => {
            let labels = v4.octets().map(|octet| octet.to_string());
            wire::push_labels(&mut name, labels.iter().rev().map(|label| label.as_bytes()));
            wire::push_labels(&mut name, [&b"in-addr"[..], b"arpa"]);
        }
        IpAddr::V6(v6) => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            for octet in v6.octets().iter().rev() {
                let [low, high] = [octet & 0xf, octet >> 4].map(|n| DIGITS[usize::from(n)]);
                wire::push_labels(&mut name, [&[low][..], &[high]]);
            }
            wire::push_labels(&mut name, [&b"ip6"[..], b"arpa"]);
        }
    }
    name.push(0);
    name
}

/// The reverse name of an address, with a dot at its end.
pub fn name_of(address: IpAddr) -> String {
    let wire = name(address);
    let labels = wire::labels(&wire).map(String::from_utf8_lossy);
    labels.map(|label| format!("{label}.")).collect()
}

/// Where in an address' reverse name the apex of its reverse zone begins; `None` when it is in none of `ranges`.
pub(crate) fn apex(address: IpAddr, ranges: &[IpNet]) -> Option<usize> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let whole = ReverseName::new(address, bits, false);
    let cut = ranges.iter().find_map(|range| whole.cut_within(range))?;
    let above = whole.labels_of(bits) - whole.labels_of(cut);
    let labels = name(address);
    let before = wire::labels(&labels).take(above);
    Some(before.map(|label| label.len() + 1).sum())
}

/// Which headless services have a ready endpoint at an address, brought up to date when somebody asks.
///
/// Bringing it up to date costs one pointer comparison for each headless service, and a look at the endpoints only of
/// those that changed.
#[derive(Debug, Default)]
pub struct Reverse(Mutex<Index>);

#[derive(Debug, Default)]
struct Index {
    epoch: Option<u64>,
    seen: HashMap<ServiceKey, (Arc<ServiceView>, BTreeSet<Place>)>,
    services: HashMap<IpAddr, BTreeSet<(ServiceKey, Arc<str>)>>,
}

impl Reverse {
    /// The headless services with an endpoint at `address`, by namespace and name, and that endpoint's label.
    pub fn services_at(&self, snapshot: &Snapshot, address: IpAddr) -> Vec<(ServiceKey, Arc<str>)> {
        // An index that a panic left half-way is rebuilt with the next snapshot; a name missing until then is no
        // reason to stop answering.
        let mut index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        index.follow(snapshot);
        let found = index.services.get(&address);
        found.into_iter().flatten().cloned().collect()
    }
}

impl Index {
    fn follow(&mut self, snapshot: &Snapshot) {
        if self.epoch == Some(snapshot.epoch) {
            return;
        }
        self.epoch = Some(snapshot.epoch);
        let gone: Vec<ServiceKey> = self
            .seen
            .iter()
            .filter(|(key, (view, _))| {
                let now = snapshot.service(key);
                !now.is_some_and(|now| now.headless() && Arc::ptr_eq(now, view))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.forget(&key);
        }
        for key in snapshot.headless.iter() {
            if self.seen.contains_key(key) {
                continue;
            }
            let Some(view) = snapshot.service(key) else {
                continue;
            };
            let places = places(view);
            for place in &places {
                self.services
                    .entry(place.address)
                    .or_default()
                    .insert((key.clone(), place.label.clone()));
            }
            self.seen.insert(key.clone(), (view.clone(), places));
        }
    }

    fn forget(&mut self, key: &ServiceKey) {
        let Some((_, places)) = self.seen.remove(key) else {
            return;
        };
        for Place { address, label } in places {
            if let Some(services) = self.services.get_mut(&address) {
                services.remove(&(key.clone(), label));
                if services.is_empty() {
                    self.services.remove(&address);
                }
            }
        }
    }
}
