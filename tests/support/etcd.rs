//! Real etcds for a test: started on free ports of 127.0.0.1 in folders of their own, and ended
//! with the values that stand for them.
//!
//! - [`Etcd`]: one member
//! - [`Cluster`]: three members, whose connections can be cut
//!
//! All calls block; none takes longer than [`PATIENCE`].

// Each test binary that includes this file uses another part of it.
#![allow(dead_code, unused_imports)]

#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "etcd/relay.rs"]
mod relay;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use cluster::Cluster;

/// How long etcd may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// An etcd member.
pub struct Etcd {
    dir: tempfile::TempDir,
    /// Of its data; another one after each restored snapshot.
    data: PathBuf,
    name: String,
    client_port: u16,
    peer_port: u16,
    /// Where it tells its health without TLS.
    metrics_port: u16,
    /// Where the others reach it.
    peer_url: String,
    /// All members, as `--initial-cluster` takes them.
    members: String,
    options: Options,
    /// Whether it answers calls only after `auth enable`: then as this user, `name:password`.
    user: Option<String>,
    child: Option<Child>,
}

/// How an etcd is started, beyond the usual.
#[derive(Clone, Default)]
pub struct Options {
    /// For clients; the members among themselves speak plainly.
    pub tls: Option<ServerTls>,
    /// Further arguments.
    pub args: Vec<String>,
}

