//! The pure builder: catalog changes and findings in, snapshots out, rebuilding only what a change touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::view::{EndpointLoad, EndpointView, PortLoad, PortView, ServiceView};
use super::{Freshness, Snapshot};
use crate::catalog::{Catalog, Change, Touched};
use crate::endpoint::{
    Endpoint, EndpointId, Fact, Health, Lifecycle, ManualEndpoint, Slice, State,
};
use crate::mark::MarkTarget;
use crate::mesh::Mesh;
use crate::name::{Name, ServiceKey};
use crate::net::IpNet;
use crate::rotation::Rotation;
use crate::service::{HealthPolicy, Service, ServicePort};
use crate::time::Timestamp;

/// The node for which snapshots are built.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name: endpoints of this node are dialled at their local address.
    pub node: Name,
    /// Drawn anew by each process, to start rotations apart.
    pub seed: u64,
}

/// What this node found out about an endpoint that no living node owns.
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
    identity: Identity,
    catalog: Catalog,
    findings: HashMap<ServiceKey, HashMap<EndpointId, Fact<Health>>>,
    /// This node's own slices as its agent has them now, ahead of the registry; `None`: it has none for that service.
    own: HashMap<ServiceKey, Option<Arc<Slice>>>,
    current: Snapshot,
}

impl Builder {
    /// A builder without a catalog, whose snapshot is [`Freshness::Unsynced`].
    pub fn new(identity: Identity) -> Self {
        Builder {
            identity,
            catalog: Catalog::default(),
            findings: HashMap::new(),
            own: HashMap::new(),
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
                    dirty.extend(self.catalog.services_on(&node).cloned());
                }
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
        self.rebuild(&dirty);
        dirty
    }

