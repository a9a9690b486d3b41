//! How soon a container is usable through the *other* node, and how soon a dead one is out of rotation on both: two hosts
//! with a Docker of their own and an etcd of three members between them.
//!
//! `cargo bench --bench discovery`, as root with Docker and etcd installed; `SAMPLES` and `CUTS` change the size.
//!
//! etcd's own time from a put to a watch event, which is not ours, is measured between the samples of the same run.

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use registry::store::{EtcdOptions, EtcdStore, Op, Store, Txn, WatchEvent};
use support::docker::{self, Dockerd, RunOptions};
use support::etcd::Cluster;
use support::http;
use support::load::{Load, Plan};
use support::netns::{Lan, Netns};
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::{eventually, eventually_every};

const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: app=web, ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]}
";
const LEASE_TTL: Duration = Duration::from_secs(3);
/// The pause between two looks: how exactly a time is measured.
const RESOLUTION: Duration = Duration::from_micros(500);

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
}

fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |v| v.parse().expect("a number"))
}

fn report(what: &str, times: &mut [Duration]) -> [Duration; 3] {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!(
        "{what}, {} samples: p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    [at(50), at(99), at(100)]
}

/// etcd's own time from a put at one member to a watch event at another.
struct Etcds {
    runtime: tokio::runtime::Runtime,
    writer: Arc<EtcdStore>,
    watch: registry::store::Watch,
}

impl Etcds {
    fn new(cluster: &Cluster) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let urls = cluster.endpoints();
        let (writer, watch) = runtime.block_on(async {
            let connect = async |url: &String| {
                EtcdStore::connect(EtcdOptions::new([url.clone()]))
                    .await
                    .expect("options")
            };
            let (writer, watcher) = (connect(&urls[0]).await, connect(&urls[1]).await);
            let path = "/measure/put".to_owned();
            let txn = Txn::new().then(Op::put(path, b"0".to_vec()));
            writer.commit(txn).await.expect("etcd takes it");
            let revision = writer
                .get("/measure/put")
                .await
                .expect("etcd")
                .expect("it is there")
                .mod_revision;
            let watch = watcher.watch("/measure/", revision).await.expect("a watch");
            (Arc::new(writer), watch)
        });
        Etcds {
            runtime,
            writer,
            watch,
        }
    }

    fn put_to_watch(&mut self) -> Duration {
        let (writer, watch) = (self.writer.clone(), &mut self.watch);
        self.runtime.block_on(async {
            let began = Instant::now();
            let put = tokio::spawn(async move {
                let txn = Txn::new().then(Op::put("/measure/put".to_owned(), b"1".to_vec()));
                writer.commit(txn).await.expect("etcd takes it");
            });
            loop {
                if let WatchEvent::Changes { .. } = watch.next().await.expect("the watch goes on") {
                    break;
                }
            }
            let took = began.elapsed();
            put.await.expect("it is put");
            took
        })
    }
}

/// Waits until a node gives no work to any endpoint of the service; when that was. Tells of the first look.
fn out_of_rotation(node: &Node, looks: &Sender<()>) -> Duration {
    let mut first = true;
    eventually_every(RESOLUTION, PATIENCE, "it is out of rotation", || {
        let answer = node.ask("/v1/services/default/web");
        let body = answer.expect("the node answers").body;
        if std::mem::take(&mut first) {
            looks.send(()).expect("somebody waits for it");
        }
        body.replace(' ', "").contains("\"eligible\":0")
    });
    now()
}

fn main() {
    if !docker::ready() || !support::etcd::Etcd::available() {
        println!("needs root, Docker and etcd");
        return;
    }
    let cluster = Cluster::start();
    let lan = Lan::new(2);
    let mut hosts = Vec::new();
    for (host, name) in lan.hosts.iter().zip(["n1", "n2"]) {
        let docker = Dockerd::start_in(name, &host.netns);
        let urls = cluster.endpoints_at(IpAddr::V4(lan.address));
        let node = Node::start(&NodeOptions {
            name,
            netns: Some(&host.netns),
            etcd: Some(urls.join(",")),
            docker: Some(&docker),
            address: Some(IpAddr::V4(host.address)),
            vip_range: "10.96.0.0/16",
            dns: "10.96.0.10:53",
            ..NodeOptions::default()
        });
        hosts.push((node, docker));
    }
    hosts[0].0.apply(SERVICE);
    let web = SocketAddr::new(hosts[0].0.vip("default/web"), 80);
    starts_and_kills(&cluster, &lan, &hosts, web);
    cut_off(&lan, &hosts, web);
}

