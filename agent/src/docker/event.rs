//! What an event means.

use bollard::models::{EventMessage, EventMessageTypeEnum};
use model::time::Timestamp;

use super::signal::{self, Signal};

/// What to make of an event. Ids are whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// A signal was sent to it.
    Signalled {
        id: String,
        signal: Signal,
        at: Timestamp,
    },
    /// It runs no more.
    Ended { id: String, at: Timestamp },
    /// Something about it changed.
    Changed { id: String, at: Timestamp },
    /// The kernel killed a process in it for lack of memory: its first one, and it ends, or another, and it runs on.
    OutOfMemory { id: String, at: Timestamp },
    /// A network came or went.
    Networks,
}

/// Reads an event; `None` for one that doesn't matter.
pub(super) fn read(event: EventMessage) -> Option<Hint> {
    let millis = match (event.time_nano, event.time) {
        (Some(nanos), _) => nanos / 1_000_000,
        (None, Some(seconds)) => seconds.saturating_mul(1000),
        (None, None) => Timestamp::now().0,
    };
    let at = Timestamp(millis);
    let action = event.action?;
    // `health_status: healthy`, `exec_create: /bin/sh`.
    let verb = action.split(':').next().unwrap_or_default().trim();
    let actor = event.actor?;
    let attribute = |key: &str| actor.attributes.as_ref().and_then(|a| a.get(key)).cloned();
    match event.typ? {
        EventMessageTypeEnum::CONTAINER => {
            let id = actor.id.clone()?;
            match verb {
                "kill" => {
                    let text = attribute("signal").unwrap_or_default();
                    // A signal that can't be read is told by the inspection.
                    Some(match signal::parse(&text) {
                        Some(signal) => Hint::Signalled { id, signal, at },
                        None => Hint::Changed { id, at },
                    })
                }
                "die" | "died" | "destroy" | "remove" => Some(Hint::Ended { id, at }),
                "oom" => Some(Hint::OutOfMemory { id, at }),
                "start" | "restart" | "stop" | "pause" | "unpause" | "rename" | "update"
                | "health_status" => Some(Hint::Changed { id, at }),
                _ => None,
            }
        }
        EventMessageTypeEnum::NETWORK => match verb {
            // Docker's actor is the network, Podman's the container.
            "connect" | "disconnect" => Some(Hint::Changed {
                id: attribute("container").or(actor.id)?,
                at,
            }),
            "create" | "destroy" | "remove" => Some(Hint::Networks),
            _ => None,
        },
        _ => None,
    }
}
