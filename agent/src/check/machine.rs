//! When an endpoint turns. Time is passed in.

use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;

use super::flaps::{Flaps, flapping};

/// The first pause between two checks of an endpoint that starts; it grows by half each time, up to the interval. A
/// container is so found ready at the latest after half the time again that it took to start, for some 17 checks.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The first pause for an endpoint that another node knew: its process is believed to run, and one that restarts just now
/// is not to be taken for dead within milliseconds.
const FIRST_SUSPECT_PAUSE: Duration = Duration::from_millis(50);
/// How long an endpoint has to fail from its start on until users are told why: until its process listens, it refuses.
const STARTING_QUIET: Duration = Duration::from_secs(1);
/// A first check of what is known falls anywhere within this time, or within an interval if that is shorter.
const SPREAD: Duration = Duration::from_secs(1);

/// Between two checks at least, whatever a record asks for: none at all would keep a thread busy for ever.
pub(super) const LEAST_INTERVAL: Duration = Duration::from_millis(10);

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
    Starting {
        pause: Duration,
        /// When it failed first.
        since: Option<Duration>,
        /// How long after that users are told what fails now.
        tell_after: Duration,
    },
    Suspect {
        pause: Duration,
    },
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
    /// When that row began.
    row_since: Duration,
    flaps: Flaps,
    /// How long a row of passes has to last at least.
    hold: Duration,
}

impl Machine {
    /// A machine that goes on from what is known.
    pub fn new(timing: Timing, begin: Begin) -> Self {
        let starting = Phase::Starting {
            pause: FIRST_PAUSE,
            since: None,
            tell_after: STARTING_QUIET,
        };
        let suspect = Phase::Suspect {
            pause: FIRST_SUSPECT_PAUSE,
        };
        let (phase, fact) = match begin {
            Begin::Starting(fact) => (starting, fact),
            Begin::Known(fact) | Begin::Suspect(fact) if fact.value == Health::Unknown => {
                (starting, fact)
            }
            Begin::Known(fact) => (Phase::Known, fact),
            Begin::Suspect(fact) => (suspect, fact),
        };
        Machine {
            timing,
            phase,
            fact,
            against: 0,
            row_since: Duration::ZERO,
            flaps: Flaps::default(),
            hold: Duration::ZERO,
        }
    }

    /// What is believed now.
    pub fn fact(&self) -> &Fact<Health> {
        &self.fact
    }

    /// Whether the last check passed.
    pub fn passes(&self) -> bool {
        match self.fact.value {
            Health::Passing => self.against == 0,
            Health::Failing => self.phase == Phase::Known && self.against > 0,
            Health::Unknown => false,
        }
    }

    /// How the first check is spread in time: not at all, unless it is known, so that a restart of the agent does not check
    /// everything at one moment.
    pub fn spread(&self) -> Duration {
        match self.phase {
            Phase::Known => self.timing.interval.min(SPREAD),
            Phase::Starting { .. } | Phase::Suspect { .. } => Duration::ZERO,
        }
    }

    /// How much earlier than due a check may come to count all the same, where several services share it.
    pub fn slack(&self) -> Duration {
        match self.phase {
            Phase::Known => self.timing.interval / 4,
            // Any answer is as good as its own.
            Phase::Starting { .. } | Phase::Suspect { .. } => Duration::MAX,
        }
    }

    /// Changes when and how fast it turns; what is believed stays.
    pub fn retime(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// Takes a result over, at `now` since a moment that the caller chose. Returns whether the fact changed, and how long
    /// until the next check.
    pub fn observe(
        &mut self,
        result: Result<&str, &str>,
        now: Duration,
        clock: Timestamp,
    ) -> (bool, Duration) {
        let changed = match (self.phase, result) {
            (Phase::Known, _) => self.observe_known(result, now, clock),
            (_, Ok(reason)) => {
                self.phase = Phase::Known;
                self.against = 0;
                self.fact.set(Health::Passing, clock, reason)
            }
            (Phase::Starting { .. }, Err(reason)) => self.fails_to_start(reason, now),
            (Phase::Suspect { .. }, Err(reason)) => {
                self.against += 1;
                self.against >= self.timing.fall && {
                    self.phase = Phase::Known;
                    self.against = 0;
                    self.fact.set(Health::Failing, clock, reason)
                }
            }
        };
        let interval = self.timing.interval.max(LEAST_INTERVAL);
        let next = match &mut self.phase {
            Phase::Known => interval,
            Phase::Starting { pause, .. } => step(pause, 1.5, interval),
            Phase::Suspect { pause } => step(pause, 2.0, interval),
        };
        (changed, next)
    }

    /// It is still starting, however long that takes; users should see what it is that fails. What fails may change while
    /// it starts (refused, then 503), and is told less and less often: each time is a write.
    fn fails_to_start(&mut self, reason: &str, now: Duration) -> bool {
        let Phase::Starting {
            since, tell_after, ..
        } = &mut self.phase
        else {
            return false;
        };
        self.against = self.against.saturating_add(1);
        let failing = now.saturating_sub(*since.get_or_insert(now));
        if self.against < self.timing.fall || failing < *tell_after || *self.fact.reason == *reason
        {
            return false;
        }
        *tell_after = failing * 2;
        self.fact.reason = reason.into();
        true
    }

    fn observe_known(
        &mut self,
        result: Result<&str, &str>,
        now: Duration,
        clock: Timestamp,
    ) -> bool {
        let (speaks, reason) = match result {
            Ok(reason) => (Health::Passing, reason),
            Err(reason) => (Health::Failing, reason),
        };
        if speaks == self.fact.value {
            self.against = 0;
            return false;
        }
        if self.against == 0 {
            self.row_since = now;
        }
        self.against = self.against.saturating_add(1);
        let lasts = now.saturating_sub(self.row_since);
        let turns = match speaks {
            Health::Passing => self.against >= self.timing.rise && lasts >= self.hold,
            Health::Failing | Health::Unknown => self.against >= self.timing.fall,
        };
        if !turns {
            return false;
        }
        self.against = 0;
        if speaks == Health::Passing {
            return self.fact.set(speaks, clock, reason);
        }
        self.hold = self.flaps.turned_failing(now);
        self.fact.set(speaks, clock, flapping(reason, self.hold))
    }
}

/// This pause, which is longer the next time.
fn step(pause: &mut Duration, factor: f64, most: Duration) -> Duration {
    let this = (*pause).min(most);
    *pause = pause.mul_f64(factor).min(most);
    this
}
