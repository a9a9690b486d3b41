//! A mesh of many services, made by hand.

use std::net::SocketAddr;
use std::sync::Arc;

use model::catalog::Change;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::manifest::{self, Manifest};
use model::name::{Name, ServiceKey};
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Freshness, Identity, Snapshot};
use model::time::Timestamp;

pub struct Mesh {
    builder: Builder,
    revision: i64,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

impl Mesh {
    /// Services `default/svcN` with the virtual IP 10.96.0.0 + N each, or headless ones with so many endpoints.
    pub fn new(services: u32, endpoints: u32) -> Mesh {
        let mut builder = Builder::new(Identity {
            node: name("n1"),
            seed: 1,
        });
        let mut changes = Vec::new();
        for index in 0..services {
            let text = format!(
                "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: svc{index}}}\n\
                 spec: {{ports: [{{name: http, port: 8080, protocol: http}}], headless: {}}}\n",
                endpoints > 0
            );
            let Ok(Some(Manifest::Service(manifest))) =
                manifest::parse(&text).map(|mut all| all.pop())
            else {
                panic!("a service")
            };
            let service = Service {
                metadata: manifest.metadata,
                managed_by: ManagedBy::Apply,
                spec: manifest.spec,
            };
            let key = service.key();
            changes.push(Change::Service(key.clone(), Some(Arc::new(service))));
            if endpoints == 0 {
                let vip = std::net::Ipv4Addr::from(0x0a60_0000 + index);
                changes.push(Change::Vip(vip.into(), Some(key)));
            } else {
                changes.push(slice(key, index * endpoints, endpoints));
            }
        }
        builder.apply(1, changes);
        builder.set_freshness(Freshness::Fresh);
        Mesh {
            builder,
            revision: 1,
        }
    }

    /// Gives a service other endpoints.
    #[allow(
        dead_code,
        reason = "not every target that includes this changes anything"
    )]
    pub fn change(&mut self, service: &ServiceKey, first: u32, count: u32) {
        self.revision += 1;
        let change = slice(service.clone(), first, count);
        self.builder.apply(self.revision, [change]);
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.builder.snapshot().clone())
    }
}

fn slice(service: ServiceKey, first: u32, count: u32) -> Change {
    let endpoint = |index: u32| {
        let ip = std::net::Ipv4Addr::from(0x0b00_0000 + first + index);
        let workload: Arc<str> = format!("w{}", first + index).into();
        Arc::new(Endpoint {
            workload: workload.clone(),
            name: workload,
            port: name("http"),
            generation: "g".into(),
            local: vec![SocketAddr::new(ip.into(), 8080)],
            remote: vec![],
            weight: 1,
            zone: None,
            hostname: None,
            health: Fact::new(Health::Passing, Timestamp(1), ""),
            lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
        })
    };
    let slice = Slice {
        service: service.clone(),
        node: name("n1"),
        endpoints: (0..count).map(endpoint).collect(),
    };
    Change::Slice(service, name("n1"), Some(Arc::new(slice)))
}
