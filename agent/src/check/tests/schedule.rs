//! Many endpoints in simulated time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use model::endpoint::Health;
use model::time::Timestamp;
use proptest::prelude::*;

use super::{fact, key, spec};
use crate::check::schedule::Due;
use crate::check::{Begin, CheckKey, Probe, Schedule, Spec, Timing};

const CLOCK: Timestamp = Timestamp(2);
const PASSED: Option<Result<&str, &str>> = Some(Ok(""));

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(1000 + n).expect("few")))
}

fn known() -> Begin {
    Begin::Known(fact(Health::Passing))
}

fn starting() -> Begin {
    Begin::Starting(fact(Health::Unknown))
}

/// Of another service than [`key`]'s.
fn other(name: &str) -> CheckKey {
    CheckKey {
        service: "shop/other".parse().expect("a key"),
        ..key(name)
    }
}

/// What runs in a simulation: when each check ends.
#[derive(Default)]
struct Running {
    ends: BinaryHeap<Reverse<(Duration, u64)>>,
    checks: HashMap<u64, Due>,
    count: u64,
}

impl Running {
    fn start(&mut self, due: Due, end: Duration) {
        self.count += 1;
        self.ends.push(Reverse((end, self.count)));
        self.checks.insert(self.count, due);
    }

    fn next_end(&self) -> Duration {
        self.ends
            .peek()
            .map_or(Duration::MAX, |Reverse((at, _))| *at)
    }

