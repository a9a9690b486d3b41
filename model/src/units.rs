//! Quantities with units, as configuration and manifests write them: durations ("1m30s"), sizes
//! ("64KiB") and ranges of HTTP status codes ("200-299,301").
//!
//! A number without a unit is an error that tells how to write it: guessing between seconds and
//! milliseconds is how time-outs come to be wrong by a factor of a thousand.
//!
//! # Layout
//! - `span`: durations
//! - `size`: numbers of bytes
//! - `status`: HTTP status codes

mod size;
mod span;
mod status;

pub use size::{Size, SizeError};
pub use span::{MAX_SPAN, Span, SpanError};
pub use status::{StatusError, StatusRange, StatusRanges};

/// The sum of a decimal number times a unit, exactly.
///
/// `digits` holds decimal digits with at most one `.` among them. `None` when the result is not whole, or
/// does not fit.
fn scaled(digits: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let fraction = fraction.trim_end_matches('0');
    let places = u32::try_from(fraction.len()).ok()?;
    let numerator: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let denominator = 10u128.checked_pow(places)?;
    let product = numerator.checked_mul(unit)?;
    if product % denominator != 0 {
        return None;
    }
    whole.checked_mul(unit)?.checked_add(product / denominator)
}

/// Splits the number off the front of a quantity: digits with at most one point, not at an end.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let sound = !number.is_empty()
        && !number.starts_with('.')
        && !number.ends_with('.')
        && number.matches('.').count() <= 1;
    sound.then_some((number, rest))
}

#[cfg(test)]
mod tests;
