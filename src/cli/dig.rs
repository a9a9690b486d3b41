//! `heddle dig`: what a node's DNS would answer, where that comes from, and why.

use std::net::IpAddr;

use clap::{Args, ValueEnum};

use super::Failure;
use super::client::{Client, escape};
use super::describe::text::Page;
use super::get::out;
use crate::admin::dig::{Dug, DugRecord, DugService};

/// Endpoints shown at most of one service.
const SHOWN: usize = 50;

/// What to ask.
#[derive(Debug, Args)]
pub struct Options {
    /// In full: no search list is applied
    name: String,
    /// The type of records: A, AAAA, SRV, PTR, TXT, …; an address as NAME asks for its PTR
    #[arg(value_name = "TYPE")]
    kind: Option<String>,
    /// Whose question it is: not everybody's are forwarded
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    from: IpAddr,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// As the API has it
    Json,
}

pub async fn dig(client: &Client, options: &Options) -> Result<(), Failure> {
    let (name, kind) = question(&options.name, options.kind.as_deref());
    let path = format!(
        "/v1/dig?name={}&type={}&from={}",
        escape(&name),
        escape(&kind),
        escape(&options.from.to_string())
    );
    let dug: Dug = client.get(&path).await?;
    match options.output {
        Format::Table => out(&page(&dug)),
        Format::Json => {
            let text =
                serde_json::to_string_pretty(&dug).map_err(|e| Failure::Failed(e.to_string()))?;
            out(&format!("{text}\n"))
        }
    }
}

/// An address stands for its reverse name.
fn question(name: &str, kind: Option<&str>) -> (String, String) {
    match name.parse::<IpAddr>() {
        Ok(address) => {
            let kind = kind.unwrap_or("PTR").to_owned();
            (dns::reverse::name_of(address), kind)
        }
        Err(_) => (name.to_owned(), kind.unwrap_or("A").to_owned()),
    }
}

fn page(dug: &Dug) -> String {
    let mut page = Page::default();
    page.field("Question", &format!("{} {}", dug.name, dug.kind));
    let answer = match (dug.rcode.as_str(), dug.answers.len()) {
        ("NOERROR", 0) => "NOERROR without a record of this type (NODATA)".to_owned(),
        (code, _) => code.to_owned(),
    };
    page.field("Answer", &answer);
    page.field("Comes from", &source(dug));
    page.field("Because", &dug.reason);
    for (title, records) in [
        ("Records", &dug.answers),
        ("Authority", &dug.authorities),
        ("Additional", &dug.additionals),
    ] {
        if !records.is_empty() {
            page.heading(title);
            for one in records {
                page.hanging(&record(one), 6);
            }
        }
    }
    for service in &dug.services {
        of_service(&mut page, service);
    }
    if !dug.upstreams.is_empty() {
        page.heading("Upstreams of this name, in their order");
        for upstream in &dug.upstreams {
            let state = if upstream.up {
                "answers"
            } else {
                "does not answer, or leads back here"
            };
            page.item(&format!("{}: {state}", upstream.address));
        }
    }
    if !dug.hints.is_empty() {
        page.heading("A resolver with a search list may ask for another name");
        for hint in &dug.hints {
            page.item(hint);
        }
    }
    page.finish()
}

fn source(dug: &Dug) -> String {
    let upstream = dug.upstream.as_deref().unwrap_or("an upstream");
    match dug.source.as_str() {
        "zone" => match dug.services.as_slice() {
            [] => "this node's own zone".to_owned(),
            some => {
                let keys: Vec<String> = some.iter().map(|s| s.service.to_string()).collect();
                format!("this node's own zone: service {}", keys.join(", "))
            }
        },
        "cache" => {
            let left = dug.answers.iter().map(|record| record.ttl).min();
            let left = left.map_or(String::new(), |left| format!(" for {left} s more"));
            format!("the cache, which keeps{left} what {upstream} said")
        }
        "stale" => format!(
            "the cache, though its time is over: {upstream} said so and does not answer now"
        ),
        "upstream" => format!("{upstream}, asked just now ({} ms)", dug.micros / 1_000),
        _ => "nobody".to_owned(),
    }
}

fn record(one: &DugRecord) -> String {
    format!("{} {} {} {}", one.name, one.ttl, one.kind, one.data)
}

fn of_service(page: &mut Page, service: &DugService) {
    let what = match service.headless {
        true => "headless: its names stand for them",
        false => "behind its virtual IP",
    };
    page.heading(&format!("Endpoints of {}, {what}", service.service));
    if service.endpoints.is_empty() {
        page.item("none");
    }
    for one in service.endpoints.iter().take(SHOWN) {
        let at: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        let at = match at.as_slice() {
            [] => String::new(),
            some => format!(" at {}", some.join(", ")),
        };
        let reason = match one.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        page.hanging(&format!("{} {}{at}{reason}", one.name, one.state), 6);
    }
    if service.endpoints.len() > SHOWN {
        page.item(&format!("… and {} more", service.endpoints.len() - SHOWN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_asks_for_its_reverse_name() {
        let (name, kind) = question("10.96.0.7", None);
        assert_eq!(
            (name.as_str(), kind.as_str()),
            ("7.0.96.10.in-addr.arpa.", "PTR")
        );
        let (name, _) = question("fd00:96::7", None);
        assert!(
            name.starts_with("7.0.0.0.") && name.ends_with(".d.f.ip6.arpa."),
            "{name}"
        );
        assert_eq!(
            question("web", Some("SRV")),
            ("web".to_owned(), "SRV".to_owned())
        );
    }

    #[test]
    fn the_page_says_the_answer_where_it_comes_from_and_why() {
        let dug: Dug = serde_json::from_value(serde_json::json!({
            "name": "db.data.svc.heddle.internal.", "type": "A", "rcode": "NOERROR", "source": "zone",
            "answers": [{"name": "db.data.svc.heddle.internal.", "ttl": 5, "type": "A", "data": "172.17.0.2"}],
            "services": [{"service": "data/db", "headless": true, "endpoints": [
                {"name": "db/a:pg", "state": "ready", "addresses": ["172.17.0.2:5432"]},
                {"name": "db/b:pg", "state": "unhealthy", "reason": "connection refused", "addresses": []},
            ]}],
            "micros": 40,
        }))
        .unwrap();
        assert_eq!(
            page(&dug),
            "\
Question:     db.data.svc.heddle.internal. A
Answer:       NOERROR
Comes from:   this node's own zone: service data/db
Records:
  db.data.svc.heddle.internal. 5 A 172.17.0.2
Endpoints of data/db, headless: its names stand for them:
  db/a:pg ready at 172.17.0.2:5432
  db/b:pg unhealthy: connection refused
"
        );
        let dug: Dug = serde_json::from_value(serde_json::json!({
            "name": "web.", "type": "A", "rcode": "NXDOMAIN", "source": "cache", "upstream": "192.0.2.53:53",
            "upstreams": [{"address": "192.0.2.53:53", "up": false}],
            "hints": ["with `search shop.svc.x` in its resolv.conf, a container would get web.shop.svc.x"],
            "micros": 3,
        }))
        .unwrap();
        assert_eq!(
            page(&dug),
            "\
Question:     web. A
Answer:       NXDOMAIN
Comes from:   the cache, which keeps what 192.0.2.53:53 said
Upstreams of this name, in their order:
  192.0.2.53:53: does not answer, or leads back here
A resolver with a search list may ask for another name:
  with `search shop.svc.x` in its resolv.conf, a container would get web.shop.svc.x
"
        );
    }
}
