//! Podman in Docker's place: its service answers on the same socket, and its own command works beside it.

use std::fs;
use std::process::{Command, Stdio};

use super::{Dockerd, missing_program, not_root, requirement};

/// Whether Podman hosts can be made here.
///
/// # Panics
/// When they cannot and the environment variable CI is set.
pub fn podman_ready() -> bool {
    let programs = [
        "podman", "docker", "iptables", "ip", "unshare", "nsenter", "mount",
    ];
    requirement("Podman", not_root().or_else(|| missing_program(&programs)))
}

impl Dockerd {
    /// Podman's service, for as long as it is not told to end.
    pub(super) fn podman_service(&self) -> Command {
        let _ = fs::remove_file(self.socket());
        let mut command = self.podman_command();
        command.args(["system", "service", "--time=0", &self.url()]);
        command
    }

    /// Podman with storage, networks and locks of this host alone.
    fn podman_command(&self) -> Command {
        let folder = self.folder.path();
        let state = folder.join("state");
        // There is neither systemd nor a journal in the host.
        let containers = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{0}/run\"\ngraphroot = \"{0}/data\"\n",
            state.display()
        );
        let at = |name: &str| folder.join(name);
        fs::write(at("containers.conf"), containers).expect("cannot write to the folder");
        fs::write(at("storage.conf"), storage).expect("cannot write to the folder");
        let mut command = self.within("podman");
        command
            .env("CONTAINERS_CONF", at("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", at("storage.conf"))
            .arg("--tmpdir")
            .arg(state.join("tmp"))
            .arg("--network-config-dir")
            .arg(state.join("net"));
        command
    }

    /// Runs the podman command on this host and returns what it printed, trimmed.
    #[track_caller]
    pub fn podman(&self, words: &[&str]) -> String {
        let mut words = words.to_vec();
        let group = format!("--cgroup-parent=/{}", self.control_group);
        if words.first() == Some(&"run") {
            // Else its control groups would be among those of the machine's own Podman.
            words.insert(1, &group);
        }
        let mut command = self.podman_command();
        let output = command.args(&words).stdin(Stdio::null()).output();
        let output = output.expect("cannot run podman");
        super::containers::said(&format!("podman {}", words.join(" ")), &output)
    }
}
