//! Events: what changed and why, for people.

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::time::Timestamp;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A service.
    Service,
    /// An endpoint of a service.
    Endpoint,
    /// A container or a registration.
    Workload,
    /// A node.
    Node,
    /// The registry itself.
    Registry,
}

impl EventKind {
    /// All there are, in the order of the documentation.
    pub const ALL: [EventKind; 5] = [
        EventKind::Service,
        EventKind::Endpoint,
        EventKind::Workload,
        EventKind::Node,
        EventKind::Registry,
    ];

    /// As in JSON, tables and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Service => "service",
            EventKind::Endpoint => "endpoint",
            EventKind::Workload => "workload",
            EventKind::Node => "node",
            EventKind::Registry => "registry",
        }
    }

    /// The kind that a user means: as [`EventKind::as_str`] has it, its plural, or `svc`, `ep`, `wl`.
    pub fn parse(text: &str) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|kind| {
            let short = match kind {
                EventKind::Service => "svc",
                EventKind::Endpoint => "ep",
                EventKind::Workload => "wl",
                EventKind::Node | EventKind::Registry => "",
            };
            let full = kind.as_str();
            text == full
                || text.strip_suffix('s') == Some(full)
                || (!short.is_empty() && text == short)
        })
    }
}

/// Something that happened, told once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When it happened, by the clock of the node that saw it.
    pub at: Timestamp,
    /// What it is about.
    pub kind: EventKind,
    /// The namespace of what it is about, where that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Name>,
    /// The name of what it is about, as commands take it.
    pub name: String,
    /// The node on which it happened, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// One word in CamelCase, out of a fixed set: what tools filter by.
    pub reason: String,
    /// A sentence for people, with the cause.
    pub message: String,
}

/// An event as a node's history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Rises by one with each event of the node, across its restarts; another node's ids are its own.
    pub id: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// When this node heard of it, where that is more than a second after it happened: after an outage of the registry
    /// or of the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_event_is_one_flat_object_and_reads_back() {
        let recorded = Recorded {
            id: 7,
            event: Event {
                at: Timestamp(1_772_366_400_250),
                kind: EventKind::Node,
                namespace: None,
                name: "n1".into(),
                node: None,
                reason: "NodeLost".into(),
                message: "its lease ended".into(),
            },
            seen: Some(Timestamp(1_772_366_460_000)),
        };
        let text = serde_json::to_string(&recorded).unwrap();
        assert_eq!(
            text,
            r#"{"id":7,"at":"2026-03-01T12:00:00.250Z","kind":"node","name":"n1","reason":"NodeLost","message":"its lease ended","seen":"2026-03-01T12:01:00Z"}"#
        );
        assert_eq!(serde_json::from_str::<Recorded>(&text).unwrap(), recorded);
    }

    #[test]
    fn kinds_are_read_as_people_type_them() {
        assert_eq!(EventKind::parse("svc"), Some(EventKind::Service));
        assert_eq!(EventKind::parse("endpoints"), Some(EventKind::Endpoint));
        assert_eq!(EventKind::parse("registry"), Some(EventKind::Registry));
        assert_eq!(EventKind::parse(""), None);
        assert_eq!(EventKind::parse("pod"), None);
    }
}
