//! Responses of upstreams, kept for as long as they may be, and a while longer for when no upstream answers (RFC 8767).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stored::Stored;

/// How long past its time a response is kept, for when no upstream answers.
const STALE: Duration = Duration::from_secs(86_400);

/// How long upstreams are left alone about a name after they failed, while there is an older answer.
const RECHECK: Duration = Duration::from_secs(5);

/// The same where there is none (RFC 9520, 3.2): twice as long with each failure that follows, up to [`MOST_FAILED`].
const FIRST_FAILED: Duration = Duration::from_secs(1);
const MOST_FAILED: Duration = Duration::from_secs(30);

/// Failures that a shard remembers, of 300 bytes at most each.
const FAILURES: usize = 64;

/// Seconds that a client may keep what is past its time (RFC 8767, 4).
pub(super) const STALE_TTL: u32 = 30;

const SHARDS: usize = 16;

/// What an entry costs beside its message, in bytes.
const OVERHEAD: usize = 200;

/// What was asked: a name in lower case on the wire, a type, and the flags that change the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key<'k> {
    pub name: &'k [u8],
    pub kind: u16,
    pub flags: Flags,
}

/// Flags of a query that change its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flags {
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    pub authentic_data: bool,
    pub dnssec_ok: bool,
}

impl Flags {
    fn bits(self) -> u8 {
        [
            self.recursion_desired,
            self.checking_disabled,
            self.authentic_data,
            self.dnssec_ok,
        ]
        .into_iter()
        .fold(0, |bits, flag| bits << 1 | u8::from(flag))
    }
}

impl Key<'_> {
    /// The same as bytes of its own.
    pub(super) fn to_bytes(self) -> Box<[u8]> {
        let mut bytes = Vec::with_capacity(self.name.len() + 3);
        bytes.extend(self.kind.to_be_bytes());
        bytes.push(self.flags.bits());
        bytes.extend_from_slice(self.name);
        bytes.into()
    }

    fn is(&self, bytes: &[u8]) -> bool {
        bytes[..2] == self.kind.to_be_bytes()
            && bytes[2] == self.flags.bits()
            && bytes[3..] == *self.name
    }
}

/// A response that was kept.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub stored: Arc<Stored>,
    /// Seconds since it came; `None`: it is past its time.
    pub age: Option<u32>,
    /// It is asked for, its time is nearly over, and nobody else was told so.
    pub refresh: bool,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    stored: Arc<Stored>,
    came: Instant,
    life: Duration,
    /// Until when upstreams are not asked again though it is past its time.
    rechecked: Option<Instant>,
    refreshing: bool,
    asked: bool,
}

impl Entry {
    fn size(&self) -> usize {
        OVERHEAD + self.key.len() + self.stored.size()
    }
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<u64, Entry>,
    /// The oldest first. What was asked for since it was last looked at gets another round (SIEVE's rule).
    order: VecDeque<u64>,
    bytes: usize,
    failures: HashMap<u64, Failure>,
}

/// A question that upstreams failed to answer, and of which nothing is kept.
#[derive(Debug)]
struct Failure {
    key: Box<[u8]>,
    until: Instant,
    wait: Duration,
}

/// Responses by what was asked. What is asked for least goes when there is no room.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
    /// Bytes of each shard.
    limit: usize,
    seed: std::hash::RandomState,
}

impl Cache {
    /// A cache of at most so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Cache {
            shards: std::array::from_fn(|_| Mutex::default()),
            limit: bytes / SHARDS,
            seed: std::hash::RandomState::new(),
        }
    }

    fn shard(&self, key: &Key<'_>) -> (u64, MutexGuard<'_, Shard>) {
        use std::hash::BuildHasher;
        let hash = self.seed.hash_one(key);
        let shard = &self.shards[hash as usize % SHARDS];
        (hash, shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is kept, past its time or not.
    pub(crate) fn get(&self, key: &Key<'_>, now: Instant) -> Option<Hit> {
        let (hash, mut shard) = self.shard(key);
        let entry = shard.entries.get_mut(&hash).filter(|e| key.is(&e.key))?;
        let age = now.saturating_duration_since(entry.came);
        if age > entry.life + STALE {
            return None;
        }
        let fresh = age < entry.life;
        // The last tenth of its time, once somebody asked a second time.
        let ending = fresh && age > entry.life.mul_f64(0.9);
        let refresh = ending && entry.asked && !entry.refreshing;
        entry.refreshing |= refresh;
        entry.asked = true;
        Some(Hit {
            stored: entry.stored.clone(),
            age: fresh.then(|| u32::try_from(age.as_secs()).unwrap_or(u32::MAX)),
            refresh,
        })
    }

    /// Whether upstreams failed so lately that they are not asked again.
    pub(crate) fn failed_lately(&self, key: &Key<'_>, now: Instant) -> bool {
        let (hash, shard) = self.shard(key);
        let until = match shard.entries.get(&hash).filter(|e| key.is(&e.key)) {
            Some(entry) => entry.rechecked,
            None => {
                let failure = shard.failures.get(&hash).filter(|f| key.is(&f.key));
                failure.map(|failure| failure.until)
            }
        };
        until.is_some_and(|until| until > now)
    }

    /// Keeps a response for as long as it says.
    pub(crate) fn put(&self, key: &Key<'_>, stored: &Arc<Stored>, now: Instant) {
        let Some(life) = stored.life() else { return };
        let entry = Entry {
            key: key.to_bytes(),
            stored: stored.clone(),
            came: now,
            life,
            rechecked: None,
            refreshing: false,
            asked: false,
        };
        let (hash, mut shard) = self.shard(key);
        let size = entry.size();
        if size > self.limit {
            return;
        }
        match shard.entries.insert(hash, entry) {
            Some(before) => shard.bytes -= before.size(),
            None => shard.order.push_back(hash),
        }
        shard.bytes += size;
        shard.failures.remove(&hash);
        while shard.bytes > self.limit {
            shard.evict();
        }
    }

    /// Notes that no upstream answered; what is kept is used for a while without asking again, and where nothing is kept
    /// that is remembered.
    pub(crate) fn failed(&self, key: &Key<'_>, now: Instant) {
        let (hash, mut shard) = self.shard(key);
        if let Some(entry) = shard.entries.get_mut(&hash).filter(|e| key.is(&e.key)) {
            entry.rechecked = Some(now + RECHECK);
            entry.refreshing = false;
            return;
        }
        let again = shard.failures.remove(&hash).filter(|failure| {
            key.is(&failure.key) && now.saturating_duration_since(failure.until) < MOST_FAILED
        });
        let wait = again.map_or(FIRST_FAILED, |failure| (failure.wait * 2).min(MOST_FAILED));
        shard.make_room_for_a_failure();
        let failure = Failure {
            key: key.to_bytes(),
            until: now + wait,
            wait,
        };
        shard.failures.insert(hash, failure);
    }

    /// Whoever failed may not be asked any more, or answers again.
    pub(crate) fn forget_failures(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.failures.clear();
        }
    }

    /// Bytes taken now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |shard: &Mutex<Shard>| shard.lock().unwrap().bytes;
        self.shards.iter().map(bytes).sum()
    }
}

