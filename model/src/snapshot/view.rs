//! The views that a snapshot is made of.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::eligible::Filter;
use crate::endpoint::{Endpoint, EndpointId, Fact, Health, State};
use crate::name::{Name, ServiceKey};
use crate::rotation::Rotation;
use crate::service::{Balance, Protocol, Service, Tls, UpstreamProtocol, UpstreamTls};

/// One service: what it is and who serves it now.
#[derive(Debug)]
pub struct ServiceView {
    /// `namespace/name`.
    pub key: ServiceKey,
    /// As the registry has it.
    pub service: Arc<Service>,
    /// Its virtual IPs, ascending; none when headless or when none was left.
    pub vips: Arc<[IpAddr]>,
    /// In the order of the manifest.
    pub ports: Vec<Arc<PortView>>,
}

impl ServiceView {
    /// The port of this name.
    pub fn port(&self, name: &str) -> Option<&Arc<PortView>> {
        self.ports.iter().find(|p| p.name.as_str() == name)
    }

    /// Whether DNS answers with its endpoints instead of a virtual IP.
    pub fn headless(&self) -> bool {
        self.service.spec.headless
    }
}

/// One port of a service, with all that picking and relaying need.
#[derive(Debug)]
pub struct PortView {
    /// Whose port.
    pub key: ServiceKey,
    /// The port's name.
    pub name: Name,
    /// At the virtual IP.
    pub port: u16,
    /// On every address of every node.
    pub node_port: Option<u16>,
    /// What it speaks.
    pub protocol: Protocol,
    /// What its endpoints are spoken to in, where it is `http`.
    pub upstream: UpstreamProtocol,
    /// With what TLS ends here; none: it doesn't.
    pub tls: Option<Arc<Tls>>,
    /// Whom endpoints must prove to be over TLS; none: they are spoken to in cleartext.
    pub upstream_tls: Option<Arc<UpstreamTls>>,
    /// How an endpoint is picked.
    pub balance: Balance,
    /// For a connection to an endpoint.
    pub connect_timeout: Duration,
    /// Up to the response's head; none: no limit.
    pub request_timeout: Option<Duration>,
    /// For one try, up to the response's head; none: no limit.
    pub per_try_timeout: Option<Duration>,
    /// For a connection on which nothing moves.
    pub idle_timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Retries in per cent of the requests.
    pub retry_budget_percent: u32,
    /// All of them, sorted by node and workload: the eligible, and those that are not with their reason.
    pub endpoints: Vec<EndpointView>,
    /// Indices into `endpoints` that may be given new work, ascending.
    pub eligible: Vec<u32>,
    /// Order over `eligible`.
    pub rotation: Rotation,
    /// Why nobody is eligible, in words for a 503; empty when somebody is.
    pub unavailable: String,
    /// Counters that outlive the snapshot.
    pub load: Arc<PortLoad>,
}

impl PortView {
    /// The `index`th of those that may be given new work.
    pub fn eligible(&self, index: usize) -> Option<&EndpointView> {
        self.endpoints.get(*self.eligible.get(index)? as usize)
    }
}

/// One endpoint as this node sees it.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// As its node published it.
    pub endpoint: Arc<Endpoint>,
    /// What pools and health hang on.
    pub id: EndpointId,
    /// The node that owns it; none when it was made by hand.
    pub node: Option<Name>,
    /// Whether this node checks it, though it is not its own: of a node that is not alive, or made by hand and this node's to
    /// check.
    pub unowned: bool,
    /// Whether its local addresses are dialled, being on this node or in a network routable from here.
    pub local: bool,
    /// What checks say: as published, or as this node found for itself.
    pub health: Fact<Health>,
    /// Derived from health, lifecycle and admin mark.
    pub state: State,
    /// Why it is in that state, in words.
    pub reason: Arc<str>,
    /// Counters that outlive the snapshot.
    pub load: Arc<EndpointLoad>,
}

impl EndpointView {
    /// Where this node dials it; empty when it can't.
    pub fn addresses(&self) -> &[SocketAddr] {
        if self.local {
            &self.endpoint.local
        } else {
            &self.endpoint.remote
        }
    }

    /// Takes new work in good times.
    pub fn ready(&self) -> bool {
        Filter::removing(self).is_none()
    }

    /// Takes new work when there is nobody better: told to end, but still passing its checks.
    pub fn last_resort(&self, drained: bool) -> bool {
        !drained
            && !Filter::Running.keeps(self)
            && Filter::Passing.keeps(self)
            && Filter::Reachable.keeps(self)
    }
}

static SEQUENCE: AtomicU64 = AtomicU64::new(1);

/// What the data path counts of one endpoint generation, shared by all workers.
#[derive(Debug)]
pub struct EndpointLoad {
    /// Unique in this process for its lifetime: a cheap key for pools.
    pub seq: u64,
    /// Requests or connections that have not ended, counted to the end of the body.
    pub in_flight: AtomicU32,
    /// Until when it is passed over because it left packets unanswered, in milliseconds of the data path's clock; 0: it
    /// is not.
    pub held_off_until: AtomicU64,
}

impl Default for EndpointLoad {
    fn default() -> Self {
        EndpointLoad {
            seq: SEQUENCE.fetch_add(1, Ordering::Relaxed),
            in_flight: AtomicU32::new(0),
            held_off_until: AtomicU64::new(0),
        }
    }
}

/// What the data path counts of one port, shared by all workers.
#[derive(Debug)]
pub struct PortLoad {
    /// Unique in this process for its lifetime: a cheap key for metrics.
    pub seq: u64,
    /// The rotation's position; starts differently on every node, so that nodes that start together don't all pick the
    /// same endpoint first.
    pub position: AtomicU64,
    /// What may still be retried, in hundredths of a retry.
    pub retry_tokens: AtomicU64,
}

impl PortLoad {
    /// Counters that start at rotation `position`.
    pub fn new(position: u64) -> Self {
        PortLoad {
            seq: SEQUENCE.fetch_add(1, Ordering::Relaxed),
            position: AtomicU64::new(position),
            retry_tokens: AtomicU64::new(0),
        }
    }
}
