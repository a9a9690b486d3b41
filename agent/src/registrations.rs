//! Processes and VMs that were registered by hand.

use std::net::{IpAddr, Ipv4Addr};

use model::catalog::RegistrationRecord;
use model::endpoint::{Fact, Lifecycle};
use model::time::Timestamp;
use model::workload::{Source, Workload};

use crate::labels::Wishes;
use crate::local::Local;

/// The workload that a registration stands for on its node, whose own addresses are `node`.
///
/// Its generation is the revision that created the record: registering again under the same id changes it in place, while
/// deregistering and registering makes another workload that inherits nothing.
pub fn workload(record: &RegistrationRecord, node: &[IpAddr], now: Timestamp) -> Local {
    let registration = &record.registration;
    let address = registration
        .address
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let remote_hosts = match registration.remote_address {
        Some(remote) => vec![remote],
        None if !address.is_loopback() => vec![address],
        None => node.to_vec(),
    };
    let mut exposed = registration.ports.clone();
    exposed.sort_unstable();
    exposed.dedup();
    let id = registration.id.as_str();
    let problem = (address.is_unspecified() || address.is_multicast())
        .then(|| format!("address {address} can't be dialled"));
    let wishes = Wishes::read(&registration.labels, &registration.namespace, &exposed);
    Local {
        workload: Workload {
            id: id.into(),
            name: id.into(),
            namespace: registration.namespace.clone(),
            source: Source::Registered,
            labels: registration.labels.clone(),
            generation: format!("{}/{address}", record.create_revision).into(),
            addresses: vec![address],
            network: String::new(),
            host_network: false,
            exposed,
            published: Vec::new(),
            lifecycle: Fact::new(Lifecycle::Running, now, ""),
            docker_health: None,
            check: registration.check.clone(),
            problem,
        },
        wishes,
        remote_hosts: Some(remote_hosts),
        paused: false,
        // Nobody noted when: a container, which knows, is always the older one.
        started: Timestamp(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::workload::Registration;

    fn record(json: &str) -> RegistrationRecord {
        let registration: Registration = serde_json::from_str(json).expect("a registration");
        RegistrationRecord {
            registration,
            create_revision: 7,
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts
            .iter()
            .map(|t| t.parse().expect("an address"))
            .collect()
    }

    #[test]
    fn other_nodes_reach_it_at_the_remote_address_else_its_own_else_the_nodes() {
        let node = ips(&["192.0.2.2", "2001:db8::2"]);
        for (json, local, remote) in [
            (
                r#"{"id":"pg","ports":[5432]}"#,
                "127.0.0.1",
                vec!["192.0.2.2", "2001:db8::2"],
            ),
            (
                r#"{"id":"pg","ports":[5432],"address":"10.0.0.9"}"#,
                "10.0.0.9",
                vec!["10.0.0.9"],
            ),
            (
                r#"{"id":"pg","ports":[5432],"address":"10.0.0.9","remoteAddress":"203.0.113.9"}"#,
                "10.0.0.9",
                vec!["203.0.113.9"],
            ),
        ] {
            let it = workload(&record(json), &node, Timestamp(5));
            assert_eq!(it.workload.addresses, ips(&[local]), "{json}");
            assert_eq!(it.remote_hosts, Some(ips(&remote)), "{json}");
        }
    }

    #[test]
    fn the_generation_is_the_create_revision_and_the_address() {
        let it = workload(&record(r#"{"id":"pg","ports":[5432]}"#), &[], Timestamp(5));
        assert_eq!(&*it.workload.generation, "7/127.0.0.1");
    }

    #[test]
    fn an_address_that_nobody_can_dial_is_a_problem() {
        let it = workload(
            &record(r#"{"id":"pg","ports":[1],"address":"0.0.0.0"}"#),
            &[],
            Timestamp(5),
        );
        assert!(it.workload.problem.is_some());
    }
}
