//! One endpoint's health from result to result, in simulated time.

use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;
use proptest::prelude::*;

use super::{TIMING, fact};
use crate::check::{Begin, Machine, Timing};

/// A machine and a clock.
struct Endpoint {
    machine: Machine,
    now: Duration,
}

impl Endpoint {
    fn new(timing: Timing, begin: Begin) -> Self {
        Endpoint {
            machine: Machine::new(timing, begin),
            now: Duration::from_secs(1000),
        }
    }

    /// One check; whether the fact changed. Time goes on by the pause.
    fn check(&mut self, result: Result<&str, &str>) -> bool {
        let clock = Timestamp(i64::try_from(self.now.as_millis()).expect("short"));
        let (changed, pause) = self.machine.observe(result, self.now, clock);
        self.now += pause;
        changed
    }

    fn health(&self) -> Health {
        self.machine.fact().value
    }

    fn reason(&self) -> &str {
        &self.machine.fact().reason
    }

    /// Feeds results (`+` passes, `-` fails) and gives back the health after each.
    fn run(&mut self, results: &str) -> Vec<Health> {
        results
            .chars()
            .map(|c| {
                self.check(if c == '+' {
                    Ok("passes")
                } else {
                    Err("refused")
                });
                self.health()
            })
            .collect()
    }
}

#[test]
fn a_starting_endpoint_is_ready_at_its_first_pass() {
    use Health::{Passing, Unknown};
    assert_eq!(
        Endpoint::new(TIMING, Begin::Starting(fact(Unknown))).run("-----+"),
        [Unknown, Unknown, Unknown, Unknown, Unknown, Passing]
    );
}

#[test]
fn a_known_endpoint_turns_after_rise_passes_and_fall_failures_in_a_row() {
    use Health::{Failing, Passing};
    assert_eq!(
        Endpoint::new(TIMING, Begin::Known(fact(Passing))).run("--+---+-++"),
        [
            Passing, Passing, Passing, Passing, Passing, Failing, Failing, Failing, Failing,
            Passing
        ]
    );
}

#[test]
fn a_suspect_is_confirmed_by_one_pass_and_refuted_by_fall_failures() {
    use Health::{Failing, Passing};
    let suspect = |health| Endpoint::new(TIMING, Begin::Suspect(fact(health)));
    assert_eq!(suspect(Failing).run("+"), [Passing]);
    assert_eq!(suspect(Passing).run("---"), [Passing, Passing, Failing]);
}

#[test]
fn pauses_grow_by_half_from_5_ms_up_to_the_interval() {
    let mut endpoint = Endpoint::new(TIMING, Begin::Starting(fact(Health::Unknown)));
    assert_eq!(endpoint.machine.spread(), Duration::ZERO);
    let pauses: Vec<u128> = (0..19)
        .map(|_| {
            let before = endpoint.now;
            endpoint.check(Err("refused"));
            (endpoint.now - before).as_millis()
        })
        .collect();
    assert_eq!(
        pauses,
        [
            5, 7, 11, 16, 25, 37, 56, 85, 128, 192, 288, 432, 648, 973, 1459, 2189, 3284, 4926,
            5000
        ]
    );
}

#[test]
fn since_and_reason_move_only_when_the_value_does() {
    let mut endpoint = Endpoint::new(TIMING, Begin::Known(fact(Health::Passing)));
    assert!(!endpoint.check(Ok("passes")));
    assert_eq!(endpoint.machine.fact(), &fact(Health::Passing));
    endpoint.run("--");
    let at = Timestamp(i64::try_from(endpoint.now.as_millis()).expect("short"));
    endpoint.run("-");
    assert_eq!(
        endpoint.machine.fact(),
        &Fact::new(Health::Failing, at, "refused")
    );
    assert!(!endpoint.check(Err("timed out")));
    assert_eq!(endpoint.reason(), "refused");
}

#[test]
fn users_see_what_keeps_failing_while_it_starts_but_not_that_it_does_not_listen_yet() {
    let mut endpoint = Endpoint::new(TIMING, Begin::Starting(fact(Health::Unknown)));
    let start = endpoint.now;
    while endpoint.now < start + Duration::from_secs(1) {
        assert!(!endpoint.check(Err("refused")), "at {:?}", endpoint.now);
    }
    while !endpoint.check(Err("503")) {
        assert!(endpoint.now < start + Duration::from_secs(5));
    }
    let told = endpoint.machine.fact();
    assert_eq!(
        (told.value, told.since, &*told.reason),
        (Health::Unknown, Timestamp(1), "503")
    );
}

