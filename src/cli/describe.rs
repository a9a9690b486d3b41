//! `heddle describe`: what something is in words, and why it takes traffic or not.
//!
//! # Layout
//! - this file: finding what is meant, and asking for all that is told of it
//! - `text`: pages of labelled lines that keep within 100 columns
//! - `service`, `endpoint`, `workload`, `node`: the pages, pure

mod endpoint;
mod node;
mod service;
#[cfg(test)]
mod tests;
pub mod text;
mod workload;

use std::sync::Arc;

use model::Timestamp;
use model::event::{EventKind, Recorded};
use model::workload::WorkloadReport;

use super::Failure;
use super::client::{Client, escape};
use super::events::{path as events_path, repeats};
use super::get::out;
use super::table::age;
use crate::admin::events::Events;
use crate::admin::ready::Readiness;
use crate::admin::view::{EndpointItem, List, NodeItem, ServiceItem};
use text::Page;

/// Events shown at most, the newest.
const EVENTS: usize = 15;
/// Endpoints or workloads shown at most.
const SHOWN: usize = 50;

/// What a page is made with, beside its subject.
struct Around {
    now: Timestamp,
    events: Vec<Arc<Recorded>>,
}

pub async fn describe(
    client: &Client,
    kind: &str,
    name: &str,
    namespace: Option<&str>,
) -> Result<(), Failure> {
    let page = match kind {
        "service" | "services" | "svc" => of_service(client, name, namespace).await?,
        "endpoint" | "endpoints" | "ep" => of_endpoint(client, name, namespace).await?,
        "workload" | "workloads" | "wl" => of_workload(client, name, namespace).await?,
        "node" | "nodes" => of_node(client, name).await?,
        other => {
            let kinds = ["service", "endpoint", "workload", "node"];
            let meant = model::strict::nearest(other, kinds)
                .map_or(String::new(), |near| format!(", did you mean {near}?"));
            return Err(Failure::Input(format!(
                "describe {other}: unknown kind{meant} (known: {})",
                kinds.join(", ")
            )));
        }
    };
    out(&page)
}

async fn of_service(
    client: &Client,
    name: &str,
    namespace: Option<&str>,
) -> Result<String, Failure> {
    let (namespace, name) = match (namespace, name.split_once('/')) {
        (None, Some((namespace, name))) => (namespace, name),
        (namespace, _) => (namespace.unwrap_or("default"), name),
    };
    let all: List<ServiceItem> = client.get("/v1/services").await?;
    let here: Vec<&ServiceItem> = all
        .items
        .iter()
        .filter(|s| s.metadata.namespace.as_str() == namespace)
        .collect();
    let wanted = Wanted {
        kind: "service",
        name,
        place: format!(" in namespace {namespace}"),
    };
    let service = wanted.one(
        &here,
        |s| s.metadata.name.to_string(),
        |s| s.metadata.name.as_str() == name,
        |s| s.metadata.name.as_str().starts_with(name),
    );
    let service = service.map_err(|failure| {
        let elsewhere: Vec<String> = all
            .items
            .iter()
            .filter(|s| s.metadata.name.as_str() == name)
            .map(|s| s.metadata.key().to_string())
            .collect();
        match elsewhere.as_slice() {
            [] => failure,
            some => Failure::Failed(format!(
                "service {name}: does not exist in namespace {namespace}, but as {} (name it with -n NAMESPACE)",
                some.join(", ")
            )),
        }
    })?;
    let key = service.metadata.key();
    let scope = format!("namespace={}", escape(namespace));
    let endpoints: List<EndpointItem> = client.get(&format!("/v1/endpoints?{scope}")).await?;
    let workloads: List<WorkloadReport> = client.get(&format!("/v1/workloads?{scope}")).await?;
    let prefix = format!("{}/", key.name);
    let around = around(client, Some(namespace), |e| match e.event.kind {
        EventKind::Service => e.event.name == key.name.as_str(),
        EventKind::Endpoint => e.event.name.starts_with(&prefix),
        _ => false,
    })
    .await?;
    let mut mine = endpoints.items;
    mine.retain(|e| e.service == key.name);
    Ok(service::page(service, &mine, &workloads.items, &around))
}