/// Files for `https`, all PEM.
#[derive(Clone)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates of both sides. Clients have to show theirs.
    pub ca: PathBuf,
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
        Etcd::start_or_skip_with(test, Options::default())
    }

    /// Like [`Etcd::start_or_skip`], in another way than usual.
    pub fn start_or_skip_with(test: &str, options: Options) -> Option<Etcd> {
        available_or_skipped(test).then(|| Etcd::start_with(options))
    }

    /// Starts etcd and waits until it is healthy.
    pub fn start() -> Etcd {
        Etcd::start_with(Options::default())
    }

    /// Like [`Etcd::start`], in another way than usual.
    pub fn start_with(options: Options) -> Etcd {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut etcd = Etcd::new("test", options.clone());
            etcd.peer_url = format!("http://127.0.0.1:{}", etcd.peer_port);
            etcd.members = format!("test={}", etcd.peer_url);
            etcd.spawn();
            match etcd.wait_until_healthy(deadline) {
                Ok(()) => return etcd,
                // Somebody else took one of the ports in the meantime.
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("etcd does not start:\n{log}"),
            }
        }
    }

    fn new(name: &str, options: Options) -> Etcd {
        let dir = tempfile::tempdir().expect("a folder for etcd");
        Etcd {
            data: dir.path().join("data"),
            dir,
            name: name.to_owned(),
            client_port: free_port(),
            peer_port: free_port(),
            metrics_port: free_port(),
            peer_url: String::new(),
            members: String::new(),
            options,
            user: None,
            child: None,
        }
    }

    /// Its client URL.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client_port)
    }

    fn scheme(&self) -> &'static str {
        match self.options.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Its client URL for those who reach this machine at `address`.
    pub fn endpoint_at(&self, address: std::net::IpAddr) -> String {
        format!(
            "{}://{}",
            self.scheme(),
            SocketAddr::new(address, self.client_port)
        )
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
        if let Some(child) = &self.child {
            until_stopped(child.id());
        }
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
        let answer = http(self.client_port, &request).expect("etcd's gateway answers");
        assert!(answer.contains("NOSPACE"), "{answer}");
    }

    /// From now on calls need a user: `heddle`, who may read and write below `/heddle`, or root (`root:root`).
    pub fn enable_users(&mut self, password: &str) {
        self.ctl(&["user", "add", "root:root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["role", "add", "heddle"]);
        let grant = ["role", "grant-permission", "heddle", "--prefix=true"];
        self.ctl(&[&grant[..], &["readwrite", "/heddle"]].concat());
        self.ctl(&["user", "add", &format!("heddle:{password}")]);
        self.ctl(&["user", "grant-role", "heddle", "heddle"]);
        self.ctl(&["auth", "enable"]);
        self.user = Some("root:root".to_owned());
    }

    /// Gives the user `heddle` another password, which ends the tokens had with the old one.
    pub fn change_password(&self, password: &str) {
        let mut child = self
            .ctl_command(&["user", "passwd", "heddle", "--interactive=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("etcdctl is installed");
        let mut stdin = child.stdin.take().expect("it is piped");
        writeln!(stdin, "{password}").expect("etcdctl reads");
        drop(stdin);
        assert!(child.wait().expect("etcdctl is our child").success());
    }

    /// Saves what is there now.
    pub fn save(&self, file: &Path) {
        self.ctl(&["snapshot", "save", &file.display().to_string()]);
    }

    /// Puts the saved state in place of the data; to be called while it is down.
    fn restore_data(&mut self, file: &Path) {
        assert!(self.child.is_none(), "etcd is still running");
        let number = fs::read_dir(self.dir.path()).expect("its folder").count();
        self.data = self.dir.path().join(format!("restored-{number}"));
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(file)
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data.display()))
            .arg(format!("--initial-cluster={}", self.members))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer_url))
            .output()
            .expect("etcdctl is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl snapshot restore: {said}");
    }

    /// Ends it, and starts it again from a saved state.
    pub fn restore(&mut self, file: &Path) {
        self.kill();
        self.restore_data(file);
        self.restart();
    }

    fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint()));
        if let Some(tls) = &self.options.tls {
            command
                .arg(format!("--cacert={}", tls.ca.display()))
                .arg(format!("--cert={}", tls.cert.display()))
                .arg(format!("--key={}", tls.key.display()));
        }
        if let Some(user) = &self.user {
            command.arg(format!("--user={user}"));
        }
        command.args(args);
        command
    }

    /// Runs `etcdctl` and gives what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self
            .ctl_command(args)
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
        let scheme = self.scheme();
        let mut command = Command::new("etcd");
        command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data.display()))
            // On all addresses, so that hosts in other network namespaces reach it too.
            .arg(format!(
                "--listen-client-urls={scheme}://0.0.0.0:{}",
                self.client_port
            ))
            .arg(format!("--advertise-client-urls={}", self.endpoint()))
            .arg(format!(
                "--listen-peer-urls=http://127.0.0.1:{}",
                self.peer_port
            ))
            .arg(format!(
                "--listen-metrics-urls=http://127.0.0.1:{}",
                self.metrics_port
            ))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer_url))
            .arg(format!("--initial-cluster={}", self.members))
            // A quick election, and with it leases down to one second.
            .args([
                "--heartbeat-interval=50",
                "--election-timeout=500",
                "--logger=zap",
            ])
            .args(&self.options.args);
        if let Some(tls) = &self.options.tls {
            command
                .arg(format!("--cert-file={}", tls.cert.display()))
                .arg(format!("--key-file={}", tls.key.display()))
                .arg(format!("--trusted-ca-file={}", tls.ca.display()))
                .arg("--client-cert-auth");
        }
        let child = command
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
        let answer = http(self.metrics_port, "GET /health HTTP/1.0\r\n\r\n");
        answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }
}

fn http(port: u16, request: &str) -> std::io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether etcd is installed; in CI it must be.
fn available_or_skipped(test: &str) -> bool {
    if Etcd::available() {
        return true;
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
    false
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

/// Waits until every thread of a process stands still: SIGSTOP is sent before it is obeyed.
///
/// # Panics
/// When it goes on.
#[track_caller]
pub fn until_stopped(pid: u32) {
    let state = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        // A thread that ends meanwhile has no state.
        let mut states = threads.flatten().filter_map(state);
        if states.all(|state| state == 'T') {
            return;
        }
        assert!(Instant::now() < deadline, "process {pid} goes on");
        std::thread::sleep(Duration::from_millis(1));
    }
}
