//! `heddle export` and `heddle import`: all resources, as a backup or on their way to another registry.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;

use registry::import::Imported;
use registry::resources::Action;
use serde_json::json;

use super::Failure;
use super::apply::read;
use super::client::{Client, escape};
use super::get::out;
use crate::admin::export::Export;

/// How documents are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One YAML document for each
    Yaml,
    /// One JSON object with all of them as `items`
    Json,
}

/// Prints all documents. With records that can't be read the status is 1, and the rest is printed all the same.
pub async fn export(
    client: &Client,
    namespace: Option<&str>,
    format: Format,
) -> Result<(), Failure> {
    let path = match namespace {
        Some(namespace) => format!("/v1/export?namespace={}", escape(namespace)),
        None => "/v1/export".to_owned(),
    };
    let export: Export = client.get(&path).await?;
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("can't be printed: {e}"));
    match format {
        Format::Yaml => {
            for document in &export.items {
                let text = model::strict::to_yaml(document).map_err(|e| failed(&e))?;
                out(&format!("---\n{}\n", text.trim_end()))?;
            }
        }
        Format::Json => {
            let list = json!({
                "apiVersion": model::manifest::API_VERSION,
                "kind": "List",
                "items": export.items,
            });
            let text = serde_json::to_string_pretty(&list).map_err(|e| failed(&e))?;
            out(&format!("{text}\n"))?;
        }
    }
    if export.items.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("nothing to export");
    }
    match export.unreadable.as_slice() {
        [] => Ok(()),
        bad => {
            let lines: Vec<String> = bad
                .iter()
                .map(|bad| format!("{}: {}", bad.key, bad.reason))
                .collect();
            Err(Failure::Failed(format!(
                "{} records can't be read and were left out (mend or delete these keys)\n  {}",
                bad.len(),
                lines.join("\n  ")
            )))
        }
    }
}

/// Writes what was exported; prints what was done with each document.
pub async fn import(
    client: &Client,
    path: &Path,
    dry_run: bool,
    replace: bool,
) -> Result<(), Failure> {
    let text = read(path)?;
    let target = format!("/v1/import?dryRun={dry_run}&replace={replace}");
    let imported: Imported = client.post(&target, text).await?;
    let note = if dry_run { " (dry run)" } else { "" };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for item in &imported.items {
        *counts.entry(word(item.action)).or_default() += 1;
        if item.action != Action::Unchanged {
            let kind = item.kind.to_lowercase();
            let line = format!("{kind} {} {}{note}\n", item.name, word(item.action));
            out(&line)?;
        }
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(word, n)| format!("{n} {word}"))
        .collect();
    let whole = match imported.transactions {
        0 => "nothing to write".to_owned(),
        1 => "in one transaction".to_owned(),
        n => format!("in {n} transactions"),
    };
    out(&format!("{}: {whole}{note}\n", counts.join(", ")))
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Created => "created",
        Action::Configured => "replaced",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    }
}
