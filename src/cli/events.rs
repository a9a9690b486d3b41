//! `heddle events`: what changed and why, newest last.

use std::io::IsTerminal;
use std::time::Duration;

use model::event::{EventKind, Recorded};
use model::units::Span;
use model::{Timestamp, event::Event};
use serde::Deserialize;

use super::client::{Client, escape};
use super::get::out;
use super::table::{Table, age};
use super::{Failure, Output, Scope};
use crate::admin::events::Events;

/// Which events, and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    scope: Scope,
    /// Only those that happened within this time, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only about this: service/web, endpoint/web/shop_web_1, workload/NAME, node/NAME or registry/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    subject: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Go on with what happens
    #[arg(short, long)]
    watch: bool,
}

/// One line of a watch.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
enum Line {
    Added {
        object: Recorded,
    },
    Gap {
        missed: u64,
    },
    #[serde(other)]
    Bookmark,
}

/// The path to ask for, by what narrows it down.
pub fn path(namespace: Option<&str>, subject: Option<(EventKind, &str)>, watch: bool) -> String {
    let mut query = Vec::new();
    if let Some(namespace) = namespace {
        query.push(format!("namespace={}", escape(namespace)));
    }
    if let Some((kind, name)) = subject {
        query.push(format!("kind={}&name={}", kind.as_str(), escape(name)));
    }
    if watch {
        query.push("watch=true".to_owned());
    }
    match query.is_empty() {
        true => "/v1/events".to_owned(),
        false => format!("/v1/events?{}", query.join("&")),
    }
}

pub async fn events(client: &Client, options: &Options) -> Result<(), Failure> {
    let not_before = match options.since.as_deref() {
        None => None,
        Some(text) => {
            let span: Span = text
                .parse()
                .map_err(|e| Failure::Input(format!("--since {text}: {e}")))?;
            Some(before(Timestamp::now(), span.0))
        }
    };
    let subject = options.subject.as_deref().map(about).transpose()?;
    let namespace = match &options.scope.namespace {
        Some(namespace) => Some(namespace.as_str()),
        None if options.scope.all_namespaces => None,
        None => Some("default"),
    };
    let wanted = |e: &Recorded| not_before.is_none_or(|at| e.event.at >= at);
    let path = path(namespace, subject, options.watch);
    let columns = Columns {
        namespace: options.scope.all_namespaces,
        wide: options.output == Output::Wide,
        // What a watch prints stays on the screen while its age goes on.
        ages: std::io::stdout().is_terminal() && !options.watch,
    };
    if options.watch {
        return watch(client, &path, wanted, columns, options.output).await;
    }
    let mut events: Events = client.get(&path).await?;
    events.items.retain(|e| wanted(e));
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("can't be printed: {e}"));
    match options.output {
        Output::Json => out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&events.items).map_err(|e| failed(&e))?
        )),
        Output::Yaml => out(&model::strict::to_yaml(&events.items).map_err(|e| failed(&e))?),
        Output::Table | Output::Wide => {
            if events.items.is_empty() {
                match namespace {
                    Some(namespace) => {
                        eprintln!("no events in namespace {namespace} (-A shows all)")
                    }
                    None => eprintln!("no events"),
                }
            }
            let all: Vec<&Recorded> = events.items.iter().map(|e| &**e).collect();
            out(&table(&repeats(&all), columns).to_string())
        }
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    Timestamp(now.0.saturating_sub(ms))
}

fn about(text: &str) -> Result<(EventKind, &str), Failure> {
    let parts = text.split_once('/').filter(|(_, name)| !name.is_empty());
    let Some((kind, name)) = parts else {
        return Err(Failure::Input(format!(
            "--for {text}: not KIND/NAME, such as service/web"
        )));
    };
    match EventKind::parse(kind) {
        Some(kind) => Ok((kind, name)),
        None => Err(Failure::Input(format!(
            "--for {text}: unknown kind {kind} (known: {})",
            EventKind::ALL.map(EventKind::as_str).join(", ")
        ))),
    }
}

