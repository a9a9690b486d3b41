//! What can be known without a kernel: how messages are laid out, and that no answer, however
//! broken, does harm. What the kernel makes of them is in `proxy/tests/redirect.rs`.

use std::net::IpAddr;

use proptest::prelude::*;

use super::netlink::{Answer, HEADER_LEN, Message, answers, attributes, verdict};
use super::range::Range;
use super::{RedirectError, check_table, look};

fn datagram(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_LEN + payload.len()).expect("small");
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + payload.len()).expect("small");
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[test]
fn a_message_is_padded_and_its_nests_carry_their_lengths() {
    let mut message = Message::new("test", 0x0a03, 0x400, &[1, 0, 0, 0]);
    message.attr_str(3, "ab").nest(4, |m| {
        m.attr_be32(1, 7);
    });
    let debug = format!("{message:?}");
    let expected: Vec<u8> = [
        [0, 0, 0, 0, 0x03, 0x0a, 0x01, 0x04].as_slice(),
        &[0; 8],
        &[1, 0, 0, 0],
        &[7, 0, 3, 0, b'a', b'b', 0, 0],
        &[12, 0, 4, 0x80],
        &[8, 0, 1, 0, 0, 0, 0, 7],
    ]
    .concat();
    assert!(debug.contains(&format!("{expected:?}")), "{debug}");
}

#[test]
fn several_answers_in_one_datagram_are_told_apart() {
    let bytes = [datagram(2, 0, 7, &[1, 2, 3]), datagram(3, 0, 8, &[])].concat();
    let seen: Vec<_> = answers(&bytes)
        .map(|a| (a.kind, a.sequence, a.payload.len()))
        .collect();
    assert_eq!(seen, [(2, 7, 3), (3, 8, 0)]);
}

#[test]
fn a_refusal_carries_errno_and_the_kernels_words() {
    const CAPPED_WITH_TLVS: u16 = 0x300;
    let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
    payload.extend([0; HEADER_LEN]);
    payload.extend(attribute(1, b"Invalid prefix\0"));
    let bytes = datagram(2, CAPPED_WITH_TLVS, 1, &payload);
    let answer = answers(&bytes).next().expect("one answer");
    let (error, detail) = verdict(&answer).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert_eq!(detail.as_deref(), Some("Invalid prefix"));
}

#[test]
fn the_words_are_found_behind_a_request_that_is_quoted_in_full() {
    const WITH_TLVS: u16 = 0x200;
    let quoted = datagram(9, 0, 1, &[9; 21]);
    let mut payload = (-libc::ERANGE).to_ne_bytes().to_vec();
    payload.extend(quoted);
    payload.extend(attribute(1, b"too far\0"));
    let bytes = datagram(2, WITH_TLVS, 1, &payload);
    let answer = answers(&bytes).next().expect("one answer");
    assert_eq!(
        verdict(&answer).expect_err("refused").1.as_deref(),
        Some("too far")
    );
}

#[test]
fn errors_name_the_step_and_the_mend() {
    let refused = |errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        RedirectError::refused("add the table heddle".into(), source, None).to_string()
    };
    assert_eq!(
        refused(libc::EPERM),
        "cannot add the table heddle: needs CAP_NET_ADMIN (run as root or grant the capability)"
    );
    assert!(refused(libc::EOPNOTSUPP).contains("Linux 5.10 or later"));
    assert_eq!(refused(libc::EBUSY), "cannot add the table heddle");
}

#[test]
fn a_range_loses_its_host_bits_and_must_leave_something_outside() {
    let range = |text: &str, prefix| Range::new(text.parse().expect("an address"), prefix);
    let shown = |text, prefix| range(text, prefix).expect("usable").to_string();
    assert_eq!(shown("10.96.7.9", 16), "10.96.0.0/16");
    assert_eq!(shown("10.96.7.9", 32), "10.96.7.9/32");
    assert_eq!(shown("fd00:96::1:1", 108), "fd00:96::/108");
    for (text, prefix) in [
        ("10.96.0.0", 0),
        ("10.96.0.0", 33),
        ("fd00::", 129),
        ("::", 0),
    ] {
        assert!(matches!(
            range(text, prefix),
            Err(RedirectError::Range { .. })
        ));
    }
}

#[test]
fn only_names_that_every_tool_takes_name_a_table() {
    for name in ["heddle", "heddle-2", "h_1"] {
        assert!(check_table(name).is_ok(), "{name}");
    }
    for name in ["", "1h", "a b", "a;b", "é", &"h".repeat(65)] {
        assert!(check_table(name).is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn no_answer_makes_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for answer in answers(&bytes) {
            let _ = verdict(&answer);
        }
        let _ = attributes(&bytes).count();
        let _ = look::ranges_of(&bytes);
        let _ = look::rule_of(&bytes);
        let _ = look::keys_of(&bytes);
        let flags = bytes.first().map_or(0, |b| u16::from(*b) << 8);
        let _ = verdict(&Answer { kind: 2, flags, sequence: 0, payload: &bytes });
    }

    #[test]
    fn a_range_has_an_address_within_its_mask(bits in any::<u128>(), prefix in 1u8..=128) {
        let range = Range::new(IpAddr::from(bits.to_be_bytes()), prefix).expect("usable");
        let masked: Vec<u8> = range.octets().iter().zip(range.mask()).map(|(a, m)| a & m).collect();
        prop_assert_eq!(masked, range.octets());
        let ones: u32 = range.mask().iter().map(|byte| byte.count_ones()).sum();
        prop_assert_eq!(ones, u32::from(prefix));
    }
}