impl Shard {
    fn make_room_for_a_failure(&mut self) {
        if self.failures.len() < FAILURES {
            return;
        }
        let soonest = self
            .failures
            .iter()
            .min_by_key(|(_, failure)| failure.until);
        if let Some(hash) = soonest.map(|(hash, _)| *hash) {
            self.failures.remove(&hash);
        }
    }

    fn evict(&mut self) {
        let Some(hash) = self.order.pop_front() else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&hash) else {
            return;
        };
        if std::mem::take(&mut entry.asked) {
            self.order.push_back(hash);
        } else if let Some(entry) = self.entries.remove(&hash) {
            self.bytes -= entry.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stored;

    fn key(name: &[u8]) -> Key<'_> {
        Key {
            name,
            kind: 1,
            flags: Flags::default(),
        }
    }

    #[test]
    fn a_response_is_fresh_then_stale_then_gone() {
        let cache = Cache::new(1 << 20);
        let began = Instant::now();
        cache.put(&key(b"a"), &stored("a.example.", 60), began);
        let at = |seconds| cache.get(&key(b"a"), began + Duration::from_secs(seconds));
        assert_eq!(at(0).unwrap().age, Some(0));
        assert_eq!(at(59).unwrap().age, Some(59));
        assert_eq!(at(60).unwrap().age, None);
        assert!(at(60 + 86_401).is_none());
        assert!(cache.get(&key(b"b"), began).is_none());
        let other_flags = Key {
            flags: Flags {
                dnssec_ok: true,
                ..Flags::default()
            },
            ..key(b"a")
        };
        assert!(cache.get(&other_flags, began).is_none());
    }

    #[test]
    fn one_is_told_to_refresh_what_is_asked_for_again() {
        let cache = Cache::new(1 << 20);
        let began = Instant::now();
        cache.put(&key(b"a"), &stored("a.example.", 60), began);
        let refresh = |seconds| {
            let hit = cache.get(&key(b"a"), began + Duration::from_secs(seconds));
            hit.unwrap().refresh
        };
        assert!(!refresh(1));
        assert!(refresh(56));
        assert!(!refresh(57), "somebody does already");
    }

    #[test]
    fn a_failure_is_remembered_longer_each_time_until_there_is_an_answer() {
        let cache = Cache::new(1 << 20);
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let failed_at = |millis| cache.failed_lately(&key(b"a"), at(millis));
        assert!(!failed_at(0));
        cache.failed(&key(b"a"), began);
        assert!(failed_at(999) && !failed_at(1_000));
        assert!(!cache.failed_lately(&key(b"b"), began));
        cache.failed(&key(b"a"), at(1_500));
        assert!(failed_at(3_499) && !failed_at(3_500));
        let mut now = 3_500;
        for _ in 0..9 {
            cache.failed(&key(b"a"), at(now));
            now += 30_000;
        }
        let last = now - 30_000;
        assert!(failed_at(last + 29_999) && !failed_at(last + 30_000));
        cache.put(&key(b"a"), &stored("a.example.", 60), at(last));
        assert!(!failed_at(last), "there is an answer");
        cache.failed(&key(b"c"), began);
        cache.forget_failures();
        assert!(!cache.failed_lately(&key(b"c"), began));
    }

    #[test]
    fn failures_are_bounded() {
        let cache = Cache::new(1 << 20);
        let began = Instant::now();
        for index in 0u64..10_000 {
            let name = index.to_be_bytes();
            let now = began + Duration::from_micros(index);
            cache.failed(&key(&name), now);
            assert!(cache.failed_lately(&key(&name), now), "the newest is known");
        }
        let failures = |shard: &Mutex<Shard>| shard.lock().unwrap().failures.len();
        let all: usize = cache.shards.iter().map(failures).sum();
        assert_eq!(all, SHARDS * FAILURES);
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let limit = 64 << 10;
        let cache = Cache::new(limit);
        let now = Instant::now();
        let popular = key(b"popular");
        cache.put(&popular, &stored("popular.example.", 60), now);
        for index in 0u32..10_000 {
            assert!(cache.get(&popular, now).is_some(), "after {index}");
            cache.put(&key(&index.to_be_bytes()), &stored("x.example.", 60), now);
            assert!(cache.bytes() <= limit);
        }
        assert!(cache.bytes() > limit / 2);
    }
}