async fn watch(
    client: &Client,
    path: &str,
    wanted: impl Fn(&Recorded) -> bool,
    columns: Columns,
    output: Output,
) -> Result<(), Failure> {
    let mut widths = columns.usual();
    if matches!(output, Output::Table | Output::Wide) {
        out(&line(&mut widths, &columns.header()))?;
    }
    client
        .lines(path, |text| {
            let event = match serde_json::from_slice(text) {
                Ok(Line::Added { object }) => object,
                Ok(Line::Gap { missed }) => {
                    eprintln!(
                        "warning: {missed} events went by too fast (heddle events shows the newest)"
                    );
                    return Ok(());
                }
                Ok(Line::Bookmark) => return Ok(()),
                Err(e) => return Err(Failure::Failed(format!("an event that can't be read: {e}"))),
            };
            if !wanted(&event) {
                return Ok(());
            }
            match output {
                Output::Json => {
                    let text = serde_json::to_string(&event)
                        .map_err(|e| Failure::Failed(format!("can't be printed: {e}")))?;
                    out(&format!("{text}\n"))
                }
                Output::Yaml => {
                    let text = model::strict::to_yaml(&event)
                        .map_err(|e| Failure::Failed(format!("can't be printed: {e}")))?;
                    out(&format!("---\n{}\n", text.trim_end()))
                }
                Output::Table | Output::Wide => {
                    let told = Repeated::once(&event);
                    out(&line(&mut widths, &columns.cells(&told)))
                }
            }
        })
        .await
}

/// A row whose columns are as wide as the widest cell so far, and at first as they usually get: a watch doesn't know what
/// will come.
fn line(widths: &mut Vec<usize>, cells: &[String]) -> String {
    let mut text = String::new();
    widths.resize(cells.len(), 0);
    for (cell, width) in cells.iter().zip(widths) {
        let cell = if cell.is_empty() { "-" } else { cell };
        *width = cell.chars().count().max(*width);
        let width = *width;
        text.push_str(&format!("{cell:width$}  "));
    }
    format!("{}\n", text.trim_end())
}

/// An event with how often it happened.
pub struct Repeated<'a> {
    /// The last of them.
    last: &'a Recorded,
    first: Timestamp,
    count: usize,
}

impl<'a> Repeated<'a> {
    fn once(event: &'a Recorded) -> Self {
        Repeated {
            last: event,
            first: event.event.at,
            count: 1,
        }
    }

    /// The last of them.
    pub fn event(&self) -> &'a Event {
        &self.last.event
    }

    /// The message, with how often it was told and in which time.
    pub fn message(&self) -> String {
        let message = &self.last.event.message;
        match self.count {
            1 => message.clone(),
            n => {
                let within = age(self.first.age(self.last.event.at));
                format!("{message} (×{n} in {within})")
            }
        }
    }
}

/// What says the same of the same becomes one, at the place of its last.
pub fn repeats<'a>(events: &[&'a Recorded]) -> Vec<Repeated<'a>> {
    fn key(e: &Event) -> (EventKind, Option<&str>, &str, &str, &str) {
        let namespace = e.namespace.as_ref().map(|n| n.as_str());
        (e.kind, namespace, &e.name, &e.reason, &e.message)
    }
    let mut last_of = std::collections::HashMap::new();
    let mut all: Vec<Option<Repeated<'a>>> = Vec::with_capacity(events.len());
    for event in events {
        let mut told = Repeated::once(event);
        if let Some(before) = last_of.insert(key(&event.event), all.len())
            && let Some(before) = all.get_mut(before).and_then(Option::take)
        {
            told.first = before.first.min(told.first);
            told.count += before.count;
        }
        all.push(Some(told));
    }
    all.into_iter().flatten().collect()
}

/// Which columns are shown.
#[derive(Clone, Copy)]
pub struct Columns {
    /// Of several namespaces.
    pub namespace: bool,
    /// Id, node, and when it was heard of.
    pub wide: bool,
    /// How long ago instead of when.
    pub ages: bool,
}

