//! The namespaces that a Docker host lives in, its control groups, and the processes in it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::support::http;
use crate::support::leftovers;
use crate::support::netns::Netns;

/// How long dead processes may take to leave their control group.
const BUSY: Duration = Duration::from_secs(10);

/// Opens the namespaces of a host. Its first process says `ready` when everything is mounted, and then waits
/// for the end of its input.
pub(super) fn open_host(netns: &Netns, folder: &Path) -> (Child, ChildStdin, i32) {
    // containerd's shims keep their sockets below /run/containerd, wherever the daemon's folders are.
    const SCRIPT: &str = "
        set -e
        mount -t tmpfs -o mode=0711 tmpfs \"$1/state\"
        # Podman keeps its locks and its networks' leases in these.
        for folder in /run/containerd /run/containers /run/libpod /run/netns /var/lib/cni; do
            mkdir -p $folder
            mount -t tmpfs -o mode=0711 tmpfs $folder
        done
        echo ready
        cat > /dev/null
    ";
    let mut command = netns.command("unshare");
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        SCRIPT,
        "sh",
    ]);
    command
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut keeper = command.spawn().expect("cannot run unshare");
    let lifeline = keeper.stdin.take().expect("stdin is piped");
    let mut line = String::new();
    let _ = BufReader::new(keeper.stdout.take().expect("stdout is piped")).read_line(&mut line);
    assert_eq!(
        line, "ready\n",
        "cannot open the namespaces of a Docker host"
    );
    let init = only_child(keeper.id()).expect("unshare has started the first process");
    (keeper, lifeline, init)
}

/// The process that another one has started.
pub(super) fn only_child(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

pub(super) fn signal(pid: i32, signal: i32) {
    // SAFETY: plain system call, on a process that its parent, a child of ours, has not yet waited for.
    let failed = unsafe { libc::kill(pid, signal) } != 0;
    assert!(
        !failed,
        "cannot signal process {pid}: {}",
        std::io::Error::last_os_error()
    );
}

/// Asks the daemon whether it is there.
pub(super) fn ping(socket: &Path) -> Result<(), String> {
    let answer = http::get_unix(socket, "/_ping", Duration::from_secs(2));
    match answer.map_err(|error| error.to_string())? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    }
}

/// Version 1 has a folder for each controller, version 2 none.
fn control_group_hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink());
    folders.chain([root.to_owned()]).collect()
}

/// Removes the control group of a host whose processes are dead, in every hierarchy.
pub(super) fn remove_control_groups(name: &str) {
    for hierarchy in control_group_hierarchies() {
        remove_control_group(&hierarchy.join(name));
    }
}

/// Lets everything that is paused in a host go on: what is frozen can't even be killed.
pub(super) fn thaw(name: &str) {
    for hierarchy in control_group_hierarchies() {
        thaw_control_group(&hierarchy.join(name));
    }
}

fn thaw_control_group(group: &Path) {
    // Version 1, version 2; a group has one of them or none.
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if group.join(file).exists() {
            let _ = fs::write(group.join(file), word);
        }
    }
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            thaw_control_group(&entry.path());
        }
    }
}

/// Removes a control group with those below it. One that still holds a process stays: the kernel sees to that.
fn remove_control_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_control_group(&entry.path());
        }
    }
    // The processes are dead, but the last of them may not yet be gone from the group.
    let end = Instant::now() + BUSY;
    while fs::remove_dir(group).is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy)
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what killed tests have left: folders without a process, and empty control groups.
pub(super) fn remove_leftovers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for folder in leftovers(&std::env::temp_dir()) {
            let _ = fs::remove_dir_all(folder);
        }
        for group in control_group_hierarchies()
            .iter()
            .flat_map(|hierarchy| leftovers(hierarchy))
        {
            thaw_control_group(&group);
            remove_control_group(&group);
        }
    });
}
