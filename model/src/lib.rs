//! Types and rules of heddle, without I/O.
//!
//! # Layout
//! What users write and what the registry keeps:
//! * [`name`], [`domain`], [`labels`], [`selector`], [`units`], [`net`], [`time`]: the small validated types
//! * [`strict`]: reading YAML and JSON so that every mistake is named by its path
//! * [`manifest`]: documents a user applies, validated
//! * [`service`], [`endpoint`], [`workload`], [`node`], [`mesh`], [`mark`]: the resources
//! * [`event`]: what changed and why, for people
//!
//! What is made of them:
//! * [`catalog`]: the registry's truth at one revision, changed by [`catalog::Change`]s
//! * [`membership`]: which nodes are believed, and when many that go at once are not taken for gone
//! * [`snapshot`]: the immutable view that proxy and DNS read, and the pure builder that makes it
//! * [`rotation`]: the smooth weighted order in which a port's endpoints take turns
//! * [`rendezvous`]: who does something that only some should do, agreed on without asking

pub mod catalog;
pub mod domain;
pub mod endpoint;
pub mod event;
pub mod labels;
pub mod manifest;
pub mod mark;
pub mod membership;
pub mod mesh;
pub mod name;
pub mod net;
pub mod node;
pub mod rendezvous;
pub mod rotation;
pub mod selector;
pub mod service;
pub mod snapshot;
pub mod strict;
pub mod time;
pub mod units;
pub mod workload;

pub use catalog::{Catalog, Change};
pub use domain::DomainName;
pub use endpoint::{Endpoint, EndpointId, Fact, Health, Lifecycle, Slice, State};
pub use event::{Event, EventKind};
pub use mark::{Mark, MarkTarget};
pub use mesh::Mesh;
pub use name::{Name, ServiceKey};
pub use net::IpNet;
pub use node::{Liveness, Node};
pub use service::{Metadata, Protocol, Service, ServicePort, ServiceSpec};
pub use snapshot::Snapshot;
pub use time::Timestamp;
pub use workload::Workload;
