//! The little of netlink (RFC 3549) that the redirect needs: messages with nested attributes, one
//! socket per subsystem, and answers with their error and the kernel's own explanation of it.

use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::RedirectError;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The kernel answers within the system call that asks; this only bounds a kernel that never does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Netlink pads messages and attributes to four bytes.
const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

/// One request under construction.
///
/// It carries the step it stands for in words ("add the set services4"), so that a refusal can
/// name what was refused.
#[derive(Debug)]
pub(super) struct Message {
    step: String,
    bytes: Vec<u8>,
    /// Begins or ends a batch: answered only when the batch is refused as a whole.
    mark: bool,
}

impl Message {
    /// A request of type `kind`; `family_header` is what the subsystem wants right after the
    /// netlink header (`nfgenmsg`, `rtmsg`).
    pub(super) fn new(
        step: impl Into<String>,
        kind: u16,
        flags: u16,
        family_header: &[u8],
    ) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Self {
            step: step.into(),
            bytes,
            mark: false,
        };
        message.pad();
        message
    }

    /// Begins or ends a batch, which the kernel carries out as a whole or not at all.
    pub(super) fn batch_mark(step: impl Into<String>, kind: u16, family_header: &[u8]) -> Self {
        Self {
            mark: true,
            ..Self::new(step, kind, 0, family_header)
        }
    }

    /// Appends one attribute.
    pub(super) fn attr(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(payload);
        self.close(start);
        self
    }

    /// Appends a number in network order, as nf_tables wants all of its own.
    pub(super) fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends a NUL-terminated string.
    pub(super) fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
        self
    }

    /// Appends an attribute that holds the attributes `fill` appends: at most 64 KiB together.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.open(kind | NLA_F_NESTED);
        fill(self);
        self.close(start);
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let len = u16::try_from(self.bytes.len() - start)
            .expect("names are validated and element lists are cut below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    fn finish(&mut self, sequence: u32, extra_flags: u16) -> &[u8] {
        let len = u32::try_from(self.bytes.len()).expect("a message is far below 4 GiB");
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | extra_flags;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// One message out of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// Cuts a datagram into its messages; a malformed rest is left out.
pub(super) fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = u32_at(rest, 0)? as usize;
        let answer = Answer {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            payload: rest.get(HEADER_LEN..len)?,
        };
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some(answer)
    })
}

