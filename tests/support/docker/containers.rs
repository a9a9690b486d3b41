//! What the tests do with containers: the docker command, as methods.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::host::signal;
use super::{Dockerd, IMAGE};
use crate::support::image;
use crate::support::node::PATIENCE;
use crate::support::wait::eventually;

impl Dockerd {
    pub(super) fn import_image(&self) {
        let tar = File::open(image::tar()).expect("cannot read the image");
        let entry_point = r#"ENTRYPOINT ["/heddle"]"#;
        let mut command = self.command(&["import", "--change", entry_point, "-", IMAGE]);
        let output = command.stdin(tar).output().expect("cannot run docker");
        said("docker import", &output);
    }

    /// The docker command against this host.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        // The user's own contexts and settings must not lead to another daemon.
        for variable in [
            "DOCKER_HOST",
            "DOCKER_CONTEXT",
            "DOCKER_API_VERSION",
            "DOCKER_TLS_VERIFY",
        ] {
            command.env_remove(variable);
        }
        command.env("DOCKER_CONFIG", self.folder.path().join("client"));
        command.args(["--host", &self.url()]).args(words);
        command
    }

    /// Runs the docker command against this host and returns what it printed, trimmed.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> String {
        said(&format!("docker {}", words.join(" ")), &self.try_cli(words))
    }

    /// Runs the docker command, however it ends.
    #[track_caller]
    pub fn try_cli(&self, words: &[&str]) -> Output {
        self.command(words)
            .stdin(Stdio::null())
            .output()
            .expect("cannot run docker")
    }

    /// Starts a container in the background and returns its id.
    #[track_caller]
    pub fn run(&self, options: RunOptions<'_>) -> String {
        let mut words = options.words("run");
        if self.setup.podman {
            // dockerd is told of it when it starts.
            words.insert(2, format!("--cgroup-parent=/{}", self.control_group));
        }
        self.cli(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `docker stop`: the stop signal, and SIGKILL after ten seconds.
    #[track_caller]
    pub fn stop(&self, container: &str) {
        self.cli(&["stop", container]);
    }

    /// `docker kill` with SIGKILL.
    #[track_caller]
    pub fn kill(&self, container: &str) {
        self.cli(&["kill", container]);
    }

    #[track_caller]
    pub fn signal(&self, container: &str, signal: &str) {
        self.cli(&["kill", "--signal", signal, container]);
    }

    /// Removes a container, running or not.
    #[track_caller]
    pub fn rm(&self, container: &str) {
        self.cli(&["rm", "--force", container]);
    }

    /// Starts a container that was stopped.
    #[track_caller]
    pub fn start_container(&self, container: &str) {
        self.cli(&["start", container]);
    }

    #[track_caller]
    pub fn restart(&self, container: &str) {
        self.cli(&["restart", container]);
    }

    #[track_caller]
    pub fn pause(&self, container: &str) {
        self.cli(&["pause", container]);
    }

    #[track_caller]
    pub fn unpause(&self, container: &str) {
        self.cli(&["unpause", container]);
    }

    #[track_caller]
    pub fn create_network(&self, name: &str) {
        self.cli(&["network", "create", name]);
    }

    /// What `docker inspect` says of one container.
    #[track_caller]
    pub fn inspect(&self, container: &str) -> Value {
        let text = self.cli(&["inspect", "--type", "container", container]);
        let mut all: Value = serde_json::from_str(&text).expect("docker inspect prints JSON");
        all[0].take()
    }

    /// The container's address on a network (`bridge` is the default one), dialled from [`Self::netns`].
    #[track_caller]
    pub fn address(&self, container: &str, network: &str) -> IpAddr {
        let inspected = self.inspect(container);
        let address = &inspected["NetworkSettings"]["Networks"][network]["IPAddress"];
        let parsed = address.as_str().and_then(|address| address.parse().ok());
        parsed.unwrap_or_else(|| panic!("{container} has no address on {network}: {address}"))
    }

    /// Waits until a container that has ended has given its address back: Docker says that it ended a moment before.
    #[track_caller]
    pub fn until_addressless(&self, container: &str) {
        eventually(PATIENCE, &format!("{container} has no address"), || {
            let inspected = self.inspect(container);
            let address = &inspected["NetworkSettings"]["IPAddress"];
            (address == "").then_some(()).ok_or_else(|| address.clone())
        });
    }

    /// The first process of a container, which can be ended without asking the daemon.
    #[track_caller]
    pub fn process(&self, container: &str) -> Process {
        let id = self.cli(&["inspect", "--format", "{{.Id}}", container]);
        // Its control group carries the container's id.
        let found = std::fs::read_dir("/proc").expect("processes").flatten();
        let pid = found
            .filter(|entry| {
                let groups = std::fs::read_to_string(entry.path().join("cgroup"));
                groups.is_ok_and(|groups| groups.contains(&id))
            })
            .find_map(|entry| entry.file_name().to_str()?.parse().ok());
        Process {
            pid: pid.unwrap_or_else(|| panic!("{container} has no process")),
        }
    }

    /// The host port that a container's TCP port is published on.
    #[track_caller]
    pub fn published_port(&self, container: &str, port: u16) -> u16 {
        let printed = self.cli(&["port", container, &format!("{port}/tcp")]);
        // Podman leaves the address out where it means all of them.
        let first = printed
            .lines()
            .next()
            .and_then(|line| line.rsplit_once(':')?.1.parse().ok());
        first.unwrap_or_else(|| panic!("{container} does not publish {port}: {printed:?}"))
    }

    /// Docker's events from now on.
    pub fn events(&self) -> Events {
        // The command takes its time to start: events that happen meanwhile are asked for by their time.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the clock is past 1970");
        let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let mut command = self.command(&["events", "--since", &since, "--format", "{{json .}}"]);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot run docker");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("docker events prints JSON");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Events { child, receiver }
    }
}

/// A process in a container.
pub struct Process {
    pid: i32,
}

impl Process {
    pub fn kill(&self) {
        signal(self.pid, libc::SIGKILL);
    }

    /// Its network namespace.
    pub fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }
}

