//! Label selectors, with the grammar and the meaning of Kubernetes (`labels.Parse` of apimachinery, and
//! `metav1.LabelSelector` for the structured form).
//!
//! Two things are heddle's own. **An empty selector selects nothing**: in Kubernetes it selects
//! everything, which for a service would mean every container of the namespace by an omission. And a
//! NUL byte is an error, where the lexer of apimachinery happens to take it for the end of a word.
//!
//! # Layout
//! - `parse`: the string form
//! - `structured`: `matchLabels` and `matchExpressions`
//! - this file: what a selector is, how it matches, how it is written

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::labels::{self, LabelError, Labels};
use crate::name::Clip;
use crate::strict::chain;

mod parse;
mod structured;

pub use structured::{LabelSelector, LabelSelectorRequirement, Operator};

/// The longest selector in bytes, as written and in its canonical form. There is room for 500 pairs of
/// the longest keys and values.
pub const MAX_SELECTOR_BYTES: usize = 64 * 1024;

/// A conjunction of requirements on labels.
///
/// Two selectors are equal when their canonical forms are: the order of requirements and values, spaces,
/// `==` for `=`, and `x in (a)` for `x=a` make no difference. A clone costs one atomic increment.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Selector(Arc<[Requirement]>);

/// One condition on one key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Requirement {
    key: Box<str>,
    test: Test,
}

/// What a requirement asks of the value. The sets are sorted, without duplicates and never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    In(Box<[Box<str>]>),
    NotIn(Box<[Box<str>]>),
    Exists,
    Absent,
    GreaterThan(i64),
    LessThan(i64),
}

/// Where in a selector an error stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the string form: the character's number, counted from 1.
    Character(usize),
    /// In the structured form: the field (`matchExpressions[1].values[0]`).
    Field(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Character(position) => write!(f, "at character {position}"),
            Self::Field(field) => f.write_str(field),
        }
    }
}

/// Why something is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The grammar asks for something else at this place.
    #[error("{place}: found {}, expected {expected}", Found(.found))]
    Unexpected {
        /// Where.
        place: Place,
        /// The token found there; empty at the end of the selector.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A key breaks the syntax of label keys.
    #[error("{place}: bad key")]
    Key {
        /// Where.
        place: Place,
        /// The rule it breaks.
        #[source]
        source: LabelError,
    },
    /// A value breaks the syntax of label values.
    #[error("{place}: bad value for the key `{key}`")]
    Value {
        /// Where.
        place: Place,
        /// The requirement's key.
        key: String,
        /// The rule it breaks.
        #[source]
        source: LabelError,
    },
    /// The right side of `>` or `<` is not a whole number of 64 bits.
    #[error("{place}: `{}` is not a whole number, which `<` and `>` need (key `{key}`)", Clip(.value))]
    NotAnInteger {
        /// Where.
        place: Place,
        /// The requirement's key.
        key: String,
        /// The value as given.
        value: String,
    },
    /// The structured form's `values` do not fit its `operator`.
    #[error("{place}: operator {operator} takes {needs} (key `{}`)", Clip(.key))]
    Values {
        /// Where.
        place: Place,
        /// The requirement's key.
        key: String,
        /// The operator.
        operator: Operator,
        /// What it takes, in words.
        needs: &'static str,
    },
    /// The selector, or its canonical form, is longer than [`MAX_SELECTOR_BYTES`].
    #[error("a selector may have {MAX_SELECTOR_BYTES} bytes at most, this one has {length}")]
    TooLong {
        /// Bytes of the longer one.
        length: usize,
    },
}

struct Found<'a>(&'a str);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("the end of the selector")
        } else {
            write!(f, "`{}`", Clip(self.0))
        }
    }
}

