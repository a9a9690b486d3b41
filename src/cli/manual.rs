//! Completions and manual pages, made of the same table of commands as `--help`.

use std::path::Path;

use clap_complete::Shell;

use super::get::out;
use super::{Cli, Failure};

/// Prints a shell's completions.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::shown(), "heddle", &mut text);
    out(&String::from_utf8_lossy(&text))
}

/// Writes `heddle.1` and a page for each command.
pub fn pages(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::shown(), folder))
        .map_err(|e| Failure::Failed(format!("{}: can't be written: {e}", folder.display())))
}

#[cfg(test)]
mod tests;
