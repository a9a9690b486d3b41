//! Services: a name, a selector, ports and how traffic to them is treated.

mod recovery;
mod tls;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::DomainName;
use crate::labels::Labels;
use crate::name::{Name, ServiceKey};
use crate::selector::Selector;
use crate::time::Timestamp;
use crate::units::{Span, StatusRanges};

pub use recovery::{Recovery, RecoveryAction};
pub use tls::{CertificateFiles, Tls, TlsVersion, UpstreamTls};

/// What every resource carries beside its `spec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique in its kind and namespace.
    pub name: Name,
    /// `default` where a manifest names none.
    #[serde(default = "default_namespace")]
    pub namespace: Name,
    /// The resource's own labels, to select resources by; selectors of services look at workloads, not at these.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Free notes of the user, kept and shown.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub annotations: Labels,
    /// Set by heddle at creation: tells a re-created resource from its predecessor of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Set by heddle: counts the changes of `spec`, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Set by heddle: the registry's revision of the last write. A write that names an older one gets 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<i64>,
    /// Set by heddle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Set by heddle on a service that labels made: since when no container has asked for it. It is deleted once that is
    /// long enough ago, by the clock of the node that deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_since: Option<Timestamp>,
}

impl Metadata {
    /// Metadata with a namespace and a name, and nothing else.
    pub fn new(namespace: Name, name: Name) -> Self {
        Metadata {
            name,
            namespace,
            labels: Labels::new(),
            annotations: Labels::new(),
            uid: None,
            generation: None,
            resource_version: None,
            creation_timestamp: None,
            unused_since: None,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> ServiceKey {
        ServiceKey::new(self.namespace.clone(), self.name.clone())
    }
}

/// The namespace of whatever names none.
pub fn default_namespace() -> Name {
    Name::new("default").expect("`default` is a valid DNS label")
}

/// Who owns a resource: `apply` and files beat labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ManagedBy {
    /// Written by `heddle apply` or the admin API.
    Apply,
    /// Written by the resources folder of this node.
    File(Name),
    /// Made of container labels.
    Labels,
}

impl fmt::Display for ManagedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManagedBy::Apply => f.write_str("apply"),
            ManagedBy::File(node) => write!(f, "file:{node}"),
            ManagedBy::Labels => f.write_str("labels"),
        }
    }
}

impl Serialize for ManagedBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ManagedBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        match (text.as_ref(), text.strip_prefix("file:")) {
            ("apply", _) => Ok(ManagedBy::Apply),
            ("labels", _) => Ok(ManagedBy::Labels),
            (_, Some(node)) => Name::new(node)
                .map(ManagedBy::File)
                .map_err(de::Error::custom),
            _ => Err(de::Error::custom(format!(
                "`{text}` is none of apply, labels, file:<node>"
            ))),
        }
    }
}

/// A service as the registry keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name, namespace and what heddle notes of them.
    pub metadata: Metadata,
    /// Who may change it.
    pub managed_by: ManagedBy,
    /// What the user asked for.
    pub spec: ServiceSpec,
}

impl Service {
    /// `namespace/name`.
    pub fn key(&self) -> ServiceKey {
        self.metadata.key()
    }
}

/// What a user asks of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Which workloads of the service's namespace belong to it. None: endpoints are made by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// At least one; names are unique.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// How an endpoint is picked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub load_balancing: LoadBalancing,
    /// How endpoints are checked; none: Docker's HEALTHCHECK where the image has one, else a TCP connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthPolicy>,
    /// What is done about a container that stays unhealthy; none: nothing, its endpoints only get no traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Box<Recovery>>,
    /// How long to wait for what.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// How often a request may be tried again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: Retries,
    /// No virtual IP: DNS answers with the endpoints themselves.
    #[serde(default, skip_serializing_if = "is_default")]
    pub headless: bool,
    /// The virtual IPs to have, ascending, at most one of each family. Of a family that has none here, any is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// What DNS says of it beside the usual.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dns: Box<ServiceDns>,
    /// The service's name is another name for this one (CNAME), and nothing else: no ports, endpoints or virtual IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<DomainName>,
}

impl ServiceSpec {
    /// Whether it is to have virtual IPs.
    pub fn has_vips(&self) -> bool {
        !self.headless && self.external_name.is_none()
    }
}

