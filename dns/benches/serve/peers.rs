//! What our server is measured beside: an echo, which is what the kernel alone costs, and unbound.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

const BATCH: usize = 32;
const PACKET: usize = 2048;

/// Sends datagrams back as answers, by as many threads with a socket each; they run until the process ends.
pub fn echo(threads: usize) -> io::Result<SocketAddr> {
    let mut address: SocketAddr = ([127, 0, 0, 1], 0).into();
    for index in 0..threads {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        socket.set_recv_buffer_size(4 << 20)?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from(socket);
        address = socket.local_addr()?;
        thread::Builder::new()
            .name(format!("echo{threads}-{index}"))
            .spawn(move || echo_on(&socket))?;
    }
    Ok(address)
}

fn echo_on(socket: &UdpSocket) {
    let mut packets = vec![[0u8; PACKET]; BATCH];
    // SAFETY: all of these are plain data of the C library, of which zeros are a valid value.
    let mut addresses: [libc::sockaddr_in; BATCH] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut pieces: [libc::iovec; BATCH] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    loop {
        for index in 0..BATCH {
            pieces[index] = libc::iovec {
                iov_base: packets[index].as_mut_ptr().cast(),
                iov_len: PACKET,
            };
            let header = &mut messages[index].msg_hdr;
            header.msg_name = (&raw mut addresses[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut pieces[index];
            header.msg_iovlen = 1;
        }
        let (all, flags) = (messages.as_mut_ptr(), libc::MSG_WAITFORONE as _);
        let none = std::ptr::null_mut();
        // SAFETY: each message points to an address and a piece with their true lengths, which outlive the call.
        let count =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), all, BATCH as libc::c_uint, flags, none) };
        let Ok(count) = usize::try_from(count) else {
            continue;
        };
        for index in 0..count {
            pieces[index].iov_len = messages[index].msg_len as usize;
            packets[index][2] |= 0x80;
        }
        // SAFETY: as above, for the first `count` of them.
        unsafe { libc::sendmmsg(socket.as_raw_fd(), all, count as libc::c_uint, 0) };
    }
}

/// Answers each question with one address that may be kept for an hour, until the process ends.
pub fn upstream() -> io::Result<SocketAddr> {
    const RECORD: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 203, 0, 113, 7];
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut packet = [0; PACKET];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let Some(name) = packet[12..length].iter().position(|byte| *byte == 0) else {
                continue;
            };
            let end = 12 + name + 1 + 4;
            let mut answer = packet[..end].to_vec();
            answer[2] |= 0x80;
            answer[3] = 0x80;
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend(RECORD);
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(address)
}

/// unbound with one thread, which forwards everything; ended when dropped.
pub struct Unbound {
    child: Child,
    folder: PathBuf,
    pub address: SocketAddr,
}

impl Unbound {
    pub fn start(upstream: SocketAddr) -> io::Result<Unbound> {
        let folder = std::env::temp_dir().join(format!("heddle-unbound-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        // A port that was free a moment ago: unbound can't tell which one it took.
        let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let configuration = format!(
            "server:\n interface: 127.0.0.1@{}\n num-threads: 1\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n \
             directory: \"{}\"\n pidfile: \"\"\n use-syslog: no\n verbosity: 0\n module-config: \"iterator\"\n \
             do-not-query-localhost: no\n so-rcvbuf: 4m\n so-sndbuf: 4m\n\
             forward-zone:\n name: \".\"\n forward-addr: 127.0.0.1@{}\n",
            address.port(),
            folder.display(),
            upstream.port()
        );
        let file = folder.join("unbound.conf");
        std::fs::write(&file, configuration)?;
        let child = Command::new("unbound")
            .arg("-d")
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()?;
        let unbound = Unbound {
            child,
            folder,
            address,
        };
        unbound.wait()?;
        Ok(unbound)
    }

    /// Until it answers.
    fn wait(&self) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x01\0\x01";
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let deadline = Instant::now() + PATIENCE;
        let mut packet = [0; PACKET];
        loop {
            // Refused until it listens.
            let answered = socket.send(question).and_then(|_| socket.recv(&mut packet));
            match answered {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
