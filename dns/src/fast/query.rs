//! An ordinary query, read in place: one question of class IN and at most an OPT record behind it.

use crate::forward::Flags;
use crate::wire::{self, HEADER};

/// The longest name on the wire (RFC 1035, 2.3.4).
pub(crate) const MAX_NAME: usize = 255;

/// The longest label.
const MAX_LABEL: u8 = 63;

const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;

const OPTION_NSID: u16 = 3;
const OPTION_SUBNET: u16 = 8;
const OPTION_COOKIE: u16 = 10;

/// What an ordinary query says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'p> {
    /// All of the packet.
    pub packet: &'p [u8],
    /// Where the question ends.
    pub question_end: usize,
    /// The type asked for.
    pub kind: u16,
    /// What the OPT record says, where there is one.
    pub edns: Option<QueryEdns<'p>>,
}

/// What matters of an OPT record of version 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryEdns<'p> {
    /// The largest datagram that the client takes, in bytes.
    pub size: u16,
    /// Copied into the response.
    pub dnssec_ok: bool,
    /// The client asks who answers (RFC 5001).
    pub nsid: bool,
    /// The COOKIE option's data.
    pub cookie: Option<&'p [u8]>,
}

impl<'p> Query<'p> {
    /// Reads a packet and writes the name asked for, in lower case, into `name`; also returns that name's length.
    ///
    /// `None` for whatever is not an ordinary query: not because it is wrong, but because it is not for here to judge.
    pub(crate) fn read(packet: &'p [u8], name: &mut [u8; MAX_NAME]) -> Option<(Self, usize)> {
        let header: &[u8; HEADER] = packet.first_chunk()?;
        // QR and the opcode are 0; one question, no answers, no authorities, at most one additional.
        let ordinary = header[2] & 0xf8 == 0
            && header[4..10] == [0, 1, 0, 0, 0, 0]
            && header[10] == 0
            && header[11] <= 1;
        if !ordinary {
            return None;
        }
        let mut at = HEADER;
        loop {
            match *packet.get(at)? {
                0 => break at += 1,
                length if length <= MAX_LABEL => at += 1 + usize::from(length),
                _ => return None,
            }
        }
        let wire = packet.get(HEADER..at)?;
        // Lengths are below every letter, so that the name can be folded without looking for its labels.
        for (folded, byte) in name.get_mut(..wire.len())?.iter_mut().zip(wire) {
            *folded = byte.to_ascii_lowercase();
        }
        let kind = wire::u16_at(packet, at)?;
        if wire::u16_at(packet, at + 2)? != CLASS_IN {
            return None;
        }
        let question_end = at + 4;
        let rest = packet.get(question_end..)?;
        let edns = match header[11] {
            0 if rest.is_empty() => None,
            1 => Some(QueryEdns::read(rest)?),
            _ => return None,
        };
        let query = Query {
            packet,
            question_end,
            kind,
            edns,
        };
        Some((query, wire.len()))
    }

    /// The flags that change an upstream's answer.
    pub(crate) fn flags(&self) -> Flags {
        Flags {
            recursion_desired: self.packet[2] & 0x01 != 0,
            authentic_data: self.packet[3] & 0x20 != 0,
            checking_disabled: self.packet[3] & 0x10 != 0,
            dnssec_ok: self.edns.is_some_and(|edns| edns.dnssec_ok),
        }
    }
}

impl<'p> QueryEdns<'p> {
    /// `record` is the packet's last record and nothing else.
    fn read(record: &'p [u8]) -> Option<Self> {
        let (fixed, mut options) = record.split_first_chunk::<11>()?;
        let [root, kind_high, kind_low, size @ .., _, _] = fixed;
        let [size_high, size_low, _, version, flags, _] = size;
        let ordinary = *root == 0
            && u16::from_be_bytes([*kind_high, *kind_low]) == TYPE_OPT
            && *version == 0
            && usize::from(u16::from_be_bytes([fixed[9], fixed[10]])) == options.len();
        if !ordinary {
            return None;
        }
        let mut edns = QueryEdns {
            size: u16::from_be_bytes([*size_high, *size_low]),
            dnssec_ok: flags & 0x80 != 0,
            nsid: false,
            cookie: None,
        };
        while !options.is_empty() {
            let (head, rest) = options.split_first_chunk::<4>()?;
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let (data, rest) = rest.split_at_checked(length)?;
            match u16::from_be_bytes([head[0], head[1]]) {
                OPTION_NSID => edns.nsid = true,
                OPTION_SUBNET if !is_subnet(data) => return None,
                OPTION_COOKIE if edns.cookie.is_none() && matches!(length, 8 | 16..=40) => {
                    edns.cookie = Some(data);
                }
                OPTION_COOKIE => return None,
                _ => {}
            }
            options = rest;
        }
        Some(edns)
    }
}

/// Whether this is a client's subnet (RFC 7871, 6), which means nothing to us unless it is broken.
fn is_subnet(data: &[u8]) -> bool {
    let Some(([0, family, prefix, _], address)) = data.split_first_chunk::<4>() else {
        return false;
    };
    let bytes = usize::from(prefix.div_ceil(8));
    let most = match family {
        1 => 4,
        2 => 16,
        _ => return false,
    };
    bytes <= most && bytes <= address.len()
}
