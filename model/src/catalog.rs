//! The catalog: the registry's truth at one revision.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rpds::HashTrieMapSync;

use crate::endpoint::{Findings, ManualEndpoint, Slice};
use crate::mark::{Mark, MarkTarget};
use crate::mesh::Mesh;
use crate::name::{Name, ServiceKey};
use crate::node::{Liveness, Node};
use crate::service::Service;
use crate::workload::Registration;

/// One record of the registry that came, changed or went (`None`).
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A service.
    Service(ServiceKey, Option<Arc<Service>>),
    /// A node's endpoints of a service.
    Slice(ServiceKey, Name, Option<Arc<Slice>>),
    /// An endpoint made by hand: its namespace and name.
    Endpoint(ServiceKey, Option<Arc<ManualEndpoint>>),
    /// What a node found out about a service's endpoints that no node owns.
    Findings(ServiceKey, Name, Option<Arc<Findings>>),
    /// What a node says of itself.
    Node(Name, Option<Arc<Node>>),
    /// Whether a node is alive.
    Liveness(Name, Option<Arc<Liveness>>),
    /// A virtual IP and the service that has it.
    Vip(IpAddr, Option<ServiceKey>),
    /// An admin mark.
    Mark(MarkTarget, Option<Arc<Mark>>),
    /// A process or VM registered on a node.
    Registration(Name, Name, Option<Arc<RegistrationRecord>>),
    /// What all nodes agree on.
    Mesh(Option<Arc<Mesh>>),
}

/// A registration with the revision that created it, which is its generation.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistrationRecord {
    /// What was registered.
    pub registration: Registration,
    /// The registry's revision at which it was created.
    pub create_revision: i64,
}

/// Services, slices, nodes and the rest. Cloning is O(1): the maps share their structure.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The revision of the last change applied.
    pub revision: i64,
    /// All services.
    pub services: HashTrieMapSync<ServiceKey, Arc<Service>>,
    /// By service, then node.
    pub slices: HashTrieMapSync<ServiceKey, Arc<BTreeMap<Name, Arc<Slice>>>>,
    /// Endpoints made by hand, by their own namespace and name.
    pub endpoints: HashTrieMapSync<ServiceKey, Arc<ManualEndpoint>>,
    /// The same by service.
    pub endpoints_of: HashTrieMapSync<ServiceKey, Arc<BTreeMap<Name, Arc<ManualEndpoint>>>>,
    /// What nodes found out about endpoints made by hand: by service, then the node that checks.
    pub findings: HashTrieMapSync<ServiceKey, Arc<BTreeMap<Name, Arc<Findings>>>>,
    /// All nodes ever seen and not deleted.
    pub nodes: HashTrieMapSync<Name, Arc<Node>>,
    /// The nodes that are alive.
    pub alive: HashTrieMapSync<Name, Arc<Liveness>>,
    /// Virtual IPs by address.
    pub vips: HashTrieMapSync<IpAddr, ServiceKey>,
    /// Virtual IPs by service, ascending.
    pub vips_of: HashTrieMapSync<ServiceKey, Arc<[IpAddr]>>,
    /// What operators drained.
    pub marks: HashTrieMapSync<MarkTarget, Arc<Mark>>,
    /// Registered processes and VMs, by node and id.
    pub registrations: HashTrieMapSync<(Name, Name), Arc<RegistrationRecord>>,
    /// What all nodes agree on.
    pub mesh: Option<Arc<Mesh>>,
}

/// Which services a change touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// None: nothing that a service's view depends on.
    None,
    /// One.
    One(ServiceKey),
    /// Two: something moved from one to the other.
    Two(ServiceKey, ServiceKey),
    /// All that have endpoints on this node.
    OnNode(Name),
    /// All that have endpoints on this node, and all whose endpoints no node owns: who checks those depends on which nodes
    /// are alive and what they can do.
    Living(Name),
}

