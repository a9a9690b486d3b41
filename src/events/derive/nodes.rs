//! What nodes say of themselves, and whether they are alive.

use model::name::Name;
use model::{Catalog, Liveness, Node};

use super::super::words::{difference, joined, time};
use super::{NODE, News, Subject};

pub(super) fn record(before: &Catalog, name: &Name, after: Option<&Node>, news: &mut News<'_>) {
    let subject = || Subject::node(name);
    match (before.nodes.get(name).map(|n| &**n), after) {
        (None, None) => {}
        (None, Some(new)) => news.tell(Some(new.since), NODE, "NodeJoined", || {
            let addresses = joined(&new.addresses);
            (
                subject(),
                format!("joined at {addresses} with version {}", new.version),
            )
        }),
        (Some(_), None) => news.tell(None, NODE, "NodeRemoved", || {
            (subject(), "its record was deleted".to_owned())
        }),
        (Some(old), Some(new)) => {
            let zone = |node: &Node| node.zone.clone().unwrap_or_default();
            let parts: Vec<String> = [
                difference("version", old.version.clone(), new.version.clone()),
                difference("address", joined(&old.addresses), joined(&new.addresses)),
                difference("routable", joined(&old.routable), joined(&new.routable)),
                difference("zone", zone(old), zone(new)),
            ]
            .into_iter()
            .flatten()
            .collect();
            if !parts.is_empty() {
                let at = Some(new.since).filter(|since| *since != old.since);
                news.tell(at, NODE, "NodeChanged", || (subject(), parts.join("; ")));
            }
        }
    }
}

pub(super) fn liveness(
    before: &Catalog,
    name: &Name,
    after: Option<&Liveness>,
    news: &mut News<'_>,
) {
    let subject = || Subject::node(name);
    let mut tell = |at, reason, text: String| news.tell(at, NODE, reason, || (subject(), text));
    match (before.alive.get(name).map(|l| &**l), after) {
        (None, None) => {}
        (None, Some(new)) if new.restarting_until.is_none() => {
            tell(Some(new.since), "NodeAlive", "alive".to_owned());
        }
        (Some(old), Some(new)) if old.session != new.session => {
            let text = match old.restarting_until {
                Some(_) => "alive again after a planned restart",
                None => "started anew, without having said that it would stop",
            };
            tell(Some(new.since), "NodeAlive", text.to_owned());
        }
        (old, Some(new)) => {
            let was = old.and_then(|l| l.restarting_until);
            match (was, new.restarting_until) {
                (None, Some(until)) => {
                    let text = format!(
                        "goes down on purpose; its endpoints are believed until {}",
                        time(until)
                    );
                    tell(None, "NodeRestarting", text);
                }
                (Some(_), None) => tell(None, "NodeAlive", "alive again".to_owned()),
                _ => {}
            }
        }
        (Some(old), None) => {
            let text = match old.restarting_until {
                Some(_) => {
                    "did not come back from its restart in time; other nodes check its endpoints"
                }
                None => {
                    "its lease ended: it died or can't reach the registry; other nodes check its endpoints"
                }
            };
            tell(None, "NodeLost", text.to_owned());
        }
    }
}
