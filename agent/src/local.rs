//! A workload with what only its own node needs to know.

use std::net::IpAddr;
use std::sync::Arc;

use model::time::Timestamp;
use model::workload::{Source, Workload};

use crate::labels::Wishes;

/// What a workload is known by on its node. Containers and registrations have ids of their own kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// Registered by hand, not a container.
    pub registered: bool,
    /// [`Workload::id`].
    pub id: Arc<str>,
}

impl WorkloadKey {
    /// A container's, by the first 12 digits of its id.
    pub fn container(id: &str) -> Self {
        WorkloadKey {
            registered: false,
            id: short(id).into(),
        }
    }
}

/// The first 12 digits of a container's id, as Docker's own tables show it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A workload of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// As users see it.
    pub workload: Workload,
    /// What its `heddle.*` labels ask for.
    pub wishes: Wishes,
    /// Where other nodes reach all of its ports under their own number, if not through published ports.
    pub remote_hosts: Option<Vec<IpAddr>>,
    /// Frozen by `docker pause`: takes no work, whatever its checks said.
    pub paused: bool,
    /// When it started. The oldest container decides about a service made of labels.
    pub started: Timestamp,
}

impl Local {
    /// What it is known by.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey {
            registered: self.workload.source == Source::Registered,
            id: self.workload.id.clone(),
        }
    }
}

/// Workloads for the tests of this crate.
#[cfg(test)]
pub(crate) mod testing {
    use model::endpoint::{Fact, Lifecycle};
    use model::labels::Labels;
    use model::name::Name;

    use super::*;

    /// A container on the default bridge that started at `started` milliseconds and exposes `exposed`.
    pub(crate) fn container(
        id: &str,
        namespace: &str,
        started: i64,
        labels: &[(&str, &str)],
        exposed: &[u16],
    ) -> Local {
        let labels: Labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let namespace = Name::new(namespace).expect("a name");
        Local {
            wishes: Wishes::read(&labels, &namespace, exposed),
            workload: Workload {
                id: id.into(),
                name: id.into(),
                namespace,
                source: Source::Docker,
                labels,
                generation: format!("{}/172.17.0.2", Timestamp(started)).into(),
                addresses: vec![IpAddr::from([172, 17, 0, 2])],
                network: "bridge (the only one this host can dial)".to_owned(),
                host_network: false,
                exposed: exposed.to_vec(),
                published: Vec::new(),
                lifecycle: Fact::new(Lifecycle::Running, Timestamp(started), ""),
                docker_health: None,
                check: None,
                problem: None,
            },
            remote_hosts: None,
            paused: false,
            started: Timestamp(started),
        }
    }
}
