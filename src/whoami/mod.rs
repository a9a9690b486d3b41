//! `heddle whoami`: a small backend to try things against, and what the end-to-end tests run in containers.
//!
//! One process that says who it is over HTTP/1.1, HTTP/2 (cleartext, by prior knowledge), gRPC and
//! WebSocket on one port, and echoes TCP and UDP on others; it can be told to be slow, unhealthy, to hang
//! up half-way, and how to behave when it is asked to end.
//!
//! # Layout
//! - `http`: the HTTP port and its paths; what a request asks of them in `asked`
//! - `grpc`: `grpc.health.v1.Health`, and a stream echo, on the same port
//! - `websocket`: the echo at `/ws`
//! - `echo`: TCP and UDP echo
//! - `body`: responses and their bodies
//! - `connection`: a socket that can end with a reset, and the accept loop
//! - `state`: what the process remembers: health, counters

mod asked;
mod body;
mod connection;
mod echo;
mod grpc;
mod http;
mod state;
mod websocket;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use model::units::Span;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use state::Backend;

/// Connections that may wait to be accepted: enough that a load test's first burst is not refused.
const BACKLOG: u32 = 4096;

/// What `heddle whoami` takes on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Serve HTTP/1.1, HTTP/2, gRPC and WebSocket here: IP:PORT, or a port alone for 0.0.0.0. May be repeated
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080", value_parser = parse_address)]
    pub listen: Vec<SocketAddr>,

    /// The name it answers with [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Echo TCP here. May be repeated
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub tcp_echo: Vec<SocketAddr>,

    /// Send the name and a line feed first on every TCP echo connection
    #[arg(long)]
    pub tcp_banner: bool,

    /// Echo UDP here; the datagram "whoami" is answered with the name. May be repeated
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub udp_echo: Vec<SocketAddr>,

    /// What to do on SIGTERM
    #[arg(long, value_name = "HOW", value_enum, default_value_t = OnTerm::Drain)]
    pub on_term: OnTerm,

    /// How long `--on-term drain` goes on serving everything, new connections too
    #[arg(long, value_name = "SPAN", default_value = "1s")]
    pub linger: Span,

    /// The longest wait for what is in flight once the listeners are closed
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    pub deadline: Span,

    /// Close an HTTP/1.1 connection that brings no further request for this long [default: never]
    #[arg(long, value_name = "SPAN")]
    pub idle_timeout: Option<Span>,

    /// Answer health checks with 503 for this long after the start
    #[arg(long, value_name = "SPAN", default_value = "0s")]
    pub ready_after: Span,

    /// Append the id of each `/execute` to this file before it is answered: what survives a SIGKILL
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
}

/// How the backend takes SIGTERM. SIGINT always ends it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnTerm {
    /// Serve on for `--linger`, then finish what is in flight and exit
    Drain,
    /// Close listeners and idle connections at once, finish what is in flight and exit
    Close,
    /// Do nothing: only SIGKILL or SIGINT ends it
    Ignore,
}

/// Every socket, bound before any of them is served, so that a port taken by another is found at once.
struct Sockets {
    http: Vec<TcpListener>,
    tcp_echo: Vec<TcpListener>,
    udp_echo: Vec<UdpSocket>,
}

/// Serves until a signal ends it. Prints one line per socket, `http ADDR`, `tcp ADDR` or `udp ADDR`, when it
/// takes connections.
///
/// # Errors
/// When a socket cannot be bound, the journal cannot be opened or a signal handler cannot be set.
pub async fn run(options: Options) -> anyhow::Result<()> {
    // The first process of a container has no default action for SIGTERM: without handlers of its own it
    // could only be killed. They are set before the first socket, so whoever can reach us can also end us.
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;

    let sockets = Sockets::bind(&options).await?;
    let journal = options.journal.as_deref().map(open_journal).transpose()?;
    let backend = Arc::new(Backend::new(options.name.clone(), journal));
    let tasks = TaskTracker::new();
    become_ready_later(options.ready_after, &backend);
    serve(sockets, &options, &backend, &tasks)?;

    let ended = async {
        loop {
            terminate.recv().await;
            if options.on_term != OnTerm::Ignore {
                break;
            }
            tracing::info!("ignoring SIGTERM, as told");
        }
        if options.on_term == OnTerm::Drain {
            tracing::info!(linger = %options.linger, "serving on before closing");
            tokio::time::sleep(options.linger.0).await;
        }
        backend.closing.cancel();
        tasks.close();
        if tokio::time::timeout(options.deadline.0, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = tasks.len(), deadline = %options.deadline, "gave up on what is in flight");
        }
    };
    tokio::select! {
        () = ended => {}
        _ = interrupt.recv() => tracing::info!("ending at once on SIGINT"),
    }
    Ok(())
}

