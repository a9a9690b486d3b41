//! The house stays as ARCHITECTURE.md draws it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Which of our crates each one may know.
const ALLOWED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("registry", &["model"]),
    ("proxy", &["model"]),
    ("dns", &["model"]),
    ("agent", &["model", "registry"]),
    ("heddle", &["model", "registry", "proxy", "dns", "agent"]),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

#[test]
fn imports_run_one_way() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "a crate more or less than the design has"
    );
    for package in packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            if ours.contains(on) {
                assert!(allowed[name].contains(&on), "{name} must not know {on}");
            }
        }
    }
}

#[test]
fn every_direct_dependency_is_explained() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CONTRIBUTING.md"))
            .unwrap();
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let ours = ALLOWED.iter().any(|(crate_name, _)| *crate_name == name);
            assert!(
                ours || text.contains(&format!("`{name}`")),
                "CONTRIBUTING.md does not say why {name} is there"
            );
        }
    }
}

#[test]
fn architecture_md_names_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let paths: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            word.contains('/') && !word.contains([' ', ':', '<', '*']) && !word.starts_with('/')
        })
        .collect();
    assert!(
        paths.len() > 20,
        "ARCHITECTURE.md names hardly any file: {paths:?}"
    );
    for path in paths {
        assert!(
            root.join(path).exists(),
            "ARCHITECTURE.md names {path}, which is not there"
        );
    }
}
