//! Making the sockets.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::error::{DnsError, Transport};

/// How often a free port is sought that both UDP and TCP can have.
const PORT_TRIES: usize = 16;

const BACKLOG: i32 = 1024;

/// Bytes of a UDP socket's receive buffer, some 2,000 queries.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Listener {
    pub address: SocketAddr,
    /// One for each worker.
    pub udp: Vec<std::net::UdpSocket>,
    pub tcp: std::net::TcpListener,
}

pub(super) fn failed(
    address: SocketAddr,
    transport: Transport,
) -> impl FnOnce(io::Error) -> DnsError {
    move |source| DnsError::Bind {
        address,
        transport,
        source,
    }
}

/// Both sockets of an address, at one port.
pub(super) fn bind_both(address: SocketAddr, workers: usize) -> Result<Listener, DnsError> {
    let failed = |transport| failed(address, transport);
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = bind_udp(address, false).map_err(failed(Transport::Udp))?;
        let bound = udp.local_addr().map_err(failed(Transport::Udp))?;
        match bind_tcp(bound) {
            Ok(tcp) => {
                let udp = bind_more(udp, bound, workers).map_err(failed(Transport::Udp))?;
                return Ok(Listener {
                    address: bound,
                    udp,
                    tcp,
                });
            }
            // The free port that UDP got may be taken for TCP.
            Err(error)
                if address.port() == 0
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tries < PORT_TRIES => {}
            Err(error) => return Err(failed(Transport::Tcp)(error)),
        }
    }
}

/// The first socket was bound to have the address alone: another heddle, which would share it without a word, is found
/// out by that. From then on it shares with the others.
fn bind_more(
    first: std::net::UdpSocket,
    bound: SocketAddr,
    workers: usize,
) -> io::Result<Vec<std::net::UdpSocket>> {
    SockRef::from(&first).set_reuse_port(true)?;
    let mut all = vec![first];
    while all.len() < workers {
        all.push(bind_udp(bound, true)?);
    }
    Ok(all)
}

fn bind_udp(address: SocketAddr, shared: bool) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(shared)?;
    // What arrives while all cores are busy waits rather than being lost; the system may grant less.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

pub(super) fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a predecessor that wait for their end must not keep a restart from binding.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
