//! What tests and benchmarks of the agent's health checks share.

use agent::check::{CheckKey, Probe};
use model::endpoint::EndpointId;

/// The check of a workload's port `http` in `shop/web`.
pub fn key(workload: &str) -> CheckKey {
    CheckKey {
        service: "shop/web".parse().expect("a valid key"),
        id: EndpointId {
            workload: workload.into(),
            port: "http".parse().expect("a valid name"),
            generation: "1".into(),
        },
        unowned: false,
    }
}

pub fn http() -> Probe {
    Probe::Http {
        path: "/healthz".to_owned(),
        expect: None,
    }
}

/// How many descriptors this process has open.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
