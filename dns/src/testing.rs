//! A mesh made by hand, for this crate's tests.

#[cfg(test)]
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use model::catalog::Change;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::manifest::{self, Manifest};
use model::mesh::Mesh;
use model::name::{Name, ServiceKey};
use model::node::{Liveness, Node};
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Freshness, Identity, Snapshot};
use model::time::Timestamp;

use crate::access::Access;
use crate::forward::{ForwardOptions, Forwarder, Stored, Upstream};
use crate::handler::Settings;
use crate::metrics::Metrics;
use crate::query_log::QueryLog;

#[cfg(test)]
pub(crate) use upstream::{FakeUpstream, response};

/// Served at 10.96.0.10 for this host and private networks, as n1.
pub(crate) fn settings() -> Settings {
    let private = [
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "fe80::/10",
        "fd00::/8",
    ];
    Settings {
        name_servers: vec!["10.96.0.10".parse().unwrap()],
        nsid: b"n1".to_vec(),
        single_answer: false,
        access: Access::new(Some(private.map(|net| net.parse().unwrap()).to_vec())),
        version: None,
        transfer_to: Vec::new(),
        serials: Arc::default(),
        query_log: QueryLog::default(),
    }
}

/// Asks these upstreams for everything.
pub(crate) fn forwarder(upstreams: &[SocketAddr]) -> Arc<Forwarder> {
    let options = ForwardOptions {
        upstreams: upstreams.iter().map(|a| Upstream::Address(*a)).collect(),
        zones: Vec::new(),
        resolv_conf: "/nonexistent".into(),
        own: Vec::new(),
        cache: 1 << 20,
    };
    Arc::new(Forwarder::new(options, Metrics::new()))
}

/// A response with one address that may be kept for so many seconds.
pub(crate) fn stored(name: &str, ttl: u32) -> Arc<Stored> {
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    let name = hickory_proto::rr::Name::from_ascii(name).unwrap();
    query.add_query(Query::query(name, RecordType::A));
    let mut message = response(&query, 1);
    message.answers[0].ttl = ttl;
    let question = query.to_vec().unwrap().len();
    let bytes = message.to_vec().unwrap();
    Arc::new(Stored::new(bytes, question, ResponseCode::NoError, false).unwrap())
}

pub(crate) const ZONE: &str = "heddle.internal";

/// Node n1's view of a mesh that tests add to.
pub(crate) struct World {
    builder: Builder,
    revision: i64,
}

pub(crate) fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    /// Without services, and synced.
    pub(crate) fn new() -> Self {
        let identity = Identity {
            node: name("n1"),
            seed: 7,
        };
        let mut world = World {
            builder: Builder::new(identity),
            revision: 0,
        };
        let mesh = Mesh {
            vip_ranges: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:96::/112".parse().unwrap(),
            ],
            zone: ZONE.to_owned(),
        };
        let liveness = Liveness {
            node: name("n1"),
            session: "s".into(),
            since: Timestamp(0),
            restarting_until: None,
        };
        world.apply([
            Change::Mesh(Some(Arc::new(mesh))),
            Change::Liveness(name("n1"), Some(Arc::new(liveness))),
        ]);
        world.freshness(Freshness::Fresh);
        world
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.revision += 1;
        self.builder.apply(self.revision, changes);
    }

    pub(crate) fn freshness(&mut self, freshness: Freshness) -> &mut Self {
        self.builder.set_freshness(freshness);
        self
    }

    /// A service out of a manifest's `spec`, with these virtual IPs.
    pub(crate) fn service(&mut self, service: &str, spec: &str, vips: &[&str]) -> &mut Self {
        let key = key(service);
        let text = format!(
            "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\nspec: {spec}\n",
            key.name, key.namespace
        );
        let Manifest::Service(manifest) = manifest::parse(&text).unwrap().remove(0) else {
            panic!("a service")
        };
        let service = Service {
            metadata: manifest.metadata,
            managed_by: ManagedBy::Apply,
            spec: manifest.spec,
        };
        let mut changes = vec![Change::Service(key.clone(), Some(Arc::new(service)))];
        for vip in vips {
            changes.push(Change::Vip(vip.parse().unwrap(), Some(key.clone())));
        }
        self.apply(changes);
        self
    }

    pub(crate) fn delete(&mut self, service: &str) -> &mut Self {
        self.apply([Change::Service(key(service), None)]);
        self
    }

    /// A node that is known, with these addresses.
    pub(crate) fn node(&mut self, node: &str, addresses: &[&str]) -> &mut Self {
        let node = Node {
            name: name(node),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            zone: None,
            routable: vec![],
            version: String::new(),
            capabilities: vec![],
            since: Timestamp(0),
        };
        self.apply([Change::Node(node.name.clone(), Some(Arc::new(node)))]);
        self
    }

    /// All endpoints of a service's port on n1, in place of those before; a weight of 0 makes one unhealthy.
    pub(crate) fn endpoints(
        &mut self,
        service: &str,
        port: &str,
        all: impl IntoIterator<Item = (SocketAddr, u16)>,
    ) -> &mut Self {
        let all = all.into_iter();
        self.named_endpoints(
            service,
            port,
            all.map(|(address, weight)| (address, weight, None)),
        )
    }

    /// The same with hostnames.
    pub(crate) fn named_endpoints(
        &mut self,
        service: &str,
        port: &str,
        all: impl IntoIterator<Item = (SocketAddr, u16, Option<&'static str>)>,
    ) -> &mut Self {
        let endpoints: Vec<_> = all
            .into_iter()
            .map(|(address, weight, hostname)| {
                let workload: Arc<str> = format!("w-{address}").into();
                let health = if weight == 0 {
                    Health::Failing
                } else {
                    Health::Passing
                };
                Arc::new(Endpoint {
                    workload: workload.clone(),
                    name: workload,
                    port: name(port),
                    generation: "g1".into(),
                    local: vec![address],
                    remote: vec![],
                    weight,
                    zone: None,
                    hostname: hostname.map(name),
                    health: Fact::new(health, Timestamp(1), ""),
                    lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
                })
            })
            .collect();
        let slice = Slice {
            service: key(service),
            node: name("n1"),
            endpoints,
        };
        self.apply([Change::Slice(
            key(service),
            name("n1"),
            Some(Arc::new(slice)),
        )]);
        self
    }

    /// `count` ready endpoints with addresses from 10.200.0.0 up, port 5432.
    pub(crate) fn many_endpoints(&mut self, service: &str, port: &str, count: u32) -> &mut Self {
        let base = u32::from(std::net::Ipv4Addr::new(10, 200, 0, 0));
        let address = |index: u32| IpAddr::V4((base + index).into());
        let all = (0..count).map(|index| (SocketAddr::new(address(index), 5432), 1));
        self.endpoints(service, port, all.collect::<Vec<_>>())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.builder.snapshot().clone()
    }

    pub(crate) fn shared(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::new(ArcSwap::from_pointee(self.snapshot()))
    }
}

