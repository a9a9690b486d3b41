//! The table of all keys, for the environment's overrides.

use serde_json::{Map, Value};

use super::ConfigError;

/// How a key's value is read from an environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    List,
    Bool,
    Number,
}

/// Every key there is.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("node.name", Kind::Text),
    ("node.zone", Kind::Text),
    ("node.address", Kind::List),
    ("node.routable", Kind::List),
    ("node.state_dir", Kind::Text),
    ("registry.backend", Kind::Text),
    ("registry.endpoints", Kind::List),
    ("registry.prefix", Kind::Text),
    ("registry.lease_ttl", Kind::Text),
    ("registry.username", Kind::Text),
    ("registry.password_file", Kind::Text),
    ("registry.ca_file", Kind::Text),
    ("registry.cert_file", Kind::Text),
    ("registry.key_file", Kind::Text),
    ("registry.expiry_hold", Kind::Text),
    ("registry.collect_after", Kind::Text),
    ("docker.enabled", Kind::Bool),
    ("docker.socket", Kind::Text),
    ("resources.path", Kind::Text),
    ("mesh.vip_range", Kind::List),
    ("mesh.zone", Kind::Text),
    ("proxy.workers", Kind::Number),
    ("proxy.drain_timeout", Kind::Text),
    ("proxy.trusted_proxies", Kind::List),
    ("proxy.forwarded", Kind::Bool),
    ("proxy.via", Kind::Bool),
    ("proxy.request_id", Kind::Bool),
    ("proxy.start_traces", Kind::Bool),
    ("dns.listen", Kind::List),
    ("dns.upstreams", Kind::List),
    ("dns.zones", Kind::List),
    ("dns.cache_size", Kind::Text),
    ("dns.clients", Kind::List),
    ("dns.single_answer", Kind::Bool),
    ("dns.nsid", Kind::Text),
    ("dns.version", Kind::Text),
    ("admin.socket", Kind::Text),
    ("admin.listen", Kind::Text),
];

/// `HEDDLE_NODE_STATE_DIR` for `node.state_dir`.
pub(super) fn variable(key: &str) -> String {
    format!("HEDDLE_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Writes what the environment says over the file's values; returns each key so set with its variable.
pub(super) fn overlay(
    value: &mut Value,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut set = Vec::new();
    for (key, kind) in KEYS {
        let name = variable(key);
        let Some(text) = env(&name) else { continue };
        let wrong = |reason: String| ConfigError::Key {
            origin: name.clone(),
            key: (*key).to_owned(),
            reason,
        };
        let new = match kind {
            Kind::Text => Value::String(text),
            Kind::List => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| Value::String(part.to_owned()))
                .collect(),
            Kind::Bool => match text.as_str() {
                "true" | "1" => Value::Bool(true),
                "false" | "0" => Value::Bool(false),
                _ => return Err(wrong(format!("`{text}` is neither true nor false"))),
            },
            Kind::Number => match text.parse::<u64>() {
                Ok(number) => number.into(),
                Err(_) => return Err(wrong(format!("`{text}` is not a number"))),
            },
        };
        let (section, leaf) = key.split_once('.').unwrap_or((key, ""));
        if let Value::Object(root) = value {
            let section = root
                .entry(section)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(section) = section {
                section.insert(leaf.to_owned(), new);
                set.push(((*key).to_owned(), name));
            }
        }
    }
    Ok(set)
}
