//! What Prometheus finds: the real one, with the configuration, rules and dashboard of packaging/.

mod support;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use support::http;
use support::node::PATIENCE;
use support::wait::eventually;
use support::whoami::{Whoami, node_with};
use support::{missing_program, requirement};

const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/part-of: shop}}
spec:
  selector: app=web
  ports: [{name: metrics, port: 8080, protocol: http}]
  health: {http: {path: /healthz}, interval: 200ms, fall: 2, rise: 2}
";

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(packaging(name)).unwrap()
}

fn ready() -> bool {
    requirement("Prometheus", missing_program(&["prometheus", "promtool"]))
}

fn discovered(admin: SocketAddr, query: &str) -> Vec<Value> {
    let answer = http::get(admin, &format!("/v1/sd/prometheus{query}")).expect("it answers");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_str(&answer.body).expect("it is JSON")
}

#[test]
fn every_endpoint_that_takes_work_is_a_target_and_every_node() {
    let (a, b) = (Whoami::start("a", &[]), Whoami::start("b", &[]));
    let node = node_with(SERVICE, &[("web-a", &a), ("web-b", &b)]);
    let admin = node.logged_address("admin listens");
    let all = eventually(PATIENCE, "the node is a target too", || {
        let all = discovered(admin, "");
        if all.len() == 3 {
            Ok(all)
        } else {
            Err(format!("{all:?}"))
        }
    });
    let labels = &all[0]["labels"];
    assert_eq!(all[0]["targets"], serde_json::json!([a.http.to_string()]));
    for (name, value) in [
        ("kind", "endpoint"),
        ("namespace", "shop"),
        ("service", "web"),
        ("port", "metrics"),
        ("protocol", "http"),
        ("workload", "web-a"),
        ("node", "n1"),
        ("service_label_app_kubernetes_io_part_of", "shop"),
    ] {
        assert_eq!(labels[format!("__meta_heddle_{name}")], value, "{labels}");
    }
    assert_eq!(all[2]["targets"], serde_json::json!([admin.to_string()]));
    assert_eq!(all[2]["labels"]["__meta_heddle_kind"], "node");
    let count = |query: &str| discovered(admin, query).len();
    for (query, wanted) in [
        ("?service=web", 2),
        ("?namespace=shop&port=metrics", 2),
        ("?port=8080", 2),
        ("?port=80", 0),
        ("?service=api", 0),
        ("?kind=node", 1),
        ("?kind=endpoint", 2),
    ] {
        assert_eq!(count(query), wanted, "{query}");
    }
    http::post(b.http, "/health?status=503", "").expect("it is told to fail");
    eventually(PATIENCE, "what fails is no target", || {
        count("?service=web") == 1
    });
}

