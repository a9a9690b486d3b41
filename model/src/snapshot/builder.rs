//! The pure builder: catalog changes and findings in, snapshots out, rebuilding only what a change touches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Freshness, Snapshot};
use crate::catalog::{Catalog, Change, Touched};
use crate::domain::DomainName;
use crate::endpoint::{EndpointId, Fact, Health, Slice};
use crate::membership::Membership;
use crate::mesh::Mesh;
use crate::name::{Name, ServiceKey};
use crate::rendezvous::Candidates;

/// The node for which snapshots are built.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name: endpoints of this node are dialled at their local address.
    pub node: Name,
    /// Drawn anew by each process, to start rotations apart.
    pub seed: u64,
}

/// What this node found out about an endpoint that no living node owns, for its own data path.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The service it was checked for.
    pub service: ServiceKey,
    /// The endpoint.
    pub id: EndpointId,
    /// What the check says; `None` withdraws the finding.
    pub health: Option<Fact<Health>>,
}

/// Keeps the catalog and makes snapshots of it.
#[derive(Debug)]
pub struct Builder {
    pub(super) identity: Identity,
    pub(super) catalog: Catalog,
    pub(super) findings: HashMap<ServiceKey, HashMap<EndpointId, Fact<Health>>>,
    /// This node's own slices as its agent has them now, ahead of the registry; `None`: it has none for that service.
    pub(super) own: HashMap<ServiceKey, Option<Arc<Slice>>>,
    /// Who may check what no node owns; `None`: to be worked out anew.
    pub(super) checkers: Option<Candidates<Name>>,
    /// Further names in DNS, as services claim them.
    claims: HashMap<ServiceKey, Arc<[DomainName]>>,
    /// Nodes whose state changed, and whose services are to be rebuilt.
    restated: Vec<Name>,
    pub(super) current: Snapshot,
}

impl Builder {
    /// A builder without a catalog, whose snapshot is [`Freshness::Unsynced`].
    pub fn new(identity: Identity) -> Self {
        Builder {
            identity,
            catalog: Catalog::default(),
            findings: HashMap::new(),
            own: HashMap::new(),
            checkers: None,
            claims: HashMap::new(),
            restated: Vec::new(),
            current: Snapshot::default(),
        }
    }

    /// What the mesh is taken for until the registry says: names of its zone are ours before the first sync too.
    pub fn assume_mesh(&mut self, mesh: Arc<Mesh>) {
        self.current.mesh = mesh;
    }

    /// The last snapshot. Cloning it is O(1).
    pub fn snapshot(&self) -> &Snapshot {
        &self.current
    }

    /// The catalog behind it. Cloning it is O(1).
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Takes over changes of one or more revisions, and rebuilds the services they touch, which it returns.
    pub fn apply(
        &mut self,
        revision: i64,
        changes: impl IntoIterator<Item = Change>,
    ) -> BTreeSet<ServiceKey> {
        let mut dirty: BTreeSet<ServiceKey> = BTreeSet::new();
        let mut nodes: HashSet<Name> = HashSet::new();
        for change in changes {
            let touched = self.catalog.apply(change);
            match touched {
                Touched::None => {}
                Touched::One(key) => {
                    dirty.insert(key);
                }
                Touched::Two(a, b) => {
                    dirty.extend([a, b]);
                }
                Touched::OnNode(node) => {
                    nodes.insert(node);
                }
                Touched::Living(node) => self.restated.push(node),
            }
        }
        self.catalog.revision = revision;
        self.current.revision = revision;
        if let Some(mesh) = &self.catalog.mesh {
            self.current.mesh = mesh.clone();
        }
        self.current.vips = self.catalog.vips.clone();
        self.current.nodes = self.catalog.nodes.clone();
        self.current.alive = self.catalog.alive.clone();
        if !self.restated.is_empty() {
            self.checkers = None;
            dirty.extend(self.catalog.endpoints_of.keys().cloned());
            nodes.extend(self.restated.drain(..));
        }
        if !nodes.is_empty() {
            // Once for all of them: a first listing has as many as there are.
            let touched = |by_node: &BTreeMap<Name, _>| by_node.keys().any(|n| nodes.contains(n));
            let slices = self.catalog.slices.iter();
            let on_them = slices.filter(|(_, by_node)| touched(by_node));
            dirty.extend(on_them.map(|(key, _)| key.clone()));
        }
        self.rebuild(&dirty);
        dirty
    }

    /// Takes over what is made of the nodes, where those of `changed` are others than before; their services are rebuilt
    /// with the next [`Builder::apply`].
    pub fn set_members(&mut self, membership: &Membership, changed: Vec<Name>) {
        self.current.members = membership.members().clone();
        self.current.guard = membership.guard().cloned();
        self.restated.extend(changed);
    }

    /// Says whether the catalog follows the registry now.
    pub fn set_freshness(&mut self, freshness: Freshness) -> bool {
        if self.current.freshness == freshness {
            return false;
        }
        self.current.freshness = freshness;
        // Whose word counts of what no node owns depends on whether the others' can be heard.
        let ownerless = self.catalog.endpoints_of.keys().cloned().collect();
        self.rebuild(&ownerless);
        true
    }