async fn of_endpoint(
    client: &Client,
    name: &str,
    namespace: Option<&str>,
) -> Result<String, Failure> {
    let scope = namespace.map_or(String::new(), |ns| format!("?namespace={}", escape(ns)));
    let all: List<EndpointItem> = client.get(&format!("/v1/endpoints{scope}")).await?;
    let items: Vec<&EndpointItem> = all.items.iter().collect();
    let wanted = Wanted {
        kind: "endpoint",
        name,
        place: namespace.map_or(String::new(), |ns| format!(" in namespace {ns}")),
    };
    let called = |e: &EndpointItem| {
        let on = e
            .node
            .as_ref()
            .map_or(String::new(), |n| format!(" on {n}"));
        format!("{} ({}{on})", e.name, e.workload)
    };
    let endpoint = wanted.one(
        &items,
        |e| e.name.clone(),
        |e| e.name == name || e.workload_name == name || e.workload == name || e.id == name,
        |e| e.name.starts_with(name) || e.id.starts_with(name),
    );
    let endpoint = endpoint.map_err(|failure| {
        match wanted.several(&items, called, |e| {
            e.name.starts_with(name) || e.workload_name == name || e.id.starts_with(name)
        }) {
            Some(several) => several,
            None => failure,
        }
    })?;
    let around = around(client, Some(endpoint.namespace.as_str()), |e| {
        e.event.kind == EventKind::Endpoint && e.event.name == endpoint.name
    })
    .await?;
    Ok(endpoint::page(endpoint, &around))
}

async fn of_workload(
    client: &Client,
    name: &str,
    namespace: Option<&str>,
) -> Result<String, Failure> {
    let scope = namespace.map_or(String::new(), |ns| format!("?namespace={}", escape(ns)));
    let all: List<WorkloadReport> = client.get(&format!("/v1/workloads{scope}")).await?;
    let items: Vec<&WorkloadReport> = all.items.iter().collect();
    let wanted = Wanted {
        kind: "workload",
        name,
        place: " on the node that was asked".to_owned(),
    };
    let workload = wanted.one(
        &items,
        |w| w.workload.name.to_string(),
        |w| *w.workload.name == *name || *w.workload.id == *name,
        |w| w.workload.name.starts_with(name) || w.workload.id.starts_with(name),
    )?;
    let namespace = workload.workload.namespace.as_str();
    let path = format!("/v1/endpoints?namespace={}", escape(namespace));
    let endpoints: List<EndpointItem> = client.get(&path).await?;
    let mut mine = endpoints.items;
    mine.retain(|e| e.workload == *workload.workload.id && e.node.as_ref() == Some(&workload.node));
    let middle = format!("/{}:", workload.workload.name);
    let around = around(client, Some(namespace), |e| match e.event.kind {
        EventKind::Workload => {
            e.event.name == *workload.workload.name || e.event.name == *workload.workload.id
        }
        EventKind::Endpoint => {
            e.event.name.contains(&middle) && e.event.node.as_ref() == Some(&workload.node)
        }
        _ => false,
    })
    .await?;
    Ok(workload::page(workload, &mine, &around))
}

async fn of_node(client: &Client, name: &str) -> Result<String, Failure> {
    let all: List<NodeItem> = client.get("/v1/nodes").await?;
    let items: Vec<&NodeItem> = all.items.iter().collect();
    let wanted = Wanted {
        kind: "node",
        name,
        place: String::new(),
    };
    let node = wanted.one(
        &items,
        |n| n.name.to_string(),
        |n| n.name.as_str() == name,
        |n| n.name.as_str().starts_with(name),
    )?;
    let endpoints: List<EndpointItem> = client.get("/v1/endpoints").await?;
    let mut mine = endpoints.items;
    mine.retain(|e| e.node.as_ref() == Some(&node.name));
    // While it drains the answer is a 503: then there is no more to say than its status.
    let ready: Option<Readiness> = client.get("/readyz").await.ok();
    let ready = ready.filter(|ready| ready.node == node.name.as_str());
    let around = around(client, None, |e| {
        let own = e.event.kind == EventKind::Registry && ready.is_some();
        own || e.event.kind == EventKind::Node && e.event.name == node.name.as_str()
    })
    .await?;
    Ok(node::page(node, &mine, ready.as_ref(), &around))
}

