//! A real etcd for a test: started on free ports of 127.0.0.1 in a folder of its own, and ended
//! with the value that stands for it.
//!
//! All calls block; none takes longer than [`PATIENCE`].

// Each test binary that includes this file uses another part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long etcd may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A single etcd member.
pub struct Etcd {
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl Etcd {
    /// Whether the programs `etcd` and `etcdctl` are installed.
    pub fn available() -> bool {
        ["etcd", "etcdctl"].iter().all(|program| {
            let run = Command::new(program)
                .arg(if *program == "etcd" {
                    "--version"
                } else {
                    "version"
                })
                .env("ETCDCTL_API", "3")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            run.is_ok_and(|status| status.success())
        })
    }

    /// Starts etcd, or says loudly that the test is skipped where etcd is not installed. In CI
    /// that is a failure.
    pub fn start_or_skip(test: &str) -> Option<Etcd> {
        if Etcd::available() {
            return Some(Etcd::start());
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "{test} needs etcd and etcdctl, and CI is set"
        );
        // The standard error directly: the test harness captures what `eprintln!` prints.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {test}: etcd and etcdctl are not installed"
        );
        None
    }

    /// Starts etcd and waits until it is healthy.
    pub fn start() -> Etcd {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut etcd = Etcd {
                dir: tempfile::tempdir().expect("a folder for etcd"),
                client_port: free_port(),
                peer_port: free_port(),
                child: None,
            };
            etcd.spawn();
            match etcd.wait_until_healthy(deadline) {
                Ok(()) => return etcd,
                // Somebody else took one of the ports in the meantime.
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("etcd does not start:\n{log}"),
            }
        }
    }

    /// Its client URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Its client URL for those who reach this machine at `address`.
    pub fn endpoint_at(&self, address: std::net::IpAddr) -> String {
        format!("http://{}", SocketAddr::new(address, self.client_port))
    }

    /// Ends it by SIGTERM.
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        if let Some(child) = &mut self.child {
            while child.try_wait().expect("etcd is our child").is_none() {
                assert!(Instant::now() < deadline, "etcd does not stop");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.child = None;
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("etcd is our child");
            child.wait().expect("etcd is our child");
        }
    }

    /// Starts it again on the same ports and data, after [`Etcd::stop`] or [`Etcd::kill`].
    pub fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.spawn();
            match self.wait_until_healthy(deadline) {
                Ok(()) => return,
                // A connection that is being closed may hold the port for a moment.
                Err(log) if log.contains("address already in use") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(log) => panic!("etcd does not start again:\n{log}"),
            }
        }
    }

    /// Stops it in its tracks (SIGSTOP): connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on after [`Etcd::pause`].
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Forgets the history before `revision`.
    pub fn compact(&self, revision: i64) {
        self.ctl(&["compact", &revision.to_string()]);
    }

    /// Ends a lease, as an operator would.
    pub fn revoke_lease(&self, id: i64) {
        self.ctl(&["lease", "revoke", &format!("{id:x}")]);
    }

    /// Puts it into the state of a database that has reached its quota: reads only.
    pub fn raise_no_space_alarm(&self) {
        // There is no command for it; this is the gateway to the same call.
        let member = self.ctl(&["endpoint", "status", "--write-out=fields"]);
        let id = member
            .lines()
            .find_map(|line| line.strip_prefix("\"MemberID\" : "))
            .expect("etcdctl tells the member's id");
        let body = format!(r#"{{"action":"ACTIVATE","alarm":"NOSPACE","memberID":"{id}"}}"#);
        let request = format!(
            "POST /v3/maintenance/alarm HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.http(&request).expect("etcd's gateway answers");
        assert!(answer.contains("NOSPACE"), "{answer}");
    }

    /// Runs `etcdctl` and gives what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint()))
            .args(args)
            .output()
            .expect("etcdctl is installed");
        assert!(
            output.status.success(),
            "etcdctl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn signal(&self, signal: libc::c_int) {
        if let Some(child) = &self.child {
            let pid = libc::pid_t::try_from(child.id()).expect("a pid");
            // SAFETY: kill has no memory effects, and the child has not been waited for, so that
            // its pid is still its own.
            let done = unsafe { libc::kill(pid, signal) };
            assert_eq!(
                done,
                0,
                "signal {signal} to etcd: {}",
                std::io::Error::last_os_error()
            );
        }
    }

    fn spawn(&mut self) {
        let log = File::create(self.log_file()).expect("a log file for etcd");
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let child = Command::new("etcd")
            .arg("--name=test")
            .arg(format!(
                "--data-dir={}",
                self.dir.path().join("data").display()
            ))
            // On all addresses, so that hosts in other network namespaces reach it too.
            .arg(format!(
                "--listen-client-urls=http://0.0.0.0:{}",
                self.client_port
            ))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=test={peer}"))
            // A quick election, and with it leases down to one second.
            .args([
                "--heartbeat-interval=50",
                "--election-timeout=500",
                "--logger=zap",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed");
        self.child = Some(child);
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.dir.path().join("etcd.log")
    }

    /// Gives the log when etcd ends or the deadline passes first.
    fn wait_until_healthy(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            if self.is_healthy() {
                return Ok(());
            }
            let child = self.child.as_mut().expect("etcd was spawned");
            let ended = child.try_wait().expect("etcd is our child").is_some();
            if ended || Instant::now() > deadline {
                self.kill();
                return Err(fs::read_to_string(self.log_file()).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_healthy(&self) -> bool {
        let answer = self.http("GET /health HTTP/1.0\r\n\r\n");
        answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }

    fn http(&self, request: &str) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.client_port));
        let timeout = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}
