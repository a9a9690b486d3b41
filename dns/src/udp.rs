//! Datagrams with the local address that they were sent to, and replies that leave from it.
//!
//! A socket bound to a wildcard address replies from whatever address the route prefers; a client that asked another
//! one drops that reply. `IP_PKTINFO` (ip(7)) and `IPV6_PKTINFO` (RFC 3542, 6) tell and set the local address.

use std::io::{self, IoSlice};
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, SockRef};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Length, level and type before each control message; the length is a `size_t`.
const HEADER_BYTES: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();

/// Room for one message of the larger kind, and one that nobody asked for.
const CONTROL_BYTES: usize = 128;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: UdpSocket,
    local: SocketAddr,
}

/// Where a datagram came from and where to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    /// Bytes of the buffer that it filled.
    pub length: usize,
    /// The sender.
    pub from: SocketAddr,
    /// The local address that it was sent to.
    pub to: IpAddr,
}

impl Socket {
    /// Takes over a bound, non-blocking socket. Needs a tokio runtime.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        if local.ip().is_unspecified() {
            tell_destination(&socket, local.is_ipv4())?;
        }
        Ok(Socket {
            inner: UdpSocket::from_std(socket)?,
            local,
        })
    }

    /// Waits for a datagram. What exceeds `buffer` is cut off.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        if !self.local.ip().is_unspecified() {
            let (length, from) = self.inner.recv_from(buffer).await?;
            let to = self.local.ip();
            return Ok(Datagram { length, from, to });
        }
        self.inner
            .async_io(Interest::READABLE, || self.receive_now(buffer))
            .await
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let mut from = SockAddr::from(self.local);
        let mut control = [0u8; CONTROL_BYTES];
        let (length, control_length) = {
            let mut buffers = [MaybeUninitSlice::new(as_uninit(buffer))];
            let mut message = MsgHdrMut::new()
                .with_addr(&mut from)
                .with_buffers(&mut buffers)
                .with_control(as_uninit(&mut control));
            let length = SockRef::from(&self.inner).recvmsg(&mut message, 0)?;
            (length, message.control_len())
        };
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "no address came with it");
        let from = from.as_socket().ok_or_else(unknown)?;
        let control = control.get(..control_length).unwrap_or_default();
        let to = destination(control).ok_or_else(unknown)?;
        Ok(Datagram { length, from, to })
    }

    /// Sends a reply from the address that was asked.
    pub(crate) async fn reply(&self, bytes: &[u8], to: &Datagram) -> io::Result<()> {
        if !self.local.ip().is_unspecified() {
            self.inner.send_to(bytes, to.from).await?;
            return Ok(());
        }
        let control = control_message(to.to);
        let address = SockAddr::from(to.from);
        let send = || {
            let buffers = [IoSlice::new(bytes)];
            let message = MsgHdr::new()
                .with_addr(&address)
                .with_buffers(&buffers)
                .with_control(&control);
            SockRef::from(&self.inner).sendmsg(&message, 0)
        };
        self.inner.async_io(Interest::WRITABLE, send).await?;
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

fn as_uninit(bytes: &mut [u8]) -> &mut [std::mem::MaybeUninit<u8>] {
    let (pointer, length) = (bytes.as_mut_ptr(), bytes.len());
    // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, the borrow lasts as long, and the kernel, which the result is
    // handed to, writes initialised bytes only.
    unsafe { std::slice::from_raw_parts_mut(pointer.cast(), length) }
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

/// The control message that makes a datagram leave from `address`, by any interface.
fn control_message(address: IpAddr) -> Vec<u8> {
    let (level, kind, data): (_, _, Vec<u8>) = match address {
        IpAddr::V4(address) => {
            let data = [[0; 4], address.octets(), [0; 4]].concat();
            (libc::IPPROTO_IP, libc::IP_PKTINFO, data)
        }
        IpAddr::V6(address) => {
            let mut data = address.octets().to_vec();
            data.extend([0; 4]);
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, data)
        }
    };
    let length = HEADER_BYTES + data.len();
    let mut message = Vec::with_capacity(length.next_multiple_of(size_of::<usize>()));
    message.extend(length.to_ne_bytes());
    message.extend(level.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(data);
    message.resize(length.next_multiple_of(size_of::<usize>()), 0);
    message
}
