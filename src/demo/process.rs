//! Processes that end with the demo, even where it is killed.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::Failure;

const POLL: Duration = Duration::from_millis(10);

/// A child of this process.
pub struct Process(Child);

impl Process {
    /// Starts this very binary with these arguments.
    pub fn start(args: &[&str], stdout: Stdio, stderr: Stdio) -> Result<Process, Failure> {
        let failed = |e: std::io::Error| Failure::Failed(format!("demo: heddle {args:?}: {e}"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(args).stdin(Stdio::null());
        command.stdout(stdout).stderr(stderr);
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name.starts_with("HEDDLE_") && name != "HEDDLE_LOG" {
                command.env_remove(&variable);
            }
        }
        // Ctrl-C is for the demo, which ends its processes in order.
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe, and nothing else is done between fork and exec.
        unsafe {
            command.pre_exec(|| {
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        command.spawn().map(Process).map_err(failed)
    }

    /// What it prints, where its standard output is a pipe.
    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.0.stdout.take()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// SIGTERM, and SIGKILL where that is not enough within so long.
    pub async fn stop(&mut self, within: Duration) {
        if self.ended().is_some() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // SAFETY: the child has not been waited for, so its id is nobody else's.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let end = Instant::now() + within;
        while self.ended().is_none() {
            if Instant::now() > end {
                self.kill();
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
