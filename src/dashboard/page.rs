//! The whole page.

use std::fmt::Write as _;

use super::html::Text;
use super::rows;
use crate::admin::Context;
use crate::events::Filter;

/// Events shown at first.
const EVENTS: usize = 50;

pub fn page(context: &Context) -> String {
    let state = context.dashboard.state(context);
    let (events, last, _) = context.events.follow(&Filter::default(), EVENTS);
    let node = Text(&context.node);
    let mut out = String::with_capacity(state.rows.len() * 1024 + 8192);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{node} - heddle</title>\
         <link rel=\"icon\" href=\"data:,\"><link rel=\"stylesheet\" href=\"/dashboard/style.css\">\
         <script src=\"/dashboard/script.js\" defer></script></head>\
         <body data-version=\"{}\" data-last=\"{last}\">\
         <header><h1>heddle <span>{node}</span></h1><p id=\"live\"></p></header>\
         <section id=\"status\" aria-live=\"polite\">{}</section><main>\
         <h2>Services</h2><form id=\"filter\" hidden><input type=\"search\" placeholder=\"filter by name or selector\" \
         aria-label=\"filter services\"><label><input type=\"checkbox\"> only in trouble</label></form>\
         <table id=\"services\"><thead><tr><th scope=\"col\">service<th scope=\"col\">address<th scope=\"col\">ready",
        state.version, state.status
    )
    .ok();
    for label in rows::FIGURES {
        write!(out, "<th scope=\"col\">{label}").ok();
    }
    out.push_str("</tr></thead>");
    for row in state.rows.values() {
        row.write(&mut out);
    }
    write!(
        out,
        "</table><p id=\"none\"{}>There are no services yet: <code>heddle apply -f FILE</code> makes one.</p>\
         <h2>Nodes</h2><table id=\"nodes\"><thead><tr><th scope=\"col\">node<th scope=\"col\">status\
         <th scope=\"col\">address<th scope=\"col\">zone<th scope=\"col\">version<th scope=\"col\">services</tr></thead>\
         <tbody>{}</tbody></table><h2>Events</h2><ol id=\"events\" reversed>",
        if state.rows.is_empty() { "" } else { " hidden" },
        state.nodes
    )
    .ok();
    for event in events.iter().rev() {
        out.push_str(&rows::event(event));
    }
    out.push_str("</ol></main></body></html>\n");
    out
}
