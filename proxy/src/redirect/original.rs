//! Where a redirected connection was dialled.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use socket2::SockRef;

/// Where the client of a redirected connection wanted to go: VIP and port, whichever family the
/// socket has. Without conntrack's translation it is the socket's own local address; so a caller
/// needs no case for "not redirected", but looks the address up among its services and closes the
/// connection when there is none.
///
/// # Errors
/// `ENOENT` when conntrack does not know the connection, and what `getsockname` or `getsockopt`
/// (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`) give for a socket that is not a connected TCP one.
pub fn original_dst(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    let local = socket.local_addr()?.as_socket();
    // An IPv4 client of a dual-stack socket is known to conntrack by its IPv4 address.
    let original = match local.map(|local| local.ip().to_canonical()) {
        Some(IpAddr::V4(_)) => socket.original_dst_v4()?,
        Some(IpAddr::V6(_)) => socket.original_dst_v6()?,
        None => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    original
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
