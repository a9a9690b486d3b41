//! The snapshot: an immutable view of the catalog plus this node's health findings, indexed for look-up.
//!
//! One writer task owns a [`Builder`] and publishes what it makes through one atomic pointer; proxy and DNS read it. A
//! change rebuilds the views of the services it touches and shares everything else with the snapshot before. Counters
//! that outlive a snapshot ([`EndpointLoad`], [`PortLoad`]) are carried over by endpoint id and port name.

mod builder;
#[cfg(test)]
mod tests;
mod view;

use std::net::IpAddr;
use std::sync::Arc;

use rpds::{HashTrieMapSync, HashTrieSetSync};

pub use builder::{Builder, Finding, Identity};
pub use view::{EndpointLoad, EndpointView, PortLoad, PortView, ServiceView};

use crate::mesh::Mesh;
use crate::name::{Name, ServiceKey};
use crate::node::{Liveness, Node};

/// Whether the catalog behind a snapshot is the registry's present truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing was ever read: "nothing there" can't be told from "cannot see".
    #[default]
    Unsynced,
    /// From the disk or from before the registry was lost; served on, and said so.
    Stale,
    /// Follows the registry.
    Fresh,
}

/// What proxy and DNS read. Cloning is O(1).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The registry's revision that it shows.
    pub revision: i64,
    /// Counts the snapshots of this process.
    pub epoch: u64,
    /// Whether it shows the present.
    pub freshness: Freshness,
    /// What all nodes agree on.
    pub mesh: Arc<Mesh>,
    /// Every service.
    pub services: HashTrieMapSync<ServiceKey, Arc<ServiceView>>,
    /// Who has which virtual IP.
    pub vips: HashTrieMapSync<IpAddr, ServiceKey>,
    /// Headless services, whose endpoints have names and addresses of their own in DNS.
    pub headless: HashTrieSetSync<ServiceKey>,
    /// Services with endpoints that this node must check itself: made by hand, or of a node that is gone.
    pub unowned: HashTrieSetSync<ServiceKey>,
    /// Namespaces that have a service, with how many: DNS tells an empty name from an unknown one by it.
    pub namespaces: HashTrieMapSync<Name, usize>,
    /// All nodes known.
    pub nodes: HashTrieMapSync<Name, Arc<Node>>,
    /// The nodes that are alive.
    pub alive: HashTrieMapSync<Name, Arc<Liveness>>,
}

impl Snapshot {
    /// A service's view.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceView>> {
        self.services.get(key)
    }

    /// The service that has this virtual IP.
    pub fn service_at(&self, vip: IpAddr) -> Option<&Arc<ServiceView>> {
        self.services.get(self.vips.get(&vip)?)
    }

    /// The port behind a virtual IP and port.
    pub fn port_at(&self, vip: IpAddr, port: u16) -> Option<&Arc<PortView>> {
        self.service_at(vip)?.ports.iter().find(|p| p.port == port)
    }

    /// All services by namespace and name, for listings.
    pub fn sorted(&self) -> Vec<&Arc<ServiceView>> {
        let mut all: Vec<_> = self.services.values().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }
}
