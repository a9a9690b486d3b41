//! Logging: one line per event to stderr, lower-case phrases with structured fields.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging; `HEDDLE_LOG` (as `RUST_LOG`: `info`, `proxy=debug`) says how much.
pub fn start() {
    let filter = EnvFilter::try_from_env("HEDDLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Starting twice happens only in tests, where the first wins.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
