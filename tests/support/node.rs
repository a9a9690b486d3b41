//! A heddle node as its users run it: the binary, a configuration file, and the command line.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::docker::Dockerd;
use super::http;
use super::netns::Netns;
use super::wait::eventually;

/// How long a node may take to start or to stop, on a machine that is busy with everything else.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a node is started with.
pub struct NodeOptions<'a> {
    pub name: &'a str,
    /// The host it runs on; none: the test's own.
    pub netns: Option<&'a Netns>,
    /// The URLs of an etcd's members, separated by commas; none: the embedded registry.
    pub etcd: Option<String>,
    /// More keys of `[registry]`, where there is an etcd.
    pub registry: &'a str,
    /// The Docker that it watches; none: no containers.
    pub docker: Option<&'a Dockerd>,
    pub address: Option<IpAddr>,
    /// Networks, separated by commas. Empty: a loopback range that no other node of this test program has.
    pub vip_range: &'a str,
    /// Where DNS listens.
    pub dns: &'a str,
    /// More keys of `[dns]`.
    pub dns_keys: &'a str,
    /// More configuration: whole sections, or keys of the last one.
    pub extra: &'a str,
}

impl Default for NodeOptions<'_> {
    fn default() -> Self {
        NodeOptions {
            name: "n1",
            netns: None,
            etcd: None,
            registry: "",
            docker: None,
            address: None,
            vip_range: "",
            dns: "127.0.0.1:0",
            dns_keys: "",
            extra: "",
        }
    }
}

/// A running node. Its folder outlives restarts.
pub struct Node {
    folder: TempDir,
    netns: Option<String>,
    child: Option<Child>,
}

impl Node {
    /// Starts a node and waits until its admin socket answers.
    #[track_caller]
    pub fn start(options: &NodeOptions<'_>) -> Node {
        let mut node = Node::prepare(options);
        node.launch();
        node
    }

    /// A node with its configuration written, not yet started.
    pub fn prepare(options: &NodeOptions<'_>) -> Node {
        let folder = tempfile::tempdir().expect("a folder for the node");
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(folder.path().join("resources")).expect("a folder for resources");
        let registry = match &options.etcd {
            Some(urls) => format!(
                "[registry]\nbackend = \"etcd\"\nendpoints = [\"{}\"]\nlease_ttl = \"3s\"\n{}\n",
                urls.replace(',', "\", \""),
                options.registry
            ),
            None => String::new(),
        };
        let docker = match options.docker {
            Some(docker) => format!("[docker]\nsocket = \"{}\"\n", docker.url()),
            None => "[docker]\nenabled = false\n".to_owned(),
        };
        // Nodes of the test's own host reach each other there, whatever networks it has.
        let own = || {
            options
                .netns
                .is_none()
                .then(|| IpAddr::from([127, 0, 0, 1]))
        };
        let address = options
            .address
            .or_else(own)
            .map_or(String::new(), |ip| format!("address = \"{ip}\"\n"));
        static RANGES: AtomicU8 = AtomicU8::new(100);
        let vip_range = match options.vip_range {
            "" => format!("127.{}.0.0/16", RANGES.fetch_add(1, Ordering::Relaxed)),
            ranges => ranges.replace(',', "\", \""),
        };
        let text = format!(
            "[node]\nname = \"{}\"\n{address}state_dir = \"{}\"\n{registry}{docker}\
             [resources]\npath = \"{}\"\n[mesh]\nvip_range = [\"{}\"]\n[dns]\nlisten = [\"{}\"]\n{}\n\
             [admin]\nsocket = \"{}\"\nlisten = \"127.0.0.1:0\"\n[proxy]\nworkers = 2\n{}",
            options.name,
            at("state"),
            at("resources"),
            vip_range,
            options.dns,
            options.dns_keys,
            at("heddle.sock"),
            options.extra,
        );
        fs::write(folder.path().join("heddle.toml"), text).expect("the configuration is written");
        Node {
            folder,
            netns: options.netns.map(Netns::path),
            child: None,
        }
    }

