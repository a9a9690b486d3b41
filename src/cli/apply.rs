//! `heddle apply` and `heddle delete`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use model::manifest::{self, Manifest};
use registry::resources::Applied;
use serde_json::Value;

use super::Failure;
use super::client::{Client, escape};
use super::get::out;
use crate::admin::write::Done;
use crate::resources_folder::texts;

/// A file's text; `-` is standard input.
pub fn read(path: &Path) -> Result<String, Failure> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        return match std::io::stdin().read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(e) => Err(Failure::Input(format!("standard input: {e}"))),
        };
    }
    std::fs::read_to_string(path)
        .map_err(|e| Failure::Input(format!("{}: can't be read: {e}", path.display())))
}

/// All manifests of a file, a folder or standard input, as one text and validated; every mistake is told.
fn manifests(path: &Path) -> Result<(String, Vec<Manifest>), Failure> {
    let files = if path.is_dir() {
        let files = texts(path)
            .map_err(|e| Failure::Input(format!("{}: can't be read: {e}", path.display())))?;
        if files.is_empty() {
            return Err(Failure::Input(format!(
                "{}: no .yaml, .yml or .json files",
                path.display()
            )));
        }
        files
    } else {
        vec![(path.to_owned(), read(path)?)]
    };
    let mut all = Vec::new();
    let mut errors = Vec::new();
    let mut whole = String::new();
    for (path, text) in &files {
        match manifest::parse(text) {
            Ok(mut found) => all.append(&mut found),
            Err(found) => {
                errors.extend(found.iter().map(|e| format!("{}: {e}", path.display())));
            }
        }
        whole.push_str("\n---\n");
        whole.push_str(text);
    }
    if !errors.is_empty() {
        return Err(Failure::Input(format!(
            "manifests refused, nothing was changed\n  {}",
            errors.join("\n  ")
        )));
    }
    if all.is_empty() {
        return Err(Failure::Input(format!("{}: no documents", path.display())));
    }
    Ok((whole, all))
}

pub async fn apply(client: &Client, path: &Path, dry_run: bool, diff: bool) -> Result<(), Failure> {
    let (text, _) = manifests(path)?;
    let target = if dry_run || diff {
        "/v1/apply?dryRun=true"
    } else {
        "/v1/apply"
    };
    let applied: Vec<Applied> = client.post(target, text).await?;
    for one in &applied {
        let note = if dry_run { " (dry run)" } else { "" };
        if !diff {
            let vips = match one.vips.as_slice() {
                [] => String::new(),
                ips => format!(
                    ", virtual IP {}",
                    ips.iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            };
            out(&format!(
                "{} {} {}{vips}{note}\n",
                one.kind.to_lowercase(),
                one.key,
                one.action.as_str()
            ))?;
        } else {
            out(&difference(one))?;
        }
        if let Some(warning) = &one.warning {
            eprintln!("warning: {warning}");
        }
    }
    Ok(())
}

/// Lines that would go (`-`) and come (`+`), by the path of each value.
fn difference(applied: &Applied) -> String {
    let flat = |value: &Option<Value>| {
        let mut lines = BTreeMap::new();
        for part in ["metadata", "spec"] {
            if let Some(value) = value.as_ref().and_then(|v| v.get(part)) {
                flatten(part, value, &mut lines);
            }
        }
        // Set by heddle, not asked for by the user.
        lines.retain(|path: &String, _| {
            ![
                "metadata.uid",
                "metadata.generation",
                "metadata.creationTimestamp",
            ]
            .contains(&path.as_str())
        });
        lines
    };
    let (before, after) = (flat(&applied.before), flat(&applied.after));
    let mut text = String::new();
    for (path, value) in &before {
        if after.get(path) != Some(value) {
            text.push_str(&format!("- {path}: {value}\n"));
        }
    }
    for (path, value) in &after {
        if before.get(path) != Some(value) {
            text.push_str(&format!("+ {path}: {value}\n"));
        }
    }
    let kind = applied.kind.to_lowercase();
    if text.is_empty() {
        format!("{kind} {}: no difference\n", applied.key)
    } else {
        format!("{kind} {}:\n{text}", applied.key)
    }
}

fn flatten(path: &str, value: &Value, lines: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&format!("{path}.{key}"), value, lines);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), value, lines);
            }
        }
        leaf => {
            lines.insert(path.to_owned(), leaf.to_string());
        }
    }
}

pub async fn delete(
    client: &Client,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<(), Failure> {
    let collection = match kind.to_lowercase().as_str() {
        "service" | "services" | "svc" => "services",
        "endpoint" | "endpoints" | "ep" => "endpoints",
        "node" | "nodes" => {
            let done: Done = client
                .delete(&format!("/v1/nodes/{}", escape(name)))
                .await?;
            return out(&format!("{}\n", done.done));
        }
        other => {
            return Err(Failure::Input(format!(
                "delete {other}: only services, endpoints and nodes are deleted (workloads go with their containers, \
                 registrations with heddle deregister)"
            )));
        }
    };
    let path = format!("/v1/{collection}/{}/{}", escape(namespace), escape(name));
    let done: Applied = client.delete(&path).await?;
    out(&format!(
        "{} {} deleted\n",
        done.kind.to_lowercase(),
        done.key
    ))
}

pub async fn delete_file(client: &Client, path: &Path) -> Result<(), Failure> {
    let (_, manifests) = manifests(path)?;
    let mut failed = Vec::new();
    for manifest in &manifests {
        let key = manifest.key();
        let kind = manifest.kind();
        if let Err(error) = delete(client, kind, key.namespace.as_str(), key.name.as_str()).await {
            failed.push(error.to_string());
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Failed(failed.join("\n  ")))
    }
}
