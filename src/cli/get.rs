//! `heddle get`.

use std::collections::BTreeMap;
use std::io::Write;

use model::Timestamp;
use model::endpoint::State;
use model::workload::WorkloadReport;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::client::{Client, escape};
use super::table::{Table, age};
use super::{Failure, Output, Scope};
use crate::admin::view::{EndpointItem, List, NodeItem, ServiceItem};

/// One line of a watch.
#[derive(Deserialize)]
struct Event<T> {
    #[serde(rename = "type")]
    kind: String,
    object: T,
}

/// How a kind of resource is shown.
trait Shown: Serialize + DeserializeOwned {
    const PATH: &'static str;
    const NAMESPACED: bool = true;
    fn header(wide: bool) -> Vec<&'static str>;
    fn cells(&self, wide: bool) -> Vec<String>;
    /// Whether `name` means this one.
    fn named(&self, name: &str) -> bool;
}

pub async fn get(
    client: &Client,
    kind: &str,
    name: Option<&str>,
    scope: &Scope,
    output: Output,
    watch: bool,
) -> Result<(), Failure> {
    match kind {
        "services" | "service" | "svc" => {
            show::<ServiceItem>(client, name, scope, output, watch).await
        }
        "endpoints" | "endpoint" | "ep" => {
            show::<EndpointItem>(client, name, scope, output, watch).await
        }
        "workloads" | "workload" | "wl" => {
            show::<WorkloadReport>(client, name, scope, output, watch).await
        }
        "nodes" | "node" => show::<NodeItem>(client, name, scope, output, watch).await,
        other => {
            let kinds = ["services", "endpoints", "workloads", "nodes"];
            let meant = model::strict::nearest(other, kinds)
                .map_or(String::new(), |near| format!(", did you mean {near}?"));
            Err(Failure::Input(format!(
                "get {other}: unknown kind{meant} (known: {})",
                kinds.join(", ")
            )))
        }
    }
}

async fn show<T: Shown>(
    client: &Client,
    name: Option<&str>,
    scope: &Scope,
    output: Output,
    watch: bool,
) -> Result<(), Failure> {
    let mut query: Vec<String> = Vec::new();
    let namespace = match &scope.namespace {
        Some(namespace) => Some(namespace.as_str()),
        None if scope.all_namespaces || !T::NAMESPACED => None,
        None => Some("default"),
    };
    if let Some(namespace) = namespace {
        query.push(format!("namespace={}", escape(namespace)));
    }
    if watch {
        query.push("watch=true".to_owned());
    }
    let path = match query.is_empty() {
        true => T::PATH.to_owned(),
        false => format!("{}?{}", T::PATH, query.join("&")),
    };
    let wanted = |item: &T| name.is_none_or(|name| item.named(name));
    if watch {
        return follow(client, &path, wanted, output).await;
    }
    let mut list: List<T> = client.get(&path).await?;
    list.items.retain(wanted);
    let kind = T::PATH.trim_start_matches("/v1/").trim_end_matches('s');
    match (name, namespace) {
        (Some(name), _) if list.items.is_empty() => {
            return Err(Failure::Failed(format!(
                "{kind} {name}: does not exist{} (heddle get {kind}s -A lists them)",
                namespace.map_or(String::new(), |ns| format!(" in namespace {ns}"))
            )));
        }
        // To stderr, so that a script reads an empty table as one.
        (None, Some(namespace)) if list.items.is_empty() => {
            eprintln!("no {kind}s in namespace {namespace} (-A lists all)");
        }
        _ => {}
    }
    if name.is_some()
        && let [one] = list.items.as_slice()
    {
        return print(one, std::slice::from_ref(one), output);
    }
    print(&list.items, &list.items, output)
}

async fn follow<T: Shown>(
    client: &Client,
    path: &str,
    wanted: impl Fn(&T) -> bool,
    output: Output,
) -> Result<(), Failure> {
    let mut first = true;
    client
        .lines(path, |line| {
            if matches!(output, Output::Json) {
                return out(&format!("{}\n", String::from_utf8_lossy(line)));
            }
            let event: Event<T> = serde_json::from_slice(line)
                .map_err(|e| Failure::Failed(format!("an event that can't be read: {e}")))?;
            if !wanted(&event.object) {
                return Ok(());
            }
            let wide = output == Output::Wide;
            let mut table = Table::new(&[&["EVENT"], &*T::header(wide)].concat());
            let mut cells = vec![event.kind.to_lowercase()];
            cells.extend(event.object.cells(wide));
            table.row(cells);
            let text = table.to_string();
            let skip = usize::from(!first);
            first = false;
            out(&text
                .lines()
                .skip(skip)
                .map(|l| format!("{l}\n"))
                .collect::<String>())
        })
        .await
}

/// `whole` is what is printed as JSON or YAML: a list, or the one that was asked for by name.
fn print<T: Shown>(whole: &impl Serialize, items: &[T], output: Output) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("can't be printed: {e}"));
    match output {
        Output::Json => out(&format!(
            "{}\n",
            serde_json::to_string_pretty(whole).map_err(|e| failed(&e))?
        )),
        Output::Yaml => out(&model::strict::to_yaml(whole).map_err(|e| failed(&e))?),
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            let mut table = Table::new(&T::header(wide));
            for item in items {
                table.row(item.cells(wide));
            }
            out(&table.to_string())
        }
    }
}

