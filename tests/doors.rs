//! `heddle explain`, `doctor`, `top`, completions and manual pages, as users run them.

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use support::docker::{self, Dockerd, Setup};
use support::etcd::Etcd;
use support::http;
use support::node::{Node, NodeOptions, PATIENCE, heddle};
use support::shop::Shop;
use support::wait::eventually;
use support::whoami::{Whoami, node_with};

const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{name: http, port: 8080, protocol: http}]
  health: {http: {path: /healthz}, interval: 1s}
";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn explain_names_the_filter_that_removed_each_endpoint() {
    let (a, b) = (Whoami::start("a", &[]), Whoami::start("b", &[]));
    let node = node_with(SERVICE, &[("a", &a), ("b", &b)]);
    let page = node.ok(&["explain", "web", "-n", "shop"]);
    assert!(page.contains("    2 passing\n"), "{page}");
    assert!(page.contains("50 % of the turns"), "{page}");
    node.ok(&["drain", "workload", "a", "--reason", "kernel update"]);
    drop(b);
    let page = eventually(PATIENCE, "both are removed, each by its filter", || {
        let page = node.ok(&["explain", "shop/web"]);
        let done = page.contains("    1 enabled, 1 removed\n")
            && page.contains("    0 passing, 1 removed\n");
        if done { Ok(page) } else { Err(page) }
    });
    assert!(page.contains("kernel update"), "{page}");
    assert!(
        page.contains("is refused: service shop/web has no endpoint to take this"),
        "{page}"
    );
    assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    let vip = node.vip("shop/web");
    let url = format!("http://{vip}:8080/x");
    assert!(
        node.ok(&["explain", &url]).starts_with("Led here by:"),
        "{url}"
    );
    let json: Value = serde_json::from_str(&node.ok(&["explain", &url, "--json"])).unwrap();
    assert_eq!(
        json["ports"][0]["filters"][1]["removed"][0]["name"],
        "web/a:http"
    );
    let unknown = node.heddle(&["explain", "http://192.0.2.1/"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("heddle has no part in this request"));
}

#[test]
fn top_prints_one_table_into_a_pipe() {
    let a = Whoami::start("a", &[]);
    let node = node_with(SERVICE, &[("a", &a)]);
    let web = std::net::SocketAddr::new(node.vip("shop/web"), 8080);
    let printed = eventually(PATIENCE, "requests are shown", || {
        let stop = std::sync::atomic::AtomicBool::new(false);
        let printed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    http::id(web).unwrap();
                }
            });
            let _end = support::wait::SetAtDrop(&stop);
            node.ok(&["top"])
        });
        // Of the service: rate and median behind its name and READY; of its endpoint, behind its name, node and state.
        let flows = |name: &str, at: usize| {
            let row = printed.lines().find(|l| l.split(' ').next() == Some(name));
            let columns: Vec<&str> = row.unwrap_or_default().split_whitespace().collect();
            let rate = columns.get(at).and_then(|c| c.parse().ok());
            rate.unwrap_or(0.0) > 0.0 && columns.get(at + 2).is_some_and(|c| c.ends_with('s'))
        };
        if flows("shop/web", 2) && flows("shop/web/a:http", 3) {
            Ok(printed)
        } else {
            Err(printed)
        }
    });
    assert!(printed.starts_with("SERVICE"), "{printed}");
    assert!(!printed.contains('\x1b'), "{printed}");
}

/// A pseudo terminal of 100 columns and 30 lines: this side and the program's.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize {
        ws_row: 30,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: all pointers are to variables that outlive the call, or null where that is allowed.
    let failed = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    assert_eq!(failed, 0, "no pseudo terminal");
    // SAFETY: both descriptors are new and nobody else's.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn top_draws_on_a_terminal_shows_its_keys_and_gives_the_terminal_back() {
    let a = Whoami::start("a", &[]);
    let node = node_with(SERVICE, &[("a", &a)]);
    let (mut ours, theirs) = terminal();
    let mut child = Command::new(env!("CARGO_BIN_EXE_heddle"))
        .args(["--server", &node.server(), "top"])
        .env("TERM", "xterm")
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .stderr(theirs)
        .spawn()
        .unwrap();
    let seen = Arc::new(Mutex::new(String::new()));
    let (into, mut from) = (seen.clone(), ours.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            into.lock().unwrap().push_str(&text(&bytes[..n]));
        }
    });
    let until = |wanted: &str| {
        eventually(PATIENCE, &format!("{wanted:?} is drawn"), || {
            let seen = seen.lock().unwrap().clone();
            if seen.contains(wanted) {
                Ok(())
            } else {
                Err(seen)
            }
        });
    };
    for wanted in ["shop/web", "q quit", "enter endpoints", "REQ/S"] {
        until(wanted);
    }
    ours.write_all(b"e").unwrap();
    until("a:http");
    ours.write_all(b"q").unwrap();
    let status = eventually(PATIENCE, "it ends", || child.try_wait().unwrap());
    assert!(status.success());
    // Back from the alternate screen, with the cursor shown.
    until("\x1b[?1049l");
    until("\x1b[?25h");
}

fn doctor(node: &Node, more: &[&str]) -> Output {
    let config = node.path("heddle.toml").display().to_string();
    heddle(&[&["doctor", "--config", &config], more].concat(), "")
}

