//! Reading what users write, so that a mistake costs one clear message: where it is, what is wrong, and
//! what was probably meant.
//!
//! serde ignores unknown fields by default, and its errors say what is wrong but not where. For a file
//! with twenty services that is a search; for a misspelt `drainTimout` it is a default that somebody
//! believes to have changed.
//!
//! # Layout
//! - `documents`: text (YAML or JSON, several documents) to values
//! - `de`, `key`: values and map keys to types
//! - `failure`: an error on its way up, gathering its path
//! - `suggest`: the nearest known word
//! - this file: the error

use std::error::Error;
use std::fmt;

use serde::de::DeserializeOwned;

mod de;
mod documents;
mod failure;
mod key;
mod suggest;

pub use documents::{Document, MAX_TEXT_BYTES, parse_documents, to_yaml};
pub use suggest::nearest;

/// A line and a column of a text, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text or a value was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrictError {
    /// The value's path (`spec.ports[0].port`); empty for the whole document, or when the text itself
    /// could not be read.
    pub path: String,
    /// What is wrong, in one line.
    pub reason: String,
    /// The place in the text, where the text itself could not be read.
    pub position: Option<Position>,
}

impl StrictError {
    /// An error at a path, for rules that a type alone cannot express.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
            position: None,
        }
    }

    fn in_text(position: Option<Position>, reason: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            reason: reason.into(),
            position,
        }
    }

    /// The same error seen from further up: `prefix` is put before its path.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.path = match (prefix.is_empty(), self.path.is_empty()) {
            (true, _) => self.path,
            (false, true) => prefix.to_owned(),
            (false, false) if self.path.starts_with('[') => format!("{prefix}{}", self.path),
            (false, false) => format!("{prefix}.{}", self.path),
        };
        self
    }
}

impl fmt::Display for StrictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = self.position {
            write!(f, "{position}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "`{}`: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl Error for StrictError {}

/// Reads a type from a value, as `serde_json::from_value` does, with two differences: an unknown field of
/// a struct is an error that names the nearest known field, and every error carries its path.
///
/// Where a type reads a struct through a visitor of its own (a string *or* a map), an unknown field is
/// refused without a hint, unless the struct has `deny_unknown_fields`. Unknown fields cannot be seen
/// where serde reads a struct through a buffer: inside `untagged` and internally tagged enums, and in
/// structs with a `flatten` field. There serde's own behaviour stands.
///
/// # Errors
/// [`StrictError`] for the first thing that does not fit; unknown fields of a struct come first.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, StrictError> {
    T::deserialize(de::ValueDeserializer::new(value)).map_err(StrictError::from)
}

/// An error and its sources on one line. serde keeps only the text of a custom error, so the chain has to
/// be printed at that border.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