    /// Says whether the catalog follows the registry now.
    pub fn set_freshness(&mut self, freshness: Freshness) -> bool {
        if self.current.freshness == freshness {
            return false;
        }
        self.current.freshness = freshness;
        self.current.epoch += 1;
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
        for key in dirty {
            let Some(service) = self.catalog.services.get(key).cloned() else {
                if self.current.services.remove_mut(key) {
                    self.count_namespace(&key.namespace, false);
                }
                self.current.headless.remove_mut(key);
                self.current.unowned.remove_mut(key);
                continue;
            };
            let previous = self.current.services.get(key).cloned();
            if previous.is_none() {
                self.count_namespace(&key.namespace, true);
            }
            let view = self.view(key, service, previous.as_deref());
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

    fn view(
        &self,
        key: &ServiceKey,
        service: Arc<Service>,
        previous: Option<&ServiceView>,
    ) -> ServiceView {
        let mut by_port: BTreeMap<Name, Vec<EndpointView>> = BTreeMap::new();
        let carried: HashMap<&EndpointId, &Arc<EndpointLoad>> = previous
            .iter()
            .flat_map(|view| &view.ports)
            .flat_map(|port| &port.endpoints)
            .map(|e| (&e.id, &e.load))
            .collect();
        let mut add = |endpoint: Arc<Endpoint>, node: Option<&Name>| {
            let view = self.endpoint_view(key, &service, endpoint, node, &carried);
            by_port
                .entry(view.endpoint.port.clone())
                .or_default()
                .push(view);
        };
        let own = self.own.get(key);
        let published = self.catalog.slices.get(key);
        for slice in published
            .iter()
            .flat_map(|m| m.values())
            .filter(|s| own.is_none() || s.node != self.identity.node)
            .chain(own.iter().flat_map(|o| o.as_ref()))
        {
            for endpoint in &slice.endpoints {
                add(endpoint.clone(), Some(&slice.node));
            }
        }
        for manual in self
            .catalog
            .endpoints_of
            .get(key)
            .iter()
            .flat_map(|m| m.values())
        {
            for endpoint in endpoints_of_manual(manual, &service) {
                add(Arc::new(endpoint), None);
            }
        }
        let ports = service
            .spec
            .ports
            .iter()
            .map(|port| {
                let mut endpoints = by_port.remove(&port.name()).unwrap_or_default();
                endpoints.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
                endpoints.shrink_to_fit();
                let load = previous
                    .and_then(|view| view.port(port.name().as_str()))
                    .map_or_else(|| Arc::new(self.first_load(key, port)), |p| p.load.clone());
                Arc::new(self.port_view(key, &service, port, endpoints, load))
            })
            .collect();
        ServiceView {
            key: key.clone(),
            vips: self
                .catalog
                .vips_of
                .get(key)
                .cloned()
                .unwrap_or_else(|| Arc::new([])),
            service,
            ports,
        }
    }

    fn first_load(&self, key: &ServiceKey, port: &ServicePort) -> PortLoad {
        let mut hasher = DefaultHasher::new();
        (self.identity.seed, &self.identity.node, key, port.port).hash(&mut hasher);
        // Small enough that a position never wraps around.
        PortLoad::new(hasher.finish() >> 32)
    }

    fn endpoint_view(
        &self,
        key: &ServiceKey,
        service: &Service,
        endpoint: Arc<Endpoint>,
        node: Option<&Name>,
        carried: &HashMap<&EndpointId, &Arc<EndpointLoad>>,
    ) -> EndpointView {
        let id = endpoint.id();
        let own = node == Some(&self.identity.node);
        let alive = node.is_some_and(|n| self.catalog.alive.contains_key(n));
        let unowned = !own && !alive && service.spec.health != Some(HealthPolicy::Disabled);
        let routable = node
            .and_then(|n| self.catalog.nodes.get(n))
            .map_or(&[] as &[IpNet], |n| &n.routable);
        let local = own
            || (!endpoint.local.is_empty()
                && endpoint
                    .local
                    .iter()
                    .all(|a| routable.iter().any(|net| net.contains(a.ip()))));
        let found = self.findings.get(key).and_then(|found| found.get(&id));
        let health = match found {
            Some(fact) if unowned => fact.clone(),
            _ => endpoint.health.clone(),
        };
        let mark = self.mark_on(key, &endpoint, node);
        let state = State::derive(health.value, endpoint.lifecycle.value, mark.is_some());
        let reason = match state {
            State::Draining if mark.is_some() => mark.unwrap_or_default(),
            State::Draining => endpoint.lifecycle.reason.clone(),
            _ => health.reason.clone(),
        };
        let load = carried
            .get(&id)
            .map_or_else(Arc::default, |load| Arc::clone(load));
        let mut view = EndpointView {
            endpoint,
            id,
            node: node.cloned(),
            unowned,
            local,
            health,
            state,
            reason,
            load,
        };
        if view.addresses().is_empty() {
            view.reason = UNREACHABLE.into();
        }
        view
    }

    /// Why an operator has taken the endpoint out, if so.
    fn mark_on(
        &self,
        key: &ServiceKey,
        endpoint: &Endpoint,
        node: Option<&Name>,
    ) -> Option<Arc<str>> {
        if self.catalog.marks.is_empty() {
            return None;
        }
        let on_endpoint = MarkTarget::Endpoint {
            service: key.clone(),
            workload: endpoint.workload.clone(),
            port: endpoint.port.clone(),
        };
        let on_node = node.map(|name| MarkTarget::Node { name: name.clone() });
        let on_workload = node.map(|node| MarkTarget::Workload {
            node: node.clone(),
            workload: endpoint.workload.clone(),
        });
        [Some(on_endpoint), on_workload, on_node]
            .into_iter()
            .flatten()
            .find_map(|target| self.catalog.marks.get(&target))
            .map(|mark| match mark.reason.as_str() {
                "" => format!("{} drained", mark.target).into(),
                reason => format!("{} drained: {reason}", mark.target).into(),
            })
    }

    fn port_view(
        &self,
        key: &ServiceKey,
        service: &Service,
        port: &ServicePort,
        endpoints: Vec<EndpointView>,
        load: Arc<PortLoad>,
    ) -> PortView {
        let pick = |wanted: &dyn Fn(&EndpointView) -> bool| -> Vec<u32> {
            (0u32..)
                .zip(&endpoints)
                .filter(|(_, e)| wanted(e))
                .map(|(index, _)| index)
                .collect()
        };
        let mut eligible = pick(&EndpointView::ready);
        if eligible.is_empty() {
            eligible = pick(&|e: &EndpointView| {
                let drained = self.mark_on(key, &e.endpoint, e.node.as_ref()).is_some();
                e.last_resort(drained)
            });
        }
        let weights: Vec<u16> = eligible
            .iter()
            .map(|index| endpoints[*index as usize].endpoint.weight)
            .collect();
        eligible.shrink_to_fit();
        let unavailable = if eligible.is_empty() {
            why_nobody(key, service, &endpoints)
        } else {
            String::new()
        };
        let spec = &service.spec;
        PortView {
            key: key.clone(),
            name: port.name(),
            port: port.port,
            node_port: port.node_port,
            protocol: port.protocol,
            upstream: port.upstream_protocol,
            balance: spec.load_balancing.policy,
            connect_timeout: spec
                .timeouts
                .connect
                .map_or(Duration::from_secs(1), |s| s.0),
            request_timeout: spec.timeouts.request.map(|s| s.0).filter(|d| !d.is_zero()),
            idle_timeout: spec.timeouts.idle.map_or(Duration::from_secs(300), |s| s.0),
            retries: spec.retries.attempts.unwrap_or(1),
            retry_budget_percent: spec.retries.budget_percent.unwrap_or(20),
            rotation: Rotation::new(&weights),
            endpoints,
            eligible,
            unavailable,
            load,
        }
    }
}

const UNREACHABLE: &str = "unreachable: publish a port, or use host networking, or put the container's network into \
                           node.routable if other nodes can route to it";

fn flag(set: &mut rpds::HashTrieSetSync<ServiceKey>, key: &ServiceKey, on: bool) {
    if on {
        if !set.contains(key) {
            set.insert_mut(key.clone());
        }
    } else {
        set.remove_mut(key);
    }
}

/// One endpoint per service port that the manifest names.
fn endpoints_of_manual(manual: &ManualEndpoint, service: &Service) -> Vec<Endpoint> {
    let unchecked = service.spec.health == Some(HealthPolicy::Disabled);
    let since = manual.metadata.creation_timestamp.unwrap_or(Timestamp(0));
    let health = if unchecked {
        Fact::new(Health::Passing, since, "not checked: health is none")
    } else {
        Fact::new(Health::Unknown, since, "not checked yet")
    };
    let address: IpAddr = manual.spec.address;
    let name: Arc<str> = manual.metadata.name.as_str().into();
    let generation: Arc<str> = format!(
        "{}/{address}",
        manual.metadata.uid.as_deref().unwrap_or_default()
    )
    .into();
    manual
        .spec
        .ports
        .iter()
        .map(|(port, number)| Endpoint {
            workload: name.clone(),
            name: name.clone(),
            port: port.clone(),
            generation: format!("{generation}:{number}").into(),
            local: Vec::new(),
            remote: vec![SocketAddr::new(address, *number)],
            weight: manual.spec.weight,
            zone: manual.spec.zone.clone(),
            health: health.clone(),
            lifecycle: Fact::new(Lifecycle::Running, since, ""),
        })
        .collect()
}

fn why_nobody(key: &ServiceKey, service: &Service, endpoints: &[EndpointView]) -> String {
    if endpoints.is_empty() {
        return match &service.spec.selector {
            Some(selector) if selector.is_empty() => {
                format!("service {key} has no endpoints: its selector is empty and selects nothing")
            }
            Some(selector) => format!(
                "service {key} has no endpoints: no workload of namespace {} matches `{selector}`",
                key.namespace
            ),
            None => format!(
                "service {key} has no endpoints: it has no selector and nobody made an Endpoint for it"
            ),
        };
    }
    let mut parts = Vec::new();
    for state in State::ALL {
        let of_state = endpoints
            .iter()
            .filter(|e| e.state == state && !e.addresses().is_empty())
            .count();
        if of_state > 0 {
            parts.push(format!("{of_state} {state}"));
        }
    }
    let unreachable = endpoints
        .iter()
        .filter(|e| e.addresses().is_empty())
        .count();
    if unreachable > 0 {
        parts.push(format!("{unreachable} unreachable from this node"));
    }
    let first = endpoints
        .iter()
        .map(|e| &e.reason)
        .find(|reason| !reason.is_empty());
    format!(
        "service {key} has no endpoint to take this: {}{}",
        parts.join(", "),
        first.map_or(String::new(), |reason| format!(" ({reason})"))
    )
}
