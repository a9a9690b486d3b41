//! `heddle check`: validation without a running node.

use std::path::Path;

use model::manifest;
use registry::follow::chain;

use super::Failure;
use super::get::out;
use crate::config::Config;
use crate::resources_folder::texts;

pub fn check(path: &Path) -> Result<(), Failure> {
    if path.extension().is_some_and(|e| e == "toml") {
        let config = Config::load(Some(path)).map_err(|error| Failure::Input(chain(&error)))?;
        return out(&format!(
            "{}: a valid configuration for node {}\n",
            path.display(),
            config.node
        ));
    }
    let files = texts(path)
        .map_err(|e| Failure::Input(format!("{}: can't be read: {e}", path.display())))?;
    let mut errors = Vec::new();
    let mut count = 0;
    for (path, text) in &files {
        match manifest::parse(text) {
            Ok(found) => count += found.len(),
            Err(found) => errors.extend(found.iter().map(|e| format!("{}: {e}", path.display()))),
        }
    }
    if !errors.is_empty() {
        return Err(Failure::Input(errors.join("\nerror: ")));
    }
    if count == 0 {
        return Err(Failure::Input(format!("{}: no documents", path.display())));
    }
    out(&format!("{}: {count} valid resources\n", path.display()))
}
