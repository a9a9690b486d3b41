//! What is asked of the node, and the rows that are made of it.

use std::collections::BTreeMap;

use model::{ServiceKey, State};

use crate::admin::ready::Readiness;
use crate::admin::view::{EndpointItem, List, ServiceItem};
use crate::cli::Failure;
use crate::cli::client::{Client, escape};
use crate::cli::table::Table;
use crate::traffic::{Meter, Rates, Traffic};

/// A node, asked again and again.
pub struct Source {
    client: Client,
    namespace: Option<String>,
    meter: Meter,
}

/// What one look at the node shows.
#[derive(Debug, Default)]
pub struct View {
    pub node: String,
    /// What the node waits for or can't do.
    pub reasons: Vec<String>,
    pub services: Vec<Service>,
}

/// A service's row.
#[derive(Debug)]
pub struct Service {
    pub key: ServiceKey,
    /// None before there were two looks.
    pub rates: Option<Rates>,
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint's row.
#[derive(Debug)]
pub struct Endpoint {
    pub name: String,
    pub node: String,
    pub state: State,
    pub eligible: bool,
    pub reason: String,
    /// None before there were two looks.
    pub rates: Option<Rates>,
}

impl Source {
    pub fn new(client: Client, namespace: Option<String>) -> Source {
        Source {
            client,
            namespace,
            meter: Meter::default(),
        }
    }

    pub async fn look(&mut self) -> Result<View, Failure> {
        let scope = match &self.namespace {
            Some(namespace) => format!("?namespace={}", escape(namespace)),
            None => String::new(),
        };
        let traffic: Traffic = self.client.get("/v1/traffic").await?;
        let services: List<ServiceItem> = self.client.get(&format!("/v1/services{scope}")).await?;
        let endpoints: List<EndpointItem> =
            self.client.get(&format!("/v1/endpoints{scope}")).await?;
        // 503 while it drains: then there is nothing else to say.
        let ready: Option<Readiness> = self.client.get("/readyz").await.ok();
        let measured = self.meter.at().is_some();
        self.meter.take(traffic);
        let mut of: BTreeMap<ServiceKey, Vec<Endpoint>> = BTreeMap::new();
        for item in endpoints.items {
            let key = ServiceKey::new(item.namespace.clone(), item.service.clone());
            let flow = self.meter.flows.get(&key);
            let rates = flow.and_then(|f| f.endpoints.get(&item.id)).copied();
            let rates = measured.then(|| rates.unwrap_or_default());
            of.entry(key).or_default().push(endpoint(item, rates));
        }
        let services = services.items.iter().map(|item| {
            let key = item.metadata.key();
            let rates = self.meter.flows.get(&key).map(|flow| flow.rates);
            Service {
                rates: measured.then(|| rates.unwrap_or_default()),
                endpoints: of.remove(&key).unwrap_or_default(),
                key,
            }
        });
        Ok(View {
            services: services.collect(),
            node: ready.as_ref().map_or(String::new(), |r| r.node.clone()),
            reasons: match ready {
                Some(ready) => ready.reasons,
                None => vec!["draining".to_owned()],
            },
        })
    }
}

fn endpoint(item: EndpointItem, rates: Option<Rates>) -> Endpoint {
    Endpoint {
        name: item.name,
        node: item.node.map_or(String::new(), |n| n.to_string()),
        state: item.state,
        eligible: item.eligible,
        reason: item.reason,
        rates,
    }
}

impl Service {
    pub fn rates(&self) -> Rates {
        self.rates.unwrap_or_default()
    }

    /// How many take work, of how many.
    pub fn ready(&self) -> String {
        let eligible = self.endpoints.iter().filter(|e| e.eligible).count();
        format!("{eligible}/{}", self.endpoints.len())
    }
}

/// The columns of figures.
pub const FIGURES: [&str; 7] = [
    "REQ/S", "ERRORS", "P50", "P99", "CONNS", "CONN/S", "BYTES/S",
];

/// The figures, in the order of [`FIGURES`]; empty before there were two looks.
pub fn figures(rates: Option<Rates>) -> [String; 7] {
    let Some(rates) = rates else {
        return Default::default();
    };
    [
        rate(rates.requests),
        errors(&rates),
        rates.p50.map_or(String::new(), latency),
        rates.p99.map_or(String::new(), latency),
        rates.active.to_string(),
        rate(rates.connections),
        bytes(rates.bytes),
    ]
}

/// The part that failed; empty where nothing was asked.
pub fn errors(rates: &Rates) -> String {
    match rates.requests > 0.0 || rates.errors > 0.0 {
        true => format!("{:.1}%", rates.errors * 100.0),
        false => String::new(),
    }
}

/// How many a second, with a fraction where they are few.
pub fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        r if r < 10.0 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

/// Seconds in a unit that fits.
pub fn latency(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}us", s * 1e6),
        s if s < 0.01 => format!("{:.1}ms", s * 1e3),
        s if s < 1.0 => format!("{:.0}ms", s * 1e3),
        s => format!("{s:.1}s"),
    }
}

/// Bytes a second in a unit that fits.
pub fn bytes(per_second: f64) -> String {
    const KIB: f64 = 1024.0;
    match per_second {
        b if b < KIB => format!("{b:.0}"),
        b if b < KIB * KIB => format!("{:.1}Ki", b / KIB),
        b if b < KIB * KIB * KIB => format!("{:.1}Mi", b / KIB / KIB),
        b => format!("{:.1}Gi", b / KIB / KIB / KIB),
    }
}

/// Everything as plain columns: services, then endpoints.
pub fn table(view: &View) -> String {
    let mut services = Table::new(&[&["SERVICE", "READY"][..], &FIGURES].concat());
    let mut endpoints = Table::new(&[&["ENDPOINT", "NODE", "STATE"][..], &FIGURES].concat());
    for service in &view.services {
        let mut cells = vec![service.key.to_string(), service.ready()];
        cells.extend(figures(service.rates));
        services.row(cells);
        for one in &service.endpoints {
            let mut cells = vec![
                format!("{}/{}", service.key.namespace, one.name),
                one.node.clone(),
                one.state.to_string(),
            ];
            cells.extend(figures(one.rates));
            endpoints.row(cells);
        }
    }
    format!("{services}\n{endpoints}")
}
