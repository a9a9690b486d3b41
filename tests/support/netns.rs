//! Network namespaces as hosts.
//!
//! A namespace has no name here: it lives as long as a descriptor or a process holds it, so nothing of it can
//! be left behind, not even by a test that was killed.

use std::fs::File;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::sync::Arc;

use super::{missing_program, not_root, requirement};

/// Whether network namespaces can be made here.
///
/// # Panics
/// When they cannot and the environment variable CI is set.
pub fn ready() -> bool {
    requirement(
        "what crosses a network",
        not_root().or_else(|| missing_program(&["ip"])),
    )
}

/// A network namespace with its loopback interface up. Clones are the same namespace, which goes with the last
/// of them and the last process in it.
#[derive(Clone)]
pub struct Netns {
    descriptor: Arc<OwnedFd>,
}

impl Netns {
    pub fn new() -> Self {
        // The thread that makes the namespace moves into it, and so must be one of its own.
        let file = std::thread::spawn(|| {
            // SAFETY: unshare takes no pointers; CLONE_NEWNET concerns the calling thread alone.
            let failed = unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0;
            assert!(
                !failed,
                "cannot make a network namespace: {}",
                std::io::Error::last_os_error()
            );
            File::open("/proc/thread-self/ns/net").expect("cannot open the namespace")
        });
        let file = file.join().expect("cannot make a network namespace");
        let netns = Self {
            descriptor: Arc::new(file.into()),
        };
        netns.run(&["ip", "link", "set", "lo", "up"]);
        netns
    }

    /// The namespace as a path, for `nsenter --net=PATH` and `ip link set … netns PATH`.
    pub fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.descriptor.as_raw_fd()
        )
    }

    /// Runs `work` on a thread of its own within the namespace: every socket that it makes belongs there, and
    /// stays there when it is handed back.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let descriptor = self.descriptor.as_raw_fd();
        let run = || {
            move_thread_to(descriptor).expect("cannot enter the namespace");
            work()
        };
        match std::thread::scope(|scope| scope.spawn(run).join()) {
            Ok(value) => value,
            // The panic goes on in the test's own thread, where its message is not "a thread panicked".
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a future within the namespace, on a runtime of one thread that ends with it.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("cannot make a runtime").block_on(work())
        })
    }

    /// A program that will run within the namespace. Its file system and process ids are the test's own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let descriptor = Arc::clone(&self.descriptor);
        // SAFETY: between fork and exec the closure makes one system call on a descriptor that it keeps open;
        // it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || move_thread_to(descriptor.as_raw_fd()));
        }
        command
    }

    /// Runs a program to its end and returns what it printed.
    ///
    /// # Panics
    /// With what it said on stderr when it fails.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "`{}` failed: {}",
            words.join(" "),
            stderr.trim()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a program to its end, however that is.
    #[track_caller]
    pub fn try_run(&self, words: &[&str]) -> Output {
        let (program, arguments) = words.split_first().expect("a command has a program");
        let output = self.command(program).args(arguments).output();
        output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
    }
}

