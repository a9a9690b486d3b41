//! Small pieces of the sentences that events are made of.

use model::Timestamp;
use model::service::ManagedBy;
use serde::Serialize;
use serde_json::Value;

/// A value longer than this is named as changed and not written out.
const SHOWN: usize = 60;

/// Texts with commas between them.
pub fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    all.join(", ")
}

/// A time to the second.
pub fn time(at: Timestamp) -> Timestamp {
    Timestamp(at.0 - at.0.rem_euclid(1000))
}

/// `weight was 1, is 0`; nothing where both are the same.
pub fn difference(what: &str, old: String, new: String) -> Option<String> {
    let shown = |text: String| match text.is_empty() {
        true => "none".to_owned(),
        false => text,
    };
    (old != new).then(|| format!("{what} was {}, is {}", shown(old), shown(new)))
}

/// Who owns a resource now; nothing where that stayed.
pub fn new_owner(old: &ManagedBy, new: &ManagedBy) -> Option<String> {
    (old != new).then(|| format!("managed by {new} (before: {old})"))
}

/// Which fields of a record differ, one phrase each; short values are written out.
pub fn spec_changes<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let fields = |value: &T| match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(
            |name| match (old.get(name).and_then(short), new.get(name).and_then(short)) {
                (Some(old), Some(new)) => format!("{name} was {old}, is {new}"),
                (None, Some(new)) if !old.contains_key(name) => format!("{name} is {new}"),
                (_, None) if !new.contains_key(name) => format!("{name} removed"),
                _ => format!("{name} changed"),
            },
        )
        .collect()
}

fn short(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null | Value::Object(_) => return None,
        Value::String(text) => text.clone(),
        Value::Array(items) => joined(items.iter().map(short).collect::<Option<Vec<_>>>()?),
        other => other.to_string(),
    };
    (text.len() <= SHOWN).then_some(text)
}
