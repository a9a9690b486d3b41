use etcd_client::proto::{PbKeyValue, PbResponseHeader};

use super::*;

const MINE: i64 = 0;

fn put(key: &str, revision: Revision) -> PbEvent {
    let kv = PbKeyValue {
        key: key.into(),
        create_revision: revision,
        mod_revision: revision,
        ..PbKeyValue::default()
    };
    PbEvent {
        r#type: PUT,
        kv: Some(kv),
        prev_kv: None,
    }
}

fn answer(events: Vec<PbEvent>, fragment: bool) -> PbWatchResponse {
    PbWatchResponse {
        events,
        fragment,
        watch_id: MINE,
        ..PbWatchResponse::default()
    }
}

fn progress(watch_id: i64, revision: Revision) -> PbWatchResponse {
    let header = PbResponseHeader {
        revision,
        ..PbResponseHeader::default()
    };
    PbWatchResponse {
        header: Some(header),
        watch_id,
        ..PbWatchResponse::default()
    }
}

/// The events that the answers give, as "revision: keys" or "revision".
fn told(events: &mut Events, answers: Vec<PbWatchResponse>) -> Vec<String> {
    for answer in answers {
        events.accept(answer).expect("no answer ends the watch");
    }
    let name = |event| match event {
        WatchEvent::Progress { revision } => format!("{revision}"),
        WatchEvent::Changes { revision, changes } => {
            let keys: Vec<_> = changes.iter().map(Change::key).collect();
            format!("{revision}: {}", keys.join(" "))
        }
    };
    events.ready.drain(..).map(name).collect()
}

#[test]
fn one_answer_with_several_revisions_gives_one_event_for_each() {
    let mut events = Events::new(1, false);
    let answers = vec![answer(vec![put("a", 2), put("b", 2), put("a", 3)], false)];
    assert_eq!(told(&mut events, answers), ["2: a b", "3: a"]);
}

#[test]
fn a_revision_split_over_fragments_comes_whole() {
    let mut events = Events::new(1, false);
    let first = answer(vec![put("a", 2), put("b", 3)], true);
    assert_eq!(told(&mut events, vec![first]), ["2: a"]);
    assert_eq!(
        told(&mut events, vec![answer(vec![put("c", 3)], true)]),
        [""; 0]
    );
    assert_eq!(
        told(
            &mut events,
            vec![answer(vec![put("d", 3), put("a", 4)], false)]
        ),
        ["3: b c d", "4: a"]
    );
}

#[test]
fn an_answer_about_progress_between_fragments_splits_nothing() {
    let mut events = Events::new(1, true);
    let answers = vec![
        answer(vec![put("a", 2)], true),
        progress(ALL_WATCHES, 9),
        answer(vec![put("b", 2)], false),
    ];
    assert_eq!(told(&mut events, answers), ["2: a b"]);
}

#[test]
fn what_was_told_is_not_told_again() {
    let mut events = Events::new(5, false);
    let answers = vec![
        answer(vec![put("a", 5), put("a", 6)], false),
        answer(vec![put("a", 6)], false),
    ];
    assert_eq!(told(&mut events, answers), ["6: a"]);
}

#[test]
fn progress_told_by_itself_counts() {
    let mut events = Events::new(5, false);
    assert_eq!(
        told(&mut events, vec![progress(MINE, 9), progress(MINE, 9)]),
        ["9"]
    );
}

#[test]
fn progress_asked_for_counts_only_from_servers_that_tell_it_in_order() {
    assert_eq!(
        told(&mut Events::new(5, false), vec![progress(ALL_WATCHES, 9)]),
        [""; 0]
    );
    assert_eq!(
        told(&mut Events::new(5, true), vec![progress(ALL_WATCHES, 9)]),
        ["9"]
    );
}

#[test]
fn servers_that_tell_progress_in_order() {
    for version in [
        "3.4.31",
        "3.4.37",
        "3.5.13",
        "3.5.21",
        "3.6.0",
        "3.7.0-alpha.0",
        "4.0.0",
    ] {
        assert!(tells_progress_in_order(version), "{version}");
    }
    for version in [
        "3.4.23", "3.4.30", "3.5.0", "3.5.12", "3.3.27", "", "heddle",
    ] {
        assert!(!tells_progress_in_order(version), "{version}");
    }
}

#[test]
fn a_compaction_says_where_a_watch_can_start() {
    let mut events = Events::new(1, false);
    let compacted = PbWatchResponse {
        compact_revision: 7,
        canceled: true,
        ..answer(vec![], false)
    };
    assert_eq!(
        events.accept(compacted),
        Err(Over::Compacted { revision: 6 })
    );
}

#[test]
fn events_that_make_no_sense_cost_only_themselves() {
    let mut events = Events::new(1, false);
    let headless = PbEvent {
        r#type: PUT,
        kv: None,
        prev_kv: None,
    };
    let unknown = PbEvent {
        r#type: 7,
        ..put("u", 2)
    };
    let mut binary = put("x", 2);
    if let Some(kv) = &mut binary.kv {
        kv.key = vec![0xff, 0xfe];
    }
    let answers = vec![answer(vec![headless, unknown, binary, put("a", 2)], false)];
    assert_eq!(told(&mut events, answers), ["2: a"]);
}