/// Services of each kind that the specification knows.
pub(crate) fn world() -> World {
    let mut world = World::new();
    world
        .service(
            "shop/web",
            "{selector: app=web, ports: [{name: http, port: 80, protocol: http}, {name: admin, port: 81, protocol: tcp}]}",
            &["10.96.0.7", "fd00:96::7"],
        )
        .service("shop/cart", "{selector: app=cart, ports: [{name: http, port: 8080}]}", &["10.96.0.8"])
        .service("shop/late", "{selector: app=late, ports: [{name: http, port: 80}]}", &[])
        .service(
            "data/db",
            "{selector: app=db, headless: true, ports: [{name: pg, port: 5432, protocol: tcp}]}",
            &[],
        )
        .service(
            "data/gone",
            "{selector: app=gone, headless: true, ports: [{name: pg, port: 5432, protocol: tcp}]}",
            &[],
        )
        .endpoints(
            "data/db",
            "pg",
            [
                ("172.17.0.2:5432".parse().unwrap(), 1),
                ("172.17.0.3:5433".parse().unwrap(), 5),
                ("172.17.0.3:5434".parse().unwrap(), 1),
                ("172.17.0.9:5432".parse().unwrap(), 0),
                ("[fd00:17::5]:5432".parse().unwrap(), 1),
            ],
        );
    world
}

/// [`world`], and what is rarer.
pub(crate) fn large_world() -> World {
    let mut world = world();
    world
        .service(
            "data/big",
            "{selector: app=big, headless: true, ports: [{name: pg, port: 5432, protocol: tcp}]}",
            &[],
        )
        .many_endpoints("data/big", "pg", 300)
        .node("n2", &["192.0.2.2", "2001:db8::2"])
        .service("shop/mail", "{externalName: mail.example.com}", &[])
        .service(
            "data/etcd",
            "{selector: app=etcd, headless: true, ports: [{name: peer, port: 2380}]}",
            &[],
        )
        .named_endpoints(
            "data/etcd",
            "peer",
            [
                ("172.17.0.5:2380".parse().unwrap(), 1, Some("etcd-0")),
                ("[fd00:17::6]:2380".parse().unwrap(), 2, Some("etcd-0")),
                ("172.17.0.7:2381".parse().unwrap(), 3, None),
            ],
        )
        .service(
            "shop/old",
            "{ports: [{port: 80}], dns: {names: [shop.example.com, api.heddle.internal, svc.heddle.internal]}}",
            &["10.96.0.30"],
        );
    world
}
