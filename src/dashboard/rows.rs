//! The parts of the page. Whatever comes from users goes through [`Text`].

use std::fmt::Write as _;

use model::event::Recorded;
use model::snapshot::{EndpointView, PortView, ServiceView};
use model::{ServiceKey, State};

use super::html::Text;
use crate::admin::ready::Readiness;
use crate::admin::view::NodeItem;
use crate::top::data::{bytes, errors, latency, rate};
use crate::traffic::{Flow, Rates};

/// Endpoints shown of one service at most; those in trouble come first.
const SHOWN: usize = 24;

/// The columns of figures.
pub const FIGURES: [&str; 6] = ["req/s", "errors", "p50", "p99", "conns", "bytes/s"];

/// A service's HTML without its figures, which change all the time: they go between the pieces.
pub struct Part {
    pieces: Vec<String>,
    /// The ids of the endpoints that have figures.
    shown: Vec<String>,
}

impl Part {
    /// Its figures: the service's, then one for each endpoint that is shown. As many as there are gaps between the pieces.
    pub fn figures(&self, flow: Option<&Flow>) -> Vec<String> {
        let mut all: Vec<String> = figures(flow.map(|f| &f.rates)).into();
        let of = |id: &String| flow.and_then(|f| f.endpoints.get(id)).map(in_short);
        all.extend(self.shown.iter().map(|id| of(id).unwrap_or_default()));
        all
    }

    /// Appends the HTML with these figures.
    pub fn write(&self, figures: &[String], out: &mut String) {
        let mut figures = figures.iter();
        for piece in &self.pieces {
            out.push_str(piece);
            if let Some(figure) = figures.next() {
                write!(out, "{}", Text(figure)).ok();
            }
        }
    }
}

/// An endpoint's figures, in words; empty where nothing moves.
pub(super) fn in_short(rates: &Rates) -> String {
    let mut words = Vec::new();
    if rates.requests > 0.0 {
        words.push(format!("{} req/s", rate(rates.requests)));
    }
    if rates.errors > 0.0 {
        words.push(format!("{} errors", errors(rates)));
    }
    if let Some(p99) = rates.p99 {
        words.push(format!("p99 {}", latency(p99)));
    }
    if rates.active > 0 {
        words.push(format!("{} conns", rates.active));
    }
    words.join(", ")
}

/// A service: one `tbody`. `errors`: why it is not listened for.
pub fn service(view: &ServiceView, errors: &[String]) -> Part {
    let (mut pieces, mut shown) = (Vec::new(), Vec::new());
    let mut out = String::with_capacity(1024);
    let endpoints = || {
        view.ports
            .iter()
            .flat_map(|p| p.endpoints.iter().map(move |e| (p, e)))
    };
    let all = endpoints().count();
    let eligible: usize = view.ports.iter().map(|p| p.eligible.len()).sum();
    let nobody = view.ports.iter().any(|p| p.eligible.is_empty());
    let trouble = nobody || !errors.is_empty() || endpoints().any(|(_, e)| e.state != State::Ready);
    let class = match (nobody, trouble) {
        (true, _) => "down",
        (false, true) => "trouble",
        _ => "well",
    };
    let key = &view.key;
    write!(
        out,
        "<tbody id=\"{}\" class=\"{class}\"><tr><th scope=\"row\">{}",
        Text(key),
        Text(key)
    )
    .ok();
    if let Some(selector) = &view.service.spec.selector {
        write!(out, "<small>{}</small>", Text(selector)).ok();
    }
    out.push_str("</th><td data-label=\"address\">");
    for vip in view.vips.iter() {
        write!(out, "{} ", Text(vip)).ok();
    }
    if view.headless() {
        out.push_str("headless ");
    }
    for port in &view.ports {
        write!(
            out,
            "<span class=\"port\">{}/{}</span> ",
            port.port,
            port.protocol.as_str()
        )
        .ok();
    }
    write!(
        out,
        "</td><td data-label=\"ready\" class=\"n\">{eligible}/{all}</td>"
    )
    .ok();
    for label in FIGURES {
        write!(out, "<td data-label=\"{label}\" class=\"n f\">").ok();
        pieces.push(std::mem::take(&mut out));
        out.push_str("</td>");
    }
    out.push_str("</tr><tr class=\"endpoints\"><td colspan=\"9\"><ul>");
    for why in view.ports.iter().map(|p| &p.unavailable).chain(errors) {
        if !why.is_empty() {
            write!(out, "<li class=\"why\">{}</li>", Text(why)).ok();
        }
    }
    let (good, bad): (Vec<_>, Vec<_>) = endpoints().partition(|(_, e)| e.state == State::Ready);
    for (port, one) in bad.into_iter().chain(good).take(SHOWN) {
        endpoint(&mut out, port, one);
        out.push_str(" <span class=\"f\">");
        pieces.push(std::mem::take(&mut out));
        out.push_str("</span></li>");
        shown.push(one.id.to_string());
    }
    if all > SHOWN {
        write!(out, "<li>… and {} more</li>", all - SHOWN).ok();
    }
    out.push_str("</ul></td></tr></tbody>");
    pieces.push(out);
    Part { pieces, shown }
}

