//! What must hold for any bytes whatever: the bodies of the fuzz targets, which the tests run too.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message};
use hickory_proto::rr::Record;
use model::domain::DomainName;

use crate::core::{Core, Outcome};
use crate::edns::Opt;
use crate::error::Transport;
use crate::follow::Follower;
use crate::forward::{self, Upstream};
use crate::handler::{Client, Handler, Verdict};
use crate::metrics::Metrics;
use crate::serial::Serials;
use crate::testing::{forwarder, large_world, settings};
use crate::wire::HEADER;
use crate::{resolv_conf, response, wire};

/// The fast path, and the one that knows every case.
pub(crate) struct Both {
    pub core: Core,
    pub slow: Handler,
}

impl Both {
    pub(crate) fn new(world: &crate::testing::World, single_answer: bool) -> Both {
        let serials = Arc::<Serials>::default();
        let handler = || {
            let mut settings = settings();
            settings.serials = serials.clone();
            settings.single_answer = single_answer;
            let forwarder = forwarder(&["192.0.2.1:53".parse().expect("an address")]);
            Handler::new(world.shared(), settings, forwarder, Metrics::new())
        };
        let fast = Arc::new(handler());
        let (follower, _) = Follower::new(
            fast.snapshots().clone(),
            fast.settings().name_servers.clone(),
            serials.clone(),
            7,
        );
        Both {
            core: Core::new(fast, follower),
            slow: handler(),
        }
    }
}

pub(crate) fn client(transport: Transport) -> Client {
    Client {
        address: ([127, 0, 0, 1], 5000).into(),
        asked: [127, 0, 0, 1].into(),
        transport,
    }
}

/// Bytes as a client may send them: what is answered can be read and belongs to the query, answers are not answered, and
/// the fast path says what the other one says.
pub(crate) fn query(packet: &[u8]) {
    thread_local! {
        static BOTH: RefCell<Both> = RefCell::new(Both::new(&large_world(), false));
    }
    BOTH.with_borrow_mut(|both| {
        for transport in [Transport::Udp, Transport::Tcp] {
            asked(both, packet, transport);
        }
    });
}

fn asked(both: &mut Both, packet: &[u8], transport: Transport) {
    let most = match transport {
        Transport::Udp => response::MAX_DATAGRAM,
        Transport::Tcp | Transport::Tls => u16::MAX,
    };
    let mut out = vec![0; most.into()];
    let (bytes, fast) = match both.core.answer(packet, client(transport), &mut out) {
        Outcome::Written(length) => (out[..length].to_vec(), true),
        Outcome::Reply(bytes) => (bytes, false),
        Outcome::Silence => {
            assert!(packet.len() < HEADER || packet[2] & 0x80 != 0);
            return;
        }
        Outcome::Forward(_) | Outcome::Transfer(_) => return,
    };
    assert_eq!(packet[2] & 0x80, 0, "an answer to an answer");
    assert_eq!(bytes[..2], packet[..2], "the id");
    assert_eq!(bytes[2] & 0xf8, 0x80 | packet[2] & 0x78, "the opcode");
    assert!(bytes.len() <= most.into());
    let said = Message::from_vec(&bytes).expect("what we send can be read");
    if fast {
        let Verdict::Reply(slow) = both.slow.decide(packet, client(transport)) else {
            panic!("the fast path answered what the other does not");
        };
        let size = said.edns.as_ref().and_then(|_| {
            let asked = Message::from_vec(packet).ok()?;
            Some(asked.edns?.max_payload())
        });
        let limit = response::limit(transport, size).into();
        same(&bytes, &slow, limit, false);
    }
}

fn sorted(records: &[Record]) -> Vec<String> {
    let mut all: Vec<String> = records.iter().map(Record::to_string).collect();
    all.sort();
    all
}

/// Compares what both say, but for the order and for where a response was cut.
pub(crate) fn same(fast: &[u8], slow: &[u8], limit: usize, single: bool) {
    assert!(fast.len() <= limit && slow.len() <= limit);
    assert_eq!(slow[4..6], [0, 1]);
    let read = |bytes| Message::from_vec(bytes).expect("what we send can be read");
    let (fast, slow) = (read(fast), read(slow));
    assert_eq!(fast.metadata, slow.metadata);
    assert_eq!(&fast.queries, &slow.queries);
    assert_eq!(
        fast.queries[0].name.to_string(),
        slow.queries[0].name.to_string(),
        "case"
    );
    assert_eq!(fast.edns.is_some(), slow.edns.is_some());
    if let (Some(fast), Some(slow)) = (&fast.edns, &slow.edns) {
        assert_eq!(fast.max_payload(), slow.max_payload());
        assert_eq!(fast.flags().dnssec_ok, slow.flags().dnssec_ok);
        let codes = |edns: &Edns| -> Vec<u16> {
            let options = edns.options().as_ref().iter();
            options.map(|(code, _)| (*code).into()).collect()
        };
        assert_eq!(codes(fast), codes(slow));
    }
    if fast.metadata.truncation {
        return;
    }
    assert_eq!(sorted(&fast.authorities), sorted(&slow.authorities));
    assert_eq!(fast.answers.len(), slow.answers.len());
    if !single {
        assert_eq!(sorted(&fast.answers), sorted(&slow.answers));
    }
    assert_eq!(sorted(&fast.additionals), sorted(&slow.additionals));
}