#[test]
fn what_fails_in_ever_new_ways_while_it_starts_is_told_ever_more_rarely() {
    let mut endpoint = Endpoint::new(TIMING, Begin::Starting(fact(Health::Unknown)));
    let end = endpoint.now + Duration::from_secs(24 * 3600);
    let (mut told, mut n) = (0, 0);
    while endpoint.now < end {
        n += 1;
        told += u32::from(endpoint.check(Err(&format!("error {n}"))));
    }
    assert!((2..=20).contains(&told), "{told} writes in a day");
}

#[test]
fn a_third_failure_within_minutes_holds_the_endpoint_back_and_says_so() {
    let mut endpoint = Endpoint::new(TIMING, Begin::Known(fact(Health::Passing)));
    endpoint.run("---++---++---");
    assert_eq!(
        endpoint.reason(),
        "refused (flaps: takes work again after passing for 10s)"
    );
    // Ten seconds are three checks, where two suffice otherwise.
    use Health::{Failing, Passing};
    assert_eq!(endpoint.run("+++"), [Failing, Failing, Passing]);
    endpoint.run("---");
    assert!(endpoint.reason().ends_with("passing for 20s)"));
    assert_eq!(
        endpoint.run("++-+++++"),
        [
            Failing, Failing, Failing, Failing, Failing, Failing, Failing, Passing
        ]
    );
}

#[test]
fn what_was_quiet_for_an_hour_turns_as_if_it_never_flapped() {
    let mut endpoint = Endpoint::new(TIMING, Begin::Known(fact(Health::Passing)));
    for _ in 0..20 {
        endpoint.run("---");
        while endpoint.health() == Health::Failing {
            endpoint.run("+");
        }
    }
    let quiet_until = endpoint.now + Duration::from_secs(3600);
    while endpoint.now < quiet_until {
        assert!(!endpoint.check(Ok("passes")));
    }
    endpoint.run("---");
    assert_eq!(endpoint.reason(), "refused");
    assert_eq!(endpoint.run("++"), [Health::Failing, Health::Passing]);
}

proptest! {
    /// Against a model: until it flaps, the health is what the last long enough row of results says, and nothing turns it
    /// earlier. However it flaps, it turns to failing by that rule, and never passes by less.
    #[test]
    fn a_known_endpoint_follows_rise_and_fall(
        results in proptest::collection::vec(any::<bool>(), 0..200), rise in 1u32..5, fall in 1u32..5,
    ) {
        let timing = Timing { rise, fall, ..TIMING };
        let mut endpoint = Endpoint::new(timing, Begin::Known(fact(Health::Passing)));
        let (mut passing, mut row, mut failures) = (true, 0, 0);
        for pass in results {
            endpoint.check(if pass { Ok("") } else { Err("no") });
            let turned = (endpoint.health() == Health::Passing) != passing;
            row = if pass == passing { 0 } else { row + 1 };
            let due = row >= if passing { fall } else { rise };
            if passing || failures < 3 {
                prop_assert_eq!(turned, due);
            }
            prop_assert!(due || !turned);
            if turned {
                failures += u32::from(passing);
                (passing, row) = (pass, 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever an endpoint does, at whatever interval, a day of it costs a bounded number of writes; and one that fails
    /// is out after `fall` checks each time.
    #[test]
    fn flapping_for_ever_costs_a_bounded_number_of_turns(
        seed in any::<u64>(), interval_ms in prop_oneof![Just(100u64), Just(1000), Just(5000)],
        passes in 1u64..40, failures in 1u64..20,
    ) {
        let interval = Duration::from_millis(interval_ms);
        let timing = Timing { interval, rise: 2, fall: 3 };
        let mut endpoint = Endpoint::new(timing, Begin::Known(fact(Health::Passing)));
        let mut random = crate::check::jitter::Jitter::new(seed);
        let hours = 6;
        let end = endpoint.now + Duration::from_secs(hours * 3600);
        let (mut turns, mut refused) = (0u64, 0);
        // The worst there is: it passes for as long as it takes to be believed, and then fails.
        while endpoint.now < end {
            let worst = random.unit() < 0.5;
            let mut left = passes;
            while if worst { endpoint.health() == Health::Failing } else { left > 0 } {
                left = left.saturating_sub(1);
                turns += u64::from(endpoint.check(Ok("passes")));
                refused = 0;
            }
            for _ in 0..failures.max(3) {
                turns += u64::from(endpoint.check(Err("refused")));
                refused += 1;
                prop_assert!(refused < 3 || endpoint.health() == Health::Failing);
            }
        }
        prop_assert!(turns <= 12 + 60 * hours, "{turns} writes in {hours} hours");
    }
}
