use super::*;
use crate::events::Filter;
use crate::writer::Writer;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::snapshot::Identity;
use model::{Mesh, Node, ServiceKey};
use registry::follow::BadRecord;

const PATIENCE: Duration = Duration::from_secs(60);

fn n(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn node(name: &str, since: Timestamp) -> Change {
    let node = Node {
        name: n(name),
        addresses: Vec::new(),
        zone: None,
        routable: Vec::new(),
        version: "0.1.0".into(),
        capabilities: Vec::new(),
        since,
    };
    Change::Node(n(name), Some(Arc::new(node)))
}

fn slice(service: usize, endpoints: usize) -> Change {
    let key = ServiceKey::new(n("shop"), n(&format!("s{service}")));
    let since = Timestamp::now();
    let endpoints = (0..endpoints).map(|e| {
        Arc::new(Endpoint {
            workload: format!("w{e:04}").into(),
            name: format!("w{e:04}").into(),
            port: n("http"),
            generation: "g".into(),
            local: vec!["172.17.0.2:80".parse().unwrap()],
            remote: Vec::new(),
            weight: 1,
            zone: None,
            hostname: None,
            health: Fact::new(Health::Passing, since, "connected"),
            lifecycle: Fact::new(Lifecycle::Running, since, ""),
        })
    });
    let slice = Slice {
        service: key.clone(),
        node: n("n2"),
        endpoints: endpoints.collect(),
    };
    Change::Slice(key, n("n2"), Some(Arc::new(slice)))
}

struct World {
    writer: Writer,
    feed: Feed,
    history: Arc<History>,
    _file: mpsc::Receiver<Arc<model::event::Recorded>>,
    agent: mpsc::Sender<Event>,
    shutdown: CancellationToken,
}

impl World {
    /// A teller that runs, after `restored` was read from disk.
    fn new(restored: Vec<Change>, kept: Vec<model::event::Recorded>) -> World {
        let identity = Identity {
            node: n("n1"),
            seed: 1,
        };
        let (mut writer, feed, _) = Writer::new(identity, Mesh::default());
        if !restored.is_empty() {
            writer.restore(5, restored);
        }
        let (history, file) = History::new(kept).unwrap();
        let teller = Teller::new(n("n1"), &feed, history.clone());
        let (agent, from_agent) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        tokio::spawn(teller.run(from_agent, shutdown.clone()));
        World {
            writer,
            feed,
            history,
            _file: file,
            agent,
            shutdown,
        }
    }

    fn change(&mut self, changes: Vec<Change>) {
        // As the writer does with what the follower tells.
        self.writer.restore(6, changes);
    }

    fn told(&self) -> Vec<String> {
        let (all, _, _) = self.history.follow(&Filter::default(), usize::MAX);
        all.iter()
            .map(|e| format!("{} {}", e.event.reason, e.event.name))
            .collect()
    }

    async fn sees(&self, wanted: &str) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let told = self.told();
            if told.iter().any(|t| t == wanted) {
                return told;
            }
            assert!(Instant::now() < until, "no {wanted} in {told:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test]
async fn first_sight_of_a_registry_is_one_event() {
    let mut world = World::new(Vec::new(), Vec::new());
    let long_ago = Timestamp(1000);
    world.change(vec![node("n2", long_ago), node("n3", long_ago)]);
    let told = world.sees("RegistryFirstSeen registry").await;
    assert_eq!(told, ["RegistryFirstSeen registry"]);
    world.change(vec![node("n4", long_ago)]);
    world.sees("NodeJoined n4").await;
}

#[tokio::test]
async fn after_a_restart_only_what_changed_meanwhile_is_told_and_nothing_twice() {
    let since = Timestamp(1000);
    let known = model::event::Recorded {
        id: 3,
        event: Event {
            at: since,
            kind: EventKind::Node,
            namespace: None,
            name: "n3".into(),
            node: Some(n("n3")),
            reason: "NodeJoined".into(),
            message: "joined at  with version 0.1.0".into(),
        },
        seen: None,
    };
    let mut world = World::new(vec![node("n2", since)], vec![known]);
    world.change(vec![
        node("n2", since),
        node("n3", since),
        node("n4", since),
    ]);
    let told = world.sees("NodeJoined n4").await;
    assert_eq!(told, ["NodeJoined n3", "NodeJoined n4"]);
}

#[tokio::test]
async fn a_hundred_thousand_endpoints_at_once_are_cut_off_and_counted() {
    let mut world = World::new(vec![node("n2", Timestamp(1))], Vec::new());
    let begun = Instant::now();
    world.change((0..1000).map(|s| slice(s, 100)).collect());
    let told = world.sees("EventsDropped n1").await;
    // The room that comes back meanwhile lets some more in, depending on how long it took.
    assert!(
        told.len() < 9_000,
        "{} after {:?}",
        told.len(),
        begun.elapsed()
    );
    let last = world.history.follow(&Filter::default(), 1).0.remove(0);
    eprintln!("{} events after {:?}", told.len(), begun.elapsed());
    assert!(last.id < 20_000);
}

#[tokio::test]
async fn batches_that_went_by_too_fast_are_not_told_backwards() {
    let mut world = World::new(vec![node("n2", Timestamp(1))], Vec::new());
    // On this one thread the teller sees none of them until all are sent.
    for n in 0..3_000 {
        world.change(vec![slice(0, n % 2)]);
    }
    world.sees("EventsDropped n1").await;
    world.change(vec![node("n9", Timestamp::now())]);
    let told = world.sees("NodeJoined n9").await;
    assert_eq!(told, ["EventsDropped n1", "NodeJoined n9"]);
}

#[tokio::test]
async fn what_the_agent_says_is_told() {
    let world = World::new(vec![node("n2", Timestamp(1))], Vec::new());
    let event = Event {
        at: Timestamp(1),
        kind: EventKind::Workload,
        namespace: None,
        name: "c1".into(),
        node: None,
        reason: "RunsOn".into(),
        message: "runs on".into(),
    };
    world.agent.send(event).await.unwrap();
    world.sees("RunsOn c1").await;
}

#[tokio::test]
async fn losing_the_registry_and_bad_records_are_told() {
    let world = World::new(vec![node("n2", Timestamp(1))], Vec::new());
    let mut teller = Teller::new(n("n1"), &world.feed, world.history.clone());
    let bad = BadRecord {
        key: "/heddle/v1/mesh".into(),
        reason: "not a JSON object".into(),
    };
    teller.registry(RegistryStatus {
        lost: Some(("refused".into(), Timestamp(5))),
        bad: vec![bad],
    });
    teller.registry(RegistryStatus::default());
    assert_eq!(
        world.told(),
        [
            "RegistryLost registry",
            "RecordBad /heddle/v1/mesh",
            "RegistryBack registry",
            "RecordMended /heddle/v1/mesh"
        ]
    );
    teller.missed(7);
    assert_eq!(world.told().last().unwrap(), "EventsDropped n1");
}