fn move_thread_to(descriptor: i32) -> std::io::Result<()> {
    // SAFETY: setns takes no pointers; the callers hold the descriptor open.
    match unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// One host of a [`Lan`].
pub struct Host {
    pub netns: Netns,
    /// Its address on the LAN, on `eth0`.
    pub address: Ipv4Addr,
    pub address_v6: Ipv6Addr,
    /// The name of its port at the bridge.
    port: String,
}

/// Hosts joined by a bridge, in namespaces of their own. The network that the test itself runs in is on the
/// LAN too, so that the test's own sockets and servers (an etcd, say) are reachable from the hosts at
/// [`address`](Self::address), and the hosts from the test.
pub struct Lan {
    pub hosts: Vec<Host>,
    /// The test's own address on the LAN: the hosts' default gateway.
    pub address: Ipv4Addr,
    pub address_v6: Ipv6Addr,
    switch: Netns,
    uplink: String,
}

impl Lan {
    /// A LAN of `n` hosts on a network 10.203.X.0/24 and fd0b:203:X::/64 that no other running test uses.
    pub fn new(n: u8) -> Self {
        assert!((1..=200).contains(&n), "a LAN has 1 to 200 hosts");
        let switch = Netns::new();
        let (uplink, subnet) = plug_in(&switch);
        switch.run(&["ip", "link", "add", "bridge0", "type", "bridge"]);
        switch.run(&["ip", "link", "set", "uplink", "master", "bridge0", "up"]);
        switch.run(&["ip", "link", "set", "bridge0", "up"]);
        let address = |host: u8| Ipv4Addr::new(10, 203, subnet, host);
        let address_v6 =
            |host: u8| Ipv6Addr::new(0xfd0b, 0x203, subnet.into(), 0, 0, 0, 0, host.into());
        let mut lan = Self {
            hosts: Vec::new(),
            address: address(1),
            address_v6: address_v6(1),
            switch,
            uplink: uplink.clone(),
        };
        give_address(&here, &uplink, lan.address, lan.address_v6);
        for host in 2..n + 2 {
            let (netns, port) = (Netns::new(), format!("port{host}"));
            let there = netns.path();
            let peer = ["peer", "name", "eth0", "netns", &there];
            lan.switch
                .run(&[&["ip", "link", "add", &port, "type", "veth"], &peer[..]].concat());
            lan.switch
                .run(&["ip", "link", "set", &port, "master", "bridge0", "up"]);
            let (address, address_v6) = (address(host), address_v6(host));
            give_address(&|words| netns.run(words), "eth0", address, address_v6);
            netns.run(&[
                "ip",
                "route",
                "add",
                "default",
                "via",
                &lan.address.to_string(),
            ]);
            lan.hosts.push(Host {
                netns,
                address,
                address_v6,
                port,
            });
        }
        lan
    }

    /// Unplugs a host: it is there, but nobody reaches it and it reaches nobody.
    pub fn cut(&self, host: usize) {
        self.switch
            .run(&["ip", "link", "set", &self.hosts[host].port, "down"]);
    }

    /// Plugs a host in again.
    pub fn mend(&self, host: usize) {
        self.switch
            .run(&["ip", "link", "set", &self.hosts[host].port, "up"]);
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // It would go with the switch, only a little later.
        let _ = Command::new("ip")
            .args(["link", "del", &self.uplink])
            .output();
    }
}

/// Joins the test's own network to the switch. The interface's name holds the subnet's number, and the kernel
/// allows a name once: that is what keeps parallel tests apart.
fn plug_in(switch: &Netns) -> (String, u8) {
    let there = switch.path();
    let mut last = String::new();
    for subnet in shuffled_subnets() {
        let uplink = format!("heddle{subnet}");
        let peer = ["peer", "name", "uplink", "netns", &there];
        let words = [&["link", "add", &uplink, "type", "veth"], &peer[..]].concat();
        let output = Command::new("ip")
            .args(words)
            .output()
            .expect("cannot run ip");
        if output.status.success() {
            return (uplink, subnet);
        }
        last = String::from_utf8_lossy(&output.stderr).into_owned();
        if !last.contains("File exists") {
            break;
        }
    }
    panic!(
        "cannot join the test's own network to a LAN: {}",
        last.trim()
    );
}

fn shuffled_subnets() -> impl Iterator<Item = u8> {
    use std::hash::{BuildHasher as _, RandomState};
    let first = RandomState::new().hash_one(std::process::id()) as u8;
    (0..=u8::MAX).map(move |n| n.wrapping_add(first))
}

fn here(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("cannot run ip");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "`{}` failed: {}",
        words.join(" "),
        stderr.trim()
    );
    String::new()
}

fn give_address(run: &dyn Fn(&[&str]) -> String, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) {
    run(&["ip", "address", "add", &format!("{v4}/24"), "dev", device]);
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        // Without `nodad` the address could not be used for the first second or two.
        run(&[
            "ip",
            "address",
            "add",
            &format!("{v6}/64"),
            "dev",
            device,
            "nodad",
        ]);
    }
    run(&["ip", "link", "set", device, "up"]);
}
