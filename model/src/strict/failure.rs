//! What went wrong while a value was read, and where.

use std::fmt;

use serde::de::{self, Expected, Unexpected};
use serde_json::Value;

use super::{StrictError, nearest};
use crate::name::Clip;

/// How many known words an error lists.
const MAX_LISTED: usize = 40;

/// A step of a path.
#[derive(Debug)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// An error on its way up: every level that it passes adds its step.
#[derive(Debug)]
pub(super) struct Failure {
    /// From the innermost step outwards.
    steps: Vec<Step>,
    reason: String,
}

impl Failure {
    pub(super) fn new(reason: String) -> Self {
        Self {
            steps: Vec::new(),
            reason,
        }
    }

    pub(super) fn under(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

impl From<Failure> for StrictError {
    fn from(failure: Failure) -> Self {
        let mut path = String::new();
        for step in failure.steps.iter().rev() {
            match step {
                Step::Index(index) => path.push_str(&format!("[{index}]")),
                Step::Key(key) if is_plain(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
                Step::Key(key) => path.push_str(&format!("[\"{}\"]", Clip(key))),
            }
        }
        StrictError::new(path, failure.reason)
    }
}

/// Whether a key can stand in a path as it is.
fn is_plain(key: &str) -> bool {
    (1..=64).contains(&key.len())
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!(
            "invalid type: {}, expected {expected}",
            Shown(found)
        ))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!(
            "invalid value: {}, expected {expected}",
            Shown(found)
        ))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!("unknown field{}", hint(field, known))).under(Step::Key(field.to_owned()))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!(
            "unknown value `{}`{}",
            Clip(variant),
            hint(variant, known)
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("missing field `{field}`"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new("given twice".to_owned()).under(Step::Key(field.to_owned()))
    }
}

fn hint(word: &str, known: &[&str]) -> String {
    if let Some(near) = nearest(word, known.iter().copied()) {
        return format!(", did you mean `{near}`?");
    }
    match known {
        [] => ", there are none here".to_owned(),
        _ => format!(", expected {}", listed(known)),
    }
}

/// The words of an alternative, in backquotes.
pub(super) fn listed(known: &[&str]) -> String {
    let mut text = String::new();
    for (index, word) in known.iter().take(MAX_LISTED).enumerate() {
        let joint = match index {
            0 => "",
            _ if index + 1 == known.len() => " or ",
            _ => ", ",
        };
        text.push_str(&format!("{joint}`{word}`"));
    }
    if known.len() > MAX_LISTED {
        text.push_str(" …");
    }
    text
}

/// What was found, in the words of JSON and at a bounded length.
pub(super) struct Shown<'a>(pub(super) Unexpected<'a>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Unit => f.write_str("null"),
            Unexpected::Str(text) => write!(f, "string \"{}\"", Clip(text)),
            Unexpected::Unsigned(number) => write!(f, "number {number}"),
            Unexpected::Signed(number) => write!(f, "number {number}"),
            Unexpected::Float(number) => write!(f, "number {number}"),
            Unexpected::Bool(value) => write!(f, "boolean {value}"),
            Unexpected::Seq => f.write_str("list"),
            Unexpected::Other(text) => write!(f, "{}", Clip(text)),
            other => write!(f, "{other}"),
        }
    }
}

/// A value in the words of serde.
pub(super) fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => Unexpected::Unsigned(number),
            (_, Some(number), _) => Unexpected::Signed(number),
            (_, _, Some(number)) => Unexpected::Float(number),
            _ => Unexpected::Other("number"),
        },
        Value::String(text) => Unexpected::Str(text),
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    }
}

/// The error for anything but a map where a struct is expected.
pub(super) fn not_a_struct(found: &Value, fields: &[&str]) -> Failure {
    let found = Shown(unexpected(found));
    Failure::new(match fields {
        [] => format!("invalid type: {found}, expected an empty map: {{}}"),
        _ => format!(
            "invalid type: {found}, expected a map with {}",
            listed(fields)
        ),
    })
}

/// The error for a map with no key or several where an enum is expected.
pub(super) fn one_of(variants: &[&str], found: usize) -> Failure {
    Failure::new(format!(
        "expected exactly one of {}, found {found}",
        listed(variants)
    ))
}
