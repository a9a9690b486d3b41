//! When an endpoint turns. Time and randomness are passed in.

use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;

/// The first pause between two checks of an endpoint that is not known yet; doubled up to the interval.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How often an endpoint is checked, and how many results in a row turn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two checks, give or take a tenth.
    pub interval: Duration,
    /// Passes in a row until a failing endpoint is passing.
    pub rise: u32,
    /// Failures in a row until a passing endpoint is failing.
    pub fall: u32,
}

/// What is known of an endpoint when its checks begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// It just started: checked at once and then often, and one pass makes it ready.
    Starting(Fact<Health>),
    /// This node checked it before, in an earlier process: goes on where that left off.
    Known(Fact<Health>),
    /// Another node checked it, which is gone: confirmed or refuted as fast as a start.
    Suspect(Fact<Health>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting { pause: Duration },
    Suspect { pause: Duration },
    Known,
}

/// One endpoint's health, from result to result.
#[derive(Clone, Debug)]
pub struct Machine {
    timing: Timing,
    phase: Phase,
    fact: Fact<Health>,
    /// Results in a row that speak against `fact`.
    against: u32,
    random: u64,
}

impl Machine {
    /// A machine whose jitter follows from `seed` alone.
    pub fn new(timing: Timing, begin: Begin, seed: u64) -> Self {
        let pause = FIRST_PAUSE.min(timing.interval);
        let (phase, fact) = match begin {
            Begin::Starting(fact) => (Phase::Starting { pause }, fact),
            Begin::Known(fact) | Begin::Suspect(fact) if fact.value == Health::Unknown => {
                (Phase::Starting { pause }, fact)
            }
            Begin::Known(fact) => (Phase::Known, fact),
            Begin::Suspect(fact) => (Phase::Suspect { pause }, fact),
        };
        Machine {
            timing,
            phase,
            fact,
            against: 0,
            random: seed,
        }
    }

    /// What is believed now.
    pub fn fact(&self) -> &Fact<Health> {
        &self.fact
    }

    /// How long until the first check: none, unless it is known, whose first check falls anywhere within an interval (but
    /// within a second) so that a restart does not check everything at one moment.
    pub fn first(&mut self) -> Duration {
        match self.phase {
            Phase::Known => {
                let within = self.timing.interval.min(Duration::from_secs(1));
                within.mul_f64(self.unit())
            }
            Phase::Starting { .. } | Phase::Suspect { .. } => Duration::ZERO,
        }
    }

    /// Changes when and how fast it turns; what is believed stays.
    pub fn retime(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// Takes a result over. Returns whether the fact changed, and how long until the next check.
    pub fn observe(&mut self, result: Result<&str, &str>, now: Timestamp) -> (bool, Duration) {
        let changed = match self.phase {
            Phase::Known => self.observe_known(result, now),
            Phase::Starting { .. } | Phase::Suspect { .. } => self.observe_early(result, now),
        };
        let pause = match &mut self.phase {
            Phase::Known => self.timing.interval,
            Phase::Starting { pause } | Phase::Suspect { pause } => {
                let this = *pause;
                *pause = (this * 2).min(self.timing.interval);
                this
            }
        };
        let tenth = pause.mul_f64(0.1);
        let jittered = pause - tenth + (tenth * 2).mul_f64(self.unit());
        (changed, jittered)
    }

    fn observe_early(&mut self, result: Result<&str, &str>, now: Timestamp) -> bool {
        match result {
            Ok(reason) => {
                self.phase = Phase::Known;
                self.against = 0;
                self.fact.set(Health::Passing, now, reason)
            }
            Err(reason) => {
                self.against = self.against.saturating_add(1);
                if self.against < self.timing.fall {
                    return false;
                }
                if matches!(self.phase, Phase::Suspect { .. }) {
                    self.phase = Phase::Known;
                    self.against = 0;
                    return self.fact.set(Health::Failing, now, reason);
                }
                // It is still starting, however long that takes; users should see what it is that fails.
                let told = self.against == self.timing.fall && *self.fact.reason != *reason;
                if told {
                    self.fact.reason = reason.into();
                }
                told
            }
        }
    }

    fn observe_known(&mut self, result: Result<&str, &str>, now: Timestamp) -> bool {
        let (speaks, reason) = match result {
            Ok(reason) => (Health::Passing, reason),
            Err(reason) => (Health::Failing, reason),
        };
        if speaks == self.fact.value {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = match speaks {
            Health::Passing => self.timing.rise,
            Health::Failing | Health::Unknown => self.timing.fall,
        };
        if self.against < needed {
            return false;
        }
        self.against = 0;
        self.fact.set(speaks, now, Arc::<str>::from(reason))
    }

    /// A number from 0 up to 1 (SplitMix64).
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 32 bits fit into a double exactly.
        f64::from(u32::try_from(z >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }
}
