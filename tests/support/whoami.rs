//! `heddle whoami` as a plain process of the test's own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::netns::Netns;
use super::node::{Node, NodeOptions};
use super::wait::eventually;

/// A running backend; killed at drop.
pub struct Whoami {
    child: Child,
    /// Where it serves HTTP, TCP echo and UDP echo.
    pub http: SocketAddr,
    pub tcp: Option<SocketAddr>,
    pub udp: Option<SocketAddr>,
}

impl Whoami {
    /// Starts a backend on ports of 127.0.0.1 that the system picks.
    pub fn start(name: &str, options: &[&str]) -> Self {
        Self::spawn(
            Command::new(env!("CARGO_BIN_EXE_heddle")),
            "127.0.0.1:0",
            name,
            options,
        )
    }

    /// Starts a backend on another host.
    pub fn start_in(netns: &Netns, listen: &str, name: &str, options: &[&str]) -> Self {
        Self::spawn(
            netns.command(env!("CARGO_BIN_EXE_heddle")),
            listen,
            name,
            options,
        )
    }

    fn spawn(mut command: Command, listen: &str, name: &str, options: &[&str]) -> Self {
        command
            .args(["whoami", "--name", name, "--listen", listen])
            .args(options);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start heddle whoami");
        let echoes = options
            .iter()
            .filter(|option| option.ends_with("-echo"))
            .count();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut http, mut tcp, mut udp) = (None, None, None);
        for _ in 0..1 + echoes {
            let line = lines
                .next()
                .expect("heddle whoami ended before it served")
                .unwrap();
            let (protocol, address) = line
                .split_once(' ')
                .expect("a line is a protocol and an address");
            let address = Some(address.parse().unwrap());
            match protocol {
                "http" => http = address,
                "tcp" => tcp = address,
                "udp" => udp = address,
                other => panic!("heddle whoami serves {other}?"),
            }
        }
        Self {
            child,
            http: http.expect("heddle whoami serves HTTP"),
            tcp,
            udp,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Sends a signal, for example `libc::SIGTERM`.
    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call; the child is not yet waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn ended_within(&mut self, deadline: Duration) -> ExitStatus {
        eventually(deadline, "heddle whoami ends", || {
            self.child.try_wait().unwrap()
        })
    }
}

impl Drop for Whoami {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Registers a backend with a node, as a workload of namespace `shop` with the label `app=web`.
#[track_caller]
pub fn register(node: &Node, name: &str, whoami: &Whoami) {
    let registration = format!(
        "{{id: {name}, namespace: shop, labels: {{app: web}}, ports: [{}]}}",
        whoami.http.port()
    );
    let output = node.heddle_with(&["register", "-"], &registration);
    assert!(output.status.success(), "{output:?}");
}

/// A node on loopback, with `shop/web` as `service` defines it, and these backends taking its work.
#[track_caller]
pub fn node_with(service: &str, backends: &[(&str, &Whoami)]) -> Node {
    let node = Node::start(&NodeOptions::default());
    node.apply(service);
    for (name, whoami) in backends {
        register(&node, name, whoami);
    }
    node.eligible("shop/web", backends.len() as u64);
    node
}
