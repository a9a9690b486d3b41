//! Health that somebody else tells, Docker's HEALTHCHECK: believed as told, but damped when it flaps. Time is passed in.

use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;

use super::flaps::{Flaps, flapping};

/// What is believed of one endpoint.
#[derive(Clone, Debug)]
pub struct Heard {
    fact: Fact<Health>,
    said: Health,
    reason: Arc<str>,
    flaps: Flaps,
    /// How long it has to be told passing until that is believed.
    hold: Duration,
    /// Told passing since then, and not believed yet.
    passing_since: Duration,
}

impl Heard {
    /// Goes on from what is known.
    pub fn new(fact: Fact<Health>) -> Self {
        Heard {
            said: fact.value,
            reason: fact.reason.clone(),
            fact,
            flaps: Flaps::default(),
            hold: Duration::ZERO,
            passing_since: Duration::ZERO,
        }
    }

    /// What is believed now.
    pub fn fact(&self) -> &Fact<Health> {
        &self.fact
    }

    /// Whether it is told to pass, whatever is believed.
    pub fn passes(&self) -> bool {
        self.said == Health::Passing
    }

    /// When what was told will be believed, if it isn't yet and is not taken back.
    pub fn due(&self) -> Option<Duration> {
        let waits = self.said == Health::Passing && self.fact.value == Health::Failing;
        waits.then(|| self.passing_since + self.hold)
    }

    /// Takes over what is told. Returns whether the fact changed.
    pub fn hear(
        &mut self,
        value: Health,
        reason: &Arc<str>,
        now: Duration,
        clock: Timestamp,
    ) -> bool {
        if value == Health::Passing && self.said != Health::Passing {
            self.passing_since = now;
        }
        self.said = value;
        self.reason = reason.clone();
        match (self.fact.value, value) {
            (Health::Failing, Health::Passing) => self.look(now, clock),
            (Health::Passing, Health::Failing) => {
                self.hold = self.flaps.turned_failing(now);
                let reason = flapping(reason, self.hold);
                self.fact.set(value, clock, reason)
            }
            _ => self.fact.set(value, clock, reason.clone()),
        }
    }

    /// Believes what was told long enough. Returns whether the fact changed.
    pub fn look(&mut self, now: Duration, clock: Timestamp) -> bool {
        self.due().is_some_and(|at| at <= now)
            && self.fact.set(Health::Passing, clock, self.reason.clone())
    }
}
