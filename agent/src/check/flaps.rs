//! Damping of endpoints that flip between passing and failing again and again, as RFC 2439 damps flapping routes.
//!
//! Turning to failing is never damped: it is what keeps traffic away. Each such turn adds 1 to a penalty that halves every
//! ten minutes; from the third turn in a row on, turning back takes a row of passes of a certain length in time, which
//! doubles with each further turn up to five minutes. An endpoint that flips for ever so costs a bounded number of writes
//! an hour, whatever its interval.

use std::time::Duration;

use model::units::Span;

/// How long it takes until half of a penalty is forgiven.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// The penalty from which on turning back is held: the third turn within some minutes.
const THRESHOLD: f64 = 2.5;
/// No penalty is larger, so that an endpoint that was mended is forgiven within 20 minutes.
const MOST: f64 = 8.0;
const FIRST_HOLD: Duration = Duration::from_secs(10);
const LONGEST_HOLD: Duration = Duration::from_secs(300);

/// How often an endpoint turned to failing lately.
#[derive(Clone, Debug, Default)]
pub struct Flaps {
    penalty: f64,
    /// When the penalty had this value.
    at: Duration,
}

impl Flaps {
    /// Notes a turn to failing. Returns how long a row of passes has to last until the endpoint may turn back.
    pub fn turned_failing(&mut self, now: Duration) -> Duration {
        let age = now.saturating_sub(self.at).as_secs_f64();
        let left = self.penalty * (-age / HALF_LIFE.as_secs_f64()).exp2();
        self.penalty = (left + 1.0).min(MOST);
        self.at = now;
        if self.penalty < THRESHOLD {
            return Duration::ZERO;
        }
        let doublings = (self.penalty - THRESHOLD).floor();
        FIRST_HOLD.mul_f64(doublings.exp2()).min(LONGEST_HOLD)
    }
}

/// A reason that says too for how long the endpoint is held.
pub fn flapping(reason: &str, hold: Duration) -> String {
    if hold.is_zero() {
        return reason.to_owned();
    }
    let hold = Span(hold);
    format!("{reason} (flaps: takes work again after passing for {hold})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_turns_cost_nothing_and_then_the_hold_doubles() {
        let mut flaps = Flaps::default();
        let holds: Vec<u64> = (0..10)
            .map(|turn| {
                flaps
                    .turned_failing(Duration::from_secs(100 + turn))
                    .as_secs()
            })
            .collect();
        assert_eq!(holds, [0, 0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn what_is_quiet_for_long_is_forgiven() {
        let mut flaps = Flaps::default();
        for turn in 0..20 {
            flaps.turned_failing(Duration::from_secs(turn));
        }
        let later = Duration::from_secs(20) + HALF_LIFE * 3;
        assert_eq!(flaps.turned_failing(later), Duration::ZERO);
    }
}
