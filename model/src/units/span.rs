//! Durations with units.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{scaled, split_number};
use crate::name::Clip;

/// The longest span that can be written: ten years. It keeps `Instant` plus a span from overflowing.
pub const MAX_SPAN: Duration = Duration::from_secs(87_600 * 3_600);

/// Units from the largest to the smallest, in nanoseconds. The last two are other spellings of `us`.
const UNITS: [(&str, u128); 8] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
];

/// A duration that is read and written with its unit: "10s", "250ms", "1h30m", "0s".
///
/// The units are h, m, s, ms, us and ns; larger ones stand before smaller ones, each at most once;
/// a number may have decimals ("1.5s").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

/// Why a string is not a [`Span`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// A number stands alone.
    #[error("duration `{shown}` has no unit: write \"{shown}s\" for seconds or \"{shown}ms\" for milliseconds", shown = Clip(.value))]
    NoUnit {
        /// The string as given.
        value: String,
    },
    /// A unit that does not exist.
    #[error("duration `{}` has an unknown unit `{}`: use h, m, s, ms, us or ns", Clip(.value), Clip(.unit))]
    UnknownUnit {
        /// The string as given.
        value: String,
        /// The unit.
        unit: String,
    },
    /// Units are repeated or stand in an unusual order.
    #[error("duration `{}` has its units out of order: write each at most once, the largest first, as in \"1h30m\"", Clip(.value))]
    Order {
        /// The string as given.
        value: String,
    },
    /// Not a number followed by a unit.
    #[error("`{}` is not a duration: write a number and a unit, as in \"10s\", \"250ms\" or \"1h30m\"", Clip(.value))]
    Malformed {
        /// The string as given.
        value: String,
    },
    /// More decimals than nanoseconds have room for.
    #[error("duration `{}` is finer than a nanosecond", Clip(.value))]
    TooFine {
        /// The string as given.
        value: String,
    },
    /// Beyond [`MAX_SPAN`].
    #[error("duration `{}` is too long: at most 87600h (ten years)", Clip(.value))]
    TooLong {
        /// The string as given.
        value: String,
    },
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let value = || text.to_owned();
        let mut rest = text;
        let mut total = 0u128;
        let mut smallest_so_far = u128::MAX;
        loop {
            let Some((number, after)) = split_number(rest) else {
                return Err(SpanError::Malformed { value: value() });
            };
            let end = after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len());
            let (unit, next) = after.split_at(end);
            if unit.is_empty() && number.len() == text.len() {
                return Err(SpanError::NoUnit { value: value() });
            }
            if unit.is_empty() {
                return Err(SpanError::Malformed { value: value() });
            }
            let Some((_, nanoseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(SpanError::UnknownUnit {
                    value: value(),
                    unit: unit.to_owned(),
                });
            };
            if *nanoseconds >= smallest_so_far {
                return Err(SpanError::Order { value: value() });
            }
            smallest_so_far = *nanoseconds;
            total = add(total, number, *nanoseconds).map_err(|too_long| match too_long {
                true => SpanError::TooLong { value: value() },
                false => SpanError::TooFine { value: value() },
            })?;
            if next.is_empty() {
                break;
            }
            rest = next;
        }
        let seconds = u64::try_from(total / 1_000_000_000).unwrap_or(u64::MAX);
        // A remainder of 10^9 has room in 32 bits.
        let duration = Duration::new(seconds, (total % 1_000_000_000) as u32);
        if duration > MAX_SPAN {
            return Err(SpanError::TooLong { value: value() });
        }
        Ok(Self(duration))
    }
}

/// Adds `number` units; the error says whether the sum is too long (or else the number too fine).
fn add(total: u128, number: &str, unit: u128) -> Result<u128, bool> {
    let whole = number
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_start_matches('0');
    // The longest span has 18 digits of nanoseconds.
    if whole.len() > 18 {
        return Err(true);
    }
    scaled(number, unit)
        .map(|amount| total + amount)
        .ok_or(false)
}

/// The canonical form: whole numbers from the largest unit to the smallest, without those that are zero.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_nanos();
        if rest == 0 {
            return f.pad("0s");
        }
        let mut text = String::new();
        for (name, unit) in &UNITS[..6] {
            if rest >= *unit {
                text.push_str(&(rest / unit).to_string());
                text.push_str(name);
                rest %= unit;
            }
        }
        f.pad(&text)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, such as \"10s\" or \"250ms\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Span, E> {
                Err(E::custom(SpanError::NoUnit {
                    value: number.to_string(),
                }))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Span, E> {
                Err(E::custom(SpanError::Malformed {
                    value: number.to_string(),
                }))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Span, E> {
                Err(E::custom(SpanError::NoUnit {
                    value: number.to_string(),
                }))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