/// `dns:` of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceDns {
    /// Further names of the service, for programs that know it by another one. Where two services claim a name, the older
    /// has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<DomainName>,
    /// A headless service's name stands for endpoints that are not ready too, as a Kubernetes service of this setting does:
    /// so that members of a cluster find each other while they start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub publish_not_ready_addresses: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Unique in the service. A service's only port may leave it out: it is then named after its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The port at the service's VIP, 1 to 65535.
    pub port: u16,
    /// The port that the workload listens on. None: the workload's `heddle.port` label, else the only port its image
    /// exposes, or `port` where it exposes several and that is one of them; else the workload is not selected and says
    /// why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Declared, never guessed.
    #[serde(default)]
    pub protocol: Protocol,
    /// A port that every node listens on, on all its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// What `http` endpoints are spoken to in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upstream_protocol: UpstreamProtocol,
    /// With what TLS ends here; none: it doesn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<Tls>>,
    /// Whom endpoints must prove to be over TLS; none: they are spoken to in cleartext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_tls: Option<Arc<UpstreamTls>>,
}

impl ServicePort {
    /// The port's name; validation has given one to every port.
    pub fn name(&self) -> Name {
        self.name.clone().unwrap_or_else(|| {
            Name::new(self.protocol.as_str()).expect("a protocol's name is a valid DNS label")
        })
    }
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Bytes, relayed.
    #[default]
    Tcp,
    /// HTTP/1.1 and HTTP/2 on the same port, gRPC and WebSocket included.
    Http,
    /// Written by a newer version than this; such a port is not served here.
    #[serde(other)]
    Unsupported,
}

impl Protocol {
    /// As in manifests and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Http => "http",
            Protocol::Unsupported => "unsupported",
        }
    }
}

/// What an endpoint of an `http` port is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: in cleartext with prior knowledge (RFC 9113, 3.3), or as ALPN agrees where `upstreamTls` is set.
    H2c,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// `round-robin` unless said otherwise.
    #[serde(default)]
    pub policy: Balance,
}

/// The pickers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Smooth weighted round-robin.
    #[default]
    RoundRobin,
    /// The fewest requests or connections in flight for its weight, counted to the end of the body.
    LeastConnections,
    /// Written by a newer version than this; treated as round-robin here.
    #[serde(other)]
    Unsupported,
}

/// How long to wait; `None` is the default that each field names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// For a TCP connection to an endpoint: 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Span>,
    /// For the whole of a request up to the response's head: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// For a connection on which nothing moves: 5 min.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
}

/// How often a request may be tried again, and only what is provably unprocessed or idempotent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Further tries after the first: 1. With 0, only a connection that could not be made is tried elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// For one try up to the response's head, the connection included: no limit but the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Span>,
    /// Retries in per cent of the requests: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_percent: Option<u32>,
}

/// `health:` of a service: `none`, or how to check.
#[derive(Clone, Debug, PartialEq)]
pub enum HealthPolicy {
    /// `health: none`: endpoints count as passing as long as they run.
    Disabled,
    /// Checked as given.
    Check(HealthCheck),
}

/// One way to check, and when an endpoint turns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// An HTTP request with an expected status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A TCP connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// `grpc.health.v1.Health/Check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// Docker's own HEALTHCHECK of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerProbe>,
    /// Between two checks: 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// For one check: 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Passes in a row until a failing endpoint is passing: 2. A starting one is ready at its first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<u32>,
    /// Failures in a row until a passing endpoint is failing: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<u32>,
}

impl HealthCheck {
    /// Between two checks of an endpoint that is not starting.
    pub fn interval(&self) -> Duration {
        self.interval.map_or(Duration::from_secs(5), |s| s.0)
    }

    /// For one check.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(1), |s| s.0)
    }

    /// Passes in a row until a failing endpoint is passing.
    pub fn rise(&self) -> u32 {
        self.rise.unwrap_or(2)
    }

    /// Failures in a row until a passing endpoint is failing.
    pub fn fall(&self) -> u32 {
        self.fall.unwrap_or(3)
    }
}

/// `health.http`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// Asked for with GET; starts with `/`.
    pub path: String,
    /// Statuses that pass: 200 to 399 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<StatusRanges>,
}

/// `health.tcp`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpProbe {}

/// `health.grpc`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrpcProbe {
    /// The service asked about; empty for the whole server.
    #[serde(default)]
    pub service: String,
}

/// `health.docker`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DockerProbe {}

impl Serialize for HealthPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            HealthPolicy::Disabled => serializer.serialize_str("none"),
            HealthPolicy::Check(check) => check.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for HealthPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = HealthPolicy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`none`, or a map with http, tcp, grpc or docker")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HealthPolicy, E> {
                match text {
                    "none" => Ok(HealthPolicy::Disabled),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HealthPolicy, A::Error> {
                HealthCheck::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(HealthPolicy::Check)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
