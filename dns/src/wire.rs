//! Numbers and names as they stand in messages (RFC 1035, 4.1).

use model::domain::DomainName;

/// Bytes of a message's header.
pub(crate) const HEADER: usize = 12;

/// A pointer to the question's name, which always stands behind the header.
pub(crate) const TO_QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// The number of two bytes at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Writes labels, the root not included.
pub(crate) fn push_labels<'l>(wire: &mut Vec<u8>, labels: impl IntoIterator<Item = &'l [u8]>) {
    for label in labels {
        // Labels come from names that were checked when they were made.
        wire.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        wire.extend_from_slice(label);
    }
}

/// A name that was checked when it was made.
pub(crate) fn domain(name: &DomainName) -> Vec<u8> {
    let mut wire = Vec::with_capacity(name.as_str().len() + 2);
    push_labels(&mut wire, name.as_str().split('.').map(str::as_bytes));
    wire.push(0);
    wire
}

/// The labels of a name, the leftmost first, without the root. Ends early where the bytes are no name.
pub(crate) fn labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = wire.split_first()?;
        if *length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        wire = rest;
        Some(label)
    })
}

/// Where in `name` its ancestor `suffix`, the root included, begins: both are folded.
pub(crate) fn below(name: &[u8], suffix: &[u8]) -> Option<usize> {
    let start = name.len().checked_sub(suffix.len())?;
    if name[start..] != *suffix {
        return None;
    }
    // The same bytes may begin inside a label.
    let mut at = 0;
    while at < start {
        at += 1 + usize::from(name[at]);
    }
    (at == start).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_begins_at_a_label() {
        let name = b"\x03web\x04shop\x00";
        assert_eq!(below(name, b"\x04shop\x00"), Some(4));
        assert_eq!(below(name, name), Some(0));
        assert_eq!(below(name, b"\x00"), Some(9));
        assert_eq!(below(name, b"\x03hop\x00"), None);
        // The label's last bytes look like the suffix.
        assert_eq!(below(b"\x06a\x04shop\x00", b"\x04shop\x00"), None);
        assert_eq!(labels(name).collect::<Vec<_>>(), [&b"web"[..], b"shop"]);
    }
}
