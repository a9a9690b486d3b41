//! Endpoints that leave packets unanswered: a host that is cut off costs whoever dials it a whole connect time-out. Until
//! health checks or the node's liveness have noticed, such an endpoint is passed over while there is another.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::snapshot::EndpointView;

/// How long nobody tries. Then one request does, at the cost of a connect time-out if nothing has changed.
const HOLD_OFF: Duration = Duration::from_secs(5);

/// Milliseconds since some moment of this process, never 0.
fn now() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = BEGAN.get_or_init(Instant::now);
    u64::try_from(began.elapsed().as_millis()).map_or(u64::MAX, |ms| ms + 1)
}

fn until(now: u64) -> u64 {
    now.saturating_add(u64::try_from(HOLD_OFF.as_millis()).unwrap_or(u64::MAX))
}

/// The endpoint left packets unanswered.
pub(crate) fn begin(endpoint: &EndpointView) {
    let load = &endpoint.load.held_off_until;
    load.store(until(now()), Ordering::Relaxed);
}

/// The endpoint answers. One load, where it did before.
pub(crate) fn end(endpoint: &EndpointView) {
    let load = &endpoint.load.held_off_until;
    if load.load(Ordering::Relaxed) != 0 {
        load.store(0, Ordering::Relaxed);
    }
}

/// Whether the endpoint is to be passed over now. One load, where all is well.
pub(super) fn holds(endpoint: &EndpointView) -> bool {
    let held = &endpoint.load.held_off_until;
    held.load(Ordering::Relaxed) != 0 && holds_at(held, now())
}

/// Of all that ask after the time has passed, one is let through, and the time begins anew for the others.
fn holds_at(held: &AtomicU64, now: u64) -> bool {
    let seen = held.load(Ordering::Relaxed);
    if seen == 0 {
        return false;
    }
    if now < seen {
        return true;
    }
    held.compare_exchange(seen, until(now), Ordering::Relaxed, Ordering::Relaxed)
        .is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_tries_within_the_time_and_one_after_it() {
        let held = AtomicU64::new(until(1_000));
        assert!(holds_at(&held, 1_000));
        assert!(holds_at(&held, 5_999));
        assert!(!holds_at(&held, 6_000), "one is let through");
        assert!(holds_at(&held, 6_000), "and only one");
        assert!(!holds_at(&held, 11_000));
    }

    #[test]
    fn an_endpoint_that_answers_is_not_held_off() {
        let held = AtomicU64::new(0);
        assert!(!holds_at(&held, 1));
    }
}
