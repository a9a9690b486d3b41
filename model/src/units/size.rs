//! Numbers of bytes with units.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{scaled, split_number};
use crate::name::Clip;

/// Units from the largest to the smallest, in bytes.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes that is read and written with its unit: "64KiB", "1.5MiB", "512B", "10MB".
///
/// KiB, MiB, GiB and TiB count in powers of 1024 (IEC 80000-13); kB, MB, GB and TB in powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

/// Why a string is not a [`Size`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A number stands alone.
    #[error("size `{shown}` has no unit: write \"{shown}B\" for bytes or \"{shown}KiB\" for units of 1024", shown = Clip(.value))]
    NoUnit {
        /// The string as given.
        value: String,
    },
    /// A unit that does not exist, or one that could mean two things.
    #[error("size `{}` has an unknown unit `{}`: use B, KiB, MiB, GiB, TiB or kB, MB, GB, TB", Clip(.value), Clip(.unit))]
    UnknownUnit {
        /// The string as given.
        value: String,
        /// The unit.
        unit: String,
    },
    /// Not a number followed by a unit.
    #[error("`{}` is not a size: write a number and a unit, as in \"64KiB\" or \"512B\"", Clip(.value))]
    Malformed {
        /// The string as given.
        value: String,
    },
    /// Not a whole number of bytes, or more than 64 bits hold.
    #[error("size `{}` is not a whole number of bytes of at most 64 bits", Clip(.value))]
    OutOfRange {
        /// The string as given.
        value: String,
    },
}

impl Size {
    /// The number of bytes as an index type; the largest index where it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let value = || text.to_owned();
        let Some((number, unit)) = split_number(text) else {
            return Err(SizeError::Malformed { value: value() });
        };
        if unit.is_empty() {
            return Err(SizeError::NoUnit { value: value() });
        }
        let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(SizeError::UnknownUnit {
                value: value(),
                unit: unit.to_owned(),
            });
        };
        scaled(number, u128::from(*bytes))
            .and_then(|total| u64::try_from(total).ok())
            .map(Self)
            .ok_or_else(|| SizeError::OutOfRange { value: value() })
    }
}

/// The canonical form: a whole number of the largest unit that gives one.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS
            .iter()
            .find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        match exact {
            Some((name, bytes)) => f.pad(&format!("{}{name}", self.0 / bytes)),
            None => f.pad("0B"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size with its unit, such as \"64KiB\" or \"512B\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Size, E> {
                Err(E::custom(SizeError::NoUnit {
                    value: number.to_string(),
                }))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Size, E> {
                Err(E::custom(SizeError::Malformed {
                    value: number.to_string(),
                }))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Size, E> {
                Err(E::custom(SizeError::NoUnit {
                    value: number.to_string(),
                }))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
