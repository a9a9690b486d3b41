use super::*;

const IDLE: Duration = Duration::from_secs(300);

fn http() -> Slot {
    Slot::new(Kind::Http1, IDLE, Closing::No)
}

fn after(slot: &Slot, seconds: u64) -> Verdict {
    (0..seconds).map(|_| slot.look()).last().unwrap()
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    let slot = http();
    assert_eq!(after(&slot, 300), Verdict::Keep);
    assert_eq!(after(&slot, 1), Verdict::Close);
}

#[test]
fn a_head_that_trickles_in_is_cut_off() {
    let slot = http();
    for _ in 0..30 {
        slot.activity.read();
        assert_eq!(slot.look(), Verdict::Keep);
    }
    slot.activity.read();
    assert_eq!(slot.look(), Verdict::Abort);
}

#[test]
fn a_request_that_takes_long_but_moves_is_kept() {
    let slot = http();
    slot.activity.read();
    slot.begin();
    for _ in 0..1000 {
        slot.activity.wrote();
        assert_eq!(slot.look(), Verdict::Keep);
    }
    assert_eq!(
        after(&slot, 301),
        Verdict::Abort,
        "then nothing moves any more"
    );
}

#[test]
fn requests_on_and_on_are_no_slow_head() {
    let slot = http();
    for _ in 1..200 {
        slot.activity.read();
        slot.begin();
        slot.end();
        slot.activity.wrote();
        assert_eq!(slot.look(), Verdict::Keep);
    }
}

#[test]
fn a_connection_at_rest_is_waited_for_longer_than_a_head() {
    for kind in [Kind::Http1, Kind::Http2] {
        let slot = http();
        slot.set_kind(kind);
        slot.begin();
        slot.look();
        slot.activity.read();
        slot.end();
        assert_eq!(after(&slot, 200), Verdict::Keep);
    }
}

#[test]
fn an_http2_connection_may_talk_without_a_request() {
    let slot = http();
    slot.set_kind(Kind::Http2);
    slot.begin();
    slot.end();
    for _ in 0..1000 {
        slot.activity.read();
        assert_eq!(slot.look(), Verdict::Keep);
    }
}

#[test]
fn a_relay_on_which_nothing_moves_is_cut_off() {
    let slot = Slot::new(Kind::Relay, Duration::from_secs(5), Closing::No);
    slot.activity.read();
    assert_eq!(after(&slot, 6), Verdict::Keep);
    assert_eq!(after(&slot, 1), Verdict::Abort);
}
