//! Endpoints: one port of one selected workload, with the three facts that decide about its traffic.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::{Name, ServiceKey};
use crate::service::Metadata;
use crate::time::Timestamp;

/// A value with when it came to be and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact<T> {
    /// What is the case.
    pub value: T,
    /// Since when.
    pub since: Timestamp,
    /// Why, in words for a person.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub reason: Arc<str>,
}

impl<T: PartialEq> Fact<T> {
    /// A fact that holds from `since` on.
    pub fn new(value: T, since: Timestamp, reason: impl Into<Arc<str>>) -> Self {
        Fact {
            value,
            since,
            reason: reason.into(),
        }
    }

    /// Takes over `value` and why; `since` moves only when the value is another one.
    pub fn set(&mut self, value: T, now: Timestamp, reason: impl Into<Arc<str>>) -> bool {
        if self.value == value {
            return false;
        }
        *self = Fact::new(value, now, reason);
        true
    }
}

/// What checks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not checked yet.
    #[default]
    Unknown,
    /// Takes work.
    Passing,
    /// Takes none.
    Failing,
}

/// What the workload's runtime says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Runs.
    #[default]
    Running,
    /// Was told to end: takes no new work, ends what it has.
    Terminating,
}

/// What users see: derived from health, lifecycle and admin mark, never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Runs, not checked yet.
    Starting,
    /// Takes work.
    Ready,
    /// Fails its checks.
    Unhealthy,
    /// Terminating, or drained by an operator.
    Draining,
}

impl State {
    /// All there are, for metrics that show zeros too.
    pub const ALL: [State; 4] = [
        State::Starting,
        State::Ready,
        State::Unhealthy,
        State::Draining,
    ];

    /// The state that the three facts make.
    pub fn derive(health: Health, lifecycle: Lifecycle, drained: bool) -> State {
        match (health, lifecycle) {
            _ if drained => State::Draining,
            (_, Lifecycle::Terminating) => State::Draining,
            (Health::Unknown, _) => State::Starting,
            (Health::Passing, _) => State::Ready,
            (Health::Failing, _) => State::Unhealthy,
        }
    }

    /// As in tables and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Unhealthy => "unhealthy",
            State::Draining => "draining",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Workload, port and generation: stable while the agent restarts, new when the container does.
///
/// Whatever the data path remembers of an endpoint (pools, load, health) hangs on this id and never on an address: a
/// recycled IP inherits nothing. Cloning costs three reference counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    /// [`Endpoint::workload`].
    pub workload: Arc<str>,
    /// [`Endpoint::port`].
    pub port: Name,
    /// [`Endpoint::generation`].
    pub generation: Arc<str>,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.workload, self.port, self.generation)
    }
}

/// One port of one selected workload, as its node publishes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The workload's id: the container's (its first 12 digits), the registration's or the manifest's name.
    pub workload: Arc<str>,
    /// What people call the workload: the container's name.
    pub name: Arc<str>,
    /// The name of the service's port.
    pub port: Name,
    /// Docker's `StartedAt` and the address; for registrations and manifests the create revision.
    pub generation: Arc<str>,
    /// Dialled on the endpoint's own node only: every Docker host has a 172.17.0.2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<SocketAddr>,
    /// Dialled from other nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote: Vec<SocketAddr>,
    /// Share of the traffic relative to the others', 0 to 256; 0 takes none.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u16,
    /// Where it is, for zone-aware picking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
    /// Its name below a headless service's in DNS; none: its address with dashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Name>,
    /// What checks say.
    pub health: Fact<Health>,
    /// What the runtime says.
    pub lifecycle: Fact<Lifecycle>,
}

fn one() -> u16 {
    1
}

fn is_one(weight: &u16) -> bool {
    *weight == 1
}

impl Endpoint {
    /// What the data path's memory of this endpoint hangs on.
    pub fn id(&self) -> EndpointId {
        EndpointId {
            workload: self.workload.clone(),
            port: self.port.clone(),
            generation: self.generation.clone(),
        }
    }
}

