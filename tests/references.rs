//! The reference pages say what the program has: metrics, commands, configuration.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use support::dns;
use support::http;
use support::node::{Node, NodeOptions, PATIENCE, heddle};
use support::wait::eventually;
use support::whoami::Whoami;

const UPDATE: &str = "HEDDLE_UPDATE_DOCS";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Every metric that the code names.
fn named_in_sources() -> BTreeSet<String> {
    let mut files = Vec::new();
    for part in ["src", "agent/src", "registry/src", "proxy/src", "dns/src"] {
        sources(&root(part), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in text.split('"').skip(1).step_by(2) {
            let good = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            if word.starts_with("heddle_") && word.chars().all(good) {
                names.insert(word.to_owned());
            }
        }
    }
    names
}

/// A metric as a node exports it.
#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: Vec<String>,
}

fn exported(text: &str) -> BTreeMap<String, Metric> {
    let mut all: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            all.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            all.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((name, rest)) = line.split_once('{') {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| {
                    name.strip_suffix(end)
                        .filter(|base| all.contains_key(*base))
                })
                .unwrap_or(name);
            let Some(metric) = all.get_mut(base) else {
                continue;
            };
            let labels = rest.split("\",").filter_map(|pair| pair.split_once("=\""));
            for (label, _) in labels {
                if label != "le" && !metric.labels.iter().any(|l| l == label) {
                    metric.labels.push(label.to_owned());
                }
            }
        }
    }
    all
}

/// What a node exports that has served something in every way that a test can bring about at once.
fn of_a_busy_node() -> BTreeMap<String, Metric> {
    let backend = Whoami::start("a", &[]);
    let node = Node::start(&NodeOptions::default());
    node.apply(
        "{apiVersion: heddle/v1, kind: Service, metadata: {name: web}, spec: {selector: app=web, ports: [{name: http, \
         port: 8080, protocol: http}]}}",
    );
    let registration = format!(
        "{{id: a, labels: {{app: web}}, ports: [{}]}}",
        backend.http.port()
    );
    assert!(
        node.heddle_with(&["register", "-"], &registration)
            .status
            .success()
    );
    node.eligible("default/web", 1);
    let web = std::net::SocketAddr::new(node.vip("default/web"), 8080);
    eventually(PATIENCE, "it answers", || http::id(web));
    let resolver = node.logged_address("dns listens");
    dns::ask(resolver, "web.default.svc.heddle.internal").expect("dns answers");
    eventually(PATIENCE, "the query is counted", || {
        node.metric("heddle_dns_queries_total", &[]) > 0.0
    });
    exported(&node.ask("/metrics").expect("the node answers").body)
}

fn row(name: &str, metric: &Metric) -> String {
    let labels = match metric.labels.join(", ") {
        labels if labels.is_empty() => " ".to_owned(),
        labels => format!(" {labels} "),
    };
    format!("| `{name}` | {} |{labels}| {} |", metric.kind, metric.help)
}

#[test]
fn docs_metrics_md_is_what_a_node_exports() {
    let path = root("docs/metrics.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut rows: BTreeMap<String, String> = text
        .lines()
        .filter(|line| line.starts_with("| `heddle_"))
        .filter_map(|line| Some((line.split('`').nth(1)?.to_owned(), line.to_owned())))
        .collect();
    let before = rows.clone();
    for (name, metric) in of_a_busy_node() {
        rows.insert(name.clone(), row(&name, &metric));
    }
    let named = named_in_sources();
    rows.retain(|name, _| named.contains(name));
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !rows.contains_key(*name))
        .collect();
    assert!(
        missing.is_empty(),
        "add rows by hand for what needs more to be exported: {missing:?}"
    );
    if rows == before {
        return;
    }
    assert!(
        std::env::var_os(UPDATE).is_some(),
        "docs/metrics.md is not what a node exports: run this with {UPDATE}=1"
    );
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let is_row = |l: &String| l.starts_with("| `heddle_");
    let at = lines.iter().position(is_row).expect("a table");
    lines.retain(|l| !is_row(l));
    lines.splice(at..at, rows.into_values());
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
}

#[test]
fn every_command_is_in_docs_operations_md() {
    let help = heddle(&["--help"], "");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter(|l| !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next());
    let text = std::fs::read_to_string(root("docs/operations.md")).unwrap();
    let table: String = text
        .lines()
        .filter(|l| l.starts_with("| `heddle "))
        .collect();
    let mut count = 0;
    for command in commands {
        count += 1;
        assert!(
            table.contains(&format!("`heddle {command}")),
            "docs/operations.md lacks {command}"
        );
    }
    assert!(count >= 20, "{count} commands: {help}");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = vec![
        root("README.md"),
        root("ARCHITECTURE.md"),
        root("CONTRIBUTING.md"),
    ];
    let mut folders = vec![root("docs"), root("packaging"), root("benches")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    let anchors = |page: &Path| -> BTreeSet<String> {
        let text = std::fs::read_to_string(page).unwrap();
        let headings = text.lines().filter_map(|l| l.strip_prefix('#'));
        headings
            .map(|h| {
                let kept = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-';
                let h: String = h.trim_start_matches('#').trim().to_lowercase();
                h.chars().filter(kept).collect::<String>().replace(' ', "-")
            })
            .collect()
    };
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(to.exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() {
                assert!(
                    anchors(&to).contains(anchor),
                    "{}: {link}: no such heading",
                    page.display()
                );
            }
        }
    }
}
