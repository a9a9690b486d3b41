//! A bound on how many events are told at once: a flood is counted, and told in one event.

use std::collections::BTreeMap;

use model::{EventKind, Timestamp};

/// Told at once at most.
pub const AT_ONCE: u64 = 4096;
/// Added to what may be told, each second.
pub const EACH_SECOND: u64 = 200;

/// A token bucket that remembers what it refused.
pub struct Burst {
    /// In thousandths of an event.
    room: u64,
    at: Timestamp,
    refused: BTreeMap<(EventKind, &'static str), u64>,
}

impl Burst {
    /// All its room is there.
    pub fn new(now: Timestamp) -> Self {
        Burst {
            room: AT_ONCE * 1000,
            at: now,
            refused: BTreeMap::new(),
        }
    }

    /// Gives back the room of the time that has passed. A clock that was set back gives none.
    pub fn refill(&mut self, now: Timestamp) {
        let passed = u64::try_from(now.0.saturating_sub(self.at.0)).unwrap_or(0);
        self.at = now;
        self.room =
            (self.room.saturating_add(passed.saturating_mul(EACH_SECOND))).min(AT_ONCE * 1000);
    }

    /// Whether one more may be told; what may not is counted.
    pub fn admit(&mut self, kind: EventKind, reason: &'static str) -> bool {
        if self.room >= 1000 {
            self.room -= 1000;
            return true;
        }
        *self.refused.entry((kind, reason)).or_insert(0) += 1;
        false
    }

    /// Whether something was refused since the last report.
    pub fn refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// How many were refused since the last report, and of what, in words.
    pub fn report(&mut self) -> Option<(u64, String)> {
        let refused = std::mem::take(&mut self.refused);
        let count: u64 = refused.values().sum();
        if count == 0 {
            return None;
        }
        let mut kinds: Vec<(u64, &str)> = refused.iter().map(|((_, r), n)| (*n, *r)).collect();
        kinds.sort_by(|a, b| b.cmp(a));
        let kinds = super::words::joined(kinds.iter().map(|(n, r)| format!("{r} {n}")));
        let text = format!("{count} events were left out, more than {AT_ONCE} at once: {kinds}");
        Some((count, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: EventKind = EventKind::Endpoint;

    #[test]
    fn a_flood_is_cut_off_counted_and_reported_once() {
        let mut burst = Burst::new(Timestamp(0));
        let told = (0..100_000)
            .filter(|_| burst.admit(KIND, "EndpointAdded"))
            .count();
        assert_eq!(told as u64, AT_ONCE);
        let (count, text) = burst.report().unwrap();
        assert_eq!(count, 100_000 - AT_ONCE);
        assert!(text.contains("EndpointAdded 95904"), "{text}");
        assert!(burst.report().is_none());
    }

    #[test]
    fn room_comes_back_with_time_up_to_its_bound() {
        let mut burst = Burst::new(Timestamp(0));
        while burst.admit(KIND, "EndpointAdded") {}
        burst.refill(Timestamp(1000));
        let told = (0..1000).filter(|_| burst.admit(KIND, "EndpointAdded"));
        assert_eq!(told.count() as u64, EACH_SECOND);
        burst.refill(Timestamp(-5000));
        assert!(!burst.admit(KIND, "EndpointAdded"));
        burst.refill(Timestamp(1_000_000_000));
        let told = (0..10_000).filter(|_| burst.admit(KIND, "EndpointAdded"));
        assert_eq!(told.count() as u64, AT_ONCE);
    }
}
