//! The end of a client's connection.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;

use super::Side;
use crate::options::limits;
use crate::worker::Worker;

/// Closes a connection on which nothing is under way. Over TLS its client is told so: an end without that may be an
/// attacker's (RFC 8446, 6.1).
pub(super) async fn end(mut side: Side) {
    if !side.stream().is_clear() {
        let told = poll_fn(|cx| side.poll_shutdown(cx));
        // A client that has left already need not hear it.
        drop(tokio::time::timeout(limits::LINGER, told).await);
    }
}

/// Closes so that the last answer arrives: closing a socket with unread bytes resets it, and the reset may overtake the
/// answer (RFC 9112, 9.6). What still comes is read and dropped, for a while.
pub(super) async fn linger(worker: &Worker, mut side: Side) {
    let mut left = limits::LINGER_BYTES;
    let drained = poll_fn(|cx| {
        match side.poll_shutdown(cx) {
            Poll::Ready(Ok(())) => {}
            ended => return ended,
        }
        let mut scratch = worker.scratch.borrow_mut();
        loop {
            match side.poll_read(cx, &mut scratch) {
                Poll::Ready(Ok(n)) if n > 0 && n < left => left -= n,
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    // Over time is over: whoever has not read the answer by now does not want it.
    drop(tokio::time::timeout(limits::LINGER, drained).await);
}

/// Closes with RST: the client learns that what it got is not whole.
pub(super) fn reset(side: Side) {
    // Without it the close is a FIN: less clear to the client, but a close all the same.
    let _ = SockRef::from(side.stream().tcp()).set_linger(Some(Duration::ZERO));
}