    /// Starts the process and waits until its admin socket answers.
    #[track_caller]
    pub fn launch(&mut self) {
        self.spawn();
        eventually(PATIENCE, "the node's admin socket answers", || {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten())
            {
                panic!("the node ended with {status}:\n{}", self.log());
            }
            self.heddle(&["get", "nodes"]).status.success()
        });
    }

    /// Starts the process, and waits for nothing.
    pub fn spawn(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("the log opens");
        let program = env!("CARGO_BIN_EXE_heddle");
        let mut command = match &self.netns {
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={netns}")).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .arg("up")
            .arg("--config")
            .arg(self.path("heddle.toml"));
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEDDLE_")) {
            command.env_remove(variable);
        }
        command
            .env(
                "HEDDLE_LOG",
                "debug,hyper=info,h2=info,tonic=info,tower=info,bollard=info",
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log is cloned"))
            .stderr(log);
        self.child = Some(command.spawn().expect("heddle starts"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All that it logged, for a failing test's message.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Where `--server` finds it.
    pub fn server(&self) -> String {
        format!("unix://{}", self.path("heddle.sock").display())
    }

    /// Runs a heddle command against it.
    pub fn heddle(&self, words: &[&str]) -> Output {
        self.heddle_with(words, "")
    }

    /// Runs a heddle command with a text on its standard input.
    pub fn heddle_with(&self, words: &[&str], stdin: &str) -> Output {
        heddle(&[&["--server", &self.server()], words].concat(), stdin)
    }

    /// Runs a heddle command that must succeed; what it printed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.heddle(words);
        said(words, &output)
    }

    /// Applies manifests, which must succeed.
    #[track_caller]
    pub fn apply(&self, manifests: &str) -> String {
        let output = self.heddle_with(&["apply", "-f", "-"], manifests);
        said(&["apply"], &output)
    }

    /// `heddle get KIND -o json`.
    #[track_caller]
    pub fn get(&self, kind: &str) -> Vec<Value> {
        let text = self.ok(&["get", kind, "-A", "-o", "json"]);
        serde_json::from_str(&text).expect("heddle prints JSON")
    }

    /// A service of `namespace/name`, when it is there.
    pub fn service(&self, key: &str) -> Option<Value> {
        let (namespace, name) = key.split_once('/').expect("namespace/name");
        self.get("services")
            .into_iter()
            .find(|s| s["metadata"]["namespace"] == namespace && s["metadata"]["name"] == name)
    }

    /// A service's virtual IP, waited for.
    #[track_caller]
    pub fn vip(&self, key: &str) -> IpAddr {
        eventually(PATIENCE, &format!("{key} has a virtual IP"), || {
            let service = self.service(key)?;
            service["status"]["vips"][0].as_str()?.parse().ok()
        })
    }

    /// Waits until a service has this many endpoints that take work from this node.
    #[track_caller]
    pub fn eligible(&self, key: &str, count: u64) {
        let what = format!("{key} has {count} eligible endpoints");
        eventually(PATIENCE, &what, || {
            let service = self.service(key).ok_or("no such service".to_owned())?;
            let port = &service["status"]["ports"][0];
            if port["eligible"] == count {
                Ok(())
            } else {
                Err(port.to_string())
            }
        });
    }

    /// The endpoints of a service, by name.
    pub fn endpoints(&self, service: &str) -> Vec<Value> {
        let (namespace, name) = service.split_once('/').expect("namespace/name");
        let mut all = self.get("endpoints");
        all.retain(|e| e["namespace"] == namespace && e["service"] == name);
        all
    }

    /// The verdict shown for a container: its row in `get workloads`.
    pub fn workload(&self, name: &str) -> Option<Value> {
        self.get("workloads")
            .into_iter()
            .find(|w| w["name"] == name)
    }

    /// `GET` through the socket, without a process of its own as the command line takes.
    pub fn ask(&self, path: &str) -> io::Result<http::Answer> {
        http::get_unix(&self.path("heddle.sock"), path, PATIENCE)
    }

    /// `/readyz` as JSON, with its status, through the socket.
    pub fn readyz(&self) -> Option<(u16, Value)> {
        let answer = self.ask("/readyz").ok()?;
        Some((answer.status, serde_json::from_str(&answer.body).ok()?))
    }

    /// A metric's value, summed over the series whose labels contain all of `labels`; 0 where there is none.
    ///
    /// # Panics
    /// When the node doesn't give its metrics: no answer is no 0.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.ask("/metrics").expect("the node answers");
        assert_eq!(answer.status, 200, "{}", answer.body);
        (answer.body.lines())
            .filter(|line| {
                let series = line.split(['{', ' ']).next();
                series == Some(name) && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Where a listener that was asked for with port 0 ended up, read off the log: `dns listens` or `admin listens`.
    pub fn logged_address(&self, message: &str) -> SocketAddr {
        eventually(PATIENCE, message, || {
            let log = self.log();
            let line = log.lines().rev().find(|l| l.contains(message))?;
            let digits = |c: char| c.is_ascii_digit() || c == '.' || c == ':';
            line.split(|c: char| !digits(c))
                .find_map(|word| word.parse().ok())
        })
    }

    pub fn pid(&self) -> i32 {
        let id = self.child.as_ref().expect("the node runs").id();
        i32::try_from(id).expect("pids fit")
    }

    /// SIGTERM, and its end within the patience.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        self.ended();
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn ends(&mut self) {
        self.ended();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.ended();
    }

    pub fn signal(&self, signal: i32) {
        // nsenter becomes the program it starts, so its pid is the node's.
        // SAFETY: kill takes no pointers; the process is our child and not yet waited for.
        unsafe { libc::kill(self.pid(), signal) };
    }

    #[track_caller]
    fn ended(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        eventually(PATIENCE + Duration::from_secs(15), "the node ends", || {
            child.try_wait().expect("it is our child").is_some()
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- the node's log, its end:\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
    }
}

/// A command that watches a node, its lines as they come. Ends at drop.
pub struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    pub fn start(node: &Node, words: &[&str]) -> Watching {
        let mut child = Command::new(env!("CARGO_BIN_EXE_heddle"))
            .args(["--server", &node.server()])
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .expect("heddle starts");
        let (send, lines) = channel();
        let stdout = child.stdout.take().expect("stdout is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Watching { child, lines }
    }

    /// The next line that has all of these texts.
    #[track_caller]
    pub fn sees(&self, texts: &[&str]) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if texts.iter().all(|t| line.contains(t)) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no line with {texts:?} came, but\n{}", seen.join("\n")),
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs heddle with a text on its standard input.
pub fn heddle(words: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_heddle"))
        .args(words)
        .env_remove("HEDDLE_SERVER")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("heddle starts");
    let mut input = child.stdin.take().expect("stdin is piped");
    // A command that reads nothing closes it.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    child.wait_with_output().expect("heddle ends")
}

#[track_caller]
fn said(words: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "heddle {} failed: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
