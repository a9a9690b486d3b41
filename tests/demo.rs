//! `heddle demo`: shows what it says, in lines that work as printed, and leaves nothing behind.

mod support;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::docker::{self, Dockerd};
use support::netns::Netns;
use support::wait::eventually;
use support::{missing_program, not_root, requirement};

/// The tour takes half a minute where nothing else keeps the machine busy.
const TOUR: Duration = Duration::from_secs(240);
const END: Duration = Duration::from_secs(60);
/// Nobody: the demo needs no root.
const NOBODY: u32 = 65534;

/// A demo that runs.
struct Demo {
    child: Child,
    printed: Arc<Mutex<String>>,
    errors: Arc<Mutex<String>>,
    folder: tempfile::TempDir,
}

impl Demo {
    /// Starts it in a network namespace, where there is one, and as nobody, where it can be.
    fn start(args: &[&str], netns: Option<&Netns>, env: &[(&str, &str)], as_nobody: bool) -> Demo {
        let folder = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let binary = reachable(folder.path());
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.path()));
                if as_nobody {
                    command.args(["setpriv", "--clear-groups"]);
                    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
                }
                command.arg(binary);
                command
            }
            None => Command::new(binary),
        };
        let tmp = folder.path().join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o777)).unwrap();
        command
            .arg("demo")
            .args(args)
            .env("TMPDIR", &tmp)
            .env_remove("HEDDLE_SERVER")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().expect("heddle starts");
        let printed = collect(child.stdout.take().unwrap());
        let errors = collect(child.stderr.take().unwrap());
        Demo {
            child,
            printed,
            errors,
            folder,
        }
    }

    fn tmp(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    #[track_caller]
    fn until_printed(&mut self, text: &str) {
        eventually(TOUR, &format!("it prints {text:?}"), || {
            let printed = self.printed();
            if printed.contains(text) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!(
                    "it ended with {status}: {printed}{}",
                    self.errors.lock().unwrap()
                );
            }
            Err(printed)
        });
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for, so its id is nobody else's.
        unsafe { libc::kill(pid, signal) };
    }

    #[track_caller]
    fn until_ended(&mut self) -> ExitStatus {
        eventually(END, "the demo ends", || {
            let ended = self.child.try_wait().unwrap();
            ended.ok_or_else(|| self.printed())
        })
    }

    /// All processes that have this demo's folder in their command line or were started by it.
    fn processes(&self) -> Vec<String> {
        let own = self.child.id().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if pid.parse::<u32>().is_err() {
                continue;
            }
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(name))?;
                Some(line.trim().to_owned())
            };
            let zombie = field("State:").is_none_or(|s| s.starts_with('Z'));
            if field("PPid:").as_deref() == Some(&own) && !zombie {
                let line = std::fs::read_to_string(entry.path().join("cmdline"));
                found.push(format!(
                    "{pid} {}",
                    line.unwrap_or_default().replace('\0', " ")
                ));
            }
        }
        found
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGINT);
            let end = std::time::Instant::now() + END;
            while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The binary where anybody can start it: its own folder may be root's alone.
fn reachable(folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let to = bin.join("heddle");
    let from = Path::new(env!("CARGO_BIN_EXE_heddle"));
    if std::fs::hard_link(from, &to).is_err() {
        std::fs::copy(from, &to).unwrap();
    }
    to
}

fn collect(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let into = text.clone();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while matches!(from.read_line(&mut line), Ok(n) if n > 0) {
            into.lock().unwrap().push_str(&line);
            line.clear();
        }
    });
    text
}

/// The lines to try, in their order.
fn lines_to_try(printed: &str) -> Vec<String> {
    let words = ["export ", "curl ", "dig ", "heddle "];
    let begun = printed
        .lines()
        .skip_while(|l| !l.starts_with("Try, in another terminal"));
    begun
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| words.iter().any(|word| line.starts_with(word)))
        .map(str::to_owned)
        .collect()
}

