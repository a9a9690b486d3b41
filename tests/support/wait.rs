//! Waiting until something is so: no sleep that is too short on a slow machine and too long on a fast one.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// The pause between two looks.
const POLL: Duration = Duration::from_millis(5);

/// What a look can find: `false`, `None` and `Err` mean "not yet".
pub trait Finding {
    type Value;
    /// The value, or the state that was found instead of it.
    fn found(self) -> Result<Self::Value, String>;
}

impl Finding for bool {
    type Value = ();
    fn found(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "not so".to_owned())
    }
}

impl<T> Finding for Option<T> {
    type Value = T;
    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Debug> Finding for Result<T, E> {
    type Value = T;
    fn found(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

/// Looks every few milliseconds until `look` finds something, and returns it.
///
/// # Panics
/// With `what` and the last state when nothing is found by the deadline. `look` is called at least once, and
/// once more after the deadline, so that a machine that stood still does not fail a test.
#[track_caller]
pub fn eventually<F: Finding>(deadline: Duration, what: &str, look: impl FnMut() -> F) -> F::Value {
    eventually_every(POLL, deadline, what, look)
}

/// [`eventually`] with another pause between two looks: how exactly is known when it was found.
///
/// # Panics
/// As [`eventually`].
#[track_caller]
pub fn eventually_every<F: Finding>(
    pause: Duration,
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> F::Value {
    let end = Instant::now() + deadline;
    loop {
        let late = Instant::now() >= end;
        match look().found() {
            Ok(value) => return value,
            Err(state) if late => panic!("not within {deadline:?}: {what}; last seen: {state}"),
            Err(_) => std::thread::sleep(pause),
        }
    }
}

/// [`eventually`] for a look that is a future.
///
/// # Panics
/// As [`eventually`]; the message names the caller.
#[track_caller]
pub fn eventually_async<F, L>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> L,
) -> impl Future<Output = F::Value>
where
    F: Finding,
    L: Future<Output = F>,
{
    // An async function has no caller to track: the place is noted before the future begins.
    let caller = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        loop {
            let late = Instant::now() >= end;
            match look().await.found() {
                Ok(value) => return value,
                Err(state) if late => {
                    panic!("{caller}: not within {deadline:?}: {what}; last seen: {state}")
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// Looks every few milliseconds for as long as `work` goes on, and once more when it is over; what came of the work. The
/// pauses pace the looks and wait for nothing: the work ends by itself, within the deadlines of its own waits.
///
/// # Panics
/// When `look` or the work does.
pub fn throughout<T>(work: ScopedJoinHandle<'_, T>, mut look: impl FnMut()) -> T {
    loop {
        let over = work.is_finished();
        look();
        if over {
            return work
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        std::thread::sleep(POLL);
    }
}

/// How long, since the machine started, somebody has waited for a processor. What a bound on time allows leaves such
/// waits out: how much else a machine does is no property of what is tested. Nothing where the kernel doesn't tell
/// (`/proc/pressure`).
pub fn stalled() -> Duration {
    let text = std::fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let some = text.lines().find(|line| line.starts_with("some "));
    let total = some.and_then(|line| line.rsplit_once("total=")?.1.parse().ok());
    Duration::from_micros(total.unwrap_or(0))
}

/// Sets a flag when it is dropped. Threads of a scope that go on until then end with a test that fails meanwhile, too: the
/// scope waits for them before it passes the failure on.
pub struct SetAtDrop<'a>(pub &'a AtomicBool);

impl Drop for SetAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
