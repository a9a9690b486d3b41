//! docs/configuration.md says what the code has: each key, and the default it really has.

use std::collections::BTreeMap;

use super::*;

/// The table's rows by key: their default, and what they are.
fn rows() -> BTreeMap<String, (String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table = text
        .lines()
        .skip_while(|line| !line.starts_with("| key "))
        .take_while(|line| line.starts_with('|'));
    let mut rows = BTreeMap::new();
    for line in table.skip(2) {
        let cells: Vec<&str> = line
            .trim_matches('|')
            .splitn(3, '|')
            .map(str::trim)
            .collect();
        let &[keys, default, what] = cells.as_slice() else {
            panic!("not three cells: {line}");
        };
        for key in keys.split(", ") {
            let row = (default.to_owned(), what.to_owned());
            rows.insert(key.trim_matches('`').to_owned(), row);
        }
    }
    rows
}

#[test]
fn every_key_has_a_row_and_every_row_a_key() {
    let rows = rows();
    let known: Vec<&str> = keys::KEYS.iter().map(|(key, _)| *key).collect();
    for key in &known {
        let row = rows.get(*key);
        assert!(
            row.is_some_and(|(_, what)| !what.is_empty()),
            "docs/configuration.md lacks {key}"
        );
    }
    for key in rows.keys() {
        assert!(
            known.contains(&key.as_str()),
            "docs/configuration.md has {key}, which there is not"
        );
    }
}

#[test]
fn the_defaults_in_the_table_are_the_real_ones() {
    let parsed = |env: &BTreeMap<String, String>| {
        let parsed = Config::parse(Path::new("test"), "", |name| env.get(name).cloned());
        format!("{:?}", parsed.unwrap())
    };
    let plain = parsed(&BTreeMap::new());
    let mut looked_at = 0;
    for (key, (default, _)) in rows() {
        // What is no single value is told in words.
        let value = default.strip_prefix('`').and_then(|d| d.strip_suffix('`'));
        let Some(value) = value.filter(|v| !v.contains('`')) else {
            continue;
        };
        let value = value.trim_start_matches("[\"").trim_end_matches("\"]");
        let value = if value == "[]" { "" } else { value };
        let env = BTreeMap::from([(keys::variable(&key), value.to_owned())]);
        // What the registry may know better is left open where it is not named.
        if key.starts_with("mesh.") {
            let mesh = |env: &BTreeMap<String, String>| {
                let parsed = Config::parse(Path::new("test"), "", |name| env.get(name).cloned());
                parsed.unwrap().mesh()
            };
            assert_eq!(mesh(&env), mesh(&BTreeMap::new()), "{key} is not {default}");
        } else {
            assert_eq!(parsed(&env), plain, "{key} is not {default}");
        }
        looked_at += 1;
    }
    assert!(looked_at > 10, "{looked_at}");
}
