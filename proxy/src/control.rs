//! Which listeners there are to be: follows the snapshot, opens and closes, and tries again what failed.

mod claims;
mod redirected;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::snapshot::ServiceView;
use model::{Name, ServiceKey, Snapshot};

use crate::error::ProxyError;
use crate::metrics::RepairStats;
use crate::options::VipMode;
use crate::sockets::{self, Inherited, Listen, SocketError};
use crate::worker::{Command, LeadsTo, WorkerHandle};
use claims::{Claim, claims_of};
use redirected::Redirected;

/// From the first to the longest pause before a listener is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// After this the workers have emptied a closed listener's accept queue, and its port is free for others.
const CLOSED: Duration = Duration::from_secs(2);

/// How a listener came to its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerKind {
    /// A virtual IP of the service.
    Vip,
    /// A node port.
    NodePort,
}

/// A listener that a service asks for, and whether it is there.
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    /// Whose listener.
    pub service: ServiceKey,
    /// The name of the service's port.
    pub port: Name,
    /// Virtual IP or node port.
    pub kind: ListenerKind,
    /// Where it listens, or is to.
    pub address: SocketAddr,
    /// Why it is not there, and is being tried again.
    pub error: Option<String>,
}

/// A service's port.
type Owner = (ServiceKey, Name);

#[derive(Debug)]
struct Claimed {
    /// By which the next reconciliation sees that nothing changed.
    view: Arc<ServiceView>,
    claims: Vec<Claim>,
}

#[derive(Debug)]
struct Waiting {
    owner: Owner,
    error: String,
    next: Instant,
    pause: Duration,
}

/// The listeners, as the control side keeps them. Data workers never see it.
pub(crate) struct Listeners {
    pub(crate) workers: Vec<WorkerHandle>,
    mode: Mode,
    node_port_addresses: Vec<IpAddr>,
    inherited: Inherited,
    claimed: HashMap<ServiceKey, Claimed>,
    open: HashMap<SocketAddr, Owner>,
    /// Per port number, how many listeners are open: a port that is not ours is probed for other processes before it is
    /// shared.
    ports: HashMap<u16, usize>,
    /// Port numbers that were left, and when.
    left: Vec<(u16, Instant)>,
    waiting: BTreeMap<SocketAddr, Vec<Waiting>>,
    closed: bool,
}

enum Mode {
    None,
    Direct,
    Redirected(Box<Redirected>),
}

impl Listeners {
    /// Opens what does not depend on services; the redirect leads to those of `snapshot` from its first moment.
    pub(crate) fn new(
        workers: Vec<WorkerHandle>,
        vips: VipMode,
        node_port_addresses: Vec<IpAddr>,
        mut inherited: Inherited,
        snapshot: &Snapshot,
        repairs: Arc<RepairStats>,
    ) -> Result<Self, ProxyError> {
        let mode = match vips {
            VipMode::None => Mode::None,
            VipMode::Direct => Mode::Direct,
            VipMode::Redirected(config) => Mode::Redirected(Box::new(Redirected::start(
                &workers,
                config,
                &mut inherited,
                vips_of(snapshot),
                repairs,
            )?)),
        };
        Ok(Listeners {
            workers,
            mode,
            node_port_addresses,
            inherited,
            claimed: HashMap::new(),
            open: HashMap::new(),
            ports: HashMap::new(),
            left: Vec::new(),
            waiting: BTreeMap::new(),
            closed: false,
        })
    }

    /// Makes the listeners what the snapshot asks for. `changed`: only these services may differ from the last time.
    pub(crate) fn reconcile(&mut self, snapshot: &Snapshot, changed: Option<&[ServiceKey]>) {
        if self.closed {
            return;
        }
        let mut released: Vec<(SocketAddr, Owner)> = Vec::new();
        let mut added: Vec<(Claim, ServiceKey)> = Vec::new();
        for key in self.candidates(snapshot, changed) {
            self.diff(snapshot, &key, &mut released, &mut added);
        }
        let released_vips = self.release(&released);
        let mut redirect_changed = released_vips;
        for (claim, key) in added {
            let owner = (key, claim.port);
            if claim.kind == ListenerKind::Vip
                && let Mode::Redirected(redirected) = &mut self.mode
            {
                redirected
                    .services
                    .insert((claim.address.ip(), claim.address.port()));
                redirect_changed = true;
                continue;
            }
            self.claim(claim.address, owner, &released);
        }
        for (address, owner) in released {
            if self.open.get(&address) == Some(&owner) {
                self.close_or_pass_on(address);
            }
        }
        if redirect_changed {
            self.set_redirected();
        }
    }