    /// Takes over what this node found out about endpoints that nobody else checks; returns the services they are of.
    pub fn apply_findings(
        &mut self,
        findings: impl IntoIterator<Item = Finding>,
    ) -> BTreeSet<ServiceKey> {
        let mut dirty = BTreeSet::new();
        for finding in findings {
            let of_service = self.findings.entry(finding.service.clone()).or_default();
            match finding.health {
                Some(fact) => of_service.insert(finding.id, fact),
                None => of_service.remove(&finding.id),
            };
            if of_service.is_empty() {
                self.findings.remove(&finding.service);
            }
            dirty.insert(finding.service);
        }
        self.rebuild(&dirty);
        dirty
    }

    /// Takes over this node's own slices straight from its agent, which knows before the registry does, and without it.
    /// Returns the services they are of.
    pub fn apply_own(
        &mut self,
        slices: impl IntoIterator<Item = (ServiceKey, Option<Arc<Slice>>)>,
    ) -> BTreeSet<ServiceKey> {
        let mut dirty = BTreeSet::new();
        for (key, slice) in slices {
            self.own.insert(key.clone(), slice);
            dirty.insert(key);
        }
        self.rebuild(&dirty);
        dirty
    }

    fn rebuild(&mut self, dirty: &BTreeSet<ServiceKey>) {
        self.current.epoch += 1;
        if self.checkers.is_none()
            && dirty
                .iter()
                .any(|key| self.catalog.endpoints_of.contains_key(key))
        {
            self.checkers = Some(self.current.caretakers(&self.identity.node));
        }
        for key in dirty {
            let Some(service) = self.catalog.services.get(key).cloned() else {
                if self.current.services.remove_mut(key) {
                    self.count_namespace(&key.namespace, false);
                }
                self.claim_names(key, &[]);
                self.current.headless.remove_mut(key);
                self.current.unowned.remove_mut(key);
                let in_catalog = self.catalog.slice(key, &self.identity.node).is_some();
                if !in_catalog && matches!(self.own.get(key), Some(None)) {
                    self.own.remove(key);
                }
                continue;
            };
            let previous = self.current.services.get(key).cloned();
            if previous.is_none() {
                self.count_namespace(&key.namespace, true);
            }
            let view = self.view(key, service, previous.as_deref());
            self.claim_names(key, &view.service.spec.dns.names);
            flag(&mut self.current.headless, key, view.headless());
            let unowned = view
                .ports
                .iter()
                .any(|p| p.endpoints.iter().any(|e| e.unowned));
            flag(&mut self.current.unowned, key, unowned);
            self.current
                .services
                .insert_mut(key.clone(), Arc::new(view));
        }
    }

    /// Takes over which further names a service claims in DNS.
    fn claim_names(&mut self, key: &ServiceKey, names: &[DomainName]) {
        let before = self.claims.get(key).cloned().unwrap_or_default();
        if *before == *names {
            return;
        }
        for (name, on) in
            (before.iter().map(|name| (name, false))).chain(names.iter().map(|name| (name, true)))
        {
            let claimed = self.current.dns_names.get(name);
            let mut keys: BTreeSet<ServiceKey> = claimed
                .iter()
                .flat_map(|keys| keys.iter())
                .cloned()
                .collect();
            if on {
                keys.insert(key.clone());
            } else {
                keys.remove(key);
            }
            if keys.is_empty() {
                self.current.dns_names.remove_mut(name);
            } else {
                let keys = keys.into_iter().collect();
                self.current.dns_names.insert_mut(name.clone(), keys);
            }
        }
        if names.is_empty() {
            self.claims.remove(key);
        } else {
            self.claims.insert(key.clone(), names.into());
        }
    }

    fn count_namespace(&mut self, namespace: &Name, more: bool) {
        let count = self.current.namespaces.get(namespace).copied().unwrap_or(0);
        let count = if more {
            count + 1
        } else {
            count.saturating_sub(1)
        };
        if count == 0 {
            self.current.namespaces.remove_mut(namespace);
        } else {
            self.current.namespaces.insert_mut(namespace.clone(), count);
        }
    }
}

fn flag(set: &mut rpds::HashTrieSetSync<ServiceKey>, key: &ServiceKey, on: bool) {
    // Even removing what isn't there would copy what is shared with the snapshot before.
    match (on, set.contains(key)) {
        (true, false) => set.insert_mut(key.clone()),
        (false, true) => {
            set.remove_mut(key);
        }
        (true, true) | (false, false) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_this_node_has_nothing_of_a_service_is_forgotten_with_the_service() {
        let node = Name::new("n1").expect("a name");
        let key: ServiceKey = "shop/web".parse().expect("a key");
        let slice = Arc::new(Slice {
            service: key.clone(),
            node: node.clone(),
            endpoints: Vec::new(),
        });
        let mut builder = Builder::new(Identity {
            node: node.clone(),
            seed: 1,
        });
        builder.apply(1, [Change::Slice(key.clone(), node.clone(), Some(slice))]);
        builder.apply_own([(key.clone(), None)]);
        assert!(
            builder.own.contains_key(&key),
            "the registry still says otherwise"
        );
        builder.apply(2, [Change::Slice(key.clone(), node, None)]);
        assert!(builder.own.is_empty());
        builder.apply_own([(key, None)]);
        assert!(builder.own.is_empty());
    }
}
