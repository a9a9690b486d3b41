//! What no living node owns: checked, published, collected; and that many nodes were lost at once.

use std::time::Duration;

use model::event::{Event, EventKind};
use model::time::Timestamp;
use tokio::time::Instant;

use super::Reconciler;

/// How long changes are gathered before unowned endpoints are looked for: a node that is gone changes many services.
const UNOWNED_DELAY: Duration = Duration::from_millis(10);

impl Reconciler {
    /// Has unowned endpoints looked at soon.
    pub(super) fn look_at_unowned(&mut self) {
        self.look_within(UNOWNED_DELAY);
    }

    fn look_within(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.unowned_at = Some(self.unowned_at.map_or(at, |before| before.min(at)));
    }

    /// Looks at them, and again from time to time as long as a node that is gone has left something.
    pub(super) fn follow_unowned(&mut self) {
        self.unowned_at = None;
        let now = self.began.elapsed();
        let snapshot = self.snapshot.load_full();
        let withdrawn = self
            .unowned
            .follow(&snapshot, &self.catalog, &mut self.checks, now);
        self.pending.extend(withdrawn);
        let findings = self.unowned.unpublished(&self.catalog, &self.checks);
        self.caretaker.publish(findings);
        if snapshot.guard != self.guard {
            self.tell_guard(snapshot.guard.clone());
        }
        // It looks at all slices: not with every change.
        if now < self.collect_at {
            self.look_within(self.collect_at - now);
            return;
        }
        self.collect_at = now + self.collector.interval();
        let (due, left) = self
            .collector
            .judge(&snapshot, &self.catalog, &self.unowned, now);
        self.caretaker.collect(due);
        if left || self.guard.is_some() {
            self.look_within(self.collector.interval());
        }
    }

    fn tell_guard(&mut self, guard: Option<std::sync::Arc<model::membership::MassExpiry>>) {
        let before = std::mem::replace(&mut self.guard, guard);
        let (reason, message) = match (&before, &self.guard) {
            (None, Some(held)) => ("MassExpiryHeld", held.to_string()),
            (Some(held), None) => {
                let missing = held.missing.len();
                let message = format!(
                    "the mass expiry of {} is no longer held: {missing} nodes were still missing, and what they left is \
                     collected once its checks have failed for long enough",
                    held.since
                );
                ("MassExpiryReleased", message)
            }
            // Some came back, or more went.
            _ => return,
        };
        tracing::warn!(reason, "{message}");
        self.tell(Event {
            at: Timestamp::now(),
            kind: EventKind::Node,
            namespace: None,
            name: self.node.to_string(),
            node: None,
            reason: reason.to_owned(),
            message,
        });
    }
}
