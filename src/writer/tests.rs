use model::membership::NodeState;
use model::{Liveness, Name, Node, Slice};

use super::*;

fn n(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn record(name: &str) -> Change {
    let node = Node {
        name: n(name),
        addresses: Vec::new(),
        zone: None,
        routable: Vec::new(),
        version: "0.1.0".into(),
        capabilities: Vec::new(),
        since: Timestamp(1),
    };
    Change::Node(n(name), Some(Arc::new(node)))
}

fn alive(name: &str) -> Change {
    let liveness = Liveness {
        node: n(name),
        session: "s".into(),
        since: Timestamp(1),
        restarting_until: None,
    };
    Change::Liveness(n(name), Some(Arc::new(liveness)))
}

fn gone(name: &str) -> Change {
    Change::Liveness(n(name), None)
}

/// `n1`'s writer, on a catalog that was saved when all four nodes were alive.
fn restored() -> Writer {
    let identity = Identity {
        node: n("n1"),
        seed: 1,
    };
    let (mut writer, _, _) = Writer::new(identity, Mesh::default());
    let nodes = ["n1", "n2", "n3", "n4"];
    let saved = nodes.iter().flat_map(|name| [record(name), alive(name)]);
    writer.restore(5, saved.collect());
    writer
}

fn hear(writer: &mut Writer, revision: i64, changes: Vec<Change>) {
    let update = Update::Changes {
        revision,
        changes,
        bad: Vec::new(),
        mended: Vec::new(),
    };
    writer.take(vec![update], Vec::new(), Vec::new());
}

fn state(writer: &Writer, name: &str) -> Option<NodeState> {
    let snapshot = writer.published.load();
    snapshot.members.get(&n(name)).map(|member| member.state)
}

#[test]
fn nodes_that_died_while_this_one_was_away_are_orphaned_and_not_held() {
    let mut writer = restored();
    // What a listing that broke off gave says nothing of who is missing.
    hear(&mut writer, 0, vec![alive("n2")]);
    hear(&mut writer, 9, vec![gone("n3"), gone("n4")]);
    assert!(writer.published.load().guard.is_none());
    assert_eq!(state(&writer, "n3"), Some(NodeState::Orphaned));
    assert_eq!(state(&writer, "n4"), Some(NodeState::Orphaned));
}

#[test]
fn nodes_that_die_once_the_registry_was_seen_whole_are_held() {
    let mut writer = restored();
    hear(&mut writer, 9, Vec::new());
    hear(&mut writer, 10, vec![gone("n3"), gone("n4")]);
    assert_eq!(state(&writer, "n3"), Some(NodeState::Held));
}

#[test]
fn a_deleted_node_is_forgotten_with_the_last_that_was_its_own() {
    let mut writer = restored();
    let service = ServiceKey::new(n("shop"), n("web"));
    let slice = Slice {
        service: service.clone(),
        node: n("n3"),
        endpoints: Vec::new(),
    };
    let slice = Change::Slice(service.clone(), n("n3"), Some(Arc::new(slice)));
    hear(&mut writer, 9, vec![slice]);
    hear(
        &mut writer,
        10,
        vec![gone("n3"), Change::Node(n("n3"), None)],
    );
    assert_eq!(state(&writer, "n3"), Some(NodeState::Orphaned));
    hear(&mut writer, 11, vec![Change::Slice(service, n("n3"), None)]);
    assert_eq!(state(&writer, "n3"), None);
    hear(&mut writer, 12, vec![Change::Node(n("n2"), None)]);
    assert_eq!(
        state(&writer, "n2"),
        Some(NodeState::Alive),
        "its key is there"
    );
}
