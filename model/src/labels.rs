//! Labels, and the syntax that Kubernetes gives their keys and values.
//!
//! The syntax binds what heddle's users write: selectors and the metadata of resources. A container's
//! own labels are matched raw, whatever they look like: an odd label never drops a container.

use std::collections::BTreeMap;
use std::fmt;

use crate::name::{Alphabet, Clip, DNS_LABEL, Fault};

/// Label keys and their values.
pub type Labels = BTreeMap<String, String>;

/// The longest label value, and the longest name part of a key, in bytes.
pub const MAX_LABEL_BYTES: usize = 63;

/// The longest prefix of a label key (a DNS subdomain), in bytes.
pub const MAX_PREFIX_BYTES: usize = 253;

const LABEL: Alphabet = Alphabet {
    upper: true,
    separators: "-_.",
    words: "letters, digits, '-', '_' and '.'",
};

/// Which part of a label breaks the syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelPart {
    /// The DNS subdomain before the slash of a key.
    KeyPrefix,
    /// The key, or what follows the slash in it.
    KeyName,
    /// The value.
    Value,
}

impl fmt::Display for LabelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeyPrefix => "prefix of the label key",
            Self::KeyName => "label key",
            Self::Value => "label value",
        })
    }
}

/// Why a string is not a label key or a label value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A part breaks a rule of the syntax.
    #[error("{part} `{}` is not valid: {fault}", Clip(.value))]
    Invalid {
        /// The part.
        part: LabelPart,
        /// The part as given.
        value: String,
        /// The rule it breaks.
        fault: Fault,
    },
    /// A key has more than one slash.
    #[error("label key `{}` has more than one '/'", Clip(.key))]
    Slashes {
        /// The key as given.
        key: String,
    },
}

fn invalid(part: LabelPart, value: &str) -> impl FnOnce(Fault) -> LabelError + '_ {
    move |fault| LabelError::Invalid {
        part,
        value: value.to_owned(),
        fault,
    }
}

/// Checks a label key: a name of at most 63 bytes, optionally after a DNS subdomain of at most 253
/// bytes and a slash (`heddle.io/tier`).
///
/// # Errors
/// [`LabelError`] with the part and the rule that it breaks.
pub fn check_key(key: &str) -> Result<(), LabelError> {
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return Err(LabelError::Slashes {
                key: key.to_owned(),
            });
        }
        Some((prefix, name)) => {
            check_subdomain(prefix).map_err(invalid(LabelPart::KeyPrefix, prefix))?;
            name
        }
    };
    LABEL
        .check(name, MAX_LABEL_BYTES)
        .map_err(invalid(LabelPart::KeyName, name))
}

/// Checks a label value: empty, or at most 63 letters, digits, `-`, `_` and `.` with a letter or digit
/// at both ends.
///
/// # Errors
/// [`LabelError::Invalid`] with the rule that the value breaks.
pub fn check_value(value: &str) -> Result<(), LabelError> {
    if value.is_empty() {
        return Ok(());
    }
    LABEL
        .check(value, MAX_LABEL_BYTES)
        .map_err(invalid(LabelPart::Value, value))
}

/// Checks the keys and values of a resource's metadata.
///
/// # Errors
/// The first pair's [`LabelError`], in the order of the keys.
pub fn check_labels(labels: &Labels) -> Result<(), LabelError> {
    labels.iter().try_for_each(|(key, value)| {
        check_key(key)?;
        check_value(value)
    })
}

/// The parts of a subdomain have no limit of their own here, as in Kubernetes: only the whole has.
fn check_subdomain(text: &str) -> Result<(), Fault> {
    if text.len() > MAX_PREFIX_BYTES {
        return Err(Fault::TooLong {
            length: text.len(),
            limit: MAX_PREFIX_BYTES,
        });
    }
    let mut start = 0;
    for label in text.split('.') {
        DNS_LABEL
            .check(label, MAX_PREFIX_BYTES)
            .map_err(|fault| match fault {
                Fault::Character {
                    character,
                    position,
                    alphabet,
                } => Fault::Character {
                    character,
                    position: position + start,
                    alphabet,
                },
                // Two dots in a row, or one at an end: say that, not that something is empty.
                Fault::Empty if !text.is_empty() => Fault::Character {
                    character: '.',
                    position: (start + 1).min(text.len()),
                    alphabet: "single dots between lower-case letters, digits and '-'",
                },
                other => other,
            })?;
        start += label.len() + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
