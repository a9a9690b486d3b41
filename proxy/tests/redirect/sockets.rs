//! Small servers and clients for the redirect tests.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use proxy::redirect::original_dst;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::netns::Namespace;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Binds a socket; an IPv6 one takes IPv4 too when `dual` is set.
fn bind(kind: Type, address: SocketAddr, dual: bool) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).expect("a socket");
    if address.is_ipv6() {
        socket.set_only_v6(!dual).expect("an option");
        // The any-IP route alone makes an IPv4 address bindable, but not an IPv6 one.
        socket.set_freebind_v6(true).expect("an option");
    }
    socket.bind(&address.into()).expect("a free port");
    socket
}

fn listen(address: SocketAddr, dual: bool) -> TcpListener {
    let socket = bind(Type::STREAM, address, dual);
    socket.listen(128).expect("a listener");
    socket.into()
}

/// Answers every connection with one line, then echoes.
fn serve(listener: TcpListener, line: impl Fn(&TcpStream) -> String + Send + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let line = line(&stream);
            thread::spawn(move || {
                writeln!(stream, "{line}")?;
                io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
}

/// Starts the redirect listener, on the same port of both families; it answers with the original
/// destination and the client's address.
pub fn redirect_listener(host: &Namespace) -> u16 {
    host.run(|| {
        let v4 = listen((Ipv4Addr::UNSPECIFIED, 0).into(), false);
        let port = v4.local_addr().expect("bound").port();
        let v6 = listen((Ipv6Addr::UNSPECIFIED, port).into(), false);
        for listener in [v4, v6] {
            serve(listener, destination_and_client);
        }
        port
    })
}

/// One listener for both families, as [`redirect_listener`] answers.
pub fn dual_stack_listener(host: &Namespace) -> u16 {
    host.run(|| {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into(), true);
        let port = listener.local_addr().expect("bound").port();
        serve(listener, destination_and_client);
        port
    })
}

fn destination_and_client(stream: &TcpStream) -> String {
    let original = original_dst(stream.as_fd()).expect("known to conntrack");
    let client = stream.peer_addr().expect("connected");
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    format!("{original} {client}")
}

/// Starts something that listens on `address` and answers with `name`.
pub fn server(host: &Namespace, address: &str, name: &'static str) {
    let address = address.parse().expect("an address");
    host.run(move || serve(listen(address, false), move |_| name.to_owned()));
}

/// Starts a UDP server that answers every datagram with `name`.
pub fn udp_server(host: &Namespace, address: &str, name: &'static str) {
    let address: SocketAddr = address.parse().expect("an address");
    host.run(move || {
        let socket = UdpSocket::from(bind(Type::DGRAM, address, false));
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), client);
            }
        });
    });
}

/// An open connection and the line that greeted it.
pub struct Connection {
    stream: BufReader<TcpStream>,
    pub greeting: String,
    pub local: SocketAddr,
}

impl Connection {
    /// Connects from inside `namespace`.
    pub fn open(namespace: &Namespace, to: &str) -> io::Result<Self> {
        Self::open_from(namespace, None, to)
    }

    /// Connects from a source port that other connections may use too.
    pub fn open_from(namespace: &Namespace, port: Option<u16>, to: &str) -> io::Result<Self> {
        let to: SocketAddr = to.parse().expect("an address");
        namespace.run(move || Self::dial(port, to))
    }

    fn dial(port: Option<u16>, to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(port) = port {
            let any = match to {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(SocketAddr::new(any, port)))?;
        }
        socket.connect_timeout(&to.into(), TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let stream = TcpStream::from(socket);
        let mut connection = Self {
            local: stream.local_addr()?,
            stream: BufReader::new(stream),
            greeting: String::new(),
        };
        connection.greeting = connection.line()?;
        Ok(connection)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Sends a line and expects it back.
    pub fn assert_echoes(&mut self) {
        writeln!(self.stream.get_mut(), "still here").expect("the connection is open");
        assert_eq!(self.line().expect("the connection is open"), "still here");
    }
}

/// Waits until every byte that was sent from sockets of `namespace` is acknowledged.
#[track_caller]
pub fn wait_until_acknowledged(namespace: &Namespace) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        // The second column is what was sent and not acknowledged.
        let sockets = namespace.shell("ss -Htn state established");
        let waiting = |line: &str| line.split_whitespace().nth(1) != Some("0");
        if !sockets.lines().any(waiting) {
            return;
        }
        assert!(Instant::now() < deadline, "unacknowledged:\n{sockets}");
        thread::yield_now();
    }
}

/// A connection from `namespace` to `vip` must reach the redirect listener, which must see both
/// the VIP and the client.
#[track_caller]
pub fn assert_redirected(namespace: &Namespace, vip: &str) -> Connection {
    let connection = Connection::open(namespace, vip)
        .unwrap_or_else(|error| panic!("{vip} could not be reached: {error}"));
    assert_eq!(connection.greeting, format!("{vip} {}", connection.local));
    connection
}

/// A connection from `namespace` must be refused, at once: at the first SYN, not at one that was sent again.
#[track_caller]
pub fn assert_refused(namespace: &Namespace, to: &str) {
    let address: SocketAddr = to.parse().expect("an address");
    let (refusal, sent_again) = namespace.run(move || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
        let socket = socket.expect("a socket");
        let refusal = socket.connect_timeout(&address.into(), TIMEOUT);
        (refusal, retransmissions(&socket))
    });
    match refusal {
        Ok(()) => panic!("{to} takes connections"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}"),
    }
    assert_eq!(sent_again, 0, "{to}");
}

/// How many segments a TCP socket has sent again in its life.
fn retransmissions(socket: &Socket) -> u32 {
    // SAFETY: tcp_info is plain numbers, and the kernel writes no more of it than the length given.
    let (result, info) = unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        );
        (result, info)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// A connection from `namespace` must be answered by the server of this name.
#[track_caller]
pub fn assert_answers(namespace: &Namespace, to: &str, name: &str) {
    let connection = Connection::open(namespace, to)
        .unwrap_or_else(|error| panic!("{to} could not be reached: {error}"));
    assert_eq!(connection.greeting, name, "{to}");
}

/// Sends a datagram from `namespace` and gives the answer, or the error that ICMP made.
pub fn ask(namespace: &Namespace, to: &str) -> io::Result<String> {
    let to: SocketAddr = to.parse().expect("an address");
    namespace.run(move || {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    })
}

/// A datagram from `namespace`, which is sent once, must meet port unreachable.
#[track_caller]
pub fn assert_unreachable(namespace: &Namespace, to: &str) {
    let error = ask(namespace, to).expect_err("unreachable");
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "{to}: {error}"
    );
}