/// Runs a line as a terminal would, after those that set variables; what it printed.
#[track_caller]
fn in_terminal(before: &[String], line: &str, netns: Option<&Netns>) -> String {
    let script = [before, &[line.to_owned()]].concat().join("\n");
    let mut command = match netns {
        Some(netns) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", netns.path())).arg("sh");
            command
        }
        None => Command::new("sh"),
    };
    let output = command.args(["-ec", &script]).output().expect("sh runs");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stdout}{stderr}");
    assert!(
        !stdout.contains('\x1b'),
        "{line}: colour into a pipe: {stdout}"
    );
    stdout
}

#[track_caller]
fn all_lines_work(demo: &Demo, netns: Option<&Netns>) {
    let lines = lines_to_try(&demo.printed());
    let (before, lines): (Vec<String>, Vec<String>) =
        lines.into_iter().partition(|l| l.starts_with("export "));
    assert_eq!(before.len(), 2, "{before:?}");
    assert!(lines.len() >= 9, "{lines:?}");
    for line in &lines {
        let printed = in_terminal(&before, line, netns);
        assert!(!printed.trim().is_empty(), "{line} prints nothing");
        if line.starts_with("curl") && line.contains("/id") {
            assert!(printed.starts_with("web-"), "{line}: {printed}");
        }
        if line.starts_with("dig") {
            assert!(printed.starts_with("127.96."), "{line}: {printed}");
        }
        if line.contains("get workloads") {
            assert!(printed.contains("not selected"), "{line}: {printed}");
        }
    }
}

/// Who answered in the second before and after a step.
#[track_caller]
fn traffic_moved(printed: &str) {
    let seconds = |after: &str| -> Vec<String> {
        let watched = printed.lines().skip_while(|l| !l.contains("Who answers:"));
        let is_step = |l: &str| l.contains(after) && !l.starts_with("    ");
        let mut lines = watched.skip_while(|l| !is_step(l)).skip(1);
        let mut found = Vec::new();
        while let Some(line) = lines.next().filter(|l| l.starts_with("    ")) {
            found.push(line.to_owned());
        }
        assert!(!found.is_empty(), "nothing after {after:?}: {printed}");
        found
    };
    let last = |after: &str| seconds(after).pop().unwrap();
    let both = last("Who answers:");
    assert!(both.contains("web-1 ") && both.contains("web-2 "), "{both}");
    let without = last("web-2");
    assert!(
        without.contains("web-1 ") && !without.contains("web-2 "),
        "{without}"
    );
    let third = last("web-3 comes up");
    assert!(
        third.contains("web-1 ") && third.contains("web-3 "),
        "{third}"
    );
    let fourth = last("web-4 comes up");
    assert!(
        fourth.contains("web-3 ") && fourth.contains("web-4 "),
        "{fourth}"
    );
    assert!(!fourth.contains("web-1 "), "{fourth}");
    assert!(
        !printed.contains("web-canary "),
        "the canary got traffic: {printed}"
    );
}

