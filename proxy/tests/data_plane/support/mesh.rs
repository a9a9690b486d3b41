//! Snapshots made by hand, and the proxy that follows them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::catalog::Change;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::manifest::{self, Manifest};
use model::node::Liveness;
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Identity};
use model::{Name, ServiceKey, Snapshot, Timestamp};
use prometheus::core::Collector;
use prometheus::{Encoder, TextEncoder};
use proxy::{ListenerKind, ListenerStatus, Options, Proxy, VipMode};

use super::Backend;

/// A free port, for both address families.
pub fn port_of(taken: &TcpListener) -> u16 {
    taken.local_addr().unwrap().port()
}

/// A port that was free a moment ago, and that no other test of this process got.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let any = || TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"));
    std::iter::repeat_with(|| port_of(&any().unwrap()))
        .find(|port| GIVEN.lock().unwrap().insert(*port))
        .unwrap()
}

/// An endpoint of this node at an address, ready for work.
pub fn at(name: &str, address: SocketAddr) -> Endpoint {
    Endpoint {
        hostname: None,
        workload: name.into(),
        name: name.into(),
        port: Name::new("main").unwrap(),
        generation: "g1".into(),
        local: vec![address],
        remote: vec![],
        weight: 1,
        zone: None,
        health: Fact::new(Health::Passing, Timestamp(1), "passes"),
        lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
    }
}

/// A mesh with `shop/web` at three endpoints that answer with their names: a, b and c.
pub async fn three() -> (Mesh, SocketAddr, [Backend; 3]) {
    let backends = [
        Backend::http1("a").await,
        Backend::http1("b").await,
        Backend::http1("c").await,
    ];
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", named(&backends));
    (mesh, web, backends)
}

/// Their endpoints, in alphabetical order.
pub fn named(backends: &[Backend]) -> Vec<Endpoint> {
    let each = ["a", "b", "c"].iter().zip(backends);
    each.map(|(name, backend)| at(name, backend.address))
        .collect()
}

/// One node with its proxy.
pub struct Mesh {
    builder: Builder,
    snapshot: Arc<ArcSwap<Snapshot>>,
    revision: i64,
    pub proxy: Proxy,
    node_ports: HashMap<ServiceKey, u16>,
}

impl Mesh {
    pub fn start() -> Self {
        Mesh::with(|_| {})
    }

    /// With other options than the defaults: two workers, 5 s to drain.
    pub fn with(set: impl FnOnce(&mut Options)) -> Self {
        let node = Name::new("n1").unwrap();
        let mut builder = Builder::new(Identity {
            node: node.clone(),
            seed: 7,
        });
        let alive = Liveness {
            node: node.clone(),
            session: "s".into(),
            since: Timestamp(0),
            restarting_until: None,
        };
        builder.apply(1, [Change::Liveness(node, Some(Arc::new(alive)))]);
        let snapshot = Arc::new(ArcSwap::from_pointee(builder.snapshot().clone()));
        let mut options = Options::new(Arc::clone(&snapshot));
        options.workers = 2;
        options.drain_timeout = Duration::from_secs(5);
        set(&mut options);
        let proxy = Proxy::start(options).unwrap();
        Mesh {
            builder,
            snapshot,
            revision: 1,
            proxy,
            node_ports: HashMap::new(),
        }
    }

    /// With virtual IPs bound directly.
    pub fn with_vips() -> Self {
        Mesh::with(|options| options.vips = VipMode::Direct)
    }

    /// Takes over changes as the snapshot writer does.
    pub fn apply(&mut self, key: &str, changes: Vec<Change>) {
        self.revision += 1;
        self.builder.apply(self.revision, changes);
        self.snapshot
            .store(Arc::new(self.builder.snapshot().clone()));
        self.proxy
            .reconcile(&self.snapshot.load(), Some(&[key.parse().unwrap()]));
    }

    /// A service with a port `main` at a free node port; `port` and `spec` hold the rest of them in YAML's flow style.
    pub fn service(&mut self, key: &str, port: &str, spec: &str) -> SocketAddr {
        let service: ServiceKey = key.parse().unwrap();
        loop {
            let node_port = *self
                .node_ports
                .entry(service.clone())
                .or_insert_with(free_port);
            let address = self.service_at(key, node_port, port, spec);
            if self.listener(key).error.is_none() {
                return address;
            }
            // The kernel gave the port to some client's socket meanwhile.
            self.node_ports.remove(&service);
        }
    }

    /// The same at a given node port.
    pub fn service_at(&mut self, key: &str, node_port: u16, port: &str, spec: &str) -> SocketAddr {
        let service: ServiceKey = key.parse().unwrap();
        let text = format!(
            "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\n\
             spec: {{selector: app=x, ports: [{{name: main, port: 80, nodePort: {node_port}, {port}}}], {spec}}}\n",
            service.name, service.namespace
        );
        let Manifest::Service(manifest) = manifest::parse(&text).unwrap().remove(0) else {
            panic!("a service")
        };
        let made = Service {
            metadata: manifest.metadata,
            managed_by: ManagedBy::Apply,
            spec: manifest.spec,
        };
        self.apply(key, vec![Change::Service(service, Some(Arc::new(made)))]);
        SocketAddr::from(([127, 0, 0, 1], node_port))
    }

    pub fn delete(&mut self, key: &str) {
        self.apply(key, vec![Change::Service(key.parse().unwrap(), None)]);
    }

    pub fn vip(&mut self, key: &str, vip: IpAddr) {
        self.apply(key, vec![Change::Vip(vip, Some(key.parse().unwrap()))]);
    }

    /// Makes these the service's endpoints.
    pub fn endpoints(&mut self, key: &str, endpoints: Vec<Endpoint>) {
        let (service, node) = (key.parse::<ServiceKey>().unwrap(), Name::new("n1").unwrap());
        let slice = Slice {
            service: service.clone(),
            node: node.clone(),
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
        };
        let slice = (!slice.endpoints.is_empty()).then(|| Arc::new(slice));
        self.apply(key, vec![Change::Slice(service, node, slice)]);
    }

    /// The load that an endpoint has now.
    pub fn in_flight(&self, key: &str, endpoint: usize) -> u32 {
        let snapshot = self.snapshot.load();
        let service = snapshot.service(&key.parse().unwrap()).unwrap();
        let load = &service.ports[0].endpoints[endpoint].load;
        load.in_flight.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub fn listener(&self, key: &str) -> ListenerStatus {
        let key: ServiceKey = key.parse().unwrap();
        self.proxy
            .listeners()
            .into_iter()
            .find(|l| l.service == key && l.kind == ListenerKind::NodePort)
            .expect("a listener")
    }

    /// What is counted of an endpoint; none when it had nothing to do, or is gone.
    pub fn counted(&self, key: &str, workload: &str) -> Option<proxy::Totals> {
        let key: ServiceKey = key.parse().unwrap();
        let traffic = self.proxy.metrics().traffic();
        let of_service = traffic.into_iter().find(|t| t.service == key)?;
        let mut endpoints = of_service.endpoints.into_iter();
        let found = endpoints.find(|(id, _)| &*id.workload == workload);
        found.map(|(_, totals)| totals)
    }

    /// The value of the one series whose text begins like this.
    pub fn metric(&self, series: &str) -> f64 {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.proxy.metrics().collect(), &mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0.0, |line| {
            line.rsplit(' ').next().unwrap().parse().unwrap()
        })
    }
}
