//! Which nodes are believed, from liveness keys that come and go. No I/O and no clock: time is passed in, measured since
//! any moment that the caller chose, and never another machine's.
//!
//! One node that is lost is believed to be lost. Many at once are more likely a registry that was away, a partition or a
//! mistake, and are held: their endpoints stay until checks fail, and nothing of theirs is collected.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rpds::HashTrieMapSync;

use crate::catalog::Change;
use crate::name::Name;
use crate::time::Timestamp;

/// Fewer nodes than this can't tell a mass expiry from bad luck.
const MIN_NODES: usize = 3;

/// What is made of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeState {
    /// Its word counts.
    Alive,
    /// It went down on purpose and said so: believed, and checked, for [`MembershipOptions::restart_grace`].
    Restarting,
    /// Lost together with many others: believed, and checked, until the hold ends.
    Held,
    /// Lost: its endpoints are suspect, checked at once, and collected in the end.
    Orphaned,
}

impl NodeState {
    /// All there are, for metrics that show zeros too.
    pub const ALL: [NodeState; 4] = [
        NodeState::Alive,
        NodeState::Restarting,
        NodeState::Held,
        NodeState::Orphaned,
    ];

    /// As in tables and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Alive => "alive",
            NodeState::Restarting => "restarting",
            NodeState::Held => "held",
            NodeState::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A node's state, with when this node saw it begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What is made of it.
    pub state: NodeState,
    /// Alive, restarting: since then. Held, orphaned: lost since then. For people; nothing is timed by it.
    pub since: Timestamp,
}

/// Many nodes were lost at once, and are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MassExpiry {
    /// Those that are still missing, by name.
    pub missing: Vec<Name>,
    /// How many were alive before.
    pub of: usize,
    /// The time within which they went.
    pub within: Duration,
    /// When it was noticed.
    pub since: Timestamp,
}

impl fmt::Display for MassExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.missing.iter().map(Name::as_str).collect();
        write!(
            f,
            "mass expiry held: {} of {} nodes lost within {:?} ({}); their endpoints stay until their checks fail",
            names.len(),
            self.of,
            self.within,
            names.join(", ")
        )
    }
}

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct MembershipOptions {
    /// Losses within this time of each other count as one: the lease's time to live.
    pub window: Duration,
    /// How long a node that said that it restarts is believed.
    pub restart_grace: Duration,
    /// How long a mass expiry is held at most.
    pub hold: Duration,
}

