//! # Layout
//! - here: what tests share, and how a policy becomes a plan
//! - `heard`, `machine`, `schedule`: simulations without I/O
//! - `probe`: real sockets

mod heard;
mod machine;
mod probe;
mod schedule;

use model::service::{DockerProbe, GrpcProbe, HttpProbe, TcpProbe};
use model::time::Timestamp;

use super::*;

const TIMING: Timing = Timing {
    interval: Duration::from_secs(5),
    rise: 2,
    fall: 3,
};

fn fact(value: Health) -> Fact<Health> {
    Fact::new(value, Timestamp(1), "before")
}

fn key(name: &str) -> CheckKey {
    CheckKey {
        service: "shop/web".parse().expect("a key"),
        id: EndpointId {
            workload: name.into(),
            port: "http".parse().expect("a name"),
            generation: "1".into(),
        },
        unowned: false,
    }
}

fn spec(probe: Probe, address: SocketAddr) -> Spec {
    Spec {
        probe,
        addresses: vec![address],
        // Longer than a busy machine takes to answer itself.
        timeout: Duration::from_secs(30),
        timing: TIMING,
    }
}

#[test]
fn the_policy_decides_what_is_checked() {
    let docker = fact(Health::Failing);
    let of = |json: &str, docker: Option<&Fact<Health>>| {
        let policy: HealthPolicy = serde_json::from_str(json).expect("a policy");
        plan(Some(&policy), docker, "no HEALTHCHECK", &[])
    };
    let probe = |plan: Plan| match plan {
        Plan::Active(spec) => Some(spec.probe),
        Plan::Fixed(..) | Plan::Docker(..) => None,
    };
    assert!(matches!(
        of("\"none\"", Some(&docker)),
        Plan::Fixed(Health::Passing, _)
    ));
    assert!(matches!(
        of("{}", Some(&docker)),
        Plan::Docker(Health::Failing, _)
    ));
    assert!(matches!(
        of(r#"{"docker":{}}"#, Some(&docker)),
        Plan::Docker(Health::Failing, _)
    ));
    assert_eq!(
        of(r#"{"docker":{}}"#, None),
        Plan::Fixed(Health::Failing, "no HEALTHCHECK".into())
    );
    assert_eq!(probe(of("{}", None)), Some(Probe::Tcp));
    assert_eq!(probe(of(r#"{"tcp":{}}"#, Some(&docker))), Some(Probe::Tcp));
    assert!(matches!(
        probe(of(r#"{"grpc":{}}"#, None)),
        Some(Probe::Grpc { .. })
    ));
    assert!(matches!(
        plan(None, Some(&docker), "", &[]),
        Plan::Docker(Health::Failing, _)
    ));
    // The kinds that exist are exactly those that are built.
    let _all = HealthCheck {
        http: Some(HttpProbe {
            path: "/".into(),
            expect: None,
        }),
        tcp: Some(TcpProbe {}),
        grpc: Some(GrpcProbe::default()),
        docker: Some(DockerProbe {}),
        ..HealthCheck::default()
    };
}