/// All endpoints of one service on one node; the unit of publication.
///
/// A slice is not leased: it outlives its node, whose liveness is a key of its own. Without endpoints it is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    /// Whose endpoints.
    pub service: ServiceKey,
    /// On which node.
    pub node: Name,
    /// Sorted by workload and port.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl Slice {
    /// Lets endpoints share the texts that they have in common, as a slice read from the registry does not: with 100,000
    /// endpoints that is 10 MiB.
    pub fn share_texts(&mut self) {
        fn share<T: PartialEq + Clone>(text: &mut T, known: &mut Vec<T>) {
            match known.iter().find(|k| *k == text) {
                Some(same) => *text = same.clone(),
                // A slice has few ports and reasons; where it has many, the rest is not worth looking through.
                None if known.len() < 8 => known.push(text.clone()),
                None => {}
            }
        }
        let (mut ports, mut texts, mut zones) = (Vec::new(), Vec::new(), Vec::new());
        for endpoint in self.endpoints.iter_mut().filter_map(Arc::get_mut) {
            share(&mut endpoint.port, &mut ports);
            share(&mut endpoint.health.reason, &mut texts);
            share(&mut endpoint.lifecycle.reason, &mut texts);
            if let Some(zone) = &mut endpoint.zone {
                share(zone, &mut zones);
            }
            endpoint.local.shrink_to_fit();
            endpoint.remote.shrink_to_fit();
        }
        self.endpoints.shrink_to_fit();
    }
}

/// What one node found out about the endpoints of a service that no node owns; only nodes that were chosen to check them
/// publish it ([`crate::snapshot`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Whose endpoints.
    pub service: ServiceKey,
    /// The node that checked them.
    pub node: Name,
    /// Sorted by workload, port and generation.
    pub endpoints: Vec<Found>,
}

impl Findings {
    /// What was found out about an endpoint.
    pub fn of(&self, id: &EndpointId) -> Option<&Fact<Health>> {
        self.endpoints
            .iter()
            .find(|found| found.is_of(id))
            .map(|found| &found.health)
    }
}

/// What was found out about one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// [`Endpoint::workload`].
    pub workload: Arc<str>,
    /// [`Endpoint::port`].
    pub port: Name,
    /// [`Endpoint::generation`].
    pub generation: Arc<str>,
    /// What the checks say.
    pub health: Fact<Health>,
}

impl Found {
    /// What was found out about `id`.
    pub fn new(id: &EndpointId, health: Fact<Health>) -> Self {
        Found {
            workload: id.workload.clone(),
            port: id.port.clone(),
            generation: id.generation.clone(),
            health,
        }
    }

    fn is_of(&self, id: &EndpointId) -> bool {
        self.workload == id.workload && self.port == id.port && self.generation == id.generation
    }
}

/// `kind: Endpoint`: an endpoint made by hand, which no node owns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManualEndpoint {
    /// Name and namespace; the namespace is its service's.
    pub metadata: Metadata,
    /// Who may change it.
    pub managed_by: crate::service::ManagedBy,
    /// What the user asked for.
    pub spec: ManualEndpointSpec,
}

impl ManualEndpoint {
    /// The service it belongs to.
    pub fn service(&self) -> ServiceKey {
        ServiceKey::new(self.metadata.namespace.clone(), self.spec.service.clone())
    }
}

/// `spec` of an endpoint made by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManualEndpointSpec {
    /// The service, of the same namespace.
    pub service: Name,
    /// An IP that every node can dial.
    pub address: std::net::IpAddr,
    /// Service port name to port at `address`.
    pub ports: std::collections::BTreeMap<Name, u16>,
    /// Share of the traffic relative to the others', 0 to 256.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u16,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
    /// Its name below a headless service's in DNS; none: its address with dashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Name>,
}
