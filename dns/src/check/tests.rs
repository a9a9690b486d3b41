use hickory_proto::op::{MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use super::*;

/// Each file of a target's seeds.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target);
    let files = std::fs::read_dir(&folder).expect("the seeds are part of the repository");
    let seeds: Vec<_> = files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
    seeds
}

#[test]
fn the_seeds_pass() {
    for (target, check) in [
        ("dns_query", query as fn(&[u8])),
        ("dns_upstream", upstream),
        ("dns_text", text),
    ] {
        for seed in seeds(target) {
            check(&seed);
        }
    }
}

/// Packets that begin well and go wrong somewhere, which get further than bytes out of nowhere.
fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "web.shop.svc.heddle.internal.",
        "_http._tcp.web.shop.svc.heddle.internal.",
        "mail.shop.svc.heddle.internal.",
        "7.0.96.10.in-addr.arpa.",
        "example.com.",
        ".",
    ];
    let name = prop::sample::select(names.to_vec());
    let options =
        prop::collection::vec((0u16..12, prop::collection::vec(any::<u8>(), 0..42)), 0..3);
    let edns = prop::option::of((any::<u16>(), options));
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let kinds = prop_oneof![0u16..40, 250u16..256, any::<u16>()];
    (name, kinds, edns, changes, 0..40usize).prop_map(|(name, kind, edns, changes, cut)| {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Query::query(name, RecordType::from(kind)));
        if let Some((size, options)) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            for (code, data) in options {
                edns.options_mut().insert(EdnsOption::Unknown(code, data));
            }
            message.set_edns(edns);
        }
        let mut bytes = message.to_vec().unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 4));
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_packet_is_answered_well_or_not_at_all(
        packet in prop_oneof![nearly_good(), prop::collection::vec(any::<u8>(), 0..600)],
    ) {
        query(&packet);
    }

    #[test]
    fn any_response_is_passed_on_well_or_not_at_all(
        how in 0u8..3,
        flags in any::<[u8; 2]>(),
        counts in prop::array::uniform3(0u8..4),
        mut records in prop::collection::vec(any::<u8>(), 0..900),
    ) {
        // Zeros are what makes random bytes into names and lengths that fit.
        for byte in records.iter_mut().filter(|b| **b > 48) {
            *byte = 0;
        }
        upstream(&[&[how][..], &flags, &counts, &records].concat());
    }

    #[test]
    fn any_text_is_read_or_refused(
        text in "(nameserver |system|[a-z0-9.:%\\[\\]/-]{0,40}|\n|\\PC){0,12}",
    ) {
        super::text(text.as_bytes());
    }
}
