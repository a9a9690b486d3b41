//! The one place where sockets are opened: listeners, connections to endpoints, and sockets inherited from a parent.

mod dial;
mod inherited;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

pub use crate::error::SocketError;
pub(crate) use dial::{DialError, dial, unanswered};
pub use inherited::Inherited;

/// As long as the kernel allows (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 65_535;

/// A client that went away silently is noticed after 60 s and six probes of 10 s.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6)
}

/// What a listener is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    /// How many sockets: one per worker.
    pub(crate) count: usize,
    /// Whether `[::]` takes IPv4 as well.
    pub(crate) dual_stack: bool,
    /// Whether to make sure that no other process listens there already. `SO_REUSEPORT` would let us in beside another
    /// process of the same user, which would silently get half of the connections.
    pub(crate) alone: bool,
}

/// Opens the sockets, one per worker, all on the same address and port. Port 0 lets the kernel choose.
///
/// What accepted sockets need is set here, because they inherit it: no system calls per connection.
pub(crate) fn listen(
    wanted: Listen,
    inherited: &mut Inherited,
) -> Result<Vec<TcpListener>, SocketError> {
    let given = inherited.take(wanted.address);
    if !given.is_empty() {
        return inherited::spread(wanted.address, given, wanted.count);
    }
    match open_all(wanted) {
        Err(error) if wanted.dual_stack && no_ipv6(wanted.address, &error.source) => {
            let address = (Ipv4Addr::UNSPECIFIED, wanted.address.port()).into();
            open_all(Listen { address, ..wanted })
        }
        result => result,
    }
}

fn no_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let without = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified())
        && error.raw_os_error().is_some_and(|e| without.contains(&e))
}

fn open_all(wanted: Listen) -> Result<Vec<TcpListener>, SocketError> {
    if wanted.alone && wanted.address.port() != 0 {
        drop(bound(wanted.address, wanted.dual_stack, false)?);
    }
    let mut address = wanted.address;
    let mut listeners = Vec::with_capacity(wanted.count);
    for _ in 0..wanted.count {
        let socket = bound(address, wanted.dual_stack, true)?;
        let fail = |step| {
            move |source| SocketError {
                address,
                step,
                source,
            }
        };
        socket
            .set_tcp_nodelay(true)
            .map_err(fail("set TCP_NODELAY on"))?;
        socket
            .set_tcp_keepalive(&keepalive())
            .map_err(fail("set keep-alive on"))?;
        socket.listen(BACKLOG).map_err(fail("listen on"))?;
        let listener = TcpListener::from(socket);
        address = listener
            .local_addr()
            .map_err(fail("ask for the address of"))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bound(address: SocketAddr, dual_stack: bool, shared: bool) -> Result<Socket, SocketError> {
    let fail = |step| {
        move |source| SocketError {
            address,
            step,
            source,
        }
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))
        .map_err(fail("open a socket for"))?;
    if address.is_ipv6() {
        socket
            .set_only_v6(!dual_stack)
            .map_err(fail("set IPV6_V6ONLY on"))?;
    }
    socket
        .set_reuse_address(true)
        .map_err(fail("set SO_REUSEADDR on"))?;
    if shared {
        socket
            .set_reuse_port(true)
            .map_err(fail("set SO_REUSEPORT on"))?;
    }
    socket.bind(&address.into()).map_err(fail("bind to"))?;
    Ok(socket)
}
