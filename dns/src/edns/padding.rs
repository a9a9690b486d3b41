//! Padding (RFC 7830): over TLS, a response whose length is a multiple of a block does not tell what was asked.

use crate::forward::skip_name;
use crate::wire::{HEADER, u16_at};

/// Responses are padded to a multiple of this (RFC 8467, 4.1).
const BLOCK: usize = 468;

const TYPE_OPT: u16 = 41;
const OPTION_PADDING: u16 = 12;

/// Bytes of code and length before an option's data.
const OPTION: usize = 4;

/// Where the OPT record's options stand in a message, from and to.
fn options(message: &[u8]) -> Option<(usize, usize)> {
    let count = |at| u16_at(message, at).map(u32::from);
    let mut at = HEADER;
    for _ in 0..count(4)? {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..count(6)? + count(8)? + count(10)? {
        let fixed = skip_name(message, at)?;
        let start = fixed + 10;
        let end = start + usize::from(u16_at(message, fixed + 8)?);
        if u16_at(message, fixed)? == TYPE_OPT {
            return (end <= message.len()).then_some((start, end));
        }
        at = end;
    }
    None
}

/// Whether a client pads its query, and so wants its response padded (RFC 7830, 4).
pub(crate) fn is_wanted(query: &[u8]) -> bool {
    let options = options(query).and_then(|(start, end)| query.get(start..end));
    let mut rest = options.unwrap_or_default();
    while let (Some(code), Some(length)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        if code == OPTION_PADDING {
            return true;
        }
        rest = rest.get(OPTION + usize::from(length)..).unwrap_or_default();
    }
    false
}

/// Pads a response of ours, where it has an OPT record, which is the last one then, and is not too long.
pub(crate) fn pad(response: &mut Vec<u8>) {
    let Some((start, end)) = options(response).filter(|(_, end)| *end == response.len()) else {
        return;
    };
    let padded = (end + OPTION).next_multiple_of(BLOCK);
    let room = u16::try_from(padded).is_ok();
    let (length, data) = (padded - start, padded - end - OPTION);
    // Both are below 64 KiB where the whole is.
    let (Ok(length), Ok(data), true) = (u16::try_from(length), u16::try_from(data), room) else {
        return;
    };
    response[start - 2..start].copy_from_slice(&length.to_be_bytes());
    response.extend(OPTION_PADDING.to_be_bytes());
    response.extend(data.to_be_bytes());
    response.resize(padded, 0);
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
    use hickory_proto::rr::rdata::opt::EdnsOption;
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn message(edns: Option<Edns>, name: &str) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Query::query(name, RecordType::A));
        if let Some(edns) = edns {
            message.set_edns(edns);
        }
        message
    }

    fn edns(options: &[(u16, usize)]) -> Edns {
        let mut edns = Edns::new();
        for (code, length) in options {
            let option = EdnsOption::Unknown(*code, vec![0; *length]);
            edns.options_mut().insert(option);
        }
        edns
    }

    #[test]
    fn a_response_is_padded_where_the_query_was_and_says_what_it_said() {
        for (options, wanted) in [
            (None, false),
            (Some(edns(&[])), false),
            (Some(edns(&[(3, 0), (10, 8)])), false),
            (Some(edns(&[(3, 0), (12, 40)])), true),
            (Some(edns(&[(12, 0)])), true),
        ] {
            let query = message(options, "web.shop.svc.heddle.internal.");
            assert_eq!(is_wanted(&query.to_vec().unwrap()), wanted, "{query:?}");
        }
        for length in [1, 7, 40] {
            let name = format!("{}.example.", "x".repeat(length));
            let before = message(Some(edns(&[(3, 400)])), &name);
            let mut bytes = before.to_vec().unwrap();
            pad(&mut bytes);
            assert_eq!(bytes.len() % BLOCK, 0);
            let after = Message::from_vec(&bytes).unwrap();
            assert_eq!(after.queries, before.queries);
            assert_eq!(after.edns.unwrap().options().as_ref().len(), 2);
        }
        let mut without = message(None, "example.com.").to_vec().unwrap();
        let before = without.clone();
        pad(&mut without);
        assert_eq!(without, before);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            is_wanted(&bytes);
            let mut padded = bytes.clone();
            pad(&mut padded);
            prop_assert!(padded.len() >= bytes.len());
        }
    }
}
