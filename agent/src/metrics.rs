//! What the agent counts. Every label has a fixed set of values, but for names of services.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// Counters and gauges; cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    /// `heddle_health_checks_total{result}`: `pass`, `fail`; `error` where this host lacked something to check with.
    pub checks: IntCounterVec,
    /// `heddle_workloads{state}`: `selected`, `unselected`, `problem`.
    pub workloads: IntGaugeVec,
    /// `heddle_slice_writes_total{result}`: `committed`, `conflict`, `error`.
    pub slice_writes: IntCounterVec,
    /// `heddle_slices_collected_total`.
    pub slices_collected: IntCounter,
    /// `heddle_recovery_restarts_total{namespace,service,result}`: `restarted`, `failed`; `exhausted` where a container
    /// would have been restarted beyond its budget.
    pub recovery_restarts: IntCounterVec,
    /// `heddle_docker_connected`: 1 while Docker's events are followed.
    pub docker_connected: IntGauge,
    /// `heddle_docker_events_total{kind}`: `terminating`, `gone`, `changed`.
    pub docker_events: IntCounterVec,
}

impl Metrics {
    /// All of them at zero.
    pub fn new() -> Self {
        let counters = |name: &str, help: &str, label: &str, values: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), &[label])
                .expect("names and labels are constants that Prometheus accepts");
            for value in values {
                vec.with_label_values(&[*value]);
            }
            vec
        };
        let workloads = IntGaugeVec::new(
            Opts::new(
                "heddle_workloads",
                "Workloads of this node by what became of them",
            ),
            &["state"],
        )
        .expect("names and labels are constants that Prometheus accepts");
        let docker_connected = IntGauge::new(
            "heddle_docker_connected",
            "1 while Docker's events are followed",
        )
        .expect("the name is a constant that Prometheus accepts");
        let slices_collected = IntCounter::new(
            "heddle_slices_collected_total",
            "Slices of nodes that are gone which this node removed from the registry",
        )
        .expect("the name is a constant that Prometheus accepts");
        let recovery_restarts = IntCounterVec::new(
            Opts::new(
                "heddle_recovery_restarts_total",
                "Restarts of containers that stayed unhealthy by result",
            ),
            &["namespace", "service", "result"],
        )
        .expect("names and labels are constants that Prometheus accepts");
        Metrics {
            recovery_restarts,
            slices_collected,
            checks: counters(
                "heddle_health_checks_total",
                "Active health checks by result",
                "result",
                &["pass", "fail", "error"],
            ),
            workloads,
            slice_writes: counters(
                "heddle_slice_writes_total",
                "Slices of this node written to the registry by result",
                "result",
                &["committed", "conflict", "error"],
            ),
            docker_connected,
            docker_events: counters(
                "heddle_docker_events_total",
                "Docker events that matter by what they mean",
                "kind",
                &["terminating", "gone", "changed"],
            ),
        }
    }

    /// All of them, to be registered.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.checks.clone()),
            Box::new(self.workloads.clone()),
            Box::new(self.slice_writes.clone()),
            Box::new(self.slices_collected.clone()),
            Box::new(self.recovery_restarts.clone()),
            Box::new(self.docker_connected.clone()),
            Box::new(self.docker_events.clone()),
        ]
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}