impl Default for MembershipOptions {
    /// 10 s, 60 s and 10 min.
    fn default() -> Self {
        MembershipOptions {
            window: Duration::from_secs(10),
            restart_grace: Duration::from_secs(60),
            hold: Duration::from_secs(600),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    began: Duration,
    since: Timestamp,
    /// How many were alive before.
    base: usize,
}

/// All nodes that were ever seen, and what is made of each.
#[derive(Clone, Debug)]
pub struct Membership {
    own: Name,
    options: MembershipOptions,
    members: HashTrieMapSync<Name, Member>,
    /// When nodes that restart began to.
    restarting: Vec<(Duration, Name)>,
    /// The nodes lost within the window, with when, unless they came back.
    losses: Vec<(Duration, Name)>,
    /// Alive when the catalog was saved, and not heard of since.
    unconfirmed: BTreeSet<Name>,
    hold: Option<Hold>,
    guard: Option<Arc<MassExpiry>>,
    /// What changed since it was asked for last.
    changed: Vec<Name>,
}

impl Membership {
    /// Only `own` is known, and always alive: whoever reads this lives.
    pub fn new(own: Name, options: MembershipOptions, clock: Timestamp) -> Self {
        let mut members = HashTrieMapSync::default();
        members.insert_mut(
            own.clone(),
            Member {
                state: NodeState::Alive,
                since: clock,
            },
        );
        Membership {
            own,
            options,
            members,
            restarting: Vec::new(),
            losses: Vec::new(),
            unconfirmed: BTreeSet::new(),
            hold: None,
            guard: None,
            changed: Vec::new(),
        }
    }

    /// The same with other bounds.
    pub fn set_options(&mut self, options: MembershipOptions) {
        self.options = options;
    }

    /// All nodes. Cloning is O(1).
    pub fn members(&self) -> &HashTrieMapSync<Name, Member> {
        &self.members
    }

    /// The mass expiry that is held now.
    pub fn guard(&self) -> Option<&Arc<MassExpiry>> {
        self.guard.as_ref()
    }

    /// The nodes whose state changed since this was called last.
    pub fn take_changed(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.changed)
    }

    /// Takes over a catalog that was saved before this node was away. When its nodes went meanwhile nobody here can tell:
    /// those that the registry lacks are orphaned, and no loss of now, until [`Membership::confirm`].
    pub fn restore(&mut self, changes: &[Change], now: Duration, clock: Timestamp) {
        self.observe(changes, now, clock);
        let there = changes.iter().filter_map(|change| match change {
            Change::Liveness(node, Some(_)) => Some(node.clone()),
            _ => None,
        });
        self.unconfirmed.extend(there);
    }

    /// The registry was seen whole: who is alive now was seen to be.
    pub fn confirm(&mut self) {
        self.unconfirmed.clear();
    }

    /// Takes over what changed in the catalog. Liveness keys that went in one call, or within the window, went together.
    pub fn observe(&mut self, changes: &[Change], now: Duration, clock: Timestamp) {
        let window = self.options.window;
        self.losses
            .retain(|(at, _)| now.saturating_sub(*at) <= window);
        for change in changes {
            match change {
                Change::Liveness(node, Some(liveness)) => {
                    self.seen(node, liveness.restarting_until.is_some(), now, clock);
                }
                Change::Liveness(node, None) => self.lose(node, now, clock),
                // Known, and never seen alive: lost since now, as far as this node can tell. It stays known when only
                // its record is deleted, since its slices may not be.
                Change::Node(node, Some(_)) | Change::Slice(_, node, Some(_))
                    if !self.members.contains_key(node) =>
                {
                    self.set(node, NodeState::Orphaned, clock);
                }
                _ => {}
            }
        }
        self.judge(now, clock);
    }

    /// Of a node that is gone nothing is left in the registry: it was deleted. One that is believed stays.
    pub fn forget(&mut self, node: &Name, now: Duration, clock: Timestamp) {
        if !matches!(
            self.state(node),
            Some(NodeState::Orphaned | NodeState::Held)
        ) {
            return;
        }
        self.losses.retain(|(_, n)| n != node);
        self.members.remove_mut(node);
        self.changed.push(node.clone());
        self.judge(now, clock);
    }

    /// Lets time pass. Call it only while the registry is followed: a node that is not seen for want of sight is not gone.
    pub fn tick(&mut self, now: Duration, clock: Timestamp) {
        let grace = self.options.restart_grace;
        let over: Vec<Name> = self
            .restarting
            .iter()
            .filter(|(at, _)| now.saturating_sub(*at) >= grace)
            .map(|(_, node)| node.clone())
            .collect();
        for node in &over {
            self.lose(node, now, clock);
        }
        if self
            .hold
            .is_some_and(|hold| now.saturating_sub(hold.began) >= self.options.hold)
        {
            self.release();
        }
        self.judge(now, clock);
    }

    /// When [`Membership::tick`] has something to do.
    pub fn next_at(&self) -> Option<Duration> {
        let restarted = self
            .restarting
            .iter()
            .map(|(at, _)| *at + self.options.restart_grace);
        let released = self.hold.map(|hold| hold.began + self.options.hold);
        restarted.chain(released).min()
    }

    fn state(&self, node: &Name) -> Option<NodeState> {
        self.members.get(node).map(|member| member.state)
    }

    fn set(&mut self, node: &Name, state: NodeState, since: Timestamp) {
        if self.state(node) != Some(state) {
            self.members
                .insert_mut(node.clone(), Member { state, since });
            self.changed.push(node.clone());
        }
    }

    fn seen(&mut self, node: &Name, restarting: bool, now: Duration, clock: Timestamp) {
        if *node == self.own {
            return;
        }
        self.losses.retain(|(_, n)| n != node);
        self.unconfirmed.remove(node);
        if restarting {
            if self.state(node) != Some(NodeState::Restarting) {
                self.restarting.push((now, node.clone()));
            }
            self.set(node, NodeState::Restarting, clock);
        } else {
            self.restarting.retain(|(_, n)| n != node);
            self.set(node, NodeState::Alive, clock);
        }
    }

    fn lose(&mut self, node: &Name, now: Duration, clock: Timestamp) {
        self.restarting.retain(|(_, n)| n != node);
        let was = self.state(node);
        if *node == self.own || !matches!(was, Some(NodeState::Alive | NodeState::Restarting)) {
            return;
        }
        if !self.unconfirmed.remove(node) {
            self.losses.push((now, node.clone()));
        }
        self.set(node, NodeState::Orphaned, clock);
    }

    fn count(&self, wanted: impl Fn(NodeState) -> bool) -> usize {
        let states = self.members.values().map(|member| member.state);
        states.filter(|state| wanted(*state)).count()
    }

    /// Whether the losses are too many at once, or no longer.
    fn judge(&mut self, now: Duration, clock: Timestamp) {
        if self.hold.is_none() {
            let lost = self.losses.len();
            if lost == 0 {
                return;
            }
            let there = |state| matches!(state, NodeState::Alive | NodeState::Restarting);
            let base = self.count(there) + lost;
            if base < MIN_NODES || lost * 3 <= base {
                return;
            }
            self.hold = Some(Hold {
                began: now,
                since: clock,
                base,
            });
        }
        let Some(hold) = self.hold else { return };
        for (_, node) in std::mem::take(&mut self.losses) {
            if let Some(Member { since, .. }) = self.members.get(&node).copied() {
                self.set(&node, NodeState::Held, since);
            }
        }
        let mut missing: Vec<Name> = self
            .members
            .iter()
            .filter(|(_, member)| member.state == NodeState::Held)
            .map(|(node, _)| node.clone())
            .collect();
        if missing.len() * 3 < hold.base {
            self.release();
            return;
        }
        missing.sort();
        let guard = MassExpiry {
            missing,
            of: hold.base,
            within: self.options.window,
            since: hold.since,
        };
        if self.guard.as_deref() != Some(&guard) {
            self.guard = Some(Arc::new(guard));
        }
    }

    /// What is still missing is lost as any node is.
    fn release(&mut self) {
        self.hold = None;
        self.guard = None;
        let held: Vec<(Name, Timestamp)> = self
            .members
            .iter()
            .filter(|(_, member)| member.state == NodeState::Held)
            .map(|(node, member)| (node.clone(), member.since))
            .collect();
        for (node, since) in held {
            self.set(&node, NodeState::Orphaned, since);
        }
    }
}

#[cfg(test)]
mod tests;
