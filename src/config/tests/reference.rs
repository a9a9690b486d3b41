//! docs/configuration.md says what the code has: its table of keys is made of the types, and the defaults in it are the
//! real ones.

use std::collections::BTreeMap;

use super::*;

const UPDATE: &str = "HEDDLE_UPDATE_DOCS";

fn table() -> String {
    let mut table = "| key | default | what |\n|---|---|---|\n".to_owned();
    for key in file::keys() {
        let what: Vec<&str> = key.what.iter().map(|line| line.trim()).collect();
        let row = format!(
            "| `{}` | {} | {} |\n",
            key.name,
            key.default,
            what.join(" ")
        );
        table.push_str(&row.replace("|  |", "| |"));
    }
    table
}

#[test]
fn the_table_of_keys_is_made_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let begin = page.find("| key ").expect("the page has the table");
    let rest = &page[begin..];
    let end = rest.find("\n\n").map_or(rest.len(), |at| at + 1);
    let (there, table) = (&rest[..end], table());
    if there == table {
        return;
    }
    if std::env::var_os(UPDATE).is_some() {
        let new = format!("{}{table}{}", &page[..begin], &rest[end..]);
        std::fs::write(&path, new).unwrap();
        return;
    }
    let differs = there.lines().zip(table.lines()).find(|(a, b)| a != b);
    panic!(
        "docs/configuration.md differs from src/config/file.rs ({UPDATE}=1 cargo test writes the table): {differs:?}"
    );
}

#[test]
fn the_defaults_in_the_table_are_the_real_ones() {
    let parsed = |env: &BTreeMap<String, String>| {
        Config::parse(Path::new("test"), "", |name| env.get(name).cloned()).unwrap()
    };
    let text = |env: &BTreeMap<String, String>| format!("{:?}", parsed(env));
    let none = BTreeMap::new();
    let mut looked_at = 0;
    for key in file::keys() {
        let keys::Key { name, default, .. } = key;
        // What is no single value is told in words.
        let value = default.strip_prefix('`').and_then(|d| d.strip_suffix('`'));
        let Some(value) = value.filter(|v| !v.contains('`')) else {
            continue;
        };
        let value = value.trim_start_matches("[\"").trim_end_matches("\"]");
        let value = if value == "[]" { "" } else { value };
        let env = BTreeMap::from([(keys::variable(name), value.to_owned())]);
        // What the registry may know better is left open where it is not named.
        if name.starts_with("mesh.") {
            let (named, open) = (parsed(&env).mesh(), parsed(&none).mesh());
            assert_eq!(named, open, "{name} is not {default}");
        } else {
            assert_eq!(text(&env), text(&none), "{name} is not {default}");
        }
        looked_at += 1;
    }
    assert!(looked_at > 10, "{looked_at}");
}
