//! What Docker's HEALTHCHECK says, in simulated time.

use std::time::Duration;

use model::endpoint::Health::{Failing, Passing, Unknown};
use model::endpoint::{Fact, Health};
use model::time::Timestamp;

use crate::check::heard::Heard;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn says(heard: &mut Heard, value: Health, at: u64) -> bool {
    let clock = Timestamp(i64::try_from(at * 1000).expect("short"));
    heard.hear(value, &format!("{value:?}").into(), seconds(at), clock)
}

#[test]
fn what_is_told_is_believed_with_when_and_why() {
    let mut heard = Heard::new(Fact::new(Unknown, Timestamp(1), "starting"));
    assert!(says(&mut heard, Passing, 5));
    assert!(!says(&mut heard, Passing, 6));
    assert_eq!(
        heard.fact(),
        &Fact::new(Passing, Timestamp(5000), "Passing")
    );
    assert!(says(&mut heard, Failing, 7));
    assert_eq!(heard.due(), None);
    assert!(says(&mut heard, Passing, 8));
    assert_eq!(heard.due(), None);
}

#[test]
fn what_flaps_is_out_at_once_and_back_after_a_while_of_passing() {
    let mut heard = Heard::new(Fact::new(Passing, Timestamp(1), ""));
    for at in [10, 20] {
        assert!(says(&mut heard, Failing, at));
        assert!(says(&mut heard, Passing, at + 1));
    }
    assert!(says(&mut heard, Failing, 30));
    assert_eq!(
        &*heard.fact().reason,
        "Failing (flaps: takes work again after passing for 10s)"
    );
    assert!(!says(&mut heard, Passing, 31));
    assert!(heard.passes());
    assert_eq!(heard.due(), Some(seconds(41)));
    // Taken back: the row begins anew.
    assert!(!says(&mut heard, Failing, 35));
    assert_eq!(heard.due(), None);
    assert!(!says(&mut heard, Passing, 36));
    assert!(!says(&mut heard, Passing, 37));
    assert!(!heard.look(seconds(45), Timestamp(45_000)));
    assert!(heard.look(seconds(46), Timestamp(46_000)));
    assert_eq!(
        heard.fact(),
        &Fact::new(Passing, Timestamp(46_000), "Passing")
    );
}