/// Writes to standard output; a closed pipe (`| head`) is no error.
pub fn out(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Failure::Failed(format!("standard output: {e}"))),
    }
}

fn since(at: Option<Timestamp>) -> String {
    at.map_or(String::new(), |at| age(at.age(Timestamp::now())))
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    all.join(",")
}

fn counts(endpoints: &BTreeMap<State, usize>) -> (usize, usize) {
    let ready = endpoints.get(&State::Ready).copied().unwrap_or(0);
    (ready, endpoints.values().sum())
}

impl Shown for ServiceItem {
    const PATH: &'static str = "/v1/services";

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAMESPACE", "NAME", "VIP", "PORTS", "READY", "AGE"];
        if wide {
            header.extend(["SELECTOR", "MANAGED-BY", "REASON"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let ports = joined(self.spec.ports.iter().map(|p| match p.node_port {
            Some(node_port) => format!("{}/{}:{node_port}", p.port, p.protocol.as_str()),
            None => format!("{}/{}", p.port, p.protocol.as_str()),
        }));
        let ready = joined(self.status.ports.iter().map(|p| {
            let (ready, all) = counts(&p.endpoints);
            format!("{ready}/{all}")
        }));
        let vips = if self.spec.headless {
            "headless".to_owned()
        } else {
            joined(&self.status.vips)
        };
        let mut cells = vec![
            self.metadata.namespace.to_string(),
            self.metadata.name.to_string(),
            vips,
            ports,
            ready,
            since(self.metadata.creation_timestamp),
        ];
        if wide {
            let reason = self
                .status
                .ports
                .iter()
                .find_map(|p| {
                    p.listener_error
                        .clone()
                        .or_else(|| p.tls_errors.first().cloned())
                        .or_else(|| Some(p.unavailable.clone()).filter(|u| !u.is_empty()))
                })
                .unwrap_or_default();
            cells.extend([
                self.spec
                    .selector
                    .as_ref()
                    .map_or(String::new(), ToString::to_string),
                self.managed_by.to_string(),
                reason,
            ]);
        }
        cells
    }

    fn named(&self, name: &str) -> bool {
        self.metadata.name.as_str() == name || self.metadata.key().to_string() == name
    }
}

impl Shown for EndpointItem {
    const PATH: &'static str = "/v1/endpoints";

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec![
            "NAMESPACE",
            "NAME",
            "NODE",
            "ADDRESS",
            "STATE",
            "AGE",
            "REASON",
        ];
        if wide {
            header.extend(["WEIGHT", "IN-FLIGHT", "LOCAL", "REMOTE", "ID"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.namespace.to_string(),
            self.name.clone(),
            self.node
                .as_ref()
                .map_or(String::new(), ToString::to_string),
            joined(&self.addresses),
            self.state.to_string(),
            since(Some(self.health.since.max(self.lifecycle.since))),
            self.reason.clone(),
        ];
        if wide {
            cells.extend([
                self.weight.to_string(),
                self.in_flight.to_string(),
                joined(&self.local),
                joined(&self.remote),
                self.id.clone(),
            ]);
        }
        cells
    }

    fn named(&self, name: &str) -> bool {
        self.name.starts_with(name) || self.workload_name == name || self.workload.starts_with(name)
    }
}

impl Shown for WorkloadReport {
    const PATH: &'static str = "/v1/workloads";

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAMESPACE", "NAME", "ID", "ADDRESS", "SERVICES", "REASON"];
        if wide {
            header.extend(["SOURCE", "NETWORK", "LABELS"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let w = &self.workload;
        let services = joined(
            self.verdicts
                .iter()
                .filter(|v| v.selected)
                .filter_map(|v| v.service.as_ref().map(|s| s.name.clone())),
        );
        let why = w.problem.clone().unwrap_or_else(|| {
            let refused: Vec<&str> = self
                .verdicts
                .iter()
                .filter(|v| !v.selected)
                .map(|v| v.reason.as_str())
                .collect();
            refused.join("; ")
        });
        let mut cells = vec![
            w.namespace.to_string(),
            w.name.to_string(),
            w.id.to_string(),
            joined(&w.addresses),
            services,
            why,
        ];
        if wide {
            cells.extend([
                format!("{:?}", w.source).to_lowercase(),
                w.network.clone(),
                joined(w.labels.iter().map(|(k, v)| format!("{k}={v}"))),
            ]);
        }
        cells
    }

    fn named(&self, name: &str) -> bool {
        *self.workload.name == *name || self.workload.id.starts_with(name)
    }
}

impl Shown for NodeItem {
    const PATH: &'static str = "/v1/nodes";
    const NAMESPACED: bool = false;

    fn header(_: bool) -> Vec<&'static str> {
        vec![
            "NAME", "STATUS", "ADDRESS", "ZONE", "VERSION", "SERVICES", "ALIVE",
        ]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.status.clone(),
            joined(&self.addresses),
            self.zone.clone().unwrap_or_default(),
            self.version.clone(),
            self.services.to_string(),
            since(self.alive_since),
        ]
    }

    fn named(&self, name: &str) -> bool {
        self.name.as_str() == name
    }
}
