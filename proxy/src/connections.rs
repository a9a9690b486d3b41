//! The client connections of a worker: told to close when it drains, and closed when nothing moves on them.
//!
//! One timer per worker looks at all of them once a second: 30,000 idle connections cost a millisecond then, and a
//! request costs no timer at all.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::options::limits;
use crate::worker::Worker;

/// What moved on a connection: written by its socket's wrapper, which must be `Send`, on the worker's own thread.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    read: AtomicU32,
    written: AtomicU32,
}

impl Activity {
    pub(crate) fn read(&self) {
        self.read
            .store(self.reads().wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn wrote(&self) {
        let written = self.written.load(Ordering::Relaxed);
        self.written
            .store(written.wrapping_add(1), Ordering::Relaxed);
    }

    fn reads(&self) -> u32 {
        self.read.load(Ordering::Relaxed)
    }

    fn moves(&self) -> u32 {
        self.reads()
            .wrapping_add(self.written.load(Ordering::Relaxed))
    }
}

/// Whether a connection is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closing {
    /// It isn't.
    #[default]
    No,
    /// With the answer to its next request; an HTTP/2 connection, which can say so by itself, at once.
    AfterNext,
    /// As soon as nothing is in flight on it.
    Now,
}

/// What a connection is waiting for, which decides how long it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The end of a TLS handshake, within [`limits::HEAD_TIMEOUT`].
    Handshake,
    /// Bytes in either direction.
    Relay,
    /// Requests one after the other: a head must be whole within [`limits::HEAD_TIMEOUT`].
    Http1,
    /// Requests among other frames: only the first must come within [`limits::HEAD_TIMEOUT`].
    Http2,
}

/// One client connection.
#[derive(Debug)]
pub(crate) struct Slot {
    kind: Cell<Kind>,
    pub(crate) activity: Arc<Activity>,
    busy: Cell<u32>,
    requests: Cell<u32>,
    /// A request's body is to come.
    uploading: Cell<bool>,
    /// Reads when it last came to rest: one more is of the next request.
    rest: Cell<u32>,
    idle: Cell<Duration>,
    closing: Cell<Closing>,
    waker: RefCell<Option<Waker>>,
    abort: RefCell<Option<AbortHandle>>,
    seen: Cell<Seen>,
}

/// What the last look found.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    moves: u32,
    requests: u32,
    /// Seconds without a move.
    quiet: u64,
    /// Seconds with an unfinished head.
    head: u64,
    /// Seconds since it was told to close.
    closing: u64,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Close,
    Abort,
}

impl Slot {
    fn new(kind: Kind, idle: Duration, closing: Closing) -> Self {
        Slot {
            kind: Cell::new(kind),
            activity: Arc::default(),
            busy: Cell::new(0),
            requests: Cell::new(0),
            uploading: Cell::new(false),
            rest: Cell::new(0),
            idle: Cell::new(idle),
            closing: Cell::new(closing),
            waker: RefCell::new(None),
            abort: RefCell::new(None),
            seen: Cell::default(),
        }
    }

    /// Notes what follows the handshake, or which version of HTTP it turned out to be.
    pub(crate) fn set_kind(&self, kind: Kind) {
        self.kind.set(kind);
        self.rest.set(self.activity.reads());
        let seen = self.seen.get();
        self.seen.set(Seen { head: 0, ..seen });
    }

