//! Real Docker hosts: a private dockerd per host, each in a network namespace of its own, so that two of them
//! have containers of the same address.
//!
//! # How nothing is left behind
//! The daemon, its containerd, the shims and the containers live in a process namespace whose first process
//! waits on a pipe that the test holds. When the test ends, is killed or drops the [`Dockerd`], the pipe
//! closes, the first process ends, and the kernel kills all the others. The same goes for mounts (a mount
//! namespace, with the daemon's data on a tmpfs) and for bridges and packet filters (the network namespace).
//! Only empty control groups and a folder with a log outlive a killed test; the next run removes those. The empty
//! folders of the machine that a host mounts over (see `host`) are made where they are missing, and stay.
//!
//! Podman hosts are made the same way: its service in the daemon's place, its own containers beside it, and
//! the docker command against its compatible socket.
//!
//! # Layout
//! - here: the daemon, from its start to its end
//! - `podman`: Podman in Docker's place
//! - `containers`: what tests do with containers
//! - `resolvers`: images that look names up
//! - `host`: the namespaces and control groups of a host

mod containers;
mod host;
mod podman;
pub mod resolvers;

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::etcd::until_stopped;
use super::netns::Netns;
use super::wait::eventually;
use super::{mark, missing_program, not_root, program, requirement};
use host::{only_child, open_host, ping, remove_control_groups, remove_leftovers, signal, thaw};

pub use containers::{Events, Process, RunOptions};
pub use podman::podman_ready;

/// The image of our own binary, with `heddle` as its entry point.
pub const IMAGE: &str = "heddle-whoami";

/// dockerd is up in less than half a second; this is for a machine that is busy with everything else.
const START: Duration = Duration::from_secs(60);
/// dockerd gives its containers ten seconds to stop by themselves.
const STOP: Duration = Duration::from_secs(30);

/// Whether Docker hosts can be made here.
///
/// # Panics
/// When they cannot and the environment variable CI is set.
pub fn ready() -> bool {
    let programs = [
        "dockerd",
        "containerd",
        "docker",
        "iptables",
        "ip",
        "unshare",
        "nsenter",
        "mount",
    ];
    requirement("Docker", not_root().or_else(|| missing_program(&programs)))
}

/// How a daemon is to be set up.
#[derive(Clone, Default)]
pub struct Setup {
    /// The host that it runs on; a new one, joined to nobody, by default.
    pub netns: Option<Netns>,
    /// Containers outlive the daemon.
    pub live_restore: bool,
    /// Further options of `dockerd`.
    pub options: Vec<String>,
    /// Podman instead of Docker: containers outlive its service always.
    pub podman: bool,
}

/// A Docker host. Its methods panic with what Docker said when something fails.
pub struct Dockerd {
    /// The network of the host: the containers' bridge is here, and their addresses can be dialled from here.
    pub netns: Netns,
    setup: Setup,
    folder: TempDir,
    /// `unshare`, which ends when all the processes of the host have ended.
    keeper: Child,
    /// The pipe that keeps the host alive.
    lifeline: Option<ChildStdin>,
    /// The host's first process.
    init: i32,
    /// `nsenter`, which ends when the daemon does.
    daemon: Option<Child>,
    control_group: String,
}

