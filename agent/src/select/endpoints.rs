//! The endpoints that one service makes of one workload.

use std::net::{IpAddr, SocketAddr};

use model::endpoint::{Endpoint, Fact, Health};
use model::service::{Protocol, Service, ServicePort};
use model::workload::Source;

use super::{Desired, NodeFacts};
use crate::check::{self, Plan};
use crate::labels::{undecided, unexposed};
use crate::local::Local;

/// What a service makes of a workload that it selects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selected {
    /// One endpoint per port of the service, except those with a fault.
    pub endpoints: Vec<Desired>,
    /// Why ports have no endpoint.
    pub faults: Vec<String>,
}

/// The endpoints of `service` on `local`, which its selector matches.
pub fn endpoints(service: &Service, local: &Local, node: &NodeFacts) -> Selected {
    let mut selected = Selected::default();
    if let Some(problem) = &local.workload.problem {
        selected.faults.push(problem.clone());
        return selected;
    }
    for port in &service.spec.ports {
        if port.protocol == Protocol::Unsupported {
            selected.faults.push(format!(
                "port {}: its protocol is not supported by this version of heddle",
                port.name()
            ));
            continue;
        }
        match target_port(port, local) {
            Ok(target) => selected
                .endpoints
                .push(endpoint(service, port, target, local, node)),
            Err(fault) => selected
                .faults
                .push(format!("port {}: {fault}", port.name())),
        }
    }
    selected
}

/// The port that the workload listens on, or why that can't be told.
fn target_port(port: &ServicePort, local: &Local) -> Result<u16, String> {
    if let Some(target) = port.target_port {
        return Ok(target);
    }
    if let Some(label) = &local.wishes.port {
        return label.clone();
    }
    match local.workload.exposed.as_slice() {
        [] => Err(unexposed()),
        [only] => Ok(*only),
        several if several.contains(&port.port) => Ok(port.port),
        several => Err(undecided(several)),
    }
}

fn endpoint(
    service: &Service,
    port: &ServicePort,
    target: u16,
    local: &Local,
    node: &NodeFacts,
) -> Desired {
    let workload = &local.workload;
    let local_addresses: Vec<SocketAddr> = workload
        .addresses
        .iter()
        .map(|ip| SocketAddr::new(*ip, target))
        .collect();
    let no_docker = match workload.source {
        Source::Docker => "the image has no HEALTHCHECK, which health.docker asks for",
        Source::Registered => {
            "not a container, so it has no HEALTHCHECK, which health.docker asks for"
        }
    };
    let plan = if local.paused {
        Plan::Fixed(Health::Failing, "paused".into())
    } else {
        check::plan(
            workload.check.as_ref().or(service.spec.health.as_ref()),
            workload.docker_health.as_ref(),
            no_docker,
            &local_addresses,
        )
    };
    let health = Fact::new(Health::Unknown, workload.lifecycle.since, "not checked yet");
    Desired {
        endpoint: Endpoint {
            workload: workload.id.clone(),
            name: workload.name.clone(),
            port: port.name(),
            // The number is part of what runs: an endpoint that moves to another port inherits nothing.
            generation: format!("{}:{target}", workload.generation).into(),
            remote: remote(target, local, node),
            local: local_addresses,
            weight: local.wishes.weight,
            zone: node.zone.clone(),
            hostname: local.wishes.hostname.clone(),
            health,
            lifecycle: workload.lifecycle.clone(),
        },
        plan,
    }
}

/// Where other nodes reach the port: nowhere, when the container doesn't publish it and doesn't share the host's network.
fn remote(target: u16, local: &Local, node: &NodeFacts) -> Vec<SocketAddr> {
    let workload = &local.workload;
    let hosts: Option<&[IpAddr]> = if workload.host_network {
        Some(&node.addresses)
    } else {
        local.remote_hosts.as_deref()
    };
    let mut all: Vec<SocketAddr> = match hosts {
        Some(hosts) => hosts
            .iter()
            .map(|ip| SocketAddr::new(*ip, target))
            .collect(),
        None => workload
            .published
            .iter()
            .filter(|p| p.port == target)
            .flat_map(|p| {
                let host = p.host;
                let any = host.ip().is_unspecified();
                let own = node
                    .addresses
                    .iter()
                    .filter(move |ip| any && ip.is_ipv4() == host.is_ipv4())
                    .map(move |ip| SocketAddr::new(*ip, host.port()));
                let given = (!any && !host.ip().is_loopback()).then_some(host);
                own.chain(given)
            })
            .collect(),
    };
    all.sort_unstable();
    all.dedup();
    all
}
