//! Many datagrams with one system call: what waits is received together, and answered together.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use super::{Control, Datagram, Socket, destination};
use crate::response::MAX_DATAGRAM;

/// Datagrams received at once at most.
pub(crate) const BATCH: usize = 32;

/// The longest datagram that is read whole. Queries have a few hundred bytes at most.
const RECEIVE: usize = 4096;

/// Room for one control message of the larger kind, and one that nobody asked for.
const CONTROL: usize = 128;

#[derive(Clone, Copy)]
#[repr(align(8))]
struct ReceivedControl([u8; CONTROL]);

/// Buffers for [`BATCH`] datagrams and their replies.
pub(crate) struct Batch {
    packets: Box<[[u8; RECEIVE]; BATCH]>,
    addresses: Box<[libc::sockaddr_storage; BATCH]>,
    controls: Box<[ReceivedControl; BATCH]>,
    replies: Box<[[u8; MAX_DATAGRAM as usize]; BATCH]>,
    reply_controls: Box<[Control; BATCH]>,
    pieces: [libc::iovec; BATCH],
    messages: [libc::mmsghdr; BATCH],
    /// Index of the datagram that each reply is to, and the reply's length.
    pending: [(usize, usize); BATCH],
    waiting: usize,
}

impl Batch {
    pub(crate) fn new() -> Box<Self> {
        let nowhere = Control::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Box::new(Batch {
            packets: boxed([0; RECEIVE]),
            // SAFETY: all of these are plain data of the C library, of which zeros are a valid value: an address of no
            // family, pointers to nothing with a length of nothing.
            addresses: boxed(unsafe { zeroed() }),
            controls: boxed(ReceivedControl([0; CONTROL])),
            replies: boxed([0; MAX_DATAGRAM as usize]),
            reply_controls: boxed(nowhere),
            // SAFETY: as above.
            pieces: unsafe { zeroed() },
            // SAFETY: as above.
            messages: unsafe { zeroed() },
            pending: [(0, 0); BATCH],
            waiting: 0,
        })
    }

    /// Waits for datagrams and takes those that are there; returns how many.
    pub(crate) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        let wildcard = socket.wildcard();
        for index in 0..BATCH {
            self.pieces[index] = libc::iovec {
                iov_base: self.packets[index].as_mut_ptr().cast(),
                iov_len: RECEIVE,
            };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.pieces[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = if wildcard { CONTROL as _ } else { 0 };
        }
        self.waiting = 0;
        // SAFETY: each message points to an address, a piece and a control buffer of `self` with their true lengths,
        // and `self` outlives the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.inner.as_raw_fd(),
                self.messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// What was received, and where replies are written.
    pub(crate) fn exchange(&mut self) -> (Packets<'_>, Replies<'_>) {
        let packets = Packets {
            packets: &self.packets,
            addresses: &self.addresses,
            controls: &self.controls,
            messages: &self.messages,
        };
        let replies = Replies {
            replies: &mut self.replies,
            pending: &mut self.pending,
            waiting: &mut self.waiting,
        };
        (packets, replies)
    }

    /// Sends the replies that are ready. A reply that can't be sent is lost, and the others are not.
    pub(crate) fn send(&mut self, socket: &Socket) {
        let wildcard = socket.wildcard();
        for slot in 0..self.waiting {
            let (index, length) = self.pending[slot];
            let control = if wildcard {
                self.exchange().0.datagram(index, socket)
            } else {
                None
            };
            let name_length = self.messages[index].msg_hdr.msg_namelen;
            self.pieces[slot] = libc::iovec {
                iov_base: self.replies[index].as_mut_ptr().cast(),
                iov_len: length,
            };
            // `slot` is `index` or less: what is overwritten here was used before.
            let header = &mut self.messages[slot].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = name_length;
            header.msg_iov = &raw mut self.pieces[slot];
            header.msg_iovlen = 1;
            header.msg_controllen = 0;
            header.msg_control = std::ptr::null_mut();
            if let Some(datagram) = control {
                let control = &mut self.reply_controls[slot];
                *control = Control::new(datagram.to);
                header.msg_control = control.bytes.as_mut_ptr().cast();
                header.msg_controllen = control.length as _;
            }
        }
        let mut sent = 0;
        while sent < self.waiting {
            // SAFETY: the messages from `sent` to `waiting` point to an address, a piece and perhaps a control buffer
            // of `self`, with their true lengths.
            let count = unsafe {
                libc::sendmmsg(
                    socket.inner.as_raw_fd(),
                    self.messages[sent..].as_mut_ptr(),
                    (self.waiting - sent) as libc::c_uint,
                    0,
                )
            };
            // It fails when the first can't be sent, to an address that nothing leads to for instance.
            sent += usize::try_from(count).unwrap_or(0).max(1);
        }
        self.waiting = 0;
    }
}

/// The datagrams received.
pub(crate) struct Packets<'b> {
    packets: &'b [[u8; RECEIVE]; BATCH],
    addresses: &'b [libc::sockaddr_storage; BATCH],
    controls: &'b [ReceivedControl; BATCH],
    messages: &'b [libc::mmsghdr; BATCH],
}

impl<'b> Packets<'b> {
    /// What one says.
    pub(crate) fn bytes(&self, index: usize) -> &'b [u8] {
        let length = (self.messages[index].msg_len as usize).min(RECEIVE);
        &self.packets[index][..length]
    }

    /// Where it came from and where to; `None` when that was not told, or can't be answered.
    pub(crate) fn datagram(&self, index: usize, socket: &Socket) -> Option<Datagram> {
        let from = address(&self.addresses[index])?;
        if from.port() == 0 {
            return None;
        }
        if !socket.wildcard() {
            let to = socket.local.ip();
            return Some(Datagram { from, to });
        }
        let length = self.messages[index].msg_hdr.msg_controllen;
        let to = destination(self.controls[index].0.get(..length)?)?;
        Some(Datagram { from, to })
    }
}

/// The replies to them.
pub(crate) struct Replies<'b> {
    replies: &'b mut [[u8; MAX_DATAGRAM as usize]; BATCH],
    pending: &'b mut [(usize, usize); BATCH],
    waiting: &'b mut usize,
}

impl Replies<'_> {
    /// Where the reply to a datagram may be written.
    pub(crate) fn room(&mut self, index: usize) -> &mut [u8] {
        &mut self.replies[index]
    }

    /// Notes that it is written, and how long it is.
    pub(crate) fn ready(&mut self, index: usize, length: usize) {
        if let Some(slot) = self.pending.get_mut(*self.waiting) {
            *slot = (index, length);
            *self.waiting += 1;
        }
    }
}

fn boxed<T: Copy>(value: T) -> Box<[T; BATCH]> {
    let all: Box<[T]> = vec![value; BATCH].into();
    match all.try_into() {
        Ok(all) => all,
        Err(_) => unreachable!("as many as asked for"),
    }
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a `sockaddr_in`, which is shorter than the storage and no more
            // aligned.
            let v4 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, of a `sockaddr_in6`.
            let v6 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
