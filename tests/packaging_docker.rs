//! The image recipe and the Compose examples, with real Docker.

mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use support::docker::{self, Dockerd};
use support::http;
use support::image;
use support::netns::{Lan, Netns};
use support::wait::eventually;
use support::{missing_program, program, requirement};

const PATIENCE: Duration = Duration::from_secs(60);

fn packaging(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("packaging").join(name)
}

fn ready(what: &str) -> bool {
    docker::ready() && requirement(what, missing_program(&["docker-compose", "nft", "ip"]))
}

#[track_caller]
fn text(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    said
}

/// Builds the image `heddle` by the recipe that comes along.
fn build(docker: &Dockerd) {
    let (recipe, context) = (packaging("image/Dockerfile"), image::context());
    docker.cli(&[
        "build",
        "--file",
        &recipe.display().to_string(),
        "--tag",
        "heddle",
        &context.display().to_string(),
    ]);
}

/// `docker-compose` against a host.
fn compose(docker: &Dockerd, file: &Path, words: &[&str]) -> Output {
    Command::new("docker-compose")
        .env("DOCKER_HOST", docker.url())
        .env("ADDRESS", "")
        .arg("--file")
        .arg(file)
        .args(["--project-name", "shop"])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("docker-compose runs")
}

/// Asks the service by the virtual IP that `heddle get services` shows.
fn ask(netns: &Netns, vip: &str, requests: usize) -> Vec<String> {
    let ip: IpAddr = vip.parse().expect(vip);
    netns.enter(|| http::ids(SocketAddr::new(ip, 80), requests))
}

/// The cell of a table, by the beginning of its row and the name of its column.
fn cell(table: &str, row: &str, column: &str) -> Option<String> {
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next()?.split_whitespace().collect();
    let at = header.iter().position(|name| *name == column)?;
    let row = lines.find(|line| line.starts_with(row))?;
    row.split_whitespace().nth(at).map(str::to_owned)
}

/// `packaging/compose/one-host`, but for the paths of this host: Docker's socket and the folder of heddle's own are the
/// test's, so that they are nobody else's.
#[test]
fn the_image_is_built_and_the_one_host_example_serves_and_leaves_nothing() {
    if !ready("the one-host example") {
        return;
    }
    let docker = Dockerd::start("one-host");
    build(&docker);
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let example = fs::read_to_string(packaging("compose/one-host/compose.yaml")).unwrap();
    let socket = docker.socket().display().to_string();
    let ours = example
        .replace("- /var/run/docker.sock:", &format!("- {socket}:"))
        .replace("- /run/heddle:", &format!("- {}:", run.display()));
    // A limit on descriptors can't be raised beyond this process' own.
    let (_, most) = descriptors();
    let ours = ours.replace("1048576", &most.min(1_048_576).to_string());
    let file = folder.path().join("compose.yaml");
    fs::write(&file, &ours).unwrap();
    text(&compose(&docker, &file, &["up", "-d", "--scale", "web=3"]));
    // As the file's first lines say.
    let heddle = |words: &[&str]| {
        let inside = [&["exec", "-T", "heddle", "/heddle"], words].concat();
        compose(&docker, &file, &inside)
    };
    let vip = eventually(PATIENCE, "three containers take work", || {
        let services = heddle(&["get", "services", "-n", "shop"]);
        let table = String::from_utf8_lossy(&services.stdout).into_owned();
        let ready = cell(&table, "shop", "READY");
        match cell(&table, "shop", "VIP") {
            Some(vip) if ready.as_deref() == Some("3/3") => Ok(vip),
            _ => Err(format!("{table}{services:?}")),
        }
    });
    let all = ask(&docker.netns, &vip, 30);
    assert_eq!(all.len(), 3, "{all:?}");
    // Docker's own check is heddle's doctor: nothing it needs is missing in the container.
    let doctor = heddle(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("ok    docker"), "{said}");
    text(&compose(
        &docker,
        &file,
        &["down", "--volumes", "--timeout", "40"],
    ));
    let tables = docker.netns.run(&["nft", "list", "tables"]);
    assert!(!tables.contains("heddle"), "{tables}");
    let routes = docker.netns.run(&["ip", "route", "show", "table", "local"]);
    assert!(!routes.contains("10.96."), "{routes}");
    assert_eq!(docker.cli(&["ps", "--all", "--quiet"]), "");
    assert_eq!(docker.cli(&["volume", "ls", "--quiet"]), "");
}

/// This process' limits on descriptors: soft and hard.
fn descriptors() -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a variable that outlives the call.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(failed, 0);
    (limit.rlim_cur, limit.rlim_max)
}

/// A node in the foreground, as `sudo heddle up --config FILE` in the example's folder.
struct Foreground {
    child: Child,
    config: PathBuf,
    server: String,
}

impl Foreground {
    fn start(netns: &Netns, folder: &Path, config: &str) -> Foreground {
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = netns
            .command(env!("CARGO_BIN_EXE_heddle"))
            .args(["up", "--config", config])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Foreground {
            child,
            config: folder.join(config),
            server: format!("unix://{}", folder.join("heddle.sock").display()),
        }
    }

