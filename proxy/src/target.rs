//! From a service's port to what is known of it now, cheaply enough to ask for every request.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::snapshot::{EndpointView, PortView};
use model::{Name, Protocol, ServiceKey};

use crate::http::Pool;
use crate::metrics::{Counted, Endpoints, PortStats, RetryResult};
use crate::options::limits;
use crate::pick::hold_off;
use crate::tls;
use crate::worker::Worker;

/// A port's view, shared within one worker: cloning it touches no counter that another worker writes to.
#[derive(Clone, Debug)]
#[expect(
    clippy::redundant_allocation,
    reason = "the outer count is the worker's own"
)]
pub(crate) struct View(Rc<Arc<PortView>>);

impl View {
    fn new(view: &Arc<PortView>) -> Self {
        View(Rc::new(Arc::clone(view)))
    }

    fn is(&self, view: &Arc<PortView>) -> bool {
        Arc::ptr_eq(&self.0, view)
    }
}

impl Deref for View {
    type Target = PortView;

    fn deref(&self) -> &PortView {
        &self.0
    }
}

/// Work on an endpoint, counted until this is dropped: for a request, to the end of the response's body.
#[derive(Debug)]
pub(crate) struct InFlight {
    view: View,
    index: usize,
}

impl InFlight {
    pub(crate) fn new(view: &View, index: usize) -> Self {
        view.endpoints[index]
            .load
            .in_flight
            .fetch_add(1, Ordering::Relaxed);
        InFlight {
            view: view.clone(),
            index,
        }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.endpoint().load.seq
    }

    pub(crate) fn endpoint(&self) -> &EndpointView {
        &self.view.endpoints[self.index]
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let load = &self.endpoint().load;
        load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One port of one service in one worker, from its first use until its service is deleted: its view, its pool of
/// connections and what it counts. A service deleted and made again is another one.
#[derive(Debug)]
pub(crate) struct Port {
    key: ServiceKey,
    name: Name,
    /// [`model::snapshot::PortLoad::seq`].
    seq: u64,
    pub(crate) stats: Arc<PortStats>,
    pub(crate) pool: Pool,
    endpoints: Endpoints,
    /// Where its certificates and authorities are found.
    pub(crate) tls: Arc<tls::Table>,
    reserve: Cell<u32>,
    epoch: Cell<u64>,
    view: RefCell<Option<View>>,
}

impl Port {
    pub(crate) fn new(view: &Arc<PortView>, epoch: u64, tls: Arc<tls::Table>) -> Self {
        let http = view.protocol == Protocol::Http;
        Port {
            key: view.key.clone(),
            name: view.name.clone(),
            seq: view.load.seq,
            stats: Arc::new(PortStats::new(view.key.clone(), http)),
            pool: Pool::default(),
            endpoints: Endpoints::default(),
            tls,
            reserve: Cell::new(limits::RETRY_RESERVE),
            epoch: Cell::new(epoch),
            view: RefCell::new(Some(View::new(view))),
        }
    }

    pub(crate) fn key(&self) -> &ServiceKey {
        &self.key
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// The endpoint left packets unanswered: it is passed over for a while, and that is counted.
    pub(crate) fn hold_off(&self, endpoint: &EndpointView) {
        self.stats.hold_offs.add(1);
        hold_off::begin(endpoint);
    }

    /// The port as the newest snapshot has it; `None` when it was deleted. A comparison when nothing changed since.
    pub(crate) fn view(&self, worker: &Worker) -> Option<View> {
        if self.epoch.get() != worker.epoch() {
            self.refresh(worker);
        }
        self.view.borrow().clone()
    }

    fn refresh(&self, worker: &Worker) {
        worker.with_snapshot(|snapshot| {
            self.epoch.set(snapshot.epoch);
            let service = snapshot.service(&self.key);
            let port = service.and_then(|s| s.port(self.name.as_str()));
            let port = port.filter(|p| p.load.seq == self.seq);
            let mut view = self.view.borrow_mut();
            match (port, &*view) {
                (Some(port), Some(known)) if known.is(port) => {}
                (Some(port), _) => *view = Some(View::new(port)),
                (None, _) => *view = None,
            }
        });
    }

    /// What this worker counts of an endpoint; none when the endpoint is gone.
    pub(crate) fn counted(&self, endpoint: &EndpointView) -> Option<Counted> {
        let now = self.view.borrow();
        self.endpoints.get(endpoint, now.as_deref(), &self.stats)
    }

    /// Drops the idle connections to endpoints that take no new work any more, and what was counted of those that are gone.
    pub(crate) fn prune(&self, worker: &Worker) {
        let view = self.view(worker);
        match &view {
            Some(view) => self.pool.retain(|seq| is_eligible(view, seq)),
            None => self.pool.retain(|_| false),
        }
        self.endpoints.prune(view.as_deref(), &self.stats);
    }

    /// Whether the endpoint may still be given work, so that a connection to it is worth keeping.
    pub(crate) fn may_keep(&self, worker: &Worker, in_flight: &InFlight) -> bool {
        match self.view(worker) {
            Some(now) => {
                Rc::ptr_eq(&now.0, &in_flight.view.0) || is_eligible(&now, in_flight.seq())
            }
            None => false,
        }
    }

    /// Pays for retries: each request adds the budget's share of one.
    pub(crate) fn deposit(view: &PortView) {
        let tokens = &view.load.retry_tokens;
        // Once enough is saved, requests only read: no cache line moves between workers.
        if tokens.load(Ordering::Relaxed) < limits::RETRY_SAVINGS {
            tokens.fetch_add(u64::from(view.retry_budget_percent), Ordering::Relaxed);
        }
    }

    /// Takes a retry out of the budget; counted as [`RetryResult::OverBudget`] when there is none left.
    pub(crate) fn withdraw(&self, view: &PortView) -> bool {
        let take = |tokens: u64| tokens.checked_sub(100);
        let tokens = &view.load.retry_tokens;
        if tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
        {
            return true;
        }
        let reserve = self.reserve.get();
        if reserve > 0 && view.retry_budget_percent > 0 {
            self.reserve.set(reserve - 1);
            return true;
        }
        self.stats.retry(RetryResult::OverBudget);
        false
    }
}

fn is_eligible(view: &PortView, seq: u64) -> bool {
    view.eligible
        .iter()
        .any(|index| view.endpoints[*index as usize].load.seq == seq)
}

/// What a listener or a connection leads to: a service's port by name, whichever service has that name now.
#[derive(Debug)]
pub(crate) struct Binding {
    key: ServiceKey,
    name: Name,
    port: RefCell<Option<Rc<Port>>>,
}

impl Binding {
    pub(crate) fn new(key: ServiceKey, name: Name) -> Self {
        Binding {
            key,
            name,
            port: RefCell::new(None),
        }
    }

    pub(crate) fn of(port: &Rc<Port>) -> Self {
        Binding {
            key: port.key.clone(),
            name: port.name.clone(),
            port: RefCell::new(Some(Rc::clone(port))),
        }
    }

    pub(crate) fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// The port and its view; `None` when there is no such port now.
    pub(crate) fn resolve(&self, worker: &Worker) -> Option<(Rc<Port>, View)> {
        if let Some(port) = &*self.port.borrow()
            && let Some(view) = port.view(worker)
        {
            return Some((Rc::clone(port), view));
        }
        let port = worker.port(&self.key, &self.name);
        let view = port.as_ref().and_then(|port| port.view(worker));
        self.port.replace(port.clone());
        Some((port?, view?))
    }
}
