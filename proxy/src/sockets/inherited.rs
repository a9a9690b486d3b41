//! Listening sockets given by a parent process: systemd's `LISTEN_FDS` protocol (sd_listen_fds(3)).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};

use socket2::{SockRef, Socket, Type};

use super::SocketError;

/// The first descriptor that the protocol passes.
const FIRST: i32 = 3;

/// Listening sockets of a parent process, each used by the listener that wants its address.
///
/// Connections that wait in their queues survive a restart of this process.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(SocketAddr, TcpListener)>,
}

impl Inherited {
    /// None.
    pub fn none() -> Self {
        Inherited::default()
    }

    /// Takes over the TCP listeners that `LISTEN_PID` and `LISTEN_FDS` announce to this process. Other kinds of
    /// sockets are left alone.
    ///
    /// Call it once and early, before descriptors are opened: it owns the announced ones from then on.
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Inherited::none();
        }
        let count = i32::try_from(number("LISTEN_FDS").unwrap_or(0).min(4096)).unwrap_or(0);
        let sockets = (FIRST..FIRST + count).filter_map(adopt).collect();
        Inherited { sockets }
    }

    /// Sockets passed on by other means than the environment.
    pub fn from_listeners(listeners: Vec<TcpListener>) -> Self {
        let with_address = |listener: TcpListener| Some((listener.local_addr().ok()?, listener));
        Inherited {
            sockets: listeners.into_iter().filter_map(with_address).collect(),
        }
    }

    pub(super) fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        let (given, rest) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| *at == address);
        self.sockets = rest;
        given.into_iter().map(|(_, listener)| listener).collect()
    }
}

fn adopt(fd: i32) -> Option<(SocketAddr, TcpListener)> {
    // SAFETY: F_GETFD on a number that is no open descriptor only fails with EBADF.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and the protocol makes this process its only owner.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let usable = socket.is_listener().unwrap_or(false) && socket.r#type().ok()? == Type::STREAM;
    match socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket())
    {
        Some(address) if usable && socket.set_cloexec(true).is_ok() => {
            Some((address, TcpListener::from(socket)))
        }
        _ => {
            // Not ours to close: somebody else in this process may know what it is.
            std::mem::forget(socket);
            None
        }
    }
}

/// One listener for each worker: where fewer were given, several workers share one accept queue.
pub(super) fn spread(
    address: SocketAddr,
    mut given: Vec<TcpListener>,
    count: usize,
) -> Result<Vec<TcpListener>, SocketError> {
    let fail = |step| {
        move |source| SocketError {
            address,
            step,
            source,
        }
    };
    for listener in &given {
        listener
            .set_nonblocking(true)
            .map_err(fail("set O_NONBLOCK on"))?;
        let socket = SockRef::from(listener);
        socket
            .set_tcp_nodelay(true)
            .map_err(fail("set TCP_NODELAY on"))?;
        socket
            .set_tcp_keepalive(&super::keepalive())
            .map_err(fail("set keep-alive on"))?;
    }
    // More sockets than workers: each must be accepted from, or what the kernel gives it is never served.
    for at in given.len()..count {
        let copy = given[at % given.len().max(1)].try_clone();
        given.push(copy.map_err(fail("duplicate the inherited socket of"))?);
    }
    Ok(given)
}