/// A Prometheus; it ends with this.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// With the configuration of packaging/, asking the node at `admin`, and often.
    fn start(admin: SocketAddr) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let config = read("prometheus/prometheus.yml")
            .replace("127.0.0.1:7070", &admin.to_string())
            .replace("15s", "1s");
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        std::fs::write(
            folder.path().join("alerts.yml"),
            read("prometheus/alerts.yml"),
        )
        .unwrap();
        // It takes no port 0 that it would tell of.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let at = |name: &str| folder.path().join(name).display().to_string();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", at("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", at("data")))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus starts");
        Prometheus {
            child,
            address,
            _folder: folder,
        }
    }

    /// The answer to a question of its API, when it has one.
    fn ask(&self, path: &str) -> Result<Value, String> {
        let answer = http::get(self.address, path).map_err(|e| e.to_string())?;
        let json: Value =
            serde_json::from_str(&answer.body).map_err(|e| format!("{e}: {}", answer.body))?;
        Ok(json["data"].clone())
    }

    /// The values of a query, each with its labels.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        let data = self.ask(&format!("/api/v1/query?query={encoded}"))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_real_prometheus_finds_scrapes_and_alerts_with_the_files_that_come_along() {
    if !ready() {
        return;
    }
    let a = Whoami::start("a", &[]);
    let node = node_with(SERVICE, &[("web-a", &a)]);
    let prometheus = Prometheus::start(node.logged_address("admin listens"));
    eventually(
        PATIENCE,
        "both jobs have a target, and the node's is up",
        || {
            let data = prometheus.ask("/api/v1/targets")?;
            let targets = data["activeTargets"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let found: BTreeSet<(String, String)> = targets
                .iter()
                .map(|t| {
                    let label =
                        |name: &str| t["labels"][name].as_str().unwrap_or_default().to_owned();
                    let health = t["health"].as_str().unwrap_or_default().to_owned();
                    match label("job").as_str() {
                        "heddle" => (format!("heddle {}", label("instance")), health),
                        job => (
                            format!(
                                "{job} {}/{} {}",
                                label("namespace"),
                                label("service"),
                                label("workload")
                            ),
                            String::new(),
                        ),
                    }
                })
                .collect();
            let wanted = BTreeSet::from([
                ("heddle n1".to_owned(), "up".to_owned()),
                ("heddle-endpoints shop/web web-a".to_owned(), String::new()),
            ]);
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        },
    );
    eventually(PATIENCE, "the node's metrics are stored", || {
        let found = prometheus.query("heddle_endpoints{state=\"ready\",instance=\"n1\"}")?;
        match found.first() {
            Some(one) if one["value"][1] == "1" => Ok(()),
            _ => Err(format!("{found:?}")),
        }
    });
    drop(a);
    eventually(
        PATIENCE,
        "the alert about a service without endpoints begins",
        || {
            let found = prometheus.query("ALERTS{alertname=\"HeddleServiceWithoutEndpoints\"}")?;
            match found.first() {
                Some(one) if one["metric"]["service"] == "web" => Ok(()),
                _ => Err(format!("{found:?}")),
            }
        },
    );
}

#[test]
fn the_alert_rules_do_what_they_say() {
    if !ready() {
        return;
    }
    let promtool = |args: &[&str]| {
        let output = Command::new("promtool")
            .args(args)
            .current_dir(packaging("prometheus"))
            .output()
            .expect("promtool runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}{errors}");
    };
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    // Each rule has a test of its own.
    let (rules, tests) = (
        read("prometheus/alerts.yml"),
        read("prometheus/alerts_test.yml"),
    );
    let names = rules
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- alert: "));
    for name in names {
        assert!(
            tests.contains(&format!("alertname: {name}")),
            "{name} is not tested"
        );
    }
}

/// The names of heddle's metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !part(c))
        .filter(|word| word.starts_with("heddle_") && word.len() > 8)
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

#[test]
fn rules_and_dashboard_name_metrics_that_the_reference_has() {
    let reference = metrics_in(
        &std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md"))
            .unwrap(),
    );
    let dashboard: Value = serde_json::from_str(&read("grafana/heddle.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    let used = metrics_in(&(read("prometheus/alerts.yml") + &dashboard.to_string()));
    assert!(used.len() > 12, "{used:?}");
    let unknown: Vec<_> = used.difference(&reference).collect();
    assert!(
        unknown.is_empty(),
        "docs/metrics.md does not have {unknown:?}"
    );
}

#[test]
fn the_grafana_dashboards_queries_are_ones_that_prometheus_takes() {
    if !ready() {
        return;
    }
    let node = node_with(SERVICE, &[]);
    let prometheus = Prometheus::start(node.logged_address("admin listens"));
    eventually(PATIENCE, "prometheus answers", || {
        prometheus.query("1").map(|_| ())
    });
    let dashboard: Value = serde_json::from_str(&read("grafana/heddle.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m");
            let query = ["$namespace", "$service", "$node"]
                .iter()
                .fold(query, |q, variable| q.replace(variable, ".*"));
            let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
            let path = format!("/api/v1/query?query={encoded}");
            let answer = http::get(prometheus.address, &path).expect("it answers");
            assert_eq!(
                answer.status, 200,
                "{}: {query}: {}",
                panel["title"], answer.body
            );
        }
    }
}
