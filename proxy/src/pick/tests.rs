use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::endpoint::{Endpoint, Fact, Health, Lifecycle, State};
use model::rotation::Rotation;
use model::service::{Balance, Protocol, UpstreamProtocol};
use model::snapshot::{EndpointView, PortLoad, PortView};
use model::{Name, Timestamp};
use proptest::prelude::*;

use super::*;

/// An endpoint as (weight, in flight, eligible).
type Some3 = (u16, u32, bool);

fn port(balance: Balance, endpoints: &[Some3]) -> PortView {
    let name = Name::new("http").unwrap();
    let views: Vec<EndpointView> = endpoints
        .iter()
        .enumerate()
        .map(|(at, (weight, in_flight, _))| {
            let endpoint = Arc::new(Endpoint {
                hostname: None,
                workload: format!("w{at}").into(),
                name: format!("w{at}").into(),
                port: name.clone(),
                generation: "g".into(),
                local: vec!["127.0.0.1:80".parse().unwrap()],
                remote: vec![],
                weight: *weight,
                zone: None,
                health: Fact::new(Health::Passing, Timestamp(0), ""),
                lifecycle: Fact::new(Lifecycle::Running, Timestamp(0), ""),
            });
            let view = EndpointView {
                id: endpoint.id(),
                health: endpoint.health.clone(),
                endpoint,
                node: None,
                unowned: false,
                local: true,
                state: State::Ready,
                reason: "".into(),
                load: Arc::default(),
            };
            view.load.in_flight.store(*in_flight, Ordering::Relaxed);
            view
        })
        .collect();
    let eligible: Vec<u32> = (0u32..)
        .zip(endpoints)
        .filter(|(_, (.., eligible))| *eligible)
        .map(|(at, _)| at)
        .collect();
    let weights: Vec<u16> = eligible
        .iter()
        .map(|at| endpoints[*at as usize].0)
        .collect();
    PortView {
        key: "shop/web".parse().unwrap(),
        name,
        port: 80,
        node_port: None,
        protocol: Protocol::Http,
        upstream: UpstreamProtocol::Http1,
        tls: None,
        upstream_tls: None,
        balance,
        connect_timeout: Duration::from_secs(1),
        request_timeout: None,
        per_try_timeout: None,
        idle_timeout: Duration::from_secs(300),
        retries: 1,
        retry_budget_percent: 20,
        endpoints: views,
        eligible,
        rotation: Rotation::new(&weights),
        unavailable: String::new(),
        load: Arc::new(PortLoad::new(0)),
    }
}

fn spread(port: &PortView, picks: usize) -> BTreeMap<usize, usize> {
    let mut turns = BTreeMap::new();
    for _ in 0..picks {
        *turns
            .entry(pick(port, &Tried::default()).unwrap())
            .or_default() += 1;
    }
    turns
}

#[test]
fn least_connections_spreads_an_idle_service_by_weight() {
    let port = port(Balance::LeastConnections, &[(3, 0, true), (1, 0, true)]);
    assert_eq!(spread(&port, 400), BTreeMap::from([(0, 300), (1, 100)]));
}

#[test]
fn least_connections_sees_load_per_weight() {
    let port = port(
        Balance::LeastConnections,
        &[(4, 4, true), (1, 2, true), (1, 1, true)],
    );
    let first = pick(&port, &Tried::default()).unwrap();
    assert_ne!(first, 1, "2 in flight on weight 1 is the most");
}

#[test]
fn among_many_least_connections_avoids_the_loaded() {
    let many: Vec<Some3> = (0..1000)
        .map(|at| (1, u32::from(at % 2 == 0) * 50, true))
        .collect();
    let port = port(Balance::LeastConnections, &many);
    let loaded = (0..2000)
        .filter(|_| pick(&port, &Tried::default()).unwrap().is_multiple_of(2))
        .count();
    assert!(
        loaded < 40,
        "{loaded} of 2000 went to the loaded half, where chance alone gives about 8"
    );
}

fn endpoints() -> impl Strategy<Value = Vec<Some3>> {
    prop::collection::vec((0u16..10, 0u32..5, any::<bool>()), 0..90)
}

fn balances() -> impl Strategy<Value = Balance> {
    prop_oneof![Just(Balance::RoundRobin), Just(Balance::LeastConnections)]
}

proptest! {
    #[test]
    fn every_eligible_endpoint_is_picked_once_then_nobody(
        endpoints in endpoints(), balance in balances(), start in any::<u32>()
    ) {
        let port = port(balance, &endpoints);
        port.load.position.store(u64::from(start), Ordering::Relaxed);
        let eligible: Vec<&Some3> = endpoints.iter().filter(|(.., eligible)| *eligible).collect();
        let all_zero = eligible.iter().all(|(weight, ..)| *weight == 0);
        let expected = eligible.iter().filter(|(weight, ..)| all_zero || *weight > 0).count();
        let mut tried = Tried::default();
        for _ in 0..expected {
            let index = pick(&port, &tried).unwrap();
            let (weight, _, eligible) = endpoints[index];
            prop_assert!(eligible && (all_zero || weight > 0));
            prop_assert!(!tried.contains(&port.endpoints[index]));
            tried.add(&port.endpoints[index]);
        }
        prop_assert_eq!(pick(&port, &tried), None);
    }

    #[test]
    fn over_a_period_round_robin_gives_everyone_its_weight(weights in prop::collection::vec(1u16..12, 1..12)) {
        let endpoints: Vec<Some3> = weights.iter().map(|weight| (*weight, 0, true)).collect();
        let port = port(Balance::RoundRobin, &endpoints);
        let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
        let turns = spread(&port, port.rotation.period() * total);
        for (index, weight) in weights.iter().enumerate() {
            prop_assert_eq!(turns[&index], usize::from(*weight) * port.rotation.period());
        }
    }

    #[test]
    fn least_connections_picks_a_minimum(
        endpoints in prop::collection::vec((1u16..10, 0u32..20, any::<bool>()), 1..64), start in any::<u32>()
    ) {
        let port = port(Balance::LeastConnections, &endpoints);
        port.load.position.store(u64::from(start), Ordering::Relaxed);
        let ratio = |(weight, load, _): &Some3| f64::from(*load) / f64::from(*weight);
        let least = endpoints.iter().filter(|e| e.2).map(ratio).fold(f64::INFINITY, f64::min);
        match pick(&port, &Tried::default()) {
            Some(index) => prop_assert!((ratio(&endpoints[index]) - least).abs() < 1e-9),
            None => prop_assert!(endpoints.iter().all(|e| !e.2)),
        }
    }
}

#[test]
fn an_endpoint_that_leaves_packets_unanswered_is_passed_over_while_there_is_another() {
    for balance in [Balance::RoundRobin, Balance::LeastConnections] {
        let port = port(balance, &[(1, 0, true), (1, 0, true), (1, 0, true)]);
        hold_off::begin(&port.endpoints[1]);
        assert_eq!(spread(&port, 300).get(&1), None);
        hold_off::begin(&port.endpoints[0]);
        assert_eq!(spread(&port, 300), BTreeMap::from([(2, 300)]));
        hold_off::begin(&port.endpoints[2]);
        assert!(
            pick(&port, &Tried::default()).is_some(),
            "rather a bad one than nobody"
        );
        hold_off::end(&port.endpoints[1]);
        assert_eq!(spread(&port, 300), BTreeMap::from([(1, 300)]));
    }
}