async fn around(
    client: &Client,
    namespace: Option<&str>,
    wanted: impl Fn(&Recorded) -> bool,
) -> Result<Around, Failure> {
    let mut events: Events = client.get(&events_path(namespace, None, false)).await?;
    events.items.retain(|e| wanted(e));
    Ok(Around {
        now: Timestamp::now(),
        events: events.items,
    })
}

/// What the user asked for.
struct Wanted<'a> {
    kind: &'static str,
    name: &'a str,
    place: String,
}

impl Wanted<'_> {
    /// The one that is named so; else the only one whose name begins so.
    fn one<'i, T>(
        &self,
        items: &[&'i T],
        called: impl Fn(&T) -> String,
        exact: impl Fn(&T) -> bool,
        begins: impl Fn(&T) -> bool,
    ) -> Result<&'i T, Failure> {
        let find = |named: &dyn Fn(&T) -> bool| -> Vec<&'i T> {
            items.iter().copied().filter(|i| named(i)).collect()
        };
        let mut found = find(&exact);
        if found.is_empty() {
            found = find(&begins);
        }
        match found.as_slice() {
            [one] => Ok(one),
            [] => {
                let names: Vec<String> = items.iter().map(|i| called(i)).collect();
                let near = model::strict::nearest(self.name, names.iter().map(String::as_str));
                let meant = near.map_or(String::new(), |near| format!(", did you mean {near}?"));
                let Wanted { kind, name, place } = self;
                let all = if *kind == "node" { "" } else { " -A" };
                Err(Failure::Failed(format!(
                    "{kind} {name}: does not exist{place}{meant} (heddle get {kind}s{all} lists them)"
                )))
            }
            several => Err(self.ambiguous(several, called)),
        }
    }

    /// The failure of a name that several have, told apart by what `called` makes of them.
    fn several<T>(
        &self,
        items: &[&T],
        called: impl Fn(&T) -> String,
        named: impl Fn(&T) -> bool,
    ) -> Option<Failure> {
        let found: Vec<&T> = items.iter().copied().filter(|i| named(i)).collect();
        (found.len() > 1).then(|| self.ambiguous(&found, called))
    }

    fn ambiguous<T>(&self, found: &[&T], called: impl Fn(&T) -> String) -> Failure {
        let more = found.len().saturating_sub(10);
        let mut names: Vec<String> = found.iter().take(10).map(|i| called(i)).collect();
        if more > 0 {
            names.push(format!("… and {more} more"));
        }
        Failure::Failed(format!(
            "{} {}: {} match{} (name more of it)\n  {}",
            self.kind,
            self.name,
            found.len(),
            self.place,
            names.join("\n  ")
        ))
    }
}

/// A verdict with its reason, which may say the same.
fn with(verdict: &str, reason: &str) -> String {
    match reason {
        "" => verdict.to_owned(),
        reason if reason.starts_with(verdict) => reason.to_owned(),
        reason => format!("{verdict}: {reason}"),
    }
}

impl Around {
    /// Since when, and for how long.
    fn since(&self, at: Timestamp) -> String {
        format!("{at} ({} ago)", age(at.age(self.now)))
    }

    fn ago(&self, at: Timestamp) -> String {
        age(at.age(self.now))
    }

    /// The newest events; `own` is the name that needs no saying.
    fn events(&self, page: &mut Page, own: &str) {
        let all: Vec<&Recorded> = self.events.iter().map(|e| &**e).collect();
        let told = repeats(&all);
        page.heading("Events");
        if told.is_empty() {
            page.item("none that this node remembers");
        }
        let skip = told.len().saturating_sub(EVENTS);
        if skip > 0 {
            page.item(&format!("{skip} older ones (heddle events shows them)"));
        }
        for told in told.iter().skip(skip) {
            let event = told.event();
            let name = match event.name == own {
                true => String::new(),
                false => format!(" {}", event.name),
            };
            let head = format!("{:>5}  {}{name}", self.ago(event.at), event.reason);
            page.hanging(&format!("{head}: {}", told.message()), 9);
        }
    }
}