/// What a container is started with.
#[derive(Default)]
pub struct RunOptions<'a> {
    pub name: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
    /// What stands after the image: the arguments of `heddle`; `["whoami", "--name", NAME]` when empty.
    pub args: &'a [&'a str],
    pub network: Option<&'a str>,
    /// As in `docker run --publish`: `18080:8080`, or `8080` for a host port that Docker picks.
    pub publish: &'a [&'a str],
    /// Further options of `docker run`.
    pub extra: &'a [&'a str],
    /// [`IMAGE`] by default.
    pub image: Option<&'a str>,
}

impl RunOptions<'_> {
    fn words(&self, verb: &str) -> Vec<String> {
        let mut words = vec![verb.to_owned(), "--detach".to_owned()];
        let mut option =
            |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
        if !self.name.is_empty() {
            option("--name", self.name);
        }
        for (key, value) in self.labels {
            option("--label", &format!("{key}={value}"));
        }
        if let Some(network) = self.network {
            option("--network", network);
        }
        for port in self.publish {
            option("--publish", port);
        }
        words.extend(self.extra.iter().map(|&word| word.to_owned()));
        words.push(self.image.unwrap_or(IMAGE).to_owned());
        if self.args.is_empty() {
            words.push("whoami".to_owned());
            if !self.name.is_empty() {
                words.extend(["--name".to_owned(), self.name.to_owned()]);
            }
        }
        words.extend(self.args.iter().map(|&word| word.to_owned()));
        words
    }
}

/// A stream of Docker's events, as JSON. Ends at drop.
pub struct Events {
    child: Child,
    receiver: mpsc::Receiver<Value>,
}

impl Events {
    /// Waits for the next event of this action (`start`, `kill`, `die`, …), past all others.
    #[track_caller]
    pub fn next(&self, action: &str, deadline: Duration) -> Value {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(event) if event["Action"] == action => return event,
                Ok(_) => {}
                Err(_) => panic!("no `{action}` event within {deadline:?}"),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub(super) fn said(what: &str, output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "`{what}` failed: {}",
        stderr.trim()
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