    fn take(&mut self) -> Due {
        let Reverse((_, n)) = self.ends.pop().expect("something runs");
        self.checks.remove(&n).expect("it runs")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A simulated hour of many endpoints: each is checked about as often as its interval says, never twice at once, and
    /// never after it was removed.
    #[test]
    fn the_schedule_checks_everything_in_its_time(count in 1usize..40, seed: u64) {
        let mut schedule = Schedule::new(64, seed);
        for n in 0..count {
            schedule.begin(key(&n.to_string()), spec(Probe::Tcp, address(n)), known(), Duration::ZERO);
        }
        schedule.remove(&key("0"));
        let mut done: HashMap<SocketAddr, u32> = HashMap::new();
        let end = Duration::from_secs(3600);
        while let Some(now) = schedule.next_at().filter(|at| *at < end) {
            let due = schedule.take_due(now).expect("it is due");
            if let Some(another) = schedule.take_due(now) {
                prop_assert_ne!(&another.target, &due.target);
                *done.entry(another.target.addresses[0]).or_default() += 1;
                schedule.finish(&another, PASSED, now, CLOCK);
            }
            *done.entry(due.target.addresses[0]).or_default() += 1;
            schedule.finish(&due, PASSED, now, CLOCK);
        }
        prop_assert!(!done.contains_key(&address(0)));
        prop_assert_eq!(done.len(), count - 1);
        for (address, times) in done {
            prop_assert!((640..=810).contains(&times), "{address} was checked {times} times");
        }
    }

    /// Services come and go at the same addresses and at others: whatever is checked goes on being checked, and what is not
    /// is never told.
    #[test]
    fn nothing_is_forgotten_whatever_comes_and_goes(
        steps in proptest::collection::vec((0usize..6, 0usize..4, 0u8..6), 1..120), seed: u64,
    ) {
        let mut schedule = Schedule::new(3, seed);
        let mut wanted: HashMap<CheckKey, usize> = HashMap::new();
        let mut running: Vec<Due> = Vec::new();
        let mut now = Duration::ZERO;
        for (who, place, what) in steps {
            now += Duration::from_millis(700);
            let key = key(&who.to_string());
            let spec = spec(Probe::Tcp, address(place));
            match what {
                0 => {
                    schedule.begin(key.clone(), spec, starting(), now);
                    wanted.insert(key, place);
                }
                1 => {
                    prop_assert_eq!(schedule.change(&key, &spec, now), wanted.contains_key(&key));
                    wanted.entry(key).and_modify(|p| *p = place);
                }
                2 => prop_assert_eq!(schedule.remove(&key), wanted.remove(&key).is_some()),
                3 | 4 => running.extend(schedule.take_due(now)),
                _ => for due in running.drain(..) {
                    for (key, _) in schedule.finish(&due, Some(Err("no")), now, CLOCK) {
                        prop_assert!(wanted.contains_key(&key));
                    }
                },
            }
            prop_assert!(running.len() <= 3);
        }
        for due in running.drain(..) {
            schedule.finish(&due, None, now, CLOCK);
        }
        // Now everything passes: each of them is checked within an interval, and each address once.
        let end = now + Duration::from_secs(6);
        let mut seen: Vec<SocketAddr> = Vec::new();
        while let Some(due) = schedule.take_due(end) {
            seen.push(due.target.addresses[0]);
            schedule.finish(&due, PASSED, end, CLOCK);
        }
        let mut places: Vec<SocketAddr> = wanted.values().map(|p| address(*p)).collect();
        for all in [&mut places, &mut seen] {
            all.sort();
        }
        places.dedup();
        prop_assert_eq!(seen, places);
        for key in wanted.keys() {
            prop_assert_eq!(schedule.fact(key).map(|f| f.value), Some(Health::Passing));
        }
    }
}

/// How late checks of what answers begin, in a minute with 1,000 endpoints of which this share hangs until the time-out.
fn lateness(hang: usize, begin: fn() -> Begin, limit: usize) -> (Duration, u64) {
    let timeout = Duration::from_secs(1);
    let mut schedule = Schedule::new(limit, 7);
    for n in 0..1000 {
        let spec = Spec {
            timeout,
            ..spec(Probe::Tcp, address(n))
        };
        schedule.begin(key(&n.to_string()), spec, begin(), Duration::ZERO);
    }
    let mut running = Running::default();
    let (mut now, mut worst, mut checks) = (Duration::ZERO, Duration::ZERO, 0);
    let mut last: HashMap<SocketAddr, Duration> = HashMap::new();
    while now < Duration::from_secs(60) {
        while let Some(due) = schedule.take_due(now) {
            let place = due.target.addresses[0];
            let hangs = usize::from(place.port()) % 10 < hang;
            if !hangs {
                checks += 1;
                let before = last.insert(place, now).unwrap_or(Duration::ZERO);
                // An interval and its jitter are no delay.
                worst = worst.max((now - before).saturating_sub(Duration::from_millis(5_500)));
            }
            let takes = if hangs {
                timeout
            } else {
                Duration::from_millis(1)
            };
            running.start(due, now + takes);
        }
        let next = schedule.next_at().unwrap_or(Duration::MAX);
        if running.next_end() <= next {
            now = running.next_end().max(now);
            let due = running.take();
            let hangs = usize::from(due.target.addresses[0].port()) % 10 < hang;
            let result = if hangs {
                Err("no answer within 1s")
            } else {
                Ok("")
            };
            schedule.finish(&due, Some(result), now, CLOCK);
        } else {
            now = next;
        }
    }
    (worst, checks)
}

#[test]
fn hanging_backends_delay_nobody_else() {
    // 300 that hang would fill 256 slots for good while they start, and 64 slots always.
    for (begin, limit) in [(known as fn() -> Begin, 64), (starting, 256)] {
        let (worst, checks) = lateness(3, begin, limit);
        assert!(worst <= Duration::from_millis(1_100), "{worst:?} late");
        assert!(checks >= 700 * 10, "{checks} checks in a minute");
        let (without, _) = lateness(0, begin, limit);
        assert!(without <= Duration::from_millis(20), "{without:?} late");
    }
}

#[test]
fn a_restart_of_the_agent_spreads_the_first_checks_over_a_second() {
    let mut schedule = Schedule::new(10_000, 7);
    for n in 0..1000 {
        schedule.begin(
            key(&n.to_string()),
            spec(Probe::Tcp, address(n)),
            known(),
            Duration::ZERO,
        );
    }
    for tenth in 1..=10 {
        let now = Duration::from_millis(tenth * 100);
        let due = std::iter::from_fn(|| schedule.take_due(now)).count();
        assert!((60..=140).contains(&due), "{due} in {tenth}. tenth");
    }
}

#[test]
fn services_that_check_the_same_share_it() {
    let mut schedule = Schedule::new(8, 1);
    let slow = Spec {
        timing: Timing {
            fall: 1,
            ..super::TIMING
        },
        ..spec(Probe::Tcp, address(1))
    };
    schedule.begin(
        key("a"),
        spec(Probe::Tcp, address(1)),
        starting(),
        Duration::ZERO,
    );
    schedule.begin(other("a"), slow, known(), Duration::ZERO);
    let due = schedule.take_due(Duration::ZERO).expect("due");
    assert!(
        schedule.take_due(Duration::ZERO).is_none(),
        "one check for both"
    );
    let changed = schedule.finish(&due, PASSED, Duration::ZERO, CLOCK);
    assert_eq!(changed.len(), 1, "the starting one is ready");
    // From now on they keep together, each with its own rise and fall.
    let mut checks = 0;
    let mut turned = Vec::new();
    while let Some(now) = schedule
        .next_at()
        .filter(|at| *at < Duration::from_secs(60))
    {
        let due = schedule.take_due(now).expect("due");
        checks += 1;
        turned.extend(schedule.finish(&due, Some(Err("no")), now, CLOCK));
    }
    assert!((10..=15).contains(&checks), "{checks} checks in a minute");
    let services: Vec<String> = turned.iter().map(|(k, _)| k.service.to_string()).collect();
    assert_eq!(services, ["shop/other", "shop/web"]);
    // Another way of checking is another check.
    let http = Probe::Http {
        path: "/".into(),
        expect: None,
    };
    assert!(schedule.change(&key("a"), &spec(http, address(1)), Duration::from_secs(60)));
    let due = schedule.take_due(Duration::from_secs(60)).expect("due");
    assert!(matches!(due.target.probe, Probe::Http { .. }));
}

#[test]
fn a_check_that_began_before_an_endpoint_did_says_nothing_about_it() {
    let mut schedule = Schedule::new(8, 1);
    let spec = || spec(Probe::Tcp, address(1));
    schedule.begin(key("a"), spec(), starting(), Duration::ZERO);
    schedule.begin(other("a"), spec(), starting(), Duration::ZERO);
    let old = schedule.take_due(Duration::ZERO).expect("due");
    // Its container was restarted, with the same address.
    schedule.begin(key("a"), spec(), starting(), Duration::ZERO);
    assert!(
        schedule.take_due(Duration::from_secs(99)).is_none(),
        "it runs already"
    );
    let changed = schedule.finish(&old, PASSED, Duration::ZERO, CLOCK);
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].0, other("a"));
    let new = schedule.take_due(Duration::ZERO).expect("due at once");
    let changed = schedule.finish(&new, PASSED, Duration::ZERO, CLOCK);
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].0, key("a"));
}

