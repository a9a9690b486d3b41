//! What systemd, Debian and Compose are given.

mod support;

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::node::{Node, NodeOptions, PATIENCE, heddle};
use support::{missing_program, requirement};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(packaging(name)).unwrap()
}

/// Messages that a node sends to the service manager.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(name: &str) -> Manager {
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager {
            socket,
            heard: Vec::new(),
        }
    }

    #[track_caller]
    fn until(&mut self, wanted: &str) {
        let mut message = [0; 4096];
        loop {
            let n = match self.socket.recv(&mut message) {
                Ok(n) => n,
                Err(error) => panic!("{wanted:?} is not told: {error}: {:?}", self.heard),
            };
            let text = String::from_utf8_lossy(&message[..n]).into_owned();
            let found = text.lines().any(|l| l == wanted);
            self.heard.push(text);
            if found {
                return;
            }
        }
    }
}

#[test]
fn systemd_is_told_when_the_node_is_ready_lives_and_stops() {
    let name = format!("heddle-test-manager-{}", std::process::id());
    let mut manager = Manager::new(&name);
    let node = Node::prepare(&NodeOptions::default());
    let log = std::fs::File::create(node.path("log")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_heddle"))
        .args(["up", "--config"])
        .arg(node.path("heddle.toml"))
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .env("WATCHDOG_USEC", "1000000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");
    assert!(
        manager.heard.iter().any(|m| m.starts_with("STATUS=")),
        "{:?}",
        manager.heard
    );
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child has not been waited for, so its id is nobody else's.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    manager.until("STOPPING=1");
    let status = support::wait::eventually(PATIENCE, "it ends", || child.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", node.log());
    let ready = manager.heard.iter().filter(|m| *m == "READY=1").count();
    assert_eq!(ready, 1, "{:?}", manager.heard);
}

#[test]
fn the_unit_is_one_that_systemd_takes_and_lets_the_node_do_little_else() {
    if !requirement("the systemd unit", missing_program(&["systemd-analyze"])) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("heddle.service");
    let text =
        read("systemd/heddle.service").replace("/usr/bin/heddle", env!("CARGO_BIN_EXE_heddle"));
    // The manual page is installed with the package.
    let text = text.replace("Documentation=man:heddle(1)\n", "");
    std::fs::write(&unit, text).unwrap();
    let verify = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let about_it: Vec<&str> = said
        .lines()
        .filter(|l| l.contains("heddle.service"))
        .collect();
    assert!(about_it.is_empty(), "{said}");
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=30"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&security.stdout).into_owned();
    assert!(security.status.success(), "exposed more than 3.0: {said}");
}

/// The unit's capabilities are enough: root with no others brings up virtual IPs and DNS.
#[test]
fn the_units_two_capabilities_are_enough() {
    let missing = support::not_root().or_else(|| missing_program(&["setpriv", "nft", "ip"]));
    if !requirement("a node with few capabilities", missing) {
        return;
    }
    let unit = read("systemd/heddle.service");
    let line = unit
        .lines()
        .find_map(|l| l.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let kept: Vec<String> = line
        .split(' ')
        .map(|c| format!("+{}", c.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let netns = support::netns::Netns::new();
    let node = Node::prepare(&NodeOptions {
        netns: Some(&netns),
        vip_range: "10.96.0.0/16",
        dns: "10.96.0.10:53",
        ..NodeOptions::default()
    });
    let log = std::fs::File::create(node.path("log")).unwrap();
    let mut child = netns
        .command("setpriv")
        .arg(format!("--bounding-set=-all,{}", kept.join(",")))
        .arg("--inh-caps=-all")
        .arg("--no-new-privs")
        .arg(env!("CARGO_BIN_EXE_heddle"))
        .args(["up", "--config"])
        .arg(node.path("heddle.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let ready = || match node.readyz() {
        Some((200, body)) if body["reasons"] == serde_json::json!([]) => Ok(()),
        other => Err(format!("{other:?}\n{}", node.log())),
    };
    support::wait::eventually(PATIENCE, "it is ready and lacks nothing", ready);
    let tables = netns.run(&["nft", "list", "tables"]);
    assert!(tables.contains("inet heddle"), "{tables}");
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child has not been waited for, so its id is nobody else's.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let status = support::wait::eventually(PATIENCE, "it ends", || child.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", node.log());
    assert!(!netns.run(&["nft", "list", "tables"]).contains("heddle"));
}

#[test]
fn the_configurations_that_come_along_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("tls")).unwrap();
    for file in ["ca.pem", "node.pem", "node.key"] {
        std::fs::write(folder.path().join("tls").join(file), "").unwrap();
    }
    for file in [
        "debian/heddle.toml",
        "compose/two-hosts/heddle-a.toml",
        "compose/two-hosts/heddle-b.toml",
    ] {
        // The files of the example lie beside the configuration.
        let tls = format!("\"{}/", folder.path().join("tls").display());
        let text = read(file).replace("\"tls/", &tls);
        let path = folder.path().join("heddle.toml");
        std::fs::write(&path, &text).unwrap();
        let output = heddle(&["check", &path.display().to_string()], "");
        assert!(output.status.success(), "{file}: {output:?}");
        // What is commented out is valid too: each line is a key of its section with its default.
        let whole: String = text
            .lines()
            .map(|l| {
                match l.strip_prefix("# ").filter(|rest| {
                    rest.split('=').next().is_some_and(|k| {
                        k.trim().chars().all(|c| c.is_ascii_lowercase() || c == '_')
                    }) && rest.contains('=')
                }) {
                    Some(rest) if !rest.starts_with("endpoints") => format!("{rest}\n"),
                    _ => format!("{l}\n"),
                }
            })
            .collect();
        std::fs::write(&path, &whole).unwrap();
        let output = heddle(&["check", &path.display().to_string()], "");
        assert!(output.status.success(), "{file}: {output:?}\n{whole}");
    }
}

#[test]
fn compose_files_are_ones_that_compose_takes() {
    if !requirement("Compose files", missing_program(&["docker-compose"])) {
        return;
    }
    for file in [
        "compose/one-host/compose.yaml",
        "compose/two-hosts/etcd.yaml",
    ] {
        let output = Command::new("docker-compose")
            .arg("-f")
            .arg(packaging(file))
            .args(["config", "-q"])
            .env("ADDRESS", "192.0.2.1")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{file}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_certificates_of_the_example_are_ones_that_a_node_takes() {
    let missing = missing_program(&["openssl", "etcd", "bash"]);
    if !requirement("the two-host example's certificates", missing) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("certificates");
    std::fs::copy(packaging("compose/two-hosts/certificates"), &script).unwrap();
    let made = Command::new("bash")
        .arg(&script)
        .arg("127.0.0.1")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let tls = |name: &str| folder.path().join("tls").join(name).display().to_string();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, peer) = (
        free.local_addr().unwrap(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let peer_url = format!("http://{}", peer.local_addr().unwrap());
    let client_url = format!("https://{client}");
    drop((free, peer));
    // The options are those of etcd.yaml, but for the addresses and files.
    let etcd = read("compose/two-hosts/etcd.yaml");
    let mut command = Command::new("etcd");
    for option in etcd.lines().filter_map(|l| l.trim().strip_prefix("- --")) {
        let option = option
            .replace(
                "https://${ADDRESS:?the address of this host}:2379",
                &client_url,
            )
            .replace("https://${ADDRESS}:2379", &client_url)
            .replace("http://127.0.0.1:2380", &peer_url)
            .replace(
                "=/data",
                &format!("={}", folder.path().join("data").display()),
            )
            .replace(
                "=/tls",
                &format!("={}", folder.path().join("tls").display()),
            );
        command.arg(format!("--{option}"));
    }
    let mut etcd = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut node = Node::prepare(&NodeOptions {
        etcd: Some(client_url),
        registry: &format!(
            "ca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"",
            tls("ca.pem"),
            tls("node.pem"),
            tls("node.key")
        ),
        ..NodeOptions::default()
    });
    node.launch();
    let ready = || match node.readyz() {
        Some((200, body)) if body["reasons"] == serde_json::json!([]) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    support::wait::eventually(Duration::from_secs(60), "the node has joined", ready);
    // The doctor's clock goes through TLS too.
    let config = node.path("heddle.toml").display().to_string();
    let doctor = heddle(&["doctor", "--config", &config], "");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("ok    clock     the same as at"), "{said}");
    drop(node);
    let _ = etcd.kill();
    let _ = etcd.wait();
}