/// Cuts a run of attributes into types and payloads; a malformed rest is left out.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let payload = rest.get(ATTRIBUTE_HEADER_LEN..len)?;
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// What an `NLMSG_ERROR` says: `Ok` is an acknowledgement, `Err` the errno with the kernel's
/// explanation where it gave one.
pub(super) fn verdict(answer: &Answer<'_>) -> Result<(), (io::Error, Option<String>)> {
    let Some(code) = u32_at(answer.payload, 0).map(u32::cast_signed) else {
        let error = io::Error::new(io::ErrorKind::InvalidData, "a cut-off netlink error");
        return Err((error, None));
    };
    if code == 0 {
        return Ok(());
    }
    let original = match u32_at(answer.payload, 4) {
        Some(len) if answer.flags & NLM_F_CAPPED == 0 => aligned(len as usize),
        _ => HEADER_LEN,
    };
    let detail = (answer.flags & NLM_F_ACK_TLVS != 0)
        .then(|| answer.payload.get(4usize.saturating_add(original)..))
        .flatten()
        .and_then(|tlvs| attributes(tlvs).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .map(|(_, text)| String::from_utf8_lossy(text.trim_ascii_end()).replace('\0', ""))
        .filter(|text| !text.is_empty());
    Err((io::Error::from_raw_os_error(code.saturating_neg()), detail))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// A netlink socket to one kernel subsystem, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    socket: RawSocket,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Socket {
    /// Opens a socket to `protocol` (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub(super) fn open(protocol: libc::c_int, name: &'static str) -> Result<Self, RedirectError> {
        Self::connect(protocol).map_err(|source| RedirectError::Socket {
            socket: name,
            source,
        })
    }

    fn connect(protocol: libc::c_int) -> io::Result<Self> {
        let socket = RawSocket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(protocol)),
        )?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        // Both only make errors shorter and clearer; older kernels do without.
        let _ = set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);

        // Connected to the kernel, the socket takes no messages from other processes.
        // SAFETY: all-zero bytes are a valid `sockaddr_nl`.
        let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // SAFETY: the address outlives the call and its length is its own size.
        let connected = unsafe {
            libc::connect(
                socket.as_raw_fd(),
                (&raw const kernel).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if connected != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            socket,
            sequence: 1,
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
        })
    }

    /// Sends `messages` in one datagram and waits until the kernel has carried out all of them.
    ///
    /// # Errors
    /// The first message that the kernel refused, by its step.
    pub(super) fn transact(&mut self, mut messages: Vec<Message>) -> Result<(), RedirectError> {
        // Messages are carried out in order, within the sending system call, and every refusal is
        // answered: the acknowledgement of the last request speaks for all before it.
        let Some(last) = messages.iter().rposition(|message| !message.mark) else {
            return Ok(());
        };
        let first = self.sequence;
        let mut datagram = Vec::new();
        for (index, message) in messages.iter_mut().enumerate() {
            let flags = if index == last { NLM_F_ACK } else { 0 };
            datagram.extend_from_slice(message.finish(self.next_sequence(), flags));
        }
        let step = |index: usize| messages[index.min(last)].step.clone();

        self.send(&datagram)
            .map_err(|source| RedirectError::refused(step(0), source, None))?;
        loop {
            let len = receive(&self.socket, &mut self.buffer)
                .map_err(|source| RedirectError::refused(step(last), source, None))?;
            for answer in answers(&self.buffer[..len]) {
                let index = answer.sequence.wrapping_sub(first) as usize;
                if answer.kind != NLMSG_ERROR || index >= messages.len() {
                    continue;
                }
                match verdict(&answer) {
                    Ok(()) if index == last => return Ok(()),
                    Ok(()) => {}
                    Err((source, detail)) => {
                        return Err(RedirectError::refused(step(index), source, detail));
                    }
                }
            }
        }
    }

    /// Asks for one object and gives its message, without the netlink header, to `read`.
    pub(super) fn get<T>(
        &mut self,
        mut request: Message,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, RedirectError> {
        let sequence = self.next_sequence();
        let step = request.step.clone();
        let failed = |source, detail| RedirectError::refused(step.clone(), source, detail);
        let datagram = request.finish(sequence, 0);
        self.send(datagram).map_err(|source| failed(source, None))?;
        loop {
            let len =
                receive(&self.socket, &mut self.buffer).map_err(|source| failed(source, None))?;
            for answer in answers(&self.buffer[..len]).filter(|one| one.sequence == sequence) {
                if answer.kind != NLMSG_ERROR {
                    return Ok(read(answer.payload));
                }
                if let Err((source, detail)) = verdict(&answer) {
                    return Err(failed(source, detail));
                }
            }
        }
    }

    /// Asks for all objects of a kind and gives the message of each, without the netlink header, to `read`.
    ///
    /// # Errors
    /// The kernel refused; `EINTR` when others changed what was being read.
    pub(super) fn dump(
        &mut self,
        mut request: Message,
        mut read: impl FnMut(&[u8]),
    ) -> Result<(), RedirectError> {
        let sequence = self.next_sequence();
        let step = request.step.clone();
        let failed = |source, detail| RedirectError::refused(step.clone(), source, detail);
        let datagram = request.finish(sequence, 0);
        self.send(datagram).map_err(|source| failed(source, None))?;
        let mut interrupted = false;
        loop {
            let len =
                receive(&self.socket, &mut self.buffer).map_err(|source| failed(source, None))?;
            for answer in answers(&self.buffer[..len]).filter(|one| one.sequence == sequence) {
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    // Both begin with an error number, which is zero when all went well.
                    NLMSG_ERROR | NLMSG_DONE => {
                        verdict(&answer).map_err(|(source, detail)| failed(source, detail))?;
                        if interrupted {
                            return Err(failed(io::Error::from_raw_os_error(libc::EINTR), None));
                        }
                        return Ok(());
                    }
                    _ => read(answer.payload),
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        sequence
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        // A batch must fit into the send buffer as a whole. Without CAP_NET_ADMIN this fails, and
        // so will the batch, with a better error.
        let room = i32::try_from(datagram.len().saturating_mul(2)).unwrap_or(i32::MAX);
        if self.socket.send_buffer_size()? < datagram.len() + 1024 {
            let _ = set_option(&self.socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room);
        }
        let sent = retry(|| self.socket.send(datagram))?;
        if sent != datagram.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "a cut-off netlink request",
            ));
        }
        Ok(())
    }
}

fn receive(mut socket: &RawSocket, buffer: &mut [u8]) -> io::Result<usize> {
    match retry(|| socket.read(buffer)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the kernel gave no answer",
        )),
        Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        other => other,
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn set_option(
    socket: &RawSocket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value outlives the call and its length is its own size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
