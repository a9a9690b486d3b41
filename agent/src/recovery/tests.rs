use proptest::prelude::*;

use super::*;
use crate::check::jitter::Jitter;

fn service(name: &str) -> ServiceKey {
    format!("shop/{name}").parse().expect("a key")
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A container of service `of`, which fails.
fn failing(id: &str, of: &str) -> Patient {
    Patient {
        id: id.into(),
        generation: "1".into(),
        name: id.into(),
        namespace: Name::new("shop").expect("a name"),
        services: vec![service(of)],
        condition: Condition::Failing(Complaint {
            service: service(of),
            reason: "503".into(),
            after: seconds(30),
            budget: 5,
        }),
    }
}

fn is(patient: Patient, condition: Condition) -> Patient {
    Patient {
        condition,
        ..patient
    }
}

/// Who is to be restarted.
fn restarts(decisions: &[Decision]) -> Vec<&str> {
    decisions
        .iter()
        .filter_map(|decision| match decision {
            Decision::Restart(case) => Some(&*case.id),
            Decision::Exhausted(_) => None,
        })
        .collect()
}

#[test]
fn what_fails_for_its_time_without_a_pause_is_restarted() {
    let mut recovery = Recovery::default();
    let aa = failing("aa", "web");
    // It failed long before this process began, of which nothing is known.
    assert_eq!(recovery.look(seconds(5000), std::slice::from_ref(&aa)), []);
    assert!(recovery.busy());
    assert_eq!(recovery.look(seconds(5029), std::slice::from_ref(&aa)), []);
    for pause in [Condition::Excused, Condition::Well] {
        recovery.look(seconds(5029), &[is(aa.clone(), pause)]);
        assert!(!recovery.busy());
    }
    assert_eq!(recovery.look(seconds(5030), std::slice::from_ref(&aa)), []);
    // Somebody else restarted it.
    let anew = Patient {
        generation: "2".into(),
        ..aa
    };
    assert_eq!(
        recovery.look(seconds(5050), std::slice::from_ref(&anew)),
        []
    );
    assert_eq!(
        recovery.look(seconds(5079), std::slice::from_ref(&anew)),
        []
    );
    let decided = recovery.look(seconds(5080), std::slice::from_ref(&anew));
    let [Decision::Restart(case)] = decided.as_slice() else {
        panic!("{decided:?}");
    };
    assert_eq!((case.failing, case.restarts), (seconds(30), 1));
    assert_eq!(recovery.look(seconds(5200), &[anew]), [], "it is under way");
}

/// Looks every second at one container that always fails and is restarted within a second; when it was restarted.
fn restarts_of_what_never_recovers(until: u64) -> (Vec<u64>, usize) {
    let mut recovery = Recovery::default();
    let mut patient = failing("aa", "web");
    let (mut at, mut exhausted) = (Vec::new(), 0);
    for now in 0..until {
        for decision in recovery.look(seconds(now), std::slice::from_ref(&patient)) {
            match decision {
                Decision::Restart(_) => {
                    at.push(now);
                    recovery.ended("aa", seconds(now));
                    patient.generation = now.to_string().into();
                }
                Decision::Exhausted(case) => {
                    assert_eq!(case.restarts, 5);
                    exhausted += 1;
                }
            }
        }
    }
    (at, exhausted)
}

#[test]
fn restarts_in_vain_back_off_until_the_budget_is_spent() {
    let (at, exhausted) = restarts_of_what_never_recovers(3000);
    let gaps: Vec<u64> = at.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(at[0], 30);
    // A restart has 60 s to settle, and then 30 s and the back-off have passed for the first ones.
    assert_eq!(gaps, [60, 60, 71, 111]);
    assert_eq!(exhausted, 1, "told once");
    let (at, _) = restarts_of_what_never_recovers(24 * 3600);
    assert!(at.len() <= 24 * 5, "{}", at.len());
    assert!(at.len() >= 100, "it is tried again each hour: {}", at.len());
}

#[test]
fn a_container_that_was_well_for_long_waits_no_longer_than_at_first() {
    let mut recovery = Recovery::default();
    let aa = failing("aa", "web");
    recovery.look(seconds(0), std::slice::from_ref(&aa));
    assert_eq!(
        restarts(&recovery.look(seconds(30), std::slice::from_ref(&aa))),
        ["aa"]
    );
    recovery.ended("aa", seconds(31));
    for now in [35, 400, 700] {
        recovery.look(seconds(now), &[is(aa.clone(), Condition::Well)]);
    }
    recovery.look(seconds(701), std::slice::from_ref(&aa));
    assert_eq!(restarts(&recovery.look(seconds(731), &[aa])), ["aa"]);
}

#[test]
fn of_a_service_one_container_at_a_time_is_restarted() {
    let mut recovery = Recovery::default();
    let all = [
        failing("aa", "web"),
        failing("bb", "web"),
        failing("cc", "db"),
    ];
    recovery.look(seconds(0), &all);
    assert_eq!(restarts(&recovery.look(seconds(30), &all)), ["aa", "cc"]);
    recovery.ended("aa", seconds(32));
    let [aa, bb, cc] = all;
    let starting = |p: &Patient| is(p.clone(), Condition::Excused);
    let now = [starting(&aa), bb.clone(), starting(&cc)];
    assert_eq!(recovery.look(seconds(50), &now), []);
    let now = [is(aa.clone(), Condition::Well), bb.clone(), starting(&cc)];
    assert_eq!(restarts(&recovery.look(seconds(51), &now)), ["bb"]);
    // One that doesn't come back delays the others by a minute.
    recovery.ended("bb", seconds(52));
    let now = [aa.clone(), starting(&bb), starting(&cc)];
    recovery.look(seconds(52), &now);
    assert_eq!(recovery.look(seconds(111), &now), []);
    assert_eq!(restarts(&recovery.look(seconds(112), &now)), ["aa"]);
}

#[test]
fn a_node_restarts_few_at_once_and_few_in_ten_minutes() {
    let mut recovery = Recovery::default();
    let all: Vec<Patient> = (0..100)
        .map(|n| failing(&format!("c{n:02}"), &format!("s{n}")))
        .collect();
    recovery.look(seconds(0), &all);
    let mut begun = Vec::new();
    for now in 30..600 {
        let decided = recovery.look(seconds(now), &all);
        assert!(decided.len() <= 4);
        for id in restarts(&decided) {
            recovery.ended(id, seconds(now));
            begun.push(now);
        }
    }
    assert_eq!(begun.len(), 20);
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut recovery = Recovery::default();
    for n in 0..1000u64 {
        recovery.look(seconds(n * 10), &[failing(&n.to_string(), "web")]);
    }
    assert!(recovery.files.len() <= 361, "{}", recovery.files.len());
    recovery.look(seconds(50_000), &[]);
    assert!(recovery.files.is_empty());
    recovery.look(seconds(60_000), &[]);
    assert!(!recovery.busy());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Six simulated hours of containers that do as they please: no budget is ever exceeded, no service has two under way,
    /// and nothing is restarted that has not failed all the time it must.
    #[test]
    fn restarts_never_exceed_any_bound(seed: u64, count in 1usize..12, budget in 1u32..6, after in 1u64..60) {
        let mut random = Jitter::new(seed);
        let mut recovery = Recovery::default();
        let mut patients: Vec<Patient> = (0..count)
            .map(|n| {
                let mut patient = failing(&format!("c{n}"), &format!("s{}", n % 3));
                // Some are selected by two services.
                if n % 4 == 0 {
                    patient.services.push(service(&format!("s{}", (n + 1) % 3)));
                }
                patient
            })
            .collect();
        let mut history: HashMap<Arc<str>, Vec<u64>> = HashMap::new();
        let mut failed_since: HashMap<Arc<str>, Option<u64>> = HashMap::new();
        let mut under_way: Vec<(Arc<str>, u64, Vec<ServiceKey>)> = Vec::new();
        let mut begun: Vec<u64> = Vec::new();
        for now in 0..6 * 3600u64 {
            for patient in &mut patients {
                let roll = random.unit();
                if roll < 0.01 {
                    let complaint = Complaint {
                        service: patient.services[0].clone(),
                        reason: "503".into(),
                        after: seconds(after),
                        budget,
                    };
                    patient.condition = match (roll * 1000.0) as u32 {
                        0..=6 => Condition::Failing(complaint),
                        7 | 8 => Condition::Well,
                        _ => Condition::Excused,
                    };
                }
                let is_failing = matches!(patient.condition, Condition::Failing(_));
                let since = failed_since.entry(patient.id.clone()).or_default();
                *since = is_failing.then(|| since.unwrap_or(now));
            }
            for decision in recovery.look(seconds(now), &patients) {
                let Decision::Restart(case) = decision else { continue };
                let patient = patients.iter().find(|p| p.id == case.id).expect("it is one of them");
                let since = failed_since[&case.id].expect("it fails");
                prop_assert!(now - since >= after.min(30), "after {} s", now - since);
                let mine = history.entry(case.id.clone()).or_default();
                mine.push(now);
                begun.push(now);
                let within = |all: &[u64], window: u64| all.iter().filter(|at| now - **at < window).count();
                prop_assert!(within(mine, 3600) <= case.complaint.budget as usize);
                prop_assert!(within(&begun, 600) <= NODE_BUDGET);
                prop_assert!(under_way.len() < AT_ONCE);
                for (_, _, services) in &under_way {
                    prop_assert!(!services.iter().any(|s| patient.services.contains(s)));
                }
                let takes = (random.unit() * 20.0) as u64;
                under_way.push((case.id.clone(), now + takes, patient.services.clone()));
            }
            under_way.retain(|(id, end, _)| {
                if *end > now {
                    return true;
                }
                recovery.ended(id, seconds(now));
                failed_since.insert(id.clone(), None);
                false
            });
        }
    }
}

#[test]
fn what_could_not_be_tried_uses_up_no_budget() {
    let mut recovery = Recovery::default();
    let patient = failing("aa", "web");
    let mut tries = 0;
    for now in 0..3500 {
        for decision in recovery.look(seconds(now), std::slice::from_ref(&patient)) {
            let Decision::Restart(case) = decision else {
                panic!("nothing was restarted, and yet {decision:?} at {now}");
            };
            assert_eq!(case.restarts, 1);
            tries += 1;
            recovery.untried("aa", seconds(now));
        }
    }
    assert!((6..20).contains(&tries), "{tries}: less and less often");
    assert!(recovery.recent.is_empty(), "nor the node's budget");
}

#[test]
fn time_stands_still_for_what_is_not_looked_at() {
    let mut recovery = Recovery::default();
    let aa = failing("aa", "web");
    assert_eq!(recovery.look(seconds(0), std::slice::from_ref(&aa)), []);
    assert_eq!(recovery.look(seconds(1), &[]), []);
    assert!(!recovery.busy(), "nothing is left to look at");
    // Its service asks for recovery again.
    assert_eq!(recovery.look(seconds(31), std::slice::from_ref(&aa)), []);
    assert_eq!(recovery.look(seconds(60), std::slice::from_ref(&aa)), []);
    let decided = recovery.look(seconds(61), &[aa]);
    assert_eq!(restarts(&decided), ["aa"]);
}
