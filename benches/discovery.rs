//! How soon a container is usable through the *other* node, and how soon a dead one is out of rotation on both: two hosts
//! with a Docker of their own and an etcd of three members between them.
//!
//! `cargo bench --bench discovery`, as root with Docker and etcd installed; `SAMPLES` and `CUTS` change the size.
//!
//! etcd's own time from a put to a watch event, which is not ours, is measured between the samples of the same run.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use registry::store::{EtcdOptions, EtcdStore, Op, Store, Txn, WatchEvent};
use support::docker::{self, Dockerd, RunOptions};
use support::etcd::Cluster;
use support::http;
use support::load::{Load, Plan};
use support::netns::{Lan, Netns};
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: app=web, ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]}
";
const LEASE_TTL: Duration = Duration::from_secs(3);

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

/// Waits until a node gives no work to any endpoint of the service; when that was.
fn out_of_rotation(socket: &Path) -> Duration {
    let mut stream = UnixStream::connect(socket).expect("the node's socket");
    let ask = b"GET /v1/services/default/web HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        stream.write_all(ask).expect("it listens");
        let mut text = String::new();
        // Answers are small: one read has the head, the rest follows at once.
        loop {
            let n = stream.read(&mut buffer).expect("it answers");
            assert!(n > 0, "the node closed the connection");
            text += &String::from_utf8_lossy(&buffer[..n]);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|l| {
                    l.to_ascii_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0usize);
            if body.len() >= length {
                break;
            }
        }
        if text.replace(' ', "").contains("\"eligible\":0") {
            return now();
        }
        assert!(Instant::now() < deadline, "it never left the rotation");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The process of a container, as this machine numbers it.
fn process_of(container_id: &str) -> Option<i32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        groups.contains(container_id).then_some(pid)
    })
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
            etcd: Some(urls.join("\", \"")),
            docker: Some(&docker),
            address: Some(IpAddr::V4(host.address)),
            vip_range: "10.96.0.0/16",
            dns: "10.96.0.10:53",
            extra: "",
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
        let (answered, id) = std::thread::scope(|scope| {
            let other: &Netns = &lan.hosts[1].netns;
            let asking = scope.spawn(move || {
                other.enter(|| {
                    let deadline = Instant::now() + PATIENCE;
                    while !matches!(http::get(web, "/id"), Ok(a) if a.status == 200) {
                        assert!(Instant::now() < deadline, "never an answer");
                        std::thread::sleep(Duration::from_micros(500));
                    }
                    now()
                })
            });
            let id = hosts[0].1.run(RunOptions {
                name: &name,
                labels: &[("app", "web")],
                publish: &["8080"],
                ..RunOptions::default()
            });
            (asking.join().expect("it asks until it is answered"), id)
        });
        let event = events.next("start", Duration::from_secs(10));
        let at = Duration::from_nanos(event["timeNano"].as_u64().expect("an event has a time"));
        started.push(answered.saturating_sub(at));
        etcd.push(etcds.put_to_watch());

        hosts[1].0.eligible("default/web", 1);
        hosts[0].0.eligible("default/web", 1);
        let pid = process_of(id.trim()).expect("the container runs");
        let sockets = [
            hosts[0].0.path("heddle.sock"),
            hosts[1].0.path("heddle.sock"),
        ];
        let (at, gone) = std::thread::scope(|scope| {
            let watching = sockets
                .each_ref()
                .map(|socket| scope.spawn(move || out_of_rotation(socket)));
            std::thread::sleep(Duration::from_millis(5));
            let at = now();
            // SAFETY: kill has no preconditions; the process is a container of this benchmark.
            unsafe { libc::kill(pid, libc::SIGKILL) };
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