fn starts_and_kills(cluster: &Cluster, lan: &Lan, hosts: &[(Node, Dockerd)], web: SocketAddr) {
    let samples = size("SAMPLES", 200);
    let mut etcds = Etcds::new(cluster);
    let (mut started, mut killed, mut etcd) = (Vec::new(), Vec::new(), Vec::new());
    let events = hosts[0].1.events();
    for sample in 0..samples {
        let name = format!("sample-{sample}");
        let answered = std::thread::scope(|scope| {
            let other: &Netns = &lan.hosts[1].netns;
            let asking = scope.spawn(move || {
                other.enter(|| {
                    eventually_every(RESOLUTION, PATIENCE, "an answer", || http::id(web));
                    now()
                })
            });
            hosts[0].1.run(RunOptions {
                name: &name,
                labels: &[("app", "web")],
                publish: &["8080"],
                ..RunOptions::default()
            });
            asking.join().expect("it asks until it is answered")
        });
        let event = events.next("start", Duration::from_secs(10));
        let at = Duration::from_nanos(event["timeNano"].as_u64().expect("an event has a time"));
        started.push(answered.saturating_sub(at));
        etcd.push(etcds.put_to_watch());

        hosts[1].0.eligible("default/web", 1);
        hosts[0].0.eligible("default/web", 1);
        let process = hosts[0].1.process(&name);
        let (at, gone) = std::thread::scope(|scope| {
            let (looks, looking) = mpsc::channel();
            let watching = [0, 1].map(|host| {
                let looks = looks.clone();
                scope.spawn(move || out_of_rotation(&hosts[host].0, &looks))
            });
            for _ in 0..2 {
                let look = looking.recv_timeout(PATIENCE);
                look.expect("both nodes are watched before it is killed");
            }
            let at = now();
            process.kill();
            let gone = watching.map(|w| w.join().expect("it waits until it is out"));
            (at, gone)
        });
        killed.push(gone[0].max(gone[1]).saturating_sub(at));
        hosts[0].1.rm(&name);
    }
    let [etcd_p50, etcd_p99, _] = report("etcd's own put to watch event", &mut etcd);
    let [p50, p99, _] = report("start event to usable through the other node", &mut started);
    println!(
        "  less etcd's own: p50 {:.1?}, p99 {:.1?} (less its p50: {:.1?})",
        p50.saturating_sub(etcd_p50),
        p99.saturating_sub(etcd_p99),
        p99.saturating_sub(etcd_p50)
    );
    report("kill -9 to out of rotation on both nodes", &mut killed);
}

/// A host is unplugged under load: how long the slowest request took, and when the node counted as lost.
fn cut_off(lan: &Lan, hosts: &[(Node, Dockerd)], web: SocketAddr) {
    let (mut slowest, mut lost) = (Vec::new(), Vec::new());
    let mut failed = 0;
    for ((_, docker), name) in hosts.iter().zip(["stays", "cut"]) {
        docker.run(RunOptions {
            name,
            labels: &[("app", "web")],
            publish: &["8080"],
            ..RunOptions::default()
        });
    }
    for _ in 0..size("CUTS", 5) {
        hosts[0].0.eligible("default/web", 2);
        let plan = Plan {
            address: web,
            method: "GET",
            path: "/id".to_owned(),
            connections: 8,
            pause: Duration::from_millis(2),
        };
        let load = Load::start(&plan, Some(&lan.hosts[0].netns));
        eventually(PATIENCE, "connections are kept", || load.answered() > 500);
        let began = Instant::now();
        lan.cut(1);
        eventually(PATIENCE, "the node counts as lost", || {
            hosts[0]
                .0
                .get("nodes")
                .iter()
                .any(|n| n["name"] == "n2" && n["status"] != "alive")
        });
        lost.push(began.elapsed());
        hosts[0].0.eligible("default/web", 1);
        let tally = load.stop();
        slowest.push(tally.slowest);
        failed += tally.failed;
        lan.mend(1);
    }
    report("a host cut off: the slowest request", &mut slowest);
    report(
        &format!("a host cut off: orphaned (lease {LEASE_TTL:?})"),
        &mut lost,
    );
    println!("  failed requests: {failed}");
}
