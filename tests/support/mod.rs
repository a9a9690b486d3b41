//! What the end-to-end tests share: real etcds, real Docker hosts in network namespaces, backends, and
//! waiting without sleeping.
//!
//! # Layout
//! - `wait`: until something is so, with a deadline
//! - `netns`: network namespaces, and several hosts joined by a bridge
//! - `docker`: a private dockerd per host, driven by the docker command; its image of our own binary in `image`
//! - `http`: the simplest client there is, for a question and an answer; `dns`: the same for names
//! - `whoami`: a backend as a plain process
//! - `etcd`: a real etcd on loopback
//! - `checks`: health checks without a node
//! - `node`: a heddle node, driven by the command line
//! - `load`: connections that ask again and again
//! - `browser`: a headless Chromium
//! - `shop`: a host with containers, a node and a service: what most tests of containers begin with
//!
//! A test whose requirements are missing says so loudly and returns, or fails where the environment variable
//! CI is set: `if !docker::ready() { return; }`.

// Every test binary compiles this module and uses its own part of it.
#![allow(dead_code, unused_imports)]

pub mod browser;
pub mod checks;
pub mod dns;
pub mod docker;
pub mod etcd;
pub mod http;
pub mod image;
pub mod load;
pub mod netns;
pub mod node;
pub mod shop;
pub mod wait;
pub mod whoami;

use std::path::{Path, PathBuf};

/// Whether a test can run, given what it misses (`None`: nothing).
///
/// # Panics
/// When something is missing and the environment variable CI is set: there, everything must be installed.
pub fn requirement(what: &str, missing: Option<String>) -> bool {
    let Some(missing) = missing else { return true };
    assert!(
        std::env::var_os("CI").is_none(),
        "{what} cannot be tested: {missing}"
    );
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED: {test}: {what} cannot be tested: {missing}");
    false
}

/// The program's path, looked for where root's programs live too, whatever PATH says.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [
        "/usr/local/sbin",
        "/usr/sbin",
        "/sbin",
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
    ];
    std::env::split_paths(&path)
        .chain(usual.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The first of these programs that is not installed, in words.
pub fn missing_program(names: &[&str]) -> Option<String> {
    let missing = names.iter().find(|name| program(name).is_none())?;
    Some(format!("{missing} is not installed"))
}

/// Whether this process is the superuser, in words when it is not.
pub fn not_root() -> Option<String> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    (!root).then(|| "it takes root".to_owned())
}

/// The prefix of everything that this process leaves in shared places (folders, control groups). It holds the
/// process id, so that a later run can tell what a crashed one left behind.
pub fn mark() -> String {
    format!("{MARK}{}-", std::process::id())
}

const MARK: &str = "heddle-test-";

/// Of the entries of `folder`, those that a test process made which is gone.
pub fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let made_by_the_dead = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let pid = name
            .and_then(|name| name.strip_prefix(MARK))
            .and_then(|rest| rest.split('-').next());
        pid.and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(made_by_the_dead)
        .collect()
}