fn endpoint(out: &mut String, port: &PortView, view: &EndpointView) {
    let state = view.state.as_str();
    write!(out, "<li class=\"{state}\"").ok();
    if let Some(address) = view.addresses().first() {
        write!(
            out,
            " title=\"{} at {}\"",
            Text(port.name.as_str()),
            Text(address)
        )
        .ok();
    }
    write!(out, "><b>{}</b>", Text(&view.endpoint.name)).ok();
    if let Some(node) = &view.node {
        write!(out, " on {}", Text(node)).ok();
    }
    write!(out, " <i>{state}</i>").ok();
    if view.state != State::Ready || view.addresses().is_empty() {
        write!(out, " {}", Text(&view.reason)).ok();
    }
}

/// What is put into a service's figures.
pub fn figures(rates: Option<&Rates>) -> [String; 6] {
    let Some(rates) = rates else {
        return Default::default();
    };
    let count = |n: u64| if n == 0 { String::new() } else { n.to_string() };
    [
        match rates.requests {
            0.0 => String::new(),
            requests => rate(requests),
        },
        errors(rates),
        rates.p50.map_or(String::new(), latency),
        rates.p99.map_or(String::new(), latency),
        count(rates.active),
        if rates.bytes < 1.0 {
            String::new()
        } else {
            bytes(rates.bytes)
        },
    ]
}

/// The line at the top: how this node fares, and how many services are in trouble.
pub fn status(ready: &Readiness, services: usize, down: usize) -> String {
    let mut out = String::new();
    let class = if ready.ready && ready.reasons.is_empty() {
        "well"
    } else {
        "trouble"
    };
    let word = match (ready.ready, ready.reasons.is_empty()) {
        (false, _) => "not ready",
        (true, false) => "ready, with reservations",
        (true, true) => "ready",
    };
    let services = match (services, down) {
        (0, _) => "no services".to_owned(),
        (1, 0) => "1 service, with somebody to take a request".to_owned(),
        (n, 0) => format!("{n} services, each with somebody to take a request"),
        (1, _) => "1 service, with nobody to take a request".to_owned(),
        (n, down) => format!("{n} services, {down} of them with nobody to take a request"),
    };
    write!(
        out,
        "<p class=\"{class}\"><b>{word}</b> at revision {}; {services}</p>",
        ready.revision
    )
    .ok();
    if !ready.reasons.is_empty() {
        out.push_str("<ul>");
        for reason in &ready.reasons {
            write!(out, "<li>{}</li>", Text(reason)).ok();
        }
        out.push_str("</ul>");
    }
    out
}

/// The rows of all nodes.
pub fn nodes(nodes: &[NodeItem]) -> String {
    let mut out = String::new();
    for node in nodes {
        let class = if node.status == "alive" {
            "well"
        } else {
            "trouble"
        };
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        let since = node.since.map_or(String::new(), |at| at.to_string());
        write!(
            out,
            "<tr class=\"{class}\"><th scope=\"row\">{}</th><td data-label=\"status\"><i title=\"since {}\">{}</i></td>\
             <td data-label=\"address\">{}</td><td data-label=\"zone\">{}</td><td data-label=\"version\">{}</td>\
             <td data-label=\"services\" class=\"n\">{}</td></tr>",
            Text(&node.name),
            Text(since),
            Text(&node.status),
            Text(addresses.join(", ")),
            Text(node.zone.as_deref().unwrap_or("")),
            Text(&node.version),
            node.services
        )
        .ok();
    }
    out
}

/// One event.
pub fn event(recorded: &Recorded) -> String {
    let event = &recorded.event;
    let at = event.at.to_string();
    let short = at.get(11..19).unwrap_or(&at);
    let of = match &event.namespace {
        Some(namespace) => format!("{namespace}/{}", event.name),
        None => event.name.clone(),
    };
    format!(
        "<li class=\"{}\"><time datetime=\"{}\">{}</time> <b>{}</b> {}: {}</li>",
        tone(&event.reason),
        Text(&at),
        Text(short),
        Text(&event.reason),
        Text(of),
        Text(&event.message)
    )
}

/// Good news, bad news, or neither.
fn tone(reason: &str) -> &'static str {
    const BAD: [&str; 8] = [
        "Unhealthy",
        "Lost",
        "Failed",
        "Exhausted",
        "Bad",
        "Refused",
        "OutOfMemory",
        "Held",
    ];
    const GOOD: [&str; 6] = ["Ready", "Back", "Alive", "Connected", "Mended", "Restored"];
    match reason {
        r if BAD.iter().any(|end| r.ends_with(end)) => "unhealthy",
        r if GOOD.iter().any(|end| r.ends_with(end)) => "ready",
        _ => "",
    }
}

/// Why this node doesn't listen for a service's ports.
pub fn errors_of(key: &ServiceKey, listeners: &[proxy::ListenerStatus]) -> Vec<String> {
    listeners
        .iter()
        .filter(|l| l.service == *key)
        .filter_map(|l| {
            let error = l.error.as_ref()?;
            Some(format!(
                "port {}: no listener on {}: {error}",
                l.port, l.address
            ))
        })
        .collect()
}
