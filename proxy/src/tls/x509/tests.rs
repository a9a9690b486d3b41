use super::*;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

fn certificate(names: &[&str], year: i32) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(1990, 1, 1);
    params.not_after = date_time_ymd(year, 2, 28);
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

#[test]
fn names_and_time_are_read() {
    let der = certificate(&["Web.Example", "*.shop.example", "192.0.2.1"], 2031);
    let read = facts(&der).unwrap();
    assert_eq!(read.names, ["web.example", "*.shop.example"]);
    assert_eq!(read.not_after, 1_930_003_200);
}

#[test]
fn times_past_2049_are_of_the_other_type() {
    let read = facts(&certificate(&[], 2051)).unwrap();
    assert_eq!((read.names.len(), read.not_after), (0, 2_561_155_200));
}

#[test]
fn times_are_those_of_date() {
    for (tag, text, expected) in [
        (UTC_TIME, "700101000000Z", Some(0)),
        (UTC_TIME, "000229235959Z", Some(951_868_799)),
        (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
        (UTC_TIME, "500101000000Z", Some(-631_152_000)),
        (GENERALIZED_TIME, "20240301000000Z", Some(1_709_251_200)),
        (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
        (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
        (UTC_TIME, "7001010000Z", None),
        (UTC_TIME, "701301000000Z", None),
        (UTC_TIME, "700101000000+0100", None),
        (GENERALIZED_TIME, "70010100000Z", None),
        (OID, "700101000000Z", None),
    ] {
        assert_eq!(seconds(tag, text.as_bytes()), expected, "{text}");
    }
}

#[test]
fn half_a_certificate_is_none() {
    let der = certificate(&["web"], 2031);
    for end in 0..der.len() {
        assert_eq!(facts(&der[..end]), None, "{end} of {}", der.len());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = facts(&bytes);
    }

    #[test]
    fn arbitrary_edits_of_a_certificate_never_panic(at in 0usize..400, byte in any::<u8>()) {
        let mut der = certificate(&["web"], 2031);
        if let Some(place) = der.get_mut(at) {
            *place = byte;
        }
        let _ = facts(&der);
    }
}