impl Sockets {
    async fn bind(options: &Options) -> anyhow::Result<Self> {
        let tcp = |addresses: &[SocketAddr]| {
            addresses
                .iter()
                .map(|&address| {
                    listen(address).with_context(|| format!("cannot listen on {address}"))
                })
                .collect::<anyhow::Result<Vec<_>>>()
        };
        let mut udp_echo = Vec::new();
        for &address in &options.udp_echo {
            let socket = UdpSocket::bind(address).await;
            udp_echo.push(socket.with_context(|| format!("cannot bind UDP {address}"))?);
        }
        Ok(Self {
            http: tcp(&options.listen)?,
            tcp_echo: tcp(&options.tcp_echo)?,
            udp_echo,
        })
    }
}

fn open_journal(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("cannot open the journal {}", path.display()))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn serve(
    sockets: Sockets,
    options: &Options,
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    // An orderly end takes what already waits in the accept queue; a hasty one resets it.
    let empty_queue = options.on_term == OnTerm::Drain;
    let server = Arc::new(http::Server::new(
        options.idle_timeout.map(|idle| idle.0),
        backend,
        tasks,
    ));
    for listener in sockets.http {
        announce("http", listener.local_addr()?);
        let (server, tasks_of_connections) = (Arc::clone(&server), tasks.clone());
        let closing = backend.closing.clone();
        tasks.spawn(async move {
            connection::accept_each(listener, empty_queue, &closing, |stream, remote| {
                tasks_of_connections.spawn(Arc::clone(&server).connection(stream, remote));
            })
            .await;
        });
    }
    for listener in sockets.tcp_echo {
        announce("tcp", listener.local_addr()?);
        let (backend, tasks_of_connections) = (Arc::clone(backend), tasks.clone());
        let banner = options.tcp_banner;
        tasks.spawn(async move {
            connection::accept_each(listener, empty_queue, &backend.closing, |stream, _| {
                tasks_of_connections.spawn(echo::tcp(stream, banner, Arc::clone(&backend)));
            })
            .await;
        });
    }
    for socket in sockets.udp_echo {
        announce("udp", socket.local_addr()?);
        tasks.spawn(echo::udp(socket, Arc::clone(backend)));
    }
    Ok(())
}

/// Tells on stdout where it serves. A closed stdout is no reason to end.
fn announce(protocol: &str, address: SocketAddr) {
    let _ = writeln!(std::io::stdout(), "{protocol} {address}");
}

fn become_ready_later(after: Span, backend: &Arc<Backend>) {
    if after.0 == Duration::ZERO {
        return;
    }
    backend.set_health(::http::StatusCode::SERVICE_UNAVAILABLE);
    let backend = Arc::clone(backend);
    tokio::spawn(async move {
        tokio::time::sleep(after.0).await;
        backend.set_health(::http::StatusCode::OK);
    });
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    text.parse()
        .map_err(|_| "expected IP:PORT, [IPv6]:PORT or a port alone".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_address;

    #[test]
    fn an_address_is_an_ip_with_a_port_or_a_port_alone() {
        assert_eq!(parse_address("8080").unwrap().to_string(), "0.0.0.0:8080");
        assert_eq!(parse_address(":8080").unwrap().to_string(), "0.0.0.0:8080");
        assert_eq!(
            parse_address("127.0.0.1:0").unwrap().to_string(),
            "127.0.0.1:0"
        );
        assert_eq!(parse_address("[::]:80").unwrap().to_string(), "[::]:80");
        assert!(
            parse_address("localhost:80")
                .unwrap_err()
                .contains("IP:PORT")
        );
        assert!(parse_address("70000").is_err());
    }
}
