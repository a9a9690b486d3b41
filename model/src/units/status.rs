//! Ranges of HTTP status codes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::name::Clip;

/// The status codes that RFC 9110, section 15, calls valid.
const VALID: std::ops::RangeInclusive<u16> = 100..=599;

/// Consecutive HTTP status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// HTTP status codes as a list of ranges: "200-299,301".
///
/// The ranges are kept sorted and joined, so that two lists of the same codes are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StatusRanges(Vec<StatusRange>);

/// Why a string is not a list of status codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// A part of the list is neither a code nor two codes with a hyphen between.
    #[error("`{}` is not a status code or a range of them, as in \"200-299,301\"", Clip(.part))]
    Malformed {
        /// The part as given.
        part: String,
    },
    /// A code outside 100 to 599.
    #[error("status {code} is not between 100 and 599")]
    NotAStatus {
        /// The code.
        code: u16,
    },
    /// The first code of a range is larger than the last.
    #[error("the range {first}-{last} ends before it starts: write {last}-{first}")]
    Reversed {
        /// The code before the hyphen.
        first: u16,
        /// The code after it.
        last: u16,
    },
}

impl StatusRange {
    /// The codes from `first` to `last`, both included.
    ///
    /// # Errors
    /// A code outside 100 to 599, or a range that ends before it starts.
    pub fn new(first: u16, last: u16) -> Result<Self, StatusError> {
        if let Some(code) = [first, last].into_iter().find(|code| !VALID.contains(code)) {
            return Err(StatusError::NotAStatus { code });
        }
        if first > last {
            return Err(StatusError::Reversed { first, last });
        }
        Ok(Self { first, last })
    }

    /// The lowest code.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest code, included.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the code is in the range.
    pub fn contains(self, code: u16) -> bool {
        (self.first..=self.last).contains(&code)
    }
}

impl StatusRanges {
    /// 200 to 299: what a health check takes for success unless told otherwise.
    pub fn success() -> Self {
        Self(vec![StatusRange {
            first: 200,
            last: 299,
        }])
    }

    /// Whether the code is in one of the ranges.
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|range| range.contains(code))
    }

    /// The ranges, sorted, with a gap between each two.
    pub fn ranges(&self) -> &[StatusRange] {
        &self.0
    }

    fn joined(mut ranges: Vec<StatusRange>) -> Self {
        ranges.sort();
        let mut joined: Vec<StatusRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if range.first <= before.last + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Self(joined)
    }
}

impl FromStr for StatusRange {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        let code = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let malformed = || StatusError::Malformed {
                part: text.to_owned(),
            };
            if plain {
                digits.parse().map_err(|_| malformed())
            } else {
                Err(malformed())
            }
        };
        match text.split_once('-') {
            Some((first, last)) => Self::new(code(first.trim())?, code(last.trim())?),
            None => code(text).and_then(|only| Self::new(only, only)),
        }
    }
}

impl FromStr for StatusRanges {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        let ranges = text.split(',').map(|part| part.trim().parse());
        Ok(Self::joined(ranges.collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

impl Serialize for StatusRanges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the list, or a single code written as a number (`expect: 200`).
impl<'de> Deserialize<'de> for StatusRanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = StatusRanges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("HTTP status codes, such as \"200-299,301\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRanges, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<StatusRanges, E> {
                number.to_string().parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