impl Dockerd {
    /// A Docker host joined to nobody, with [`IMAGE`] imported.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, Setup::default())
    }

    /// A Docker host on a host of a LAN.
    pub fn start_in(name: &str, netns: &Netns) -> Self {
        Self::start_with(
            name,
            Setup {
                netns: Some(netns.clone()),
                ..Setup::default()
            },
        )
    }

    pub fn start_with(name: &str, setup: Setup) -> Self {
        remove_leftovers();
        let folder = tempfile::Builder::new()
            .prefix(&mark())
            .tempdir()
            .expect("cannot make a folder");
        // dockerd must not take up the machine's own /etc/docker/daemon.json.
        fs::write(folder.path().join("daemon.json"), "{}\n").expect("cannot write to the folder");
        fs::create_dir(folder.path().join("state")).expect("cannot write to the folder");
        let netns = setup.netns.clone().unwrap_or_else(Netns::new);
        let (keeper, lifeline, init) = open_host(&netns, folder.path());
        let unique = folder
            .path()
            .file_name()
            .expect("the folder has a name")
            .to_string_lossy();
        let control_group = format!("{unique}-{name}");
        let lifeline = Some(lifeline);
        let mut docker = Self {
            netns,
            setup,
            folder,
            keeper,
            lifeline,
            init,
            daemon: None,
            control_group,
        };
        docker.start_daemon();
        docker.import_image();
        docker
    }

    /// The daemon's socket as Docker's clients want it: `unix:///…`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// Starts the daemon again after [`stop_daemon`](Self::stop_daemon) or
    /// [`kill_daemon`](Self::kill_daemon), and waits until it answers.
    pub fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "the daemon is running");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("cannot write a log");
        let mut command = if self.setup.podman {
            self.podman_service()
        } else {
            self.dockerd()
        };
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("cannot share the log"))
            .stderr(log);
        let mut daemon = command.spawn().expect("cannot start nsenter");
        let socket = self.socket();
        let answers = || match daemon.try_wait() {
            Ok(Some(status)) => Ok(Err(status)),
            _ => ping(&socket).map(Ok),
        };
        if let Err(status) = eventually(START, "dockerd answers", answers) {
            panic!("dockerd ended with {status}; its log:\n{}", self.log());
        }
        self.daemon = Some(daemon);
    }

    /// A program that will run within the host, where its processes have their own ids.
    pub fn within(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--mount",
            "--pid",
            "--net",
        ]);
        command.arg(program(name).unwrap_or_else(|| panic!("{name} is not installed")));
        command
    }

    fn dockerd(&self) -> Command {
        let state = self.folder.path().join("state");
        let option = |name: &str, path: PathBuf| [name.to_owned(), path.display().to_string()];
        let mut command = self.within("dockerd");
        // containerd leaves its stacks there when dockerd finds that it hangs.
        command.env("TMPDIR", &state);
        command.args(option(
            "--config-file",
            self.folder.path().join("daemon.json"),
        ));
        command.args(option("--data-root", state.join("data")));
        command.args(option("--exec-root", state.join("exec")));
        command.args(option("--pidfile", state.join("pid")));
        command.args(["--host", &self.url()]);
        // systemd's driver would need a systemd in the host; the parent is what can be found and removed.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &format!("/{}", self.control_group)]);
        if self.setup.live_restore {
            command.arg("--live-restore");
        }
        command.args(&self.setup.options);
        command
    }

    /// Ends the daemon as `systemctl stop docker` does: without live-restore its containers end too.
    pub fn stop_daemon(&mut self) {
        self.end_daemon(libc::SIGTERM);
    }

    /// Kills the daemon as a crash would. containerd goes with it, shims and containers stay until the next
    /// start, which without live-restore ends them.
    pub fn kill_daemon(&mut self) {
        self.end_daemon(libc::SIGKILL);
    }

    pub fn restart_daemon(&mut self) {
        self.stop_daemon();
        self.start_daemon();
    }

    /// Stops the daemon from doing anything (SIGSTOP): its socket takes connections and answers none.
    pub fn freeze_daemon(&self) {
        signal(self.daemon_pid(), libc::SIGSTOP);
        until_stopped(self.daemon_pid().unsigned_abs());
    }

    pub fn thaw_daemon(&self) {
        signal(self.daemon_pid(), libc::SIGCONT);
        // It stops when its child does, and would leave that one unreaped at its end.
        let daemon = self.daemon.as_ref().expect("the daemon is running");
        signal(daemon.id().cast_signed(), libc::SIGCONT);
    }

    fn end_daemon(&mut self, by: i32) {
        let pid = self.daemon_pid();
        let mut daemon = self.daemon.take().expect("the daemon is running");
        signal(pid, by);
        eventually(STOP, "dockerd ends", || {
            daemon.try_wait().expect("cannot wait for dockerd")
        });
    }

    fn daemon_pid(&self) -> i32 {
        let daemon = self.daemon.as_ref().expect("the daemon is running");
        only_child(daemon.id()).expect("nsenter has started dockerd")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("dockerd.log")
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        thaw(&self.control_group);
        drop(self.lifeline.take());
        let end = Instant::now() + STOP;
        while matches!(self.keeper.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        // When the keeper dies, `--kill-child` takes the first process along: nothing survives this.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        remove_control_groups(&self.control_group);
    }
}
