//! The zone's serial (RFC 1035, 3.3.13), by which secondaries learn that there is something new.
//!
//! The registry's revision would not do: what this node finds out for itself (who passes its checks, who is gone) changes
//! answers at the same revision, and a registry that was restored from a backup goes back. So the serial is the time of
//! the newest change in seconds since 1970, which no restart takes back, and which nodes with right clocks agree on well
//! enough for a secondary to change from one to another.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Serials of snapshots. All that answers shares one.
#[derive(Debug, Default)]
pub(crate) struct Serials(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Of the newest snapshot seen.
    epoch: Option<u64>,
    serial: u32,
    /// Somebody has a copy of the zone under this serial.
    given: bool,
}

impl State {
    /// Within a second, only what somebody has a copy of gets a new serial: it must not run ahead of the clock, which a
    /// restart would then take back.
    fn follow(&mut self, epoch: u64, now: u32) {
        if self.epoch.is_some_and(|newest| epoch <= newest) {
            return;
        }
        self.epoch = Some(epoch);
        self.serial = now.max(self.serial.saturating_add(self.given.into()));
        self.given = false;
    }
}

impl Serials {
    fn follow(&self, epoch: u64) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.follow(epoch, now());
        state
    }

    /// The serial of a snapshot; of one that is the newest no more, the newest one's.
    pub(crate) fn of(&self, epoch: u64) -> u32 {
        self.follow(epoch).serial
    }

    /// The serial under which a copy of the zone goes out; `None` when there is a newer snapshot to copy.
    pub(crate) fn give(&self, epoch: u64) -> Option<u32> {
        let mut state = self.follow(epoch);
        if state.epoch != Some(epoch) {
            return None;
        }
        state.given = true;
        Some(state.serial)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() as u32)
}

/// Whether `theirs` is as new as `ours` or newer (RFC 1982, 3.2).
pub(crate) fn is_current(theirs: u32, ours: u32) -> bool {
    const HALF: u32 = 1 << 31;
    theirs.wrapping_sub(ours) < HALF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_that_differs_has_a_serial_of_its_own_and_none_runs_ahead_of_the_clock() {
        let mut state = State::default();
        state.follow(1, 1000);
        assert_eq!(state.serial, 1000);
        state.follow(2, 1000);
        assert_eq!(state.serial, 1000, "nobody has a copy");
        state.given = true;
        state.follow(3, 1000);
        assert_eq!(state.serial, 1001);
        state.follow(4, 1000);
        assert_eq!(state.serial, 1001);
        state.follow(5, 2000);
        assert_eq!(state.serial, 2000);
        state.given = true;
        state.follow(6, 900);
        assert_eq!(state.serial, 2001, "a clock that goes back");
        state.follow(5, 3000);
        assert_eq!(state.serial, 2001, "an old snapshot changes nothing");
    }

    #[test]
    fn a_snapshot_that_is_not_the_newest_is_not_given() {
        let serials = Serials::default();
        let first = serials.give(1).unwrap();
        assert_eq!(serials.give(1), Some(first));
        let second = serials.of(2);
        assert!(second > first);
        assert_eq!(serials.give(1), None);
        assert_eq!(serials.of(1), second);
    }

    #[test]
    fn serials_are_compared_around_the_clock() {
        assert!(is_current(7, 7) && is_current(8, 7) && !is_current(6, 7));
        assert!(is_current(3, u32::MAX) && !is_current(u32::MAX, 3));
    }
}
