//! Bytes that the kernel moves from one socket to another without showing them to us (`splice(2)`), through a pipe.
//!
//! It costs a third of copying for bulk, and more for little: only once a flow is known to be long.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::options::limits;

/// The empty pipes of a worker, kept for the next transfer.
#[derive(Debug, Default)]
pub(crate) struct Pipes(RefCell<Vec<Pipe>>);

#[derive(Debug)]
struct Pipe {
    read: File,
    write: File,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let mut fds: [RawFd; 2] = [-1; 2];
        // SAFETY: `fds` has room for the two descriptors that are written to it.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just opened and belong to nobody else.
        let (read, write) = unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) };
        Ok(Pipe { read, write })
    }
}

/// A transfer.
#[derive(Debug)]
pub(crate) struct Splice {
    pipes: Rc<Pipes>,
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    inside: usize,
}

/// Why a transfer ended.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The receiver takes no more; else the sender sends no more.
    pub(crate) of_receiver: bool,
    /// None: it closed.
    pub(crate) error: Option<io::Error>,
}

impl Splice {
    /// `None` when there are no descriptors for a pipe: bytes are copied then.
    pub(crate) fn new(pipes: &Rc<Pipes>) -> Option<Self> {
        let kept = pipes.0.borrow_mut().pop();
        let pipe = match kept {
            Some(pipe) => pipe,
            None => Pipe::new().ok()?,
        };
        Some(Splice {
            pipes: Rc::clone(pipes),
            pipe: Some(pipe),
            inside: 0,
        })
    }

    /// Moves bytes, at most `left`; ready with how many reached the receiver, at least one.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        left: u64,
    ) -> Poll<Result<u64, Failed>> {
        let Some(pipe) = &self.pipe else {
            return Poll::Ready(Ok(0));
        };
        let (into, out_of) = (pipe.write.as_raw_fd(), pipe.read.as_raw_fd());
        let mut moved = 0;
        // After some rounds others get their turn.
        for _ in 0..limits::SPLICE_ROUNDS {
            if self.inside == 0 {
                let wanted = usize::try_from(left - moved).unwrap_or(usize::MAX);
                if wanted == 0 {
                    return Poll::Ready(Ok(moved));
                }
                // Into an empty pipe: «would block» can only mean that nothing has come.
                let n = match ready(
                    from,
                    Interest::READABLE,
                    |cx| from.poll_read_ready(cx),
                    cx,
                    || splice(from.as_raw_fd(), into, wanted.min(limits::SPLICE_BYTES)),
                ) {
                    Poll::Pending if moved > 0 => return Poll::Ready(Ok(moved)),
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) => return failed(false, None),
                    Poll::Ready(Ok(n)) => n,
                    Poll::Ready(Err(error)) => return failed(false, Some(error)),
                };
                self.inside = n;
            }
            let n = match ready(
                to,
                Interest::WRITABLE,
                |cx| to.poll_write_ready(cx),
                cx,
                || splice(out_of, to.as_raw_fd(), self.inside),
            ) {
                Poll::Pending if moved > 0 => return Poll::Ready(Ok(moved)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return failed(true, Some(error)),
            };
            self.inside -= n;
            moved += n as u64;
        }
        if moved == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(moved))
    }
}

impl Drop for Splice {
    /// A pipe with bytes in it would hand them to somebody else.
    fn drop(&mut self) {
        let mut pipes = self.pipes.0.borrow_mut();
        if self.inside == 0
            && pipes.len() < limits::PIPES
            && let Some(pipe) = self.pipe.take()
        {
            pipes.push(pipe);
        }
    }
}

fn failed<T>(of_receiver: bool, error: Option<io::Error>) -> Poll<Result<T, Failed>> {
    Poll::Ready(Err(Failed { of_receiver, error }))
}

/// Tries until the socket is ready for it or it is clear that it isn't.
fn ready(
    stream: &TcpStream,
    interest: Interest,
    poll_ready: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    cx: &mut Context<'_>,
    mut act: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        match poll_ready(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {}
        }
        match stream.try_io(interest, &mut act) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Poll::Ready(result),
        }
    }
}

fn splice(from: RawFd, to: RawFd, bytes: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let nowhere = std::ptr::null_mut();
    // SAFETY: both descriptors are open while their owners are borrowed by the caller; no offsets are given.
    let n = unsafe { libc::splice(from, nowhere, to, nowhere, bytes, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
