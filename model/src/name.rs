//! Names of namespaces, services and nodes: DNS labels (RFC 1123, section 2.1), because every one of
//! them becomes a label of a DNS name.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest DNS label in bytes (RFC 1035, section 2.3.4).
pub const MAX_NAME_BYTES: usize = 63;

/// How much of a value that came from outside an error message repeats, in characters.
const CLIP_CHARS: usize = 80;

/// Prints the start of a value that came from outside, as [`clipped`] does.
pub(crate) struct Clip<'a>(pub(crate) &'a str);

impl fmt::Display for Clip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clipped(self.0, CLIP_CHARS))
    }
}

/// At most `limit` characters of a text, control characters escaped, so that a hostile text can neither
/// fill a log nor break its lines.
pub fn clipped(text: &str, limit: usize) -> String {
    let mut clipped = String::new();
    let mut rest = text.chars();
    for character in rest.by_ref().take(limit) {
        if character.is_control() {
            clipped.extend(character.escape_default());
        } else {
            clipped.push(character);
        }
    }
    if rest.next().is_some() {
        clipped.push('…');
    }
    clipped
}

/// The rule of a DNS or label syntax that a value breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is nothing where at least one character is required.
    #[error("it is empty")]
    Empty,
    /// More bytes than the syntax allows.
    #[error("it has {length} bytes, at most {limit} are allowed")]
    TooLong {
        /// Bytes found.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A character outside the syntax' alphabet; the first one.
    #[error("{character:?} at character {position} is not allowed (only {alphabet})")]
    Character {
        /// The first offending character.
        character: char,
        /// Its place, counted in characters from 1.
        position: usize,
        /// The alphabet in words.
        alphabet: &'static str,
    },
    /// The first or the last character is a separator.
    #[error("it {edge} with {character:?} instead of a letter or digit")]
    Edge {
        /// `starts` or `ends`.
        edge: &'static str,
        /// The separator found there.
        character: char,
    },
}

/// An alphabet of ASCII letters and digits plus separators that may stand only inside.
#[derive(Clone, Copy)]
pub(crate) struct Alphabet {
    pub(crate) upper: bool,
    pub(crate) separators: &'static str,
    pub(crate) words: &'static str,
}

/// The alphabet of a DNS label (RFC 1123).
pub(crate) const DNS_LABEL: Alphabet = Alphabet {
    upper: false,
    separators: "-",
    words: "lower-case letters, digits and '-'",
};

impl Alphabet {
    fn is_alphanumeric(self, c: char) -> bool {
        c.is_ascii_lowercase() || c.is_ascii_digit() || (self.upper && c.is_ascii_uppercase())
    }

    /// Checks that `text` has 1 to `limit` bytes, all out of the alphabet, alphanumeric at both ends.
    pub(crate) fn check(self, text: &str, limit: usize) -> Result<(), Fault> {
        if text.len() > limit {
            return Err(Fault::TooLong {
                length: text.len(),
                limit,
            });
        }
        let stranger = text
            .chars()
            .enumerate()
            .find(|(_, c)| !self.is_alphanumeric(*c) && !self.separators.contains(*c));
        if let Some((index, character)) = stranger {
            return Err(Fault::Character {
                character,
                position: index + 1,
                alphabet: self.words,
            });
        }
        let first = text.chars().next().ok_or(Fault::Empty)?;
        if !self.is_alphanumeric(first) {
            return Err(Fault::Edge {
                edge: "starts",
                character: first,
            });
        }
        match text.chars().next_back() {
            Some(last) if !self.is_alphanumeric(last) => Err(Fault::Edge {
                edge: "ends",
                character: last,
            }),
            _ => Ok(()),
        }
    }
}

/// Why a string is not a [`Name`] or a [`ServiceKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The string is not a DNS label.
    #[error("`{}` is not a valid name: {fault}", Clip(.value))]
    Invalid {
        /// The string as given.
        value: String,
        /// The rule it breaks.
        fault: Fault,
    },
    /// The string does not consist of a namespace, one slash and a name.
    #[error("`{}` is not of the form namespace/name", Clip(.value))]
    NotAKey {
        /// The string as given.
        value: String,
    },
}

/// A valid DNS label: 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends.
///
/// A clone costs one atomic increment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks a string and keeps it.
    ///
    /// # Errors
    /// [`NameError::Invalid`] with the first rule that the string breaks.
    pub fn new(value: &str) -> Result<Self, NameError> {
        match DNS_LABEL.check(value, MAX_NAME_BYTES) {
            Ok(()) => Ok(Self(Arc::from(value))),
            Err(fault) => Err(NameError::Invalid {
                value: value.to_owned(),
                fault,
            }),
        }
    }

    /// Makes a name of what another system calls a thing (a container, a Compose project): letters
    /// become lower-case, every other character outside the alphabet becomes `-`, the ends are
    /// trimmed and the rest is cut at 63 bytes. `None` when nothing is left.
    ///
    /// Two different strings can become the same name: whoever needs a key keeps the original.
    pub fn lossy(value: &str) -> Option<Self> {
        // Trimming before the cut keeps leading separators from using up the 63 bytes; trimming
        // after it mends a cut that fell behind a separator.
        let mapped: String = value
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if DNS_LABEL.is_alphanumeric(c) { c } else { '-' })
            .skip_while(|c| *c == '-')
            .take(MAX_NAME_BYTES)
            .collect();
        let trimmed = mapped.trim_end_matches('-');
        (!trimmed.is_empty()).then(|| Self(Arc::from(trimmed)))
    }

    /// The name as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        Self::new(value)
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(value: &str) -> Result<Self, NameError> {
        Self::new(value)
    }
}

/// A service's key in the whole catalog: its namespace and its name, written `namespace/name`.
///
/// Sorts by namespace first, so that the services of a namespace are neighbours in an ordered map.
/// A clone costs two atomic increments.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace that scopes the name and the selector.
    pub namespace: Name,
    /// The name within the namespace.
    pub name: Name,
}

impl ServiceKey {
    /// Joins a namespace and a name.
    pub fn new(namespace: Name, name: Name) -> Self {
        Self { namespace, name }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() || f.precision().is_some() {
            return f.pad(&format!("{}/{}", self.namespace, self.name));
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}/{}\"", self.namespace, self.name)
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        match value.split_once('/') {
            Some((namespace, name)) if !name.contains('/') => Ok(Self {
                namespace: Name::new(namespace)?,
                name: Name::new(name)?,
            }),
            _ => Err(NameError::NotAKey {
                value: value.to_owned(),
            }),
        }
    }
}

/// Reads any string type through its `FromStr`, with the expectation that serde prints when the value
/// is not a string at all.
pub(crate) struct ParseVisitor<T> {
    expecting: &'static str,
    marker: std::marker::PhantomData<T>,
}

impl<T> ParseVisitor<T> {
    pub(crate) fn new(expecting: &'static str) -> Self {
        Self {
            expecting,
            marker: std::marker::PhantomData,
        }
    }
}

impl<T> de::Visitor<'_> for ParseVisitor<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        value.parse().map_err(E::custom)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ParseVisitor::new("a name (a string)"))
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ParseVisitor::new("a service key (`namespace/name`)"))
    }
}

#[cfg(test)]
mod tests;