#[test]
fn doctor_finds_what_is_taken_and_what_is_missing_and_says_the_mend() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let _udp = UdpSocket::bind(address);
    let dns = address.to_string();
    let mut node = Node::prepare(&NodeOptions {
        dns: &dns,
        ..NodeOptions::default()
    });
    let output = doctor(&node, &[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("FAIL  ports     dns.listen {address}")),
        "{said}"
    );
    assert!(
        said.contains("mend: set dns.listen to another address"),
        "{said}"
    );
    assert!(said.contains("ok    registry  embedded"), "{said}");
    assert!(text(&output.stderr).contains("doctor: 1 of"), "{output:?}");
    assert!(said.lines().all(|l| l.chars().count() <= 100), "{said}");
    drop((taken, _udp));
    let output = doctor(&node, &[]);
    assert!(output.status.success(), "{output:?}");
    node.launch();
    let json: Value = serde_json::from_str(&text(&doctor(&node, &["--json"]).stdout)).unwrap();
    let about = |name: &str| {
        let all = json.as_array().unwrap().iter();
        all.filter(|f| f["about"] == name)
            .cloned()
            .collect::<Vec<_>>()
    };
    eventually(PATIENCE, "the node is found ready", || {
        let said = text(&doctor(&node, &[]).stdout);
        if said.contains("n1 runs and is ready") {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(about("docker")[0]["level"], "ok", "{json}");
    assert_eq!(about("dns")[0]["level"], "ok", "{json}");
    let bad = heddle(&["doctor", "--config", "/nowhere.toml"], "");
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stdout).contains("FAIL  config"), "{bad:?}");
}

#[test]
fn doctor_asks_each_etcd_and_compares_its_clock() {
    let Some(etcd) = Etcd::start_or_skip("the doctor's questions to etcd") else {
        return;
    };
    let endpoint = etcd.endpoint();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = nobody.local_addr().unwrap();
    drop(nobody);
    let node = Node::prepare(&NodeOptions {
        etcd: Some(format!("{endpoint},http://{dead}")),
        ..NodeOptions::default()
    });
    let output = doctor(&node, &[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("ok    etcd      {endpoint} answers")),
        "{said}"
    );
    assert!(said.contains("ok    clock     the same as at"), "{said}");
    assert!(
        said.contains(&format!("FAIL  etcd      http://{dead}:")),
        "{said}"
    );
}

#[test]
fn doctor_looks_at_docker_and_the_table_of_a_running_node() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    let config = shop.node.path("heddle.toml").display().to_string();
    let ask = || {
        let mut command = shop.netns.command(env!("CARGO_BIN_EXE_heddle"));
        let output = command.args(["doctor", "--config", &config]).output();
        let output = output.expect("heddle runs");
        (output.status.code(), text(&output.stdout))
    };
    let (_, said) = ask();
    assert!(said.contains("ok    docker"), "{said}");
    assert!(said.contains("overlaps no route of this host"), "{said}");
    assert!(
        said.contains("the nftables table inet heddle is the running node's"),
        "{said}"
    );
}

#[test]
fn doctor_finds_a_range_that_docker_uses_and_dns_that_containers_reach() {
    if !docker::ready() {
        return;
    }
    let docker = Dockerd::start("doctor");
    let start = |range: &str, dns: &str| {
        Node::prepare(&NodeOptions {
            netns: Some(&docker.netns),
            docker: Some(&docker),
            vip_range: range,
            dns,
            ..NodeOptions::default()
        })
    };
    let ask = |node: &Node| {
        let config = node.path("heddle.toml").display().to_string();
        // Where Docker's ids of processes are those of /proc.
        let mut command = docker.within(env!("CARGO_BIN_EXE_heddle"));
        let output = command.args(["doctor", "--config", &config]).output();
        let output = output.expect("heddle runs");
        (output.status.code(), text(&output.stdout))
    };
    let (status, said) = ask(&start("172.17.0.0/24", "127.0.0.1:0"));
    assert_eq!(status, Some(1), "{said}");
    let squeezed: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        squeezed.contains("overlaps what this host routes elsewhere: 172.17.0.0/16 on"),
        "{said}"
    );
    let mut node = start("10.96.0.0/16", "10.96.0.10:53");
    node.launch();
    docker.run(support::docker::RunOptions {
        name: "asked-from",
        args: &["whoami"],
        ..support::docker::RunOptions::default()
    });
    eventually(PATIENCE, "dns is asked from the container", || {
        let (_, said) = ask(&node);
        let squeezed: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted = "10.96.0.10:53 answers on this host and from container asked-from";
        if squeezed.contains(wanted) {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn completions_are_ones_that_the_shell_takes() {
    for shell in ["bash", "zsh", "fish"] {
        let output = heddle(&["completions", shell], "");
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("heddle"), "{shell}");
    }
    let script = text(&heddle(&["completions", "bash"], "").stdout);
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash runs");
    let complete = "\nCOMP_WORDS=(heddle ex); COMP_CWORD=1; _heddle heddle ex heddle; echo \"${COMPREPLY[@]}\"\n";
    let mut stdin = bash.stdin.take().unwrap();
    stdin.write_all((script + complete).as_bytes()).unwrap();
    drop(stdin);
    let output = bash.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout).trim(), "explain export");
}

#[test]
fn manual_pages_are_ones_that_man_can_show() {
    if !support::requirement("manual pages", support::missing_program(&["man"])) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    assert!(heddle(&["man", &path], "").status.success());
    for page in ["heddle.1", "heddle-apply.1", "heddle-demo.1"] {
        let output = Command::new("man")
            .args(["--warnings", "-l"])
            .arg(folder.path().join(page))
            .env("MANPAGER", "cat")
            .env("MANWIDTH", "100")
            .output()
            .expect("man runs");
        assert!(output.status.success(), "{page}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("SYNOPSIS"), "{page}");
    }
}
