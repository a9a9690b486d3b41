//! Telling systemd how this process fares (sd_notify(3)): one datagram to the socket that it names, and nothing where it
//! names none.
//!
//! `READY=1` comes when the node is ready, as `/readyz` has it; `STOPPING=1` when it is told to end; `WATCHDOG=1` twice
//! within the time that the unit's `WatchdogSec=` gives, as long as the control runtime gets that far.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::Context;
use crate::admin::ready::readiness;

/// How often it is looked whether the node is ready.
const LOOK: Duration = Duration::from_millis(100);
/// How often the status line is told, at most.
const STATUS: Duration = Duration::from_secs(5);

/// Where to tell, and how often the watchdog wants to hear.
pub struct Notify {
    to: SocketAddr,
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl Notify {
    /// What the service manager asks for; none where there is none.
    pub fn from_env() -> Option<Notify> {
        let path = std::env::var_os("NOTIFY_SOCKET")?;
        let usec = std::env::var("WATCHDOG_USEC").ok();
        // It may be meant for another process.
        let other =
            std::env::var("WATCHDOG_PID").is_ok_and(|p| p != std::process::id().to_string());
        let watchdog = usec.and_then(|u| u.parse().ok()).filter(|_| !other);
        match Notify::new(&path, watchdog.map(Duration::from_micros)) {
            Ok(notify) => Some(notify),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "NOTIFY_SOCKET can't be used");
                None
            }
        }
    }

    fn new(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Notify> {
        let to = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(path)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notify {
            to,
            socket,
            watchdog,
        })
    }

    fn tell(&self, text: &str) {
        // Nobody is there to hear it where this fails.
        let _ = self.socket.send_to_addr(text.as_bytes(), &self.to);
    }

    /// Tells until `stop`.
    pub async fn run(self, context: Arc<Context>, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beat = tokio::time::interval(self.watchdog.map_or(STATUS, |w| w / 2));
        let mut told_ready = false;
        let mut told = String::new();
        loop {
            tokio::select! {
                () = context.draining.cancelled() => break,
                _ = look.tick(), if !told_ready => {
                    if readiness(&context).ready {
                        told_ready = true;
                        self.tell("READY=1");
                        beat.reset_immediately();
                    }
                }
                _ = beat.tick() => {
                    if self.watchdog.is_some() {
                        self.tell("WATCHDOG=1");
                    }
                    let status = status(&context);
                    if status != told {
                        self.tell(&format!("STATUS={status}"));
                        told = status;
                    }
                }
            }
        }
        self.tell("STOPPING=1\nSTATUS=draining");
        while let Some(watchdog) = self.watchdog {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(watchdog / 2) => self.tell("WATCHDOG=1"),
            }
        }
    }
}

/// One line for `systemctl status`.
fn status(context: &Context) -> String {
    let ready = readiness(context);
    let services = context.feed.snapshot.load().services.size();
    match ready.reasons.first() {
        None => format!("{services} services at revision {}", ready.revision),
        // A datagram has lines of its own.
        Some(reason) => reason.replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("heddle-test-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (socket, given) in [
            (&by_path, path.into_os_string()),
            (&by_name, format!("@{name}").into()),
        ] {
            Notify::new(&given, None).unwrap().tell("READY=1");
            let mut got = [0; 64];
            let n = socket.recv(&mut got).unwrap();
            assert_eq!(&got[..n], b"READY=1");
        }
        assert!(Notify::new(OsStr::new("relative"), None).is_err());
    }
}