    /// The services to look at: those that changed, or all whose view is another one than last time.
    fn candidates(&self, snapshot: &Snapshot, changed: Option<&[ServiceKey]>) -> Vec<ServiceKey> {
        if let Some(changed) = changed {
            return changed.to_vec();
        }
        let known = |view: &Arc<ServiceView>| {
            self.claimed
                .get(&view.key)
                .is_some_and(|claimed| Arc::ptr_eq(&claimed.view, view))
        };
        let mut keys: Vec<_> = snapshot
            .services
            .values()
            .filter(|view| !known(view))
            .map(|view| view.key.clone())
            .collect();
        let gone = self
            .claimed
            .keys()
            .filter(|key| snapshot.service(key).is_none());
        keys.extend(gone.cloned());
        // Of two services that ask for the same port the first by name gets it, however they came.
        keys.sort();
        keys
    }

    fn diff(
        &mut self,
        snapshot: &Snapshot,
        key: &ServiceKey,
        released: &mut Vec<(SocketAddr, Owner)>,
        added: &mut Vec<(Claim, ServiceKey)>,
    ) {
        let view = snapshot.service(key);
        let claims = match (view, &self.mode) {
            (Some(view), Mode::None) => claims_of(view, false, &self.node_port_addresses),
            (Some(view), _) => claims_of(view, true, &self.node_port_addresses),
            (None, _) => Vec::new(),
        };
        let before = self
            .claimed
            .remove(key)
            .map(|c| c.claims)
            .unwrap_or_default();
        for claim in before.iter().filter(|claim| !claims.contains(claim)) {
            released.push((claim.address, (key.clone(), claim.port.clone())));
        }
        for claim in claims.iter().filter(|claim| !before.contains(claim)) {
            added.push((claim.clone(), key.clone()));
        }
        if let Some(view) = view {
            self.claimed.insert(
                key.clone(),
                Claimed {
                    view: Arc::clone(view),
                    claims,
                },
            );
        }
    }

    /// Forgets claims that were waiting or redirected; open listeners are left to whoever takes them over. Says
    /// whether the redirect's services changed.
    fn release(&mut self, released: &[(SocketAddr, Owner)]) -> bool {
        let mut changed = false;
        for (address, owner) in released {
            if let Mode::Redirected(redirected) = &mut self.mode {
                changed |= redirected.services.remove(&(address.ip(), address.port()));
            }
            if let Some(waiting) = self.waiting.get_mut(address) {
                waiting.retain(|waiting| waiting.owner != *owner);
                if waiting.is_empty() {
                    self.waiting.remove(address);
                }
            }
        }
        changed
    }

    fn claim(&mut self, address: SocketAddr, owner: Owner, released: &[(SocketAddr, Owner)]) {
        match self.open.get(&address) {
            Some(holder)
                if released
                    .iter()
                    .any(|(at, by)| *at == address && by == holder) =>
            {
                self.pass_on(address, owner);
            }
            Some(holder) => {
                let (service, port) = holder;
                let error = format!("{address} is taken by port {port} of service {service}");
                self.wait(address, owner, error);
            }
            None => {
                if let Err(error) = self.open(address, owner.clone()) {
                    let error = in_words(&error);
                    self.wait(address, owner, error);
                }
            }
        }
    }

    fn wait(&mut self, address: SocketAddr, owner: Owner, error: String) {
        let (service, port) = &owner;
        tracing::warn!(%service, %port, %address, error, "listener can't be opened, trying again");
        let next = Instant::now() + RETRY.0;
        let waiting = Waiting {
            owner,
            error,
            next,
            pause: RETRY.0,
        };
        self.waiting.entry(address).or_default().push(waiting);
    }

    fn open(&mut self, address: SocketAddr, owner: Owner) -> Result<(), SocketError> {
        let ours = self.ports.contains_key(&address.port())
            || self.left.iter().any(|(port, _)| *port == address.port());
        let wanted = Listen {
            address,
            count: self.workers.len(),
            dual_stack: true,
            alone: !ours,
        };
        let listeners = sockets::listen(wanted, &mut self.inherited)?;
        for (at, listener) in listeners.into_iter().enumerate() {
            let leads_to = LeadsTo::Port(owner.0.clone(), owner.1.clone());
            let worker = &self.workers[at % self.workers.len()];
            worker.send(Command::Open {
                address,
                listener,
                leads_to,
            });
        }
        tracing::debug!(service = %owner.0, port = %owner.1, %address, "listening");
        *self.ports.entry(address.port()).or_default() += 1;
        self.open.insert(address, owner);
        Ok(())
    }