impl Selector {
    /// Reads the string form: `app=web,tier in (front,edge),!canary`.
    ///
    /// # Errors
    /// [`SelectorError`] with the character at which the grammar, or the syntax of keys and values, is
    /// broken.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong { length: text.len() });
        }
        Self::from_requirements(parse::requirements(text)?)
    }

    /// Whether the labels meet every requirement. `!=` and `notin` hold for a label that is absent. An
    /// empty selector matches nothing.
    pub fn matches(&self, labels: &Labels) -> bool {
        !self.is_empty() && self.0.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether there is no requirement, in which case nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pairs that every selected workload carries: requirements with exactly one allowed value.
    /// An index over labels needs to look only at workloads with one of these pairs.
    pub fn required_pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter_map(|requirement| match &requirement.test {
                Test::In(values) => match values.as_ref() {
                    [value] => Some((requirement.key.as_ref(), value.as_ref())),
                    _ => None,
                },
                _ => None,
            })
    }

    fn from_requirements(mut requirements: Vec<Requirement>) -> Result<Self, SelectorError> {
        requirements.sort();
        requirements.dedup();
        let selector = Self(requirements.into());
        // Measured again on the canonical form, which can be longer than what was written: what was
        // accepted once must be accepted when it comes back from the registry.
        let length = selector.written_length();
        if length > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong { length });
        }
        Ok(selector)
    }

    fn written_length(&self) -> usize {
        struct Count(usize);
        impl fmt::Write for Count {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 += text.len();
                Ok(())
            }
        }
        let mut count = Count(0);
        // Counting cannot fail.
        let _ = fmt::write(&mut count, format_args!("{self}"));
        count.0
    }
}

/// Checks a key of the string or the structured form.
fn checked_key(key: &str, place: impl FnOnce() -> Place) -> Result<Box<str>, SelectorError> {
    match labels::check_key(key) {
        Ok(()) => Ok(key.into()),
        Err(source) => Err(SelectorError::Key {
            place: place(),
            source,
        }),
    }
}

/// Checks a value of the string or the structured form.
fn checked_value(
    key: &str,
    value: &str,
    place: impl FnOnce() -> Place,
) -> Result<Box<str>, SelectorError> {
    match labels::check_value(value) {
        Ok(()) => Ok(value.into()),
        Err(source) => Err(SelectorError::Value {
            place: place(),
            key: key.to_owned(),
            source,
        }),
    }
}

/// Sorted and without duplicates, as [`Test`] promises.
fn value_set(mut values: Vec<Box<str>>) -> Box<[Box<str>]> {
    values.sort();
    values.dedup();
    values.into()
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(self.key.as_ref()).map(String::as_str);
        match (&self.test, value) {
            (Test::In(set), Some(value)) => contains(set, value),
            (Test::NotIn(set), Some(value)) => !contains(set, value),
            (Test::Exists, value) => value.is_some(),
            (Test::Absent, value) => value.is_none(),
            (Test::GreaterThan(bound), Some(value)) => {
                value.parse::<i64>().is_ok_and(|n| n > *bound)
            }
            (Test::LessThan(bound), Some(value)) => value.parse::<i64>().is_ok_and(|n| n < *bound),
            (Test::NotIn(_), None) => true,
            (Test::In(_) | Test::GreaterThan(_) | Test::LessThan(_), None) => false,
        }
    }
}

/// One value is by far the most frequent case and needs no search.
fn contains(set: &[Box<str>], value: &str) -> bool {
    match set {
        [only] => only.as_ref() == value,
        _ => set
            .binary_search_by(|candidate| candidate.as_ref().cmp(value))
            .is_ok(),
    }
}

/// The canonical form: requirements sorted by key, values sorted, one spelling for each meaning.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.test {
            Test::In(values) => write_set(f, key, "=", " in ", values),
            Test::NotIn(values) => write_set(f, key, "!=", " notin ", values),
            Test::Exists => f.write_str(key),
            Test::Absent => write!(f, "!{key}"),
            Test::GreaterThan(bound) => write!(f, "{key}>{bound}"),
            Test::LessThan(bound) => write!(f, "{key}<{bound}"),
        }
    }
}

fn write_set(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    single: &str,
    several: &str,
    values: &[Box<str>],
) -> fmt::Result {
    if let [value] = values {
        return write!(f, "{key}{single}{value}");
    }
    write!(f, "{key}{several}(")?;
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            f.write_str(",")?;
        }
        f.write_str(value)?;
    }
    f.write_str(")")
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({self})")
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

/// Writes the canonical string form.
impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the string form or the structured form.
impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = Selector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a selector (a string such as `app=web,!canary`, or a map of `matchLabels` and `matchExpressions`)",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Selector, E> {
                Selector::parse(text).map_err(|error| E::custom(chain(&error)))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Selector, A::Error> {
                let structured = LabelSelector::deserialize(MapAccessDeserializer::new(map))?;
                Selector::try_from(structured).map_err(|error| de::Error::custom(chain(&error)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests;