    /// Requests begun so far.
    pub(crate) fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Whether there are requests whose response has not ended.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.get() > 0
    }

    /// A request begins; [`Slot::end`] follows.
    pub(crate) fn begin(&self) {
        self.busy.set(self.busy.get() + 1);
        self.requests.set(self.requests.get().wrapping_add(1));
    }

    /// A response has ended, or its request was given up.
    pub(crate) fn end(&self) {
        self.busy.set(self.busy.get().saturating_sub(1));
        self.rest.set(self.activity.reads());
    }

    /// Notes whether a request's body is to come, for which there is a time-out of its own.
    pub(crate) fn set_uploading(&self, uploading: bool) {
        self.uploading.set(uploading);
    }

    /// Takes over the idle time-out of the newest snapshot.
    pub(crate) fn set_idle(&self, idle: Duration) {
        self.idle.set(idle);
    }

    pub(crate) fn closing(&self) -> Closing {
        self.closing.get()
    }

    /// Notes whom to wake when the connection is told to close.
    pub(crate) fn park(&self, waker: &Waker) {
        let mut parked = self.waker.borrow_mut();
        if !parked
            .as_ref()
            .is_some_and(|parked| parked.will_wake(waker))
        {
            *parked = Some(waker.clone());
        }
    }

    fn close(&self, closing: Closing) {
        if closing > self.closing.get() {
            self.closing.set(closing);
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    fn abort(&self) {
        if let Some(task) = &*self.abort.borrow() {
            task.abort();
        }
    }

    /// Looks at the connection; called once a second.
    fn look(&self) -> Verdict {
        let mut seen = self.seen.get();
        let (moves, requests, busy) = (self.activity.moves(), self.requests.get(), self.is_busy());
        let mid_head = match self.kind.get() {
            Kind::Handshake => true,
            Kind::Relay => false,
            Kind::Http1 => !busy && self.activity.reads() != self.rest.get(),
            Kind::Http2 => requests == 0,
        };
        let same_head = mid_head && requests == seen.requests;
        seen.head = if same_head { seen.head + 1 } else { 0 };
        seen.quiet = if moves == seen.moves {
            seen.quiet + 1
        } else {
            0
        };
        seen.closing = if self.closing.get() == Closing::Now {
            seen.closing + 1
        } else {
            0
        };
        (seen.moves, seen.requests) = (moves, requests);
        self.seen.set(seen);
        let over = |seconds: u64, limit: Duration| seconds > limit.as_secs();
        if over(seen.head, limits::HEAD_TIMEOUT) {
            return Verdict::Abort;
        }
        if self.uploading.get() && over(seen.quiet, limits::BODY_TIMEOUT) {
            return Verdict::Abort;
        }
        let idle = over(seen.quiet, self.idle.get());
        let kind = self.kind.get();
        match kind {
            // It was told to close and had time to: its peer doesn't read.
            _ if !busy && kind != Kind::Relay && over(seen.closing, CLOSING) => Verdict::Abort,
            Kind::Http1 | Kind::Http2 if !busy && idle => Verdict::Close,
            _ if idle => Verdict::Abort,
            _ => Verdict::Keep,
        }
    }
}

/// How long a connection without a request may take to close once it was told to.
const CLOSING: Duration = Duration::from_secs(5);

/// All client connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    slots: RefCell<Slab<Rc<Slot>>>,
    closing: Cell<Closing>,
    none_left: Notify,
}

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// Tells all connections, and those that come, to close.
    pub(crate) fn close(&self, closing: Closing) {
        self.closing.set(closing.max(self.closing.get()));
        for (_, slot) in &*self.slots.borrow() {
            slot.close(closing);
        }
    }

    /// Cuts all connections off, and says how many there were.
    pub(crate) fn abort(&self) -> usize {
        let slots = self.slots.borrow();
        slots.iter().for_each(|(_, slot)| slot.abort());
        slots.len()
    }

    /// Returns when there is none any more.
    pub(crate) async fn gone(&self) {
        while self.len() > 0 {
            self.none_left.notified().await;
        }
    }

    /// Closes those on which nothing moved for too long; to be called once a second.
    pub(crate) fn sweep(&self) {
        for (_, slot) in &*self.slots.borrow() {
            match slot.look() {
                Verdict::Keep => {}
                Verdict::Close => slot.close(Closing::Now),
                Verdict::Abort => slot.abort(),
            }
        }
    }
}

/// Takes the slot away with its connection, however that ends.
struct Registration {
    worker: Rc<Worker>,
    index: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let connections = &self.worker.connections;
        let mut slots = connections.slots.borrow_mut();
        slots.remove(self.index);
        if slots.is_empty() {
            connections.none_left.notify_waiters();
        }
    }
}

/// Runs a client connection as a task of its own.
pub(crate) fn spawn<F>(
    worker: &Rc<Worker>,
    kind: Kind,
    idle: Duration,
    serve: impl FnOnce(Rc<Slot>) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let connections = &worker.connections;
    let slot = Rc::new(Slot::new(kind, idle, connections.closing.get()));
    let index = connections.slots.borrow_mut().insert(Rc::clone(&slot));
    let registration = Registration {
        worker: Rc::clone(worker),
        index,
    };
    let served = serve(Rc::clone(&slot));
    let task = tokio::task::spawn_local(async move {
        let _registration = registration;
        served.await;
    });
    *slot.abort.borrow_mut() = Some(task.abort_handle());
}