impl Catalog {
    /// Takes over one change and says which services' views it touches.
    pub fn apply(&mut self, change: Change) -> Touched {
        match change {
            Change::Service(key, service) => {
                set(&mut self.services, key.clone(), service);
                Touched::One(key)
            }
            Change::Slice(key, node, slice) => {
                nested(&mut self.slices, key.clone(), node, slice);
                Touched::One(key)
            }
            Change::Endpoint(name, endpoint) => self.apply_endpoint(name, endpoint),
            Change::Findings(key, node, findings) => {
                nested(&mut self.findings, key.clone(), node, findings);
                Touched::One(key)
            }
            Change::Node(name, node) => {
                set(&mut self.nodes, name.clone(), node);
                Touched::Living(name)
            }
            Change::Liveness(name, liveness) => {
                let was = self.alive.contains_key(&name);
                let is = liveness.is_some();
                set(&mut self.alive, name.clone(), liveness);
                if was == is {
                    Touched::None
                } else {
                    Touched::Living(name)
                }
            }
            Change::Vip(ip, service) => self.apply_vip(ip, service),
            Change::Mark(target, mark) => {
                set(&mut self.marks, target.clone(), mark);
                match target {
                    MarkTarget::Node { name } => Touched::OnNode(name),
                    MarkTarget::Workload { node, .. } => Touched::OnNode(node),
                    MarkTarget::Endpoint { service, .. } => Touched::One(service),
                }
            }
            Change::Registration(node, id, record) => {
                set(&mut self.registrations, (node, id), record);
                Touched::None
            }
            Change::Mesh(mesh) => {
                self.mesh = mesh;
                Touched::None
            }
        }
    }

    fn apply_endpoint(
        &mut self,
        name: ServiceKey,
        endpoint: Option<Arc<ManualEndpoint>>,
    ) -> Touched {
        let before = self.endpoints.get(&name).map(|e| e.service());
        let after = endpoint.as_ref().map(|e| e.service());
        if let Some(service) = before.clone().filter(|b| Some(b) != after.as_ref()) {
            nested(&mut self.endpoints_of, service, name.name.clone(), None);
        }
        if let Some(service) = after.clone() {
            nested(
                &mut self.endpoints_of,
                service,
                name.name.clone(),
                endpoint.clone(),
            );
        }
        set(&mut self.endpoints, name, endpoint);
        touched(before, after)
    }

    fn apply_vip(&mut self, ip: IpAddr, service: Option<ServiceKey>) -> Touched {
        let before = self.vips.get(&ip).cloned();
        set(&mut self.vips, ip, service.clone());
        if let Some(before) = before.as_ref().filter(|b| Some(*b) != service.as_ref()) {
            let rest: Vec<IpAddr> = self
                .vips_of(before)
                .iter()
                .copied()
                .filter(|i| *i != ip)
                .collect();
            if rest.is_empty() {
                self.vips_of.remove_mut(before);
            } else {
                self.vips_of.insert_mut(before.clone(), rest.into());
            }
        }
        if let Some(service) = &service {
            let mut all = self.vips_of(service).to_vec();
            if let Err(at) = all.binary_search(&ip) {
                all.insert(at, ip);
                self.vips_of.insert_mut(service.clone(), all.into());
            }
        }
        touched(before, service)
    }

    /// The service's virtual IPs, ascending.
    pub fn vips_of(&self, service: &ServiceKey) -> &[IpAddr] {
        self.vips_of.get(service).map_or(&[], |vips| vips)
    }

    /// The services that have endpoints on `node`.
    pub fn services_on<'a>(&'a self, node: &'a Name) -> impl Iterator<Item = &'a ServiceKey> + 'a {
        self.slices
            .iter()
            .filter(move |(_, by_node)| by_node.contains_key(node))
            .map(|(key, _)| key)
    }

    /// The slice of a service on a node.
    pub fn slice(&self, service: &ServiceKey, node: &Name) -> Option<&Arc<Slice>> {
        self.slices.get(service)?.get(node)
    }
}

fn touched(before: Option<ServiceKey>, after: Option<ServiceKey>) -> Touched {
    match (before, after) {
        (None, None) => Touched::None,
        (Some(one), None) | (None, Some(one)) => Touched::One(one),
        (Some(a), Some(b)) if a == b => Touched::One(a),
        (Some(a), Some(b)) => Touched::Two(a, b),
    }
}

fn set<K: Eq + std::hash::Hash, V>(map: &mut HashTrieMapSync<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert_mut(key, value),
        None => {
            map.remove_mut(&key);
        }
    }
}

fn nested<V: Clone>(
    map: &mut HashTrieMapSync<ServiceKey, Arc<BTreeMap<Name, V>>>,
    key: ServiceKey,
    inner: Name,
    value: Option<V>,
) {
    let mut entries = map.get(&key).map(|m| (**m).clone()).unwrap_or_default();
    match value {
        Some(value) => entries.insert(inner, value),
        None => entries.remove(&inner),
    };
    set(map, key, (!entries.is_empty()).then(|| Arc::new(entries)));
}
