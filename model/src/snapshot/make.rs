//! What a builder makes of one service: its view, with why each endpoint takes work or not.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::builder::Builder;
use super::view::{EndpointLoad, EndpointView, PortLoad, PortView, ServiceView};
use crate::endpoint::{Endpoint, EndpointId, Fact, Health, Lifecycle, ManualEndpoint, State};
use crate::mark::MarkTarget;
use crate::membership::NodeState;
use crate::name::{Name, ServiceKey};
use crate::net::IpNet;
use crate::rotation::Rotation;
use crate::service::{HealthPolicy, Service, ServicePort};
use crate::time::Timestamp;

impl Builder {
    pub(super) fn view(
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
        let state = node.map(|n| self.current.node_state(n));
        let gone = state.filter(|state| !own && *state != NodeState::Alive);
        let checked = service.spec.health != Some(HealthPolicy::Disabled);
        let routable = node
            .and_then(|n| self.catalog.nodes.get(n))
            .map_or(&[] as &[IpNet], |n| &n.routable);
        let local = own
            || (!endpoint.local.is_empty()
                && endpoint
                    .local
                    .iter()
                    .all(|a| routable.iter().any(|net| net.contains(a.ip()))));
        let (health, unowned) = match node {
            None if checked => self.ownerless(key, &id, &endpoint.health),
            Some(_) if checked && gone.is_some() => {
                let found = self.findings.get(key).and_then(|found| found.get(&id));
                (found.unwrap_or(&endpoint.health).clone(), true)
            }
            _ => (endpoint.health.clone(), false),
        };
        let mark = self.mark_on(key, &endpoint, node);
        let state = State::derive(health.value, endpoint.lifecycle.value, mark.is_some());
        let reason = match state {
            State::Draining if mark.is_some() => mark.unwrap_or_default(),
            State::Draining => endpoint.lifecycle.reason.clone(),
            _ => match (node, gone) {
                (Some(node), Some(gone)) => self.why_gone(node, gone, unowned, &health.reason),
                _ => health.reason.clone(),
            },
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

    /// That the endpoint's node is gone, and by whose word the endpoint is what it is.
    fn why_gone(&self, node: &Name, gone: NodeState, checked: bool, reason: &str) -> Arc<str> {
        let since = self.current.members.get(node);
        let since = since.map_or(String::new(), |m| format!(" since {}", m.since));
        let what = match gone {
            NodeState::Restarting => format!("node {node} is restarting{since}"),
            NodeState::Held => format!("node {node} is gone{since}, with many others"),
            NodeState::Orphaned | NodeState::Alive => format!("node {node} is gone{since}"),
        };
        let here = if checked { "checked from here: " } else { "" };
        format!("{what}: {here}{reason}").into()
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
            tls: port.tls.clone(),
            upstream_tls: port.upstream_tls.clone(),
            balance: spec.load_balancing.policy,
            connect_timeout: spec
                .timeouts
                .connect
                .map_or(Duration::from_secs(1), |s| s.0),
            request_timeout: spec.timeouts.request.map(|s| s.0).filter(|d| !d.is_zero()),
            per_try_timeout: spec.retries.per_try.map(|s| s.0),
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
            hostname: manual.spec.hostname.clone(),
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