/// Bytes as an upstream may answer: what is taken belongs to the query, and what clients get of it is whole, keeps to
/// their limit and has their question. The first byte says how the others are taken: with bit 0 the client knows EDNS;
/// with bit 1 they are all that stands behind the id, and else two bytes of flags, three of counts and the records.
pub(crate) fn upstream(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else {
        return;
    };
    let name = b"\x03www\x07example\x03com\x00";
    let key = forward::Key {
        name,
        kind: 1,
        flags: forward::Flags::default(),
    };
    let asked = forward::Asked::new(&key, true, forward::Case::Lower);
    let question = asked.question().to_vec();
    let mut bytes = asked.id.to_be_bytes().to_vec();
    if how & 2 != 0 {
        bytes.extend(rest);
    } else if let Some((head, records)) = rest.split_first_chunk::<5>() {
        bytes.extend([head[0] & 0x87 | 0x80, head[1], 0, 1]);
        bytes.extend(head[2..].iter().flat_map(|count| [0, *count]));
        bytes.extend(&question);
        bytes.extend(records);
    }
    if forward::is_bare_error(&bytes, &asked) {
        assert_eq!(bytes.len(), HEADER);
    }
    let Some(response) = forward::Response::read(bytes, &asked) else {
        return;
    };
    let code = response.code();
    let Some(stored) = response.into_stored(question.len()) else {
        return;
    };
    assert_eq!(stored.code(), code);
    let client_question = [b"\x03WWW\x07eXample\x03com\x00", &question[name.len()..]].concat();
    for (limit, age) in [(512, Some(0)), (1232, None), (65_535, Some(70))] {
        let asker = forward::Asker {
            id: [7, 9],
            question: &client_question,
            recursion_desired: true,
            checking_disabled: false,
            limit,
            opt: (how & 1 != 0).then(Opt::default),
        };
        let ours = stored.to_vec(&asker, age).expect("the same question");
        assert!(ours.len() <= limit);
        assert_eq!(ours[..2], [7, 9]);
        assert_eq!(ours[2] & 0x81, 0x81, "a response, recursion desired");
        assert_eq!(ours[HEADER..HEADER + question.len()], client_question);
        whole(&ours, HEADER + question.len());
    }
}

/// The records that the header counts are there, and nothing behind them.
fn whole(message: &[u8], mut at: usize) {
    let counts = [6, 8, 10].map(|at| wire::u16_at(message, at).expect("a header"));
    let mut opts = 0;
    for _ in 0..counts.into_iter().map(u32::from).sum() {
        let fixed = forward::skip_name(message, at).expect("a name");
        let kind = wire::u16_at(message, fixed).expect("a type");
        opts += u32::from(kind == 41);
        at = fixed + 10 + usize::from(wire::u16_at(message, fixed + 8).expect("a length"));
    }
    assert_eq!(at, message.len());
    assert!(opts <= 1, "one OPT record");
}

/// Bytes as they may stand in `resolv.conf` and in the configuration's names and upstreams.
pub(crate) fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (servers, unreadable) = resolv_conf::name_servers(&text);
    assert!(servers.len() + unreadable.len() <= text.lines().count());
    for line in text.lines() {
        if let Ok(upstream) = line.parse::<Upstream>() {
            assert_eq!(upstream.to_string().parse(), Ok(upstream));
        }
        if let Ok(name) = line.parse::<DomainName>() {
            let wire = wire::domain(&name);
            assert!(wire.len() <= crate::fast::MAX_NAME);
            let labels: Vec<&str> = wire::labels(&wire)
                .map(|label| std::str::from_utf8(label).expect("as it was written"))
                .collect();
            assert_eq!(labels.join("."), name.as_str());
            assert_eq!(wire::below(&wire, &wire), Some(0));
            assert_eq!(forward::skip_name(&wire, 0), Some(wire.len()));
        }
    }
}
