//! The restart itself, and which container this process runs in.

use std::time::Duration;

use crate::docker::dial;
use crate::local::short;

/// For a restart: a container may take its stop time-out to end.
const RESTART_TIMEOUT: Duration = Duration::from_secs(900);

/// Why a container was not restarted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestartError {
    #[error("docker at {socket} can't be reached")]
    Connect {
        socket: String,
        #[source]
        source: bollard::errors::Error,
    },
    #[error("docker can't restart it")]
    Restart(#[source] bollard::errors::Error),
    #[error("docker did not restart it within {RESTART_TIMEOUT:?}")]
    Timeout,
}

impl RestartError {
    /// Whether Docker was never asked, so that the container certainly was not restarted.
    pub(crate) fn untried(&self) -> bool {
        matches!(self, RestartError::Connect { .. })
    }
}

/// Restarts a container as `docker restart` does.
pub(crate) async fn restart(socket: &str, id: &str) -> Result<(), RestartError> {
    let restarted = async {
        let docker =
            dial(socket, RESTART_TIMEOUT)
                .await
                .map_err(|source| RestartError::Connect {
                    socket: socket.to_owned(),
                    source,
                })?;
        docker
            .restart_container(id, None)
            .await
            .map_err(RestartError::Restart)
    };
    match tokio::time::timeout(RESTART_TIMEOUT, restarted).await {
        Ok(result) => result,
        Err(_) => Err(RestartError::Timeout),
    }
}

/// The short id of the container that this process runs in, which it must not restart; `None` on the host.
pub(crate) fn own_container() -> Option<String> {
    own_container_in(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// Docker and Podman mount a container's `/etc/hostname` and the like from a folder named after its id. (proc(5): the
/// fourth field is what is mounted, the fifth where.)
fn own_container_in(mounts: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        if !["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"].contains(&at) {
            return None;
        }
        let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
        root.split('/').find(is_id).map(|id| short(id).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_a_container_knows_its_id_and_one_on_the_host_has_none() {
        let id = "5f3759df".repeat(8);
        let docker = format!(
            "700 690 0:50 / / rw - overlay overlay rw\n\
             712 700 254:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n"
        );
        assert_eq!(own_container_in(&docker).as_deref(), Some("5f3759df5f37"));
        let podman = format!(
            "712 700 0:25 /containers/storage/overlay-containers/{id}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(own_container_in(&podman).as_deref(), Some("5f3759df5f37"));
        // A host sees the mounts of its containers, but not over its own /etc/hosts.
        let host =
            format!("99 25 0:60 / /var/lib/docker/containers/{id}/mounts/shm rw - tmpfs shm rw\n");
        assert_eq!(own_container_in(&host), None);
        assert_eq!(own_container_in("garbage\n\n1 2 3"), None);
    }
}
