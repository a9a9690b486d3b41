use std::time::Duration;

use prometheus::{Encoder, TextEncoder};

use super::*;

fn text(metrics: &Metrics) -> String {
    let mut out = Vec::new();
    TextEncoder::new()
        .encode(&metrics.collect(), &mut out)
        .unwrap();
    String::from_utf8(out).unwrap()
}

fn two_workers() -> (Metrics, Vec<Arc<WorkerStats>>) {
    let workers = vec![
        Arc::new(WorkerStats::default()),
        Arc::new(WorkerStats::default()),
    ];
    (
        Metrics::new(workers.clone(), Arc::default(), Arc::default()),
        workers,
    )
}

fn port() -> Arc<PortStats> {
    Arc::new(PortStats::new("shop/web".parse().unwrap(), true))
}

#[test]
fn workers_are_summed_per_service() {
    let (metrics, workers) = two_workers();
    for (worker, requests) in workers.iter().zip([2, 3]) {
        let stats = port();
        worker.insert(7, Arc::clone(&stats));
        let http = stats.http.as_ref().unwrap();
        for _ in 0..requests {
            http.answered(Spoken::Http1, 200);
            http.took(Duration::from_millis(3));
        }
        http.answered(Spoken::Http2, 299);
        http.answered(Spoken::Http2, 999);
        stats.sent.add(10);
    }
    let text = text(&metrics);
    for line in [
        "heddle_requests_total{namespace=\"shop\",service=\"web\",protocol=\"http1\",code=\"200\"} 5",
        "heddle_requests_total{namespace=\"shop\",service=\"web\",protocol=\"http2\",code=\"other\"} 4",
        "heddle_request_duration_seconds_bucket{namespace=\"shop\",service=\"web\",le=\"0.0025\"} 0",
        "heddle_request_duration_seconds_bucket{namespace=\"shop\",service=\"web\",le=\"0.005\"} 5",
        "heddle_request_duration_seconds_count{namespace=\"shop\",service=\"web\"} 5",
        "heddle_bytes_total{namespace=\"shop\",service=\"web\",direction=\"sent\"} 20",
        "heddle_accept_errors_total 0",
        "heddle_redirect_repairs_total{part=\"route\"} 0",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
}

#[test]
fn the_series_of_a_deleted_service_are_gone() {
    let (metrics, workers) = two_workers();
    workers[1].insert(7, port());
    assert!(text(&metrics).contains("shop"));
    workers[1].remove(7);
    assert!(!text(&metrics).contains("shop"));
}

#[test]
fn an_open_connection_counts_until_it_is_dropped() {
    let (metrics, workers) = two_workers();
    let stats = port();
    workers[0].insert(7, Arc::clone(&stats));
    let connection = Active::new(&stats);
    assert!(
        text(&metrics).contains("heddle_connections_active{namespace=\"shop\",service=\"web\"} 1")
    );
    drop(connection);
    assert!(
        text(&metrics).contains("heddle_connections_active{namespace=\"shop\",service=\"web\"} 0")
    );
    assert!(
        text(&metrics).contains("heddle_connections_total{namespace=\"shop\",service=\"web\"} 1")
    );
}

#[test]
fn metrics_register_with_prometheus() {
    let registry = prometheus::Registry::new();
    registry.register(Box::new(two_workers().0)).unwrap();
    assert_eq!(
        registry.gather().len(),
        3,
        "those of no service have a value already"
    );
}
