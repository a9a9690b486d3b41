//! 10,000 services with 100,000 endpoints: what one change costs, and what a node holds in memory.
//!
//! `cargo bench --bench scale`. The second part needs root and etcd: it fills a real etcd and starts a node on it.

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::catalog::Change;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::manifest::{self, Manifest};
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Identity};
use model::{Liveness, Name, ServiceKey, Timestamp};
use registry::Registry;
use registry::layout::Key;
use registry::record;
use registry::store::{EtcdOptions, EtcdStore, Op, Store, Txn};
use registry::vips::VipRecord;
use support::etcd::Etcd;
use support::netns::{self, Netns};
use support::node::{Node, NodeOptions};
use support::wait::eventually;

const SERVICES: u32 = 10_000;
const ENDPOINTS_EACH: u32 = 10;
const CHANGES: u32 = 2_000;

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn key(n: u32) -> ServiceKey {
    ServiceKey::new(name("shop"), name(&format!("service-{n}")))
}

fn service(n: u32) -> Service {
    let text = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: service-{n}, namespace: shop}}\n\
         spec: {{selector: app=service-{n}, ports: [{{name: http, port: 80, protocol: http}}]}}\n"
    );
    match manifest::parse(&text).expect("a valid manifest").remove(0) {
        Manifest::Service(m) => Service {
            metadata: m.metadata,
            managed_by: ManagedBy::Apply,
            spec: m.spec,
        },
        Manifest::Endpoint(_) => unreachable!("the text above is a service"),
    }
}

fn endpoint(n: u32, e: u32, health: Health) -> Arc<Endpoint> {
    let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n * 16 + e);
    Arc::new(Endpoint {
        workload: format!("{:012x}", n * 16 + e).into(),
        name: format!("shop_service-{n}_{e}").into(),
        port: name("http"),
        generation: format!("2026-11-22T22:38:44.04025762Z/{ip}:8080").into(),
        local: vec![(ip, 8080).into()],
        remote: vec![([192, 0, 2, 2], 32_768).into()],
        weight: 1,
        zone: None,
        hostname: None,
        health: Fact::new(
            health,
            Timestamp(1_700_000_000_000),
            "passes its HTTP check",
        ),
        lifecycle: Fact::new(Lifecycle::Running, Timestamp(1_700_000_000_000), ""),
    })
}

fn slice(n: u32, first: Health) -> Slice {
    Slice {
        service: key(n),
        node: name("n2"),
        endpoints: (0..ENDPOINTS_EACH)
            .map(|e| endpoint(n, e, if e == 0 { first } else { Health::Passing }))
            .collect(),
    }
}

fn vip(n: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from(0x0a60_0010 + n).into()
}

fn main() {
    one_change();
    if Etcd::available() && netns::ready() {
        memory();
    }
}

fn one_change() {
    let mut builder = Builder::new(Identity {
        node: name("n1"),
        seed: 1,
    });
    let began = Instant::now();
    let all = (0..SERVICES).flat_map(|n| {
        [
            Change::Service(key(n), Some(Arc::new(service(n)))),
            Change::Vip(vip(n), Some(key(n))),
            Change::Slice(
                key(n),
                name("n2"),
                Some(Arc::new(slice(n, Health::Passing))),
            ),
        ]
    });
    builder.apply(1, all);
    println!(
        "first snapshot of {SERVICES} services: {:?}",
        began.elapsed()
    );
    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|i| {
            let n = i * 4 % SERVICES;
            let health = if i % 2 == 0 {
                Health::Failing
            } else {
                Health::Passing
            };
            let change = Change::Slice(key(n), name("n2"), Some(Arc::new(slice(n, health))));
            let before = builder.snapshot().clone();
            let began = Instant::now();
            builder.apply(i64::from(i) + 2, [change]);
            let published = Arc::new(builder.snapshot().clone());
            let took = began.elapsed();
            let other = key((n + 1) % SERVICES);
            let shared = Arc::ptr_eq(
                before.service(&other).expect("it is there"),
                published.service(&other).expect("it is there"),
            );
            assert!(shared, "another service was rebuilt");
            took
        })
        .collect();
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!(
        "one change: p50 {:?}, p99 {:?}, max {:?}",
        at(50),
        at(99),
        at(100)
    );
}

fn memory() {
    let etcd = Etcd::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = EtcdStore::connect(EtcdOptions::new([etcd.endpoint()]))
            .await
            .expect("options");
        let store: Arc<dyn Store> = Arc::new(store);
        let registry = Registry::new(store.clone(), "/heddle");
        let keys = registry.keys();
        // Its endpoints are another node's, which is alive and checks them.
        let alive = Liveness {
            node: name("n2"),
            session: "bench".to_owned(),
            since: Timestamp::now(),
            restarting_until: None,
        };
        let path = keys.path(&Key::Liveness(name("n2")));
        let txn = Txn::new().then(Op::put(path, record::encode(&alive)));
        store.commit(txn).await.expect("etcd takes it");
        for chunk in (0..SERVICES).collect::<Vec<_>>().chunks(40) {
            let mut txn = Txn::new();
            for n in chunk {
                let owner = VipRecord { service: key(*n) };
                txn.ops.push(Op::put(
                    keys.path(&Key::Service(key(*n))),
                    record::encode(&service(*n)),
                ));
                txn.ops.push(Op::put(
                    keys.path(&Key::Vip(vip(*n))),
                    record::encode(&owner),
                ));
                let slice = slice(*n, Health::Passing);
                txn.ops.push(Op::put(
                    keys.path(&Key::Slice(key(*n), name("n2"))),
                    record::encode(&slice),
                ));
            }
            store.commit(txn).await.expect("etcd takes it");
        }
    });
    let netns = Netns::new();
    let lan = support::netns::Lan::new(1);
    let began = Instant::now();
    let node = Node::start(&NodeOptions {
        netns: Some(&lan.hosts[0].netns),
        etcd: Some(etcd.endpoint_at(lan.address.into())),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    drop(netns);
    eventually(
        Duration::from_secs(120),
        "the node has all services",
        || node.metric("heddle_services", &[]) as u32 == SERVICES,
    );
    println!("a node has all of it {:?} after its start", began.elapsed());
    let rss = |what: &str| {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the node runs");
        let line = |name: &str| {
            let found = status
                .lines()
                .find(|l| l.starts_with(name))
                .unwrap_or_default();
            found
                .split_whitespace()
                .nth(1)
                .and_then(|kb| kb.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024
        };
        println!(
            "{what}: RSS {} MiB (anonymous {} MiB), peak {} MiB",
            line("VmRSS"),
            line("RssAnon"),
            line("VmHWM")
        );
    };
    rss("after the first sync");
    let settled = Instant::now();
    eventually(Duration::from_secs(30), "it has settled", || {
        settled.elapsed() > Duration::from_secs(15)
    });
    rss("15 s later");
    let services = node.metric("heddle_services", &[]) as u32;
    assert_eq!(services, SERVICES, "not all services are there");
    rss("after a scrape");
}
