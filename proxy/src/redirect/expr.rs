//! Rules: nf_tables is a register machine, and a rule is a run of its instructions.
//!
//! Every test that fails ends its rule; a packet that passes them all meets the verdict at the end.

use super::Range;
use super::netlink::Message;
use super::uapi::*;

/// An IP family, as far as rules and sets differ by it.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) nfproto: u8,
    /// Ends the names of this family's sets.
    pub(super) suffix: char,
    pub(super) address_len: u32,
    /// Where the destination address stands in the network header.
    daddr_offset: u32,
    /// nft's number of the address type, by which it prints the sets' keys.
    pub(super) key_type: u32,
}

pub(super) static IPV4: Family = Family {
    nfproto: NFPROTO_IPV4,
    suffix: '4',
    address_len: 4,
    daddr_offset: 16,
    key_type: 7,
};

pub(super) static IPV6: Family = Family {
    nfproto: NFPROTO_IPV6,
    suffix: '6',
    address_len: 16,
    daddr_offset: 24,
    key_type: 8,
};

/// The first register; a set's key lies in it and those after it, every field padded to 32 bits.
const FIRST: u32 = NFT_REG32_00;
/// The destination port's place in the headers of TCP and UDP alike.
const DPORT_OFFSET: u32 = 2;
const PORT_LEN: u32 = 2;

impl Family {
    pub(super) fn of(range: &Range) -> &'static Self {
        if range.address.is_ipv4() {
            &IPV4
        } else {
            &IPV6
        }
    }

    fn after_address(&self) -> u32 {
        FIRST + self.address_len / 4
    }
}

/// The instructions of one rule; methods stand for what `nft` would write.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    message: &'a mut Message,
}

impl<'a> Rule<'a> {
    pub(super) fn new(message: &'a mut Message) -> Self {
        Self { message }
    }

    /// `ct state new`.
    pub(super) fn ct_state_new(self) -> Self {
        self.ct_bits(NFT_CT_STATE, CT_STATE_NEW)
            .compare(NFT_CMP_NEQ, &[0; 4])
    }

    /// `ct status & dnat == 0`.
    pub(super) fn ct_status_not_dnat(self) -> Self {
        self.ct_bits(NFT_CT_STATUS, CT_STATUS_DNAT)
            .compare(NFT_CMP_EQ, &[0; 4])
    }

    fn ct_bits(self, key: u32, bits: u32) -> Self {
        self.expr("ct", |m| {
            m.attr_be32(NFTA_CT_DREG, FIRST).attr_be32(NFTA_CT_KEY, key);
        })
        .mask(&bits.to_ne_bytes())
    }

    /// `meta nfproto FAMILY`.
    pub(super) fn family(self, family: &Family) -> Self {
        self.meta(NFT_META_NFPROTO, FIRST)
            .compare(NFT_CMP_EQ, &[family.nfproto])
    }

    /// `meta l4proto PROTOCOL`.
    pub(super) fn l4proto(self, protocol: u8) -> Self {
        self.meta(NFT_META_L4PROTO, FIRST)
            .compare(NFT_CMP_EQ, &[protocol])
    }

    /// A destination address of this family; leaves it in the first register.
    pub(super) fn daddr_of(self, family: &Family) -> Self {
        self.family(family).load_daddr(family)
    }

    /// `ip daddr RANGE`.
    pub(super) fn daddr_in(self, range: &Range) -> Self {
        self.daddr_of(Family::of(range))
            .mask(&range.mask())
            .compare(NFT_CMP_EQ, &range.octets())
    }

    /// `th dport PORT`.
    pub(super) fn dport_is(self, port: u16) -> Self {
        self.load_dport(FIRST)
            .compare(NFT_CMP_EQ, &port.to_be_bytes())
    }

    /// `ip daddr . tcp dport @SET`.
    pub(super) fn tcp_service_in(self, family: &Family, set: &str) -> Self {
        self.family(family)
            .l4proto(libc::IPPROTO_TCP as u8)
            .load_daddr(family)
            .load_dport(family.after_address())
            .lookup(set)
    }

    /// `ip daddr . meta l4proto . th dport @SET`; leaves the address in the first register.
    pub(super) fn bound_socket_in(self, family: &Family, set: &str) -> Self {
        let protocol = family.after_address();
        self.daddr_of(family)
            .meta(NFT_META_L4PROTO, protocol)
            .load_dport(protocol + 1)
            .lookup(set)
    }

    /// `jump CHAIN`.
    pub(super) fn jump(self, chain: &str) {
        self.verdict(NFT_JUMP, Some(chain));
    }

    /// `accept`.
    pub(super) fn accept(self) {
        self.verdict(NF_ACCEPT, None);
    }