#[track_caller]
fn nothing_is_left(demo: &mut Demo) {
    demo.signal(libc::SIGINT);
    let status = demo.until_ended();
    let printed = demo.printed();
    let errors = demo.errors.lock().unwrap().clone();
    assert!(status.success(), "{status}: {printed}{errors}");
    eventually(END, "all is printed", || {
        demo.printed().contains("nothing is left of the demo")
    });
    let printed = demo.printed();
    assert!(printed.contains(", 0 failed\n"), "{printed}");
    assert!(!printed.contains("    nobody\n"), "{printed}");
    assert_eq!(errors, "");
    let wide = |l: &&str| l.chars().count() > 100 && !l.starts_with("  export ");
    assert_eq!(printed.lines().find(wide), None);
    let left: Vec<_> = std::fs::read_dir(demo.tmp()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_tour_works_as_nobody_in_lines_that_work_as_printed() {
    let needs = ["sh", "curl", "dig", "nsenter", "setpriv", "ip"];
    let missing = not_root().or_else(|| missing_program(&needs));
    if !requirement("the demo, from a host of its own", missing) {
        return;
    }
    let netns = Netns::new();
    let mut demo = Demo::start(&[], Some(&netns), &[], true);
    demo.until_printed("Who answers:");
    let running = demo.processes();
    assert_eq!(running.len(), 5, "a node and four backends: {running:?}");
    all_lines_work(&demo, Some(&netns));
    demo.until_printed("That was the tour");
    traffic_moved(&demo.printed());
    let pids: Vec<String> = demo.processes();
    assert_eq!(pids.len(), 5, "{pids:?}");
    nothing_is_left(&mut demo);
    for process in pids {
        let pid = process.split(' ').next().unwrap();
        assert!(!Path::new("/proc").join(pid).exists(), "{process} is left");
    }
}

#[test]
fn two_demos_beside_each_other_find_ports_of_their_own_and_one_that_is_killed_takes_its_processes()
{
    let mut first = Demo::start(&[], None, &[], false);
    first.until_printed("Who answers:");
    let mut second = Demo::start(&[], None, &[], false);
    second.until_printed("Who answers:");
    let running = first.processes();
    assert_eq!(running.len(), 5, "{running:?}");
    first.signal(libc::SIGKILL);
    first.until_ended();
    for process in &running {
        let pid = process.split(' ').next().unwrap();
        let status = Path::new("/proc").join(pid).join("status");
        eventually(END, &format!("{process} ends with its demo"), || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            text.is_empty() || text.contains("State:\tZ")
        });
    }
    // What a killed one could not remove, the next one does.
    let left = std::fs::read_dir(first.tmp()).unwrap().count();
    assert_eq!(left, 1);
    let tmp = first.tmp().display().to_string();
    let mut third = Demo::start(&[], None, &[("TMPDIR", &tmp)], false);
    third.until_printed("Who answers:");
    assert_eq!(std::fs::read_dir(first.tmp()).unwrap().count(), 1);
    nothing_is_left(&mut third);
    assert_eq!(std::fs::read_dir(first.tmp()).unwrap().count(), 0);
    nothing_is_left(&mut second);
}

#[test]
fn with_docker_it_shows_the_same_in_containers_and_removes_them_and_their_image() {
    let missing = missing_program(&["sh", "curl", "dig"]);
    if !docker::ready() || !requirement("the demo's lines", missing) {
        return;
    }
    let docker = Dockerd::start("demo");
    let listed = || {
        let containers = docker.cli(&["ps", "-aq"]);
        let images = docker.cli(&["images", "-q"]);
        (containers, images)
    };
    let before = listed();
    let url = docker.url();
    let netns = docker.netns.clone();
    let mut demo = Demo::start(&["--docker"], Some(&netns), &[("DOCKER_HOST", &url)], false);
    demo.until_printed("Who answers:");
    all_lines_work(&demo, Some(&netns));
    demo.until_printed("That was the tour");
    traffic_moved(&demo.printed());
    nothing_is_left(&mut demo);
    assert_eq!(listed(), before);
    let rules = netns.enter(|| {
        let output = Command::new("nft").args(["list", "tables"]).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
    });
    assert!(!rules.unwrap_or_default().contains("heddle"));
}

#[test]
fn without_docker_it_says_what_to_do() {
    let mut demo = Demo::start(
        &["--docker"],
        None,
        &[("DOCKER_HOST", "unix:///nowhere/docker.sock")],
        false,
    );
    let status = demo.until_ended();
    assert_eq!(status.code(), Some(1));
    let said = eventually(END, "the error is read", || {
        let errors = demo.errors.lock().unwrap().clone();
        (errors.ends_with('\n')).then_some(errors)
    });
    assert!(
        said.starts_with("error: demo --docker: Docker at unix:///nowhere"),
        "{said}"
    );
    assert!(said.contains("run heddle demo, which needs none"), "{said}");
    assert_eq!(std::fs::read_dir(demo.tmp()).unwrap().count(), 0);
}
