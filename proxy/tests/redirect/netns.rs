//! Hosts made of network namespaces: each test has its own, so tests neither see each other nor
//! change the machine they run on.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Address of the host's end of the bridge, which is the guest's gateway.
pub const HOST_V4: &str = "172.30.0.1";
/// The guest's addresses.
pub const GUEST_V4: &str = "172.30.0.2";
pub const GUEST_V6: &str = "fd30::2";

/// A network namespace, alive as long as the thread that runs its jobs.
pub struct Namespace {
    thread_id: libc::pid_t,
    jobs: mpsc::Sender<Job>,
}

impl Namespace {
    /// A fresh namespace with nothing but `lo`, which is up.
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: both only concern the calling thread and take no memory.
            let thread_id = unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0, "unshare needs root");
                libc::gettid()
            };
            ready.send(thread_id).expect("the test waits");
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        let namespace = Self {
            thread_id: is_ready.recv().expect("the namespace's thread started"),
            jobs,
        };
        namespace.shell("ip link set lo up");
        namespace
    }

    /// Runs `job` in the namespace; threads that it starts belong to the namespace too.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = mpsc::channel::<Result<T, Box<dyn Any + Send>>>();
        let job = move || {
            let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
        };
        self.jobs.send(Box::new(job)).expect("the thread lives");
        match is_done.recv().expect("the thread lives") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs commands that must succeed, and gives what they print.
    pub fn shell(&self, script: &str) -> String {
        let script = format!("set -e\n{script}");
        self.run(move || {
            let output = Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh runs");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{script}\n{errors}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) {
        let rules = rules.to_owned();
        self.run(move || {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("nft runs");
            let mut stdin = nft.stdin.take().expect("piped");
            stdin.write_all(rules.as_bytes()).expect("nft reads");
            drop(stdin);
            assert!(nft.wait().expect("nft ends").success(), "{rules}");
        });
    }

    /// A second namespace behind a bridge of this one, as containers are.
    pub fn bridged_guest(&self) -> Self {
        let guest = Self::new();
        let peer = guest.thread_id;
        self.shell(&format!(
            "ip link add br0 type bridge
             ip link add guest0 type veth peer name eth0 netns {peer}
             ip link set guest0 master br0 up
             ip link set br0 up
             ip addr add {HOST_V4}/24 dev br0
             ip addr add fd30::1/64 dev br0 nodad
             sysctl -qw net.ipv4.ip_forward=1
             sysctl -qw net.bridge.bridge-nf-call-iptables=1 || true
             sysctl -qw net.bridge.bridge-nf-call-ip6tables=1 || true"
        ));
        guest.shell(&format!(
            "ip addr add {GUEST_V4}/24 dev eth0
             ip addr add {GUEST_V6}/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via {HOST_V4}
             ip route add default via fd30::1"
        ));
        guest
    }
}

/// Whether this machine can run the tests; where it cannot, says so, and fails in CI.
pub fn available() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let runs = |tool: &str| {
        let mut command = Command::new(tool);
        command
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let missing = [(root, "root"), (runs("ip"), "ip"), (runs("nft"), "nft")]
        .into_iter()
        .find_map(|(there, what)| (!there).then_some(what));
    let Some(missing) = missing else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none(),
        "the redirect tests need {missing}"
    );
    eprintln!("SKIPPED: the redirect tests need {missing}");
    false
}