#[test]
fn another_way_of_checking_keeps_what_is_known() {
    let mut schedule = Schedule::new(8, 1);
    let now = Duration::from_secs(1);
    schedule.begin(key("a"), spec(Probe::Tcp, address(1)), known(), now);
    let grpc = Probe::Grpc {
        service: String::new(),
    };
    assert!(schedule.change(&key("a"), &spec(grpc.clone(), address(1)), now));
    assert_eq!(schedule.fact(&key("a")), Some(&fact(Health::Passing)));
    let due = schedule.take_due(now).expect("at once");
    assert_eq!(due.target.probe, grpc);
    assert!(!schedule.change(&key("b"), &spec(Probe::Tcp, address(1)), now));
}

#[test]
fn a_check_that_could_not_be_made_says_nothing_and_is_made_later() {
    let mut schedule = Schedule::new(8, 1);
    let fall = Spec {
        timing: Timing {
            fall: 1,
            ..super::TIMING
        },
        ..spec(Probe::Tcp, address(1))
    };
    schedule.begin(key("a"), fall, known(), Duration::ZERO);
    let now = Duration::from_secs(1);
    let due = schedule.take_due(now).expect("due");
    assert!(schedule.finish(&due, None, now, CLOCK).is_empty());
    assert_eq!(schedule.fact(&key("a")), Some(&fact(Health::Passing)));
    assert!(schedule.next_at().is_some_and(|at| at > now));
}

#[test]
fn an_interval_of_zero_is_a_pause_all_the_same() {
    let mut schedule = Schedule::new(8, 1);
    let mut spec = spec(Probe::Tcp, address(1));
    spec.timing.interval = Duration::ZERO;
    schedule.begin(key("a"), spec, known(), Duration::ZERO);
    let now = Duration::from_secs(1);
    for result in [PASSED, None] {
        let at = schedule.next_at().expect("it is checked") + now;
        let due = schedule.take_due(at).expect("it is due");
        schedule.finish(&due, result, at, CLOCK);
        let next = schedule.next_at().expect("it is checked again");
        assert!(
            next >= at + Duration::from_millis(8),
            "{next:?} after {at:?}"
        );
        assert!(schedule.take_due(at).is_none());
    }
}
