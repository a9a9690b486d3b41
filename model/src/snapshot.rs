//! The snapshot: an immutable view of the catalog plus this node's health findings, indexed for look-up.
//!
//! One writer task owns a [`Builder`] and publishes what it makes through one atomic pointer; proxy and DNS read it. A
//! change rebuilds the views of the services it touches and shares everything else with the snapshot before. Counters
//! that outlive a snapshot ([`EndpointLoad`], [`PortLoad`]) are carried over by endpoint id and port name.

mod builder;
mod eligible;
mod make;
mod ownerless;
#[cfg(test)]
mod tests;
mod view;

use std::net::IpAddr;
use std::sync::Arc;

use rpds::{HashTrieMapSync, HashTrieSetSync};

pub use builder::{Builder, Finding, Identity};
pub use eligible::Filter;
pub use ownerless::CHECKERS;
pub use view::{EndpointLoad, EndpointView, PortLoad, PortView, ServiceView};

use crate::domain::DomainName;
use crate::membership::{MassExpiry, Member, NodeState};
use crate::mesh::Mesh;
use crate::name::{Name, ServiceKey};
use crate::node::{Liveness, Node, ORPHANS};
use crate::rendezvous::Candidates;

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
    /// Services with endpoints that this node checks: of a node that is gone, or made by hand and this node's to check.
    pub unowned: HashTrieSetSync<ServiceKey>,
    /// Namespaces that have a service, with how many: DNS tells an empty name from an unknown one by it.
    pub namespaces: HashTrieMapSync<Name, usize>,
    /// Who claims which further name in DNS, by namespace and name.
    pub dns_names: HashTrieMapSync<DomainName, Arc<[ServiceKey]>>,
    /// All nodes known.
    pub nodes: HashTrieMapSync<Name, Arc<Node>>,
    /// The nodes that are alive.
    pub alive: HashTrieMapSync<Name, Arc<Liveness>>,
    /// What is made of each node.
    pub members: HashTrieMapSync<Name, Member>,
    /// The mass expiry that is held now.
    pub guard: Option<Arc<MassExpiry>>,
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

    /// The service that has a further name in DNS: the oldest of those that claim it.
    pub fn service_named(&self, name: &DomainName) -> Option<&Arc<ServiceView>> {
        let claimed = self.dns_names.get(name)?.iter();
        claimed
            .filter_map(|key| self.service(key))
            .min_by_key(|view| (view.service.metadata.creation_timestamp, &view.key))
    }

    /// What is made of a node. Where nobody keeps account of that, its liveness key decides.
    pub fn node_state(&self, node: &Name) -> NodeState {
        match self.members.get(node) {
            Some(member) => member.state,
            None if self.alive.contains_key(node) => NodeState::Alive,
            None => NodeState::Orphaned,
        }
    }

    /// The nodes that can look after what no living node owns: `own`, whose snapshot this is, and all others that are
    /// alive and know how to.
    pub fn caretakers(&self, own: &Name) -> Candidates<Name> {
        let able = |node: &Name| {
            let known = self.nodes.get(node);
            known.is_some_and(|node| node.capabilities.iter().any(|c| c == ORPHANS))
        };
        let others = self.alive.iter().filter(|(node, liveness)| {
            liveness.restarting_until.is_none()
                && able(node)
                && self.node_state(node) == NodeState::Alive
        });
        let own = std::iter::once(own);
        Candidates::new(own.chain(others.map(|(node, _)| node)).cloned())
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
