//! Accepting connections and handing each to what its port speaks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use model::Protocol;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::redirect::original_dst;
use crate::target::{Binding, Port, View};
use crate::worker::Worker;
use crate::{http, l4};

/// After an error that the next attempt would meet again (no descriptors left), from the first to the longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Where the connections of a listener go.
#[derive(Debug)]
pub(crate) enum Destination {
    Port(Binding),
    /// Redirected by nftables: the socket knows where it was meant to go.
    Original,
}

/// A listener of one worker.
#[derive(Debug)]
pub(crate) struct Listening {
    destination: RefCell<Destination>,
    closing: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    closed: Notify,
}

impl Listening {
    /// Accepts from now on.
    pub(crate) fn start(
        worker: &Rc<Worker>,
        listener: std::net::TcpListener,
        destination: Destination,
    ) -> io::Result<Rc<Self>> {
        let listener = TcpListener::from_std(listener)?;
        let listening = Rc::new(Listening {
            destination: RefCell::new(destination),
            closing: Cell::new(false),
            waker: RefCell::new(None),
            closed: Notify::new(),
        });
        tokio::task::spawn_local(Rc::clone(&listening).run(Rc::clone(worker), listener));
        Ok(listening)
    }

    /// Leads the connections that come elsewhere.
    pub(crate) fn retarget(&self, destination: Destination) {
        self.destination.replace(destination);
    }

    /// Ends the listener once what waits in its accept queue is taken up.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Returns when the socket is closed after [`Listening::close`].
    pub(crate) async fn closed(&self) {
        self.closed.notified().await;
    }

    async fn run(self: Rc<Self>, worker: Rc<Worker>, listener: TcpListener) {
        let mut pause = PAUSE.0;
        loop {
            let accepted = poll_fn(|cx| {
                if self.closing.get() {
                    return Poll::Ready(None);
                }
                let mut waker = self.waker.borrow_mut();
                if !waker
                    .as_ref()
                    .is_some_and(|parked| parked.will_wake(cx.waker()))
                {
                    *waker = Some(cx.waker().clone());
                }
                drop(waker);
                listener.poll_accept(cx).map(Some)
            });
            match accepted.await {
                None => break,
                Some(Ok((stream, peer))) => {
                    pause = PAUSE.0;
                    self.accepted(&worker, stream, peer);
                }
                Some(Err(error)) if is_of_one_connection(&error) => {}
                Some(Err(error)) => {
                    worker.stats.accept_errors.add(1);
                    if pause == PAUSE.0 {
                        tracing::warn!(%error, "connections can't be accepted");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
        self.take_up_queue(&worker, listener);
        self.closed.notify_one();
    }

    /// Closing a listener resets what waits in its queue, so the queue is emptied first.
    fn take_up_queue(&self, worker: &Rc<Worker>, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else {
            return;
        };
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    let stream = stream
                        .set_nonblocking(true)
                        .and_then(|()| TcpStream::from_std(stream));
                    match stream {
                        Ok(stream) => self.accepted(worker, stream, peer),
                        Err(_) => worker.stats.accept_errors.add(1),
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn accepted(&self, worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
        let Some((port, view)) = self.resolve(worker, &stream) else {
            return reset(&stream);
        };
        match view.protocol {
            Protocol::Tcp => l4::serve(worker, stream, port, view),
            Protocol::Http => http::serve(worker, stream, peer, &port, &view),
            Protocol::Unsupported => reset(&stream),
        }
    }

    fn resolve(&self, worker: &Worker, stream: &TcpStream) -> Option<(Rc<Port>, View)> {
        if let Destination::Port(binding) = &*self.destination.borrow() {
            let found = binding.resolve(worker);
            if found.is_none() {
                tracing::debug!(service = %binding.key(), "connection to a port that is gone");
            }
            return found;
        }
        let port = match original_dst(stream.as_fd()) {
            Ok(address) => {
                let port = worker.port_at(address);
                if port.is_none() {
                    tracing::debug!(%address, "connection to an address that no service has");
                }
                port
            }
            Err(error) => {
                tracing::debug!(%error, "connection without an original destination");
                None
            }
        };
        if port.is_none() {
            worker.stats.unknown_destinations.add(1);
        }
        let port = port?;
        let view = port.view(worker)?;
        Some((port, view))
    }
}

/// Errors that end one connection in the queue and say nothing about the next (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    let passing = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::ENETDOWN,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::EPERM,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| passing.contains(&errno))
}

/// Makes the close of a connection, which is to follow, an RST: its client learns at once, and unlike FIN can't take it
/// for an empty answer.
pub(crate) fn reset(stream: &TcpStream) {
    // Without it the close is a FIN: less clear to the client, but a close all the same.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
