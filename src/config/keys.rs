//! What is known of the keys, and the environment's overrides.

use std::net::SocketAddr;
use std::path::PathBuf;

use model::units::{Size, Span};
use serde_json::{Map, Value};

use super::{ConfigError, file};

/// What there is to know of a key.
#[derive(Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "a test writes the reference of it")
)]
pub(super) struct Key {
    /// With its section: `node.name`.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// As the reference shows it: in backquotes where it is a value, else in words.
    pub(super) default: &'static str,
    /// Line by line, in Markdown.
    pub(super) what: &'static [&'static str],
}

/// How a key's value is read from an environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    List,
    Bool,
    Number,
}

/// What a key's type is written as.
pub(super) trait Written {
    const KIND: Kind;
}

impl<T: Written> Written for Option<T> {
    const KIND: Kind = T::KIND;
}

impl<T> Written for Vec<T> {
    const KIND: Kind = Kind::List;
}

macro_rules! written {
    ($kind:ident: $($type:ty),+) => {
        $(impl Written for $type {
            const KIND: Kind = Kind::$kind;
        })+
    };
}

written!(Text: String, PathBuf, SocketAddr, Span, Size);
written!(Bool: bool);
written!(Number: usize, u32);

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
    for Key {
        name: key, kind, ..
    } in file::keys()
    {
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
