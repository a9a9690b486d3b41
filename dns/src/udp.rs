//! Datagrams with the local address that they were sent to, and replies that leave from it.
//!
//! A socket bound to a wildcard address replies from whatever address the route prefers; a client that asked another
//! one drops that reply. `IP_PKTINFO` (ip(7)) and `IPV6_PKTINFO` (RFC 3542, 6) tell and set the local address.

mod batch;

use std::io::{self, IoSlice};
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{MsgHdr, SockAddr, SockRef};

pub(crate) use batch::{BATCH, Batch, Packets, Replies};

/// Length, level and type before each control message; the length is a `size_t`.
const HEADER_BYTES: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();

/// A bound socket, which a thread reads and any may reply by.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: std::net::UdpSocket,
    local: SocketAddr,
}

/// Where a datagram came from and where to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    /// The sender.
    pub from: SocketAddr,
    /// The local address that it was sent to.
    pub to: IpAddr,
}

impl Socket {
    /// Takes over a bound socket, which waits when it is read.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        if local.ip().is_unspecified() {
            tell_destination(&socket, local.is_ipv4())?;
        }
        socket.set_nonblocking(false)?;
        Ok(Socket {
            inner: socket,
            local,
        })
    }

    /// Where it is bound.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether datagrams to several addresses arrive here.
    fn wildcard(&self) -> bool {
        self.local.ip().is_unspecified()
    }

    /// Wakes whoever waits for a datagram, now and whenever it waits again.
    pub(crate) fn close(&self) {
        // It says ENOTCONN, because nobody is connected, and wakes readers all the same.
        let _ = SockRef::from(&self.inner).shutdown(std::net::Shutdown::Both);
    }

    /// Sends a reply from the address that was asked, unless the socket's buffer is full: the client asks again then.
    pub(crate) fn reply(&self, bytes: &[u8], to: &Datagram) -> io::Result<()> {
        let address = SockAddr::from(to.from);
        let buffers = [IoSlice::new(bytes)];
        let message = MsgHdr::new().with_addr(&address).with_buffers(&buffers);
        let socket = SockRef::from(&self.inner);
        if self.wildcard() {
            let control = Control::new(to.to);
            socket.sendmsg(&message.with_control(control.bytes()), libc::MSG_DONTWAIT)?;
        } else {
            socket.sendmsg(&message, libc::MSG_DONTWAIT)?;
        }
        Ok(())
    }
}

fn tell_destination(socket: &std::net::UdpSocket, v4: bool) -> io::Result<()> {
    let on: libc::c_int = 1;
    let (level, option) = if v4 {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    };
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the pointer and length describe `on`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The local address in a list of control messages.
fn destination(mut control: &[u8]) -> Option<IpAddr> {
    while control.len() >= HEADER_BYTES {
        let length = usize::from_ne_bytes(*control.first_chunk()?);
        let level = int(control, size_of::<usize>())?;
        let kind = int(control, size_of::<usize>() + size_of::<libc::c_int>())?;
        let data = control.get(HEADER_BYTES..length)?;
        match (level, kind) {
            // struct in_pktinfo: the interface's index, the local address, the address in the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let octets: [u8; 4] = *data.get(4..)?.first_chunk()?;
                return Some(Ipv4Addr::from(octets).into());
            }
            // struct in6_pktinfo: the address, the interface's index.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let octets: [u8; 16] = *data.first_chunk()?;
                return Some(Ipv6Addr::from(octets).into());
            }
            _ => {}
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..)?;
    }
    None
}

fn int(bytes: &[u8], at: usize) -> Option<libc::c_int> {
    Some(libc::c_int::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The control message that makes a datagram leave from an address, by any interface.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control {
    bytes: [u8; 40],
    length: usize,
}

impl Control {
    fn new(address: IpAddr) -> Self {
        let mut control = Control {
            bytes: [0; 40],
            length: 0,
        };
        let (level, kind, data) = match address {
            IpAddr::V4(v4) => {
                control.bytes[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&v4.octets());
                (libc::IPPROTO_IP, libc::IP_PKTINFO, 12)
            }
            IpAddr::V6(v6) => {
                control.bytes[HEADER_BYTES..HEADER_BYTES + 16].copy_from_slice(&v6.octets());
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20)
            }
        };
        let length = HEADER_BYTES + data;
        let word = size_of::<usize>();
        control.bytes[..word].copy_from_slice(&length.to_ne_bytes());
        control.bytes[word..word + 4].copy_from_slice(&level.to_ne_bytes());
        control.bytes[word + 4..HEADER_BYTES].copy_from_slice(&kind.to_ne_bytes());
        control.length = length.next_multiple_of(word);
        control
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
