//! Active health checks.
//!
//! # Layout
//! - `machine`: when an endpoint turns, from one check's result to the next (no I/O, no clock)
//! - `flaps`: damps endpoints that turn again and again (no I/O, no clock)
//! - `heard`: what Docker's HEALTHCHECK says, damped (no I/O, no clock)
//! - `schedule`: which check is due when; one heap for all endpoints, shared checks, slots (no I/O, no clock)
//! - `jitter`: randomness that follows from a seed
//! - `runner`: runs what is due, a bounded number at once
//! - `probe`: one check on a socket: TCP, HTTP, gRPC

mod flaps;
mod heard;
pub(crate) mod jitter;
mod machine;
mod probe;
mod runner;
mod schedule;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::endpoint::{EndpointId, Fact, Health};
use model::name::ServiceKey;
use model::service::{HealthCheck, HealthPolicy};

pub use machine::{Begin, Machine, Timing};
pub use probe::Probe;
pub use runner::Checks;
pub use schedule::Schedule;

/// What is checked: services check the same port each in their own way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckKey {
    /// For which service.
    pub service: ServiceKey,
    /// Which endpoint.
    pub id: EndpointId,
    /// Of no living node: the result is a finding of this node, and not published.
    pub unowned: bool,
}

/// How an endpoint is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What is done.
    pub probe: Probe,
    /// Where, in the order they are tried; one that answers suffices.
    pub addresses: Vec<SocketAddr>,
    /// For one check of one address.
    pub timeout: Duration,
    /// When, and when an endpoint turns.
    pub timing: Timing,
}

/// What one check does; services that ask for the same share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// What is done.
    pub probe: Probe,
    /// Where, in the order they are tried; one that answers suffices.
    pub addresses: Vec<SocketAddr>,
    /// For one check of one address.
    pub timeout: Duration,
}

impl Spec {
    fn target(&self) -> Target {
        Target {
            probe: self.probe.clone(),
            addresses: self.addresses.clone(),
            timeout: self.timeout,
        }
    }
}

/// What decides about an endpoint's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing that changes by itself: no checks at all, a pause.
    Fixed(Health, Arc<str>),
    /// What Docker's HEALTHCHECK says now.
    Docker(Health, Arc<str>),
    /// Active checks.
    Active(Spec),
}

/// How an endpoint at `addresses` is checked under a service's policy.
///
/// `docker` is what Docker's HEALTHCHECK says of the container, none where the image has none; `no_docker` is why there
/// can't be one.
pub fn plan(
    policy: Option<&HealthPolicy>,
    docker: Option<&Fact<Health>>,
    no_docker: &str,
    addresses: &[SocketAddr],
) -> Plan {
    let defaults = HealthCheck::default();
    let check = match policy {
        Some(HealthPolicy::Disabled) => {
            return Plan::Fixed(Health::Passing, "not checked: health is none".into());
        }
        Some(HealthPolicy::Check(check)) => check,
        None => &defaults,
    };
    let unsaid = check.http.is_none() && check.tcp.is_none() && check.grpc.is_none();
    match docker {
        Some(fact) if unsaid => return Plan::Docker(fact.value, fact.reason.clone()),
        None if check.docker.is_some() => return Plan::Fixed(Health::Failing, no_docker.into()),
        _ => {}
    }
    let probe = if let Some(http) = &check.http {
        Probe::Http {
            path: http.path.clone(),
            expect: http.expect.clone(),
        }
    } else if let Some(grpc) = &check.grpc {
        Probe::Grpc {
            service: grpc.service.clone(),
        }
    } else {
        Probe::Tcp
    };
    Plan::Active(Spec {
        probe,
        addresses: addresses.to_vec(),
        timeout: check.timeout(),
        timing: Timing {
            interval: check.interval(),
            rise: check.rise(),
            fall: check.fall(),
        },
    })
}

/// The same where Docker can't be asked: a TCP connect stands in for a HEALTHCHECK.
pub fn plan_without_docker(policy: Option<&HealthPolicy>, addresses: &[SocketAddr]) -> Plan {
    let policy = policy.map(|policy| match policy {
        HealthPolicy::Disabled => HealthPolicy::Disabled,
        HealthPolicy::Check(check) => HealthPolicy::Check(HealthCheck {
            docker: None,
            ..check.clone()
        }),
    });
    plan(policy.as_ref(), None, "", addresses)
}

#[cfg(test)]
mod tests;