    fn heddle(&self, words: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_heddle"))
            .args(["--server", &self.server])
            .args(words)
            .output()
            .expect("heddle runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.config.with_file_name("log")).unwrap_or_default()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for, so its id is nobody else's.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

/// An image of this machine's etcd under the name of the one that the example pulls: there is no registry to pull from.
fn import_etcd(docker: &Dockerd, image: &str) {
    let etcd = program("etcd").expect("etcd is installed");
    let libraries = Command::new("ldd").arg(&etcd).output().expect("ldd runs");
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let files: Vec<&str> = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .collect();
    let mut tar = Command::new("tar")
        .args(["--create", "--dereference", "--absolute-names"])
        .arg(etcd)
        .args(files)
        .stdout(Stdio::piped())
        .spawn()
        .expect("tar runs");
    let change = "ENV PATH=/usr/local/bin:/usr/bin:/bin";
    let output = docker
        .command(&["import", "--change", change, "-", image])
        .stdin(tar.stdout.take().unwrap())
        .output()
        .expect("docker runs");
    assert!(tar.wait().unwrap().success());
    text(&output);
}

/// `packaging/compose/two-hosts`, step by step, on two hosts whose containers have the same addresses. What is not as
/// written: the hosts' addresses, which step 2 says to write, and folders and Docker's sockets of the test's own.
#[test]
fn the_two_host_example_works_step_by_step() {
    let missing = missing_program(&["openssl", "etcd", "ldd", "bash"]);
    if !ready("the two-host example") || !requirement("the two-host example", missing) {
        return;
    }
    let lan = Lan::new(2);
    let dockers: Vec<Dockerd> = lan
        .hosts
        .iter()
        .map(|host| Dockerd::start_in("two-hosts", &host.netns))
        .collect();
    let address = lan.hosts[0].address.to_string();
    // 1: certificates, copied to both.
    let folders: Vec<tempfile::TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = folders[0].path();
    for file in ["certificates", "etcd.yaml"] {
        fs::copy(packaging("compose/two-hosts").join(file), first.join(file)).unwrap();
    }
    let made = Command::new("./certificates")
        .arg(&address)
        .current_dir(first)
        .output()
        .expect("the script runs");
    text(&made);
    fs::create_dir(folders[1].path().join("tls")).unwrap();
    for file in ["ca.pem", "node.pem", "node.key"] {
        let file = Path::new("tls").join(file);
        fs::copy(first.join(&file), folders[1].path().join(&file)).unwrap();
    }
    // 2: addresses.
    for (index, name) in ["heddle-a.toml", "heddle-b.toml"].iter().enumerate() {
        let folder = folders[index].path();
        let example = fs::read_to_string(packaging("compose/two-hosts").join(name)).unwrap();
        let own = lan.hosts[index].address.to_string();
        let config = example
            .replace("192.0.2.2", &own)
            .replace("192.0.2.1", &address)
            .replace(
                "[registry]",
                &format!(
                    "state_dir = \"{}\"\n\n[registry]",
                    folder.join("state").display()
                ),
            );
        let more = format!(
            "\n[docker]\nsocket = \"{}\"\n\n[admin]\nsocket = \"{}\"\n",
            dockers[index].url(),
            folder.join("heddle.sock").display()
        );
        fs::write(folder.join(name), config + &more).unwrap();
    }
    // 3: host a, etcd first.
    let etcd = fs::read_to_string(first.join("etcd.yaml")).unwrap();
    let image = etcd.lines().find_map(|l| l.trim().strip_prefix("image: "));
    import_etcd(&dockers[0], image.expect("the file names an image"));
    fs::write(first.join(".env"), format!("ADDRESS={address}\n")).unwrap();
    let up = Command::new("docker-compose")
        .env("DOCKER_HOST", dockers[0].url())
        .args(["--file", "etcd.yaml", "up", "-d"])
        .current_dir(first)
        .output()
        .expect("docker-compose runs");
    text(&up);
    let doctor = || {
        let output = lan.hosts[0]
            .netns
            .command(env!("CARGO_BIN_EXE_heddle"))
            .args(["doctor", "--config", "heddle-a.toml"])
            .current_dir(first)
            .output()
            .expect("heddle runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let well = said.contains(&format!("ok    etcd      https://{address}:2379 answers"))
            && said.contains("ok    clock");
        if well { Ok(()) } else { Err(said) }
    };
    eventually(PATIENCE, "the doctor finds etcd", doctor);
    let a = Foreground::start(&lan.hosts[0].netns, first, "heddle-a.toml");
    // 4: host b.
    let b = Foreground::start(&lan.hosts[1].netns, folders[1].path(), "heddle-b.toml");
    // 5: a container on both.
    for docker in &dockers {
        docker.cli(&[
            "run",
            "-d",
            "-p",
            "8080",
            "--label",
            "heddle.service=web",
            "--label",
            "heddle.namespace=shop",
            "--label",
            "heddle.port=8080",
            docker::IMAGE,
            "whoami",
        ]);
    }
    // 6: either host shows both, and reaches both.
    for (node, host) in [&a, &b].into_iter().zip(&lan.hosts) {
        eventually(PATIENCE, "both are seen", || {
            let nodes = node.heddle(&["get", "nodes"]);
            let endpoints = node.heddle(&["get", "endpoints", "-n", "shop", "-o", "wide"]);
            let alive = nodes.matches("alive").count();
            if alive == 2 && endpoints.matches(" ready ").count() == 2 {
                Ok(())
            } else {
                Err(format!("{nodes}{endpoints}{}", node.log()))
            }
        });
        let services = node.heddle(&["get", "services", "-n", "shop"]);
        let vip: IpAddr = cell(&services, "shop", "VIP")
            .expect(&services)
            .parse()
            .unwrap();
        let port = 8080;
        eventually(PATIENCE, "both answer", || {
            let all = host
                .netns
                .enter(|| http::ids(SocketAddr::new(vip, port), 10));
            if all.len() == 2 {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });
    }
}