    fn pass_on(&mut self, address: SocketAddr, owner: Owner) {
        for worker in &self.workers {
            let leads_to = LeadsTo::Port(owner.0.clone(), owner.1.clone());
            worker.send(Command::Retarget { address, leads_to });
        }
        self.open.insert(address, owner);
    }

    fn close_or_pass_on(&mut self, address: SocketAddr) {
        if let Some(mut waiting) = self.waiting.remove(&address) {
            let first = waiting.remove(0);
            if !waiting.is_empty() {
                self.waiting.insert(address, waiting);
            }
            self.pass_on(address, first.owner);
            return;
        }
        for worker in &self.workers {
            worker.send(Command::Close { address });
        }
        self.open.remove(&address);
        if let Some(count) = self.ports.get_mut(&address.port()) {
            *count -= 1;
            if *count == 0 {
                self.ports.remove(&address.port());
                self.left.push((address.port(), Instant::now()));
            }
        }
    }

    pub(crate) fn exceptions(&self) -> Vec<SocketAddr> {
        match &self.mode {
            Mode::Redirected(redirected) => redirected.exceptions().to_vec(),
            Mode::None | Mode::Direct => Vec::new(),
        }
    }

    pub(crate) fn move_exceptions(
        &mut self,
        moved: &[(SocketAddr, u16)],
    ) -> Result<(), ProxyError> {
        match &mut self.mode {
            Mode::Redirected(redirected) => redirected.move_exceptions(moved),
            Mode::None | Mode::Direct => Ok(()),
        }
    }

    fn set_redirected(&mut self) {
        if let Mode::Redirected(redirected) = &mut self.mode {
            redirected.set();
        }
    }

    /// Tries again what is due, and looks after the redirect.
    pub(crate) fn tend(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        self.left
            .retain(|(_, since)| now.saturating_duration_since(*since) < CLOSED);
        let due: Vec<SocketAddr> = self
            .waiting
            .iter()
            .filter(|(address, all)| !self.open.contains_key(*address) && all[0].next <= now)
            .map(|(address, _)| *address)
            .collect();
        for address in due {
            let Some(mut all) = self.waiting.remove(&address) else {
                continue;
            };
            let mut first = all.remove(0);
            match self.open(address, first.owner.clone()) {
                Ok(()) => {
                    tracing::info!(service = %first.owner.0, %address, "listening at last");
                }
                Err(error) => {
                    first.error = in_words(&error);
                    first.pause = (first.pause * 2).min(RETRY.1);
                    first.next = now + first.pause;
                    all.insert(0, first);
                }
            }
            if !all.is_empty() {
                self.waiting.insert(address, all);
            }
        }
        if let Mode::Redirected(redirected) = &mut self.mode {
            redirected.tend(now);
        }
    }

    /// Every listener that services ask for, by service, port and address.
    pub(crate) fn status(&self) -> Vec<ListenerStatus> {
        let mut all = Vec::new();
        for (key, claimed) in &self.claimed {
            for claim in &claimed.claims {
                all.push(ListenerStatus {
                    service: key.clone(),
                    port: claim.port.clone(),
                    kind: claim.kind,
                    address: claim.address,
                    error: self.error_of(key, claim),
                });
            }
        }
        all.sort_by(|a, b| {
            (&a.service, &a.port, a.kind, a.address).cmp(&(&b.service, &b.port, b.kind, b.address))
        });
        all
    }

    fn error_of(&self, key: &ServiceKey, claim: &Claim) -> Option<String> {
        if claim.kind == ListenerKind::Vip
            && let Mode::Redirected(redirected) = &self.mode
        {
            return redirected.error.clone();
        }
        let waiting = self.waiting.get(&claim.address)?;
        let mine = waiting
            .iter()
            .find(|w| w.owner.0 == *key && w.owner.1 == claim.port)?;
        match self.open.get(&claim.address) {
            Some((service, port)) => Some(format!(
                "{} is taken by port {port} of service {service}",
                claim.address
            )),
            None => Some(mine.error.clone()),
        }
    }

    /// Opens and closes nothing from now on: the workers drain.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.waiting.clear();
    }
}

/// Every `VIP:port` of the snapshot's services.
fn vips_of(snapshot: &Snapshot) -> BTreeSet<(IpAddr, u16)> {
    let services = snapshot.services.values();
    let claims = services.flat_map(|view| claims_of(view, true, &[]));
    claims
        .map(|claim| (claim.address.ip(), claim.address.port()))
        .collect()
}

/// An error with its causes, on one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
