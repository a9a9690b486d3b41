//! That Docker was lost and came back: no record of the registry tells it.

use std::sync::Arc;

use agent::DockerStatus;
use model::{Event, EventKind, Name, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::History;

/// Tells until shutdown.
pub async fn tell(
    node: Name,
    mut status: watch::Receiver<DockerStatus>,
    history: Arc<History>,
    shutdown: CancellationToken,
) {
    let mut before = status.borrow_and_update().clone();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
        let now = Timestamp::now();
        let after = status.borrow_and_update().clone();
        if let Some((at, reason, message)) = turned(&before, &after) {
            let event = Event {
                at,
                kind: EventKind::Node,
                namespace: None,
                name: node.to_string(),
                node: Some(node.clone()),
                reason: reason.to_owned(),
                message,
            };
            history.record(event, now);
        }
        before = after;
    }
}

/// Further reasons for the same loss are no news.
fn turned(
    before: &DockerStatus,
    after: &DockerStatus,
) -> Option<(Timestamp, &'static str, String)> {
    match (before, after) {
        (DockerStatus::Connected { .. }, DockerStatus::Waiting { reason, since }) => Some((
            *since,
            "DockerLost",
            format!(
                "containers are no longer seen; those known last are kept and checked: {reason}"
            ),
        )),
        (DockerStatus::Waiting { since: lost, .. }, DockerStatus::Connected { since }) => {
            let seconds = lost.age(*since).as_secs();
            Some((
                *since,
                "DockerConnected",
                format!("containers are seen, after {seconds} s"),
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_once_and_so_is_its_end() {
        let waiting = |reason: &str| DockerStatus::Waiting {
            reason: reason.into(),
            since: Timestamp(1000),
        };
        let connected = |ms| DockerStatus::Connected {
            since: Timestamp(ms),
        };
        let (at, reason, message) = turned(&connected(1), &waiting("refused")).unwrap();
        assert_eq!((at, reason), (Timestamp(1000), "DockerLost"));
        assert!(message.ends_with(": refused"));
        assert!(turned(&waiting("refused"), &waiting("no such file")).is_none());
        let (at, reason, message) = turned(&waiting("refused"), &connected(6000)).unwrap();
        assert_eq!((at, reason), (Timestamp(6000), "DockerConnected"));
        assert_eq!(message, "containers are seen, after 5 s");
        assert!(turned(&DockerStatus::Disabled, &DockerStatus::Disabled).is_none());
    }
}