impl Columns {
    fn header(self) -> Vec<String> {
        let mut header = vec!["TIME"];
        if self.namespace {
            header.push("NAMESPACE");
        }
        header.extend(["KIND", "NAME", "REASON"]);
        if self.wide {
            header.extend(["NODE", "ID", "SEEN"]);
        }
        header.push("MESSAGE");
        header.into_iter().map(str::to_owned).collect()
    }

    /// How wide the columns usually get.
    fn usual(self) -> Vec<usize> {
        let width = |name: &String| match name.as_str() {
            "TIME" | "SEEN" => "2026-03-01T12:00:00.250Z".len(),
            "KIND" => "workload".len(),
            "NAME" => 24,
            "REASON" => "WorkloadRegistered".len(),
            other => other.len(),
        };
        self.header().iter().map(width).collect()
    }

    fn cells(self, told: &Repeated<'_>) -> Vec<String> {
        let recorded = told.last;
        let event = &recorded.event;
        let text =
            |name: &Option<model::Name>| name.as_ref().map_or(String::new(), |n| n.to_string());
        let mut cells = vec![if self.ages {
            age(event.at.age(Timestamp::now()))
        } else {
            event.at.to_string()
        }];
        if self.namespace {
            cells.push(text(&event.namespace));
        }
        cells.extend([
            event.kind.as_str().to_owned(),
            event.name.clone(),
            event.reason.clone(),
        ]);
        if self.wide {
            cells.extend([
                text(&event.node),
                recorded.id.to_string(),
                recorded.seen.map_or(String::new(), |at| at.to_string()),
            ]);
        }
        cells.push(told.message());
        cells
    }
}

/// Events as a table.
pub fn table(events: &[Repeated<'_>], columns: Columns) -> Table {
    let header = columns.header();
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(&names);
    for event in events {
        table.row(columns.cells(event));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(id: u64, at: i64, reason: &str) -> Recorded {
        Recorded {
            id,
            event: Event {
                at: Timestamp(at),
                kind: EventKind::Endpoint,
                namespace: Some(model::Name::new("shop").unwrap()),
                name: "web/a:http".into(),
                node: None,
                reason: reason.into(),
                message: "refused".into(),
            },
            seen: None,
        }
    }

    #[test]
    fn what_repeats_is_told_once_at_its_last_place() {
        let events = [
            recorded(1, 0, "EndpointUnhealthy"),
            recorded(2, 10_000, "EndpointReady"),
            recorded(3, 180_000, "EndpointUnhealthy"),
        ];
        let all: Vec<&Recorded> = events.iter().collect();
        let told = repeats(&all);
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].last.id, 2);
        assert_eq!(told[0].message(), "refused");
        assert_eq!(told[1].last.id, 3);
        assert_eq!(told[1].message(), "refused (×2 in 3m)");
    }

    #[test]
    fn subjects_are_kind_and_name() {
        assert_eq!(
            about("ep/web/a:http").unwrap(),
            (EventKind::Endpoint, "web/a:http")
        );
        for bad in ["web", "service/", "pod/web", ""] {
            assert!(matches!(about(bad), Err(Failure::Input(_))), "{bad}");
        }
    }

    #[test]
    fn rows_of_a_watch_keep_their_columns() {
        let columns = Columns {
            namespace: false,
            wide: false,
            ages: false,
        };
        let mut widths = columns.usual();
        let header = line(&mut widths, &columns.header());
        let event = recorded(1, 1_772_366_400_250, "EndpointReady");
        let row = line(&mut widths, &columns.cells(&Repeated::once(&event)));
        for (name, cell) in [
            ("KIND", "endpoint"),
            ("NAME", "web/a"),
            ("MESSAGE", "refused"),
        ] {
            assert_eq!(header.find(name), row.find(cell), "{header}{row}");
        }
    }
}