    /// `reject with tcp reset`.
    pub(super) fn reject_with_reset(self) {
        self.expr("reject", |m| {
            m.attr_be32(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST)
                .attr(NFTA_REJECT_ICMP_CODE, &[0]);
        });
    }

    /// `reject with icmpx port-unreachable`.
    pub(super) fn reject_with_port_unreachable(self) {
        self.expr("reject", |m| {
            m.attr_be32(NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH)
                .attr(NFTA_REJECT_ICMP_CODE, &[NFT_REJECT_ICMPX_PORT_UNREACH]);
        });
    }

    /// `dnat to :PORT`: the address stays.
    pub(super) fn dnat_to_port(self, family: &Family, port: u16) {
        self.expr("immediate", |m| {
            m.attr_be32(NFTA_IMMEDIATE_DREG, FIRST)
                .nest(NFTA_IMMEDIATE_DATA, |m| {
                    m.attr(NFTA_DATA_VALUE, &port.to_be_bytes());
                });
        })
        .dnat(family, NFTA_NAT_REG_PROTO_MIN);
    }

    /// `dnat to ip daddr`, the address being in the first register: changes nothing, but counts as
    /// the flow's one translation, so that no later chain makes another.
    pub(super) fn dnat_to_itself(self, family: &Family) {
        self.dnat(family, NFTA_NAT_REG_ADDR_MIN);
    }

    fn dnat(self, family: &Family, register: u16) {
        self.expr("nat", |m| {
            m.attr_be32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
                .attr_be32(NFTA_NAT_FAMILY, u32::from(family.nfproto))
                .attr_be32(register, FIRST);
        });
    }

    fn load_daddr(self, family: &Family) -> Self {
        self.payload(
            NFT_PAYLOAD_NETWORK_HEADER,
            family.daddr_offset,
            family.address_len,
            FIRST,
        )
    }

    fn load_dport(self, register: u32) -> Self {
        self.payload(
            NFT_PAYLOAD_TRANSPORT_HEADER,
            DPORT_OFFSET,
            PORT_LEN,
            register,
        )
    }

    fn payload(self, base: u32, offset: u32, len: u32, register: u32) -> Self {
        self.expr("payload", |m| {
            m.attr_be32(NFTA_PAYLOAD_DREG, register)
                .attr_be32(NFTA_PAYLOAD_BASE, base)
                .attr_be32(NFTA_PAYLOAD_OFFSET, offset)
                .attr_be32(NFTA_PAYLOAD_LEN, len);
        })
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expr("meta", |m| {
            m.attr_be32(NFTA_META_DREG, register)
                .attr_be32(NFTA_META_KEY, key);
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).expect("a mask is as long as an address at most");
        self.expr("bitwise", |m| {
            m.attr_be32(NFTA_BITWISE_SREG, FIRST)
                .attr_be32(NFTA_BITWISE_DREG, FIRST)
                .attr_be32(NFTA_BITWISE_LEN, len)
                .nest(NFTA_BITWISE_MASK, |m| {
                    m.attr(NFTA_DATA_VALUE, mask);
                })
                .nest(NFTA_BITWISE_XOR, |m| {
                    m.attr(NFTA_DATA_VALUE, &vec![0; mask.len()]);
                });
        })
    }

    fn compare(self, operation: u32, value: &[u8]) -> Self {
        self.expr("cmp", |m| {
            m.attr_be32(NFTA_CMP_SREG, FIRST)
                .attr_be32(NFTA_CMP_OP, operation)
                .nest(NFTA_CMP_DATA, |m| {
                    m.attr(NFTA_DATA_VALUE, value);
                });
        })
    }

    fn lookup(self, set: &str) -> Self {
        self.expr("lookup", |m| {
            m.attr_str(NFTA_LOOKUP_SET, set)
                .attr_be32(NFTA_LOOKUP_SREG, FIRST);
        })
    }

    fn verdict(self, code: i32, chain: Option<&str>) {
        self.expr("immediate", |m| {
            m.attr_be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
                .nest(NFTA_IMMEDIATE_DATA, |m| {
                    m.nest(NFTA_DATA_VERDICT, |m| {
                        m.attr_be32(NFTA_VERDICT_CODE, code.cast_unsigned());
                        if let Some(chain) = chain {
                            m.attr_str(NFTA_VERDICT_CHAIN, chain);
                        }
                    });
                });
        });
    }

    fn expr(self, name: &str, fill: impl FnOnce(&mut Message)) -> Self {
        self.message.nest(NFTA_LIST_ELEM, |m| {
            m.attr_str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
        });
        self
    }
}
